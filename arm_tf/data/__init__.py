"""Data sets of binary images: found or downloaded, verified, split, binarised.

Images are rows of pixels, upright, row by row; those of the named sets have 28 x 28. A static set
is binarised once; a dynamic one keeps its training images grey and draws their bits anew each
epoch. Whatever cannot be used raises `DataError`; whatever is usable but not the published file is
used with a warning.

Besides the named sets there are files and arrays of one's own (`from_arrays` says what they may
hold): an .npy file with one array, or an .npz file with one array or with those named train, valid
(or val, validation) and test, also as x_train or train_images; other arrays beside these, such as
labels, are left alone.
"""

import os
import pathlib

from arm_tf.data import named, readers
from arm_tf.data.dataset import Dataset, arrays_checksum, first
from arm_tf.data.named import DATASETS, batch_size
from arm_tf.data.own import ARRAYS, from_arrays, from_splits
from arm_tf.errors import DataError

__all__ = [
    "ARRAYS",
    "DATASETS",
    "DataError",
    "Dataset",
    "batch_size",
    "from_arrays",
    "is_file",
    "load",
]


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    valid_images: int | None = None,
    test_images: int | None = None,
    image_shape: tuple[int, int] | None = None,
) -> Dataset:
    """The data set of a name or a file.

    Args:
      name: one of `DATASETS`, or the path of a file of one's own, FILE.npz or FILE.npy.
      data_dir: folder with the files; None downloads the published ones into the Keras cache, and
        looks for one's own in the present folder.
      valid_images: keep only the first so many validation images; None keeps all.
      test_images: likewise for the test images.
      image_shape: (height, width) of the images of such a file; None guesses it.

    Returns:
      A `Dataset`.

    Raises:
      DataError: the name, the folder, a number or a file's contents cannot be used.
    """
    if is_file(name):
        path = pathlib.Path(os.path.expanduser(pathlib.Path(data_dir or "", name)))
        if not os.path.isfile(path):
            found = "a folder" if os.path.isdir(path) else "nothing"
            raise DataError(
                f"{path}: expected a file, found {found}; name it with --dataset, "
                "or its folder with --data_dir"
            )
        return from_splits(
            path.name, path, readers.own(path), valid_images, test_images, image_shape
        )
    if name == ARRAYS:
        raise DataError(
            f"{ARRAYS}: these data were given from Python, not from a file; give them again, or "
            "write them with numpy.savez and use --dataset=FILE.npz"
        )
    if name not in DATASETS:
        raise DataError(
            f"no data set is named {name!r}; choose one of {', '.join(DATASETS)}, "
            "or a file, .npz or .npy"
        )
    if image_shape not in (None, (28, 28)):
        raise DataError(
            f"image_shape: expected (28, 28), found {image_shape}; leave it out for {name}"
        )
    if data_dir is not None:
        data_dir = pathlib.Path(os.path.expanduser(data_dir))
        if not os.path.isdir(data_dir):  # which raises nothing, whatever the name
            found = "a file" if os.path.exists(data_dir) else "nothing"
            raise DataError(
                f"{data_dir}: expected a folder, found {found}; "
                "set --data_dir to the folder that holds the data files"
            )
    train, valid, test, published, dynamic = named.load(name, data_dir)
    valid = first(valid, valid_images, "valid_images")
    test = first(test, test_images, "test_images")
    return Dataset(
        name=name,
        train=train,
        valid=valid,
        test=test,
        dynamic=dynamic,
        published=published,
        checksum=arrays_checksum(train, valid, test),
    )


def is_file(name: str | os.PathLike[str]) -> bool:
    """Whether the name of a data set is that of a file of one's own."""
    return pathlib.PurePath(str(name)).suffix.lower() in (".npz", ".npy")

"""Data sets of one's own arrays and files: their shapes, grey levels and splits."""

import math
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from arm_tf.data import readers
from arm_tf.data.dataset import BINARISATION_SEED, CHUNK, Dataset, arrays_checksum, binarise, first
from arm_tf.errors import DataError

_SPLIT_SEED = 28_784  # validation and test images of arrays that are not split
_HELD_OUT = 10  # one image in so many of those
_DARKEST_WHITE = 128  # least maximum of whole numbers that are grey levels of 255
ARRAYS = "arrays"  # name of a data set from arrays


def from_arrays(
    train: npt.ArrayLike,
    valid: npt.ArrayLike | None = None,
    test: npt.ArrayLike | None = None,
    image_shape: tuple[int, int] | None = None,
    valid_images: int | None = None,
    test_images: int | None = None,
) -> Dataset:
    """A data set of one's own arrays.

    Zeros and ones make a static set. Grey levels, whole numbers from 0 to 255 or floats from 0
    to 1, make a dynamic one, whose validation and test images are binarised once unless they are
    zeros and ones already. Without `test`, a tenth of the training images become test images, and
    without `valid` a tenth of what is then left validation images: drawn with a seed of their own,
    so that they depend on the number of images alone.

    Args:
      train: bool, integers or floats [N, pixels], [N, height, width], or the latter with a further
        axis of size 1 before or after height and width.
      valid: likewise, or None.
      test: likewise, or None.
      image_shape: (height, width); None takes it from the arrays, and a number of pixels that is
        a square for that of a square image.
      valid_images: keep only the first so many validation images; None keeps all.
      test_images: likewise for the test images.

    Returns:
      A `Dataset`, which shares no memory with the arrays.

    Raises:
      DataError: the arrays or a number cannot be used.
    """
    splits = {}
    for split, images in (("train", train), ("valid", valid), ("test", test)):
        if images is None and split != "train":
            continue
        try:
            images = np.asarray(images)
        except Exception as error:  # of any kind, whatever the object is
            raise DataError(f"{split}: no array of numbers ({error})") from error
        readers.check_images(images.shape, images.dtype, split)
        splits[split] = np.empty(images.shape, readers.level_type(images.dtype))
        for start in range(0, len(images), CHUNK):
            part = readers.levels(images[start : start + CHUNK], split)
            splits[split][start : start + CHUNK] = part
    return from_splits(ARRAYS, ARRAYS, splits, valid_images, test_images, image_shape)


def from_splits(
    name: str,
    where: str | os.PathLike[str],
    splits: dict[str, np.ndarray],
    valid_images: int | None,
    test_images: int | None,
    image_shape: tuple[int, int] | None,
) -> Dataset:
    """The `Dataset` of one's own images, uint8 or float32 [N, ...] by split."""
    sizes = {split: images.shape[1:] for split, images in splits.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{size} in {split}" for split, size in sizes.items())
        raise DataError(f"{where}: expected images of one size, found {found}; scale them first")
    shape = _image_shape(where, sizes["train"], image_shape)
    splits = {split: images.reshape(len(images), -1) for split, images in splits.items()}
    grey = [split for split, images in splits.items() if not _are_bits(images)]
    _check_white(where, [splits[split] for split in grey])
    dynamic = "train" in grey
    if grey and not dynamic:
        raise DataError(
            f"{where}: expected zeros and ones in {grey[0]}, as in train, found grey levels; "
            "binarise both, or neither"
        )
    for split in ("test", "valid"):
        if split not in splits:
            splits["train"], splits[split] = _hold_out(splits["train"], where)
            grey += [split] * dynamic
    rng = np.random.default_rng(BINARISATION_SEED)
    for split, images in splits.items():
        if split not in grey:
            splits[split] = images.astype(np.uint8, copy=False)
        elif split != "train":
            splits[split] = binarise(images, rng)
    train = splits["train"]
    valid = first(splits["valid"], valid_images, "valid_images")
    test = first(splits["test"], test_images, "test_images")
    checksum = arrays_checksum(*(images.reshape(-1, *shape) for images in (train, valid, test)))
    return Dataset(name, train, valid, test, dynamic, None, checksum, shape)


def _image_shape(
    where: str | os.PathLike[str], size: tuple[int, ...], given: Sequence[int] | None
) -> tuple[int, int]:
    """(height, width) of images that have the shape `size` in an array."""
    given = given and tuple(given)
    if len(size) == 3 and 1 in (size[0], size[2]):
        size = size[:2] if size[2] == 1 else size[1:]
    pixels = math.prod(size)
    side = math.isqrt(pixels)
    found = size if len(size) == 2 else (side, side)
    if len(size) > 2:
        raise DataError(
            f"{where}: expected grey images [N, height, width], found [N, "
            f"{', '.join(map(str, size))}]; average their colours, or choose one"
        )
    if given and (len(given) != 2 or math.prod(given) != pixels or size not in (given, (pixels,))):
        raise DataError(
            f"{where}: expected images of {' x '.join(map(str, given))}, as --image_shape says, "
            f"found {' x '.join(map(str, size))}; leave it out, or correct it"
        )
    if not given and math.prod(found) != pixels:
        raise DataError(
            f"{where}: expected a square number of pixels, found {pixels}; "
            "set --image_shape to HEIGHT,WIDTH, or save the images as [N, height, width]"
        )
    height, width = given or found
    return height, width


def _are_bits(images: np.ndarray) -> bool:
    parts = (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))
    return all(((part == 0) | (part == 1)).all() for part in parts)


def _check_white(where: str | os.PathLike[str], grey: Sequence[np.ndarray]) -> None:
    """Refuses grey levels, a list of arrays, that are whole numbers of an unknown white."""
    high = max((images.max() for images in grey if images.dtype == np.uint8), default=255)
    if high < _DARKEST_WHITE:
        raise DataError(
            f"{where}: expected zeros and ones, or grey levels up to 255, found whole numbers "
            f"up to {high}; divide by that of white, which gives floats from 0 to 1"
        )


def _hold_out(images: np.ndarray, where: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Splits off one image in `_HELD_OUT`, which depend on the number of images alone."""
    count = max(1, len(images) // _HELD_OUT)
    if count == len(images):
        raise DataError(
            f"{where}: expected images enough for training, validation and test, found too few; "
            "give more"
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    return images[np.sort(order[count:])], images[np.sort(order[:count])]

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

import dataclasses
import hashlib
import math
import os
import pathlib
import socket
import tempfile

import numpy as np
from absl import logging

from arm_tf.data import glyphs, readers
from arm_tf.data.readers import PIXELS, DataError

_CHUNK = 4096  # rows handled at a time where a whole array would need much memory
_BINARISATION_SEED = 784_28  # validation and test bits of the dynamic sets
_SPLIT_SEED = 28_784  # validation and test images of arrays that are not split
_HELD_OUT = 10  # one image in so many of those
_DARKEST_WHITE = 128  # least maximum of whole numbers that are grey levels of 255
ARRAYS = "arrays"  # name of a data set from arrays
_TIMEOUT = 60.0  # seconds without a byte before a download is given up


@dataclasses.dataclass(frozen=True)
class Source:
    """A published file.

    Attributes:
      address: where it is published.
      checksum: of the file, "sha256:..." or "md5:...".
      contents: checksum of what it, or the data set that it is part of, holds, for files that are
        also passed on repacked; or None.
      folder: where in the cache it goes.
    """

    address: str
    checksum: str
    contents: str | None = None
    folder: str = "datasets"


_KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_MNIST_STATIC = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
_FASHION_CONTENTS = "sha256:0fbbfcb392782b3b702472ead3688778e1509e8cf40f5c24d9d3303618b193ab"
_AMAT_CHECKSUMS = {
    "train": "sha256:ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "sha256:1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "sha256:e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}

SOURCES = {
    **{
        f"binarized_mnist_{split}.amat": Source(
            f"{_MNIST_STATIC}binarized_mnist_{split}.amat", checksum, contents=checksum
        )
        for split, checksum in _AMAT_CHECKSUMS.items()
    },
    "mnist.npz": Source(
        f"{_KERAS}mnist.npz",
        "sha256:731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
        contents="sha256:5b92582eb909c82a9bfefcd44acbe9233be3eb5b419a44cf211022ad2bf4bf96",
    ),
    "train-images-idx3-ubyte.gz": Source(
        f"{_KERAS}train-images-idx3-ubyte.gz",
        "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        contents=_FASHION_CONTENTS,
        folder="datasets/fashion-mnist",
    ),
    "t10k-images-idx3-ubyte.gz": Source(
        f"{_KERAS}t10k-images-idx3-ubyte.gz",
        "md5:bef4ecab320f06d8554ea6380940ec79",
        contents=_FASHION_CONTENTS,
        folder="datasets/fashion-mnist",
    ),
    "chardata.mat": Source(
        "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",
        "md5:21ecaf34373511aa7691cf2e0802aa3d",
    ),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training, validation and test images.

    Attributes:
      name: one of `DATASETS`, the name of a file, or `ARRAYS`.
      train: [N, pixels]; uint8 bits if static, else grey levels: uint8 of 255, or float32 in
        [0, 1].
      valid: uint8 bits [*, pixels].
      test: uint8 bits [*, pixels].
      dynamic: whether `train` is grey and its bits are drawn anew each epoch.
      published: whether the contents are those of the published files; None where there are
        none, as for glyphs and one's own data.
      checksum: SHA-256 of the three arrays, in hexadecimal.
      image_shape: (height, width), whose product is the number of pixels.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    dynamic: bool
    published: bool | None
    checksum: str
    image_shape: tuple = (28, 28)

    def epoch(self, seed, epoch):
        """The bits of the training images for one epoch, not shuffled.

        Args:
          seed: non-negative int.
          epoch: non-negative int.

        Returns:
          uint8 [N, pixels]: if static `train` itself, else b ~ Bernoulli(grey level), which
          depends on nothing but `seed` and `epoch`.
        """
        if not self.dynamic:
            return self.train
        return _binarise(self.train, np.random.default_rng([seed, epoch]))

    @property
    def train_mean(self):
        """Mean of each pixel over the training images, float32 [pixels] in [0, 1]."""
        mean = self.train.mean(axis=0, dtype=np.float64)
        return (mean / _white(self.train) if self.dynamic else mean).astype(np.float32)


def load(name, data_dir=None, valid_images=None, test_images=None, image_shape=None):
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
        return _own(path.name, path, readers.own(path), valid_images, test_images, image_shape)
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
    train, valid, test, published = _LOADERS[name](data_dir)
    valid = _first(valid, valid_images, "valid_images")
    test = _first(test, test_images, "test_images")
    return Dataset(
        name=name,
        train=train,
        valid=valid,
        test=test,
        dynamic=name.endswith("_dynamic"),
        published=published,
        checksum=_arrays_checksum(train, valid, test),
    )


def is_file(name):
    """Whether the name of a data set is that of a file of one's own."""
    return pathlib.PurePath(str(name)).suffix.lower() in (".npz", ".npy")


def from_arrays(
    train, valid=None, test=None, image_shape=None, valid_images=None, test_images=None
):
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
        for start in range(0, len(images), _CHUNK):
            part = readers.levels(images[start : start + _CHUNK], split)
            splits[split][start : start + _CHUNK] = part
    return _own(ARRAYS, ARRAYS, splits, valid_images, test_images, image_shape)


def _own(name, where, splits, valid_images, test_images, image_shape):
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
    rng = np.random.default_rng(_BINARISATION_SEED)
    for split, images in splits.items():
        if split not in grey:
            splits[split] = images.astype(np.uint8, copy=False)
        elif split != "train":
            splits[split] = _binarise(images, rng)
    train = splits["train"]
    valid = _first(splits["valid"], valid_images, "valid_images")
    test = _first(splits["test"], test_images, "test_images")
    checksum = _arrays_checksum(*(images.reshape(-1, *shape) for images in (train, valid, test)))
    return Dataset(name, train, valid, test, dynamic, None, checksum, shape)


def _image_shape(where, size, given):
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
    return given or found


def _are_bits(images):
    parts = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
    return all(((part == 0) | (part == 1)).all() for part in parts)


def _check_white(where, grey):
    """Refuses grey levels, a list of arrays, that are whole numbers of an unknown white."""
    high = max((images.max() for images in grey if images.dtype == np.uint8), default=255)
    if high < _DARKEST_WHITE:
        raise DataError(
            f"{where}: expected zeros and ones, or grey levels up to 255, found whole numbers "
            f"up to {high}; divide by that of white, which gives floats from 0 to 1"
        )


def _hold_out(images, where):
    """Splits off one image in `_HELD_OUT`, which depend on the number of images alone."""
    count = max(1, len(images) // _HELD_OUT)
    if count == len(images):
        raise DataError(
            f"{where}: expected images enough for training, validation and test, found too few; "
            "give more"
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    return images[np.sort(order[count:])], images[np.sort(order[:count])]


def _first(images, count, argument):
    if count is None:
        return images
    if not 1 <= count <= len(images):
        raise DataError(
            f"{argument}: expected a number from 1 to {len(images)}, found {count}; "
            "leave it out to keep all images"
        )
    return images[:count]


# One loader a data set: data_dir -> (train, valid, test, published).


def _load_glyphs(data_dir):
    """Embedded glyphs, each image binarised once; needs no files."""
    del data_dir
    try:
        splits = glyphs.load(_cache_folder() / "datasets")
    except (OSError, ValueError) as error:
        raise DataError(
            f"glyphs: matplotlib's fonts cannot be used ({error}); reinstall matplotlib"
        ) from error
    rng = np.random.default_rng(_BINARISATION_SEED)
    train, valid, test = (_binarise(images, rng) for images in splits)
    return train, valid, test, None


def _load_mnist_static(data_dir):
    """Larochelle and Murray's bits as published, 50,000 / 10,000 / 10,000."""
    counts = {"train": 50_000, "valid": 10_000, "test": 10_000}
    splits, published = [], True
    for split, count in counts.items():
        source = f"binarized_mnist_{split}.amat"
        [path] = _find(data_dir, [source], [[source], [f"{source}.gz"]])
        bits = readers.amat(path, count)
        published &= _is_published(path, _text_checksum(bits), SOURCES[source].contents)
        splits.append(bits)
    return *splits, published


def _load_mnist_threshold(data_dir):
    """Pixel > 0.5; the first 5,000 training images are validation."""
    train, test, published = _mnist_grey(data_dir)
    train, test = ((images > 127).astype(np.uint8) for images in (train, test))
    return train[5_000:], train[:5_000], test, published


def _load_mnist_dynamic(data_dir):
    """Grey training images; the last 10,000 of the 60,000 are validation."""
    train, test, published = _mnist_grey(data_dir)
    return *_hold_out_last(train, 10_000, test), published


def _load_fashion_dynamic(data_dir):
    """Grey training images; the last 10,000 of the 60,000 are validation."""
    train, test, published = _fashion_grey(data_dir)
    return *_hold_out_last(train, 10_000, test), published


def _load_omniglot(data_dir):
    """Burda's OMNIGLOT with the ARM authors' bits and order; the last 1,345 are validation.

    The bits are u < grey level with NumPy's legacy generator seeded with 5, the training images
    drawn first; the training images are then permuted with seed 123.
    """
    train, test, published = _omniglot_grey(data_dir)
    rng = np.random.RandomState(5)
    train, test = _binarise(train, rng), _binarise(test, rng)
    train = train[np.random.RandomState(123).permutation(len(train))]
    return train[:-1_345], train[-1_345:], test, published


def _load_omniglot_dynamic(data_dir):
    """Grey training images in the file's order; the last 1,345 are validation."""
    train, test, published = _omniglot_grey(data_dir)
    return *_hold_out_last(train, 1_345, test), published


_LOADERS = {
    "glyphs": _load_glyphs,
    "mnist_static": _load_mnist_static,
    "mnist_threshold": _load_mnist_threshold,
    "mnist_dynamic": _load_mnist_dynamic,
    "fashion_dynamic": _load_fashion_dynamic,
    "omniglot": _load_omniglot,
    "omniglot_dynamic": _load_omniglot_dynamic,
}
DATASETS = tuple(_LOADERS)


_IDX = {"train-images-idx3-ubyte": 60_000, "t10k-images-idx3-ubyte": 10_000}  # files, images
_GREY_SOURCES = {"MNIST": ["mnist.npz"], "Fashion-MNIST": [f"{file}.gz" for file in _IDX]}


def _mnist_grey(data_dir):
    """(train, test, published), uint8 grey levels [60000, 784] and [10000, 784]."""
    return _grey(data_dir, "MNIST", "mnist.npz", ["MNIST/raw"])


def _fashion_grey(data_dir):
    """As `_mnist_grey`."""
    folders = ["FashionMNIST/raw", "fashion-mnist"]
    return _grey(data_dir, "Fashion-MNIST", "fashion_mnist.npz", folders)


def _grey(data_dir, title, archive, folders):
    """(train, test, published) of MNIST or Fashion-MNIST.

    In `data_dir` it is Keras's archive or else idx files, gzipped or not, in one of the folders
    or in none, where they might be the other one's.
    """
    idx = [[f"{folder}/{file}" for file in _IDX] for folder in (*folders, ".")]
    idx = [[name + end for name in names] for names in idx for end in ("", ".gz")]
    paths = _find(data_dir, _GREY_SOURCES[title], [[archive], *idx])
    if paths[0].suffix == ".npz":
        images = readers.npz(paths[0])
    else:
        images = [readers.idx(*file) for file in zip(paths, _IDX.values(), strict=True)]
    digest = hashlib.sha256()
    for part in images:
        digest.update(part)
    contents = f"sha256:{digest.hexdigest()}"
    known = {name: SOURCES[sources[0]].contents for name, sources in _GREY_SOURCES.items()}
    for name in known:
        if name != title and known[name] == contents:
            raise DataError(
                f"{paths[0]}: expected {title}, found {name}; name the right folder with --data_dir"
            )
    return *images, _is_published(paths[0], contents, known[title])


def _omniglot_grey(data_dir):
    """(train, test, published), float32 grey levels [24345, 784] and [8070, 784], upright."""
    source = SOURCES["chardata.mat"]
    [path] = _find(data_dir, ["chardata.mat"], [["chardata.mat"]])
    arrays = readers.mat(path, {"data": (PIXELS, 24_345), "testdata": (PIXELS, 8_070)})
    images = []
    for name, columns in arrays.items():
        low, high = columns.min(), columns.max()
        if not (low >= 0 and high <= 1):  # also where a level is not a number
            raise readers.refusal(path, f"grey levels from 0 to 1 in {name}", f"{low} to {high}")
        upright = columns.T.astype(np.float32).reshape(-1, 28, 28).transpose(0, 2, 1)
        images.append(upright.reshape(-1, PIXELS))
    return *images, _is_published(path, _file_checksum(path, source.checksum), source.checksum)


def _hold_out_last(train, count, test):
    """Splits off the last `count` training images; binarises those and the test images once."""
    rng = np.random.default_rng(_BINARISATION_SEED)
    return train[:-count], _binarise(train[-count:], rng), _binarise(test, rng)


def _binarise(grey, rng):
    """Bits b = 1[u < grey level], u uniform from `rng` in the order of the pixels."""
    bits = np.empty(grey.shape, np.uint8)
    for start in range(0, len(grey), _CHUNK):
        rows = grey[start : start + _CHUNK]
        bits[start : start + _CHUNK] = rng.random(rows.shape) < rows / _white(rows)
    return bits


def _white(grey):
    return 255 if grey.dtype == np.uint8 else 1


# Files and checksums.


def _find(data_dir, sources, forms):
    """Paths of the files of a data set, downloaded, or those that are in a folder.

    Args:
      data_dir: path, or None to download.
      sources: names in `SOURCES`.
      forms: lists of file names, one of them `sources`; the first whose files are all there counts.
    """
    if data_dir is None:
        return [_download(source) for source in sources]
    for names in forms:
        if all((data_dir / name).is_file() for name in names):
            return [data_dir / name for name in names]
    missing = next(source for source in sources if not (data_dir / source).is_file())
    raise DataError(
        f"{data_dir / missing}: no such file; put {SOURCES[missing].address} there, "
        "or use --dataset=glyphs, which needs no files"
    )


def _download(file_name):
    """Path of a published file in the Keras cache; what is there has the right checksum.

    The file is fetched into a folder of its own and moved into place once verified, so neither
    an interruption nor another process can leave or meet a partial one.
    """
    source = SOURCES[file_name]
    path = _cache_folder() / source.folder / file_name
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        if path.is_file() and _file_checksum(path, source.checksum) == source.checksum:
            return path
        import keras

        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".arm_tf_") as scratch:
            part = keras.utils.get_file(file_name, source.address, cache_subdir=scratch)
            found = _file_checksum(part, source.checksum)
            if found != source.checksum:
                raise ValueError(f"expected checksum {source.checksum}, found {found}")
            os.replace(part, path)
    except Exception as error:  # get_file raises plain exceptions
        raise DataError(
            f"{source.address}: cannot be downloaded ({error}); put {file_name} into a folder "
            "and name the folder with --data_dir, or use --dataset=glyphs, which needs no files"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def _cache_folder():
    """The folder that Keras keeps its files in."""
    return pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()


def _is_published(path, found, published):
    """Whether a checksum of a file or of its contents is the published one; warns if not."""
    if found != published:
        logging.warning(
            "%s: not the published file (%s, published %s); "
            "results are not comparable with published figures",
            path,
            found,
            published,
        )
    return found == published


def _file_checksum(path, like):
    """Checksum of a file in the form, and with the algorithm, of another one."""
    algorithm = like.partition(":")[0]
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


def _text_checksum(bits):
    """Checksum of bits written out as the published text files have them."""
    digest = hashlib.sha256()
    for start in range(0, len(bits), _CHUNK):
        rows = bits[start : start + _CHUNK]
        text = np.full((len(rows), 2 * PIXELS), ord(" "), np.uint8)
        text[:, ::2] = rows + ord("0")
        text[:, -1] = ord("\n")
        digest.update(text)
    return f"sha256:{digest.hexdigest()}"


def _arrays_checksum(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()

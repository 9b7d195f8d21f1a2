"""Data sets of binary images: found or downloaded, verified, split, binarised.

Images are rows of 784 pixels, upright, row by row. A static set is binarised once; a dynamic one
keeps its training images grey and draws their bits anew each epoch. Whatever cannot be used
raises `DataError`; whatever is usable but not the published file is used with a warning.
"""

import dataclasses
import hashlib
import os
import pathlib
import socket
import tempfile

import numpy as np
from absl import logging

from arm_tf import glyphs, readers
from arm_tf.readers import PIXELS, DataError

_CHUNK = 4096  # rows handled at a time where a whole array would need much memory
_BINARISATION_SEED = 784_28  # validation and test bits of the dynamic sets
_TIMEOUT = 60.0  # seconds without a byte before a download is given up


@dataclasses.dataclass(frozen=True)
class Source:
    """A published file.

    Attributes:
      address: where it is published.
      checksum: of the file, "sha256:..." or "md5:...".
      contents: checksum of what it holds, for files that are also passed on repacked; or None.
      folder: where in the cache it goes.
    """

    address: str
    checksum: str
    contents: str | None = None
    folder: str = "datasets"


_KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_MNIST_STATIC = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
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
        folder="datasets/fashion-mnist",
    ),
    "t10k-images-idx3-ubyte.gz": Source(
        f"{_KERAS}t10k-images-idx3-ubyte.gz",
        "md5:bef4ecab320f06d8554ea6380940ec79",
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
      name: one of `DATASETS`.
      train: [N, 784]; uint8 bits if static, else grey levels: uint8 of 255, or float32 in [0, 1].
      valid: uint8 bits [*, 784].
      test: uint8 bits [*, 784].
      dynamic: whether `train` is grey and its bits are drawn anew each epoch.
      published: whether the contents are those of the published files; None for glyphs, of
        which there are none.
      checksum: SHA-256 of the three arrays, in hexadecimal.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    dynamic: bool
    published: bool | None
    checksum: str

    def epoch(self, seed, epoch):
        """The bits of the training images for one epoch, not shuffled.

        Args:
          seed: non-negative int.
          epoch: non-negative int.

        Returns:
          uint8 [N, 784]: if static `train` itself, else b ~ Bernoulli(grey level), which
          depends on nothing but `seed` and `epoch`.
        """
        if not self.dynamic:
            return self.train
        return _binarise(self.train, np.random.default_rng([seed, epoch]))

    @property
    def train_mean(self):
        """Mean of each pixel over the training images, float32 [784] in [0, 1]."""
        mean = self.train.mean(axis=0, dtype=np.float64)
        return (mean / _white(self.train) if self.dynamic else mean).astype(np.float32)


def load(name, data_dir=None, valid_images=None, test_images=None):
    """The data set of a name.

    Args:
      name: one of `DATASETS`.
      data_dir: folder with the files; None downloads the published ones into the Keras cache.
      valid_images: keep only the first so many validation images; None keeps all.
      test_images: likewise for the test images.

    Returns:
      A `Dataset`.

    Raises:
      DataError: the name, the folder, a number or a file's contents cannot be used.
    """
    if name not in DATASETS:
        raise DataError(f"no data set is named {name!r}; choose one of {', '.join(DATASETS)}")
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
        path = _find(f"binarized_mnist_{split}.amat", data_dir)
        bits = readers.amat(path, count)
        published &= _is_published(path, _text_checksum(bits))
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


def _mnist_grey(data_dir):
    """(train, test, published), uint8 grey levels [60000, 784] and [10000, 784]."""
    path = _find("mnist.npz", data_dir)
    train, test = readers.npz(path)
    digest = hashlib.sha256(train)
    digest.update(test)
    return train, test, _is_published(path, f"sha256:{digest.hexdigest()}")


def _fashion_grey(data_dir):
    """As `_mnist_grey`, from `fashion_mnist.npz` in `data_dir` or else the two published files."""
    if data_dir is not None and (data_dir / "fashion_mnist.npz").is_file():
        path = data_dir / "fashion_mnist.npz"
        logging.warning("%s: repacked, so it cannot be compared with the published files", path)
        return *readers.npz(path), False
    images, published = [], True
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        path = _find(f"{part}-images-idx3-ubyte.gz", data_dir)
        images.append(readers.idx(path, count))
        published &= _is_published(path)
    return *images, published


def _omniglot_grey(data_dir):
    """(train, test, published), float32 grey levels [24345, 784] and [8070, 784], upright."""
    path = _find("chardata.mat", data_dir)
    arrays = readers.mat(path, {"data": (PIXELS, 24_345), "testdata": (PIXELS, 8_070)})
    images = []
    for name, columns in arrays.items():
        low, high = columns.min(), columns.max()
        if not (low >= 0 and high <= 1):  # also where a level is not a number
            raise readers.refusal(path, f"grey levels from 0 to 1 in {name}", f"{low} to {high}")
        upright = columns.T.astype(np.float32).reshape(-1, 28, 28).transpose(0, 2, 1)
        images.append(upright.reshape(-1, PIXELS))
    return *images, _is_published(path)


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


def _find(file_name, data_dir):
    """Path of a published file, in `data_dir` or downloaded."""
    if data_dir is None:
        return _download(file_name)
    path = data_dir / file_name
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; put {SOURCES[file_name].address} there, "
            "or use --dataset=glyphs, which needs no files"
        )
    return path


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


def _is_published(path, contents=None):
    """Whether a file, or the checksum of its contents, is as published; warns if not."""
    source = SOURCES[path.name]
    if contents is not None and contents == source.contents:
        return True
    found = _file_checksum(path, source.checksum)
    if found == source.checksum:
        return True
    logging.warning(
        "%s: not the published file (%s, published %s); "
        "results are not comparable with published figures",
        path,
        found,
        source.checksum,
    )
    return False


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

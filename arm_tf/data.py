"""Data sets of binary images: found or downloaded, verified, split, binarised.

Images are rows of 784 pixels, upright, row by row. A static set is binarised once; a dynamic one
keeps its training images grey and draws their bits anew each epoch. Whatever cannot be used
raises `DataError`; whatever is usable but not the published file is used with a warning.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import math
import os
import pathlib
import socket
import struct
import tempfile
import zipfile
import zlib

import numpy as np
from absl import logging

from arm_tf import glyphs

PIXELS = 784
_CHUNK = 4096  # rows handled at a time where a whole array would need much memory
_BLOCK = 2**16  # bytes of a file handled at a time
_BINARISATION_SEED = 784_28  # validation and test bits of the dynamic sets
_TIMEOUT = 60.0  # seconds without a byte before a download is given up


class DataError(ValueError):
    """Data that cannot be used; one line: what was wrong, what was found, what to do."""

    def __init__(self, message):
        super().__init__(" ".join(message.splitlines()))


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
        bits = _read_amat(path, count)
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
    train, test = _read_npz(path)
    digest = hashlib.sha256(train)
    digest.update(test)
    return train, test, _is_published(path, f"sha256:{digest.hexdigest()}")


def _fashion_grey(data_dir):
    """As `_mnist_grey`, from `fashion_mnist.npz` in `data_dir` or else the two published files."""
    if data_dir is not None and (data_dir / "fashion_mnist.npz").is_file():
        path = data_dir / "fashion_mnist.npz"
        logging.warning("%s: repacked, so it cannot be compared with the published files", path)
        return *_read_npz(path), False
    images, published = [], True
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        path = _find(f"{part}-images-idx3-ubyte.gz", data_dir)
        images.append(_read_idx(path, count))
        published &= _is_published(path)
    return *images, published


def _omniglot_grey(data_dir):
    """(train, test, published), float32 grey levels [24345, 784] and [8070, 784], upright."""
    path = _find("chardata.mat", data_dir)
    arrays = _read_mat(path, {"data": (PIXELS, 24_345), "testdata": (PIXELS, 8_070)})
    images = []
    for name, columns in arrays.items():
        low, high = columns.min(), columns.max()
        if not (low >= 0 and high <= 1):  # also where a level is not a number
            raise _refusal(path, f"grey levels from 0 to 1 in {name}", f"{low} to {high}")
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


# Readers: path -> checked arrays.


def _read_amat(path, count):
    """uint8 bits [count, 784] from the published text or from the MATLAB form of it."""
    with _parsing(path, "the binarised MNIST, text or MATLAB 5"), open(path, "rb") as file:
        is_matlab = file.read(6) == b"MATLAB"
    if is_matlab:
        bits = _read_mat(path, {"X": (count, PIXELS)})["X"]
        if not ((bits == 0) | (bits == 1)).all():
            raise _refusal(path, "only 0 and 1", f"values from {bits.min()} to {bits.max()}")
        return bits.astype(np.uint8)

    size = count * 2 * PIXELS
    found = path.stat().st_size
    if found != size:
        raise _refusal(path, f"{size} bytes of text ({count} lines of {PIXELS} digits)", found)
    with _parsing(path, "text"):
        text = np.fromfile(path, np.uint8).reshape(count, 2 * PIXELS)
    bits = text[:, ::2] - ord("0")  # what lies below "0" wraps around to a large number
    separators = np.frombuffer(b" " * (PIXELS - 1) + b"\n", np.uint8)
    if not ((bits <= 1).all() and (text[:, 1::2] == separators).all()):
        raise _refusal(path, f"lines of {PIXELS} digits 0 or 1, one space between", "other text")
    return bits


def _read_mat(path, shapes):
    """The arrays of a MATLAB 5 file, {name: [shape]}, in the order of `shapes`."""
    import scipy.io

    most = _check_size(path, 8 * sum(map(math.prod, shapes.values())))
    with _parsing(path, "a MATLAB 5 file"):
        _check_unpacked(path, most)
        found = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(str(path))}
    for name, shape in shapes.items():
        found_shape, kind = found.get(name, ("nothing", ""))
        if found_shape != shape or kind not in ("uint8", "logical", "single", "double"):
            raise _refusal(path, f"{name}, numbers {shape}", f"{found_shape} {kind}".rstrip())
    with _parsing(path, "a MATLAB 5 file"):
        arrays = scipy.io.loadmat(str(path), variable_names=list(shapes))
    for name, shape in shapes.items():
        array = arrays.get(name, np.empty(0, object))
        if array.dtype.kind not in "uf" or array.shape != shape:
            raise _refusal(path, f"{name}, real numbers {shape}", f"{array.dtype} {array.shape}")
    return {name: arrays[name] for name in shapes}


_MAT_COMPRESSED = 15


def _check_unpacked(path, most):
    """Raises ValueError where an element of a MATLAB 5 file unpacks to more bytes than `most`."""
    with open(path, "rb") as file:
        order = {b"IM": "<", b"MI": ">"}[file.read(128)[126:]]
        while len(tag := file.read(8)) == 8:
            kind, left = struct.unpack(order + "II", tag)
            end, unpacked, inflate = file.tell() + left, 0, zlib.decompressobj()
            while kind == _MAT_COMPRESSED and (block := file.read(min(left, _BLOCK))):
                left -= len(block)
                unpacked += len(inflate.decompress(block, most + 1 - unpacked))
                if unpacked > most:
                    raise ValueError(f"an element of more than {most} bytes")
            file.seek(end)


def _exactly(stream, size):
    """So many bytes, of which there must be no fewer."""
    contents = stream.read(size)
    if len(contents) != size:
        raise EOFError(f"{size} bytes expected, {len(contents)} left")
    return contents


def _fill(numbers, stream):
    """Reads an array of one dimension from a stream, in short blocks."""
    contents = memoryview(numbers).cast("B")
    for start in range(0, len(contents), _BLOCK):
        block = contents[start : start + _BLOCK]
        block[:] = _exactly(stream, len(block))


def _read_npz(path, counts=(60_000, 10_000)):
    """(train, test), uint8 [count, 784] each, from the layout of Keras's MNIST."""
    _check_size(path, sum(counts) * PIXELS)
    images = []
    for name, count in zip(("x_train", "x_test"), counts, strict=True):
        shape = (count, 28, 28)
        with (
            _parsing(path, f"an .npz archive with {name}"),
            zipfile.ZipFile(path) as archive,
            _npy_member(archive, name) as file,
        ):
            found_shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            is_right = found_shape == shape and dtype == np.uint8
            if is_right:
                array = np.empty(math.prod(shape), np.uint8)
                _fill(array, file)
                if file.read(1):  # checks the member's checksum, too
                    raise ValueError("more in an array than its shape")
        if not is_right:
            raise _refusal(path, f"{name}, uint8 {shape}", f"{dtype} {found_shape}")
        array = array.reshape(shape, order="F" if fortran_order else "C")
        images.append(array.reshape(count, PIXELS))
    return images


def _npy_member(archive, name):
    """An array in an archive, opened past its magic bytes."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("neither stored nor deflated")  # others unpack to any size at once
    file = archive.open(member)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # headers of others may be of any length
        raise ValueError(f"an array in format {version}")
    return file


def _read_idx(path, count):
    """uint8 [count, 784] from a gzipped idx file of 28 x 28 images."""
    header = np.array([0x0803, count, 28, 28], ">i4").tobytes()
    size = len(header) + count * PIXELS
    _check_size(path, size)
    with _parsing(path, "a gzipped idx file"), gzip.open(path) as file:
        contents = file.read(size + 1)
    if contents[: len(header)] != header:
        expected = f"an idx header of {count} images, {header.hex()}"
        raise _refusal(path, expected, contents[: len(header)].hex())
    if len(contents) != size:
        found = len(contents) if len(contents) < size else "more"
        raise _refusal(path, f"{size} bytes once unpacked", found)
    return np.frombuffer(contents, np.uint8, offset=len(header)).reshape(count, PIXELS)


def _check_size(path, size):
    """Refuses a file that is much larger than its contents; gzip and checksums read it all.

    Returns:
      int, the bytes that it may have.
    """
    found, most = path.stat().st_size, 2 * size + 2**20
    if found > most:
        raise _refusal(path, f"at most {most} bytes", found)
    return most


@contextlib.contextmanager
def _parsing(path, expected):
    """Turns whatever a library raises over a bad file into a `DataError`."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise _refusal(path, expected, f"a file that cannot be read ({reason})") from error


def _refusal(path, expected, found):
    return DataError(
        f"{path}: expected {expected}, found {found}; replace it with the published file"
    )


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

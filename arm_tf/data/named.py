"""The named data sets, from their files to training, validation and test images."""

import hashlib
import pathlib
import typing
from collections.abc import Callable, Sequence

import numpy as np

from arm_tf.data import glyphs, readers
from arm_tf.data.dataset import BINARISATION_SEED, CHUNK, binarise
from arm_tf.data.readers import PIXELS
from arm_tf.data.sources import SOURCES, cache_folder, file_checksum, find, is_published
from arm_tf.errors import DataError

_Splits = tuple[np.ndarray, np.ndarray, np.ndarray, bool | None]


def _load_glyphs(data_dir: pathlib.Path | None) -> _Splits:
    """Embedded glyphs, each image binarised once; needs no files."""
    del data_dir
    try:
        splits = glyphs.load(cache_folder() / "datasets")
    except (OSError, ValueError) as error:
        raise DataError(
            f"glyphs: matplotlib's fonts cannot be used ({error}); reinstall matplotlib"
        ) from error
    rng = np.random.default_rng(BINARISATION_SEED)
    train, valid, test = (binarise(images, rng) for images in splits)
    return train, valid, test, None


def _load_mnist_static(data_dir: pathlib.Path | None) -> _Splits:
    """Larochelle and Murray's bits as published, 50,000 / 10,000 / 10,000."""
    counts = {"train": 50_000, "valid": 10_000, "test": 10_000}
    splits, published = [], True
    for split, count in counts.items():
        source = f"binarized_mnist_{split}.amat"
        [path] = find(data_dir, [source], [[source], [f"{source}.gz"]])
        bits = readers.amat(path, count)
        published &= is_published(path, _text_checksum(bits), SOURCES[source].contents)
        splits.append(bits)
    train, valid, test = splits
    return train, valid, test, published


def _load_mnist_threshold(data_dir: pathlib.Path | None) -> _Splits:
    """Pixel > 0.5; the first 5,000 training images are validation."""
    train, test, published = _mnist_grey(data_dir)
    train, test = ((images > 127).astype(np.uint8) for images in (train, test))
    return train[5_000:], train[:5_000], test, published


def _load_mnist_dynamic(data_dir: pathlib.Path | None) -> _Splits:
    """Grey training images; the last 10,000 of the 60,000 are validation."""
    train, test, published = _mnist_grey(data_dir)
    return *_hold_out_last(train, 10_000, test), published


def _load_fashion_dynamic(data_dir: pathlib.Path | None) -> _Splits:
    """Grey training images; the last 10,000 of the 60,000 are validation."""
    train, test, published = _fashion_grey(data_dir)
    return *_hold_out_last(train, 10_000, test), published


def _load_omniglot(data_dir: pathlib.Path | None) -> _Splits:
    """Burda's OMNIGLOT with the ARM authors' bits and order; the last 1,345 are validation.

    The bits are u < grey level with NumPy's legacy generator seeded with 5, the training images
    drawn first; the training images are then permuted with seed 123.
    """
    train, test, published = _omniglot_grey(data_dir)
    rng = np.random.RandomState(5)
    train, test = binarise(train, rng), binarise(test, rng)
    train = train[np.random.RandomState(123).permutation(len(train))]
    return train[:-1_345], train[-1_345:], test, published


def _load_omniglot_dynamic(data_dir: pathlib.Path | None) -> _Splits:
    """Grey training images in the file's order; the last 1,345 are validation."""
    train, test, published = _omniglot_grey(data_dir)
    return *_hold_out_last(train, 1_345, test), published


_IDX = {"train-images-idx3-ubyte": 60_000, "t10k-images-idx3-ubyte": 10_000}  # files, images
_GREY_SOURCES = {"MNIST": ["mnist.npz"], "Fashion-MNIST": [f"{file}.gz" for file in _IDX]}


def _mnist_grey(data_dir: pathlib.Path | None) -> tuple[np.ndarray, np.ndarray, bool]:
    """(train, test, published), uint8 grey levels [60000, 784] and [10000, 784]."""
    return _grey(data_dir, "MNIST", "mnist.npz", ["MNIST/raw"])


def _fashion_grey(data_dir: pathlib.Path | None) -> tuple[np.ndarray, np.ndarray, bool]:
    """As `_mnist_grey`."""
    folders = ["FashionMNIST/raw", "fashion-mnist"]
    return _grey(data_dir, "Fashion-MNIST", "fashion_mnist.npz", folders)


def _grey(
    data_dir: pathlib.Path | None, title: str, archive: str, folders: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """(train, test, published) of MNIST or Fashion-MNIST.

    In `data_dir` it is Keras's archive or else idx files, gzipped or not, in one of the folders
    or in none, where they might be the other one's.
    """
    idx = [[f"{folder}/{file}" for file in _IDX] for folder in (*folders, ".")]
    idx = [[name + end for name in names] for names in idx for end in ("", ".gz")]
    paths = find(data_dir, _GREY_SOURCES[title], [[archive], *idx])
    if paths[0].suffix == ".npz":
        images = readers.npz(paths[0])
    else:
        images = [readers.idx(*file) for file in zip(paths, _IDX.values(), strict=True)]
    digest = hashlib.sha256()
    for part in images:
        digest.update(part.data)
    contents = f"sha256:{digest.hexdigest()}"
    known = {name: SOURCES[sources[0]].contents for name, sources in _GREY_SOURCES.items()}
    for name in known:
        if name != title and known[name] == contents:
            raise DataError(
                f"{paths[0]}: expected {title}, found {name}; name the right folder with --data_dir"
            )
    train, test = images
    return train, test, is_published(paths[0], contents, known[title])


def _omniglot_grey(data_dir: pathlib.Path | None) -> tuple[np.ndarray, np.ndarray, bool]:
    """(train, test, published), float32 grey levels [24345, 784] and [8070, 784], upright."""
    source = SOURCES["chardata.mat"]
    [path] = find(data_dir, ["chardata.mat"], [["chardata.mat"]])
    arrays = readers.mat(path, {"data": (PIXELS, 24_345), "testdata": (PIXELS, 8_070)})
    images = []
    for name, columns in arrays.items():
        low, high = columns.min(), columns.max()
        if not (low >= 0 and high <= 1):  # also where a level is not a number
            raise readers.refusal(path, f"grey levels from 0 to 1 in {name}", f"{low} to {high}")
        upright = columns.T.astype(np.float32).reshape(-1, 28, 28).transpose(0, 2, 1)
        images.append(upright.reshape(-1, PIXELS))
    train, test = images
    published = is_published(path, file_checksum(path, source.checksum), source.checksum)
    return train, test, published


def _hold_out_last(
    train: np.ndarray, count: int, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits off the last `count` training images; binarises those and the test images once."""
    rng = np.random.default_rng(BINARISATION_SEED)
    return train[:-count], binarise(train[-count:], rng), binarise(test, rng)


def _text_checksum(bits: np.ndarray) -> str:
    """Checksum of bits written out as the published text files have them."""
    digest = hashlib.sha256()
    for start in range(0, len(bits), CHUNK):
        rows = bits[start : start + CHUNK]
        text = np.full((len(rows), 2 * PIXELS), ord(" "), np.uint8)
        text[:, ::2] = rows + ord("0")
        text[:, -1] = ord("\n")
        digest.update(text.data)
    return f"sha256:{digest.hexdigest()}"


class _Named(typing.NamedTuple):
    """A named data set.

    Attributes:
      load: function of `data_dir`; (train, valid, test, published) as in `Dataset`.
      dynamic: whether training images are grey.
      batch_size: images a step that papers take.
    """

    load: Callable[[pathlib.Path | None], _Splits]
    dynamic: bool = False
    batch_size: int = 50


_TABLE = {
    "glyphs": _Named(_load_glyphs),
    "mnist_static": _Named(_load_mnist_static),
    "mnist_threshold": _Named(_load_mnist_threshold),
    "mnist_dynamic": _Named(_load_mnist_dynamic, dynamic=True),
    "fashion_dynamic": _Named(_load_fashion_dynamic, dynamic=True),
    "omniglot": _Named(_load_omniglot, batch_size=25),
    "omniglot_dynamic": _Named(_load_omniglot_dynamic, dynamic=True, batch_size=25),
}
DATASETS = tuple(_TABLE)


def batch_size(name: str) -> int:
    """Images a step where nothing else is said, for a data set of `DATASETS` or one's own; int."""
    return _TABLE.get(name, _TABLE["glyphs"]).batch_size


def load(
    name: str, data_dir: pathlib.Path | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool | None, bool]:
    """The parts of a data set in `DATASETS`.

    Args:
      name: str.
      data_dir: path of the folder with its files, or None to download them.

    Returns:
      train, valid, test: arrays as in `Dataset`.
      published, dynamic: likewise.

    Raises:
      DataError: a file is missing or cannot be used.
    """
    row = _TABLE[name]
    return *row.load(data_dir), row.dynamic

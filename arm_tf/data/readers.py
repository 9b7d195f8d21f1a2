"""Readers of the files that images come in: each gives checked arrays, or raises `DataError`.

A file may be anything: nothing that it carries is run, and no more of it is unpacked than was asked
for, whatever it claims.
"""

import contextlib
import errno
import gzip
import math
import os
import pathlib
import re
import struct
import typing
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from arm_tf.errors import DataError

PIXELS = 784
_BLOCK = 2**16  # bytes of a file handled at a time
_MOST = 2**32  # bytes that the images of one's own file may take in memory
_GZIP = b"\x1f\x8b"
_ZIP = b"PK"
_DEFLATION = 1032  # bytes that one byte can unpack to
_REPLACE = "replace it with the published file"
_SAVE = "save images with numpy.savez(FILE, train=..., valid=..., test=...)"
_SPLITS = {
    split: re.compile(rf"(x_)?({names})(_images|_x)?", re.IGNORECASE)
    for split, names in {"train": "train", "valid": "valid(ation)?|val", "test": "test"}.items()
}


def amat(path: pathlib.Path, count: int) -> np.ndarray:
    """uint8 bits [count, 784] from the published text, gzipped or not, or its MATLAB form."""
    with _parsing(path, "the binarised MNIST, text or MATLAB 5"), open(path, "rb") as file:
        magic = file.read(6)
    if magic == b"MATLAB":
        bits = mat(path, {"X": (count, PIXELS)})["X"]
        if not ((bits == 0) | (bits == 1)).all():
            raise refusal(path, "only 0 and 1", f"values from {bits.min()} to {bits.max()}")
        return bits.astype(np.uint8)

    text = _contents(path, count * 2 * PIXELS, f"text ({count} lines of {PIXELS} digits)")
    text = text.reshape(count, 2 * PIXELS)
    bits = text[:, ::2] - ord("0")  # what lies below "0" wraps around to a large number
    separators = np.frombuffer(b" " * (PIXELS - 1) + b"\n", np.uint8)
    if not ((bits <= 1).all() and (text[:, 1::2] == separators).all()):
        raise refusal(path, f"lines of {PIXELS} digits 0 or 1, one space between", "other text")
    return bits


def mat(path: pathlib.Path, shapes: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """The arrays of a MATLAB 5 file, {name: [shape]}, in the order of `shapes`."""
    import scipy.io

    most = _check_size(path, 8 * sum(map(math.prod, shapes.values())))
    with _parsing(path, "a MATLAB 5 file"):
        _check_unpacked(path, most)
        found = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(str(path))}
    for name, shape in shapes.items():
        found_shape, kind = found.get(name, ("nothing", ""))
        if found_shape != shape or kind not in ("uint8", "logical", "single", "double"):
            raise refusal(path, f"{name}, numbers {shape}", f"{found_shape} {kind}".rstrip())
    with _parsing(path, "a MATLAB 5 file"):
        arrays = scipy.io.loadmat(str(path), variable_names=list(shapes))
    for name, shape in shapes.items():
        array = arrays.get(name, np.empty(0, object))
        if array.dtype.kind not in "uf" or array.shape != shape:
            raise refusal(path, f"{name}, real numbers {shape}", f"{array.dtype} {array.shape}")
    return {name: arrays[name] for name in shapes}


_MAT_COMPRESSED = 15


def _check_unpacked(path: pathlib.Path, most: int) -> None:
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


def _exactly(stream: typing.IO[bytes], size: int) -> bytes:
    """So many bytes, of which there must be no fewer."""
    contents = stream.read(size)
    if len(contents) != size:
        raise EOFError(f"{size} bytes expected, {len(contents)} left")
    return contents


def npz(path: pathlib.Path, counts: tuple[int, int] = (60_000, 10_000)) -> list[np.ndarray]:
    """(train, test), uint8 [count, 784] each, from the layout of Keras's MNIST."""
    _check_size(path, sum(counts) * PIXELS)
    images = []
    for name, count in zip(("x_train", "x_test"), counts, strict=True):
        shape = (count, 28, 28)
        with (
            _parsing(path, f"an .npz archive with {name}"),
            zipfile.ZipFile(path) as archive,
            _member(archive, archive.getinfo(f"{name}.npy")) as file,
        ):
            found_shape, fortran_order, dtype = _header(file)
            if found_shape != shape or dtype != np.uint8:
                raise refusal(path, f"{name}, uint8 {shape}", f"{dtype} {found_shape}")
            array = _numbers(file, shape, fortran_order, dtype, path)
        images.append(array.reshape(count, PIXELS))
    return images


def own(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The images of an .npz or .npy file of one's own.

    Returns:
      By split, "train" and where the file has them "valid" and "test", arrays of at least two
      dimensions: uint8 where the file has whole numbers, which are from 0 to 255, and float32
      where it has others, which are from 0 to 1.
    """
    _check_size(path, 4 * _MOST, _SAVE)
    with _parsing(path, "an .npz or .npy file", _SAVE), open(path, "rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            return {"train": _own_array(file, path.stat().st_size, path, _MOST)}
        splits, left = {}, _MOST
        with zipfile.ZipFile(file) as archive:
            for split, info in _own_members(path, archive).items():
                most = _DEFLATION * (1 + min(info.compress_size, path.stat().st_size))
                if info.file_size > most:
                    raise ValueError(f"an array of {info.file_size} bytes, packed into {most}")
                where = f"{path}, {info.filename.removesuffix('.npy')}"
                with _member(archive, info) as member:
                    splits[split] = _own_array(member, info.file_size, where, left)
                left -= splits[split].nbytes
        return splits


def _own_members(path: pathlib.Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive that hold images, by split."""
    arrays = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    found = {
        split: [name for name in arrays if pattern.fullmatch(name)]
        for split, pattern in _SPLITS.items()
    }
    if len(arrays) == 1 and not any(found.values()):
        found["train"] = [*arrays]
    if not found["train"] or max(map(len, found.values())) > 1:
        raise refusal(
            path,
            "one array, or one each named train, valid and test (also x_train, ...)",
            ", ".join(map(repr, sorted(arrays)))[:200] or "none",
            _SAVE,
        )
    return {split: archive.getinfo(f"{names[0]}.npy") for split, names in found.items() if names}


def _own_array(
    file: typing.IO[bytes], size: int, where: str | os.PathLike[str], most: int
) -> np.ndarray:
    """Images from a stream of `size` bytes, which may take no more than `most` in memory."""
    shape, fortran_order, dtype = _header(file)
    check_images(shape, dtype, where)
    count = math.prod(shape)
    if count * dtype.itemsize != size - file.tell():
        raise ValueError(f"{size - file.tell()} bytes for {dtype} {shape}")
    needed = count * level_type(dtype).itemsize
    if needed > most:
        raise refusal(where, f"images of at most {most} bytes", needed, "use fewer of them")
    return _numbers(file, shape, fortran_order, dtype, where)


def check_images(shape: tuple[int, ...], dtype: np.dtype, where: str | os.PathLike[str]) -> None:
    """Raises DataError unless an array of this kind may hold images; `where` is its name."""
    is_numeric = dtype.kind in "buif" and dtype.itemsize <= 8
    if not is_numeric or len(shape) < 2 or min(shape) < 1:
        expected = "numbers [N, pixels] or [N, height, width]"
        raise refusal(where, expected, f"{dtype} {shape}", "give zeros and ones, or grey levels")


def level_type(dtype: np.dtype) -> np.dtype:
    """What bits and grey levels of another type are kept in: uint8, or for floats float32."""
    return np.dtype(np.float32 if dtype.kind == "f" else np.uint8)


def levels(numbers: np.ndarray, where: str | os.PathLike[str]) -> np.ndarray:
    """Bits and grey levels, checked and in their `level_type`.

    Args:
      numbers: bool, integers from 0 to 255, or floats from 0 to 1; not empty.
      where: what an error calls them.

    Raises:
      DataError: they are something else.
    """
    low, high, dtype = numbers.min(), numbers.max(), level_type(numbers.dtype)
    if dtype == np.uint8 and not (low >= 0 and high <= 255):
        raise refusal(where, "whole numbers from 0 to 255", f"{low} to {high}", "rescale them")
    if dtype == np.float32 and not (low >= 0 and high <= 1):  # also where one is not a number
        remedy = "divide by the level of white, or give whole numbers from 0 to 255 as uint8"
        raise refusal(where, "floats from 0 to 1", f"{low} to {high}", remedy)
    return numbers.astype(dtype)


def _numbers(
    file: typing.IO[bytes],
    shape: tuple[int, ...],
    fortran_order: bool,
    dtype: np.dtype,
    where: str | os.PathLike[str],
) -> np.ndarray:
    """The `levels` of an array's contents, which must end with the stream."""
    array = np.empty(math.prod(shape), level_type(dtype))
    count = _BLOCK // dtype.itemsize
    for start in range(0, len(array), count):
        part = array[start : start + count]
        contents = _exactly(file, part.size * dtype.itemsize)
        part[:] = levels(np.frombuffer(contents, dtype), where)
    if file.read(1):  # checks the member's checksum, too
        raise ValueError("more in an array than its shape")
    return array.reshape(shape, order="F" if fortran_order else "C")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> typing.IO[bytes]:
    """A member of an archive, opened."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("neither stored nor deflated")  # others unpack to any size at once
    return archive.open(info)


def _header(file: typing.IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of the array that begins here."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # headers of others may be of any length
        raise ValueError(f"an array in format {version}")
    return np.lib.format.read_array_header_1_0(file)


def idx(path: pathlib.Path, count: int) -> np.ndarray:
    """uint8 [count, 784] from an idx file of 28 x 28 images, gzipped or not."""
    header = np.array([0x0803, count, 28, 28], ">i4").tobytes()
    size = len(header) + count * PIXELS
    contents = _contents(path, size, f"an idx file of {count} images", header)
    return contents[len(header) :].reshape(count, PIXELS)


def _contents(path: pathlib.Path, size: int, expected: str, header: bytes = b"") -> np.ndarray:
    """The bytes of a file, gzipped or not, of which there must be so many; uint8 [size]."""
    _check_size(path, size)
    with _parsing(path, expected), open(path, "rb") as file:
        is_packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        contents = (gzip.GzipFile(fileobj=file) if is_packed else file).read(size + 1)
    if not contents.startswith(header):
        found = contents[: len(header)].hex() or "nothing"
        raise refusal(path, f"{expected}, beginning with {header.hex()}", found)
    if len(contents) != size:
        found = str(len(contents)) if len(contents) < size else "more"
        raise refusal(path, f"{size} bytes of {expected}", found)
    return np.frombuffer(contents, np.uint8)


def _check_size(path: pathlib.Path, size: int, remedy: str = _REPLACE) -> int:
    """Refuses a file that is much larger than its contents; gzip and checksums read it all.

    Returns:
      int, the bytes that it may have.
    """
    found, most = path.stat().st_size, 2 * size + 2**20
    if found > most:
        raise refusal(path, f"at most {most} bytes", found, remedy)
    return most


@contextlib.contextmanager
def _parsing(path: pathlib.Path, expected: str, remedy: str = _REPLACE) -> Iterator[None]:
    """Turns whatever a library raises over a bad file into a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # not of damage
            raise DataError(f"{path}: cannot be read ({error.strerror}); mend that") from error
        reason = f"{type(error).__name__}: {error}"
        found = f"a file that cannot be read ({reason})"
        raise refusal(path, expected, found, remedy) from error


def refusal(
    where: str | os.PathLike[str], expected: str, found: object, remedy: str = _REPLACE
) -> DataError:
    """A `DataError` of one line: where, what was expected and found there, and what to do."""
    return DataError(f"{where}: expected {expected}, found {found}; {remedy}")

"""Readers of the files that images come in: each gives checked arrays, or raises `DataError`.

A file may be anything: nothing that it carries is run, and no more of it is unpacked than was asked
for, whatever it claims.
"""

import contextlib
import gzip
import math
import struct
import zipfile
import zlib

import numpy as np

PIXELS = 784
_BLOCK = 2**16  # bytes of a file handled at a time


class DataError(ValueError):
    """Data that cannot be used; one line: what was wrong, what was found, what to do."""

    def __init__(self, message):
        super().__init__(" ".join(message.splitlines()))


def amat(path, count):
    """uint8 bits [count, 784] from the published text or from the MATLAB form of it."""
    with _parsing(path, "the binarised MNIST, text or MATLAB 5"), open(path, "rb") as file:
        is_matlab = file.read(6) == b"MATLAB"
    if is_matlab:
        bits = mat(path, {"X": (count, PIXELS)})["X"]
        if not ((bits == 0) | (bits == 1)).all():
            raise refusal(path, "only 0 and 1", f"values from {bits.min()} to {bits.max()}")
        return bits.astype(np.uint8)

    size = count * 2 * PIXELS
    found = path.stat().st_size
    if found != size:
        raise refusal(path, f"{size} bytes of text ({count} lines of {PIXELS} digits)", found)
    with _parsing(path, "text"):
        text = np.fromfile(path, np.uint8).reshape(count, 2 * PIXELS)
    bits = text[:, ::2] - ord("0")  # what lies below "0" wraps around to a large number
    separators = np.frombuffer(b" " * (PIXELS - 1) + b"\n", np.uint8)
    if not ((bits <= 1).all() and (text[:, 1::2] == separators).all()):
        raise refusal(path, f"lines of {PIXELS} digits 0 or 1, one space between", "other text")
    return bits


def mat(path, shapes):
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


def npz(path, counts=(60_000, 10_000)):
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
            raise refusal(path, f"{name}, uint8 {shape}", f"{dtype} {found_shape}")
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


def idx(path, count):
    """uint8 [count, 784] from a gzipped idx file of 28 x 28 images."""
    header = np.array([0x0803, count, 28, 28], ">i4").tobytes()
    size = len(header) + count * PIXELS
    _check_size(path, size)
    with _parsing(path, "a gzipped idx file"), gzip.open(path) as file:
        contents = file.read(size + 1)
    if contents[: len(header)] != header:
        expected = f"an idx header of {count} images, {header.hex()}"
        raise refusal(path, expected, contents[: len(header)].hex())
    if len(contents) != size:
        found = len(contents) if len(contents) < size else "more"
        raise refusal(path, f"{size} bytes once unpacked", found)
    return np.frombuffer(contents, np.uint8, offset=len(header)).reshape(count, PIXELS)


def _check_size(path, size):
    """Refuses a file that is much larger than its contents; gzip and checksums read it all.

    Returns:
      int, the bytes that it may have.
    """
    found, most = path.stat().st_size, 2 * size + 2**20
    if found > most:
        raise refusal(path, f"at most {most} bytes", found)
    return most


@contextlib.contextmanager
def _parsing(path, expected):
    """Turns whatever a library raises over a bad file into a `DataError`."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise refusal(path, expected, f"a file that cannot be read ({reason})") from error


def refusal(path, expected, found):
    return DataError(
        f"{path}: expected {expected}, found {found}; replace it with the published file"
    )

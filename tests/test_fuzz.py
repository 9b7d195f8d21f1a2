"""Data files and settings at random: each is used, or refused in one line."""

import bz2
import contextlib
import dataclasses
import gc
import gzip
import io
import lzma
import os
import pickle
import random
import re
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import tensorflow as tf
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import small_dataset

from arm_tf import cli, data
from arm_tf.data import readers
from arm_tf.errors import ConfigError, DataError, RunError
from arm_tf.training import run_folder, session, workers
from arm_tf.training.config import Config

COUNTS = 3, 2  # images in the files here
BOMB = 2**25  # bytes that a small file would unpack to
MEMORY = 2**24  # bytes that a reader may need for such small files, blocks of files included

# Valid files, each as parts that are damaged and then packed.


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    """An archive of (name, contents), also of several with one name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, contents in members:
            archive.NameToInfo.pop(name, None)  # or there would be a warning
            archive.writestr(name, contents)
    return file.getvalue()


def matlab(packed=False, **arrays):
    file = io.BytesIO()
    scipy.io.savemat(file, arrays, do_compression=packed)
    return file.getvalue()


def compressed_element(contents):
    """A MATLAB file with one compressed element."""
    packed = zlib.compress(contents)
    return MAT[:128] + struct.pack("<II", 15, len(packed)) + packed


IMAGES = [np.arange(n * 784, dtype=np.uint8).reshape(n, 28, 28) for n in COUNTS]
TRAIN, TEST = map(npy, IMAGES)
NPZ = zipped([("x_train.npy", TRAIN), ("x_test.npy", TEST)])
GREY = np.linspace(0, 1, 784 * 3).reshape(784, 3)
MAT = matlab(data=GREY, testdata=GREY[:, :2].astype(np.float32), target="text")
BITS = np.random.default_rng(0).integers(0, 2, (3, 784), np.uint8)
TEXT = b"".join(b" ".join(b"%d" % bit for bit in row) + b"\n" for row in BITS)
FLOATS = npy(np.linspace(0, 1, 30).reshape(3, 2, 5))
IDX = struct.pack(">4i", 0x0803, 3, 28, 28) + IMAGES[0].tobytes()

READERS = {
    "npz": lambda path: readers.npz(path, COUNTS),
    "mat": lambda path: list(readers.mat(path, {"data": (784, 3), "testdata": (784, 2)}).values()),
    "amat": lambda path: [readers.amat(path, 3)],
    "idx": lambda path: [readers.idx(path, 3)],
    "own": lambda path: list(readers.own(path).values()),
}
SHAPES = {
    "npz": [(3, 784), (2, 784)],
    "mat": [(784, 3), (784, 2)],
    "amat": [(3, 784)],
    "idx": [(3, 784)],
}
ORIGINALS = {  # (what is damaged, how it is packed)
    "npz": [
        (NPZ, bytes),
        (TRAIN, lambda x: zipped([("x_train.npy", x), ("x_test.npy", TEST)])),
        (TEST, lambda x: zipped([("x_train.npy", TRAIN), ("x_test.npy", x)])),
    ],
    "mat": [
        (MAT, bytes),
        (matlab(True, data=GREY, testdata=GREY[:, :2]), bytes),
        (matlab(data=GREY)[128:], compressed_element),
    ],
    "amat": [
        (TEXT, bytes),
        (TEXT, gzip.compress),
        (gzip.compress(TEXT), bytes),
        (matlab(X=BITS), bytes),
        (matlab(True, X=BITS), bytes),
    ],
    "idx": [(gzip.compress(IDX), bytes), (IDX, gzip.compress), (IDX, bytes)],
    "own": [
        (NPZ, bytes),
        (FLOATS, bytes),
        (TRAIN, lambda x: zipped([("train.npy", x), ("val.npy", TEST), ("y.npy", b"?")])),
        (FLOATS, lambda x: zipped([("images.npy", x)], zipfile.ZIP_STORED)),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder within a folder, so that files beside it are seen, too."""
    folder = tmp_path_factory.mktemp("outer") / "inner"
    folder.mkdir()
    return folder


def read(kind, contents, folder):
    """What a reader makes of a file: its arrays, or the line it refuses the file with."""
    path = folder / "file"
    path.write_bytes(contents)
    try:
        arrays = READERS[kind](path)
    except DataError as error:
        assert re.match(re.escape(str(path)) + r"(, \w+)?: expected ", str(error))
        assert len(str(error).splitlines()) == 1
        arrays = str(error)
    else:
        assert kind == "own" or [array.shape for array in arrays] == SHAPES[kind]
        assert all(array.dtype.kind in "uif" for array in arrays)
        assert kind != "amat" or arrays[0].max() <= 1
        for array in arrays if kind == "own" else ():
            assert array.ndim > 1 and array.dtype in (np.uint8, np.float32)
            assert array.dtype == np.uint8 or (0 <= array.min() and array.max() <= 1)
    assert [file for file in folder.parent.rglob("*") if file.is_file()] == [path]
    return arrays


@st.composite
def damaged(draw, originals):
    """A valid file after up to four edits, more of them in its first bytes and its last."""
    original, pack = draw(st.sampled_from(originals))
    contents = bytearray(original)
    for _ in range(draw(st.integers(0, 4))):
        size = len(contents)
        at = draw(
            st.integers(0, min(size, 300))
            | st.integers(0, size)
            | st.integers(size * 9 // 10, size)
        )
        edit = draw(st.sampled_from(["flip", "number", "insert", "delete", "cut", "repeat"]))
        if edit == "flip" and at < size:
            contents[at] ^= 1 << draw(st.integers(0, 7))
        elif edit == "number":
            number = draw(st.sampled_from([0, 1, 14, 15, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
            contents[at : at + 4] = number.to_bytes(4, draw(st.sampled_from(["little", "big"])))
        elif edit == "insert":
            contents[at:at] = draw(st.binary(max_size=40))
        elif edit == "delete":
            del contents[at : at + draw(st.integers(1, 1000))]
        elif edit == "cut":
            del contents[at:]
        elif edit == "repeat":
            contents[at:at] = contents[at : at + 400]
    return pack(bytes(contents))


MAGIC = {
    "npz": b"PK\3\4",
    "mat": MAT[:128],
    "amat": b"MATLAB",
    "idx": b"\x1f\x8b\x08",
    "own": b"\x93NUMPY\1\0",
}
fuzz = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("kind", READERS)
def test_valid_files_are_read(kind, folder):
    for original, pack in ORIGINALS[kind]:
        arrays = read(kind, pack(original), folder)
        if kind == "npz":
            for array, images in zip(arrays, IMAGES, strict=True):
                np.testing.assert_array_equal(array.reshape(-1, 28, 28), images)
        elif kind == "mat" and pack is bytes:
            np.testing.assert_allclose(arrays[0], GREY)
            np.testing.assert_allclose(arrays[1], GREY[:, :2], rtol=1e-6)
        elif kind == "amat":
            np.testing.assert_array_equal(arrays[0], BITS)
        elif kind == "idx":
            np.testing.assert_array_equal(arrays[0].reshape(-1, 28, 28), IMAGES[0])
        elif kind == "own" and original is FLOATS:
            np.testing.assert_allclose(arrays[0].ravel(), np.linspace(0, 1, 30), rtol=1e-6)
        elif kind == "own":
            for array, images in zip(arrays, IMAGES, strict=True):
                np.testing.assert_array_equal(array, images)


def test_own_files_that_are_read_make_a_data_set_or_are_refused(folder):
    @fuzz
    @given(damaged(ORIGINALS["own"]), st.booleans())
    def check(contents, is_archive):
        path = folder / ("file.npz" if is_archive else "file.npy")
        path.write_bytes(contents)
        try:
            dataset = data.load(path)
        except DataError as error:
            assert str(error).startswith(f"{path}") and len(str(error).splitlines()) == 1
        else:
            for bits in (dataset.epoch(0, 0), dataset.valid, dataset.test):
                assert len(bits) and bits.dtype == np.uint8 and bits.max() <= 1
                assert bits.shape[1] == np.prod(dataset.image_shape)
        path.unlink()

    check()


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files(kind, folder):
    @fuzz
    @given(damaged(ORIGINALS[kind]))
    def check(contents):
        read(kind, contents, folder)

    check()


@pytest.mark.parametrize("kind", READERS)
def test_arbitrary_files(kind, folder):
    @fuzz
    @given(st.sampled_from([b"", MAGIC[kind]]), st.binary(max_size=600))
    def check(magic, contents):
        read(kind, magic + contents, folder)

    check()


# Hostile files.


class Mischief:
    """Leaves a file where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch mischief",)


def npy_of(header, version=(1, 0), contents=b""):
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return np.lib.format.magic(*version) + size + header.encode() + contents


def npz_of(train, *members, compression=zipfile.ZIP_DEFLATED):
    return zipped([("x_train.npy", train), ("x_test.npy", TEST), *members], compression)


def header(shape, descr="'|u1'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


def mat_element(*parts):
    """A MATLAB file whose compressed matrix has these parts."""
    return compressed_element(struct.pack("<II", 14, 2**32 - 1) + b"".join(parts))


FLAGS = struct.pack("<IIII", 6, 8, 6, 0)
SHAPE = struct.pack("<IIII", 5, 8, 784, 3)
NAME = struct.pack("<HH4s", 1, 4, b"data")
ZEROS = bytes(BOMB)
PICKLE = pickle.dumps(Mischief())

HOSTILE = {
    "npz": {
        "shape": lambda: npz_of(npy_of(header("(60000000000, 28, 28)"))),
        "negative": lambda: npz_of(npy_of(header("(-3, -28, 28)"))),
        "type": lambda: npz_of(npy_of(header("(3, 28, 28)", "('u1', (10**9,))"))),
        "type of gigabytes": lambda: npz_of(npy_of(header("(3, 28, 28)", "'V2000000000'"))),
        "object": lambda: npz_of(npy_of(header("(3, 28, 28)", "'|O'"), contents=PICKLE)),
        "pickle": lambda: npz_of(PICKLE),
        "only a pickle": lambda: PICKLE,
        "nested": lambda: npz_of(npy_of("(" * 9_000)),
        "nested signs": lambda: npz_of(npy_of("-" * 9_000 + "1")),
        "power": lambda: npz_of(npy_of(header("(9**9**9**9, 28, 28)"))),
        "code": lambda: npz_of(npy_of(header("__import__('os').system('touch mischief')"))),
        "header": lambda: npz_of(np.lib.format.magic(2, 0) + b"\xff\xff\xff\x03" + ZEROS),
        "header 3": lambda: npz_of(np.lib.format.magic(3, 0) + b"\xff\xff\xff\x03" + ZEROS),
        "more": lambda: npz_of(TRAIN + ZEROS),
        "bz2": lambda: npz_of(TRAIN + ZEROS, compression=zipfile.ZIP_BZIP2),
        "lzma": lambda: npz_of(TRAIN + ZEROS, compression=zipfile.ZIP_LZMA),
        "checksum": lambda: NPZ.replace(
            struct.pack("<I", zlib.crc32(TRAIN)), struct.pack("<I", zlib.crc32(TEST))
        ),
    },
    "mat": {
        "more": lambda: mat_element(FLAGS, SHAPE, NAME, struct.pack("<II", 2, 784 * 3), ZEROS),
        "claim": lambda: mat_element(FLAGS, SHAPE, NAME, struct.pack("<II", 2, 2**31), ZEROS),
        "shape": lambda: mat_element(
            FLAGS, struct.pack("<IIII", 5, 8, 784, 2**31 - 1), NAME, struct.pack("<II", 9, 0)
        ),
        "name": lambda: mat_element(FLAGS, SHAPE, struct.pack("<II", 1, BOMB), ZEROS),
        "dimensions": lambda: mat_element(FLAGS, struct.pack("<II", 5, BOMB), ZEROS),
        "text": lambda: matlab(data="text"),
        "object": lambda: matlab(data=np.array([{}, {}])),
        "sparse": lambda: matlab(data=scipy.sparse.csc_matrix(GREY), testdata=GREY[:, :2]),
        "complex": lambda: matlab(data=GREY * 1j, testdata=GREY[:, :2]),
        "old": lambda: (
            scipy.io.savemat(file := io.BytesIO(), {"data": GREY}, format="4") or file.getvalue()
        ),
        "pickle": lambda: PICKLE,
        "no end": lambda: MAT[:128] + struct.pack("<II", 14, 0) * 1_000,
    },
    "amat": {
        "claim": lambda: matlab(True, X=np.zeros([BOMB // 784, 784], np.uint8)),
        "more": lambda: mat_element(
            FLAGS, struct.pack("<IIII", 5, 8, 3, 784), NAME.replace(b"data", b"X"), ZEROS
        ),
        "pickle": lambda: PICKLE,
        "text": lambda: ZEROS,
        "packed": lambda: gzip.compress(TEXT + ZEROS),
        "packed zeros": lambda: gzip.compress(ZEROS),
        "packed MATLAB": lambda: gzip.compress(matlab(X=BITS)),
    },
    "idx": {
        "more": lambda: gzip.compress(IDX + ZEROS),
        "other": lambda: gzip.compress(ZEROS),
        "claim": lambda: gzip.compress(struct.pack(">4i", 0x0803, 2**31 - 1, 28, 28)),
        "members": lambda: gzip.compress(b"") * 10_000,
        "name": lambda: b"\x1f\x8b\x08\x08" + b"\1" * 10_000,
        "bz2": lambda: bz2.compress(IDX),
        "lzma": lambda: lzma.compress(IDX),
        "pickle": lambda: gzip.compress(PICKLE),
    },
    "own": {
        "shape": lambda: npz_of(npy_of(header("(60000000000, 28, 28)"))),
        "memory": lambda: npz_of(npy_of(header("(3000000, 28, 28)"), contents=ZEROS)),
        "negative": lambda: npz_of(npy_of(header("(-3, -28, 28)"), contents=bytes(3 * 784))),
        "negative sizes": lambda: npy_of(header("(-3, -28)"), contents=bytes(3 * 28)),
        "type": lambda: npz_of(npy_of(header("(3, 28, 28)", "('u1', (10**9,))"))),
        "type of gigabytes": lambda: npz_of(npy_of(header("(3, 28, 28)", "'V2000000000'"))),
        "long text": lambda: npy_of(header("(3, 28)", "'U500000000'")),
        "object": lambda: npz_of(npy_of(header("(3, 28, 28)", "'|O'"), contents=PICKLE)),
        "object alone": lambda: npy_of(header("(3, 28, 28)", "'|O'"), contents=PICKLE),
        "pickle": lambda: npz_of(PICKLE),
        "only a pickle": lambda: PICKLE,
        "code": lambda: npy_of(header("__import__('os').system('touch mischief')")),
        "nested": lambda: npy_of("(" * 9_000),
        "power": lambda: npy_of(header("(9**9**9**9, 28, 28)")),
        "header": lambda: np.lib.format.magic(2, 0) + b"\xff\xff\xff\x03" + ZEROS,
        "more": lambda: npz_of(TRAIN + ZEROS),
        "more alone": lambda: TRAIN + ZEROS,
        "bz2": lambda: npz_of(TRAIN + ZEROS, compression=zipfile.ZIP_BZIP2),
        "lzma": lambda: npz_of(TRAIN + ZEROS, compression=zipfile.ZIP_LZMA),
        "lied size": lambda: lied_size(2**40),
        "lied sizes": lambda: lied_size(2**32 - 2, 2**32 - 2),
        "axes": lambda: npy_of(header("(1,) * 99"), contents=b"0"),
        "many axes": lambda: npy_of(header(f"({'1,' * 99})"), contents=b"0"),
    },
}


def lied_size(size, packed=None):
    """An archive whose directory and whose array's header say that the array is larger."""
    shape = f"({size // 784 // 784}, 784, 784)"
    contents = npy_of(header(shape), contents=bytes(784))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train.npy", contents)
        (info,) = file.infolist()
        info.file_size = size // 784 // 784 * 784**2 + len(contents) - 784
        info.compress_size = packed or info.compress_size
    return archive.getvalue()


@pytest.mark.parametrize("kind, case", [(kind, case) for kind in HOSTILE for case in HOSTILE[kind]])
def test_hostile_files(kind, case, folder, monkeypatch):
    """Refused without unpacking what was not asked for and without running anything."""
    contents = HOSTILE[kind][case]()
    monkeypatch.chdir(folder)
    tracemalloc.start()
    try:
        assert isinstance(read(kind, contents, folder), str)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name, contents",
    [
        ("x_train", npy_of(header("(3, 28, 28)", "'|O'"), contents=PICKLE)),
        ("x_train", npy(np.zeros([9, 28, 28]))),
        ("x_train", PICKLE),
        ("../../x_train.npy", PICKLE),
        ("/tmp/x_train.npy", PICKLE),
    ],
)
def test_other_members_of_an_archive_are_left_alone(name, contents, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for members in ([(name, contents)], [(name, contents)] * 2):
        arrays = read("npz", npz_of(TRAIN, *members), folder)
        np.testing.assert_array_equal(arrays[0].reshape(-1, 28, 28), IMAGES[0])


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", READERS)
def test_endless_file(kind, first, folder):
    """A terabyte of zeros after a valid file or before it, which takes no room on the disk."""
    path = folder / "file"
    with open(path, "wb") as file:
        file.seek(2**40 * first)
        file.write(ORIGINALS[kind][0][0])
        file.truncate(2**40 + len(ORIGINALS[kind][0][0]))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="bytes"):
            READERS[kind](path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
        path.unlink()


# Settings.

COMBINATIONS = 500  # in each of two tests
ODD = (
    "", " ", "0", "-1", "1", "2", "0.5", "1e3", "0x10", "1_000", "1e400", "1e-400", "nan", "inf",
    "-inf", str(2**31), str(2**63), str(2**70), str(-(2**70)), "9" * 5_000, "True", "None",
    "no such", "ünï©ødé 🎲", "\udcff", "\0", "a\0b", "\n", "..", ".", "a/b",
    "~nobody/x", "/dev/null/x", "a/b.npz", "x" * 300, "ü" * 200, "x" * 100_000, ",", "1,1", "0.9,",
    "0.9,0.9,0.9", "arm,arm", "1e308", "--", "{}", "%s",
)  # fmt: skip
USUAL = {
    "experiment": ["yin_zhou_2019/mnist_static-linear", "yin_zhou_2019/omniglot-two_layers"],
    "encoder_betas": ["0,0", "0.9,0.999", "0.5,0.99999", "0.999999999,0"],
    "decoder_betas": ["0,0", "0.9,0.999", "0.999999999,0.999999999"],
    "logdir": ["runs", "a/b"],
    "name": ["run", "x=1,y", "ü"],
    "data_dir": ["nowhere"],
    "image_shape": ["28,28", "1,784"],
    "keep_epochs": ["", "0", "0,1,10"],
}
MOST = dict(  # so that a step is quick; smaller values stay as they are
    units=4, layers=2, num_samples=4, batch_size=300, steps_per_loop=2, max_steps=1
)


def usual(field, rng):
    """A value within a field's limits, often at one of them."""
    if field.name in USUAL:
        return rng.choice(USUAL[field.name])
    if field.name == "track_variance":
        return ",".join(rng.sample(field.metadata["choices"], rng.randint(0, 2)))
    if field.metadata["choices"]:
        return rng.choice(field.metadata["choices"])
    if field.type is bool:
        return rng.choice(["true", "false"])
    low, high = field.metadata["low"], field.metadata["high"]
    if field.type is float:
        return rng.choice([low, low, 0.001, 0.1, 1, 10, 9e29])
    return rng.choice([low, low + 1, low + 2, low + 6, high - 1, high])


def combination(rng):
    """Up to eight flags, each of them usual or odd."""
    fields = rng.sample(dataclasses.fields(Config), rng.randint(1, 8))
    values = [usual(f, rng) if rng.random() < 0.5 else rng.choice(ODD) for f in fields]
    return [f"--{field.name}={value}" for field, value in zip(fields, values, strict=True)]


def one_step(arguments, dataset):
    """Takes one step with the settings that flags describe; the loss, or None if refused."""
    values = flags.FlagValues()
    cli.define_flags(values)
    refusal = None
    try:
        values(["train", *arguments])
        config = cli.config_from_flags(values)
        if config.data_dir is not None:
            name = "omniglot" if config.dataset == "glyphs" else config.dataset
            with pytest.raises(DataError):  # there are no files, and glyphs need none
                data.load(name, config.data_dir)
        workers.find(config.distribute)
        least = {k: min(getattr(config, k) or v, v) for k, v in MOST.items()}
        folder = run_folder.RunFolder(config)
        config = dataclasses.replace(config, jit=False, distribute="none", **least)
        with contextlib.closing(folder):
            folder.start(config, dataset)
            run = session.Run(config, dataset, folder)
            run.is_compiled = True
            loss, _ = run.run_steps()
            assert np.isfinite(loss)
            return loss
    except flags.Error:
        return None  # which the program joins to one line
    except (ConfigError, RunError) as error:
        refusal = str(error)
    assert refusal and len(refusal.splitlines()) == 1
    return None


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_combinations_of_flags(part, tmp_path, monkeypatch):
    """Each is refused in one line, or takes a step."""
    rng, dataset, taken = random.Random(part), small_dataset(), 0
    tf.config.run_functions_eagerly(True)
    try:
        for i in range(COMBINATIONS):
            (tmp_path / str(i) / "here").mkdir(parents=True)
            monkeypatch.chdir(tmp_path / str(i) / "here")
            arguments = combination(rng)
            try:
                taken += one_step(arguments, dataset) is not None
            except Exception as error:
                raise AssertionError(f"combination {i}: {arguments}") from error
            if i % 100 == 0:
                tf.keras.backend.clear_session()
                gc.collect()
    finally:
        tf.config.run_functions_eagerly(False)
    assert taken > COMBINATIONS / 50

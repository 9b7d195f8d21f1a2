"""Data sets: real files where they are at hand, full-size fakes, and everything refused."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import pathlib
import threading
import unicodedata
import zipfile

import numpy as np
import pytest
import scipy.io

from arm_tf import data
from arm_tf.data import glyphs, readers, sources
from arm_tf.errors import DataError

REAL = pathlib.Path(__file__).parents[2] / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data are not here")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A Keras cache of this test's own."""
    folder = tmp_path / "keras"
    monkeypatch.setenv("KERAS_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def grey():
    """Grey levels with the shapes of MNIST; image n is lit at pixel n % 784 with n % 256."""
    return tuple(fake_grey(count) for count in (60_000, 10_000))


@pytest.fixture(scope="session")
def mnist_file(tmp_path_factory, grey):
    path = tmp_path_factory.mktemp("mnist") / "mnist.npz"
    train, test = grey
    np.savez_compressed(path, x_train=train, x_test=test)
    return path


@pytest.fixture(scope="session")
def rendered():
    """The glyphs, rendered once for all tests."""
    return glyphs.render()


@pytest.fixture(scope="session")
def glyph_cache(tmp_path_factory, rendered):
    """A Keras cache that holds the glyphs."""
    folder = tmp_path_factory.mktemp("glyphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "render", lambda: rendered)
        glyphs.load(folder / "datasets")
    return folder


@pytest.fixture(scope="session")
def letters():
    return glyphs.letters()


def fake_grey(count):
    images = np.zeros((count, 784), np.uint8)
    n = np.arange(count)
    images[n, n % 784] = n % 256
    return images.reshape(count, 28, 28)


def fake_text(count, digit=b"0"):
    """Text like the published one, all 0 but the first digit."""
    line = b" ".join([b"0"] * 784) + b"\n"
    return digit + (line * count)[1:]


def refused(name, data_dir, **options):
    """The one line with which a data set is refused."""
    with pytest.raises(DataError) as caught:
        data.load(name, data_dir, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# Splits and binarisation.


def test_mnist_threshold(mnist_file, grey):
    dataset = data.load("mnist_threshold", mnist_file.parent)
    bits = (grey[0].reshape(-1, 784) / 255 > 0.5).astype(np.uint8)
    np.testing.assert_array_equal(dataset.valid, bits[:5_000])
    np.testing.assert_array_equal(dataset.train, bits[5_000:])
    assert dataset.test.shape == (10_000, 784) and dataset.train.dtype == np.uint8
    assert not dataset.dynamic and not dataset.published
    assert dataset.epoch(1, 2) is dataset.train


def test_mnist_dynamic(mnist_file, grey):
    dataset = data.load("mnist_dynamic", mnist_file.parent)
    train = grey[0].reshape(-1, 784)
    np.testing.assert_array_equal(dataset.train, train[:50_000])
    assert dataset.dynamic
    for bits, levels in ((dataset.valid, train[50_000:]), (dataset.test, grey[1])):
        levels = levels.reshape(-1, 784)
        assert bits.dtype == np.uint8 and bits.max() == 1
        assert not bits[levels == 0].any() and bits[levels == 255].all()
        # the mean of 10,000 independent bits of variance at most 1/4, six standard errors
        assert abs(bits.sum() - levels.sum() / 255) < 6 * np.sqrt(10_000 / 4)
    again = data.load("mnist_dynamic", mnist_file.parent)
    np.testing.assert_array_equal(again.valid, dataset.valid)
    assert again.checksum == dataset.checksum


def dynamic_dataset(levels):
    bits = np.zeros((1, 784), np.uint8)
    return data.Dataset("fake", levels, bits, bits, dynamic=True, published=False, checksum="")


@pytest.mark.parametrize("dtype, white", [(np.uint8, 255), (np.float32, 1)])
def test_epochs_are_drawn_anew(dtype, white):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, [5_000, 784]) / 255
    dataset = dynamic_dataset((levels * white).astype(dtype))
    bits = dataset.epoch(3, 7)
    assert bits.dtype == np.uint8 and bits.shape == levels.shape
    np.testing.assert_array_equal(bits, dataset.epoch(3, 7))
    draws = {draw.tobytes() for draw in (bits, dataset.epoch(3, 8), dataset.epoch(4, 7))}
    assert len(draws) == 3
    assert set(np.unique(bits)) == {0, 1}
    # each pixel's mean over 5,000 bits: standard error at most 0.0071, six of them
    exact = dataset.train.mean(axis=0, dtype=np.float64) / white
    np.testing.assert_allclose(bits.mean(axis=0), exact, atol=0.043)
    np.testing.assert_allclose(dataset.train_mean, exact, rtol=1e-6)
    assert dataset.train_mean.dtype == np.float32


def test_black_and_white_are_certain():
    levels = np.tile(np.array([0, 255], np.uint8), [5_000, 392])
    np.testing.assert_array_equal(dynamic_dataset(levels).epoch(0, 0), levels // 255)


def write_chardata(folder, **changes):
    arrays = {
        "data": np.zeros([784, 24_345], np.float32),
        "testdata": np.zeros([784, 8_070], np.float32),
    }
    arrays["data"][27 * 28 + 1] = 1  # column-major: row 1, column 27
    arrays["data"][:, ::5] = 0.5
    arrays["testdata"][:, ::2] = 0.25
    arrays.update(changes)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    scipy.io.savemat(folder / "chardata.mat", arrays, do_compression=True)
    return arrays


def test_omniglot_as_the_arm_authors_have_it(tmp_path):
    arrays = write_chardata(tmp_path)
    legacy = np.random.RandomState(5)
    expected = []
    for name in ("data", "testdata"):
        images = arrays[name].T.reshape(-1, 28, 28).reshape((-1, 784), order="F")
        expected.append(legacy.rand(*images.shape) < images)
    train = expected[0][np.random.RandomState(123).permutation(24_345)]
    dataset = data.load("omniglot", tmp_path, valid_images=1_300, test_images=8_000)
    np.testing.assert_array_equal(dataset.train, train[:23_000])
    np.testing.assert_array_equal(dataset.valid, train[23_000:24_300])
    np.testing.assert_array_equal(dataset.test, expected[1][:8_000])


def test_omniglot_dynamic(tmp_path):
    write_chardata(tmp_path)
    dataset = data.load("omniglot_dynamic", tmp_path)
    assert dataset.train.shape == (23_000, 784) and dataset.train.dtype == np.float32
    assert dataset.valid.shape == (1_345, 784) and dataset.test.shape == (8_070, 784)
    assert dataset.train[0, 0] == 0.5
    np.testing.assert_array_equal(np.flatnonzero(dataset.train[1]), [28 + 27])


def test_fashion_from_both_layouts(tmp_path, mnist_file, grey, caplog):
    parts = {"train": grey[0], "t10k": grey[1]}
    for part, images in parts.items():
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
    dataset = data.load("fashion_dynamic", tmp_path)
    np.testing.assert_array_equal(dataset.train, grey[0][:50_000].reshape(-1, 784))
    assert dataset.valid.shape == dataset.test.shape == (10_000, 784)
    assert not dataset.published and "train-images" in caplog.text

    other = tmp_path / "repacked"
    other.mkdir()
    (other / "fashion_mnist.npz").symlink_to(mnist_file)
    repacked = data.load("fashion_dynamic", other)
    assert repacked.checksum == dataset.checksum and not repacked.published
    assert "fashion_mnist.npz: not the published" in caplog.text


def write_idx(path, images, tail=b""):
    header = np.array([0x0803, *images.shape], ">i4").tobytes()
    contents = header + images.tobytes() + tail
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(contents, 1) if path.suffix == ".gz" else contents)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    "name, folder",
    [
        ("mnist_dynamic", "MNIST/raw"),
        ("mnist_threshold", "."),
        ("fashion_dynamic", "FashionMNIST/raw"),
        ("fashion_dynamic", "fashion-mnist"),
    ],
)
def test_idx_files_are_found_and_known_by_their_contents(
    name, folder, end, tmp_path, mnist_file, grey, monkeypatch, caplog
):
    files = {"mnist": "mnist.npz", "fashion": "train-images-idx3-ubyte.gz"}
    mine, other = files[name.split("_")[0]], files["fashion" if "mnist_" in name else "mnist"]
    contents = f"sha256:{hashlib.sha256(grey[0].tobytes() + grey[1].tobytes()).hexdigest()}"
    write_idx(tmp_path / folder / f"train-images-idx3-ubyte{end}", grey[0])
    assert str(tmp_path / mine) in refused(name, tmp_path)  # as there is no other half
    write_idx(tmp_path / folder / f"t10k-images-idx3-ubyte{end}", grey[1])
    dataset = data.load(name, tmp_path)
    assert not dataset.published and f"train-images-idx3-ubyte{end}: not the" in caplog.text
    caplog.clear()

    def publish(source):
        changed = dataclasses.replace(sources.SOURCES[source], contents=contents)
        monkeypatch.setitem(sources.SOURCES, source, changed)

    with monkeypatch.context() as monkeypatch:
        publish(mine)
        assert data.load(name, tmp_path).published and not caplog.records
    with monkeypatch.context() as monkeypatch:
        publish(other)
        assert "MNIST, found " in refused(name, tmp_path)
    if name.startswith("mnist"):
        assert dataset.checksum == data.load(name, mnist_file.parent).checksum


def test_keras_archive_comes_before_idx_files(tmp_path, mnist_file):
    (tmp_path / "mnist.npz").symlink_to(mnist_file)
    write_idx(tmp_path / "train-images-idx3-ubyte", TEN)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", TEN)
    assert len(data.load("mnist_threshold", tmp_path).train) == 55_000


def test_mnist_static_from_gzipped_text(tmp_path, monkeypatch, caplog):
    for split, count in (("train", 50_000), ("valid", 10_000), ("test", 10_000)):
        name = f"binarized_mnist_{split}.amat"
        text = fake_text(count, b"1")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text, 1))
        checksum = f"sha256:{hashlib.sha256(text).hexdigest()}"
        monkeypatch.setitem(sources.SOURCES, name, sources.Source("", "", checksum))
    dataset = data.load("mnist_static", tmp_path)
    assert dataset.published and not caplog.records
    assert [x.sum() for x in (dataset.train, dataset.valid, dataset.test)] == [1, 1, 1]
    path = tmp_path / "binarized_mnist_valid.amat.gz"
    path.write_bytes(gzip.compress(fake_text(10_001), 1))
    assert f"{path}: expected 15680000 bytes of text" in refused("mnist_static", tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: expected text" in refused("mnist_static", tmp_path)


def test_first_images_only(mnist_file):
    whole = data.load("mnist_threshold", mnist_file.parent)
    part = data.load("mnist_threshold", mnist_file.parent, valid_images=7, test_images=10_000)
    np.testing.assert_array_equal(part.valid, whole.valid[:7])
    np.testing.assert_array_equal(part.test, whole.test)
    assert part.checksum != whole.checksum


# Real files.


@needs_real
def test_real_mnist_static_in_both_forms(tmp_path, caplog):
    matlab = data.load("mnist_static", REAL)
    assert matlab.published and not caplog.records
    assert [len(x) for x in (matlab.train, matlab.valid, matlab.test)] == [50_000, 10_000, 10_000]
    for split in ("train", "valid", "test"):
        text = np.full([len(getattr(matlab, split)), 2 * 784], ord(" "), np.uint8)
        text[:, ::2] = getattr(matlab, split) + ord("0")
        text[:, -1] = ord("\n")
        text.tofile(tmp_path / f"binarized_mnist_{split}.amat")
    text = data.load("mnist_static", tmp_path)
    assert text.published and not caplog.records
    assert text.checksum == matlab.checksum


@needs_real
def test_real_mnist(caplog):
    dataset = data.load("mnist_dynamic", REAL)
    assert dataset.published and not caplog.records
    assert dataset.train_mean.mean() == pytest.approx(0.130961, abs=1e-6)
    threshold = data.load("mnist_threshold", REAL)
    assert threshold.published
    assert [len(x) for x in (threshold.train, threshold.valid)] == [55_000, 5_000]
    np.testing.assert_array_equal(threshold.train[:45_000], dataset.train[5_000:] > 127.5)


@needs_real
def test_real_mnist_as_torchvision_has_it(tmp_path, caplog):
    with np.load(REAL / "mnist.npz") as arrays:
        for part, name in (("train", "x_train"), ("t10k", "x_test")):
            write_idx(tmp_path / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", arrays[name])
    dataset = data.load("mnist_dynamic", tmp_path)
    assert dataset.published and not caplog.records
    assert dataset.checksum == data.load("mnist_dynamic", REAL).checksum
    (tmp_path / "MNIST").rename(tmp_path / "FashionMNIST")
    assert "expected Fashion-MNIST, found MNIST" in refused("fashion_dynamic", tmp_path)


@needs_real
def test_real_omniglot_is_upright_and_known_for_a_stand_in(caplog):
    dataset = data.load("omniglot_dynamic", REAL)
    assert not dataset.published
    [record] = caplog.records
    assert "chardata.mat: not the published file" in record.getMessage()
    assert "not comparable" in record.getMessage() and "\n" not in record.getMessage()
    columns = scipy.io.loadmat(REAL / "chardata.mat", variable_names=["data"])["data"]
    image = columns[:, 17].reshape(28, 28, order="F")
    np.testing.assert_array_equal(dataset.train[17].reshape(28, 28), image.astype(np.float32))


# One's own data.

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 6, 5)).astype(np.uint8)
GREY[0, 0] = [0, 1, 254, 255, 255]
BITS = (GREY > 127).astype(np.uint8)
KINDS = {  # images, and whether they are grey
    "uint8 levels": (GREY, True),
    "other levels": (GREY.astype(">i8"), True),
    "0 and 255": (BITS * np.uint8(255), True),
    "floats": (GREY / 255, True),
    "float32": ((GREY / 255).astype(np.float32), True),
    "float16": ((GREY / 255).astype(">f2"), True),
    "bits": (BITS, False),
    "bool": (BITS == 1, False),
    "signed bits": (BITS.astype(np.int64), False),
    "float bits": (BITS.astype(np.float64), False),
    "columns first": (np.asfortranarray(GREY), True),
    "blank": (np.zeros([40, 6, 5]), False),
}


def write_own(path, **arrays):
    """An .npz file, or an .npy file of the one array."""
    with open(path, "wb") as file:
        np.savez(file, **arrays) if path.suffix == ".npz" else np.save(file, *arrays.values())
    return path


def same(dataset, other):
    for split in ("train", "valid", "test"):
        a, b = getattr(dataset, split), getattr(other, split)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    return dataset.checksum == other.checksum and dataset.image_shape == other.image_shape


@pytest.mark.parametrize("kind", KINDS)
def test_own_images_are_bits_or_grey_levels(kind, tmp_path):
    images, is_grey = KINDS[kind]
    dataset = data.from_arrays(images[:30], images[30:34], images[34:])
    assert (dataset.dynamic, dataset.published, dataset.name) == (is_grey, None, "arrays")
    assert dataset.image_shape == (6, 5) and dataset.train.shape == (30, 30)
    white = 255 if is_grey and images.dtype.kind in "ui" else 1
    assert dataset.train.dtype == (np.float32 if is_grey and white == 1 else np.uint8)
    levels = images.reshape(40, 30) / white
    np.testing.assert_allclose(dataset.train / white, levels[:30], rtol=1e-7)
    for bits, grey in ((dataset.valid, levels[30:34]), (dataset.test, levels[34:])):
        assert bits.dtype == np.uint8 and bits.max() <= 1
        assert not bits[grey == 0].any() and bits[grey == 1].all()
        assert is_grey or (bits == grey).all()
    np.testing.assert_allclose(dataset.train_mean, levels[:30].mean(0), rtol=1e-3)
    bits = [dataset.epoch(0, epoch) for epoch in range(2)]
    assert (bits[0] != bits[1]).any() == (is_grey and kind != "0 and 255")

    splits = dict(train=images[:30], valid=images[30:34], test=images[34:])
    loaded = data.load(write_own(tmp_path / "a.npz", **splits))
    assert same(loaded, dataset) and loaded.name == "a.npz"
    whole = data.load("b.npy", write_own(tmp_path / "b.npy", x=images).parent)
    assert same(whole, data.from_arrays(images)) and whole.dynamic == is_grey
    assert all(bits.dtype == np.uint8 and bits.max() <= 1 for bits in (whole.valid, whole.test))


def test_own_arrays_are_copied():
    images = GREY.copy()
    dataset = data.from_arrays(images, images, images)
    images[:] = 0
    assert dataset.train.any() and dataset.checksum == data.from_arrays(GREY, GREY, GREY).checksum


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("x_train", "x_val", "x_test"),
        ("X_train", "X_validation", "X_test"),
        ("train_images", "val_images", "test_images"),
    ],
)
def test_names_of_splits(names, tmp_path):
    splits = dict(zip(names, (GREY[:30], GREY[30:34], GREY[34:]), strict=True))
    labels = {"y_train": np.zeros(30), "train_labels": np.array([{}]), "labels": np.zeros(3)}
    path = write_own(tmp_path / "a.npz", **labels, **splits)
    assert same(data.load(path), data.from_arrays(*splits.values()))


def test_held_out_images_depend_on_their_number_alone():
    numbers = (np.arange(2_000)[:, np.newaxis] >> np.arange(12)) & 1  # image n is n, in bits
    images = numbers.astype(np.uint8)
    number = lambda bits: bits @ (1 << np.arange(12))
    dataset = data.from_arrays(images, image_shape=(3, 4))
    held_out = {split: number(getattr(dataset, split)) for split in ("train", "valid", "test")}
    assert {split: len(n) for split, n in held_out.items()} == {
        "train": 1_620, "valid": 180, "test": 200,
    }  # fmt: skip
    np.testing.assert_array_equal(np.sort(np.concatenate([*held_out.values()])), np.arange(2_000))
    for split in ("valid", "test"):  # from all over, in case the images are sorted
        # a mean of at least 180 numbers, each with a standard deviation of 577: six of the mean's
        assert abs(held_out[split].mean() - 1_000) < 6 * 577 / 180**0.5
    other = data.from_arrays(images[::-1], image_shape=(3, 4))
    np.testing.assert_array_equal(number(other.test), 1_999 - held_out["test"])

    valid_alone = data.from_arrays(images, valid=images[:7], image_shape=(3, 4))
    np.testing.assert_array_equal(valid_alone.test, dataset.test)
    assert len(valid_alone.train) == 1_800 and len(valid_alone.valid) == 7
    test_alone = data.from_arrays(images, test=images[:7], image_shape=(3, 4))
    assert (len(test_alone.train), len(test_alone.valid), len(test_alone.test)) == (1_800, 200, 7)
    three = data.from_arrays(images[:3], image_shape=(3, 4))
    assert [len(x) for x in (three.train, three.valid, three.test)] == [1, 1, 1]


def test_bits_beside_grey_training_images_stay():
    dataset = data.from_arrays(GREY, BITS[:20], GREY[:20] / 255)
    assert dataset.dynamic
    np.testing.assert_array_equal(dataset.valid, BITS[:20].reshape(20, 30))
    assert dataset.test.max() == 1 and dataset.test.dtype == np.uint8


@pytest.mark.parametrize(
    "shape, given, expected",
    [
        ((10, 784), None, (28, 28)),
        ((10, 6, 5), None, (6, 5)),
        ((10, 6, 5, 1), None, (6, 5)),
        ((10, 1, 6, 5), None, (6, 5)),
        ((10, 30), (5, 6), (5, 6)),
        ((10, 30), [1, 30], (1, 30)),
        ((10, 1, 36), None, (1, 36)),
        ((10, 36), (4, 9), (4, 9)),
        ((10, 6, 5), (6, 5), (6, 5)),
        ((10, 1), None, (1, 1)),
    ],
)
def test_image_shape_is_guessed_or_given(shape, given, expected):
    images = np.ones(shape, np.uint8)
    dataset = data.from_arrays(images, image_shape=given)
    assert dataset.image_shape == expected
    assert dataset.train.shape[1] == expected[0] * expected[1]


def test_shape_of_the_images_is_part_of_the_checksum():
    shapes = [(5, 6), (6, 5)]
    checksums = {data.from_arrays(GREY.reshape(40, 30), image_shape=s).checksum for s in shapes}
    assert len(checksums) == 2


def test_first_of_ones_own_images_only():
    whole = data.from_arrays(GREY, GREY, GREY)
    part = data.from_arrays(GREY, GREY, GREY, valid_images=7, test_images=8)
    np.testing.assert_array_equal(part.valid, whole.valid[:7])
    np.testing.assert_array_equal(part.test, whole.test[:8])
    with pytest.raises(DataError, match="valid_images: expected a number from 1 to 40"):
        data.from_arrays(GREY, GREY, GREY, valid_images=41)


def changed(value, dtype=np.float64, images=BITS):
    images = images.astype(dtype)
    images[-1, -1, -1] = value
    return images


BAD_ARRAYS = {
    "not a number": ([changed(np.nan)], "floats from 0 to 1, found nan to nan"),
    "infinite": ([changed(np.inf)], "found 0.0 to inf"),
    "floats of 255": ([GREY.astype(np.float32)], "found 0.0 to 255.0; divide by"),
    "just above 1": ([changed(1 + 1e-12)], "floats from 0 to 1"),
    "below 0": ([changed(-1, np.int8)], "whole numbers from 0 to 255, found -1 to 1"),
    "signs": ([BITS * 2 - 1.0], "found -1.0 to 1.0"),
    "above 255": ([changed(256, np.int64, GREY)], "found 0 to 256"),
    "of 16": ([GREY // 16], "whole numbers up to 15; divide by that of white"),
    "two": ([changed(2, np.uint8)], "whole numbers up to 2"),
    "test of 16": ([GREY / 255, None, GREY // 16], "whole numbers up to 15"),
    "bad test": ([GREY, GREY, changed(np.nan)], "test: expected floats"),
    "complex": ([BITS * 1j], "found complex128"),
    "text": ([np.array([["a", "b"]])], "numbers [N, pixels] or [N, height, width], found <U1"),
    "objects": ([np.array([[{}, {}]])], "found object"),
    "ragged": ([[[0, 1], [1]]], "train: no array of numbers"),
    "nothing": ([None], "train"),
    "one number": ([1], "found int64 ()"),
    "one axis": ([np.zeros(9)], "found float64 (9,)"),
    "no image": ([np.zeros([0, 9])], "found float64 (0, 9)"),
    "no pixel": ([np.zeros([9, 0])], "found float64 (9, 0)"),
    "colours": ([np.zeros([9, 4, 4, 3])], "grey images [N, height, width], found [N, 4, 4, 3]"),
    "too many axes": ([np.zeros([9, 4, 4, 1, 1])], "found [N, 4, 4, 1, 1]"),
    "two sizes": ([GREY, GREY[:, :5]], "one size, found (6, 5) in train, (5, 5) in valid"),
    "grey beside bits": ([BITS, GREY], "zeros and ones in valid, as in train"),
    "two images": ([BITS[:2]], "found too few"),
    "one image": ([BITS[:1], BITS], "found too few"),
    "no square": ([BITS.reshape(40, 30)], "found 30; set --image_shape to HEIGHT,WIDTH"),
    "other shape": ([BITS, None, None, (5, 6)], "5 x 6, as --image_shape says, found 6 x 5"),
    "other number": ([BITS.reshape(40, 30), None, None, (5, 7)], "5 x 7, as"),
    "three numbers": ([BITS.reshape(40, 30), None, None, (5, 6, 1)], "5 x 6 x 1, as"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case, tmp_path):
    arguments, part = BAD_ARRAYS[case]
    with pytest.raises(DataError) as caught:
        data.from_arrays(*arguments)
    assert part in str(caught.value) and "\n" not in str(caught.value)
    arrays = dict(zip(("train", "valid", "test"), arguments, strict=False))
    if case not in ("nothing", "ragged"):
        arrays = {name: array for name, array in arrays.items() if array is not None}
        path = write_own(tmp_path / "own.npz", **arrays)
        message = refused(path, None, image_shape=(arguments + [None] * 3)[3])
        assert message.startswith(str(path)) and part.removeprefix("test: ") in message


@pytest.mark.parametrize(
    "names, found",
    [
        (["test"], "'test'"),
        (["valid", "test"], "'test', 'valid'"),
        (["images", "labels"], "'images', 'labels'"),
        (["train", "x_train"], "'train', 'x_train'"),
        (["train", "val", "valid"], "'train', 'val', 'valid'"),
        (["train\n", "\x1b[2J"], r"'\x1b[2J', 'train\n'"),
        ([], "none"),
    ],
)
def test_archives_that_do_not_say_which_images_are_which(names, found, tmp_path):
    path = write_own(tmp_path / "own.npz", **dict.fromkeys(names, GREY))
    message = refused(path, None)
    assert "one each named train, valid and test" in message and f"found {found};" in message


def test_bad_files_of_ones_own(tmp_path):
    assert f"{tmp_path}/own.npz: expected a file, found nothing" in refused("own.npz", tmp_path)
    path = tmp_path / "own.npy"
    path.mkdir()
    assert "found a folder" in refused("own.npy", tmp_path)
    path.rmdir()
    assert "found nothing" in refused("x" * 5_000 + ".npy", tmp_path)
    for contents in (b"", b"no array", b"PK", b"\x93NUMPY", npz_that_claims((9, 28, 28))):
        path.write_bytes(contents)
        assert str(path) in refused("own.npy", tmp_path)
    whole = write_own(path, x=GREY).read_bytes()
    for contents in (whole[:-1], whole + b"0"):
        path.write_bytes(contents)
        assert "cannot be read" in refused(path, None)
    archive = write_own(tmp_path / "own.npz", train=GREY).read_bytes()
    at = archive.index(GREY.tobytes())
    path.write_bytes(archive[:at] + bytes(GREY.size) + archive[at + GREY.size :])
    assert "BadZipFile" in refused(path, None)


@pytest.mark.parametrize("images, size", [(GREY, GREY.size), (GREY / 255, 4 * GREY.size)])
def test_images_that_take_too_much_memory(images, size, tmp_path, monkeypatch):
    path = write_own(tmp_path / "own.npz", train=images, valid=images)
    monkeypatch.setattr(readers, "_MOST", 2 * size)
    assert data.load(path).train.any()
    monkeypatch.setattr(readers, "_MOST", 2 * size - 1)
    assert f"valid: expected images of at most {size - 1} bytes" in refused(path, None)


def test_data_from_python_and_shapes_of_named_sets_are_refused(mnist_file):
    assert "given from Python" in refused("arrays", None)
    assert data.load("mnist_threshold", mnist_file.parent, image_shape=(28, 28)).train.any()
    message = refused("mnist_threshold", mnist_file.parent, image_shape=(14, 56))
    assert "image_shape: expected (28, 28), found (14, 56)" in message


# What is refused.


def test_unknown_name():
    message = refused("mnist", None)
    assert "'mnist'" in message and all(name in message for name in data.DATASETS)


def test_data_dir_is_no_folder(tmp_path):
    message = refused("glyphs", tmp_path / "absent")
    assert "absent" in message and "found nothing" in message
    (tmp_path / "file").touch()
    assert "found a file" in refused("mnist_static", tmp_path / "file")


@pytest.mark.parametrize(
    "name, file_name",
    [
        ("mnist_static", "binarized_mnist_train.amat"),
        ("mnist_threshold", "mnist.npz"),
        ("mnist_dynamic", "mnist.npz"),
        ("fashion_dynamic", "train-images-idx3-ubyte.gz"),
        ("omniglot", "chardata.mat"),
        ("omniglot_dynamic", "chardata.mat"),
    ],
)
def test_missing_file(tmp_path, name, file_name):
    message = refused(name, tmp_path)
    assert str(tmp_path / file_name) in message and "--dataset=glyphs" in message


@pytest.mark.parametrize("option", ["valid_images", "test_images"])
@pytest.mark.parametrize("count", [0, -1, 10_001])
def test_number_of_images_kept(mnist_file, option, count):
    message = refused("mnist_threshold", mnist_file.parent, **{option: count})
    assert option in message and str(count) in message


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def npz_that_claims(shape, descr="|u1"):
    """An archive whose x_train has a header and no data."""
    file, header = io.BytesIO(), io.BytesIO()
    claim = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
    return file.getvalue()


TEN = np.zeros([10, 28, 28], np.uint8)
BAD_NPZ = {
    "no archive": (b"no archive", ".npz archive with x_train"),
    "empty": (b"", "BadZipFile"),
    "no array": (npz(x_test=TEN), "x_train"),
    "too few": (npz(x_train=TEN, x_test=TEN), "(60000, 28, 28), found uint8 (10, 28, 28)"),
    "floats": (npz_that_claims((60_000, 28, 28), "<f4"), "found float32"),
    "pickled": (npz(x_train=np.array([{}, {}])), "found object"),
    "huge": (npz_that_claims((10**9, 28, 28)), "(1000000000, 28, 28)"),
    "no data": (npz_that_claims((60_000, 28, 28)), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz(tmp_path, case):
    contents, part = BAD_NPZ[case]
    (tmp_path / "mnist.npz").write_bytes(contents)
    message = refused("mnist_threshold", tmp_path)
    assert str(tmp_path / "mnist.npz") in message and part in message


@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_damaged_npz(tmp_path, mnist_file, damage):
    contents = bytearray(mnist_file.read_bytes())
    if damage == "truncated":
        del contents[len(contents) // 2 :]
    else:
        contents[len(contents) // 2] ^= 0xFF
    (tmp_path / "mnist.npz").write_bytes(contents)
    assert "cannot be read" in refused("mnist_dynamic", tmp_path)


BAD_AMAT = {
    "one line short": (fake_text(9_999), "15680000 bytes", "found 15678432"),
    "empty": (b"", "15680000 bytes", "found 0"),
    "digit": (fake_text(10_000, b"2"), "digits 0 or 1", "other text"),
    "below 0": (fake_text(10_000, b" "), "digits 0 or 1", "other text"),
    "separator": (fake_text(10_000).replace(b"\n", b" "), "digits 0 or 1", "other text"),
    "matlab": (b"MATLAB 5.0 MAT-file", "MATLAB 5 file", "cannot be read"),
}


@pytest.fixture(scope="session")
def static_train(tmp_path_factory):
    path = tmp_path_factory.mktemp("static") / "binarized_mnist_train.amat"
    path.write_bytes(fake_text(50_000))
    return path


@pytest.mark.parametrize("case", BAD_AMAT)
def test_bad_text(tmp_path, static_train, case):
    contents, *parts = BAD_AMAT[case]
    (tmp_path / static_train.name).symlink_to(static_train)
    path = tmp_path / "binarized_mnist_valid.amat"
    path.write_bytes(contents)
    message = refused("mnist_static", tmp_path)
    assert all(part in message for part in (str(path), *parts))


@pytest.mark.parametrize(
    "name, shape, value, part",
    [
        ("X", (50_000, 784), 2, "only 0 and 1, found values from 0"),
        ("X", (50_000, 783), 0, "(50000, 784), found (50000, 783)"),
        ("Y", (5, 5), 0, "found nothing"),
    ],
)
def test_bad_matlab_bits(tmp_path, name, shape, value, part):
    bits = np.zeros(shape, np.uint8)
    bits[-1, -1] = value
    with open(tmp_path / "binarized_mnist_train.amat", "wb") as file:
        scipy.io.savemat(file, {name: bits}, do_compression=True)
    assert part in refused("mnist_static", tmp_path)


def test_altered_bits_are_used_with_a_warning(tmp_path, static_train, caplog):
    (tmp_path / static_train.name).symlink_to(static_train)
    (tmp_path / "binarized_mnist_valid.amat").write_bytes(fake_text(10_000, b"1"))
    with open(tmp_path / "binarized_mnist_test.amat", "wb") as file:
        scipy.io.savemat(file, {"X": np.ones([10_000, 784], np.uint8)}, do_compression=True)
    dataset = data.load("mnist_static", tmp_path)
    assert not dataset.published and len(caplog.records) == 3
    assert not dataset.train.any() and dataset.test.all()
    assert dataset.valid.sum() == dataset.valid[0, 0] == 1


def grey_with(value):
    levels = np.zeros([784, 24_345], np.float32)
    levels[3, 4] = value
    return levels


BAD_CHARDATA = {
    "above 1": ({"data": grey_with(1.5)}, "found 0.0 to 1.5"),
    "below 0": ({"data": grey_with(-1)}, "found -1.0 to 0.0"),
    "not a number": ({"data": grey_with(np.nan)}, "found nan"),
    "transposed": ({"testdata": np.zeros([8_070, 784], np.uint8)}, "found (8070, 784)"),
    "missing": ({"testdata": None}, "testdata, numbers (784, 8070), found nothing"),
    "text": ({"data": np.array(["a", "b"])}, "char"),
    "complex": ({"data": grey_with(0) * 1j}, "found complex"),
}


@pytest.mark.parametrize("case", BAD_CHARDATA)
def test_bad_chardata(tmp_path, case):
    changes, part = BAD_CHARDATA[case]
    write_chardata(tmp_path, **changes)
    message = refused("omniglot_dynamic", tmp_path)
    assert str(tmp_path / "chardata.mat") in message and part in message


def test_truncated_chardata(tmp_path):
    write_chardata(tmp_path)
    path = tmp_path / "chardata.mat"
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be read" in refused("omniglot", tmp_path)
    path.write_bytes(path.read_bytes()[:2_000])
    assert "testdata, numbers (784, 8070), found nothing" in refused("omniglot", tmp_path)


def test_bad_idx(tmp_path, grey):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", grey[1])
    path.write_bytes(b"no idx")
    assert "an idx file of 60000 images" in refused("fashion_dynamic", tmp_path)
    write_idx(path, TEN)
    assert "an idx file of 60000 images" in refused("fashion_dynamic", tmp_path)
    write_idx(path, grey[0], tail=b"0")
    assert "found more" in refused("fashion_dynamic", tmp_path)
    write_idx(path, grey[0])
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be read" in refused("fashion_dynamic", tmp_path)


# Downloads.


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; under /short/ it breaks off half way."""

    def do_GET(self):
        if not self.path.startswith("/short/"):
            return super().do_GET()
        contents = pathlib.Path(self.directory, pathlib.Path(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        self.wfile.write(contents[: len(contents) // 2])

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def server(mnist_file):
    handler = functools.partial(Handler, directory=str(mnist_file.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def publish(monkeypatch, mnist_file, grey):
    """Sets where `mnist.npz` is published."""
    contents = f"sha256:{hashlib.sha256(grey[0].tobytes() + grey[1].tobytes()).hexdigest()}"

    def set_source(address, algorithm="sha256", checksum=None):
        checksum = checksum or hashlib.new(algorithm, mnist_file.read_bytes()).hexdigest()
        source = sources.Source(address, f"{algorithm}:{checksum}", contents)
        monkeypatch.setitem(sources.SOURCES, "mnist.npz", source)

    return set_source


def test_download(server, publish, cache, mnist_file):
    publish(f"{server}/mnist.npz")
    dataset = data.load("mnist_threshold")
    assert dataset.published
    assert dataset.checksum == data.load("mnist_threshold", mnist_file.parent).checksum
    assert files_in(cache / "datasets") == ["mnist.npz"]
    publish("http://127.0.0.1:1/mnist.npz")  # from now on only the cache can serve it
    assert data.load("mnist_threshold").published


def test_download_from_a_file_address(publish, cache, mnist_file):
    publish(mnist_file.as_uri(), algorithm="md5")
    assert data.load("mnist_threshold").published
    assert files_in(cache / "datasets") == ["mnist.npz"]


def test_wrong_checksum_is_refused_and_forgotten(server, publish, cache, mnist_file):
    publish(f"{server}/mnist.npz", checksum="0" * 64)
    found = hashlib.sha256(mnist_file.read_bytes()).hexdigest()
    message = refused("mnist_threshold", None)
    assert "0" * 64 in message and found in message
    assert files_in(cache / "datasets") == []
    publish(f"{server}/mnist.npz")
    assert data.load("mnist_threshold").published


@pytest.mark.parametrize(
    "path", ["short/mnist.npz", "absent/mnist.npz"], ids=["truncated", "not found"]
)
def test_failed_download(server, publish, cache, path):
    publish(f"{server}/{path}")
    message = refused("mnist_threshold", None)
    assert f"{server}/{path}" in message
    assert "put mnist.npz into a folder" in message
    assert "--data_dir" in message and "--dataset=glyphs" in message
    assert files_in(cache / "datasets") == []


def test_no_network(publish, cache):
    publish("http://127.0.0.1:1/mnist.npz")
    message = refused("mnist_threshold", None)
    assert "http://127.0.0.1:1/mnist.npz: cannot be downloaded" in message
    assert files_in(cache / "datasets") == []


def test_partial_file_in_the_cache_is_fetched_again(server, publish, cache, mnist_file):
    path = cache / "datasets" / "mnist.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(mnist_file.read_bytes()[:1_000])
    publish("http://127.0.0.1:1/mnist.npz")
    assert "cannot be downloaded" in refused("mnist_threshold", None)
    publish(f"{server}/mnist.npz")
    assert data.load("mnist_threshold").published
    assert path.read_bytes() == mnist_file.read_bytes()


def test_cache_that_cannot_be_written(server, publish, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    publish(f"{server}/mnist.npz")
    assert "cannot be downloaded" in refused("mnist_threshold", None)


def test_sources_are_complete():
    for name, source in sources.SOURCES.items():
        algorithm, _, checksum = source.checksum.partition(":")
        assert len(bytes.fromhex(checksum)) == hashlib.new(algorithm).digest_size
        assert source.address.endswith(f"/{name}")


# Glyphs.


def test_glyphs_data_set(glyph_cache, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(glyph_cache))
    dataset = data.load("glyphs")
    assert dataset.train.shape == (21_000, 784)
    assert dataset.valid.shape == (2_000, 784)
    assert dataset.test.shape == (5_000, 784)
    assert not dataset.dynamic and not dataset.published
    for bits in (dataset.train, dataset.valid, dataset.test):
        assert bits.dtype == np.uint8 and set(np.unique(bits)) == {0, 1}
        assert bits.any(axis=1).all() and not bits.all(axis=1).any()
        assert 0.15 < bits.mean() < 0.25
    assert data.load("glyphs").checksum == dataset.checksum


def test_glyph_splits_share_no_character_and_no_look(rendered):
    images, characters = rendered
    splits = glyphs.split(images, characters)
    assert [len(indices) for indices in splits] == list(glyphs.SIZES.values())
    home = {}  # a look, a character or a letter -> its split
    for number, indices in enumerate(splits):
        for index in indices:
            letter = unicodedata.normalize("NFKC", characters[index]).casefold()
            look = (images[index] > 127).tobytes()
            for key in (look, characters[index], letter):
                assert home.setdefault(key, number) == number
    for image, character in zip(images, characters, strict=True):
        look = (image > 127).tobytes()
        if look in home and character in home:
            assert home[look] == home[character]
    assert len({images[i].tobytes() for indices in splits for i in indices}) == 28_000


def test_look_alikes_stay_together(rendered):
    images, characters = rendered
    splits = glyphs.split(images, characters)
    homes = [
        number
        for number, indices in enumerate(splits)
        if {characters[i] for i in indices} & {"A", "\u0391", "\u0410", "a"}
    ]
    assert len(homes) == 1


def test_rendered_glyphs(rendered):
    images, characters = rendered
    assert images.dtype == np.uint8 and images.shape[1:] == (28, 28)
    ink = images.mean(axis=(1, 2)) / 255
    assert glyphs.INK[0] <= ink.min() and ink.max() <= glyphs.INK[1]
    margin = np.ones([28, 28], bool)
    margin[1:-1, 1:-1] = False
    assert not images[:, margin].any()
    categories = {unicodedata.category(character)[0] for character in characters}
    assert categories == {"L", "N", "S"}


def test_rendering_is_deterministic(rendered, monkeypatch):
    monkeypatch.setattr(glyphs, "FONTS", glyphs.FONTS[-1:])
    images, characters = glyphs.render()
    np.testing.assert_array_equal(images, rendered[0][-len(images) :])
    assert characters == rendered[1][-len(images) :]


def test_letters(letters):
    (_, y), (_, y_test) = letters
    for images, classes in letters:
        assert images.shape == (len(classes), 784) and images.dtype == np.float32
        assert images.min() == 0 and 0.9 < images.max() <= 1
        assert classes.dtype == np.int32 and set(classes) == set(range(26))
    assert len(y_test) // 4 == (len(y) + len(y_test)) // 4 // 5
    for arrays, others in zip(letters, glyphs.letters(), strict=True):
        for array, other in zip(arrays, others, strict=True):
            np.testing.assert_array_equal(array, other)


def test_no_letter_for_tests_is_one_for_training_moved(letters):
    def shapes(images):
        for image in images.reshape(-1, 28, 28) > 0.5:
            rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
            yield image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    train, test = ({(s.shape, s.tobytes()) for s in shapes(x)} for x, _ in letters)
    assert train and test and not train & test


def test_too_few_glyphs(rendered):
    images, characters = rendered
    with pytest.raises(ValueError, match="expected 21000 distinct glyphs for the train split"):
        glyphs.split(images[:9_000], characters[:9_000])


def test_glyphs_do_not_depend_on_the_cache(tmp_path, glyph_cache, rendered, monkeypatch, caplog):
    monkeypatch.setattr(glyphs, "render", lambda: rendered)
    expected = glyphs.load(glyph_cache / "datasets")
    [name] = files_in(glyph_cache)

    (tmp_path / name).write_bytes(b"no archive")
    mended = glyphs.load(tmp_path)
    assert "rendering it again" in caplog.text
    caplog.clear()
    cached = glyphs.load(tmp_path)
    assert not caplog.records and files_in(tmp_path) == [name]

    (tmp_path / "file").touch()
    uncached = glyphs.load(tmp_path / "file" / "datasets")
    assert "cannot be written" in caplog.text
    for splits in (mended, cached, uncached):
        for images, others in zip(splits, expected, strict=True):
            np.testing.assert_array_equal(images, others)


def test_fonts_are_missing(monkeypatch):
    monkeypatch.setattr(glyphs, "FONTS", ("NoSuchFont",))
    message = refused("glyphs", None)
    assert "NoSuchFont" in message and "reinstall matplotlib" in message

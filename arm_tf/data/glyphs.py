"""Glyphs: images of characters in the fonts that matplotlib ships.

A data set that needs no download, about the size of OMNIGLOT: letters, digits, mathematical and
currency signs of many scripts, 28 x 28 grey levels, split so that no character is in two splits.
"""

from __future__ import annotations

import collections
import importlib.metadata
import os
import pathlib
import string
import tempfile
import typing
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

if typing.TYPE_CHECKING:
    from matplotlib import ft2font

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)
CATEGORIES = ("Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No", "Sm", "Sc")
INK = (0.05, 0.45)  # mean grey level: leaves out specks and solid blocks
SIZES = {"train": 21_000, "valid": 2_000, "test": 5_000}

_SIDE = 28
_GLYPH_SIDE = 24  # the longer side of a glyph's box, which leaves a margin of two pixels
_ZOOM = 4  # glyphs are drawn this much larger, then averaged over boxes
_SEED = 28
_VERSION = 1  # of the images; part of the cached file's name


def load(cache_folder: str | os.PathLike[str]) -> tuple[np.ndarray, ...]:
    """The three splits, from the cache if they are there, else rendered and cached.

    Args:
      cache_folder: path of the folder for the cached file; made if missing.

    Returns:
      (train, valid, test), uint8 grey levels [N, 784] with the sizes in `SIZES`.

    Raises:
      OSError: matplotlib's fonts are not where they should be.
      ValueError: the fonts hold too few distinct glyphs.
    """
    matplotlib_version = importlib.metadata.version("matplotlib")
    name = f"arm_tf_glyphs_{_VERSION}_matplotlib_{matplotlib_version}.npz"
    path = pathlib.Path(cache_folder) / name
    try:
        return _read(path)
    except Exception as error:  # whatever is wrong with the cached file, rendering mends it
        if not isinstance(error, FileNotFoundError):
            logging.warning("%s: cannot be used (%s); rendering it again", path, error)
    images, characters = render()
    splits = tuple(images[indices].reshape(-1, _SIDE**2) for indices in split(images, characters))
    try:
        _write(path, splits)
    except OSError as error:
        logging.warning("%s: cannot be written (%s); rendering again next time", path, error)
    return splits


def letters(copies: int = 4) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The Latin letters among the glyphs with their names, for classifiers.

    Capitals and small letters of every font and style are one class. A fifth of the glyphs, all of
    which look different, are for tests. Each comes in copies moved by up to two pixels each way.

    Args:
      copies: int, how many.

    Returns:
      ((x, y), (x, y)) for training and for tests: float32 grey levels [N, 784] in [0, 1], 1 is
      ink, and int32 [N] from 0 for A to 25 for Z, in random order.
    """
    alphabet = {letter: i for i, letter in enumerate(string.ascii_lowercase)}
    images, characters = render(lambda character: _letter(character) in alphabet)
    rng = np.random.default_rng(_SEED)
    indices = rng.permutation(list(_first_of_each_look(images).values()))
    num_test, splits = len(indices) // 5, []
    for part in (indices[num_test:], indices[:num_test]):
        part = rng.permutation(np.repeat(part, copies))
        shifts = rng.integers(-2, 3, (len(part), 2))
        moved = [np.roll(images[i], shift, (0, 1)) for i, shift in zip(part, shifts, strict=True)]
        x = np.reshape(moved, [-1, _SIDE**2]).astype(np.float32) / 255
        splits.append((x, np.array([alphabet[_letter(characters[i])] for i in part], np.int32)))
    return tuple(splits)


def render(wanted: Callable[[str], bool] = lambda character: True) -> tuple[np.ndarray, list[str]]:
    """Images of every usable character in every font.

    A glyph is scaled to fit a box of 24 x 24 pixels, its aspect kept, and centred. Left out are
    characters outside `CATEGORIES` and images with a mean grey level outside `INK`.

    Args:
      wanted: function of a character, whether to draw it.

    Returns:
      (images, characters): uint8 [N, 28, 28], and a list of N one-character strings. An image
      occurs more than once where characters or fonts share a shape.
    """
    import matplotlib
    from matplotlib import ft2font

    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images, characters = [], []
    for name in FONTS:
        font = ft2font.FT2Font(str(folder / f"{name}.ttf"))
        for character in map(chr, sorted(font.get_charmap())):
            if unicodedata.category(character) not in CATEGORIES or not wanted(character):
                continue
            image = _render_glyph(font, character)
            if INK[0] <= image.mean() / 255 <= INK[1]:
                images.append(image)
                characters.append(character)
    return np.stack(images), characters


def split(
    images: np.ndarray, characters: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the training, validation and test images, all of which look different.

    Two images look the same if they agree once thresholded at half grey. Characters that look
    the same in any font, as Latin A and Greek Alpha do, or that are one letter in another case
    or style, stay together, so that neither a character nor a look-alike is in two splits.

    Args:
      images: uint8 [N, 28, 28].
      characters: N one-character strings.

    Returns:
      (train, valid, test), int arrays with the sizes in `SIZES`, in random order.

    Raises:
      ValueError: there are too few distinct images.
    """
    first = _first_of_each_look(images)
    parents: dict[str, str] = {}
    for image, character in zip(images, characters, strict=True):
        twin = characters[first[_look(image)]]
        letter = _letter(character)
        parents[_root(parents, character)] = _root(parents, twin)
        parents[_root(parents, character)] = _root(parents, letter)

    by_root = collections.defaultdict(list)
    for index in first.values():
        by_root[_root(parents, characters[index])].append(index)

    rng = np.random.default_rng(_SEED)
    groups = list(by_root.values())
    rng.shuffle(groups)
    splits = {}
    for name in ("test", "valid", "train"):
        indices: list[int] = []
        while groups and (name == "train" or len(indices) < SIZES[name]):
            indices += groups.pop()
        if len(indices) < SIZES[name]:
            raise ValueError(
                f"expected {SIZES[name]} distinct glyphs for the {name} split, found {len(indices)}"
            )
        splits[name] = rng.permutation(indices)[: SIZES[name]]
    return splits["train"], splits["valid"], splits["test"]


def _look(image: np.ndarray) -> bytes:
    return np.packbits(image > 127).tobytes()


def _first_of_each_look(images: np.ndarray) -> dict[bytes, int]:
    """Dict from each look to the index of the first image that has it."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(images):
        first.setdefault(_look(image), index)
    return first


def _letter(character: str) -> str:
    """What a character is whatever its case or style."""
    return unicodedata.normalize("NFKC", character).casefold()


def _root(parents: dict[str, str], item: str) -> str:
    """The representative of an item's set in a union-find forest."""
    while parents.setdefault(item, item) != item:
        parents[item] = parents[parents[item]]
        item = parents[item]
    return item


def _render_glyph(font: ft2font.FT2Font, character: str) -> np.ndarray:
    """One character as uint8 [28, 28]; all zero if it has no ink."""
    side, box = _ZOOM * _SIDE, _ZOOM * _GLYPH_SIDE
    bitmap = _draw(font, character, size=box)
    if bitmap.size:
        bitmap = _draw(font, character, size=box * box / max(bitmap.shape))
    canvas = np.zeros((side, side), np.uint8)
    height, width = bitmap.shape
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = bitmap
    boxes = canvas.reshape(_SIDE, _ZOOM, _SIDE, _ZOOM)
    return np.rint(boxes.mean(axis=(1, 3))).astype(np.uint8)


def _draw(font: ft2font.FT2Font, character: str, size: float) -> np.ndarray:
    """A character's bitmap at a font size in pixels, cropped to its ink."""
    from matplotlib import ft2font

    font.set_size(size, 72)
    font.set_text(character, flags=ft2font.LoadFlags.NO_HINTING)
    font.draw_glyphs_to_bitmap(antialiased=True)
    bitmap = np.array(font.get_image())
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    if not rows.size:
        return bitmap[:0, :0]
    return bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _read(path: pathlib.Path) -> tuple[np.ndarray, ...]:
    """The splits in a cached file; raises if it is not as `_write` leaves it."""
    with np.load(path, allow_pickle=False) as archive:
        splits = tuple(archive[name] for name in SIZES)
    for images, size in zip(splits, SIZES.values(), strict=True):
        if images.shape != (size, _SIDE**2) or images.dtype != np.uint8:
            raise ValueError(f"expected uint8 [{size}, {_SIDE**2}], found {images.shape}")
    return splits


def _write(path: pathlib.Path, splits: Sequence[np.ndarray]) -> None:
    """Writes the cached file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".arm_tf_") as scratch:
        part = pathlib.Path(scratch) / path.name
        arrays: dict[str, typing.Any] = dict(zip(SIZES, splits, strict=True))
        np.savez_compressed(part, **arrays)
        os.replace(part, path)

"""What a data set is: training, validation and test images, and their bits."""

import dataclasses
import hashlib

import numpy as np

from arm_tf.errors import DataError

CHUNK = 4096  # rows handled at a time where a whole array would need much memory
BINARISATION_SEED = 784_28  # validation and test bits of the dynamic sets


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
    image_shape: tuple[int, int] = (28, 28)

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
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
        return binarise(self.train, np.random.default_rng([seed, epoch]))

    @property
    def train_mean(self) -> np.ndarray:
        """Mean of each pixel over the training images, float32 [pixels] in [0, 1]."""
        mean = self.train.mean(axis=0, dtype=np.float64)
        return (mean / white(self.train) if self.dynamic else mean).astype(np.float32)


def binarise(grey: np.ndarray, rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
    """Bits b = 1[u < grey level], u uniform from `rng` in the order of the pixels."""
    bits = np.empty(grey.shape, np.uint8)
    for start in range(0, len(grey), CHUNK):
        rows = grey[start : start + CHUNK]
        bits[start : start + CHUNK] = rng.random(rows.shape) < rows / white(rows)
    return bits


def white(grey: np.ndarray) -> int:
    """The grey level of white, 255 of uint8 and 1 of floats."""
    return 255 if grey.dtype == np.uint8 else 1


def first(images: np.ndarray, count: int | None, argument: str) -> np.ndarray:
    """The first `count` images, all where that is None; a `DataError` that names the argument."""
    if count is None:
        return images
    if not 1 <= count <= len(images):
        raise DataError(
            f"{argument}: expected a number from 1 to {len(images)}, found {count}; "
            "leave it out to keep all images"
        )
    return images[:count]


def arrays_checksum(*arrays: np.ndarray) -> str:
    """SHA-256 of the types, shapes and contents of arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

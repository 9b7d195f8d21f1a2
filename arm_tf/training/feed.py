"""What the steps of a run are given: images, their order, and noise, as functions of the step."""

import numpy as np
import tensorflow as tf

from arm_tf import noise
from arm_tf.data import Dataset
from arm_tf.errors import RunError
from arm_tf.training.config import Config


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Order in which an epoch visits the training images; int32 [num_images]."""
    return np.random.default_rng([seed, epoch]).permutation(num_images).astype(np.int32)


class Feed:
    """Arguments of the compiled loop for any step, which depend on seed and step alone.

    Args:
      config: `arm_tf.training.config.Config`.
      dataset: `arm_tf.data.Dataset`.
      noise_rows: rows of noise for each image, by purpose.

    Attributes:
      steps_per_epoch: int; the last, incomplete batch of an epoch is left out.
      images: uint8 [N, pixels], those of the epoch under way on the device; None before it.

    Raises:
      RunError: there are fewer training images than one batch.
    """

    def __init__(self, config: Config, dataset: Dataset, noise_rows: dict[str, int]) -> None:
        self._config, self._dataset, self._noise_rows = config, dataset, noise_rows
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        if not self.steps_per_epoch:
            raise RunError(
                f"--batch_size={config.batch_size} is more than the "
                f"{len(dataset.train)} training images."
            )
        self._order = np.empty([0, config.batch_size], np.int32)
        self._epoch: int | None = None
        self.images: tf.Tensor | None = None

    def __call__(self, step: int, count: int) -> tuple[tf.Tensor, ...]:
        """Arguments of `take_steps` for `count` steps from a step, all within one epoch."""
        config = self._config
        epoch, done = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            self._epoch = epoch
            if self.images is None or self._dataset.dynamic:
                self.images = tf.constant(self._dataset.epoch(config.seed, epoch))
            order = epoch_order(len(self._dataset.train), config.seed, epoch)
            order = order[: self.steps_per_epoch * config.batch_size]
            self._order = order.reshape(self.steps_per_epoch, config.batch_size)
        order = np.zeros([config.steps_per_loop, config.batch_size], np.int32)
        order[:count] = self._order[done : done + count]
        return self.images, order, *self.noise(step), tf.constant(count)

    def noise(self, step: int) -> list[tf.Tensor]:
        """Uniform noise of a loop of steps from a step, an array for each purpose."""
        config = self._config
        shape = [config.steps_per_loop, config.batch_size, config.units]
        return [
            noise.uniforms(noise.key(config.seed, purpose), step, [shape[0], rows, *shape[1:]])
            for purpose, rows in self._noise_rows.items()
        ]

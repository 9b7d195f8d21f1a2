"""Uniform noise as a pure function of seed, purpose and position.

A run that stops anywhere and goes on later, or that takes its steps in groups of
another size, must meet the same numbers. They come from a counter-based generator
(Philox, Salmon et al. 2011): the key is made of seed and purpose, the counter of the
position, and any stretch of positions can be drawn in one call.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_PHILOX = 1  # the generator's number in TensorFlow's random ops
_NUMBERS_PER_COUNTER = 4


def key(seed: int, purpose: str) -> tf.Tensor:
    """Philox key for one purpose of one seed.

    Args:
      seed: int >= 0.
      purpose: str, for example "train"; other purposes give independent noise.

    Returns:
      uint64 [1].
    """
    sequence = np.random.SeedSequence([seed, *purpose.encode()])
    return tf.constant(sequence.generate_state(1, np.uint64))


def uniforms(key: tf.Tensor, start: int, shape: Sequence[int]) -> tf.Tensor:
    """Uniform numbers for the positions start, start + 1, ….

    Row i is a function of (key, start + i, shape[1:]) alone, however many rows are drawn.

    Args:
      key: uint64 [1], from `key`.
      start: int >= 0, the position of the first row.
      shape: ints [rows, ...].

    Returns:
      float32 `shape`, in [0, 1).
    """
    size = math.prod(shape[1:])
    counters = -(-size // _NUMBERS_PER_COUNTER)
    numbers = tf.raw_ops.StatelessRandomUniformV2(
        shape=[shape[0], counters * _NUMBERS_PER_COUNTER],
        key=key,
        counter=tf.constant([start * counters, 0], tf.uint64),
        alg=_PHILOX,
    )
    return tf.reshape(numbers[:, :size], shape)

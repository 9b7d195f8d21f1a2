"""Several steps of a Keras model as one compiled program."""

import itertools
import typing
from collections.abc import Callable

import keras
import tensorflow as tf


def in_one_program(
    model: keras.Model, steps: int, one_by_one: Callable[..., typing.Any]
) -> Callable[..., typing.Any]:
    """A train function that takes batches of one size as a loop of one compiled program.

    Args:
      model: `keras.Model`.
      steps: int, batches of a call.
      one_by_one: Keras's train function, which takes what is left.
    """

    @tf.function(jit_compile=True, autograph=False)
    def loop(batches):
        def body(i):
            model.train_step(tf.nest.map_structure(lambda array: array[i], batches))
            return (i + 1,)

        tf.while_loop(lambda i: i < steps, body, (0,))
        return model.get_metrics_result()

    def train_function(iterator):
        if not isinstance(iterator, tf.data.Iterator):
            return one_by_one(iterator)
        batches = list(itertools.islice(iterator, steps))
        if not batches:
            raise StopIteration
        leaves = [tf.nest.flatten(batch) for batch in batches]
        are_dense = all(isinstance(leaf, tf.Tensor) for batch in leaves for leaf in batch)
        if not are_dense or len(batches) < steps:
            return one_by_one(iter(batches))
        if len({tuple(tuple(leaf.shape) for leaf in batch) for batch in leaves}) > 1:
            return one_by_one(iter(batches))
        return loop(tf.nest.map_structure(lambda *arrays: tf.stack(arrays), *batches))

    return train_function

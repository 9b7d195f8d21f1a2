"""The compiled loss of a batch, as Keras computes it, and what each datum adds to it."""

import contextlib
import typing
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf


class BatchLoss:
    """A model's loss of one batch, as a function of the outputs.

    Args:
      model: compiled `keras.Model`.
      y, sample_weight: of the batch, as Keras gives them to `compute_loss`.
    """

    def __init__(self, model: keras.Model, y: typing.Any, sample_weight: typing.Any) -> None:
        self.model, self.y, self.sample_weight = model, y, sample_weight

    def total(self, y_pred: typing.Any, losses: Sequence[tf.Tensor] = ()) -> tf.Tensor:
        """The compiled loss, and losses that layers have added, but for those of weights."""
        added = [tf.reduce_sum(tf.cast(loss, keras.config.floatx())) for loss in losses]
        if self.model._compile_loss is not None:
            # Without a reduction there are several, and Keras follows the gradient of their sum.
            loss = tf.reduce_sum(self.model._compile_loss(self.y, y_pred, self.sample_weight))
            added.append(tf.cast(loss, keras.config.floatx()))
        return tf.add_n([tf.zeros([], keras.config.floatx()), *added])

    def addends(self, y_pred: typing.Any) -> list[tf.Tensor]:
        """What the values of each compiled loss add to the loss.

        Keras reduces the values v of a loss, its `call`, to a weighted sum sum_j c_j v_j, in which
        c depends on masks, weights and the reduction. It is called as it is, and c is read off as
        the derivative of its result in v.

        Returns:
          A list of c v, [batch, ...] each, whose sum is the compiled loss.

        Raises:
          TypeError: a loss of its own `__call__`, in which v cannot be seen.
        """
        if self.model._compile_loss is None:
            return []
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            with _watched(self.model._compile_loss, tape) as values:
                loss = self.model._compile_loss(self.y, y_pred, self.sample_weight)
        weights = tape.gradient(loss, values)
        pairs = zip(weights, values, strict=True)
        return [tf.stop_gradient(c) * v for c, v in pairs if c is not None]


@contextlib.contextmanager
def _watched(compiled: keras.losses.Loss, tape: tf.GradientTape) -> Iterator[list[tf.Tensor]]:
    """Lets a tape watch what the `call` of every compiled loss returns, in a list."""
    values: list[tf.Tensor] = []

    def watched(call):
        def watch(y_true, y_pred):
            returned = call(y_true, y_pred)
            value = tf.identity(returned)
            if hasattr(returned, "_keras_mask"):
                value._keras_mask = returned._keras_mask
            tape.watch(value)
            values.append(value)
            return value

        return watch

    losses = list({id(flat.loss): flat.loss for flat in compiled._flat_losses}.values())
    for loss in losses:
        if type(loss).__call__ is not keras.losses.Loss.__call__:
            raise TypeError(f"The loss {loss.name!r} has a __call__ of its own.")
    try:
        for loss in losses:
            loss.call = watched(loss.call)
        yield values
    finally:
        for loss in losses:
            vars(loss).pop("call", None)

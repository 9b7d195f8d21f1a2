"""What each datum adds to a compiled loss."""

import typing

import keras
import tensorflow as tf

from arm_tf.stochastic_model.tensors import leaf, repeat


class DatumLoss:
    """What each datum adds to a model's loss, as a function of other outputs than the path's.

    Keras adds up the values of a loss and divides by a number that depends on the reduction, on
    masks and on weights, but not on the values; on the path it is found from values of one.

    Attributes:
      size: int, the data.
      divisor: float, the data over all replicas; what is returned are averages' addends times it.
    """

    def __init__(
        self, model: keras.Model, y: typing.Any, y_pred: typing.Any, sample_weight: typing.Any
    ) -> None:
        compiled = model._compile_loss
        self.sample_weight = sample_weight
        self.size = tf.shape(leaf(y_pred))[0]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self.divisor = tf.cast(self.size * replicas, keras.config.floatx())
        self.losses = []
        if compiled is None:
            return
        self.structure = compiled._y_pred_build_structure
        names = getattr(model, "output_names", None)
        if isinstance(y, dict) and not isinstance(y_pred, dict) and names:
            y = [y[name] for name in names]
        self.y = self._structured(keras.tree.flatten(y))
        y_pred = self._structured(keras.tree.flatten(y_pred))
        for path, loss, weight, _ in compiled._flat_losses:
            y_t, y_p = _at(path, self.y), _at(path, y_pred)
            values = _values(loss, y_t, y_p)
            if not values.shape.rank:
                raise ValueError(
                    f"The loss {loss.name!r} has one value for the batch; a StochasticModel needs "
                    "a value for each datum, shape [batch, ...]: leave out the mean over the batch."
                )
            weights = self._weights(path) if loss.reduction == "mean_with_sample_weight" else None
            ones = tf.ones_like(values)
            total = _Fixed(ones, loss.dtype, loss.reduction)(y_t, y_p, weights)
            added = _Fixed(ones, loss.dtype, None)(y_t, y_p, weights)
            scale = tf.math.divide_no_nan(tf.reduce_sum(total), tf.reduce_sum(added))
            scale *= tf.cast(self.divisor, scale.dtype)
            self.losses.append((path, loss, scale if weight is None else scale * weight))

    def _structured(self, flat: list[tf.Tensor]) -> typing.Any:
        """Flat targets or outputs in the structure that the paths of the losses lead through."""
        nested = keras.tree.is_nested(self.structure)
        return keras.tree.pack_sequence_as(self.structure, flat) if nested else flat[0]

    def _weights(self, path: tuple) -> typing.Any:
        nested = keras.tree.is_nested(self.sample_weight)
        return _at(path, self.sample_weight) if nested else self.sample_weight

    def __call__(
        self, outputs: list[tf.Tensor], samples: int, penalties: list[tf.Tensor], dtype: tf.DType
    ) -> tf.Tensor:
        """Addends of the data times the divisor, `dtype` [samples * batch].

        Args:
          outputs: of the model, flat, [samples * batch, ...].
          samples: int.
          penalties: of activities, [samples * batch] each.
          dtype: float.
        """
        addends = [tf.zeros([samples * self.size], dtype)]
        addends += [tf.cast(penalty, dtype) for penalty in penalties]
        y_pred = self._structured(outputs) if self.losses else None
        for path, loss, scale in self.losses:
            y_t, y_p = repeat(_at(path, self.y), samples), _at(path, y_pred)
            weights = self._weights(path)
            weights = None if weights is None else repeat(weights, samples)
            values = _Fixed(_values(loss, y_t, y_p), loss.dtype, None)(y_t, y_p, weights)
            values = tf.reduce_sum(tf.reshape(values, [tf.shape(values)[0], -1]), axis=1)
            addends.append(tf.cast(scale * values, dtype))
        return tf.add_n(addends)


class _Fixed(keras.losses.Loss):
    """A loss of given values, for Keras to mask, weigh and reduce."""

    def __init__(self, values: tf.Tensor, dtype: str, reduction: str | None) -> None:
        super().__init__(name="values", reduction=reduction, dtype=dtype)
        self.values = values

    def call(self, y_true: typing.Any, y_pred: typing.Any) -> tf.Tensor:
        return self.values


def _values(loss: keras.losses.Loss, y_true: typing.Any, y_pred: typing.Any) -> tf.Tensor:
    convert = lambda x: tf.cast(x, loss.dtype)
    return loss.call(*keras.tree.map_structure(convert, (y_true, y_pred)))


def _at(path: tuple, structure: typing.Any) -> typing.Any:
    for key in path:
        structure = structure[key]
    return structure

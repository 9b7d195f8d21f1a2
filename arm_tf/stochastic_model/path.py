"""One training pass of a model, and what its estimators see of the rest of the network."""

import math
import typing
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from arm_tf import bernoulli, chain, estimators
from arm_tf.expectation import GradientEstimator, at_any_precision, attach_gradient
from arm_tf.layers import StochasticBinary
from arm_tf.stochastic_model.datum_loss import DatumLoss
from arm_tf.stochastic_model.graph import Graph, Step
from arm_tf.stochastic_model.tensors import repeat, with_mask


class Path:
    """One training pass of a model: all values, with one sample of each stochastic layer.

    Args:
      model: `keras.Sequential` or a functional `keras.Model`.
      inputs: of the model.
      add_loss: called with the addends of activity regularisers of stochastic layers.

    Attributes:
      outputs: of the model, structured as its own.
    """

    def __init__(
        self,
        model: keras.Model,
        inputs: typing.Any,
        add_loss: Callable[[tf.Tensor], None],
    ) -> None:
        self.graph = Graph(model)
        symbols, outputs = model.inputs, model.outputs
        if isinstance(model, keras.Function):
            symbols, outputs = model.input, model.output
        flat = keras.Model(symbols, model.inputs)(inputs)  # checked and cast
        self.values = dict(zip(self.graph.inputs, keras.tree.flatten(flat), strict=True))
        for step in self.graph.steps:
            if step.is_sampling:
                (logits,) = (self.values[slot] for slot in step.reads.values())
                written = [_sample(step.operation, logits)]
                if step.operation.activity_regularizer:
                    loss = step.operation.activity_regularizer(written[0])
                    size = tf.cast(tf.shape(logits)[0], loss.dtype)
                    add_loss(tf.math.divide_no_nan(loss, size))
            else:
                written = step(self.values.get)
            self.values |= dict(zip(step.writes, written, strict=True))
        values = [self.values[slot] for slot in self.graph.outputs]
        outputs = keras.tree.pack_sequence_as(outputs, values)
        is_single = isinstance(outputs, (list, tuple)) and len(outputs) == 1
        self.outputs = outputs[0] if is_single else outputs

    def surrogates(self, datum_loss: DatumLoss) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Zeros to add to the loss, whose gradients are those of the estimators.

        Returns:
          The zeros, and the estimates of the gradients in all logits; two lists.
        """
        terms, estimates = [], []
        for site in self.graph.after:
            terms_of_site, estimate = self.surrogates_at(site, datum_loss)
            terms += terms_of_site
            estimates.append(estimate)
        return terms, estimates

    def surrogates_at(self, site: int, datum_loss: DatumLoss) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Those of one sampling step: for the logits, and for what its estimator learns."""
        layer, (logits,) = self._sampling(site)
        estimator, units = _estimator(layer, logits), math.prod(logits.shape[1:])
        size = tf.shape(logits)[0]
        flat = tf.reshape(logits, [size, units])
        u = layer.noise(flat, estimator.row.rows(estimator.num_samples, units))
        width = estimator.row.width(estimator.num_samples, units)
        later = {}  # noise of later stochastic layers, the same whenever f is evaluated
        for j in self.graph.after[site]:
            if self.graph.steps[j].is_sampling:
                later_layer, (later_logits,) = self._sampling(j)
                later[j] = later_layer.noise(later_logits, width)

        def f(b, sample=bernoulli.sample):  # [S, batch, V] to [S, batch]
            samples = b.shape[0]
            merged = tf.reshape(b, tf.concat([[samples * size], tf.shape(logits)[1:]], axis=0))
            values, penalties = self._continue(site, merged, samples, later, sample)
            outputs = [values(slot) for slot in self.graph.outputs]
            loss = datum_loss(outputs, samples, penalties, u.dtype)
            return tf.ensure_shape(tf.reshape(loss, [samples, size]), b.shape[:-1])

        through = chain.connected if later else lambda f: f  # else f must have a derivative
        run = lambda f, logits, u: estimator.run(through(f), logits, u)
        estimate = at_any_precision(run, f, flat, u)
        learn = lambda: estimator.update(estimate.new_parameters)
        zeros = tf.zeros_like(estimate.value)
        surrogate = attach_gradient(zeros, flat, estimate.grad_logits, learn)
        divisor = tf.cast(datum_loss.divisor, u.dtype)
        terms = [tf.math.divide_no_nan(tf.reduce_sum(surrogate), divisor)]
        if estimator.trainable_variables:
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            terms.append(estimator.learning(estimate) / replicas)  # which Keras adds up
        return terms, estimate.grad_logits

    def _sampling(self, index: int) -> tuple[StochasticBinary, list[tf.Tensor]]:
        """The layer of a sampling step, and its logits on the path."""
        layer = self.graph.steps[index].operation
        logits = [self.values[slot] for slot in self.graph.steps[index].reads.values()]
        return layer, [tf.cast(phi, layer.compute_dtype) for phi in logits]

    def _continue(
        self,
        site: int,
        b: tf.Tensor,
        samples: int,
        later: dict[int, tf.Tensor],
        sample: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    ) -> tuple[Callable[[int], tf.Tensor], list[tf.Tensor]]:
        """The steps after one that samples, for other samples of it.

        Args:
          site: index of the step.
          b: float [samples * batch, ...].
          samples: int.
          later: noise [width, batch, ...] of the sampling steps among them, by index.
          sample: function of (logits, u).

        Returns:
          Function of a slot that gives its value, and activity penalties [samples * batch].
        """
        steps = self.graph.steps
        changed: dict[int, tf.Tensor] = {}
        penalties: list[tf.Tensor] = []

        def value(slot):
            if slot not in changed and not self.graph.has_batch[slot]:
                return self.values[slot]
            return changed[slot] if slot in changed else repeat(self.values[slot], samples)

        def write(step, outputs):
            changed.update(zip(step.writes, outputs, strict=True))
            regularizer = getattr(step.operation, "activity_regularizer", None)
            if regularizer:
                each = lambda output: regularizer(output[tf.newaxis])
                penalties.extend(tf.vectorized_map(each, output) for output in outputs)

        write(steps[site], [with_mask(b, value(next(iter(steps[site].reads.values()))))])
        for j in self.graph.after[site]:
            if j in later:
                layer = steps[j].operation
                (logits,) = (value(slot) for slot in steps[j].reads.values())
                (u,) = chain.cycle([later[j]], samples)
                u = tf.broadcast_to(u, tf.concat([[samples], tf.shape(u)[1:]], axis=0))
                units = math.prod(logits.shape[1:])
                each = lambda x, units=units: tf.reshape(x, [samples, -1, units])
                own = tf.cast(tf.cast(logits, layer.compute_dtype), u.dtype)
                b_j = sample(each(own), each(u))
                b_j = tf.reshape(tf.cast(b_j, layer.compute_dtype), tf.shape(logits))
                write(steps[j], [with_mask(b_j, logits)])
            else:
                write(steps[j], steps[j](value))
                _refuse_other_losses(steps[j])
        return value, penalties


def _sample(layer: StochasticBinary, logits: tf.Tensor) -> tf.Tensor:
    """One sample of a stochastic layer, whose gradient in the logits is zero."""
    layer.check_dtype(logits)
    cast = tf.cast(logits, layer.compute_dtype)
    u = layer.noise(cast, 1)[0]
    b = tf.cast(bernoulli.sample(tf.cast(cast, u.dtype), u), cast.dtype)
    return with_mask(tf.where(tf.math.is_nan(cast), cast, b), logits)


def _estimator(layer: StochasticBinary, logits: tf.Tensor) -> GradientEstimator:
    """The layer's estimator, once it is known to suit.

    Raises:
      ValueError: it has another objective, or what it learns has another size than the units.
    """
    estimator, units = layer.gradient_estimator, math.prod(logits.shape[1:])
    if estimator.row.objective != "elbo":
        raise ValueError(
            f"{layer.estimator!r} of the layer {layer.name!r} estimates the gradient of another "
            "objective than an expected loss; take one of an expected loss, such as 'arm'."
        )
    estimators.check(layer.estimator, layer.num_samples, units)
    shapes = {name: np.shape(v) for name, v in estimator.row.initial_parameters(units).items()}
    if any(tuple(estimator.parameters[name].shape) != shape for name, shape in shapes.items()):
        raise ValueError(
            f"What {layer.estimator!r} learns needs logits [batch, units], received "
            f"{logits.shape} in the layer {layer.name!r}; put a Flatten before it."
        )
    return estimator


def _refuse_other_losses(step: Step) -> None:
    """Raises ValueError where a layer has added a loss that cannot be shared among the data."""
    layer = step.operation
    if not isinstance(layer, keras.layers.Layer):
        return
    known = sum(variable.regularizer is not None for variable in layer.trainable_variables)
    known += len(step.writes) if layer.activity_regularizer else 0
    if len(layer.losses) > known:
        raise ValueError(
            f"The layer {layer.name!r}, which depends on stochastic units, adds a loss of its "
            "own, which has no value for each datum; make it a compiled loss of an output."
        )

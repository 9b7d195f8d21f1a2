"""Zeros to add to the loss, whose gradients are those of the layers' estimators."""

import math

import numpy as np
import tensorflow as tf

from arm_tf import bernoulli, chain, estimators
from arm_tf.expectation import GradientEstimator, at_any_precision, attach_gradient
from arm_tf.layers import StochasticBinary
from arm_tf.stochastic_model.batch_loss import BatchLoss
from arm_tf.stochastic_model.path import Path
from arm_tf.stochastic_model.rest import Rest


def surrogates(
    path: Path, loss: BatchLoss, ways: dict[int, str]
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """The zeros for all sampling steps of a path.

    Args:
      path, loss: of one batch.
      ways: by which way of `Rest` to evaluate f, by the index of the step.

    Returns:
      The zeros, and the estimates of the gradients in all logits; two lists.
    """
    terms, estimates = [], []
    for site in path.graph.after:
        terms_of_site, estimate = surrogates_at(Rest(path, site, loss), ways[site])
        terms += terms_of_site
        estimates.append(estimate)
    return terms, estimates


def surrogates_at(rest: Rest, way: str) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Those of one sampling step: for the logits, and for what its estimator learns."""
    layer, logits, path = rest.layer, rest.logits, rest.path
    estimator, units = _estimator(layer, logits), math.prod(logits.shape[1:])
    flat = tf.reshape(logits, [rest.size, units])
    u = layer.noise(flat, estimator.row.rows(estimator.num_samples, units))
    width = estimator.row.width(estimator.num_samples, units)
    later = {}  # noise of later stochastic layers, the same whenever f is evaluated
    for j in path.graph.after[rest.site]:
        if path.graph.steps[j].is_sampling:
            later_layer, later_logits = path.sampling(j)
            later[j] = later_layer.noise(later_logits, width)

    def f(b, sample=bernoulli.sample):  # [S, batch, V] to [S, batch]
        return tf.ensure_shape(rest(way, b, later, sample), b.shape[:-1])

    through = chain.connected if later else lambda f: f  # else f must have a derivative
    run = lambda f, logits, u: estimator.run(through(f), logits, u)
    estimate = at_any_precision(run, f, flat, u)
    learn = lambda: estimator.update(estimate.new_parameters)
    zeros = tf.zeros_like(estimate.value)
    surrogate = attach_gradient(zeros, flat, estimate.grad_logits, learn)
    terms = [tf.math.divide_no_nan(tf.reduce_sum(surrogate), rest.divisor)]
    if estimator.trainable_variables:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        terms.append(estimator.learning(estimate) / replicas)  # which Keras adds up
    return terms, estimate.grad_logits


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

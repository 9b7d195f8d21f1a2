"""Leave-one-out estimators with a second, learned control variate made of f's derivative."""

from __future__ import annotations

import typing
from collections.abc import Callable

import numpy as np

from arm_tf.estimators import Estimate, estimator, lazy
from arm_tf.estimators.derivative import differentiate

if typing.TYPE_CHECKING:
    import tensorflow as tf

    from arm_tf import bernoulli
else:
    tf, bernoulli = lazy("tensorflow"), lazy("arm_tf.bernoulli")

_HIDDEN = 16


def double_cv_parameters(units: int) -> dict[str, float]:
    """The weight of the control variate to begin with, none; a dict."""
    return {"alpha": 0.0}


@estimator(
    "double_cv",
    summary="leave-one-out with a linear control variate from f's derivative",
    source="Titsias & Shi 2022",
    link="https://arxiv.org/abs/2111.05300",
    equation=(
        r"\frac{1}{K} \sum_k \left(g_k - \frac{1}{K-1} \sum_{j \ne k} g_j\right) (b_k - "
        r"p) - \alpha \frac{1}{K} \sum_k f'(b_k) p (1 - p), g_k = f(b_k) + "
        r"\frac{\alpha}{K-1} \sum_{j \ne k} f'(b_j)^T (b_k - p), p = \sigma(\phi)"
    ),
    min_samples=2,
    derivative=True,
    initial=double_cv_parameters,
)
def double_cv(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> Estimate:
    """Leave-one-out with a linear control variate for each sample (Titsias & Shi 2022).

    grad_logits = (1/K) sum_k (v_k - mean_{j != k} v_j) (b_k - p) - alpha mean_k(f'(b_k)) p (1 - p),
    v_k = f(b_k) + alpha (mean_{j != k} f'(b_j))^T (b_k - p),  p = sigmoid(logits).

    alpha descends on the mean squared gradient; at first it is 0, which is `loo`.

    Unbiased for every alpha; K >= 2 evaluations and derivatives of f. Arguments and results as
    in `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    b = bernoulli.sample(logits, u)
    f_b, slopes = differentiate("double_cv", f, b)
    values, probs = tf.stop_gradient(f_b), tf.sigmoid(logits)
    score = b - probs
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        alpha = parameters["alpha"]
        v = values + alpha * tf.reduce_sum(_mean_of_others(slopes) * score, axis=-1)
        signal = (v - _mean_of_others(v))[..., tf.newaxis]
        correction = alpha * tf.reduce_mean(slopes, axis=0) * probs * (1.0 - probs)
        grad_logits = tf.reduce_mean(signal * score, axis=0) - correction
        loss = tf.reduce_mean(grad_logits**2)
    return Estimate(tf.reduce_mean(f_b, axis=0), grad_logits, tape.gradient(loss, parameters))


def rodeo_parameters(units: int) -> dict[str, np.ndarray]:
    """Two networks that are zero at first."""
    rng = np.random.default_rng(0)
    return {
        f"{name}_{part}": value
        for name in ("h", "g")
        for part, value in {
            "value_kernel": rng.normal(scale=0.1, size=_HIDDEN),
            "linear_kernel": rng.normal(scale=0.1, size=_HIDDEN),
            "bias": np.zeros(_HIDDEN),
            "output": np.zeros(_HIDDEN),
        }.items()
    }


@estimator(
    "rodeo",
    summary="leave-one-out with discrete Stein operators as control variates",
    source="Shi et al. 2022",
    link="https://arxiv.org/abs/2202.09497",
    equation=(
        r"\frac{1}{K} \sum_k \left\{\left[f(b_k) - \frac{1}{K-1} \sum_{j \ne k} (f(b_j) "
        r"+ (A h_j)(b_j))\right] (b_k - \sigma(\phi)) + (A (g_k s))(b_k)\right\}, s(b) = b "
        r"- \sigma(\phi)"
    ),
    min_samples=2,
    derivative=True,
    initial=rodeo_parameters,
)
def rodeo(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> Estimate:
    """Leave-one-out with discrete Stein operators as control variates (Shi et al. 2022).

    grad_logits = (1/K) sum_k { [f(b_k) - mean_{j != k}(f(b_j) + (A h_j)(b_j))] (b_k - p)
    + (A (g_k s))(b_k) },  p = sigmoid(logits), s(b) = b - p, with the operator
    (A h)(b) = (1/V) sum_i q(flip of b_i) [h(b with unit i flipped) - h(b)],
    whose mean over q is zero. h_k(y) = mean_{j != k} H(f(b_j), f'(b_j)^T (y - b_j)), and g_k
    likewise with another network; both have one hidden layer of 16 leaky ReLU units (the paper
    has 100), an output that is zero at first, and descend on the mean squared gradient.

    Unbiased for every H; K >= 2 evaluations and derivatives of f. Arguments and results as in
    `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    b = bernoulli.sample(logits, u)
    f_b, slopes = differentiate("rodeo", f, b)
    values, probs = tf.stop_gradient(f_b), tf.sigmoid(logits)
    score = b - probs
    flip_probs = b * (1.0 - probs) + (1.0 - b) * probs
    signs = 1.0 - 2.0 * b  # change of a unit when it flips
    others = lambda x: tf.stack([tf.roll(x, r, axis=0) for r in range(1, b.shape[0])])
    other_values = others(values)  # [K-1, K, ...]
    linear = tf.reduce_sum(others(slopes) * (b - others(b)), axis=-1)
    linear_flipped = linear[..., tf.newaxis] + others(slopes) * signs  # [K-1, K, ..., V]

    def stein(name):
        """h_k(b_k), h_k at each flip of it, and (A h_k)(b_k)."""
        at_b = tf.reduce_mean(_network(parameters, name, other_values, linear), axis=0)
        at_flips = tf.reduce_mean(
            _network(parameters, name, other_values[..., tf.newaxis], linear_flipped), axis=0
        )
        change = flip_probs * (at_flips - at_b[..., tf.newaxis])
        return at_flips, tf.reduce_mean(change, axis=-1)

    with tf.GradientTape() as tape:
        tape.watch(parameters)
        _, a_h = stein("h")
        g_flips, a_g = stein("g")
        signal = values - _mean_of_others(values + a_h) + a_g
        # Flipping unit i also changes the score of that unit.
        own = flip_probs * g_flips * signs / b.shape[-1]
        grad_logits = tf.reduce_mean(signal[..., tf.newaxis] * score + own, axis=0)
        loss = tf.reduce_mean(grad_logits**2)
    return Estimate(tf.reduce_mean(f_b, axis=0), grad_logits, tape.gradient(loss, parameters))


def _network(
    parameters: dict[str, tf.Tensor], name: str, values: tf.Tensor, linear: tf.Tensor
) -> tf.Tensor:
    """One network of `rodeo`, applied to two numbers; shapes broadcast."""
    part = {key: parameters[f"{name}_{key}"] for key in ("value_kernel", "linear_kernel", "bias")}
    hidden = (
        values[..., tf.newaxis] * part["value_kernel"]
        + linear[..., tf.newaxis] * part["linear_kernel"]
        + part["bias"]
    )
    return tf.linalg.matvec(tf.nn.leaky_relu(hidden), parameters[f"{name}_output"])


def _mean_of_others(x: tf.Tensor) -> tf.Tensor:
    """mean_{j != k} x_j for each k of the leading axis."""
    return (tf.reduce_sum(x, axis=0) - x) / (x.shape[0] - 1)

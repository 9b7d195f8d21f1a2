"""REBAR and its kin: the score function with f at relaxed samples as its control variate.

The latents and relaxed samples are those of `arm_tf.estimators.relaxation`.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Callable

import numpy as np

from arm_tf.estimators import Estimate, estimator, lazy
from arm_tf.estimators.derivative import value_and_slopes
from arm_tf.estimators.relaxation import latent, latent_given_sample, relaxed_sample

if typing.TYPE_CHECKING:
    import tensorflow as tf

    from arm_tf import bernoulli
else:
    tf, bernoulli = lazy("tensorflow"), lazy("arm_tf.bernoulli")

_HIDDEN = 137


def rebar_parameters(units: int) -> dict[str, float]:
    """Weight of the control variate and temperature to begin with; a dict."""
    return {"eta": 1.0, "log_temperature": math.log(0.5)}


@estimator(
    "rebar",
    summary="score function with f at relaxed samples as control variate",
    source="Tucker et al. 2017",
    link="https://arxiv.org/abs/1703.07370",
    equation=(
        r"\frac{1}{K} \sum_k \left\{[f(b_k) - c(y_k)] (b_k - \sigma(\phi)) + \nabla_\phi "
        r"c(z_k) - \nabla_\phi c(y_k)\right\}, c(z) = \eta f(\sigma(z / \tau))"
    ),
    evaluations=lambda k, v: 3 * k,
    cost="3K",
    rows=lambda k, v: 2 * k,
    derivative=True,
    initial=rebar_parameters,
)
def rebar(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> Estimate:
    """Score function with the Concrete relaxation as control variate (Tucker et al. 2017).

    grad_logits = (1/K) sum_k [f(b_k) - c(y_k)] (b_k - sigmoid(logits)) + dc(z_k) - dc(y_k),
    c(z) = eta f(sigmoid(z / temperature)), where z = logits - log(u / (1 - u)) has the sign that
    makes b = 1[z > 0], y is z drawn anew given b from further noise v, and dc is the derivative of
    c in the logits, with u, v and b fixed; y depends on the logits, too.

    eta, at first 1, and the logarithm of the temperature, at first 1/2, descend on the mean squared
    gradient. Later layers are relaxed in c, at the same temperature and with the noise that f(b_k)
    has there, so that c is smooth and close to f.

    Unbiased for every eta and temperature; 3K evaluations of f, 2K of them relaxed, with
    derivatives. Arguments and results as in `arm_tf.estimators`; the first K rows of the noise are
    u, the others v, and the value is that of the K samples b_k.

    Raises:
      ValueError: f is not differentiable in b.
    """
    control = lambda z: _scaled_relaxation("rebar", f, z, parameters)
    return _with_control(control, f, logits, u, parameters)


def relax_parameters(units: int) -> dict[str, float | np.ndarray]:
    """Those of `rebar`, and a network that is zero at first."""
    limit = math.sqrt(6 / (units + _HIDDEN))
    rng = np.random.default_rng(0)
    return {
        **rebar_parameters(units),
        "kernel_z": rng.uniform(-limit, limit, (units, _HIDDEN)),
        "kernel_logits": rng.uniform(-limit, limit, (units, _HIDDEN)),
        "bias": np.zeros(_HIDDEN),
        "output_kernel": np.zeros(_HIDDEN),
        "output_bias": 0.0,
    }


@estimator(
    "relax",
    summary="REBAR with a network added to the control variate",
    source="Grathwohl et al. 2018",
    link="https://arxiv.org/abs/1711.00123",
    equation=(
        r"\frac{1}{K} \sum_k \left\{[f(b_k) - c(y_k)] (b_k - \sigma(\phi)) + \nabla_\phi "
        r"c(z_k) - \nabla_\phi c(y_k)\right\}, c(z) = \eta f(\sigma(z / \tau)) + r(z)"
    ),
    evaluations=lambda k, v: 3 * k,
    cost="3K",
    rows=lambda k, v: 2 * k,
    derivative=True,
    initial=relax_parameters,
)
def relax(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> Estimate:
    """REBAR with a network added to the control variate (Grathwohl et al. 2018).

    grad_logits = (1/K) sum_k [f(b_k) - c(y_k)] (b_k - sigmoid(logits)) + dc(z_k) - dc(y_k), as
    `rebar`, with c(z) = eta f(sigmoid(z / temperature)) + r(z). The network r has one hidden layer
    of 137 tanh units, which also sees the logits (held fixed in dc) and through them the input that
    they are a function of; its output is zero at first, and all parameters descend on the mean
    squared gradient.

    Unbiased for every r; 3K evaluations of f, 2K of them relaxed, with derivatives. Later layers,
    noise and value as for `rebar`. Arguments and results as in `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """

    def network(z):
        hidden = tf.tensordot(z, parameters["kernel_z"], 1) + parameters["bias"]
        hidden = tf.tanh(hidden + tf.tensordot(logits, parameters["kernel_logits"], 1))
        return tf.tensordot(hidden, parameters["output_kernel"], 1) + parameters["output_bias"]

    def control(z):
        c, c_slopes = _scaled_relaxation("relax", f, z, parameters)
        r, r_slopes = value_and_slopes("relax", network, z)
        return c + r, c_slopes + r_slopes

    return _with_control(control, f, logits, u, parameters)


@estimator(
    "rebar_coupled",
    summary="REBAR whose two latents are one, so that f is relaxed once",
    source="Tucker et al. 2017",
    link="https://arxiv.org/abs/1703.07370",
    equation=(
        r"\frac{1}{K} \sum_k \left\{[f(b_k) - c(z_k)] (b_k - \sigma(\phi)) + c'(z_k) [1 - (1 - "
        r"e^{-|z_k|}) \sigma(s_k \phi)]\right\}, c(z) = \eta f(\sigma(z / \tau)), s = 2 b - 1"
    ),
    evaluations=lambda k, v: 2 * k,
    cost="2K",
    derivative=True,
    initial=rebar_parameters,
)
def rebar_coupled(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> Estimate:
    """REBAR with the noise of its second latent taken from that of the first (Tucker et al. 2017).

    grad_logits = (1/K) sum_k [f(b_k) - c(z_k)] (b_k - sigmoid(logits))
    + c'(z_k) [1 - (1 - exp(-|z_k|)) sigmoid(s_k logits)],  s = 2b - 1,
    with c, z and b of `rebar`. Its y is z drawn anew from noise v that is uniform given b. So is
    v = u / p for b = 1 and (u - p) / (1 - p) for b = 0, with which y is z itself. The derivatives
    differ: that of z in the logits is 1, and that of y, with v and b fixed, is
    (1 - exp(-|y|)) sigmoid(s logits), since y = s softplus(m), m = softplus(s logits) - s logit(v).

    Every term of REBAR has the mean that it has with other noise v. The relaxed f is evaluated once
    in place of twice. Parameters, later layers and what is learned are those of `rebar`.

    Unbiased for every eta and temperature; 2K evaluations of f, K of them relaxed, with
    derivatives. Arguments and results as in `arm_tf.estimators`; the value is that of the K samples
    b_k.

    Raises:
      ValueError: f is not differentiable in b.
    """
    b = bernoulli.sample(logits, u)
    f_b = f(b)
    z = latent(logits, u)
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        c, c_slopes = _scaled_relaxation("rebar_coupled", f, z, parameters)
        signal = (f_b - c)[..., tf.newaxis]
        grads = signal * bernoulli.score(b, logits)
        grads += c_slopes * (1.0 - _slope_given_sample(logits, b, z))
        grad_logits = tf.reduce_mean(grads, axis=0)
        loss = tf.reduce_mean(grad_logits**2)
    return Estimate(
        tf.reduce_mean(f_b, axis=0),
        tf.stop_gradient(grad_logits),
        tf.nest.map_structure(tf.stop_gradient, tape.gradient(loss, parameters)),
    )


def _with_control(
    control: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    f: Callable[..., tf.Tensor],
    logits: tf.Tensor,
    u: tf.Tensor,
    parameters: dict[str, tf.Tensor],
) -> Estimate:
    """Estimate of `rebar` with any control(z), which returns c(z) and its derivative in z."""
    u, v = tf.split(u, 2)
    b = bernoulli.sample(logits, u)
    f_b = f(b)
    y, y_slopes = latent_given_sample(logits, b, v)
    z = tf.concat([latent(logits, u), y], axis=0)  # [2K, ..., V]
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        c, c_slopes = control(z)
        _, c_y = tf.split(c, 2)
        c_slopes_z, c_slopes_y = tf.split(c_slopes, 2)
        signal = (f_b - c_y)[..., tf.newaxis]
        grads = signal * bernoulli.score(b, logits) + c_slopes_z - c_slopes_y * y_slopes
        grad_logits = tf.reduce_mean(grads, axis=0)
        loss = tf.reduce_mean(grad_logits**2)
    return Estimate(
        tf.reduce_mean(f_b, axis=0),
        tf.stop_gradient(grad_logits),
        tf.nest.map_structure(tf.stop_gradient, tape.gradient(loss, parameters)),
    )


def _scaled_relaxation(
    name: str, f: Callable[..., tf.Tensor], z: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """eta f(sigmoid(z / temperature)) and its derivative in z."""
    temperature = tf.exp(parameters["log_temperature"])
    x = tf.sigmoid(z / temperature)
    relaxed = functools.partial(f, sample=relaxed_sample(temperature))
    f_x, slopes = value_and_slopes(name, relaxed, x)
    return parameters["eta"] * f_x, parameters["eta"] * slopes * x * (1.0 - x) / temperature


def _slope_given_sample(logits: tf.Tensor, b: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Derivative in the logits of a latent z given b, as `latent_given_sample` has it."""
    return -tf.math.expm1(-tf.abs(z)) * tf.sigmoid((2.0 * b - 1.0) * logits)

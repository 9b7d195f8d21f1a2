"""Estimators that use f's derivative at samples, at their mean, or at relaxed samples.

A sample b = 1[u < sigmoid(logits)] is also 1[z > 0] with the logistic latent
z = logits - log(u / (1 - u)), and x = sigmoid(z / temperature) is its Concrete relaxation (Maddison
et al. 2017). In a network with further stochastic layers the derivative of f reaches b through
them as well; each estimator says what replaces the samples there.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Callable

import numpy as np

from arm_tf.estimators import Estimate, Option, estimator, lazy
from arm_tf.estimators.derivative import differentiate, value_and_slopes
from arm_tf.estimators.score_function import updated_averages

if typing.TYPE_CHECKING:
    import tensorflow as tf

    from arm_tf import bernoulli
else:
    tf, bernoulli = lazy("tensorflow"), lazy("arm_tf.bernoulli")

TEMPERATURE = Option(
    "temperature", 0.5, "Temperature of relaxations, where it is not learned.", low=1e-3
)
_HIDDEN = 137


def concrete_sample(
    logits: tf.Tensor, u: tf.Tensor, temperature: float = 0.5
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """x with its own derivative, and no next parameters."""
    return _relaxed_sample(temperature)(logits, u), {}


@estimator(
    "concrete",
    summary="derivative of f at samples of the Concrete relaxation",
    source="Maddison et al. 2017",
    link="https://arxiv.org/abs/1611.00712",
    equation=(
        r"\frac{1}{K} \sum_k f'(x_k) \frac{x_k (1 - x_k)}{\tau}, x = "
        r"\sigma\left(\frac{\phi - \log(u / (1 - u))}{\tau}\right)"
    ),
    biased=True,
    derivative=True,
    relaxation=concrete_sample,
    options=(TEMPERATURE,),
)
def concrete(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, temperature: float = 0.5
) -> Estimate:
    """Derivative of f at relaxed samples (Maddison et al. 2017; Jang et al. 2017).

    grad_logits = (1/K) sum_k f'(x_k) x_k (1 - x_k) / temperature,
    x = sigmoid((logits - log(u / (1 - u))) / temperature).

    Later layers are relaxed too, at the same temperature. The gradient is that of E[f(x)], a
    biased one for E[f(b)]; the bias vanishes and the variance grows as the temperature falls.

    K evaluations of f and its derivative, all at relaxed samples. Arguments and results as in
    `arm_tf.estimators`, with the value the average of f(x_k); temperature is a positive number.

    Raises:
      ValueError: f is not differentiable in b.
    """
    sample = _relaxed_sample(temperature)
    x = sample(logits, u)
    f_x, slopes = differentiate("concrete", functools.partial(f, sample=sample), x)
    grad_logits = tf.reduce_mean(slopes * x * (1.0 - x) / temperature, axis=0)
    return Estimate(tf.reduce_mean(f_x, axis=0), grad_logits)


def st_sample(logits: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """b with the derivative p (1 - p), and no next parameters."""
    return sloping_sample(logits, u, _st_slope), {}


@estimator(
    "st",
    summary="straight-through: sampling has the derivative of its mean",
    source="Bengio et al. 2013",
    link="https://arxiv.org/abs/1308.3432",
    equation=r"\frac{1}{K} \sum_k f'(b_k) \sigma(\phi) \sigma(-\phi)",
    biased=True,
    derivative=True,
    relaxation=st_sample,
)
def st(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """Straight-through (Bengio et al. 2013): sampling has the derivative of its mean.

    grad_logits = (1/K) sum_k f'(b_k) p (1 - p),  p = sigmoid(logits).

    Later layers are sampled, and f' goes straight through them in the same way. Biased unless f is
    linear in each unit and there is no later layer; K evaluations and derivatives of f. Arguments
    and results as in `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    return straight_through("st", f, logits, u, _st_slope)


def _st_slope(logits: tf.Tensor, u: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return sigmoid_slope(logits)


def st_annealed_sample(
    logits: tf.Tensor, u: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """b with the derivative slope p (1 - p), and the next slope."""
    slope, new_parameters = _annealed(parameters)
    return sloping_sample(logits, u, slope), new_parameters


def st_annealed_parameters(units: int) -> dict[str, float]:
    """The slope to begin with, the sigmoid's own; a dict."""
    return {"slope": 1.0}


@estimator(
    "st_annealed",
    summary="straight-through through a sigmoid that grows steeper in training",
    source="Chung et al. 2017",
    link="https://arxiv.org/abs/1609.01704",
    equation=r"\frac{1}{K} \sum_k f'(b_k) s \sigma(s \phi) \sigma(-s \phi)",
    biased=True,
    derivative=True,
    relaxation=st_annealed_sample,
    initial=st_annealed_parameters,
    averages=("slope",),
)
def st_annealed(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> Estimate:
    """Straight-through with slope annealing (Chung et al. 2017).

    grad_logits = (1/K) sum_k f'(b_k) slope p (1 - p),  p = sigmoid(slope logits),
    with samples b = 1[u < sigmoid(logits)] as always; slope = min(5, 1 + 0.04 calls / 1000), for
    the paper's min(5, 1 + 0.04 epochs). The paper's units, deterministic ones, have a hard sigmoid.

    Later layers as for `st`, with this slope. Biased; K evaluations and derivatives of f.
    Arguments and results as in `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    slope, new_parameters = _annealed(parameters)
    estimate = straight_through("st_annealed", f, logits, u, slope)
    return estimate._replace(new_parameters=new_parameters)


def _annealed(
    parameters: dict[str, tf.Tensor],
) -> tuple[Callable[..., tf.Tensor], dict[str, tf.Tensor]]:
    """The derivative of a sample at the present slope, and the next slope."""
    slope = parameters["slope"]
    derivative = lambda logits, u, b: slope * sigmoid_slope(slope * logits)
    return derivative, {"slope": tf.minimum(slope + 0.04 / 1000, 5.0)}


def st_gumbel_sample(
    logits: tf.Tensor, u: tf.Tensor, temperature: float = 0.5
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """b with the derivative x (1 - x) / temperature, and no next parameters."""
    return sloping_sample(logits, u, _gumbel_slope(temperature)), {}


@estimator(
    "st_gumbel",
    summary="straight-through: sampling has the derivative of its Concrete relaxation",
    source="Jang et al. 2017",
    link="https://arxiv.org/abs/1611.01144",
    equation=(
        r"\frac{1}{K} \sum_k f'(b_k) \frac{x_k (1 - x_k)}{\tau}, x = "
        r"\sigma\left(\frac{\phi - \log(u / (1 - u))}{\tau}\right)"
    ),
    biased=True,
    derivative=True,
    relaxation=st_gumbel_sample,
    options=(TEMPERATURE,),
)
def st_gumbel(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, temperature: float = 0.5
) -> Estimate:
    """Straight-through Gumbel-softmax (Jang et al. 2017) for binary units.

    grad_logits = (1/K) sum_k f'(b_k) x_k (1 - x_k) / temperature,
    x = sigmoid((logits - log(u / (1 - u))) / temperature), b = 1[x > 1/2].

    Later layers are sampled, and f' goes through them as if they were relaxed. Biased; K
    evaluations and derivatives of f. Arguments and results as in `arm_tf.estimators`;
    temperature is a positive number.

    Raises:
      ValueError: f is not differentiable in b.
    """
    return straight_through("st_gumbel", f, logits, u, _gumbel_slope(temperature))


def _gumbel_slope(temperature: float) -> Callable[..., tf.Tensor]:
    relax_sample = _relaxed_sample(temperature)

    def slope(logits, u, b):
        x = relax_sample(logits, u)
        return x * (1.0 - x) / temperature

    return slope


def darn_sample(logits: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """b with the derivative (b - 1/2) (b - p), and no next parameters."""
    return sloping_sample(logits, u, _darn_slope), {}


@estimator(
    "darn",
    summary="1/2 estimator, exact for an f quadratic in each unit of a single layer",
    source="Gregor et al. 2014",
    link="https://arxiv.org/abs/1310.8499",
    equation=r"\frac{1}{K} \sum_k f'(b_k) (b_k - \frac{1}{2}) (b_k - \sigma(\phi))",
    biased=True,
    derivative=True,
    relaxation=darn_sample,
    aliases=("zgr", "fini2"),
)
def darn(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """The 1/2 estimator of deep autoregressive networks (Gregor et al. 2014).

    grad_logits = (1/K) sum_k f'(b_k) (b_k - 1/2) (b_k - sigmoid(logits)),
    the score function with a baseline for each unit, f(b) - f'(b) (b - 1/2): f at the unit's
    value 1/2, by its tangent.

    Exact in expectation if f is quadratic in each unit and there is no later layer, otherwise
    biased. Later layers are sampled, with (b - 1/2) (b - sigmoid(logits)) for the derivative of a
    sample in its logits. For bits it is also `reinmax` at temperature 1, and the limit of
    `st_gumbel_rao` as the temperature falls, known as ZGR. K evaluations and derivatives of f.
    Arguments and results as in `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    return straight_through("darn", f, logits, u, _darn_slope)


def _darn_slope(logits: tf.Tensor, u: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return (b - 0.5) * bernoulli.score(b, logits)


def muprop_parameters(units: int) -> dict[str, float]:
    """The moving average and the number of calls that it is over."""
    return {"mean": 0.0, "calls": 0.0}


@estimator(
    "muprop",
    summary="score function with f's first-order expansion at the mean as control variate",
    source="Gu et al. 2016",
    link="https://arxiv.org/abs/1511.05176",
    equation=(
        r"\frac{1}{K} \sum_k [f(b_k) - f(p) - f'(p)^T (b_k - p) - c] (b_k - p) + f'(p) p "
        r"(1 - p), p = \sigma(\phi)"
    ),
    evaluations=lambda k, v: k + 1,
    cost="K + 1",
    derivative=True,
    initial=muprop_parameters,
    averages=("mean", "calls"),
)
def muprop(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> Estimate:
    """Score function, less f's first-order Taylor expansion at the mean (Gu et al. 2016).

    grad_logits = (1/K) sum_k [f(b_k) - f(p) - f'(p)^T (b_k - p) - c] (b_k - p) + f'(p) p (1 - p),
    p = sigmoid(logits), with c the average over earlier calls of what it is taken from, decaying by
    0.99 a call.

    In later layers the expansion has the mean, sigmoid(logits), in place of a sample, so that its
    point and slope are the same for every b.

    Unbiased; K + 1 evaluations of f and one derivative. Arguments and results as in
    `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    b = bernoulli.sample(logits, u)
    f_b = f(b)
    probs = tf.sigmoid(logits)
    mean_field = functools.partial(f, sample=lambda logits, u: tf.sigmoid(logits))
    f_mean, slopes = differentiate("muprop", mean_field, probs[tf.newaxis])
    score = b - probs
    remainder = tf.stop_gradient(f_b - f_mean - tf.reduce_sum(slopes * score, axis=-1))
    signal = (remainder - parameters["mean"])[..., tf.newaxis]
    return Estimate(
        tf.reduce_mean(f_b, axis=0),
        tf.reduce_mean(signal * score, axis=0) + slopes[0] * probs * (1.0 - probs),
        new_parameters=updated_averages(parameters, mean=tf.reduce_mean(remainder)),
    )


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
    z = _latent(logits, u)
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


def straight_through(
    name: str,
    f: Callable[..., tf.Tensor],
    logits: tf.Tensor,
    u: tf.Tensor,
    slope: Callable[..., tf.Tensor],
) -> Estimate:
    """Estimate where sampling is said to have the derivative slope(logits, u, b), in all layers."""
    sample = functools.partial(sloping_sample, slope=slope)
    b = bernoulli.sample(logits, u)
    f_b, slopes = differentiate(name, functools.partial(f, sample=sample), b)
    grad_logits = tf.reduce_mean(slopes * slope(logits, u, b), axis=0)
    return Estimate(tf.reduce_mean(f_b, axis=0), grad_logits)


def sloping_sample(logits: tf.Tensor, u: tf.Tensor, slope: Callable[..., tf.Tensor]) -> tf.Tensor:
    """b = 1[u < sigmoid(logits)] with slope(logits, u, b) for its derivative in the logits."""
    b = bernoulli.sample(logits, u)
    line = tf.stop_gradient(slope(logits, u, b)) * logits
    return b + (line - tf.stop_gradient(line))


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
    z = tf.concat([_latent(logits, u), y], axis=0)  # [2K, ..., V]
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
    relaxed = functools.partial(f, sample=_relaxed_sample(temperature))
    f_x, slopes = value_and_slopes(name, relaxed, x)
    return parameters["eta"] * f_x, parameters["eta"] * slopes * x * (1.0 - x) / temperature


def _relaxed_sample(temperature: float | tf.Tensor) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The Concrete relaxation of `bernoulli.sample`, a function of (logits, u)."""
    return lambda logits, u: tf.sigmoid(_latent(logits, u) / temperature)


def _latent(logits: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """z = logits - log(u / (1 - u)); z > 0 where u < sigmoid(logits)."""
    return logits - _logit(u)


def latent_given_sample(
    logits: tf.Tensor, b: tf.Tensor, v: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The latent z given b, from uniform noise v, and its derivative in the logits, b held fixed.

    It is z at the noise u = v p for b = 1 and u = p + v (1 - p) for b = 0, p = sigmoid(logits);
    with s = 2b - 1 that is s softplus(softplus(s logits) - s log(v / (1 - v))).
    """
    sign = 2.0 * b - 1.0
    magnitude = tf.nn.softplus(sign * logits) - sign * _logit(v)
    return sign * tf.nn.softplus(magnitude), tf.sigmoid(magnitude) * tf.sigmoid(sign * logits)


def _slope_given_sample(logits: tf.Tensor, b: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Derivative in the logits of a latent z given b, as `latent_given_sample` has it."""
    return -tf.math.expm1(-tf.abs(z)) * tf.sigmoid((2.0 * b - 1.0) * logits)


def _logit(u: tf.Tensor) -> tf.Tensor:
    """log(u / (1 - u)), with u = 0 taken for half the spacing of TensorFlow's uniform numbers."""
    half = np.finfo(u.dtype.as_numpy_dtype).eps / 2
    u = tf.clip_by_value(u, half, 1.0 - half)
    return tf.math.log(u) - tf.math.log1p(-u)


def sigmoid_slope(logits: tf.Tensor) -> tf.Tensor:
    """The sigmoid's derivative, p (1 - p)."""
    return tf.sigmoid(logits) * tf.sigmoid(-logits)

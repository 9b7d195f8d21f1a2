"""Estimators that use f's derivative at samples, at their mean, or at relaxed samples.

A sample b = 1[u < sigmoid(logits)] is also 1[z > 0] with the logistic latent
z = logits - log(u / (1 - u)), and x = sigmoid(z / temperature) is its Concrete relaxation (Maddison
et al. 2017). In a network with further stochastic layers the derivative of f reaches b through
them as well; each estimator says what replaces the samples there.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable

import numpy as np

from arm_tf.estimators import Estimate, Option, estimator, lazy
from arm_tf.estimators.derivative import differentiate
from arm_tf.estimators.score_function import updated_averages

if typing.TYPE_CHECKING:
    import tensorflow as tf

    from arm_tf import bernoulli
else:
    tf, bernoulli = lazy("tensorflow"), lazy("arm_tf.bernoulli")

TEMPERATURE = Option(
    "temperature", 0.5, "Temperature of relaxations, where it is not learned.", low=1e-3
)


def concrete_sample(
    logits: tf.Tensor, u: tf.Tensor, temperature: float = 0.5
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """x with its own derivative, and no next parameters."""
    return relaxed_sample(temperature)(logits, u), {}


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
    sample = relaxed_sample(temperature)
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
    relax_sample = relaxed_sample(temperature)

    def slope(logits, u, b):
        x = relax_sample(logits, u)
        return x * (1.0 - x) / temperature

    return slope


def darn_sample(logits: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """b with the derivative (b - 1/2) (b - p), and no next parameters."""
    return sloping_sample(logits, u, darn_slope), {}


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
    return straight_through("darn", f, logits, u, darn_slope)


def darn_slope(logits: tf.Tensor, u: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """(b - 1/2) (b - p)."""
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


def relaxed_sample(temperature: float | tf.Tensor) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The Concrete relaxation of `bernoulli.sample`, a function of (logits, u)."""
    return lambda logits, u: tf.sigmoid(latent(logits, u) / temperature)


def latent(logits: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
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


def left_noise(logits: tf.Tensor, u: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """What is left in u when b is known: a number in [0, 1), uniform given b."""
    probs = tf.sigmoid(logits)
    above = tf.math.divide_no_nan(u - probs, tf.sigmoid(-logits))
    return tf.clip_by_value(tf.where(b > 0, tf.math.divide_no_nan(u, probs), above), 0.0, 1.0)


def _logit(u: tf.Tensor) -> tf.Tensor:
    """log(u / (1 - u)), with u = 0 taken for half the spacing of TensorFlow's uniform numbers."""
    half = np.finfo(u.dtype.as_numpy_dtype).eps / 2
    u = tf.clip_by_value(u, half, 1.0 - half)
    return tf.math.log(u) - tf.math.log1p(-u)


def sigmoid_slope(logits: tf.Tensor) -> tf.Tensor:
    """The sigmoid's derivative, p (1 - p)."""
    return tf.sigmoid(logits) * tf.sigmoid(-logits)

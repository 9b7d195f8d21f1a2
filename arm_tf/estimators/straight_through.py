"""Straight-through estimators of the last years: what a sample's derivative is taken to be.

For a bit these differ in the weight w(b, u) of f'(b) alone, as `st`, `st_gumbel` and `darn` do:
grad_logits = (1/K) sum_k f'(b_k) w(b_k, u_k). It is exact for an f linear in each unit of a single
layer if E[w] = p (1 - p), and for a quadratic one if also E[w b] = p (1 - p) / 2, which leaves
E[w | b] = (b - 1/2) (b - p), that of `darn`. Later layers are sampled, with w for the derivative of
a sample in its logits.
"""

from __future__ import annotations

import typing
from collections.abc import Callable

from arm_tf.estimators import Estimate, Option, estimator, lazy
from arm_tf.estimators.relaxation import (
    TEMPERATURE,
    latent_given_sample,
    left_noise,
    sigmoid_slope,
    sloping_sample,
    straight_through,
)

if typing.TYPE_CHECKING:
    import tensorflow as tf
else:
    tf = lazy("tensorflow")

_REINMAX_TEMPERATURE = Option(
    "reinmax_temperature", 1.0, "Of reinmax: 1 is exact for quadratic f, above is smoother.", low=1
)
_LATENTS = Option(
    "latents", 10, "Of st_gumbel_rao and reinmax_rao: latents averaged over for each sample.", low=1
)
_GAP = Option("gap", 1.0, "Of gapped_st: least distance between the two values' logits.")
_MVE_T = Option("mve_t", 1.0, "Of mve: 0 is st, without limit darn.")


def reinmax_sample(
    logits: tf.Tensor, u: tf.Tensor, reinmax_temperature: float = 1.0
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """b with the derivative 2 q (1 - q) - p (1 - p) / 2, and no next parameters."""
    return sloping_sample(logits, u, _reinmax_slope(reinmax_temperature)), {}


@estimator(
    "reinmax",
    summary="straight-through of second order by Heun's method; at temperature 1 it is darn",
    source="Liu et al. 2023",
    link="https://arxiv.org/abs/2304.08612",
    equation=(
        r"\frac{1}{K} \sum_k f'(b_k) \left[2 q_k (1 - q_k) - \frac{p (1 - p)}{2}\right], q = "
        r"\frac{\sigma(\phi / \tau) + b}{2}, p = \sigma(\phi)"
    ),
    biased=True,
    derivative=True,
    relaxation=reinmax_sample,
    options=(_REINMAX_TEMPERATURE,),
)
def reinmax(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, reinmax_temperature: float = 1.0
) -> Estimate:
    """ReinMax (Liu et al. 2023, algorithm 2) for binary units.

    grad_logits = (1/K) sum_k f'(b_k) [2 q_k (1 - q_k) - p (1 - p) / 2],
    q = (sigmoid(logits / temperature) + b) / 2,  p = sigmoid(logits).

    Of two classes with the logits (phi, 0) the softmax has the Jacobian p (1 - p), which is where
    the brackets come from. At temperature 1 they are (b - 1/2) (b - p), so that it is `darn`,
    exact for an f quadratic in each unit of a single layer. Above 1, sigmoid(logits / temperature)
    is closer to 1/2, so that f' at an unlikely value has less weight and at a likely one more: less
    variance, and a bias even for a linear f. As in the authors' program, temperatures below 1 are
    refused.

    K evaluations and derivatives of f. Arguments and results as in `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    return straight_through("reinmax", f, logits, u, _reinmax_slope(reinmax_temperature))


def _reinmax_slope(temperature):
    def slope(logits, u, b):
        sign = 2.0 * b - 1.0
        other = 0.5 * tf.sigmoid(-sign * logits / temperature)  # that of the value not drawn
        return 2.0 * other * (1.0 - other) - 0.5 * sigmoid_slope(logits)

    return slope


def mve_sample(
    logits: tf.Tensor, u: tf.Tensor, mve_t: float = 1.0
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """b with the derivative of `mve`, and no next parameters."""
    return sloping_sample(logits, u, _mve_slope(mve_t)), {}


@estimator(
    "mve",
    summary="straight-through of least variance between st (t = 0) and darn (t without limit)",
    source="Hooper & Shekhovtsov 2026",
    link="https://openreview.net/forum?id=5LZQfHUVER",
    equation=(
        r"\frac{1}{K} \sum_k f'(b_k) p (1 - p) \frac{1 + t |b_k - p|}{1 + 2 t p (1 - p)}, p = "
        r"\sigma(\phi)"
    ),
    biased=True,
    derivative=True,
    relaxation=mve_sample,
    options=(_MVE_T,),
)
def mve(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, mve_t: float = 1.0
) -> Estimate:
    """The minimum-variance family of straight-through estimators (Hooper & Shekhovtsov 2026).

    grad_logits = (1/K) sum_k f'(b_k) p (1 - p) (1 + t |b_k - p|) / (1 + 2 t p (1 - p)),
    p = sigmoid(logits). Since E|b - p| = 2 p (1 - p), the weights have the mean p (1 - p).

    Exact for an f linear in each unit of a single layer; t = 0 is `st`, and as t grows it becomes
    `darn`. The default t = 1 is a choice of this package. K evaluations and derivatives of f.
    Arguments and results as in `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    return straight_through("mve", f, logits, u, _mve_slope(mve_t))


def _mve_slope(t):
    def slope(logits, u, b):
        mean = sigmoid_slope(logits)
        distance = tf.sigmoid((1.0 - 2.0 * b) * logits)  # |b - p|
        return mean * (1.0 + t * distance) / (1.0 + 2.0 * t * mean)

    return slope


def gapped_st_sample(
    logits: tf.Tensor, u: tf.Tensor, temperature: float = 0.5, gap: float = 1.0
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """b with the derivative of `gapped_st`, and no next parameters."""
    return sloping_sample(logits, u, _gapped_slope(temperature, gap)), {}


@estimator(
    "gapped_st",
    summary="straight-through where a fixed gap between logits replaces Gumbel noise",
    source="Fan et al. 2022",
    link="https://arxiv.org/abs/2206.07235",
    equation=(
        r"\frac{1}{K} \sum_k f'(b_k) \frac{x_k (1 - x_k)}{\tau}, x = \sigma\left(\frac{\max(s "
        r"\phi, g)}{\tau}\right), s = 2 b - 1"
    ),
    biased=True,
    derivative=True,
    relaxation=gapped_st_sample,
    options=(TEMPERATURE, _GAP),
)
def gapped_st(
    f: Callable[..., tf.Tensor],
    logits: tf.Tensor,
    u: tf.Tensor,
    temperature: float = 0.5,
    gap: float = 1.0,
) -> Estimate:
    """Gapped straight-through (Fan et al. 2022, GST-1.0 where gap = 1) for binary units.

    grad_logits = (1/K) sum_k f'(b_k) x_k (1 - x_k) / temperature,
    x = sigmoid(max((2b - 1) logits, gap) / temperature).

    The paper moves the class drawn up to the greatest logit, and the others down until they lie
    `gap` below it. Of two classes with the logits (phi, 0) the drawn one then leads by |phi| or
    gap, whichever is more, if it was ahead, and by gap if it was not: by max((2b - 1) phi, gap).
    The moves are constants. Where `st_gumbel` has a random latent of the sign that b says, this has
    one that b determines.

    K evaluations and derivatives of f. Arguments and results as in `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    return straight_through("gapped_st", f, logits, u, _gapped_slope(temperature, gap))


def _gapped_slope(temperature, gap):
    def slope(logits, u, b):
        lead = tf.maximum((2.0 * b - 1.0) * logits, gap)
        return sigmoid_slope(lead / temperature) / temperature

    return slope


def st_gumbel_rao_sample(
    logits: tf.Tensor, u: tf.Tensor, temperature: float = 0.5, latents: int = 10
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """b with the derivative of `st_gumbel_rao`, and no next parameters."""
    return sloping_sample(logits, u, _gumbel_rao_slope(temperature, latents)), {}


@estimator(
    "st_gumbel_rao",
    summary="st_gumbel averaged over latents given the sample",
    source="Paulus et al. 2021",
    link="https://arxiv.org/abs/2010.04838",
    equation=(
        r"\frac{1}{K} \sum_k f'(b_k) \frac{1}{M} \sum_m \frac{x_{km} (1 - x_{km})}{\tau}, x = "
        r"\sigma(z / \tau), z \sim p(z | b)"
    ),
    biased=True,
    derivative=True,
    relaxation=st_gumbel_rao_sample,
    options=(TEMPERATURE, _LATENTS),
)
def st_gumbel_rao(
    f: Callable[..., tf.Tensor],
    logits: tf.Tensor,
    u: tf.Tensor,
    temperature: float = 0.5,
    latents: int = 10,
) -> Estimate:
    """Rao-Blackwellised straight-through Gumbel-softmax (Paulus et al. 2021) for binary units.

    grad_logits = (1/K) sum_k f'(b_k) (1/M) sum_m x_km (1 - x_km) / temperature,
    x_km = sigmoid(z_km / temperature), with M = `latents` logistic latents z_km given b_k.

    The mean is that of `st_gumbel`, which it is for M = 1; given b, the average of M latents of one
    distribution has no more variance than one of them. The paper's latents are independent. Here
    they come from the noise that is left in u once b is known, v = u / p for b = 1 and
    (u - p) / (1 - p) for b = 0, which is uniform given b, at v, v + 1/M, v + 2/M, … modulo 1: no
    further noise, and less variance left. As the temperature falls the average tends to the weight
    of `darn`, which as such a limit is known as ZGR.

    K evaluations and derivatives of f. Arguments and results as in `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    slope = _gumbel_rao_slope(temperature, latents)
    return straight_through("st_gumbel_rao", f, logits, u, slope)


def _gumbel_rao_slope(temperature, latents):
    def slope(logits, u, b):
        return _mean_slope(logits, b, left_noise(logits, u, b), temperature, latents)

    return slope


def reinmax_rao_sample(
    logits: tf.Tensor, u: tf.Tensor, temperature: float = 0.5, latents: int = 10
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """b with the derivative of `reinmax_rao`, and no next parameters."""
    return sloping_sample(logits, u, _reinmax_rao_slope(temperature, latents)), {}


@estimator(
    "reinmax_rao",
    summary="ReinMax with Gumbel-Rao in place of its first term's derivative",
    source="Wang & Bui 2026",
    link="https://arxiv.org/abs/2603.08257",
    equation=(
        r"\frac{1}{K} \sum_k f'(b_k) \left[\frac{2}{M} \sum_m \frac{x_{km} (1 - x_{km})}{\tau} - "
        r"\frac{p (1 - p)}{2}\right], x = \sigma(z / \tau), z \sim p(z | b, \frac{p + b}{2})"
    ),
    biased=True,
    derivative=True,
    relaxation=reinmax_rao_sample,
    options=(TEMPERATURE, _LATENTS),
)
def reinmax_rao(
    f: Callable[..., tf.Tensor],
    logits: tf.Tensor,
    u: tf.Tensor,
    temperature: float = 0.5,
    latents: int = 10,
) -> Estimate:
    """ReinMax-Rao (Wang & Bui 2026) for binary units.

    grad_logits = (1/K) sum_k f'(b_k) [(2/M) sum_m x_km (1 - x_km) / temperature - p (1 - p) / 2],
    x_km = sigmoid(z_km / temperature), p = sigmoid(logits), with M = `latents` latents z_km given
    b_k, as for `st_gumbel_rao`, but of a unit whose probability is (p + b_k) / 2.

    In `reinmax` the first term is twice the Jacobian of the softmax at that probability; here it is
    twice the mean Jacobian of its relaxation, smaller at low temperatures. Biased also for a linear
    f; the derivative given b varies with the latents, that of `reinmax` does not. K evaluations and
    derivatives of f. Arguments and results as in `arm_tf.estimators`.

    Raises:
      ValueError: f is not differentiable in b.
    """
    return straight_through("reinmax_rao", f, logits, u, _reinmax_rao_slope(temperature, latents))


def _reinmax_rao_slope(temperature, latents):
    def slope(logits, u, b):
        sign = 2.0 * b - 1.0
        # The logit of (p + b) / 2, that is of (1 + p) / (1 - p) or its like at -logits.
        moved = sign * (tf.nn.softplus(sign * logits) + tf.math.log1p(tf.sigmoid(sign * logits)))
        first = _mean_slope(moved, b, left_noise(logits, u, b), temperature, latents)
        return 2.0 * first - 0.5 * sigmoid_slope(logits)

    return slope


def _mean_slope(logits, b, v, temperature, latents):
    """Mean of x (1 - x) / temperature over equally spaced latents given b, one of them at v."""
    shifts = tf.reshape(tf.range(latents, dtype=v.dtype) / latents, [latents] + [1] * v.shape.rank)
    z, _ = latent_given_sample(logits, b, tf.math.floormod(v + shifts, 1.0))
    return tf.reduce_mean(sigmoid_slope(z / temperature), axis=0) / temperature

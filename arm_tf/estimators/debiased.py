"""Straight-through made unbiased: one unit is flipped, and what its bias is there is taken away."""

from __future__ import annotations

import typing
from collections.abc import Callable

from arm_tf.estimators import Estimate, Option, estimator, lazy
from arm_tf.estimators.derivative import value_and_slopes_through
from arm_tf.estimators.enumeration import one_unit
from arm_tf.estimators.relaxation import darn_slope, left_noise, sloping_sample

if typing.TYPE_CHECKING:
    import tensorflow as tf

    from arm_tf import bernoulli
else:
    tf, bernoulli = lazy("tensorflow"), lazy("arm_tf.bernoulli")

_FLIPS = Option(
    "flips", 1, "Of debiased: samples that are evaluated again with a unit flipped.", low=1
)
_ROTATED = Option(
    "rotated",
    True,
    "Of debiased: whether the samples' noise is one row rotated, or rows of their own.",
)


@estimator(
    "debiased",
    summary="the ½-estimator, made unbiased by one flip",
    equation=(
        r"\frac{1}{K} \sum_k f'(b_k) (b_k - \frac{1}{2}) (b_k - p) + V 1[v = j] p (1 - p) "
        r"\left\{f(b^1) - f(b^0) - \frac{1}{2} [f'(b^1) + f'(b^0)]\right\}, p = \sigma(\phi), "
        r"b^i = b_1 \text{ with unit } j \text{ at } i"
    ),
    evaluations=lambda k, v, flips=1: k + flips,
    cost="K + 1",
    rows=lambda k, v: k + 1,
    derivative=True,
    options=(_FLIPS, _ROTATED),
)
def debiased(
    f: Callable[..., tf.Tensor],
    logits: tf.Tensor,
    u: tf.Tensor,
    flips: int = 1,
    rotated: bool = True,
) -> Estimate:
    """The 1/2 estimator, made unbiased by one flip (of this package).

    grad_logits_i = (1/K) sum_k S_i(b_k)
                    + V 1[i = j] {p q [f(b^1) - f(b^0)] - p S_i(b^1) - q S_i(b^0)},
    p = sigmoid(logits), q = 1 - p, with j one of the V units, all alike, and b^1, b^0 the first
    sample with unit j at 1 and at 0. Given the other units, p q [f(b^1) - f(b^0)] has the mean of
    the gradient in logit j, and p S_j(b^1) + q S_j(b^0) that of S_j. So what is added takes away
    the bias of S, whatever S is: S = 0 makes `bitflip`, and here S is `darn`,
    S(b) = f'(b) (b - 1/2) (b - p) (Gregor et al. 2014), for which the braces are

      p q {f(b^1) - f(b^0) - [f'(b^1) + f'(b^0)] / 2},

    the error of the trapezoid rule along one unit. It is of third order in f and next to nothing
    where f is smooth, so that V, the price of one unit for all, costs little.

    In a network the first sample b and its flip b' are continued with one draw of the later
    layers' noise. A few later units jump with the flip, D = b'_later - b_later, and what these
    jumps do to f would come into the braces times V. With c and c' the derivatives of f in a later
    unit at b and b' (which go on through the layers after it as those of `darn` do), f(b') - f(b)
    is therefore taken less half the sum over all later units of

      c (D - E[D | b_later]) + c' (D - E[D | b'_later]),

    which has the mean zero: given both inputs of its layer and b_later, c depends on noise of
    layers after it alone, and D on that of its own. Units drawn with p_later and p'_later by one
    number have E[D | b_later = 1] = min(p'_later - p_later, 0) / p_later,
    E[D | b_later = 0] = max(p'_later - p_later, 0) / (1 - p_later), and alike from the other side.
    What is left is the trapezoid rule's error again.

    Unbiased; K evaluations of f and its derivative, and one more for each flip. With several
    `flips` their braces are averaged, of the first sample, the second, and so on, in units evenly
    apart. `rotated` samples have the noise (u + k / K) mod 1, k = 0 … K - 1, in all layers: each
    has its law, and together they are spread evenly. Arguments and results as in
    `arm_tf.estimators`; the last row of the noise says which unit flips, and the value is that of
    the K samples b_k.

    Raises:
      ValueError: f is not differentiable in b.
    """
    return without_bias("debiased", f, logits, u, darn_slope, flips, rotated)


def without_bias(
    name: str,
    f: Callable[..., tf.Tensor],
    logits: tf.Tensor,
    u: tf.Tensor,
    slope: Callable[..., tf.Tensor],
    flips: int = 1,
    rotated: bool = True,
) -> Estimate:
    """The estimate of `debiased`, with S of any sample's derivative slope(logits, u, b).

    Args:
      name: of the estimator, for the error.
      f, logits, u: as for `debiased`.
      slope: as for `arm_tf.estimators.relaxation.straight_through`, whose estimate is S.
      flips, rotated: of `debiased`.
    """
    num_samples, units = u.shape[0] - 1, logits.shape[-1]
    firsts = [m % num_samples for m in range(flips)]  # the samples that flips are of
    pairs = lambda x: (tf.gather(x, firsts), x[num_samples:])  # of samples, and of their flips
    own = lambda u: _rotated(u, num_samples, num_samples + flips) if rotated else u
    u, choice = own(u[:-1])[:num_samples], u[-1:, ..., 0]
    flip = one_unit(_rotated(choice, flips, flips), units)  # [flips, ..., V]
    b = bernoulli.sample(logits, u)
    first, first_u = tf.gather(b, firsts), tf.gather(u, firsts)
    flipped_u = tf.where(flip > 0, _noise_of_other(logits, first_u, first), first_u)
    u = tf.concat([u, flipped_u], axis=0)  # [K + flips, ..., V]
    b = tf.concat([b, tf.abs(first - flip)], axis=0)
    later: list[tf.Tensor] = []
    later_logits: list[tf.Tensor] = []

    def sample(logits, u):
        later_logits.append(logits)
        later.append(sloping_sample(logits, own(u), slope))
        return later[-1]

    f_b, slopes, later_slopes = value_and_slopes_through(
        name, lambda b: f(b, sample=sample), b, later
    )
    fields = slopes * slope(logits, u, b)  # S
    before, after = pairs(f_b)
    rise = after - before
    for c, b_later, phi in zip(later_slopes, later, later_logits, strict=True):
        rise -= _expected_rise_of_jumps(pairs(c), pairs(b_later), pairs(phi))
    field, field_flipped = pairs(fields)
    up = 1.0 - 2.0 * first  # how a unit changes that flips
    chance, other = tf.sigmoid(-up * logits), tf.sigmoid(up * logits)
    lack = chance * other * up * rise[..., tf.newaxis] - chance * field - other * field_flipped
    grad_logits = tf.reduce_mean(fields[:num_samples], axis=0)
    grad_logits += units * tf.reduce_mean(flip * lack, axis=0)
    return Estimate(tf.reduce_mean(f_b[:num_samples], axis=0), grad_logits)


def _expected_rise_of_jumps(slopes, b, logits):
    """Half of sum_v c (D - E[D | b]) + c' (D - E[D | b']) over the units of a later layer.

    Args:
      slopes, b, logits: those of samples and of their flips, pairs of [flips, ..., V].

    Returns:
      float [flips, ...], of mean zero.
    """
    jump = b[1] - b[0]
    forth = slopes[0] * (jump - _mean_jump(b[0], logits[0], logits[1]))
    back = slopes[1] * (jump + _mean_jump(b[1], logits[1], logits[0]))
    return 0.5 * tf.reduce_sum(forth + back, axis=-1)


def _mean_jump(b, logits, others):
    """E[b' - b | b], where b' has the same noise and other logits."""
    change = tf.sigmoid(others) - tf.sigmoid(logits)
    jump = tf.where(b > 0, tf.minimum(change, 0.0), tf.maximum(change, 0.0))
    return tf.math.divide_no_nan(jump, tf.sigmoid((2.0 * b - 1.0) * logits))


def _rotated(u, size, rows):
    """(u + k / size) mod 1 of the first row of noise, for k = 0 … size - 1 and in turn again."""
    u = u[:1]
    if size == 1:
        return tf.repeat(u, rows, axis=0)
    shifts = tf.constant([k % size / size for k in range(rows)], u.dtype)
    return tf.math.floormod(u + tf.reshape(shifts, [rows] + [1] * (u.shape.rank - 1)), 1.0)


def _noise_of_other(logits, u, b):
    """Noise with which a unit drawn as b has its other value, and the same noise left given it."""
    left, probs = left_noise(logits, u, b), tf.sigmoid(logits)
    return tf.where(b > 0, probs + left * tf.sigmoid(-logits), left * probs)

"""Estimators that try both values of every unit, or of one at random, or all vectors."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable

import numpy as np

from arm_tf.estimators import Estimate, estimator, lazy

if typing.TYPE_CHECKING:
    import tensorflow as tf

    from arm_tf import bernoulli
else:
    tf, bernoulli = lazy("tensorflow"), lazy("arm_tf.bernoulli")


@estimator(
    "legrad",
    summary="local expectation gradients: f with each unit flipped",
    source="Titsias & Lázaro-Gredilla 2015",
    link="https://arxiv.org/abs/1503.01494",
    equation=(
        r"\frac{1}{K} \sum_k p (1 - p) (2 b_k - 1) [f(b_k) - f(b_k \text{ with unit } v "
        r"\text{ flipped})], p = \sigma(\phi)"
    ),
    evaluations=lambda k, v: k * (v + 1),
    cost="K(V + 1)",
    width=lambda k, v: k * (v + 1),
    max_units=1000,
    aliases=("indecater",),
)
def legrad(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """Local expectation gradients (Titsias & Lázaro-Gredilla 2015).

    grad_logits_i = (1/K) sum_k p_i (1 - p_i) [f(b_k, b_i = 1) - f(b_k, b_i = 0)],
    p = sigmoid(logits), b_k = 1[u_k < p]; that is, with all i at once,
    grad_logits = p (1 - p) (2b - 1) [f(b) - f(b with unit i flipped)].

    Unbiased; K (V + 1) evaluations of f. In a network with further stochastic layers every one
    of them is continued with noise of its own (`ram` shares it). For units that are independent
    given the logits it is IndeCateR (De Smet et al. 2023), which takes the mean over K draws of the
    other units for each value of one; `legrad_fresh` draws them anew for each unit. Arguments and
    results as in `arm_tf.estimators`; the value is that of the K samples b_k.
    """
    b = bernoulli.sample(logits, u)  # [K, ..., V]
    f_values = f(_with_flips(b))
    f_b = f_values[: b.shape[0]]
    slopes = (2.0 * b - 1.0) * _less_flips(f_values, b)
    grads = tf.sigmoid(logits) * tf.sigmoid(-logits) * slopes
    return Estimate(tf.reduce_mean(f_b, axis=0), tf.reduce_mean(grads, axis=0))


@estimator(
    "legrad_fresh",
    summary="LeGrad with samples of the other units drawn anew for each unit",
    source="De Smet et al. 2023",
    link="https://arxiv.org/abs/2311.12569",
    equation=(
        r"\frac{1}{K} \sum_k p (1 - p) [f(b_{v,k}, b_v = 1) - f(b_{v,k}, b_v = 0)], "
        r"p = \sigma(\phi)"
    ),
    evaluations=lambda k, v: 2 * k * v,
    cost="2KV",
    rows=lambda k, v: k * v,
    width=lambda k, v: 2 * k * v,
    max_units=1000,
)
def legrad_fresh(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """IndeCateR with independent samples for every unit (De Smet et al. 2023).

    grad_logits_i = (1/K) sum_k p_i (1 - p_i) [f(b_ik, b_i = 1) - f(b_ik, b_i = 0)],
    p = sigmoid(logits), b_ik = 1[u_ik < p] drawn for unit i alone.

    A unit's estimate has the distribution that it has in `legrad`, for twice the evaluations; those
    of different units are independent, so that in weights that several units share the variance
    is less where theirs in `legrad` are positively correlated. Unbiased; 2KV evaluations of f.
    Arguments and results as in `arm_tf.estimators`; row k V + i of the noise is u_ik, and the value
    is that of all b_ik.
    """
    b = bernoulli.sample(logits, u)  # [K V, ..., V]
    rows, units = b.shape[0], b.shape[-1]
    own = tf.tile(tf.eye(units, dtype=b.dtype), [rows // units, 1])
    own = tf.reshape(own, [rows] + [1] * (b.shape.rank - 2) + [units])
    f_one, f_zero = tf.split(f(tf.concat([tf.maximum(b, own), b * (1.0 - own)], axis=0)), 2)
    f_b = tf.where(tf.reduce_sum(b * own, axis=-1) > 0.5, f_one, f_zero)
    difference = tf.reshape(f_one - f_zero, tf.concat([[-1, units], tf.shape(f_one)[1:]], axis=0))
    slope = tf.einsum("v...->...v", tf.reduce_mean(difference, axis=0))
    grads = tf.sigmoid(logits) * tf.sigmoid(-logits) * slope
    return Estimate(tf.reduce_mean(f_b, axis=0), grads)


@estimator(
    "ram",
    summary="LeGrad whose flips share the noise of a network's later layers",
    source="Tokui & Sato 2017",
    link="https://proceedings.mlr.press/v70/tokui17a.html",
    equation=(
        r"\frac{1}{K} \sum_k p (1 - p) (2 b_k - 1) [f(b_k) - f(b_k \text{ with unit } v "
        r"\text{ flipped})], p = \sigma(\phi)"
    ),
    evaluations=lambda k, v: k * (v + 1),
    cost="K(V + 1)",
    max_units=1000,
)
def ram(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """Reparameterisation and marginalisation (Tokui & Sato 2017).

    grad_logits = (1/K) sum_k p (1 - p) (2b_k - 1) [f(b_k) - f(b_k with unit i flipped)].

    Of a single layer this is `legrad`, which it calls. The two differ in a chain of layers
    (`arm_tf.chain.path_expectation`), by the `width` of their rows: here it is K, so that a sample
    and all its flips are continued with one draw of the later layers' noise, most of which cancels
    in the difference. An f that draws noise of its own draws as for `legrad`.

    Unbiased; K (V + 1) evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """
    return legrad(f, logits, u)


@estimator(
    "psa",
    summary="LeGrad through layers: later units flip too, weighed by their change of probability",
    source="Shekhovtsov et al. 2020",
    link="https://arxiv.org/abs/2006.03143",
    equation=(
        r"\frac{1}{K} \sum_k p (1 - p) d_k, d = (2 b - 1) \{f(b) - f(b^{(v)}) + \sum_i "
        r"[\sigma(\phi_i(b)) - \sigma(\phi_i(b^{(v)}))] d_i\}, p = \sigma(\phi), b^{(v)} = b "
        r"\text{ with unit } v \text{ flipped}, i \text{ in later layers}"
    ),
    evaluations=lambda k, v: k * (v + 1),
    cost="K(V + 1)",
    through_layers=True,
    max_units=1000,
)
def psa(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """Path sample-analytic gradient (Shekhovtsov, Yanush & Flach 2020).

    grad_logits = (1/K) sum_k p (1 - p) d_k,  p = sigmoid(logits), where d_v of a unit in any layer
    stands for E[f | b_v = 1] - E[f | b_v = 0]:

      d_v = (2b_v - 1) {f(b) - f(b with v flipped)
                        + sum_i [sigmoid(phi_i(b)) - sigmoid(phi_i(b with v flipped))] d_i},

    i over the units of later layers, phi_i their logits, all other samples of the path staying as
    they are. What a flip does to the later layers is taken as the sum of what it does to each of
    their units alone, the rest of them as sampled, which leaves a bias where it changes several at
    once. In return nothing is sampled twice, and the variance was below that of `ram` wherever it
    was measured. With f and the probabilities linearised in b,
    d = f'(b) + sum_i p_i (1 - p_i) (d phi_i / d b) d_i, it is `st`. A single layer has no bias: it
    is `legrad`.

    The authors take the linear maps between layers as known; here f is called with every unit of a
    later layer flipped too, so that a layer costs K (V + 1) evaluations for itself and for each
    layer after it. Arguments and results as in `arm_tf.estimators`.
    """
    samples = [bernoulli.sample(logits, u)]
    stages: list[tuple[tf.Tensor, list[tf.Tensor]]] = []
    while len(stages) < len(samples):
        stages.append(_flip_layer(f, samples, len(stages)))
    slopes: list[tf.Tensor] = []  # d, the last layer's first
    for b, (f_values, later_logits) in zip(reversed(samples), reversed(stages), strict=True):
        difference = _less_flips(f_values, b)
        for phi, later_slopes in zip(reversed(later_logits), slopes, strict=True):
            change = _less_flips(tf.sigmoid(phi), b)  # [K, ..., V, V of the later layer]
            difference += tf.linalg.matvec(change, later_slopes)
        slopes.append((2.0 * b - 1.0) * difference)
    f_b = stages[0][0][: u.shape[0]]
    grads = tf.sigmoid(logits) * tf.sigmoid(-logits) * slopes[-1]
    return Estimate(tf.reduce_mean(f_b, axis=0), tf.reduce_mean(grads, axis=0))


def _flip_layer(f, samples, t):
    """f at a path, and with each unit of its layer t flipped, rows as those of `_with_flips`.

    Args:
      f: as in `arm_tf.estimators`.
      samples: those of the layers in their order, [K, ..., V]; what later layers draw is added.
      t: int.

    Returns:
      f [K (V + 1), ...], and a list of the later layers' logits [K (V + 1), ..., V].
    """
    num_samples, copies = samples[0].shape[0], samples[t].shape[-1] + 1
    layers, later_logits = itertools.count(1), []

    def rows_of(layer):
        b = samples[layer]
        return _with_flips(b) if layer == t else tf.tile(b, [copies] + [1] * (b.shape.rank - 1))

    def sample(logits, u):
        layer = next(layers)
        if layer == len(samples):
            samples.append(bernoulli.sample(logits[:num_samples], u[:num_samples]))
        if layer > t:
            later_logits.append(logits)
        return rows_of(layer)

    return f(rows_of(0), sample=sample), later_logits


@estimator(
    "exact",
    summary="enumeration of all vectors of a layer",
    source="Williams 1992",
    link="https://doi.org/10.1007/BF00992696",
    equation=(
        r"\sum_b q(b) f(b) (b - \sigma(\phi)), q(b) = \prod_{v=1}^V \sigma(\phi_v)^{b_v} "
        r"\sigma(-\phi_v)^{1 - b_v}"
    ),
    evaluations=lambda k, v: 2**v,
    cost="2^V",
    width=lambda k, v: 2**v,
    max_units=12,
)
def exact(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """Enumeration of all 2^V vectors (by definition; Williams 1992 for the score form).

    grad_logits = sum_b q(b) f(b) (b - sigmoid(logits)),  q(b) = prod_v Bernoulli(b_v).

    No noise, no variance, 2^V evaluations of f. In a network with further stochastic layers these
    are sampled, and the estimate is unbiased. Arguments and results as in `arm_tf.estimators`;
    the value is sum_b q(b) f(b).
    """
    units = logits.shape[-1]
    vectors = np.array(list(itertools.product([0, 1], repeat=units)))
    b = tf.constant(vectors, logits.dtype)  # [2^V, V]
    b = tf.reshape(b, [len(vectors)] + [1] * (logits.shape.rank - 1) + [units])
    b = b + tf.zeros_like(logits)  # [2^V, ..., V]
    probability = tf.where(b > 0.5, tf.sigmoid(logits), tf.sigmoid(-logits))
    weighted = tf.reduce_prod(probability, axis=-1) * f(b)
    score = bernoulli.score(b, logits)
    return Estimate(
        tf.reduce_sum(weighted, axis=0), tf.reduce_sum(weighted[..., tf.newaxis] * score, axis=0)
    )


@estimator(
    "bitflip",
    summary="LeGrad for one unit at random",
    source="Kunes et al. 2022",
    link="https://arxiv.org/abs/2208.06124",
    equation=(
        r"\frac{1}{K} \sum_k V 1[v = j_k] p (1 - p) (2 b_k - 1) [f(b_k) - f(b_k \text{ with "
        r"unit } j_k \text{ flipped})], p = \sigma(\phi)"
    ),
    evaluations=lambda k, v: 2 * k,
    cost="2K",
    rows=lambda k, v: 2 * k,
)
def bitflip(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """bitflip-1, LeGrad for one unit at random (Kunes et al. 2022).

    grad_logits_i = (1/K) sum_k V 1[i = j_k] p_i (1 - p_i) (2b_k - 1) [f(b_k) - f(b_k with unit j_k
    flipped)],  p = sigmoid(logits), b_k = 1[u_k < p], j_k one of the V units, all alike.

    Its variance vanishes with p (1 - p), and grows with V. Unbiased, since given b_k it averages to
    `legrad` over j_k; 2K evaluations of f. In a network a sample and its flip are continued with
    one draw of the later layers' noise. Arguments and results as in `arm_tf.estimators`; the first
    K rows of the noise are u, the first unit of the others says which unit flips, and the value is
    that of the K samples b_k.
    """
    u, chosen = tf.split(u, 2)
    b = bernoulli.sample(logits, u)
    flip = one_unit(chosen[..., 0], chosen.shape[-1])
    f_b, f_flipped = tf.split(f(tf.concat([b, tf.abs(b - flip)], axis=0)), 2)
    grads = _flip_gradient(logits, b, flip, f_b - f_flipped)
    return Estimate(tf.reduce_mean(f_b, axis=0), tf.reduce_mean(grads, axis=0))


@estimator(
    "ugc",
    summary="DisARM, with bitflip-1 for units close to 0 or 1",
    source="Kunes et al. 2022",
    link="https://arxiv.org/abs/2208.06124",
    equation=(
        r"\frac{1}{K} \sum_k g_k, g \text{ of bitflip where } \min(\sigma(\phi), \sigma(-\phi)) "
        r"< \frac{1}{2 V}, \text{ else of disarm}"
    ),
    evaluations=lambda k, v: 3 * k,
    cost="3K",
    rows=lambda k, v: 2 * k,
    width=lambda k, v: 2 * k,
)
def ugc(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """Unbiased gradient variance clipping (Kunes et al. 2022).

    grad_logits = (1/K) sum_k g_k, where g_k of unit i is that of `bitflip` if
    min(p_i, 1 - p_i) < 1 / (2V), and else that of `disarm`; p = sigmoid(logits). Both are unbiased.

    3K evaluations of f: at the pair of `disarm`, and at one flip of its first member, which in a
    network shares that one's noise in the later layers. Arguments and results as in
    `arm_tf.estimators`; noise as for `bitflip`, and the value is that of the K pairs.
    """
    u, chosen = tf.split(u, 2)
    b = bernoulli.sample(logits, u)
    b_anti = bernoulli.antithetic_sample(logits, u)
    flip = one_unit(chosen[..., 0], chosen.shape[-1])
    f_values = f(tf.concat([b, b_anti, tf.abs(b - flip)], axis=0))
    f_b, f_anti, f_flipped = tf.split(f_values, 3)
    pair = 0.5 * (b_anti - b) * tf.sigmoid(tf.abs(logits)) * (f_anti - f_b)[..., tf.newaxis]
    is_extreme = tf.sigmoid(-tf.abs(logits)) < 0.5 / logits.shape[-1]
    grads = tf.where(is_extreme, _flip_gradient(logits, b, flip, f_b - f_flipped), pair)
    return Estimate(0.5 * tf.reduce_mean(f_b + f_anti, axis=0), tf.reduce_mean(grads, axis=0))


def _with_flips(b):
    """K samples, after them those with the first unit flipped, and so on; [K (V + 1), ..., V]."""
    num_samples, units = b.shape[0], b.shape[-1]
    flips = tf.eye(units, dtype=b.dtype)  # [V, V], one row for each flipped unit
    flips = tf.reshape(flips, [units] + [1] * (b.shape.rank - 1) + [units])
    flipped = tf.abs(b[tf.newaxis] - flips)  # [V, K, ..., V]
    merged = tf.reshape(flipped, tf.concat([[units * num_samples], tf.shape(b)[1:]], axis=0))
    merged = tf.ensure_shape(merged, [units * num_samples, *b.shape[1:]])
    return tf.concat([b, merged], axis=0)


def _less_flips(values, b):
    """Values at samples b [K, ..., V] less those with each unit flipped; [K, ..., V, ...].

    Args:
      values: [K (V + 1), ...], rows as those of `_with_flips`.
      b: [K, ..., V].
    """
    kept, flipped = values[: b.shape[0]], values[b.shape[0] :]
    flipped = tf.reshape(flipped, tf.concat([[b.shape[-1]], tf.shape(kept)], axis=0))
    axes = list(range(1, flipped.shape.rank))
    axes.insert(b.shape.rank - 1, 0)
    return tf.transpose(kept - flipped, axes)


def one_unit(u: tf.Tensor, units: int) -> tf.Tensor:
    """1 for one of the units, all alike, 0 for the others; uniform noise [...] says which."""
    return tf.one_hot(tf.cast(units * u, tf.int32), units, dtype=u.dtype)


def _flip_gradient(logits, b, flip, difference):
    """`bitflip`'s gradient for each sample, from f(b) less f at the flip."""
    slope = b.shape[-1] * flip * tf.sigmoid(logits) * tf.sigmoid(-logits) * (2.0 * b - 1.0)
    return slope * difference[..., tf.newaxis]

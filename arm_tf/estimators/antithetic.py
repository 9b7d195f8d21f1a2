"""Estimators that compare f at antithetic samples."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable

import numpy as np

from arm_tf.estimators import Estimate, estimator, lazy

if typing.TYPE_CHECKING:
    import tensorflow as tf

    from arm_tf import bernoulli
else:
    tf, bernoulli = lazy("tensorflow"), lazy("arm_tf.bernoulli")
tfp = lazy("tensorflow_probability")


@estimator(
    "arm",
    summary="augment-REINFORCE-merge: f at an antithetic pair",
    source="Yin & Zhou 2019",
    link="https://arxiv.org/abs/1807.11143",
    equation=r"\frac{1}{K} \sum_k (f(\tilde b_k) - f(b_k)) (u_k - \frac{1}{2})",
    evaluations=lambda k, v: 2 * k,
    cost="2K",
    width=lambda k, v: 2 * k,
)
def arm(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """Augment-REINFORCE-merge (Yin & Zhou 2019, theorem 1).

    grad_logits = (1/K) sum_k (f(b_anti_k) - f(b_k)) (u_k - 1/2),
    b = 1[u < sigmoid(logits)], b_anti = 1[u > sigmoid(-logits)].

    Where a pair agrees in every coordinate its difference is exactly zero, also for an f
    that draws noise of its own, such as the later layers of a network.

    Unbiased; 2K evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """
    b = bernoulli.sample(logits, u)
    b_anti = bernoulli.antithetic_sample(logits, u)
    f_values = f(tf.concat([b, b_anti], axis=0))  # [2K, ...]
    f_b, f_anti = tf.split(f_values, 2)
    same = tf.reduce_all(b == b_anti, axis=-1)
    f_delta = tf.where(same, tf.zeros_like(f_b), f_anti - f_b)
    grad_logits = tf.reduce_mean(f_delta[..., tf.newaxis] * (u - 0.5), axis=0)
    return Estimate(tf.reduce_mean(f_values, axis=0), grad_logits)


@estimator(
    "disarm",
    summary="ARM with the noise integrated out given the pair (U2G)",
    source="Dong, Mnih & Tucker 2020",
    link="https://arxiv.org/abs/2006.10680",
    equation=(
        r"\frac{1}{K} \sum_k \frac{1}{2} (f(\tilde b_k) - f(b_k)) (-1)^{b_k} 1[b_k \ne "
        r"\tilde b_k] \sigma(|\phi|)"
    ),
    evaluations=lambda k, v: 2 * k,
    cost="2K",
    width=lambda k, v: 2 * k,
    aliases=("u2g",),
)
def disarm(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """ARM with the noise integrated out given the pair (Dong, Mnih & Tucker 2020, eq. 8).

    grad_logits = (1/K) sum_k 1/2 (f(b_anti_k) - f(b_k)) (-1)^b_k 1[b_k != b_anti_k]
    sigmoid(|logits|), with the pair of `arm`. Also published as U2G (Yin et al. 2020).

    Unbiased, of no more variance than ARM in any coordinate; 2K evaluations of f. Arguments and
    results as in `arm_tf.estimators`.
    """
    b = bernoulli.sample(logits, u)
    b_anti = bernoulli.antithetic_sample(logits, u)
    f_values = f(tf.concat([b, b_anti], axis=0))  # [2K, ...]
    f_b, f_anti = tf.split(f_values, 2)
    weight = 0.5 * (b_anti - b) * tf.sigmoid(tf.abs(logits))
    return Estimate(
        tf.reduce_mean(f_values, axis=0),
        tf.reduce_mean((f_anti - f_b)[..., tf.newaxis] * weight, axis=0),
    )


@estimator(
    "arms",
    summary="K jointly antithetic samples from a Dirichlet copula",
    source="Dimitriev & Zhou 2021",
    link="https://arxiv.org/abs/2105.14141",
    equation=(
        r"\frac{1}{K-1} \sum_k \left(f(b_k) - \frac{1}{K} \sum_j f(b_j)\right) (b_k - p) "
        r"\frac{p (1 - p)}{p - \rho}, p = \sigma(\phi), \rho = E[b_j b_k]"
    ),
    min_samples=2,
)
def arms(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """K jointly antithetic samples from a Dirichlet copula (Dimitriev & Zhou 2021).

    grad_logits = (1/(K-1)) sum_k (f(b_k) - mean_j f(b_j)) (b_k - p) p (1 - p) / (p - rho),
    p = sigmoid(logits), rho = E[b_j b_k]. In each coordinate d ~ Dirichlet(1, …, 1), from the
    noise as d_k = log(1 - u_k) / sum_j log(1 - u_j); copula uniforms (1 - d_k)^(K-1), reflected
    where p > 1/2, are thresholded at p, so that for p <= 1/2
    rho = max(0, 2 p^(1/(K-1)) - 1)^(K-1), and otherwise 2p - 1 + rho(1 - p).

    Unbiased; K >= 2 evaluations of f. With K = 2 it is DisARM. Arguments and results as in
    `arm_tf.estimators`.
    """
    return _debiased(f, logits, *dirichlet_samples(logits, u))


def dirichlet_samples(logits: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The samples b_k of `arms`, and p (1 - p) / (p - rho), which undoes their dependence.

    Args:
      logits: float [..., V].
      u: float [K, ..., V], uniform noise.

    Returns:
      float [K, ..., V] and [..., V].
    """
    n = u.shape[0]
    exponentials = -tf.math.log1p(-u)
    d = exponentials / tf.maximum(tf.reduce_sum(exponentials, axis=0), np.finfo("float32").tiny)
    copula = (1.0 - d) ** (n - 1)
    small = tf.sigmoid(-tf.abs(logits))  # min(p, 1 - p)
    b_small = tf.cast(copula < small, logits.dtype)
    b = tf.where(logits > 0, 1.0 - b_small, b_small)
    # p - rho is the same at p and 1 - p.
    gap = small - tf.nn.relu(2.0 * small ** (1 / (n - 1)) - 1.0) ** (n - 1)
    return b, _undoing(small, gap)


@estimator(
    "arms_gaussian",
    summary="K jointly antithetic samples from a Gaussian copula",
    source="Dimitriev & Zhou 2021",
    link="https://arxiv.org/abs/2105.14141",
    equation=(
        r"\frac{1}{K-1} \sum_k \left(f(b_k) - \frac{1}{K} \sum_j f(b_j)\right) (b_k - p) "
        r"\frac{p (1 - p)}{p - \rho}, p = \sigma(\phi), \rho = E[b_j b_k]"
    ),
    min_samples=3,
)
def arms_gaussian(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """K jointly antithetic samples from a Gaussian copula (Dimitriev & Zhou 2021).

    grad_logits = (1/(K-1)) sum_k (f(b_k) - mean_j f(b_j)) (b_k - p) p (1 - p) / (p - rho),
    p = sigmoid(logits), b_k = 1[z_k < h], h = Phi^-1(p), where the z_k are standard normal with
    pairwise correlation -1/(K-1), made of independent ones by taking their mean away, and
    rho = E[b_j b_k] = Phi(h) - 2 T(h, sqrt(K/(K-2))) with Owen's T.

    Unbiased; K >= 3 evaluations of f (K = 2 is that of `arms`). Arguments and results as in
    `arm_tf.estimators`.
    """
    n = u.shape[0]
    tiny = tf.constant(np.finfo("float32").tiny, u.dtype)
    normal = tf.math.ndtri(tf.maximum(u, tiny))
    z = (normal - tf.reduce_mean(normal, axis=0)) * math.sqrt(n / (n - 1))
    small = tf.sigmoid(-tf.abs(logits))
    h = tf.math.ndtri(tf.maximum(small, tiny))
    b_small = tf.cast(z < h, logits.dtype)
    b = tf.where(logits > 0, 1.0 - b_small, b_small)
    owens_t = tfp.math.owens_t(h, tf.constant(math.sqrt(n / (n - 2)), h.dtype))
    return _debiased(f, logits, b, _undoing(small, 2.0 * owens_t))


def _undoing(small: tf.Tensor, gap: tf.Tensor) -> tf.Tensor:
    """p (1 - p) / gap, from min(p, 1 - p)."""
    return small * (1.0 - small) / tf.maximum(gap, np.finfo("float32").tiny)


def _debiased(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, b: tf.Tensor, scale: tf.Tensor
) -> Estimate:
    """Leave-one-out estimate from dependent samples, with a scale that undoes their dependence."""
    f_b = f(b)
    mean = tf.reduce_mean(f_b, axis=0)
    signal = ((f_b - mean) / (f_b.shape[0] - 1))[..., tf.newaxis]
    return Estimate(mean, scale * tf.reduce_sum(signal * bernoulli.score(b, logits), axis=0))

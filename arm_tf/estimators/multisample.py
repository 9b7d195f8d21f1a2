"""Estimators for the multi-sample bound L = log (1/K) sum_k w_k, w_k = exp f(b_k).

Their value estimates E[L] over K independent samples, and grad_logits its gradient. Here f(b) =
log p(x, b) - log q(b) holds the density q that b is drawn from, and the gradient through that
term, -sum_k W_k (b_k - sigmoid(logits)) with the normalised weights W_k = w_k / sum_j w_j, is a
part of grad_logits: in L its mean is not zero. Inside f, q's own logits are a constant.

Each of the samples may have logits of its own, [K, ..., V], as in the upper layers of a network;
grad_logits has the shape of the logits.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable

from arm_tf.estimators import Estimate, Option, estimator, lazy
from arm_tf.estimators.antithetic import dirichlet_samples

if typing.TYPE_CHECKING:
    import tensorflow as tf

    from arm_tf import bernoulli, objectives
else:
    tf, bernoulli, objectives = map(lazy, ("tensorflow", "arm_tf.bernoulli", "arm_tf.objectives"))

_GAMMA = Option("gamma", 1.0, "Of ovis: 0 is unbiased, 1 the choice of its authors' program.")


@estimator(
    "vimco",
    summary="multi-sample bound, score function with each sample's baseline from the others",
    source="Mnih & Rezende 2016",
    link="https://arxiv.org/abs/1602.06725",
    equation=r"\sum_k (L - L_k - W_k) (b_k - \sigma(\phi))",
    min_samples=2,
    default_samples=5,
    objective="multisample",
    joint=True,
)
def vimco(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """VIMCO, the score function with a baseline for each sample (Mnih & Rezende 2016).

    grad_logits = sum_k (L - L_k - W_k) (b_k - sigmoid(logits)),  b = 1[u < sigmoid(logits)],
    where L_k is L with w_k replaced by the geometric mean of the others.

    Unbiased; K >= 2 evaluations of f, since one sample has no others. (At K = 1, L is f and the
    score function without a baseline weighs its sample by f - 1.) Arguments and results as in
    `arm_tf.estimators`.
    """

    def signal(log_w):
        mean_of_others = tf.reduce_sum(_replace_each(log_w, 0.0), axis=0) / (log_w.shape[0] - 1)
        baseline = objectives.multisample_bound(_replace_each(log_w, mean_of_others))
        return objectives.multisample_bound(log_w) - baseline - tf.nn.softmax(log_w, axis=0)

    return _weigh_scores(signal, f, logits, u)


@estimator(
    "ovis",
    summary="multi-sample bound, baselines of asymptotically least variance; unbiased at gamma = 0",
    source="Liévin et al. 2020",
    link="https://arxiv.org/abs/2008.01998",
    equation=(
        r"\sum_k (L - W_k - c_k) (b_k - \sigma(\phi)), c_k = \log \frac{1}{K-1} \sum_{j "
        r"\ne k} w_j - \gamma W_k + (1 - \gamma) \log(1 - \frac{1}{K})"
    ),
    min_samples=2,
    default_samples=5,
    biased=True,
    options=(_GAMMA,),
    objective="multisample",
    joint=True,
)
def ovis(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, gamma: float = 1.0
) -> Estimate:
    """OVIS, baselines of asymptotically least variance (Liévin et al. 2020, eq. 17).

    grad_logits = sum_k (L - W_k - c_k) (b_k - sigmoid(logits)),  b = 1[u < sigmoid(logits)],
    c_k = log [sum_{j != k} w_j / (K-1)] - gamma W_k + (1 - gamma) log(1 - 1/K).

    The W_k in c_k depends on b_k: the expectation is the exact gradient plus gamma times that
    of `rws`. So gamma = 0 is unbiased, and gamma = 1, the default as in the authors' code, is
    not. K >= 2 evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """

    def signal(log_w):
        k = log_w.shape[0]
        others = tf.reduce_logsumexp(_replace_each(log_w, -math.inf), axis=0) - math.log(k - 1)
        direct = tf.nn.softmax(log_w, axis=0)
        c = others - gamma * direct + (1.0 - gamma) * math.log(1.0 - 1.0 / k)
        return objectives.multisample_bound(log_w) - direct - c

    return _weigh_scores(signal, f, logits, u)


@estimator(
    "disarm_local",
    summary="multi-sample bound, DisARM for each sample with the others held fixed",
    source="Dong, Mnih & Tucker 2020",
    link="https://arxiv.org/abs/2006.10680",
    equation=(
        r"\sum_k \frac{1}{2} (L - \tilde L_k) (-1)^{\tilde b_k} 1[b_k \ne \tilde b_k] "
        r"\sigma(|\phi|) - \sum_k W_k (b_k - \sigma(\phi))"
    ),
    evaluations=lambda k, v: 2 * k,
    cost="2K",
    default_samples=5,
    width=lambda k, v: 2 * k,
    objective="multisample",
)
def disarm_local(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """DisARM for each sample, the others held fixed (Dong, Mnih & Tucker 2020).

    grad_logits = sum_k 1/2 (L - L_anti_k) (-1)^b_anti_k 1[b_k != b_anti_k] sigmoid(|logits|)
    - sum_k W_k (b_k - sigmoid(logits)),  b = 1[u < sigmoid(logits)],
    b_anti = 1[u > sigmoid(-logits)], where L_anti_k is L with b_k replaced by b_anti_k.

    The value is the mean of L at b and at b_anti. Unbiased; 2K evaluations of f; at K = 1 it is
    `disarm` less the score. Arguments and results as in `arm_tf.estimators`.
    """
    b = bernoulli.sample(logits, u)
    b_anti = bernoulli.antithetic_sample(logits, u)
    f_b, f_anti = tf.split(f(tf.concat([b, b_anti], axis=0)), 2)
    log_w, log_w_anti = _scale(f_b, f_b), _scale(f_anti, f_b)
    delta = objectives.multisample_bound(log_w) - objectives.multisample_bound(
        _replace_each(log_w, log_w_anti)
    )
    pair = 0.5 * (b - b_anti) * tf.sigmoid(tf.abs(logits))
    direct = tf.nn.softmax(log_w, axis=0)[..., tf.newaxis] * bernoulli.score(b, logits)
    grads = delta[..., tf.newaxis] * pair - direct
    value = 0.5 * (objectives.multisample_bound(f_b) + objectives.multisample_bound(f_anti))
    return Estimate(value, _add_up(grads, logits))


@estimator(
    "rws",
    summary="reweighted wake-sleep: the encoder follows the weighted samples",
    source="Bornschein & Bengio 2015",
    link="https://arxiv.org/abs/1406.2751",
    equation=r"\sum_k W_k (b_k - \sigma(\phi))",
    default_samples=5,
    biased=True,
    objective="multisample",
    ascends="log q(b) at samples weighted towards the posterior p(b|x)",
    joint=True,
)
def rws(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """Reweighted wake-sleep, its wake phase (Bornschein & Bengio 2015).

    grad_logits = sum_k W_k (b_k - sigmoid(logits)),  b = 1[u < sigmoid(logits)].

    Not the gradient of L: for large K it ascends E[log q(b)] under the posterior p(b|x), that
    is, descends on KL(p || q); its bias towards that is of order 1/K, and at K = 1 its mean is
    zero. What f uses is trained on L. K evaluations of f. Arguments and results as in
    `arm_tf.estimators`.
    """
    return _weigh_scores(lambda log_w: tf.nn.softmax(log_w, axis=0), f, logits, u)


@estimator(
    "wake_sleep",
    summary="the encoder learns from what the generative model dreams",
    source="Hinton et al. 1995",
    link="https://doi.org/10.1126/science.7761831",
    equation=r"\frac{1}{K} \sum_k (b_k - \sigma(\phi(x_k))), (x_k, b_k) \sim p",
    biased=True,
    objective="multisample",
    ascends="log q(b|x) of what the generative model dreams",
    joint=True,
    rule=True,
)
def wake_sleep(log_q: tf.Tensor) -> tf.Tensor:
    """Wake-sleep (Hinton et al. 1995), a rule that `arm_tf.models.BinaryVAE` carries out.

    grad_logits = (1/K) sum_k (b_k - sigmoid(logits(x_k))),  (x_k, b_k) ~ p: the encoder ascends
    log q(b|x) on what the generative model dreams, not on data, and decoder and prior ascend L
    with b ~ q, which at K = 1 has the gradient of log p(x, b). Not the gradient of L.

    Args:
      log_q: float [K, ...], log q(b_k | x_k) of dreams.

    Returns:
      float [...], what the encoder ascends: their mean.
    """
    return tf.reduce_mean(log_q, axis=0)


@estimator(
    "arms_multisample",
    summary="multi-sample bound, each sample replaced by K jointly antithetic ones",
    source="Dimitriev & Zhou 2021",
    link="https://arxiv.org/abs/2105.14141",
    equation=(
        r"\sum_k \frac{1}{K-1} \sum_j \left(L_{jk} - \frac{1}{K} \sum_i L_{ik}\right) (\tilde "
        r"b_j - p) \frac{p (1 - p)}{p - \rho} - \sum_k W_k (b_k - p), p = \sigma(\phi), \rho = "
        r"E[\tilde b_i \tilde b_j]"
    ),
    evaluations=lambda k, v: 2 * k,
    cost="2K",
    min_samples=2,
    default_samples=5,
    rows=lambda k, v: 2 * k,
    width=lambda k, v: 2 * k,
    objective="multisample",
)
def arms_multisample(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """ARMS for each sample of the bound, the others held fixed (Dimitriev & Zhou 2021).

    grad_logits = sum_k (1/(K-1)) sum_j (L_jk - mean_i L_ik) (b_anti_j - p) p (1 - p) / (p - rho)
    - sum_k W_k (b_k - p),  p = sigmoid(logits), with K independent samples b and, independent of
    them, the K jointly antithetic samples b_anti of `arms`, of which one set serves all k: L_jk is
    L with b_k replaced by b_anti_j. (In the authors' program the sum over k is a mean.)

    Where each sample has logits of its own, as in the upper layers of a network, no set of samples
    serves them all, and the estimate is that of `disarm_local`, at the same cost.

    Unbiased; 2K evaluations of f, K >= 2. Arguments and results as in `arm_tf.estimators`; the
    first K rows of the noise are those of b, and the value is L at b, or that of `disarm_local`.
    """
    u, u_anti = tf.split(u, 2)
    if logits.shape.rank == u.shape.rank:
        return disarm_local(f, logits, u)
    b = bernoulli.sample(logits, u)
    b_anti, scale = dirichlet_samples(logits, u_anti)
    f_b, f_anti = tf.split(f(tf.concat([b, b_anti], axis=0)), 2)
    log_w, log_w_anti = _scale(f_b, f_b), _scale(f_anti, f_b)
    others = tf.reduce_logsumexp(_replace_each(log_w, -math.inf), axis=0)  # [K, ...]
    replaced = log_w_anti[:, tf.newaxis]
    bounds = tf.maximum(others, replaced) + tf.nn.softplus(-tf.abs(others - replaced))
    total = tf.reduce_sum(bounds, axis=1)  # sum_k L_jk, but for a constant
    signal = (total - tf.reduce_mean(total, axis=0)) / (b.shape[0] - 1)
    grads = tf.reduce_sum(signal[..., tf.newaxis] * bernoulli.score(b_anti, logits), axis=0)
    direct = tf.nn.softmax(log_w, axis=0)[..., tf.newaxis] * bernoulli.score(b, logits)
    grad_logits = scale * grads - tf.reduce_sum(direct, axis=0)
    return Estimate(objectives.multisample_bound(f_b), grad_logits)


def _weigh_scores(
    signal: Callable[[tf.Tensor], tf.Tensor],
    f: Callable[..., tf.Tensor],
    logits: tf.Tensor,
    u: tf.Tensor,
) -> Estimate:
    """Estimate sum_k signal_k (b_k - sigmoid(logits)), the signal a function of the log w."""
    b = bernoulli.sample(logits, u)
    f_b = f(b)
    grads = signal(_scale(f_b, f_b))[..., tf.newaxis] * bernoulli.score(b, logits)
    return Estimate(objectives.multisample_bound(f_b), _add_up(grads, logits))


def _scale(log_w: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
    """The weights to a scale on which the largest reference is 1, for precision; a constant."""
    return tf.stop_gradient(log_w - tf.reduce_max(reference, axis=0))


def _replace_each(log_w: tf.Tensor, others: tf.Tensor | float) -> tf.Tensor:
    """log_w with each of its entries replaced in turn.

    Args:
      log_w: float [K, ...].
      others: the same, or a number.

    Returns:
      float [K, K, ...], entry [j, k] being log_w[j] for j != k and others[k] for j = k.
    """
    k = log_w.shape[0]
    own = tf.reshape(tf.eye(k, dtype=tf.bool), [k, k] + [1] * (log_w.shape.rank - 1))
    return tf.where(own, tf.convert_to_tensor(others, log_w.dtype), log_w[:, tf.newaxis])


def _add_up(grads: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Gradients of the samples [K, ..., V], added up where the samples share their logits."""
    return grads if logits.shape.rank == grads.shape.rank else tf.reduce_sum(grads, axis=0)

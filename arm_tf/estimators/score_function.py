"""Estimators that weigh a score by f at single samples."""

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

_DECAY = 0.99  # of moving averages
_BASELINE_UNITS = 100


@estimator(
    "ar",
    summary="augment-REINFORCE: ARM before merging",
    source="Yin & Zhou 2019",
    link="https://arxiv.org/abs/1807.11143",
    equation=r"\frac{1}{K} \sum_k f(b_k) (1 - 2 u_k)",
)
def ar(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """Augment-REINFORCE (Yin & Zhou 2019, the AR estimator of section 2).

    grad_logits = (1/K) sum_k f(b_k) (1 - 2 u_k),  b = 1[u < sigmoid(logits)].

    Unbiased; K evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """
    f_b = f(bernoulli.sample(logits, u))
    grad_logits = tf.reduce_mean(f_b[..., tf.newaxis] * (1.0 - 2.0 * u), axis=0)
    return Estimate(tf.reduce_mean(f_b, axis=0), grad_logits)


@estimator(
    "reinforce",
    summary="score function without a baseline",
    source="Williams 1992",
    link="https://doi.org/10.1007/BF00992696",
    equation=r"\frac{1}{K} \sum_k f(b_k) (b_k - \sigma(\phi))",
)
def reinforce(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """REINFORCE, the score-function estimator (Williams 1992).

    grad_logits = (1/K) sum_k f(b_k) (b_k - sigmoid(logits)),  b = 1[u < sigmoid(logits)].

    Unbiased; K evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """
    b = bernoulli.sample(logits, u)
    f_b = f(b)
    grad_logits = tf.reduce_mean(f_b[..., tf.newaxis] * bernoulli.score(b, logits), axis=0)
    return Estimate(tf.reduce_mean(f_b, axis=0), grad_logits)


def reinforce_baseline_parameters(units: int) -> dict[str, float]:
    """The moving average and the number of calls that it is over."""
    return {"mean": 0.0, "calls": 0.0}


@estimator(
    "reinforce_baseline",
    summary="score function with a moving-average baseline",
    source="Williams 1992",
    link="https://doi.org/10.1007/BF00992696",
    equation=r"\frac{1}{K} \sum_k (f(b_k) - c) (b_k - \sigma(\phi))",
    initial=reinforce_baseline_parameters,
    averages=("mean", "calls"),
)
def reinforce_baseline(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> Estimate:
    """REINFORCE with a moving-average baseline (Williams 1992).

    grad_logits = (1/K) sum_k (f(b_k) - c) (b_k - sigmoid(logits)), with c the average of f over
    earlier calls, decaying by 0.99 a call; the first call has c = 0.

    Unbiased; K evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """
    b = bernoulli.sample(logits, u)
    f_b = f(b)
    signal = (f_b - parameters["mean"])[..., tf.newaxis]
    return Estimate(
        tf.reduce_mean(f_b, axis=0),
        tf.reduce_mean(signal * bernoulli.score(b, logits), axis=0),
        new_parameters=updated_averages(parameters, mean=tf.reduce_mean(f_b)),
    )


def updated_averages(
    parameters: dict[str, tf.Tensor], **observed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Moving averages after one more call, the first few calls weighed as if there were no past.

    A call that observes what is not finite, as the mean over no data is not, leaves them as they
    were.
    """
    calls = parameters["calls"]
    rate = tf.maximum(1.0 / (calls + 1.0), 1.0 - _DECAY)
    observed = {name: tf.stop_gradient(value) for name, value in observed.items()}
    finite = tf.reduce_all(tf.math.is_finite(tf.stack(list(observed.values()))))
    keep = lambda new, old: tf.where(finite, new, old)
    averages = {
        name: keep(parameters[name] + rate * (value - parameters[name]), parameters[name])
        for name, value in observed.items()
    }
    return {**averages, "calls": keep(calls + 1.0, calls)}


def nvil_parameters(units: int) -> dict[str, float | np.ndarray]:
    """A network that is zero at first, and moving averages of what it leaves."""
    limit = math.sqrt(6 / (units + _BASELINE_UNITS))
    kernel = np.random.default_rng(0).uniform(-limit, limit, (units, _BASELINE_UNITS))
    return {
        "kernel_1": kernel,
        "bias_1": np.zeros(_BASELINE_UNITS),
        "kernel_2": np.zeros(_BASELINE_UNITS),
        "bias_2": 0.0,
        "mean": 0.0,
        "square": 0.0,
        "calls": 0.0,
    }


@estimator(
    "nvil",
    summary="score function with a learned baseline, signal centred and normalised",
    source="Mnih & Gregor 2014",
    link="https://arxiv.org/abs/1402.0030",
    equation=r"\frac{1}{K} \sum_k \frac{f(b_k) - C(\phi) - c}{\max(1, d)} (b_k - \sigma(\phi))",
    initial=nvil_parameters,
    averages=("mean", "square", "calls"),
    ascends="E[f(b)] divided by the signal's deviation",
)
def nvil(
    f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, parameters: dict[str, tf.Tensor]
) -> Estimate:
    """REINFORCE with a learned, input-dependent baseline (Mnih & Gregor 2014).

    grad_logits = (1/K) sum_k (f(b_k) - C(logits) - c) / max(1, d) (b_k - sigmoid(logits)),
    where C is a network with one hidden layer of 100 tanh units, fitted to the squared signal
    (f - C - c)^2; c and d are moving averages of mean and standard deviation of f - C over
    earlier calls. The input that C depends on is seen through the logits, which are a function
    of it.

    The gradient divided by max(1, d) is unbiased: within a call, d is a constant scale. It is
    what the paper trains with, and is reported as unbiased up to that scale.

    K evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """
    b = bernoulli.sample(logits, u)
    f_b = f(b)
    names = [name for name in parameters if name not in ("mean", "square", "calls")]
    network = {name: parameters[name] for name in names}
    target = tf.stop_gradient(f_b)
    with tf.GradientTape() as tape:
        tape.watch(network)
        hidden = tf.tanh(tf.tensordot(logits, network["kernel_1"], 1) + network["bias_1"])
        baseline = tf.tensordot(hidden, network["kernel_2"], 1) + network["bias_2"]
        loss = tf.reduce_mean((target - baseline - parameters["mean"]) ** 2)
    residual = target - tf.stop_gradient(baseline)
    deviation = tf.sqrt(tf.maximum(parameters["square"] - parameters["mean"] ** 2, 0.0))
    signal = (residual - parameters["mean"]) / tf.maximum(deviation, 1.0)
    return Estimate(
        tf.reduce_mean(f_b, axis=0),
        tf.reduce_mean(signal[..., tf.newaxis] * bernoulli.score(b, logits), axis=0),
        tape.gradient(loss, network),
        updated_averages(
            parameters, mean=tf.reduce_mean(residual), square=tf.reduce_mean(residual**2)
        ),
    )


@estimator(
    "loo",
    summary="score function, the other samples' mean as baseline",
    source="Kool et al. 2019",
    link="https://openreview.net/forum?id=r1lgTGL5DE",
    equation=(
        r"\frac{1}{K-1} \sum_k \left(f(b_k) - \frac{1}{K} \sum_j f(b_j)\right) (b_k - "
        r"\sigma(\phi))"
    ),
    min_samples=2,
    aliases=("rloo", "vargrad"),
)
def loo(f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor) -> Estimate:
    """REINFORCE with the other samples' mean as baseline (Kool et al. 2019).

    grad_logits = (1/(K-1)) sum_k (f(b_k) - mean_j f(b_j)) (b_k - sigmoid(logits)),
    which is (1/K) sum_k (f(b_k) - mean_{j != k} f(b_j)) (b_k - sigmoid(logits))
    (also Salimans & Knowles 2014). It is the gradient of half the samples' variance of f, with the
    samples held fixed and f = log p - log q a function of the logits, which is VarGrad (Richter et
    al. 2020).

    Unbiased; K >= 2 evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """
    b = bernoulli.sample(logits, u)
    f_b = f(b)
    mean = tf.reduce_mean(f_b, axis=0)
    signal = (f_b - mean) / (f_b.shape[0] - 1)
    return Estimate(mean, tf.reduce_sum(signal[..., tf.newaxis] * bernoulli.score(b, logits), 0))

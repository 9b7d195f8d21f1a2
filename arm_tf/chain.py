"""E[f(b_1, …, b_T)] over a chain of stochastic binary layers, with an estimator's gradient."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from arm_tf import bernoulli
from arm_tf.expectation import GradientEstimator, attach_gradient, gradient_after


def path_noise_rows(gradient_estimators: Sequence[GradientEstimator]) -> int:
    """Rows of uniform noise that `path_expectation` needs for one datum; int.

    Layer t takes its estimator's rows, and for each layer after it a row for each sample, unless
    the estimator judges whole paths.
    """
    num_layers = len(gradient_estimators)
    return sum(
        estimator.rows + (0 if estimator.row.joint else estimator.width * (num_layers - 1 - t))
        for t, estimator in enumerate(gradient_estimators)
    )


def path_expectation(
    f: Callable[..., tf.Tensor],
    maps: Sequence[Callable[[tf.Tensor], tf.Tensor]],
    x: tf.Tensor,
    u: tf.Tensor,
    gradient_estimators: Sequence[GradientEstimator],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Monte Carlo estimate of E[f(b_1, …, b_T)] over a chain of stochastic binary layers.

    b_t ~ q(b_t | b_{t-1}) = Bernoulli(sigmoid(`maps[t-1](b_{t-1})`)), with b_0 = x. For each
    layer t (Yin & Zhou 2019, proposition 2 and algorithm 2) b_{1:t-1} is one shared path; the
    estimator's samples are taken at layer t, for ARM an antithetic pair; each of them is
    continued independently through the layers after t; and the estimator's gradient reaches
    the weights of layer t through its logits:

      E[(f(path_anti) - f(path)) (u_t - 1/2)] d logits_t / d w_t.

    Estimators of the objective "multisample" estimate E[log mean_k exp f(path_k)] from K paths
    in place of the shared one. Those whose row in the table says "joint" weigh the score of every
    layer by f at these paths, which are therefore all that f is evaluated at.

    Args:
      f: maps two lists over layers, binary samples b_t and the logits they were drawn from,
        each [S, ..., V] or, for what all S paths share, [1, ..., V], to values [S, ...].
      maps: callables, [..., V_{t-1}] to logits [..., V_t], applied to any leading shape.
      x: float [..., V_0].
      u: float [path_noise_rows(gradient_estimators), ..., V], uniform noise.
      gradient_estimators: T instances of `GradientEstimator`, of one row of the table.

    Returns:
      surrogate: float [...], whose gradient reaches only the maps, by the estimator.
      f_mean: float [...], the average of f over what was evaluated (or the multi-sample bound),
        differentiable in whatever f uses; both have the same value.
      learning: zero, whose gradient is that of the estimators' learned parameters.

    Raises:
      ValueError: a wrong number of rows of noise.
    """
    expected = path_noise_rows(gradient_estimators)
    if u.shape[0] != expected:
        raise ValueError(f"u must have {expected} rows of noise, received shape {u.shape}.")
    rows = iter(tf.unstack(u))
    take = lambda n: tf.stack([next(rows) for _ in range(n)])
    joint, paths = gradient_estimators[0].row.joint, gradient_estimators[0].paths
    noise, later_noise = [], []
    for t, estimator in enumerate(gradient_estimators):
        noise.append(take(estimator.rows))
        later_noise.append([] if joint else [take(estimator.width) for _ in maps[t + 1 :]])
    path, path_logits = sample_path(maps, x, [u_t[:paths] for u_t in noise])
    path_logits[0] = path_logits[0][tf.newaxis]
    f_path = f(path, path_logits) if joint else None

    values, all_logits, all_grads, all_learning = [], [], [], []
    for t, estimator in enumerate(gradient_estimators):
        if joint:
            f_t = lambda b, sample=None: f_path  # the estimator's samples b are the path's b_t
        else:
            f_t = _continue(f, path[:t], path_logits[: t + 1], maps[t + 1 :], later_noise[t])
            f_t = connected(f_t) if estimator.row.derivative else f_t
        logits = path_logits[t]
        if logits.shape[0] == 1:
            logits = logits[0]  # shared by all samples
        value, grad_logits, learning = estimator.estimate(f_t, logits, noise[t])
        values.append(value)
        all_logits.append(logits)
        all_grads.append(grad_logits)
        all_learning.append(learning)
    f_mean = tf.add_n(values) / len(maps)
    surrogate = tf.stop_gradient(f_mean)
    for logits, grad_logits in zip(all_logits, all_grads, strict=True):
        surrogate = attach_gradient(surrogate, logits, grad_logits)
    surrogate, f_mean = (gradient_after(x, lambda: all_grads) for x in (surrogate, f_mean))
    return surrogate, f_mean, tf.add_n(all_learning)


def _continue(
    f: Callable[..., tf.Tensor],
    path: list[tf.Tensor],
    path_logits: list[tf.Tensor],
    later_maps: Sequence[Callable[[tf.Tensor], tf.Tensor]],
    noise: list[tf.Tensor],
) -> Callable[..., tf.Tensor]:
    """f as a function of one layer's samples, each continued through the layers after it."""

    def f_t(b, sample=bernoulli.sample):
        size = b.shape[0]
        later, later_logits = sample_path(later_maps, b, cycle(noise, size), sample)
        return f([*cycle(path, size), b, *later], [*cycle(path_logits, size), *later_logits])

    return f_t


def connected(f: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """f, whose derivative is zero, not missing, where further samples are all that depends on b."""
    return lambda b, **sample: f(b, **sample) + 0.0 * tf.reduce_sum(b, axis=-1)


def cycle(arrays: Sequence[tf.Tensor], size: int) -> list[tf.Tensor]:
    """Each of the arrays [S, ...] repeated to [size, ...], or as it is if S is 1."""

    def repeat(array):
        if array.shape[0] == 1:
            return array
        copies = -(-size // array.shape[0])
        return tf.tile(array, [copies] + [1] * (array.shape.rank - 1))[:size]

    return [repeat(array) for array in arrays]


def sample_path(
    maps: Sequence[Callable[[tf.Tensor], tf.Tensor]],
    x: tf.Tensor,
    noise: Sequence[tf.Tensor],
    sample: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = bernoulli.sample,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """One path through a chain of stochastic layers for every row of noise.

    b_t = 1[u_t < sigmoid(`maps[t-1](b_{t-1})`)], b_0 = x.

    Args:
      maps: callables, [..., V_{t-1}] to logits [..., V_t].
      x: float [..., V_0], with or without the leading axis S of the noise.
      noise: one uniform array [S, ..., V_t] a layer.
      sample: function of (logits, u), or a relaxation of it.

    Returns:
      Two lists over layers, samples [S, ..., V_t] and logits, which have the leading axis
      S where the layer's input has it.
    """
    path: list[tf.Tensor] = []
    path_logits: list[tf.Tensor] = []
    for layer_map, u in zip(maps, noise, strict=True):
        path_logits.append(layer_map(path[-1] if path else x))
        path.append(sample(path_logits[-1], u))
    return path, path_logits

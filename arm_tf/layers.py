"""Stochastic binary units in TensorFlow: estimators bound to gradients by `tf.custom_gradient`.

`expectation` serves one vector of units and any f, `path_expectation` a chain of stochastic
layers, and the Keras layer `StochasticBinary` a user's own model.
"""

import keras
import tensorflow as tf

from arm_tf import bernoulli, estimators


@tf.custom_gradient
def _attach_gradient(value, logits, grad_logits):
    """`value`, with `grad_logits` as its gradient in `logits`; no gradient in `grad_logits`."""

    def gradient(upstream):
        return upstream, upstream[..., tf.newaxis] * grad_logits, None

    return tf.identity(value), gradient


def expectation(f, logits, *, estimator="arm", num_samples=1, u=None, seed=None):
    """Monte Carlo estimate of E[f(b)], b ~ prod_v Bernoulli(sigmoid(logits_v)).

    The value is the average of f over the samples that the estimator evaluates. Its gradient
    with respect to `logits` is the estimator's, for ARM

      (1/K) sum_k (f(b_anti_k) - f(b_k)) (u_k - 1/2)      (Yin & Zhou 2019, theorem 1);

    with respect to variables that f uses, it is the gradient of the average. The derivative
    of f in b is not used by "arm", "ar" or "reinforce".

    The estimators hold f fixed in the logits. Where f contains them, as log q(b) in an ELBO
    does, wrap them in `tf.stop_gradient` inside f: their direct gradient has mean zero and
    would only add variance.

    Args:
      f: maps zeros and ones [S, ..., V], in the dtype of `logits`, to values [S, ...] of
        the same dtype; S is num_samples times the estimator's evaluations per sample.
      logits: float32 or float64 [..., V], log-odds.
      estimator: a name from `arm_tf.estimators.TABLE`.
      num_samples: int K >= 1, noise samples to average over.
      u: uniform noise [num_samples, ..., V] to threshold, for exact tests; drawn when None.
      seed: int or pair of ints that determines the noise; None draws afresh at each call.

    Returns:
      Float [...], differentiable once in `logits` and in whatever f uses.

    Raises:
      ValueError: an unknown estimator, a num_samples below 1, logits that are not floating
        point, noise or values of f of the wrong shape, or both `u` and `seed`.
    """
    estimator = estimators.get(estimator)
    logits = tf.convert_to_tensor(logits)
    if not logits.dtype.is_floating or logits.shape.rank in (None, 0):
        raise ValueError(
            "logits must be floating point of shape [..., V], "
            f"received dtype {logits.dtype.name} and shape {logits.shape}."
        )
    u = _noise(logits, num_samples, u, seed)
    f_values, grad_logits = estimator(_check_values(f), tf.stop_gradient(logits), u)
    return _attach_gradient(tf.reduce_mean(f_values, axis=0), logits, grad_logits)


def _noise(logits, num_samples, u, seed):
    """`u` after checks, or fresh uniform noise [num_samples, ..., V]."""
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1, received {num_samples!r}.")
    if u is None:
        shape = tf.concat([[num_samples], tf.shape(logits)], axis=0)
        if seed is None:
            u = tf.random.uniform(shape, dtype=logits.dtype)
        else:
            seed = [seed, 0] if isinstance(seed, int) else seed
            u = tf.random.stateless_uniform(shape, seed, dtype=logits.dtype)
        return tf.ensure_shape(u, [num_samples, *logits.shape])
    if seed is not None:
        raise ValueError("Give either the noise u or a seed to draw it from, received both.")
    u = tf.convert_to_tensor(u, logits.dtype)
    expected = tf.TensorShape([num_samples, *logits.shape])
    if not u.shape.is_compatible_with(expected):
        raise ValueError(
            f"u must have shape [num_samples, ..., V] = {expected}, received {u.shape}."
        )
    return u


def _check_values(f):
    """f, with an error that names the shape it should have returned."""

    def checked(b):
        values = tf.convert_to_tensor(f(b))
        if not values.shape.is_compatible_with(b.shape[:-1]):
            raise ValueError(
                f"f must map samples {b.shape} to one value each, shape {b.shape[:-1]}; "
                f"received values of shape {values.shape}."
            )
        if values.dtype != b.dtype:
            raise ValueError(
                f"f must return values of dtype {b.dtype.name} for samples of that dtype, "
                f"received {values.dtype.name}."
            )
        return values

    return checked


def path_noise_rows(num_layers, estimator="arm", num_samples=1):
    """Rows of uniform noise that `path_expectation` needs for one datum; int.

    Layer t takes K rows to threshold and K E rows, E evaluations of f a sample, for each
    layer after it.
    """
    samples = num_samples * estimators.get(estimator).evaluations
    return num_layers * num_samples + samples * num_layers * (num_layers - 1) // 2


def path_expectation(f, maps, x, u, *, estimator="arm", num_samples=1):
    """Monte Carlo estimate of E[f(b_1, …, b_T)] over a chain of stochastic binary layers.

    b_t ~ q(b_t | b_{t-1}) = Bernoulli(sigmoid(maps[t-1](b_{t-1}))), with b_0 = x. For each
    layer t (Yin & Zhou 2019, proposition 2 and algorithm 2) b_{1:t-1} is one shared path; the
    estimator's samples are taken at layer t, for ARM an antithetic pair; each of them is
    continued independently through the layers after t; and the estimator's gradient reaches
    the weights of layer t through its logits:

      E[(f(path_anti) - f(path)) (u_t - 1/2)] d logits_t / d w_t.

    Args:
      f: maps two lists over layers, binary samples b_t and the logits they were drawn from,
        each [S, ..., V] or, for what all S paths share, [1, ..., V], to values [S, ...].
      maps: callables, [..., V_{t-1}] to logits [..., V_t], applied to any leading shape.
      x: float [..., V_0].
      u: float [path_noise_rows(T, estimator, num_samples), ..., V], uniform noise.
      estimator: a name from `arm_tf.estimators.TABLE`.
      num_samples: int K >= 1.

    Returns:
      surrogate: float [...], whose gradient reaches only the maps, by the estimator.
      f_mean: float [...], the average over all T K E evaluations of f, differentiable in
        whatever f uses; both have the same value.

    Raises:
      ValueError: an unknown estimator or a wrong number of rows of noise.
    """
    expected = path_noise_rows(len(maps), estimator, num_samples)
    if u.shape[0] != expected:
        raise ValueError(f"u must have {expected} rows of noise, received shape {u.shape}.")
    rows = iter(tf.unstack(u))
    take = lambda n: tf.stack([next(rows) for _ in range(n)])
    estimator = estimators.get(estimator)
    num_later_samples = num_samples * estimator.evaluations
    path, path_logits = [], []  # shared by all samples: [1, ..., V]
    f_means, all_logits, all_grads = [], [], []
    for t in range(len(maps)):
        logits = maps[t](path[-1][0] if path else x)
        u_t = take(num_samples)
        later_noise = [take(num_later_samples) for _ in maps[t + 1 :]]

        def f_t(b, logits=logits, later_noise=later_noise, later_maps=maps[t + 1 :]):
            later, later_logits = sample_path(later_maps, b, later_noise)
            return f([*path, b, *later], [*path_logits, logits[tf.newaxis], *later_logits])

        f_values, grad_logits = estimator(f_t, tf.stop_gradient(logits), u_t)
        f_means.append(tf.reduce_mean(f_values, axis=0))
        all_logits.append(logits)
        all_grads.append(grad_logits)
        path.append(bernoulli.sample(logits, u_t[:1]))
        path_logits.append(logits[tf.newaxis])
    f_mean = tf.add_n(f_means) / len(maps)
    surrogate = tf.stop_gradient(f_mean)
    for logits, grad_logits in zip(all_logits, all_grads, strict=True):
        surrogate = _attach_gradient(surrogate, logits, grad_logits)
    return surrogate, f_mean


def sample_path(maps, x, noise):
    """One path through a chain of stochastic layers for every row of noise.

    b_t = 1[u_t < sigmoid(maps[t-1](b_{t-1}))], b_0 = x.

    Args:
      maps: callables, [..., V_{t-1}] to logits [..., V_t].
      x: float [..., V_0], with or without the leading axis S of the noise.
      noise: one uniform array [S, ..., V_t] a layer.

    Returns:
      Two lists over layers, samples [S, ..., V_t] and logits, which have the leading axis
      S where the layer's input has it.
    """
    path, path_logits = [], []
    for layer_map, u in zip(maps, noise, strict=True):
        path_logits.append(layer_map(path[-1] if path else x))
        path.append(bernoulli.sample(path_logits[-1], u))
    return path, path_logits


@keras.saving.register_keras_serializable(package="arm_tf")
class StochasticBinary(keras.layers.Layer):
    """Stochastic binary units, b ~ prod_v Bernoulli(sigmoid(logits_v)), that can be trained.

    The layer's input are the logits; put a `keras.layers.Dense` before it for a dense map.

    - `layer(logits, f=f)` estimates E[f(b)] as `arm_tf.expectation` does, float [...] for logits
      [..., V]. It is what to train on: the gradient in the logits is the estimator's, by
      `tf.custom_gradient`, and f's own variables get the gradient of the average.
    - `layer(logits)` samples b, [..., V]. A sample has no derivative, so that asking for a
      gradient through it raises an error in place of leaving the layers below untrained.

    Args:
      estimator: a name from `arm_tf.estimators.TABLE`.
      num_samples: int >= 1, noise samples that the estimator averages over.
      seed: int, for reproducible noise; None for other noise in each process.

    Raises:
      ValueError: an unknown estimator or a num_samples below 1.
    """

    def __init__(self, estimator="arm", num_samples=1, seed=None, **kwargs):
        super().__init__(**kwargs)
        estimators.get(estimator)
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(
                f"num_samples must be an integer of at least 1, received {num_samples!r}."
            )
        self.estimator = estimator
        self.num_samples = num_samples
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, logits, f=None):
        if f is not None and not callable(f):
            raise ValueError(f"f must be a function of the samples, received {f!r}.")
        seed = self.seed_generator.next()
        if f is None:
            shape = tf.shape(logits)
            u = tf.random.stateless_uniform(shape, tf.cast(seed, tf.int32), dtype=logits.dtype)
            return _sample_without_gradient(logits, u)
        return expectation(
            f, logits, estimator=self.estimator, num_samples=self.num_samples, seed=seed
        )

    def compute_output_shape(self, logits_shape, f=None):
        return logits_shape if f is None else logits_shape[:-1]

    def get_config(self):
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "num_samples": self.num_samples,
            "seed": self.seed,
        }


@tf.custom_gradient
def _sample_without_gradient(logits, u):
    def gradient(upstream):
        raise ValueError(
            "A binary sample has no gradient in its logits. To train the layers below, call "
            "the StochasticBinary layer as layer(logits, f=f) with the loss as a function f of "
            "the samples."
        )

    return bernoulli.sample(logits, u), gradient

"""Stochastic binary units in TensorFlow: estimators bound to gradients by `tf.custom_gradient`.

`expectation` serves one vector of units and any f, `path_expectation` a chain of stochastic
layers, and the Keras layer `StochasticBinary` a user's own model.
"""

import math
import operator

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.saved_model import save_context

from arm_tf import bernoulli, estimators


def attach_gradient(value, logits, grad_logits, learn=lambda: ()):
    """`value`, with `grad_logits` as its gradient in `logits`.

    Args:
      value: float [...].
      logits: float [..., V], of any floating dtype.
      grad_logits: float [..., V], in which no gradient flows.
      learn: called where the gradient is taken, and only there; returns operations that belong to
        that.

    Returns:
      float [...].
    """

    @tf.custom_gradient
    def attach(value, logits, grad_logits):
        def gradient(upstream):
            grad = tf.cast(upstream, grad_logits.dtype)[..., tf.newaxis] * grad_logits
            with tf.control_dependencies(learn()):
                return upstream, tf.cast(tf.identity(grad), logits.dtype), None

        return tf.identity(value), gradient

    return attach(value, logits, grad_logits)


@tf.custom_gradient
def _zero_with_gradient(parameter, grad):
    """Zero, whose gradient in `parameter` is `grad`."""
    return tf.zeros([], grad.dtype), lambda upstream: (upstream * grad, None)


def expectation(f, logits, *, estimator="arm", num_samples=None, u=None, seed=None, **options):
    """Monte Carlo estimate of E[f(b)], b ~ prod_v Bernoulli(sigmoid(logits_v)).

    The value is the average of f over the samples that the estimator evaluates (for an estimator
    of the objective "multisample", the bound log mean_k exp f(b_k)). Its gradient with respect to
    `logits` is the estimator's, for ARM

      (1/K) sum_k (f(b_anti_k) - f(b_k)) (u_k - 1/2)      (Yin & Zhou 2019, theorem 1);

    with respect to variables that f uses, it is the gradient of the average. The derivative of f
    in b is used only by the estimators whose row in the table says so.

    The estimators hold f fixed in the logits. Where f contains them, as log q(b) in an ELBO
    does, wrap them in `tf.stop_gradient` inside f: their direct gradient has mean zero and
    would only add variance. The estimators of the objective "multisample" expect an f with that
    term, log p(b) - log q(b), and add its direct gradient, which then matters.

    An estimator that learns parameters uses their first values here; `StochasticBinary` and
    `arm_tf.train` keep and train them.

    A `tf.Module` that calls this is saved together with the gradient by
    `tf.saved_model.save(module, path, options=tf.saved_model.SaveOptions(
    experimental_custom_gradients=True))`; saved without that option it gives values alone.

    Args:
      f: maps zeros and ones (or, for a relaxation, numbers between) [S, ..., V], in the dtype
        of `logits`, to values [S, ...] of the same dtype (or float32, for logits of 16 bits); S is
        the estimator's choice.
      logits: float16, bfloat16, float32 or float64 [..., V], log-odds. Noise, thresholds and the
        estimator's own arithmetic have at least single precision. Where a logit is NaN, value and
        gradient are.
      estimator: a name from `arm_tf.estimators.TABLE`.
      num_samples: int K, noise samples to average over; None for its own number.
      u: uniform noise [rows, ..., V] to threshold, for exact tests; drawn when None. There is a
        row for each of the num_samples, and as many again for an estimator with further noise.
      seed: int or pair of ints that determines the noise; None draws afresh at each call.
      **options: settings of the estimator, such as temperature.

    Returns:
      Float [...], in the dtype of `logits` but at least float32; differentiable once in `logits`
      and in whatever f uses.

    Raises:
      ValueError: an unknown estimator or option, too small a num_samples, too many units for the
        estimator, logits that are not floating point, noise or values of f of the wrong shape,
        an f without the derivative that the estimator needs, or both `u` and `seed`.
    """
    logits = tf.convert_to_tensor(logits)
    if not logits.dtype.is_floating or logits.shape.rank in (None, 0):
        raise ValueError(
            "logits must be floating point of shape [..., V], "
            f"received dtype {logits.dtype.name} and shape {logits.shape}."
        )
    units = logits.shape[-1]
    row, num_samples = estimators.check(estimator, num_samples, units, options)
    rows = row.rows(num_samples, units)
    if u is None:
        u = _draw(logits, rows, seed)
    elif seed is not None:
        raise ValueError("Give either the noise u or a seed to draw it from, received both.")
    else:
        u = tf.convert_to_tensor(u, precise_dtype(logits.dtype))
        expected = tf.TensorShape([rows, *logits.shape])
        if not u.shape.is_compatible_with(expected):
            raise ValueError(f"u must have shape [rows, ..., V] = {expected}, received {u.shape}.")
    parameters = {
        name: tf.constant(value, u.dtype) for name, value in row.initial_parameters(units).items()
    }
    run = lambda f, logits, u: _run(row, f, logits, u, parameters, options)
    estimate = at_any_precision(run, lambda b, **_: f(b), logits, u)
    return attach_gradient(estimate.value, logits, estimate.grad_logits)


def precise_dtype(dtype):
    """The dtype of noise and arithmetic for logits of a dtype: double, or else single precision."""
    return tf.float64 if tf.as_dtype(dtype) == tf.float64 else tf.float32


def _draw(logits, rows, seed=None):
    """Uniform noise [rows, ..., V] for logits [..., V]."""
    shape, dtype = tf.concat([[rows], tf.shape(logits)], axis=0), precise_dtype(logits.dtype)
    if seed is None:
        u = tf.random.uniform(shape, dtype=dtype)
    else:
        seed = seed if np.ndim(seed) else [operator.index(seed), 0]
        seed = tf.cast(seed, tf.int32)
        # By name: what XLA chooses by itself takes ten times as long on a CPU.
        u = tf.random.stateless_uniform(shape, seed, dtype=dtype, alg="philox")
    return tf.ensure_shape(u, [rows, *logits.shape])


def _run(row, f, logits, u, parameters, options):
    """The `Estimate` of a row of the table."""
    arguments = [parameters] if parameters else []
    return row(f, tf.stop_gradient(logits), u, *arguments, **options)


def at_any_precision(run, f, logits, u):
    """`run(f, logits, u)`, an `Estimate`, for logits of any floating dtype.

    f is given samples in the dtype of the logits, whatever the noise has, and an error names what
    it should have returned. Logits that are NaN make the estimate NaN.
    """

    def checked(b, **sample):
        values = tf.convert_to_tensor(f(tf.cast(b, logits.dtype), **sample))
        if not values.shape.is_compatible_with(b.shape[:-1]):
            raise ValueError(
                f"f must map samples {b.shape} to one value each, shape {b.shape[:-1]}; "
                f"received values of shape {values.shape}."
            )
        if values.dtype not in (logits.dtype, b.dtype):
            raise ValueError(
                f"f must return values of dtype {logits.dtype.name} for samples of that dtype, "
                f"received {values.dtype.name}."
            )
        return tf.cast(values, b.dtype)

    estimate = run(checked, tf.cast(logits, u.dtype), u)
    valid = ~tf.reduce_any(tf.math.is_nan(logits), axis=-1)
    nan = tf.constant(math.nan, u.dtype)
    return estimate._replace(
        value=tf.where(valid, estimate.value, nan),
        grad_logits=tf.where(valid[..., tf.newaxis], estimate.grad_logits, nan),
    )


class GradientEstimator(keras.layers.Layer):
    """An estimator of the table for one layer of units, with the parameters that it learns.

    Args:
      estimator: a name from `arm_tf.estimators.TABLE`.
      units: int V.
      num_samples: int K, or None for the estimator's own number.
      **options: settings of the estimator, such as temperature.

    Attributes:
      evaluations: evaluations of f for each datum.
      rows: rows of noise for each datum.
      width: samples that get noise of their own in the layers after.
      paths: paths through a network's layers that its samples start from.

    Raises:
      ValueError: an unknown estimator, too small a num_samples, or too many units.
    """

    def __init__(self, estimator, units, num_samples=None, dtype=None, **options):
        super().__init__(dtype=dtype)
        self.row, self.num_samples = estimators.check(estimator, num_samples, units, options)
        self.options = options
        self.evaluations = self.row.evaluations(self.num_samples, units)
        self.rows = self.row.rows(self.num_samples, units)
        self.width = self.row.width(self.num_samples, units)
        self.paths = self.num_samples if self.row.objective == "multisample" else 1
        self.parameters = {
            name: self.add_weight(
                shape=np.shape(value),
                initializer=lambda shape, dtype, value=value: tf.cast(value, dtype),
                trainable=name not in self.row.averages,
                aggregation="mean",  # of what the replicas of a distributed training observe
                autocast=False,
                name=name,
            )
            for name, value in self.row.initial_parameters(units).items()
        }
        for name, variable in self.parameters.items():
            setattr(self, f"_{name}", variable)  # which tf.train.Checkpoint looks for
        self.built = True

    def estimate(self, f, logits, u, learn=True):
        """Runs the estimator.

        Args:
          f, logits, u: as in `arm_tf.estimators`.
          learn: whether parameters that are not learned by gradient take their next values.

        Returns:
          value: float [...].
          grad_logits: float [..., V].
          learning: zero, to be added to a loss; its gradient in the learned parameters is the
            one by which the estimator wants to descend.
        """
        estimate = self.run(f, logits, u)
        if learn:
            self.update(estimate.new_parameters)
        return estimate.value, estimate.grad_logits, self.learning(estimate)

    def run(self, f, logits, u):
        """The `arm_tf.estimators.Estimate` with the present parameters, which stay as they are."""
        return _run(self.row, f, logits, u, self._values(), self.options)

    def update(self, new_parameters):
        """Gives parameters that are not learned by gradient their next values; the operations."""
        pairs = new_parameters.items()
        operations = [self.parameters[name].value.assign(value) for name, value in pairs]
        return [] if tf.executing_eagerly() else operations

    def learning(self, estimate):
        """Zero, whose gradient in the learned parameters is that of an estimate."""
        learning = tf.zeros([], estimate.grad_logits.dtype)
        for name, grad in estimate.parameter_grads.items():
            learning += _zero_with_gradient(self.parameters[name].value, grad)
        return learning

    def sample(self, logits, u):
        """A sample of a row that has a derivative in its logits, and parameters' next values."""
        arguments = [self._values()] if self.parameters else []
        return self.row.sample(logits, u, *arguments, **self.options)

    def _values(self):
        return {name: tf.convert_to_tensor(p) for name, p in self.parameters.items()}


def path_noise_rows(gradient_estimators):
    """Rows of uniform noise that `path_expectation` needs for one datum; int.

    Layer t takes its estimator's rows, and for each layer after it a row for each sample, unless
    the estimator judges whole paths.
    """
    num_layers = len(gradient_estimators)
    return sum(
        estimator.rows + (0 if estimator.row.joint else estimator.width * (num_layers - 1 - t))
        for t, estimator in enumerate(gradient_estimators)
    )


def path_expectation(f, maps, x, u, gradient_estimators):
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
    return surrogate, f_mean, tf.add_n(all_learning)


def _continue(f, path, path_logits, later_maps, noise):
    """f as a function of one layer's samples, each continued through the layers after it."""

    def f_t(b, sample=bernoulli.sample):
        size = b.shape[0]
        later, later_logits = sample_path(later_maps, b, cycle(noise, size), sample)
        return f([*cycle(path, size), b, *later], [*cycle(path_logits, size), *later_logits])

    return f_t


def connected(f):
    """f, whose derivative is zero, not missing, where further samples are all that depends on b."""
    return lambda b, **sample: f(b, **sample) + 0.0 * tf.reduce_sum(b, axis=-1)


def cycle(arrays, size):
    """Each of the arrays [S, ...] repeated to [size, ...], or as it is if S is 1."""

    def repeat(array):
        if array.shape[0] == 1:
            return array
        copies = -(-size // array.shape[0])
        return tf.tile(array, [copies] + [1] * (array.shape.rank - 1))[:size]

    return [repeat(array) for array in arrays]


def sample_path(maps, x, noise, sample=bernoulli.sample):
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
    path, path_logits = [], []
    for layer_map, u in zip(maps, noise, strict=True):
        path_logits.append(layer_map(path[-1] if path else x))
        path.append(sample(path_logits[-1], u))
    return path, path_logits


@keras.saving.register_keras_serializable(package="arm_tf")
class StochasticBinary(keras.layers.Layer):
    """Stochastic binary units, b ~ prod_v Bernoulli(sigmoid(logits_v)), that can be trained.

    The layer's input are the logits; put a `keras.layers.Dense` before it for a dense map.

    - `layer(logits)` samples b, [..., V]. In an `arm_tf.StochasticModel` the estimator trains the
      layers below under whatever loss the model is compiled with. Without one, the samples of an
      estimator that is a derivative of sampling (`concrete`, `st`, `st_annealed`, `st_gumbel`,
      `darn`) have that derivative, and the net trains by plain backpropagation; a sample of
      another estimator has none, and asking for a gradient through it raises an error in place of
      leaving the layers below untrained. `concrete` gives relaxed samples, numbers between 0
      and 1, but where `training=False`.
    - `layer(logits, f=f)` estimates E[f(b)] as `arm_tf.expectation` does, float [...] for logits
      [..., V]. The gradient in the logits is the estimator's, by `tf.custom_gradient`, and f's own
      variables get the gradient of the average. What an estimator learns is trained with the
      rest of the model; moving averages move where the gradient is taken, unless
      `training=False`.

    Noise and thresholds have at least single precision under any dtype policy. Replicas of a
    `tf.distribute` strategy draw noise of their own. Where a logit is NaN its sample is.

    Args:
      estimator: a name from `arm_tf.estimators.TABLE`.
      num_samples: int, noise samples that the estimator averages over; None for its own number.
      seed: int, for reproducible noise; None for other noise in each process.
      **kwargs: settings of the estimator, such as temperature=0.5, and arguments of
        `keras.layers.Layer`.

    Raises:
      ValueError: an unknown estimator, a setting that it does not have or cannot use, too small a
        num_samples, or too many units.
    """

    def __init__(self, estimator="arm", num_samples=None, seed=None, **kwargs):
        options = {name: kwargs.pop(name) for name in estimators.OPTIONS if name in kwargs}
        super().__init__(**kwargs)
        row, self.num_samples = estimators.check(estimator, num_samples, options=options)
        self.estimator = estimator
        self.options = options
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        self._has_sample = row.relaxation is not None

    def build(self, logits_shape):
        self.gradient_estimator = GradientEstimator(
            self.estimator,
            logits_shape[-1],
            self.num_samples,
            dtype=precise_dtype(self.compute_dtype).name,
            **self.options,
        )

    def call(self, logits, f=None, training=None):
        estimator = self.gradient_estimator
        if f is None:
            u = self.noise(logits, 1)[0]
            b = self.sample(logits, u, training)
            return tf.where(tf.math.is_nan(logits), logits, b)
        if not callable(f):
            raise ValueError(f"f must be a function of the samples, received {f!r}.")
        u = self.noise(logits, estimator.rows)
        estimate = at_any_precision(estimator.run, lambda b, **_: f(b), logits, u)
        if estimator.trainable_variables:
            self.add_loss(estimator.learning(estimate))
        learn = lambda: () if training is False else estimator.update(estimate.new_parameters)
        return attach_gradient(estimate.value, logits, estimate.grad_logits, learn)

    def noise(self, logits, rows):
        """Uniform noise [rows, ..., V] for logits [..., V], at least in single precision."""
        seed = tf.cast(self.seed_generator.next(), tf.int32)
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            replica = context.replica_id_in_sync_group
            seed = tf.random.experimental.stateless_fold_in(seed, replica)
        return _draw(logits, rows, seed)

    def sample(self, logits, u, training):
        """Units [..., V] at noise u, in the dtype of the logits and with the row's gradient."""
        precise = tf.cast(logits, u.dtype)
        if training is False:
            return tf.cast(bernoulli.sample(precise, u), logits.dtype)
        if self._has_sample:
            b, new_parameters = self.gradient_estimator.sample(precise, u)
            learn = lambda: self.gradient_estimator.update(new_parameters)
            return tf.cast(_call_in_gradient(b, learn), logits.dtype)
        return tf.cast(_sample_without_gradient(precise, u), logits.dtype)

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        # Keras does not tell TensorFlow's checkpoints and SavedModels of the noise's position.
        children = super()._trackable_children(save_type, **kwargs)
        return {**children, "seed_state": self.seed_generator.state}

    def compute_output_spec(self, logits, f=None, training=None):
        if f is None:
            return keras.KerasTensor(logits.shape, self.compute_dtype)
        dtype = precise_dtype(self.compute_dtype).name
        return keras.KerasTensor(logits.shape[:-1], dtype)

    def compute_output_shape(self, logits_shape):
        return logits_shape

    def get_config(self):
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "num_samples": self.num_samples,
            "seed": self.seed,
            **self.options,
        }


def _call_in_gradient(b, learn):
    """`b`, and `learn()` where a gradient flows back through it."""

    @tf.custom_gradient
    def identity(b):
        def gradient(upstream):
            with tf.control_dependencies(learn()):
                return tf.identity(upstream)

        return tf.identity(b), gradient

    return identity(b)


@tf.custom_gradient
def _sample_without_gradient(logits, u):
    def gradient(upstream):
        if save_context.in_save_context():  # SavedModel asks for the gradient to write it down
            return tf.fill(tf.shape(logits), tf.constant(math.nan, logits.dtype)), None
        raise ValueError(
            "A binary sample has no gradient in its logits. To train the layers below, wrap the "
            "model in arm_tf.StochasticModel, or call the StochasticBinary layer as "
            "layer(logits, f=f) with the loss as a function f of the samples."
        )

    return bernoulli.sample(logits, u), gradient

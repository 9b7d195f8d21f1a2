"""E[f(b)] for one vector of stochastic binary units, with an estimator's gradient.

`expectation` is a function of logits; `GradientEstimator` holds the parameters that an estimator
learns. Both bind a row of `arm_tf.estimators` to gradients by `tf.custom_gradient`.
"""

import math
import operator
import typing
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import schedules

from arm_tf import estimators

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"arm_tf computes with TensorFlow, and Keras is set to {keras.config.backend()!r}: set "
        "KERAS_BACKEND=tensorflow (or `backend` in ~/.keras/keras.json) before the first import."
    )


def attach_gradient(
    value: tf.Tensor,
    logits: tf.Tensor,
    grad_logits: tf.Tensor,
    learn: Callable[[], Sequence[tf.Operation]] = lambda: (),
) -> tf.Tensor:
    """`value`, with `grad_logits` as its gradient in `logits`.

    Args:
      value: float [...].
      logits: float [..., V], of any floating dtype.
      grad_logits: float [..., V], in which no gradient flows.
      learn: called where the gradient is taken, and only there; returns operations that belong to
        that.

    Returns:
      float [...]; a second derivative in the logits raises a ValueError.
    """

    @tf.custom_gradient
    def attach(value, logits, grad_logits):
        def gradient(upstream):
            once = _differentiable_no_further(grad_logits, logits)
            grad = tf.cast(upstream, grad_logits.dtype)[..., tf.newaxis] * once
            return upstream, tf.cast(grad, logits.dtype), None

        return tf.identity(value), gradient

    attached = attach(value, logits, grad_logits)
    return gradient_after(attached, lambda: [grad_logits, *learn()])


@tf.custom_gradient
def _differentiable_no_further(grad_logits: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    def gradient(upstream):
        raise ValueError(
            "A gradient estimate has no derivative: second derivatives through the logits of "
            "binary units are not estimated. Put tf.stop_gradient around the first derivative, or "
            "write the loss as a sum over all vectors of bits, weighed by their probabilities."
        )

    return tf.identity(grad_logits), gradient


def gradient_after(
    x: tf.Tensor, before: Callable[[], Sequence[tf.Tensor | tf.Operation]]
) -> tf.Tensor:
    """`x`, whose gradient flows back once other tensors and operations are there.

    An estimate evaluates f where no gradient flows, so that only TensorFlow's order of reads and
    writes keeps an optimiser's step from writing the variables before f has read them. Keras's
    optimisers pass all gradients through one operation, and TensorFlow's graph optimiser (2.21)
    drops first that order, as implied by the operation, and then the operation: without XLA, some
    values of f would be those of the next step's variables.

    Args:
      x: float [...].
      before: called where the gradient is taken, and only there.
    """

    @tf.custom_gradient
    def identity(x):
        def gradient(upstream):
            with tf.control_dependencies(before()):
                return tf.identity(upstream)

        return tf.identity(x), gradient

    return identity(x)


@tf.custom_gradient
def _zero_with_gradient(parameter: tf.Variable, grad: tf.Tensor) -> tf.Tensor:
    """Zero, whose gradient in `parameter` is `grad`."""
    return tf.zeros([], grad.dtype), lambda upstream: (upstream * grad, None)


def expectation(
    f: Callable[[tf.Tensor], tf.Tensor],
    logits: tf.types.experimental.TensorLike,
    *,
    estimator: str = "arm",
    num_samples: int | None = None,
    u: tf.types.experimental.TensorLike | None = None,
    seed: tf.types.experimental.TensorLike | None = None,
    **options: float,
) -> tf.Tensor:
    """Monte Carlo estimate of E[f(b)], b ~ prod_v Bernoulli(sigmoid(logits_v)).

    The value is the average of f over the samples that the estimator evaluates, or over those that
    its docstring names (for an estimator of the objective "multisample", the bound
    log mean_k exp f(b_k)). Its gradient with respect to
    `logits` is the estimator's, for ARM

      (1/K) sum_k (f(b_anti_k) - f(b_k)) (u_k - 1/2)      (Yin & Zhou 2019, theorem 1);

    with respect to variables that f uses, it is the gradient of the average. The derivative of f
    in b is used only by the estimators whose row in the table says so.

    The estimators hold f fixed in the logits. Where f contains them, as log q(b) in an ELBO
    does, wrap them in `tf.stop_gradient` inside f: their direct gradient has mean zero and
    would only add variance. The estimators of the objective "multisample" expect an f with that
    term, log p(b) - log q(b), and add its direct gradient, which then matters.

    An estimator that learns something, or keeps averages, has their first values in every call:
    `nvil` and `reinforce_baseline` are `reinforce` here, `double_cv` and `rodeo` are `loo`, `relax`
    is `rebar`, `st_annealed` is `st`. `StochasticBinary` and `arm_tf.train` keep and train them.

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
      u: uniform noise [rows, ..., V] to threshold, for exact tests; drawn when None. An
        estimator takes `arm_tf.estimators.get(estimator).rows(K, V)` rows of it.
      seed: int or pair of ints that determines the noise; None draws afresh at each call.
      **options: settings of the estimator, such as temperature: numbers, or scalar tensors and
        variables, which are used at no less than the setting's limit.

    Returns:
      Float [...], in the dtype of `logits` but at least float32; differentiable once in `logits`
      and in whatever f uses.

    Raises:
      ValueError: an unknown estimator or option, too small a num_samples, too many units for the
        estimator, logits that are not floating point, noise or values of f of the wrong shape,
        an f without the derivative that the estimator needs, or both `u` and `seed`.
    """
    return _expectation(converted(f), logits, estimator, num_samples, u, seed, options)


def converted(f: typing.Any) -> typing.Any:
    """f as AutoGraph has it where this is called; what calls f then need not be converted."""
    if not callable(f):
        raise ValueError(f"f must be a function of the samples, received {f!r}.")
    autograph = tf.__internal__.autograph
    return autograph.tf_convert(f, autograph.control_status_ctx())


@tf.autograph.experimental.do_not_convert
def _expectation(
    f: Callable[[tf.Tensor], tf.Tensor],
    logits: tf.types.experimental.TensorLike,
    estimator: str,
    num_samples: int | None,
    u: tf.types.experimental.TensorLike | None,
    seed: tf.types.experimental.TensorLike | None,
    options: dict[str, typing.Any],
) -> tf.Tensor:
    logits = tf.convert_to_tensor(logits)
    if not logits.dtype.is_floating or not logits.shape.rank or logits.shape[-1] is None:
        raise ValueError(
            "logits must be floating point of shape [..., V] with V known, "
            f"received dtype {logits.dtype.name} and shape {logits.shape}."
        )
    units = logits.shape[-1]
    row, num_samples = estimators.check(estimator, num_samples, units, options)
    rows = row.rows(num_samples, units)
    if u is None:
        u = draw(logits, rows, seed)
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
    if any(isinstance(value, schedules.LearningRateSchedule) for value in options.values()):
        raise ValueError(
            "A schedule counts steps, and a function keeps nothing between calls: give "
            f"expectation the number of the moment, received {options}."
        )
    options = _present(row, options, None, u.dtype)
    run = lambda f, logits, u: _run(row, f, logits, u, parameters, options)
    estimate = at_any_precision(run, lambda b, **_: f(b), logits, u)
    return attach_gradient(estimate.value, logits, estimate.grad_logits)


def precise_dtype(dtype: tf.DType | str) -> tf.DType:
    """The dtype of noise and arithmetic for logits of a dtype: double, or else single precision."""
    return tf.float64 if tf.as_dtype(dtype) == tf.float64 else tf.float32


def draw(
    logits: tf.Tensor, rows: int, seed: tf.types.experimental.TensorLike | None = None
) -> tf.Tensor:
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


_VARIABLES = (tf.Variable, keras.Variable)


def _present(
    row: estimators.Estimator,
    options: Mapping[str, typing.Any],
    step: keras.Variable | None,
    dtype: tf.DType,
) -> dict[str, typing.Any]:
    """The values that options have at present: numbers, or tensors of no less than their limits."""
    lows = {option.name: option.low for option in row.options}

    def present(name, value):
        if isinstance(value, (int, float)):
            return value
        if isinstance(value, schedules.LearningRateSchedule):
            value = value(tf.convert_to_tensor(step))
        value = tf.cast(tf.convert_to_tensor(value), dtype)
        return tf.maximum(tf.stop_gradient(value), tf.constant(lows[name], dtype))

    return {name: present(name, value) for name, value in options.items()}


def option_config(option: typing.Any) -> typing.Any:
    """What `option_from_config` makes a layer's option from: a number or a dict."""
    if isinstance(option, schedules.LearningRateSchedule):
        return schedules.serialize(option)
    if isinstance(option, _VARIABLES):
        return {"variable": float(option.numpy())}
    return option


def option_from_config(config: typing.Any) -> typing.Any:
    """The number, variable or schedule; what is no dict is one already."""
    if not isinstance(config, dict):
        return config
    if "variable" in config:
        return keras.Variable(config["variable"], trainable=False)
    return schedules.deserialize(config)


def _run(
    row: estimators.Estimator,
    f: Callable[..., tf.Tensor],
    logits: tf.Tensor,
    u: tf.Tensor,
    parameters: dict[str, tf.Tensor],
    options: dict[str, float],
) -> estimators.Estimate:
    """The `Estimate` of a row of the table."""
    arguments = [parameters] if parameters else []
    return row(f, tf.stop_gradient(logits), u, *arguments, **options)


def at_any_precision(
    run: Callable[..., estimators.Estimate],
    f: Callable[..., tf.Tensor],
    logits: tf.Tensor,
    u: tf.Tensor,
) -> estimators.Estimate:
    """`run(f, logits, u)`, an `Estimate`, for logits of any floating dtype.

    f is given samples in the dtype of the logits, whatever the noise has, and an error names what
    it should have returned. Logits that are NaN make the estimate NaN.
    """

    def checked(b, **sample):
        values = f(tf.cast(b, logits.dtype), **sample)
        if values is None:
            raise ValueError(f"f must map samples {b.shape} to one value each, received None.")
        values = tf.convert_to_tensor(values)
        if not values.shape.is_compatible_with(b.shape[:-1]):
            raise ValueError(
                f"f must map samples {b.shape} to one value each, shape {b.shape[:-1]}; "
                f"received values of shape {values.shape}."
            )
        if not (values.shape.is_fully_defined() and b.shape.is_fully_defined()):
            message = "f must map samples [S, ..., V] to one value each, shape [S, ...]."
            tf.debugging.assert_equal(tf.shape(values), tf.shape(b)[:-1], message)
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
      **options: settings of the estimator, such as temperature: numbers, scalar variables, or
        schedules of the steps that have been counted in `step`.

    Attributes:
      evaluations: evaluations of f for each datum.
      rows: rows of noise for each datum.
      width: samples that get noise of their own in the layers after.
      paths: paths through a network's layers that its samples start from.

    Raises:
      ValueError: an unknown estimator, too small a num_samples, or too many units.
    """

    def __init__(
        self,
        estimator: str,
        units: int,
        num_samples: int | None = None,
        dtype: str | None = None,
        **options: float,
    ) -> None:
        super().__init__(dtype=dtype)
        self.row, self.num_samples = estimators.check(estimator, num_samples, units, options)
        self.options = options
        self.evaluations = self.row.count(self.num_samples, units, **options)
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
        self.step = None
        if any(isinstance(value, schedules.LearningRateSchedule) for value in options.values()):
            zeros = keras.initializers.Zeros()
            self.step = self.add_weight((), zeros, "int64", trainable=False, name="step")
        self._variables_of_options = [v for v in options.values() if isinstance(v, _VARIABLES)]
        self.built = True

    def save_own_variables(self, store: typing.Any) -> None:
        for i, variable in enumerate(self._saved_variables()):
            store[str(i)] = variable.numpy()

    def load_own_variables(self, store: typing.Any) -> None:
        variables = self._saved_variables()
        if len(store.keys()) != len(variables):
            raise ValueError(
                f"The weights of {self.row.name!r} were saved with {len(store.keys())} variables, "
                f"and it has {len(variables)} here; give it the same estimator and settings."
            )
        for i, variable in enumerate(variables):
            variable.assign(store[str(i)])

    def _saved_variables(self) -> list[typing.Any]:
        """The layer's own and those of its options, each once."""
        variables = [*self.variables, *self._variables_of_options]
        return list({id(variable): variable for variable in variables}.values())

    def estimate(
        self, f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor, learn: bool = True
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
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

    def run(
        self, f: Callable[..., tf.Tensor], logits: tf.Tensor, u: tf.Tensor
    ) -> estimators.Estimate:
        """The `arm_tf.estimators.Estimate` with the present parameters, which stay as they are."""
        return _run(self.row, f, logits, u, self._values(), self._present_options(u))

    def update(self, new_parameters: dict[str, tf.Tensor]) -> list[tf.Operation]:
        """Counts a step and gives parameters that no gradient teaches their next values.

        Returns:
          The operations, a list.
        """
        pairs = new_parameters.items()
        operations = [self.parameters[name].value.assign(value) for name, value in pairs]
        if self.step is not None:
            operations.append(self.step.value.assign_add(1))
        return [] if tf.executing_eagerly() else operations

    def learning(self, estimate: estimators.Estimate) -> tf.Tensor:
        """Zero, whose gradient in the learned parameters is that of an estimate."""
        learning = tf.zeros([], estimate.grad_logits.dtype)
        for name, grad in estimate.parameter_grads.items():
            learning += _zero_with_gradient(self.parameters[name].value, grad)
        return learning

    def sample(self, logits: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """A sample of a row that has a derivative in its logits, and parameters' next values."""
        arguments = [self._values()] if self.parameters else []
        return self.row.sample(logits, u, *arguments, **self._present_options(u))

    def _present_options(self, u: tf.Tensor) -> dict[str, typing.Any]:
        return _present(self.row, self.options, self.step, u.dtype)

    def _values(self) -> dict[str, tf.Tensor]:
        return {name: tf.convert_to_tensor(p) for name, p in self.parameters.items()}

"""The Keras layer of stochastic binary units."""

import concurrent.futures
import contextlib
import contextvars
import math
import types
import typing
import warnings
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.saved_model import save_context

from arm_tf import bernoulli, estimators
from arm_tf.expectation import (
    GradientEstimator,
    at_any_precision,
    attach_gradient,
    converted,
    draw,
    gradient_after,
    option_config,
    option_from_config,
    precise_dtype,
)

_Result = typing.TypeVar("_Result")


def eagerly(function: Callable[[], _Result]) -> _Result:
    """What a function returns in a thread of its own, without the caller's graph, scope or tape."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


_likeliest = contextvars.ContextVar[bool | None]("arm_tf_likeliest", default=None)


@contextlib.contextmanager
def likeliest_bits(chosen: bool | None) -> Iterator[None]:
    """Lets layers infer by their likeliest bits, or not, whatever they say; None leaves it."""
    token = _likeliest.set(_likeliest.get() if chosen is None else chosen)
    try:
        yield
    finally:
        _likeliest.reset(token)


@keras.saving.register_keras_serializable(package="arm_tf")
class StochasticBinary(keras.layers.Layer):
    """Stochastic binary units, b ~ prod_v Bernoulli(sigmoid(logits_v)), that can be trained.

    The layer's inputs are the logits; put a `keras.layers.Dense` before it for a dense map.

    - `layer(logits)` samples b, [..., V]. In an `arm_tf.StochasticModel` the estimator trains the
      layers below under whatever loss the model is compiled with. Without one, the samples of an
      estimator that is a derivative of sampling (`concrete`, `darn`, `st` and their like, whose
      rows have a `relaxation`) have that derivative, and the net trains by plain backpropagation; a
      sample of another, or with `training=False`, has none, and asking for a gradient through it
      raises an error in place of leaving the layers below untrained. `concrete` gives relaxed
      samples, numbers between 0 and 1, but where `training=False`.
    - `layer(logits, f=f)` estimates E[f(b)] as `arm_tf.expectation` does, float [...] for logits
      [..., V]. The gradient in the logits is the estimator's, by `tf.custom_gradient`, and f's own
      variables get the gradient of the average. What an estimator learns is trained with the
      rest of the model where the loss has `layer.losses` in it, as Keras's own loss has; moving
      averages move where the gradient is taken, unless `training=False`.

    Noise and thresholds have at least single precision under any dtype policy. Replicas of a
    `tf.distribute` strategy draw noise of their own. Where a logit is NaN its sample is.

    Args:
      estimator: a name from `arm_tf.estimators.TABLE`.
      num_samples: int, noise samples that the estimator averages over; None for its own number.
      seed: int, for reproducible noise; None for other noise in each process. Layers with the same
        seed draw the same noise: give each one of its own.
      deterministic: bool, whether inference (`training=False`) takes the likeliest bits,
        1[logits > 0], in place of samples.
      **kwargs: settings of the estimator, such as temperature, and arguments of
        `keras.layers.Layer`. A setting is a number; a scalar variable, whose value of the moment is
        used; or a `keras.optimizers.schedules.LearningRateSchedule` of the training steps of this
        layer. The last two are used at no less than the setting's limit, and saved with the layer.

    Raises:
      ValueError: an unknown estimator, a setting that it does not have or cannot use, too small a
        num_samples, or too many units.
    """

    def __init__(
        self,
        estimator: str = "arm",
        num_samples: int | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        **kwargs: typing.Any,
    ) -> None:
        if not isinstance(estimator, str):
            raise ValueError(
                f"estimator must be a name such as 'arm', received {estimator!r}; the layer has as "
                "many units as there are logits: put a keras.layers.Dense(units) before it."
            )
        options = {
            name: option_from_config(kwargs.pop(name))
            for name in estimators.OPTIONS
            if name in kwargs
        }
        try:
            super().__init__(**kwargs)
        except ValueError as error:
            if "Unrecognized keyword" not in str(error):
                raise
            raise ValueError(
                f"{error} The settings of estimators are {', '.join(estimators.OPTIONS)}."
            ) from None
        row, self.num_samples = estimators.check(estimator, num_samples, options=options)
        self.estimator = row.name
        self.options = types.MappingProxyType(options)  # a change would be missed by what is traced
        self.seed = seed
        self.deterministic = deterministic
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        self._has_sample = row.relaxation is not None

    def build(self, logits_shape: tuple) -> None:
        if not logits_shape or logits_shape[-1] is None:
            raise ValueError(
                f"The logits of {self.name!r} must have shape [..., V] with V known, received "
                f"{logits_shape}."
            )
        self.gradient_estimator = GradientEstimator(
            self.estimator,
            logits_shape[-1],
            self.num_samples,
            dtype=precise_dtype(self.compute_dtype).name,
            **self.options,
        )

    def call(
        self,
        logits: tf.Tensor,
        f: Callable[[tf.Tensor], tf.Tensor] | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        self.check_dtype(logits)
        return self._call(logits, None if f is None else converted(f), training)

    @tf.autograph.experimental.do_not_convert
    def _call(
        self,
        logits: tf.Tensor,
        f: Callable[[tf.Tensor], tf.Tensor] | None,
        training: bool | None,
    ) -> tf.Tensor:
        estimator = self.gradient_estimator
        if f is None:
            u = self.noise(logits, 1)[0]
            b = self.sample(logits, u, training)
            return tf.where(tf.math.is_nan(logits), logits, b)
        u = self.noise(logits, estimator.rows)
        estimate = at_any_precision(estimator.run, lambda b, **_: f(b), logits, u)
        if estimator.trainable_variables:
            self.add_loss(estimator.learning(estimate))
        learn = lambda: () if training is False else estimator.update(estimate.new_parameters)
        return attach_gradient(estimate.value, logits, estimate.grad_logits, learn)

    def check_dtype(self, logits: tf.Tensor | keras.KerasTensor) -> None:
        """Raises ValueError unless the logits are floating point, as Keras leaves integers."""
        if not tf.as_dtype(logits.dtype).is_floating:
            raise ValueError(
                f"The logits of {self.name!r} must be floating point, received dtype "
                f"{tf.as_dtype(logits.dtype).name} and shape {tuple(logits.shape)}."
            )

    def _warn_of_activation(self, logits: keras.KerasTensor) -> None:
        """Warns where Keras's layer or operation before puts out no negative numbers."""
        history = getattr(logits, "_keras_history", None)
        before: typing.Any = history.operation if history else None
        activation = getattr(before, "activation", None)
        if activation is None and not getattr(before, "weights", ()):
            activation = before
        if activation is None or not type(before).__module__.startswith("keras."):
            return
        numbers = np.linspace([-9.0, 9.0], [9.0, -9.0], 19, dtype="float32")
        try:
            least = eagerly(lambda: float(tf.reduce_min(activation(tf.constant(numbers)))))
        except Exception:  # it takes something else than a matrix
            return
        if least >= 0:
            warnings.warn(
                f"{self.name!r} takes logits, which are negative for bits that are more often 0, "
                f"and {before.name!r} before it puts out no negative numbers: leave out its "
                f"activation ({getattr(activation, '__name__', before.name)}).",
                stacklevel=2,
            )

    def noise(self, logits: tf.Tensor, rows: int) -> tf.Tensor:
        """Uniform noise [rows, ..., V] for logits [..., V], at least in single precision."""
        seed = tf.cast(self.seed_generator.next(), tf.int32)
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            replica = context.replica_id_in_sync_group
            seed = tf.random.experimental.stateless_fold_in(seed, replica)
        return draw(logits, rows, seed)

    def sample(self, logits: tf.Tensor, u: tf.Tensor, training: bool | None) -> tf.Tensor:
        """Units [..., V] at noise u, in the dtype of the logits and with the row's gradient."""
        precise = tf.cast(logits, u.dtype)
        if not self._has_sample or training is False:
            chosen = _likeliest.get()
            if not training and (self.deterministic if chosen is None else chosen):
                u = tf.fill(tf.shape(u), tf.constant(0.5, u.dtype))
            return tf.cast(_sample_without_gradient(precise, u), logits.dtype)
        b, new_parameters = self.gradient_estimator.sample(precise, u)
        learn = lambda: self.gradient_estimator.update(new_parameters)
        return tf.cast(gradient_after(b, learn), logits.dtype)

    def _trackable_children(
        self, save_type: str = "checkpoint", **kwargs: typing.Any
    ) -> dict[str, typing.Any]:
        # Keras does not tell TensorFlow's checkpoints and SavedModels of the noise's position.
        children = super()._trackable_children(save_type, **kwargs)
        return {**children, "seed_state": self.seed_generator.state}

    def compute_output_spec(
        self,
        logits: keras.KerasTensor,
        f: Callable[[tf.Tensor], tf.Tensor] | None = None,
        training: bool | None = None,
    ) -> keras.KerasTensor:
        self.check_dtype(logits)
        self._warn_of_activation(logits)
        if f is None:
            return keras.KerasTensor(logits.shape, self.compute_dtype)
        dtype = precise_dtype(self.compute_dtype).name
        return keras.KerasTensor(logits.shape[:-1], dtype)

    def compute_output_shape(self, logits_shape: tuple) -> tuple:
        return logits_shape

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "deterministic": self.deterministic,
            **{name: option_config(option) for name, option in self.options.items()},
        }


@tf.custom_gradient
def _sample_without_gradient(logits: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    def gradient(upstream):
        return no_gradient(
            logits,
            "A binary sample has no gradient in its logits. To train the layers below, wrap the "
            "model in arm_tf.StochasticModel, or call the StochasticBinary layer as "
            "layer(logits, f=f) with the loss as a function f of the samples; to leave them as "
            "they are, sample from tf.stop_gradient(logits).",
        ), None

    return bernoulli.sample(logits, u), gradient


def no_gradient(x: tf.Tensor, reason: str) -> tf.Tensor:
    """Raises ValueError in place of a gradient in x; NaN where SavedModel writes it down."""
    if save_context.in_save_context():
        return tf.fill(tf.shape(x), tf.constant(math.nan, x.dtype))
    raise ValueError(reason)

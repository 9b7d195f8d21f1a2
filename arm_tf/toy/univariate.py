"""Gradient ascent on one logit, the univariate toy of Yin & Zhou (2019, section 4.1).

Maximises E[(z - p0)^2], z ~ Bernoulli(sigmoid(phi)), which is p0^2 + (1 - 2 p0) sigmoid(phi). The
nearer p0 to 1/2, the fainter the gradient beside the values of f.
"""

import typing
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from arm_tf import noise
from arm_tf.expectation import GradientEstimator

_ADAM_EPSILON = 1e-8


class Ascent:
    """Gradient ascent with one estimator, compiled once for all its calls.

    Args:
      name: of an estimator of the objective "elbo", which takes its own number of samples.
      iterations: int.
      learning_rate: float, Adam's for what the estimator learns.

    Attributes:
      estimator: the `arm_tf.expectation.GradientEstimator`, as the last call left it.
    """

    def __init__(self, name: str, iterations: int = 3000, learning_rate: float = 1e-3) -> None:
        self.estimator = GradientEstimator(name, units=1, dtype="float64")
        self._iterations = iterations
        self._learned = self.estimator.trainable_variables
        self._optimizer = keras.optimizers.Adam(learning_rate, epsilon=_ADAM_EPSILON)
        self._optimizer.build(self._learned)
        variables = self.estimator.variables + self._optimizer.variables
        self._state = [variable.value for variable in variables]
        self._initial_state = [tf.identity(variable) for variable in self._state]
        self._compiled = tf.function(self._climb, jit_compile=True, autograph=False)

    def __call__(self, p0: float, step_size: float = 1.0, seed: int = 0) -> dict[str, typing.Any]:
        """Climbs afresh from phi = 0, phi += step_size * estimate.

        Args:
          p0: float.
          step_size: float.
          seed: int. Noise is a function of (seed, p0, iteration), and the same for estimators
            that take as many rows of it.

        Returns:
          dict of float64 [iterations], "true_gradient", "estimate", "probability" sigmoid(phi) and
          "loss" -E[(z - p0)^2], all at the phi that an iteration begins with, and a float,
          "final_probability", after the last one.
        """
        for variable, value in zip(self._state, self._initial_state, strict=True):
            variable.assign(value)
        u = _noise(seed, f"toy {p0}", self._iterations, self.estimator.rows)
        p0_and_step = tf.constant([p0, step_size], tf.float64)
        logits, estimates = self._compiled(*tf.unstack(p0_and_step), u)
        logits = np.append(0.0, logits[:, 0])
        probs = tf.sigmoid(logits).numpy()
        return {
            "true_gradient": true_gradient(logits[:-1], p0),
            "estimate": estimates[:, 0].numpy(),
            "probability": probs[:-1],
            "loss": -(p0**2 + (1.0 - 2.0 * p0) * probs[:-1]),
            "final_probability": float(probs[-1]),
        }

    def _climb(
        self, p0: tf.Tensor, step_size: tf.Tensor, u: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits after each iteration and the estimates that led there, both [iterations, 1]."""

        def step(logits_and_grad, u):
            logits, _ = logits_and_grad
            with tf.GradientTape() as tape:
                _, grad_logits, learning = self.estimator.estimate(_objective(p0), logits, u)
            if self._learned:
                grads = tape.gradient(learning, [variable.value for variable in self._learned])
                self._optimizer.apply(grads, self._learned)
            return logits + step_size * grad_logits, grad_logits

        zero = tf.zeros([1], tf.float64)
        return tf.scan(step, u, (zero, zero))


def true_gradient(logits: np.ndarray, p0: float) -> np.ndarray:
    """(1 - 2 p0) p (1 - p), p = sigmoid(phi), the gradient of E[(z - p0)^2]; float64 [...]."""
    decay = np.exp(-np.abs(logits))
    return (1.0 - 2.0 * p0) * decay / (1.0 + decay) ** 2


def true_path(p0: float, iterations: int, step_size: float = 1.0) -> np.ndarray:
    """The phi that each iteration of ascent by the true gradient begins with; float64 [N]."""
    logits = np.zeros(iterations)
    for i in range(1, iterations):
        logits[i] = logits[i - 1] + step_size * true_gradient(logits[i - 1], p0)
    return logits


def estimates_along(
    name: str, logits: np.ndarray, p0: float, num_samples: int, seed: int = 0
) -> np.ndarray:
    """One gradient estimate of several samples at each of many logits.

    Args:
      name: of an estimator of the objective "elbo"; what it learns has its first values.
      logits: float64 [N].
      p0: float.
      num_samples: int K.
      seed: int.

    Returns:
      float64 [N].
    """
    estimator = GradientEstimator(name, units=1, num_samples=num_samples, dtype="float64")
    u = _noise(seed, f"toy gradients {p0}", len(logits), estimator.rows)
    u = tf.transpose(u, [1, 0, 2])
    _, grad_logits, _ = estimator.estimate(_objective(p0), tf.constant(logits)[:, tf.newaxis], u)
    return grad_logits[:, 0].numpy()


def _objective(p0: float | tf.Tensor) -> Callable[..., tf.Tensor]:
    return lambda b, sample=None: (b[..., 0] - p0) ** 2


def _noise(seed: int, purpose: str, iterations: int, rows: int) -> tf.Tensor:
    u = noise.uniforms(noise.key(seed, purpose), 0, [iterations, rows, 1])
    return tf.cast(u, tf.float64)

"""Running variance of gradient estimates along a training run."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from arm_tf.expectation import GradientEstimator
from arm_tf.models.network import BinaryNetwork
from arm_tf.training import replicas

_DECAY = 0.999


class VarianceTracker(keras.layers.Layer):
    """Running variance of several estimators' gradients in the encoder, on one trajectory.

    For each estimator, exponential averages (decay 0.999) of the batch gradient g of the encoder's
    weights and of g^2; the variance is the mean over weights of E[g^2] - E[g]^2. As in the
    literature's figures, it holds the drift of the weights and the change of batch too.

    Args:
      gradient_estimators: by name, T instances of `arm_tf.expectation.GradientEstimator`.
      encoder_variables: Keras variables.
    """

    def __init__(
        self,
        gradient_estimators: dict[str, list[GradientEstimator]],
        encoder_variables: Sequence[keras.Variable],
    ) -> None:
        super().__init__()
        self.gradient_estimators = gradient_estimators
        zeros = lambda shape, name: self.add_weight(
            shape=shape, initializer="zeros", trainable=False, aggregation="mean", name=name
        )
        self.steps = zeros((), "steps") if gradient_estimators else None
        self.averages = {
            name: [
                (zeros(v.shape, f"{name}_mean_{i}"), zeros(v.shape, f"{name}_square_{i}"))
                for i, v in enumerate(encoder_variables)
            ]
            for name in gradient_estimators
        }
        self.built = True

    def noise_rows(self, model: BinaryNetwork) -> int:
        """Rows of uniform noise that `update` needs for one datum; int."""
        groups = self.gradient_estimators.values()
        return sum(model.noise_rows(group, "shared") for group in groups)

    def update(self, model: BinaryNetwork, x: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        """Takes one gradient of each estimator into the averages.

        Args:
          model: `arm_tf.models.BinaryVAE`.
          x: float [batch, pixels].
          u: float [noise_rows(model), batch, units].

        Returns:
          Zero, whose gradient is that of the estimators' learned parameters.
        """
        learning, used = tf.zeros([]), 0
        variables = [variable.value for variable in model.variable_groups["encoder"]]
        for name, group in self.gradient_estimators.items():
            rows = model.noise_rows(group, "shared")
            with tf.GradientTape() as tape:
                loss, _, estimator_loss = model.losses(x, u[used : used + rows], group, "shared")
                loss = tf.reduce_mean(loss)
            used += rows
            learning += estimator_loss
            grads = replicas.mean(tape.gradient(loss, variables))
            for grad, (mean, square) in zip(grads, self.averages[name], strict=True):
                mean.assign_add((1.0 - _DECAY) * (grad - mean))
                square.assign_add((1.0 - _DECAY) * (grad**2 - square))
        if self.steps is not None:
            self.steps.assign_add(1.0)
        return learning

    def variances(self) -> dict[str, float]:
        """The running variance by estimator's name, averaged over weights; dict of floats."""
        if self.steps is None:
            return {}
        weight = 1.0 - _DECAY ** float(self.steps.numpy())  # of the past that the averages hold
        result = {}
        for name, averages in self.averages.items():
            terms = [
                np.ravel(square.numpy() / weight - (mean.numpy() / weight) ** 2)
                for mean, square in averages
            ]
            result[name] = float(np.concatenate(terms).mean())
        return result

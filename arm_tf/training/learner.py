"""The model of a configuration with all that trains it."""

import typing

import keras
import tensorflow as tf

from arm_tf.data import Dataset
from arm_tf.training import checkpoints, steps
from arm_tf.training.config import Config
from arm_tf.training.tracker import VarianceTracker


class Learner:
    """A model, its gradient estimators and optimisers, and the compiled loop of their steps.

    Args:
      config: `arm_tf.training.config.Config`.
      dataset: `arm_tf.data.Dataset`.
      strategy: `tf.distribute.Strategy`, whose scope has been entered.

    Attributes:
      model: `arm_tf.models.BinaryVAE` or `ConditionalNetwork`.
      estimators: a `GradientEstimator` for each stochastic layer.
      tracker: `arm_tf.training.tracker.VarianceTracker`.
      groups: variables by the part of the model that they belong to.
      optimizers: Keras optimisers of those parts that have variables.
      take_steps: as of `arm_tf.training.steps.make_steps`.
      noise_rows: rows of noise for each image, by purpose.
    """

    def __init__(self, config: Config, dataset: Dataset, strategy: tf.distribute.Strategy) -> None:
        self.model = steps.build_model(config, dataset)
        self.estimators = steps.build_gradient_estimators(config, self.model)
        self.tracker = VarianceTracker(
            {
                name: steps.build_gradient_estimators(config, self.model, name)
                for name in config.track_variance
            },
            self.model.variable_groups["encoder"],
        )
        self._learned: list[keras.layers.Layer] = [self.tracker, *self.estimators]
        self.groups = {
            **self.model.variable_groups,
            "estimator": [v for layer in self._learned for v in layer.trainable_variables],
        }
        self.optimizers = steps.build_optimizers(config, self.groups)
        self.take_steps = steps.make_steps(
            config,
            self.model,
            self.estimators,
            self.tracker,
            self.groups,
            self.optimizers,
            strategy,
        )
        self.noise_rows = {
            "train": self.model.noise_rows(self.estimators, config.decoder_samples),
            "variance": self.tracker.noise_rows(self.model),  # apart: tracking changes nothing
        }

    @property
    def state(self) -> dict[str, typing.Any]:
        """Variables for checkpoints, in nested lists and dicts."""
        return {
            "weights": checkpoints.tensors(self.model),
            "estimators": [checkpoints.tensors(layer) for layer in self._learned],
            "optimizers": {
                part: checkpoints.tensors(optimizer) for part, optimizer in self.optimizers.items()
            },
        }

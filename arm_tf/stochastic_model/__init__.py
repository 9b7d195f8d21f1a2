"""Any Keras network with stochastic binary layers, trained under its own `compile` and `fit`."""

from arm_tf.stochastic_model.model import StochasticModel

__all__ = ["StochasticModel"]

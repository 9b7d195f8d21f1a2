"""Networks of stochastic binary layers: variational autoencoders, and the conditional network."""

from arm_tf.models.conditional import ConditionalNetwork
from arm_tf.models.vae import BinaryVAE

__all__ = ["BinaryVAE", "ConditionalNetwork"]

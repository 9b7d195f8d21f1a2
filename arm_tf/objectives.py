"""Objectives of a latent-variable model, from its log weights.

A log weight is log w = log p(x, b) - log q(b | x) for b ~ q(b | x); all values are in nats.
"""

import math

import tensorflow as tf


def elbo(log_w: tf.Tensor) -> tf.Tensor:
    """Monte Carlo ELBO, (1/S) sum_s log w_s; float [S, ...] -> [...]."""
    return tf.reduce_mean(log_w, axis=0)


def multisample_bound(log_w: tf.Tensor) -> tf.Tensor:
    """Importance-weighted bound on log p(x), log (1/S) sum_s w_s.

    At least the ELBO and at most log p(x) in expectation, and tighter with every further
    sample (Burda, Grosse & Salakhutdinov 2016, eq. 8).

    Args:
      log_w: float [S, ...].

    Returns:
      float [...], differentiable.
    """
    return tf.reduce_logsumexp(log_w, axis=0) - math.log(log_w.shape[0])

"""Vectors of independent binary units, given by their logits."""

import tensorflow as tf


def sample(logits, u):
    """Binary units from uniform noise.

    b = 1[u < sigmoid(logits)], Bernoulli(sigmoid(logits)) for uniform u.

    Args:
      logits: float [..., V], log-odds.
      u: float, uniform in [0, 1), of a shape that broadcasts with `logits`.

    Returns:
      0s and 1s in the dtype of `logits`, of the broadcast shape. No gradient flows.
    """
    return tf.cast(u < tf.sigmoid(logits), logits.dtype)


def antithetic_sample(logits, u):
    """The other member of ARM's antithetic pair.

    b_anti = 1[u > sigmoid(-logits)], which is `sample` at 1 - u.

    Args, returns: as `sample`.
    """
    return tf.cast(u > tf.sigmoid(-logits), logits.dtype)


def log_prob(b, logits):
    """log prod_v Bernoulli(b_v; sigmoid(logits_v)) = sum_v b_v logits_v - softplus(logits_v).

    Args:
      b: float [..., V], zeros and ones; values between, as relaxations have, interpolate linearly.
      logits: float [..., V], broadcast against `b`.

    Returns:
      float [...], in nats; differentiable in both.
    """
    return tf.reduce_sum(b * logits - tf.nn.softplus(logits), axis=-1)


def score(b, logits):
    """Gradient of `log_prob(b, logits)` in the logits, b - sigmoid(logits); float [..., V]."""
    return b - tf.sigmoid(logits)

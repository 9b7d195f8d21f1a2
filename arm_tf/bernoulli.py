"""Vectors of independent binary units, given by their logits."""

import tensorflow as tf

_FACTORS = 60  # 2^60 is far from overflow in single precision


def sample(logits: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """Binary units from uniform noise.

    b = 1[u < sigmoid(logits)], Bernoulli(sigmoid(logits)) for uniform u.

    Args:
      logits: float [..., V], log-odds.
      u: float, uniform in [0, 1), of a shape that broadcasts with `logits`.

    Returns:
      0s and 1s in the dtype of `logits`, of the broadcast shape. No gradient flows.
    """
    return tf.cast(u < tf.sigmoid(logits), logits.dtype)


def antithetic_sample(logits: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """The other member of ARM's antithetic pair.

    b_anti = 1[u > sigmoid(-logits)], which is `sample` at 1 - u.

    Args, returns: as `sample`.
    """
    return tf.cast(u > tf.sigmoid(-logits), logits.dtype)


@tf.custom_gradient
def sum_softplus(logits: tf.Tensor) -> tf.Tensor:
    """sum_v log(1 + exp(logits_v)), with a few logarithms in place of V.

    sum_v max(logits_v, 0) + sum_g log prod_{v in g} (1 + exp(-|logits_v|)), over groups g of at
    most 60 coordinates: every factor is between 1 and 2, so that no product overflows, and each
    costs the sum the rounding error of one addition.

    Args:
      logits: float [..., V].

    Returns:
      float [...]; differentiable any number of times.
    """
    units = logits.shape[-1]
    groups = next(n for n in range(-(-units // _FACTORS), units + 1) if units % n == 0)
    factors = 1.0 + tf.exp(-tf.abs(logits))
    shape = tf.concat([tf.shape(logits)[:-1], [groups, units // groups]], axis=0)
    factors = tf.reshape(factors, shape)
    logs = tf.math.log(tf.reduce_prod(factors, axis=-1))
    value = tf.reduce_sum(tf.nn.relu(logits), axis=-1) + tf.reduce_sum(logs, axis=-1)
    return value, lambda upstream: upstream[..., tf.newaxis] * tf.sigmoid(logits)


def log_prob(b: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """log prod_v Bernoulli(b_v; sigmoid(logits_v)) = sum_v b_v logits_v - softplus(logits_v).

    Args:
      b: float [..., V], zeros and ones; values between, as relaxations have, interpolate linearly.
      logits: float [..., V], broadcast against `b`.

    Returns:
      float [...], in nats; differentiable in both.
    """
    return tf.reduce_sum(b * logits, axis=-1) - sum_softplus(tf.convert_to_tensor(logits))


def score(b: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Gradient of `log_prob(b, logits)` in the logits, b - sigmoid(logits); float [..., V]."""
    return b - tf.sigmoid(logits)

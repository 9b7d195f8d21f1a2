"""Estimators that compare f at antithetic samples."""

import tensorflow as tf

from arm_tf import bernoulli
from arm_tf.estimators import Estimate


def arm(f, logits, u):
    """Augment-REINFORCE-merge (Yin & Zhou 2019, theorem 1).

    grad_logits = (1/K) sum_k (f(b_anti_k) - f(b_k)) (u_k - 1/2),
    b = 1[u < sigmoid(logits)], b_anti = 1[u > sigmoid(-logits)].

    Where a pair agrees in every coordinate its difference is exactly zero, also for an f
    that draws noise of its own, such as the later layers of a network.

    Unbiased; 2K evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """
    b = bernoulli.sample(logits, u)
    b_anti = bernoulli.antithetic_sample(logits, u)
    f_values = f(tf.concat([b, b_anti], axis=0))  # [2K, ...]
    f_b, f_anti = tf.split(f_values, 2)
    same = tf.reduce_all(b == b_anti, axis=-1)
    f_delta = tf.where(same, tf.zeros_like(f_b), f_anti - f_b)
    grad_logits = tf.reduce_mean(f_delta[..., tf.newaxis] * (u - 0.5), axis=0)
    return Estimate(tf.reduce_mean(f_values, axis=0), grad_logits)

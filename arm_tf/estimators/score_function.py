"""Estimators that weigh a score by f at single samples."""

import tensorflow as tf

from arm_tf import bernoulli
from arm_tf.estimators import Estimate


def reinforce(f, logits, u):
    """REINFORCE, the score-function estimator (Williams 1992).

    grad_logits = (1/K) sum_k f(b_k) (b_k - sigmoid(logits)),  b = 1[u < sigmoid(logits)].

    Unbiased; K evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """
    b = bernoulli.sample(logits, u)
    f_b = f(b)
    grad_logits = tf.reduce_mean(f_b[..., tf.newaxis] * bernoulli.score(b, logits), axis=0)
    return Estimate(tf.reduce_mean(f_b, axis=0), grad_logits)


def ar(f, logits, u):
    """Augment-REINFORCE (Yin & Zhou 2019, the AR estimator of section 2).

    grad_logits = (1/K) sum_k f(b_k) (1 - 2 u_k),  b = 1[u < sigmoid(logits)].

    Unbiased; K evaluations of f. Arguments and results as in `arm_tf.estimators`.
    """
    f_b = f(bernoulli.sample(logits, u))
    grad_logits = tf.reduce_mean(f_b[..., tf.newaxis] * (1.0 - 2.0 * u), axis=0)
    return Estimate(tf.reduce_mean(f_b, axis=0), grad_logits)

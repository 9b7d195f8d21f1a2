"""Exact answers for small problems: enumeration of binary vectors, sums over cells of noise."""

import itertools

import numpy as np
import tensorflow as tf


def binary_vectors(size):
    """All vectors of `size` bits, float64 [2**size, size]."""
    return np.array(list(itertools.product([0.0, 1.0], repeat=size)))


def expectation_and_gradient(f, logits):
    """E[f(b)], b ~ prod_v Bernoulli(sigmoid(logits_v)), and its gradient, f held fixed.

    Args:
      f: maps [S, V] to [S].
      logits: [V], V small.

    Returns:
      float64 scalar and float64 [V].
    """
    b = binary_vectors(len(logits))
    probs = 1.0 / (1.0 + np.exp(-np.asarray(logits, np.float64)))
    weights = np.prod(np.where(b == 1, probs, 1 - probs), axis=1)
    values = np.asarray(f(tf.constant(b)), np.float64)
    return weights @ values, (weights * values) @ (b - probs)


def bound_and_gradient(log_p, logits, num_samples, of="bound"):
    """E[L], L = log (1/K) sum_k w_k, w = p(x, b) / q(b), over K samples, and its gradient.

    Args:
      log_p: maps [S, V] to [S], log p(x, b).
      logits: [V], of q, V small.
      num_samples: int K.
      of: "rws" gives in place of the gradient the mean of sum_k W_k (b_k - sigmoid(logits)), W the
        weights w divided by their sum.

    Returns:
      float64 scalar and float64 [V].
    """
    logits = tf.constant(logits)
    b = tf.constant(binary_vectors(len(logits)))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        probs = tf.sigmoid(logits)
        log_q = tf.reduce_sum(tf.math.log(tf.where(b == 1, probs, 1 - probs)), axis=-1)
        log_w = log_p(b) - log_q
        value = objective_of_tuples(log_w, log_q, num_samples, of)
    gradient = tape.gradient(value, logits).numpy()
    return objective_of_tuples(log_w, log_q, num_samples).numpy(), gradient


def objective_of_tuples(log_w, log_q, num_samples, of="bound"):
    """E[L] over all K-tuples of samples with these log w and log q; differentiable.

    `of="rws"` gives what has the gradient of the mean of `bound_and_gradient`'s.
    """
    indices = np.array(list(itertools.product(range(log_w.shape[0]), repeat=num_samples))).T
    log_w, log_q = tf.gather(log_w, indices), tf.gather(log_q, indices)  # [K, tuples]
    chances = tf.exp(tf.reduce_sum(log_q, axis=0))
    if of == "bound":
        values = tf.math.log(tf.reduce_mean(tf.exp(log_w), axis=0))
    else:
        weights = tf.exp(log_w) / tf.reduce_sum(tf.exp(log_w), axis=0)
        chances, weights = tf.stop_gradient(chances), tf.stop_gradient(weights)
        values = tf.reduce_sum(weights * log_q, axis=0)
    return tf.reduce_sum(chances * values)


def cells(thresholds, nodes=1):
    """Gauss-Legendre nodes in the cells into which thresholds cut a cube of uniform numbers.

    Sums over them are exact expectations of what is a polynomial of degree 2 nodes - 1 in each
    number within a cell; one node is the midpoint.

    Args:
      thresholds: a list with one array of thresholds for each uniform number.
      nodes: int, for each number.

    Returns:
      points: float64 [cells, numbers].
      weights: float64 [cells], which add up to 1.
    """
    x, w = np.polynomial.legendre.leggauss(nodes)
    edges = [np.unique(np.concatenate([[0.0, 1.0], np.ravel(t)])) for t in thresholds]
    points = [(e[:-1, None] + np.diff(e)[:, None] * (x + 1) / 2).ravel() for e in edges]
    weights = [(np.diff(e)[:, None] * w / 2).ravel() for e in edges]
    points, weights = (np.array(list(itertools.product(*axes))) for axes in (points, weights))
    return points, np.prod(weights, axis=1)


def pair_thresholds(logits):
    """Where the members of an antithetic pair change: sigmoid(±logits), float64 [..., V, 2]."""
    logits = np.asarray(logits, np.float64)
    return 1.0 / (1.0 + np.exp(-np.stack([logits, -logits], axis=-1)))

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


def cells(thresholds):
    """The cells into which thresholds cut the unit cube of some uniform numbers.

    Args:
      thresholds: a list with one array of thresholds for each uniform number.

    Returns:
      midpoints: float64 [cells, numbers].
      volumes: float64 [cells], which add up to 1.
    """
    edges = [np.unique(np.concatenate([[0.0, 1.0], np.ravel(t)])) for t in thresholds]
    middles = itertools.product(*[(e[1:] + e[:-1]) / 2 for e in edges])
    widths = itertools.product(*[np.diff(e) for e in edges])
    return np.array(list(middles)), np.prod(np.array(list(widths)), axis=1)


def pair_thresholds(logits):
    """Where the members of an antithetic pair change: sigmoid(±logits), float64 [..., V, 2]."""
    logits = np.asarray(logits, np.float64)
    return 1.0 / (1.0 + np.exp(-np.stack([logits, -logits], axis=-1)))

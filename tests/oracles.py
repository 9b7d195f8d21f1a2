"""Exact answers for small problems: enumeration of binary vectors, sums over cells of noise."""

import itertools

import numpy as np
import tensorflow as tf

# Estimators that are linear in the noise within a cell, so that sums over cells are exact.
LINEAR_IN_CELLS = {
    "ar", "reinforce", "reinforce_baseline", "nvil", "loo", "arm", "disarm", "legrad", "ram",
    "exact", "double_cv", "rodeo",
}  # fmt: skip


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

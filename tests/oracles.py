"""Exact answers for small problems: enumeration of binary vectors, sums over cells of noise."""

import itertools

import numpy as np
import tensorflow as tf

from arm_tf import bernoulli, models


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


# Networks of a few units, of which all paths can be enumerated, for the one image X.

PIXELS = 3
X = tf.constant([[1.0, 0.0, 1.0]], tf.float64)
FLIPPING = ("bitflip", "debiased", "ugc")  # whose second row of noise says which unit flips


def small_network(num_layers, network="linear", units=2, kind=models.BinaryVAE, **kwargs):
    """A network in double precision, its variables far from zero, biases and prior too."""
    model = kind(
        pixels=PIXELS,
        num_layers=num_layers,
        network=network,
        units=units,
        seed=1,
        dtype="float64",
        **kwargs,
    )
    rng = np.random.default_rng(num_layers)
    for variable in model.variables:
        variable.assign(rng.normal(scale=1.0, size=variable.shape))
    return model


def values_of(model, *parts):
    """TensorFlow's variables of parts of a network; a list."""
    return [v.value for part in parts for v in model.variable_groups[part]]


def all_paths(model):
    """Every path b_1, …, b_T, each layer float64 [paths, 1, units]."""
    vectors = binary_vectors(model.units)
    paths = np.array(list(itertools.product(vectors, repeat=model.num_layers)))
    return [tf.constant(paths[:, t, np.newaxis]) for t in range(model.num_layers)]


def logits_and_log_q(model, x, path):
    """The logits of a path's layers, and log q(b_{1:T}|x) [paths, images]."""
    inputs = [model.visible(x), *path]
    logits = [m(b) for m, b in zip(model.encoder_maps, inputs, strict=False)]
    each = [bernoulli.log_prob(b, phi) for b, phi in zip(path, logits, strict=True)]
    return logits, sum(each)


def objective_of_network(model, num_samples=1, of="bound"):
    """`objective_of_tuples` for X over all tuples of paths; with one sample, the exact ELBO."""
    path = all_paths(model)
    logits, log_q = logits_and_log_q(model, X, path)
    log_w = model.log_weight(X, path, logits)
    return objective_of_tuples(log_w[:, 0], log_q[:, 0], num_samples, of)


def gradients_of_network(model, *parts, num_samples=1, of="bound"):
    """That objective, and its gradients in the variables of parts; float64, and a list."""
    with tf.GradientTape() as tape:
        value = objective_of_network(model, num_samples, of)
    return value.numpy(), [g.numpy() for g in tape.gradient(value, values_of(model, *parts))]


def row_thresholds(model, s, used=True, pair=True):
    """Thresholds of each number in a row for layer s, for any vector that may lie below it."""
    if not used:
        return [[]] * model.units
    below = tf.constant(binary_vectors(model.units)) if s else model.visible(X)
    thresholds = pair_thresholds(model.encoder_maps[s](below))[..., : 1 + pair]
    return list(thresholds.swapaxes(0, 1).reshape(model.units, -1))


def path_thresholds(model, estimator, t=None):
    """Thresholds of the noise that the estimate of layer t, or of all of them, depends on.

    Layer s takes the estimator's rows to threshold, the first of them for the shared paths too,
    and, for each later layer, a row for each sample; the rest has one cell.
    """
    thresholds = []
    for s in range(model.num_layers):
        is_estimated = t is None or s == t
        pair = is_estimated and not estimator.row.joint
        on_path = t is None or s <= t
        thresholds += estimator.paths * row_thresholds(model, s, on_path, pair)
        if estimator.row.name in FLIPPING:
            choice = [np.arange(1, model.units) / model.units] + [[]] * (model.units - 1)
            thresholds += choice if is_estimated else [[]] * model.units
        else:
            further = estimator.rows - estimator.paths
            thresholds += further * row_thresholds(model, s, is_estimated, pair)
        if not estimator.row.joint:
            for later in range(s + 1, model.num_layers):
                thresholds += estimator.width * row_thresholds(model, later, is_estimated, False)
    return thresholds


def dream_thresholds(model):
    """Thresholds of the noise of one dream: the layers, top first, and the pixels."""
    codes = binary_vectors(model.units)
    sigmoid = lambda logits: list(1 / (1 + np.exp(-np.atleast_2d(np.asarray(logits)).T)))
    thresholds = sigmoid(model.prior_logits)
    for stochastic_map in model.decoder[::-1]:
        thresholds += sigmoid(stochastic_map(codes))
    return thresholds + [[]] * (-len(thresholds) % model.units)


def noise_of(model, thresholds):
    """One case of noise for each cell that the thresholds cut, and the cells' volumes."""
    midpoints, volumes = cells(thresholds)
    u = midpoints.T.reshape(-1, model.units, len(volumes)).swapaxes(1, 2)
    return tf.constant(u), volumes


def losses_over(model, u, volumes, gradient_estimators, decoder_samples="shared"):
    """Expectations over cases of noise of what a network's parts descend; two scalars."""
    assert u.shape[0] == model.noise_rows(gradient_estimators, decoder_samples)
    x = tf.tile(X, [len(volumes), 1])
    losses = model.losses(x, u, gradient_estimators, decoder_samples)
    return tf.reduce_sum(losses.encoder * volumes), tf.reduce_sum(losses.decoder * volumes)


def layer_gradients(model, gradient_estimators, u):
    """Gradients of the ELBO in each layer's logits for each case of noise, T arrays [N, units]."""
    offsets = [tf.zeros([u.shape[1], model.units], tf.float64) for _ in model.encoder]
    with tf.GradientTape() as tape:
        tape.watch(offsets)
        x = tf.tile(X, [u.shape[1], 1])
        loss, _, _ = model.losses(x, tf.constant(u), gradient_estimators, "shared", offsets)
    return [-g.numpy() for g in tape.gradient(loss, offsets)]


def count_evaluations(model):
    """Lets a network note at how many samples its log weight is taken; the list of them."""
    counted, log_weight = [], model.log_weight

    def counting(x, path, logits):
        counted.append(max(b.shape[0] for b in path))
        return log_weight(x, path, logits)

    model.log_weight = counting
    return counted

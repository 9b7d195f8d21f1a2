"""The path sample-analytic estimator in two layers: b_1 from logits, b_2 from kernel and bias."""

import itertools

import numpy as np
import oracles
import tensorflow as tf

from arm_tf import bernoulli, chain, estimators

LOGITS, KERNEL, BIAS = np.array([0.7, -0.4]), np.array([[1.5, -2.0], [0.8, 2.5]]), [-0.3, 0.6]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mean(name, f, kernel=KERNEL):
    """Expectation of the gradient over the noise of both layers, a sum over its cells."""
    bias = BIAS[: kernel.shape[1]]
    later_logits = oracles.binary_vectors(2) @ kernel + bias
    thresholds = [*oracles.pair_thresholds(LOGITS), *sigmoid(later_logits).T]
    points, weights = oracles.cells(thresholds)

    def through(b, sample=bernoulli.sample):
        noise = np.tile(points[np.newaxis, :, 2:], [b.shape[0], 1, 1])
        return f(b, sample(b @ kernel + bias, noise))

    logits = tf.constant(np.tile(LOGITS, (len(weights), 1)))
    noise = tf.constant(points[np.newaxis, :, :2])
    estimate = estimators.TABLE[name](chain.connected(through), logits, noise)
    return weights @ estimate.grad_logits.numpy()


def exact(f, kernel=KERNEL):
    """Its gradient by enumeration of both layers."""

    def through(b_1):
        later = lambda b: oracles.expectation_and_gradient(
            lambda b_2: f(tf.constant(b), b_2), b @ kernel + BIAS[: kernel.shape[1]]
        )
        return [later(b)[0] for b in b_1.numpy()]

    return oracles.expectation_and_gradient(through, LOGITS)[1]


def one_unit_at_a_time(f):
    """What the mean is known to be: sums over b_1, b_2 and single units of b_2."""
    f_of = lambda b_1, b_2: float(f(tf.constant(b_1), tf.constant(b_2)))
    vectors, gradient = oracles.binary_vectors(2), np.zeros(2)
    for b_1, b_2, v in itertools.product(vectors, vectors, range(2)):
        phi = b_1 @ KERNEL + BIAS
        chance = np.prod(np.where(b_1, sigmoid(LOGITS), sigmoid(-LOGITS)))
        chance *= np.prod(np.where(b_2, sigmoid(phi), sigmoid(-phi)))
        flipped = np.where(np.arange(2) == v, 1 - b_1, b_1)
        slope = f_of(b_1, b_2) - f_of(flipped, b_2)
        for i, change in enumerate(sigmoid(phi) - sigmoid(flipped @ KERNEL + BIAS)):
            one, zero = (np.where(np.arange(2) == i, value, b_2) for value in (1.0, 0.0))
            slope += change * (f_of(b_1, one) - f_of(b_1, zero))
        gradient[v] += chance * (2 * b_1[v] - 1) * slope
    return gradient * sigmoid(LOGITS) * sigmoid(-LOGITS)


def test_mean_in_two_layers_takes_later_units_one_at_a_time():
    f = lambda b_1, b_2: tf.exp(b_1[..., 0] - b_2[..., 1]) + 3 * b_2[..., 0] * b_2[..., 1]
    np.testing.assert_allclose(mean("psa", f), one_unit_at_a_time(f), rtol=0, atol=1e-12)
    np.testing.assert_allclose(mean("ram", f), exact(f), rtol=0, atol=1e-12)
    assert np.abs(mean("psa", f) - exact(f)).max() > 0.005  # a bias


def test_exact_where_a_flip_changes_one_later_unit():
    f, kernel = lambda b_1, b_2: tf.exp(2 * b_2[..., 0]) + b_1[..., 1], KERNEL[:, :1]
    np.testing.assert_allclose(mean("psa", f, kernel), exact(f, kernel), rtol=0, atol=1e-12)


def test_straight_through_where_f_and_probabilities_are_linear():
    f, kernel = lambda b_1, b_2: b_1[..., 0] - 2 * b_2[..., 0] + 3 * b_2[..., 1], 1e-5 * KERNEL
    st = mean("st", f, kernel)
    np.testing.assert_allclose(mean("psa", f, kernel), st, rtol=0, atol=1e-10)
    assert np.abs(st[1]) > 1e-6  # f sees this unit through the later layer alone

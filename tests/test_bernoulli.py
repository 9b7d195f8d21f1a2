"""The sum of softpluses against the plain formula."""

import numpy as np
import pytest
import tensorflow as tf

from arm_tf import bernoulli


@pytest.mark.parametrize("units", [1, 7, 59, 61, 120, 200, 784])
def test_sum_softplus_is_the_plain_sum(units):
    logits = tf.constant(np.random.default_rng(units).normal(scale=10, size=(2, 3, units)))
    plain = tf.reduce_sum(tf.nn.softplus(logits), axis=-1)
    np.testing.assert_allclose(bernoulli.sum_softplus(logits), plain, rtol=1e-14, atol=1e-15)
    single = bernoulli.sum_softplus(tf.cast(logits, tf.float32))
    np.testing.assert_allclose(single, plain, rtol=1e-6, atol=1e-6)


def test_sum_softplus_is_finite_at_extreme_logits():
    logits = tf.repeat(tf.constant([[-1e30, -100.0, 0.0, 100.0]]), 100, axis=-1)
    expected = 100 * (np.log(2) + 100)
    np.testing.assert_allclose(bernoulli.sum_softplus(logits), [expected], rtol=1e-6)


def test_sum_softplus_has_derivatives_of_two_orders():
    logits = tf.constant(np.random.default_rng(0).normal(scale=3, size=(2, 122)))
    with tf.GradientTape() as outer:
        outer.watch(logits)
        with tf.GradientTape() as inner:
            inner.watch(logits)
            value = bernoulli.sum_softplus(logits)
        first = inner.gradient(value, logits)
    np.testing.assert_allclose(first, tf.sigmoid(logits), rtol=1e-14)
    second = outer.gradient(first, logits)
    np.testing.assert_allclose(second, tf.sigmoid(logits) * tf.sigmoid(-logits), rtol=1e-12)


def test_log_prob_takes_a_batch_of_unknown_size():
    graph = tf.function(bernoulli.log_prob, input_signature=[tf.TensorSpec([None, 5])] * 2)
    np.testing.assert_allclose(graph(tf.ones([3, 5]), tf.zeros([3, 5])), -5 * np.log([2.0] * 3))

"""Every estimator against exact gradients."""

import numpy as np
import oracles
import pytest
import tensorflow as tf

import arm_tf
from arm_tf import estimators

RNG = np.random.default_rng(0)
LOGITS = {size: RNG.normal(scale=1.5, size=size) for size in (1, 2, 3, 4)}


def quadratic(size, dtype="float64"):
    """An f without symmetry: a random quadratic form plus a random linear one and a constant."""
    rng = np.random.default_rng(size)
    matrix = tf.constant(rng.normal(size=(size, size)), dtype)
    vector = tf.constant(rng.normal(size=size), dtype)
    return lambda b: (
        tf.reduce_sum(b * tf.linalg.matvec(matrix, b), -1) + tf.linalg.matvec(b, vector) + 3.0
    )


def gradient_at(name, f, logits, u, num_samples=1):
    """The estimator's value and gradient for each case of noise, through `arm_tf.expectation`."""
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = arm_tf.expectation(f, logits, estimator=name, num_samples=num_samples, u=u)
    return value.numpy(), tape.gradient(value, logits).numpy()


def cell_sum(name, f, logits, dtype="float64"):
    """Expectation over u of value and gradient, exact for estimates linear in u within a cell."""
    midpoints, volumes = oracles.cells(oracles.pair_thresholds(logits))
    logits = tf.constant(np.tile(logits, (len(volumes), 1)), dtype)
    values, grads = gradient_at(name, f, logits, tf.constant(midpoints[np.newaxis], dtype))
    return volumes @ values.astype("float64"), volumes @ grads.astype("float64")


# How each estimator's exactness is shown; one that is missing here fails a test below.
LINEAR_IN_CELLS = {"arm", "ar", "reinforce"}


def test_every_estimator_is_proved():
    assert set(estimators.TABLE) == LINEAR_IN_CELLS


@pytest.mark.parametrize("name", sorted(estimators.TABLE))
def test_every_estimator_states_its_equation_and_source(name):
    row = estimators.TABLE[name]
    module, function = row.function.split(".")
    doc = getattr(__import__(f"arm_tf.estimators.{module}", fromlist=["_"]), function).__doc__
    assert "grad_logits = " in doc
    authors, year = row.source.rsplit(" ", 1)
    assert authors.split(" & ")[0] in doc and year in doc


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", sorted(LINEAR_IN_CELLS))
def test_cell_sum_is_the_exact_gradient(name, size):
    f, logits = quadratic(size), LOGITS[size]
    expected = oracles.expectation_and_gradient(f, logits)
    value, grad = cell_sum(name, f, logits)
    np.testing.assert_allclose(value, expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(grad, expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(LINEAR_IN_CELLS))
def test_cell_sum_is_the_exact_gradient_in_single_precision(name):
    expected = oracles.expectation_and_gradient(quadratic(3), LOGITS[3])
    value, grad = cell_sum(name, quadratic(3, "float32"), LOGITS[3], "float32")
    np.testing.assert_allclose(value, expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(grad, expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(estimators.TABLE))
def test_samples_are_averaged(name):
    logits = tf.constant(RNG.normal(size=(5, 3)))
    u = tf.constant(RNG.uniform(size=(4, 5, 3)))
    f = quadratic(3)
    value, grad = gradient_at(name, f, logits, u, num_samples=4)
    singles = [gradient_at(name, f, logits, u[k : k + 1]) for k in range(4)]
    np.testing.assert_allclose(value, np.mean([v for v, _ in singles], axis=0), atol=1e-12)
    np.testing.assert_allclose(grad, np.mean([g for _, g in singles], axis=0), atol=1e-12)


@pytest.mark.parametrize("name", sorted(estimators.TABLE))
def test_evaluations_are_as_many_as_the_table_says(name):
    counted = []

    def f(b):
        counted.append(b.shape[0])
        return tf.reduce_sum(b, axis=-1)

    arm_tf.expectation(f, tf.zeros([2, 3]), estimator=name, num_samples=3)
    assert sum(counted) == estimators.TABLE[name].evaluations(3, 3)


@pytest.mark.parametrize("name", sorted(estimators.TABLE))
def test_extreme_logits_stay_finite(name):
    logits = tf.constant([[40.0, -40.0, 0.0], [-40.0, 40.0, 40.0]])
    u = tf.constant(RNG.uniform(size=(1, 2, 3)), tf.float32)
    value, grad = gradient_at(name, quadratic(3, "float32"), logits, u)
    assert np.isfinite(value).all() and np.isfinite(grad).all()


@pytest.mark.parametrize("name", sorted(estimators.TABLE))
def test_derivative_of_f_is_not_used(name):
    @tf.custom_gradient
    def f(b):
        def gradient(upstream):
            raise AssertionError("f was differentiated")

        return tf.reduce_sum(b, axis=-1), gradient

    u = tf.constant(RNG.uniform(size=(1, 2, 3)))
    gradient_at(name, f, tf.zeros([2, 3], tf.float64), u)


def test_arm_is_zero_where_the_pair_agrees_whatever_f_does():
    logits = tf.constant([[3.0, 3.0], [0.1, 3.0]])
    u = tf.constant([[[0.4, 0.5], [0.2, 0.5]]])  # the second pair differs in its first unit
    draws = tf.constant([[0.1, 0.2], [0.3, 0.5]])
    noisy = lambda b: tf.reduce_sum(b, -1) + draws
    _, grad = gradient_at("arm", noisy, logits, u)
    np.testing.assert_array_equal(grad[0], 0)
    assert grad[1, 0] != 0


def test_arm_merges_ar_at_u_and_one_minus_u():
    logits, u = tf.constant(LOGITS[4]), RNG.uniform(size=(1, 4))
    f = quadratic(4)
    _, arm = gradient_at("arm", f, logits, tf.constant(u))
    halves = [gradient_at("ar", f, logits, tf.constant(v))[1] for v in (u, 1 - u)]
    np.testing.assert_allclose(arm, np.mean(halves, axis=0), atol=1e-12)


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="Unknown estimator 'amr'; known are ar, arm, reinforce"):
        estimators.get("amr")

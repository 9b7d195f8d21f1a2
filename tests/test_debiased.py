"""The unbiased ½-estimator through layers, exactly, and with other derivatives of a sample."""

import functools

import numpy as np
import oracles
import proofs
import pytest
import tensorflow as tf
import test_stochastic_model
from proofs.debiased import choice_thresholds, row_thresholds
from proofs.relaxation import quadrature

import arm_tf
from arm_tf import bernoulli, chain, estimators
from arm_tf.estimators import debiased, relaxation, straight_through
from arm_tf.expectation import GradientEstimator

RNG = np.random.default_rng(0)
LOGITS = np.array([0.7, -0.4])
BELOW = 4  # bits at most below a layer, all of which its logits depend on
KERNELS = [RNG.normal(scale=1.5, size=(BELOW, 2)) for _ in range(2)]
BIASES = RNG.normal(size=(2, 2))
WEIGHTS = RNG.normal(size=(2, BELOW + 2))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def later_logits(t, path, units):
    """Of a later layer, from all bits below it."""
    below = tf.concat(path, axis=-1)
    return below @ KERNELS[t][: below.shape[-1], :units] + BIASES[t, :units]


def f_of_path(path, last_logits):
    """In no bit linear or quadratic; it depends on the last layer's logits, too."""
    bits = tf.concat(path, axis=-1)
    w, m = (weights[: bits.shape[-1]] for weights in WEIGHTS)
    return (
        tf.exp(tf.linalg.matvec(bits, w))
        + tf.linalg.matvec(bits, m) ** 3
        + tf.reduce_sum(tf.sin(last_logits), axis=-1)
    )


def quadratic(path, last_logits):
    return tf.linalg.matvec(tf.concat(path, axis=-1), WEIGHTS[1]) ** 2


def moments(later_units, num_samples=1, flips=1, rotated=True, function=None, f_of_path=f_of_path):
    """Mean and variance of the first layer's gradient over the noise of all, sums over cells."""
    function = function or estimators.TABLE["debiased"]
    thresholds = row_thresholds(sigmoid(LOGITS)[:, None], num_samples, rotated)
    thresholds += choice_thresholds(2, flips)
    below = len(LOGITS)
    for t, units in enumerate(later_units):
        bits = oracles.binary_vectors(below)
        logits = bits @ KERNELS[t][:below, :units] + BIASES[t, :units]
        thresholds += row_thresholds(sigmoid(logits).T, num_samples, rotated)
        below += units
    points, weights = oracles.cells(thresholds)
    sizes = [2 * (num_samples + 1), *(units * num_samples for units in later_units)]
    parts = np.split(points, np.cumsum(sizes)[:-1], axis=1)
    rows = lambda x, units: tf.constant(x.reshape(len(x), -1, units).swapaxes(0, 1))
    u, *later_u = map(rows, parts, [2, *later_units])

    def f(b, sample=bernoulli.sample):
        path = [b]
        for t, units in enumerate(later_units):
            logits = later_logits(t, path, units)
            path.append(sample(logits, *chain.cycle([later_u[t]], b.shape[0])))
        return f_of_path(path, logits)

    logits = tf.constant(np.tile(LOGITS, (len(weights), 1)))
    grads = function(f, logits, u, flips=flips, rotated=rotated).grad_logits.numpy()
    mean = weights @ grads
    return mean, weights @ (grads - mean) ** 2


def exact(later_units, f_of_path=f_of_path):
    """The gradient by enumeration of the bits of all layers."""

    def mean_after(path, t):
        logits = later_logits(t, path, later_units[t])
        total = 0.0
        for bits in oracles.binary_vectors(later_units[t]):
            longer = [*path, tf.broadcast_to(bits, logits.shape)]
            chance = tf.exp(bernoulli.log_prob(longer[-1], logits))
            is_last = t + 1 == len(later_units)
            total += chance * (f_of_path(longer, logits) if is_last else mean_after(longer, t + 1))
        return total

    return oracles.expectation_and_gradient(lambda b: mean_after([b], 0), LOGITS)[1]


CASES = [
    ((2,), 1, 1, True),
    ((2,), 2, 1, True),
    ((2,), 2, 2, False),
    ((1,), 3, 1, True),
    ((2, 2), 1, 1, True),
    ((1, 1), 2, 1, True),
    ((1, 1), 1, 2, True),
]


@pytest.mark.parametrize("later_units, num_samples, flips, rotated", CASES)
def test_first_of_several_layers_is_exact(later_units, num_samples, flips, rotated):
    mean, _ = moments(later_units, num_samples, flips, rotated)
    np.testing.assert_allclose(mean, exact(later_units), rtol=0, atol=1e-12)


plain = debiased._expected_rise_of_jumps
FAULTS = {
    "the mean of a jump whatever the sample": (
        "_mean_jump",
        lambda b, logits, others: tf.sigmoid(others) - tf.sigmoid(logits),
    ),
    "the mean of a jump from the other side": (
        "_mean_jump",
        lambda b, logits, others, of=debiased._mean_jump: of(b, others, logits),
    ),
    "one half without its mean": (
        "_expected_rise_of_jumps",
        lambda c, b, phi: (
            plain((c[0], 0 * c[1]), b, phi) + 0.5 * tf.reduce_sum(c[1] * (b[1] - b[0]), axis=-1)
        ),
    ),
    "each half with the other's slopes": (
        "_expected_rise_of_jumps",
        lambda c, b, phi: plain(c[::-1], b, phi),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("later_units", [(2,), (2, 2)])
def test_a_wrong_control_variate_is_refused(later_units, fault, monkeypatch):
    monkeypatch.setattr(debiased, *FAULTS[fault])
    mean, _ = moments(later_units)
    assert np.abs(mean - exact(later_units)).max() > 1e-3


def with_slopes(change):
    """`value_and_slopes_through` with other slopes of the later layers."""
    plain = debiased.value_and_slopes_through

    def function(name, f, b, later):
        f_b, slopes, later_slopes = plain(name, f, b, later)
        return f_b, slopes, change(later_slopes)

    return function


USELESS = {  # without a bias, but of too much variance
    "none": with_slopes(lambda slopes: [0 * c for c in slopes]),
    "the sample's half": with_slopes(lambda slopes: [c * [[[1.0]], [[0.0]]] for c in slopes]),
    "the flip's half": with_slopes(lambda slopes: [c * [[[0.0]], [[1.0]]] for c in slopes]),
    "slopes of the wrong layer": with_slopes(lambda slopes: slopes[::-1]),
}


@pytest.mark.parametrize("fault", USELESS)
def test_both_halves_of_the_control_variate_are_needed_in_their_layers(fault, monkeypatch):
    _, variance = moments((2, 2), f_of_path=quadratic)
    monkeypatch.setattr(debiased, "value_and_slopes_through", USELESS[fault])
    mean, useless = moments((2, 2), f_of_path=quadratic)
    np.testing.assert_allclose(mean, exact((2, 2), quadratic), rtol=0, atol=1e-12)
    assert useless.sum() > 1.1 * variance.sum()


@pytest.mark.parametrize("net", test_stochastic_model.NETS)
@pytest.mark.parametrize("flips", [1, 2])
def test_gradient_of_a_keras_network_is_exact(net, flips, monkeypatch):
    """Also where layers stand side by side, or are skipped."""
    plain = oracles.pair_thresholds
    halves = lambda logits: np.insert(plain(logits), 2, 0.5, axis=-1)  # which of two units flips
    monkeypatch.setattr(oracles, "pair_thresholds", halves)
    weights, got = test_stochastic_model.expected_gradients(
        net, "debiased", monkeypatch, flips=flips
    )
    expected = test_stochastic_model.exact_gradients(net, weights)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=1e-12)


def test_rotation_lowers_the_variance():
    """Exactly, in two layers."""
    rotated, independent = (moments((2,), 2, 1, rotated)[1] for rotated in (True, False))
    assert rotated.sum() < 0.8 * independent.sum()


SLOPES = {
    "st": lambda logits, u, b: relaxation.sigmoid_slope(logits),
    "mve": straight_through._mve_slope(2.0),
    "gapped_st": straight_through._gapped_slope(0.7, 1.0),
    "none": lambda logits, u, b: tf.zeros_like(b),
}


@pytest.mark.parametrize("base", SLOPES)
@pytest.mark.parametrize("later_units", [(2,), (1, 1)])
def test_other_derivatives_of_a_sample_have_their_bias_taken_away(base, later_units):
    function = functools.partial(_based_on, SLOPES[base])
    mean, _ = moments(later_units, function=function)
    np.testing.assert_allclose(mean, exact(later_units), rtol=0, atol=1e-12)


def _based_on(slope, f, logits, u, **options):
    return debiased.without_bias("base", f, logits, u, slope, **options)


def test_a_derivative_that_depends_on_the_noise_has_its_bias_taken_away():
    """That of st_gumbel: over u by quadrature, and over the unit that flips."""
    slope, logits = relaxation._gumbel_slope(0.7), np.array([-0.9, 0.6])
    points, weights = quadrature([[p] for p in sigmoid(logits)], 50)
    tiled = tf.constant(np.tile(logits, (len(points), 1)))
    mean = 0
    for choice in (0.25, 0.75):
        u = np.stack([points, np.full_like(points, choice)])
        estimate = _based_on(slope, proofs.f_of, tiled, tf.constant(u))
        mean += 0.5 * weights @ estimate.grad_logits.numpy()
    expected = oracles.expectation_and_gradient(proofs.f_of, logits)[1]
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-9)


def kinked(path, last_logits):
    """With a derivative that says nothing of its steps, and a wrong one of the rest."""
    bits = tf.concat(path, axis=-1)
    steps = tf.stop_gradient(f_of_path(path, last_logits))
    return steps + tf.abs(tf.linalg.matvec(bits, WEIGHTS[0, : bits.shape[-1]]) - 0.5)


@pytest.mark.parametrize("later_units", [(2,), (1, 1)])
def test_f_that_is_not_smooth_has_no_bias(later_units):
    mean, _ = moments(later_units, f_of_path=kinked)
    np.testing.assert_allclose(mean, exact(later_units, kinked), rtol=0, atol=1e-12)


def test_without_a_derivative_it_is_bitflip():
    logits, u = tf.constant(RNG.normal(size=(50, 3))), tf.constant(RNG.uniform(size=(2, 50, 3)))
    got = _based_on(SLOPES["none"], proofs.f_of, logits, u)
    bitflip = estimators.TABLE["bitflip"](proofs.f_of, logits, u)
    for x, y in zip(got[:2], bitflip[:2], strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


def test_where_f_is_quadratic_in_each_unit_it_is_darn():
    """The trapezoid rule has no error there."""
    logits, u = tf.constant(RNG.normal(size=(50, 3))), tf.constant(RNG.uniform(size=(2, 50, 3)))
    f = lambda b, sample=None: b[..., 0] ** 2 * (3 - b[..., 1]) + b[..., 1] * b[..., 2] ** 2
    got = estimators.TABLE["debiased"](f, logits, u)
    darn = estimators.TABLE["darn"](f, logits, u[:1])
    np.testing.assert_allclose(got.grad_logits, darn.grad_logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_samples, flips, evaluations", [(1, 1, 2), (3, 1, 4), (2, 5, 7)])
def test_every_flip_is_an_evaluation_more(num_samples, flips, evaluations):
    counted = []

    def f(b):
        counted.append(b.shape[0])
        return tf.reduce_sum(b**2, axis=-1)

    arm_tf.expectation(
        f, tf.zeros([2, 3]), estimator="debiased", num_samples=num_samples, flips=flips
    )
    estimator = GradientEstimator("debiased", 3, num_samples, flips=flips)
    assert counted == [evaluations] == [estimator.evaluations]


@pytest.mark.parametrize("options, message", [
    ({"flips": 0}, "flips must be an integer of at least 1, received 0"),
    ({"rotated": 1}, "rotated must be True or False, received 1"),
])  # fmt: skip
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        arm_tf.expectation(proofs.f_of, tf.zeros([2, 3]), estimator="debiased", **options)

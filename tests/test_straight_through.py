"""Straight-through estimators: which are which, and what their settings do."""

import numpy as np
import pytest
import tensorflow as tf
from proofs.relaxation import quadrature, relaxed_slope, sigmoid
from proofs.straight_through import WEIGHTS

from arm_tf import estimators

LOGITS = np.array([-2.5, -0.4, 0.0, 1.3])


def weights(name, u, logits=LOGITS, **options):
    """The estimator's weights of f', float64 [cases, V], at noise [cases, V]."""
    logits = tf.constant(np.broadcast_to(logits, u.shape))
    f = lambda b, sample=None: tf.reduce_sum(b, axis=-1)
    return estimators.TABLE[name](f, logits, tf.constant(u[np.newaxis]), **options).grad_logits


def cut_noise(phi, latents, nodes=60):
    """Nodes and weights over a unit's u, cut where one of the latents given b begins again."""
    p, shifts = sigmoid(phi), np.arange(latents) / latents
    return quadrature([[*(p * shifts), *(p + (1 - p) * shifts)]], nodes)


@pytest.mark.parametrize(
    "name, options, other, other_options, atol",
    [
        ("reinmax", {}, "darn", {}, 1e-15),
        ("mve", {"mve_t": 0.0}, "st", {}, 1e-15),
        ("mve", {"mve_t": 1e12}, "darn", {}, 1e-10),
        ("st_gumbel_rao", {"latents": 1}, "st_gumbel", {}, 1e-13),
    ],
)
def test_one_is_the_other(name, options, other, other_options, atol):
    u = np.random.default_rng(0).uniform(size=(200, len(LOGITS)))
    got, expected = weights(name, u, **options), weights(other, u, **other_options)
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("phi", LOGITS)
def test_more_latents_keep_the_mean_and_lower_the_variance(phi):
    """Exactly, by quadrature over u; the variance given b goes to zero."""
    means, variances = [], []
    for latents in (1, 2, 5, 20):
        points, volumes = cut_noise(phi, latents)
        w = weights("st_gumbel_rao", points, phi, temperature=0.5, latents=latents).numpy()[:, 0]
        means.append(volumes @ w)
        variances.append(volumes @ (w - means[-1]) ** 2)
    np.testing.assert_allclose(means, means[0], rtol=1e-9)
    assert (np.diff(variances) < 0).all()
    given_b = np.array([relaxed_slope(b, phi, 0.5) for b in (0, 1)])
    chances = np.array([sigmoid(-phi), sigmoid(phi)])
    least = chances @ (given_b - means[0]) ** 2
    assert least < variances[-1] < least + 0.01 * (variances[0] - least)


@pytest.mark.parametrize("phi", LOGITS)
def test_cold_gumbel_rao_is_darn(phi):
    """Which is ZGR: the mean weight given b is off by what falls with the temperature."""
    for b in (0, 1):
        darn = (b - 0.5) * (b - sigmoid(phi))
        with np.errstate(over="ignore"):
            gaps = [abs(relaxed_slope(b, phi, t) - darn) for t in (0.1, 0.05, 0.025)]
        assert gaps[2] < 0.65 * gaps[1] < 0.65**2 * gaps[0] and gaps[0] < 0.2 * darn


def test_reinmax_at_higher_temperatures_is_biased_for_linear_f_with_less_variance():
    for phi in LOGITS[LOGITS != 0]:
        p = sigmoid(phi)
        chances = np.array([1 - p, p])
        means, variances = [], []
        for temperature in (1.0, 1.5, 3.0):
            options = {"reinmax_temperature": temperature}
            w = np.array([WEIGHTS["reinmax"](b, phi, options) for b in (0, 1)])
            means.append(chances @ w)
            variances.append(chances @ (w - means[-1]) ** 2)
        assert means[0] == pytest.approx(p * (1 - p))
        assert (np.abs(np.diff(means)) > 1e-3).all() and (np.diff(variances) < 0).all()

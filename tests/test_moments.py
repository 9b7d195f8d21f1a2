"""Bias and variance of gradients at a frozen model."""

import numpy as np
import oracles
import pytest
import tensorflow as tf

from arm_tf import models, noise, variance
from arm_tf.training import moments
from arm_tf.training.config import Config

RNG = np.random.default_rng(0)
X = RNG.integers(0, 2, size=(4, 6)).astype("float32")


def make_model(num_layers=1):
    model = models.BinaryVAE(pixels=6, num_layers=num_layers, units=3, seed=0)
    for variable in model.variables:
        variable.assign(RNG.normal(size=variable.shape))
    return model


def exact_moments(model, x):
    """Mean and variance of ARM's gradient in the logits of each image, by cells of the noise."""
    logits = model.encoder_maps[0](x).numpy().astype("float64")
    f = lambda image, b, phi: model.log_weight(image[np.newaxis], [b], [phi])[..., 0].numpy()
    means, variances = [], []
    for image, phi in zip(x, logits, strict=True):
        points, weights = oracles.cells(list(oracles.pair_thresholds(phi)), nodes=2)
        probs = 1 / (1 + np.exp(-phi))
        b = (points < probs)[:, np.newaxis].astype("float32")
        b_anti = (points > 1 - probs)[:, np.newaxis].astype("float32")
        phi = tf.constant(phi[np.newaxis, np.newaxis], tf.float32)
        f_delta = f(image, tf.constant(b_anti), phi) - f(image, tf.constant(b), phi)
        grads = f_delta[:, np.newaxis] * (points - 0.5)
        means.append(weights @ grads)
        variances.append(weights @ (grads - means[-1]) ** 2)
    return np.ravel(means), np.ravel(variances)


def test_moments_are_those_by_cells():
    """4,000 draws against exact moments: within 6 standard errors, and 5 per cent of variance."""
    model = make_model()
    mean, var = exact_moments(model, X)
    group = model.gradient_estimators("arm")
    logits, weights = moments.gradient_moments(model, X, group, 4000, noise.key(0, "x"))
    assert logits.draws == 4000 and logits.mean.shape == (12,) and weights.mean.shape == (21,)
    assert (np.abs(logits.mean - mean) < 6 * np.sqrt(var / 4000)).all()
    assert logits.mean_variance == pytest.approx(var.mean(), rel=0.05)
    assert abs(logits.mean_variance - var.mean()) < 6 * logits.mean_variance_stderr


def test_gradient_in_the_weights_is_that_of_the_logits_carried_on():
    model = make_model()
    group = model.gradient_estimators("exact")
    logits, weights = moments.gradient_moments(model, X, group, 10, noise.key(0, "x"))
    by_image = logits.mean.reshape(4, 3)
    kernel = X.T @ by_image / 4
    np.testing.assert_allclose(weights.mean, [*kernel.ravel(), *by_image.mean(0)], atol=1e-5)
    assert logits.mean_variance == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_unbiased_estimators_show_no_bias_and_a_planted_one_is_seen(num_layers):
    model = make_model(num_layers)
    config = Config(units=3, layers=num_layers)
    before = [variable.numpy() for variable in model.variables]
    rows = moments.compare(config, model, X, {"arm": 2, "loo": 4, "nvil": 4}, 100, 20)
    assert [row["evaluations"] for row in rows] == [4 * num_layers] * 3
    for row in rows[:2]:
        assert row["bias_logits"] < 2 * row["bias_noise_logits"]
    assert rows[1]["variance_logits"] > 0
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())  # the model is frozen

    group = model.gradient_estimators("arm")
    (reference, _) = moments.gradient_moments(model, X, group, 1000, noise.key(0, "x"))
    shifted = moments.Moments(reference.mean + 1.0, reference.variance, 0.0, 0.0, reference.draws)
    bias, bias_noise = shifted.bias(reference)
    assert bias == pytest.approx(1, rel=0.01) and bias_noise < 0.1


def test_samples_within_a_budget_of_evaluations():
    chosen = {name: variance.samples_within(name, 4, 5) for name in
              ("arm", "reinforce", "loo", "legrad", "exact")}  # fmt: skip
    assert chosen == {"arm": 2, "reinforce": 4, "loo": 4, "legrad": 1, "exact": 1}

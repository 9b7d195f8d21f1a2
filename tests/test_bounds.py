"""Bounds over images: right, chunked without effect, and bounded in memory."""

import numpy as np
import oracles
import pytest
import tensorflow as tf

from arm_tf import models, noise, objectives
from arm_tf.training import bounds, workers

RNG = np.random.default_rng(0)


def make_model(num_layers=1, pixels=6, units=3):
    model = models.BinaryVAE(pixels=pixels, num_layers=num_layers, units=units)
    for variable in model.variables:
        variable.assign(RNG.normal(size=variable.shape))
    return model


def exact_nll(model, images):
    """-log p(x) of each image by summing over all codes of a one-layer model."""
    codes = tf.constant(oracles.binary_vectors(model.units)[:, np.newaxis], tf.float32)
    x = tf.constant(images, tf.float32)
    zeros = tf.zeros([1, 1, model.units])  # log q of any code under logits of zero
    log_joint = model.log_weight(x, [codes], [zeros]) - model.units * np.log(2.0)
    return -tf.reduce_logsumexp(log_joint, axis=0).numpy()


def test_an_evaluation_takes_the_share_of_cores_that_its_process_has(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    evaluator = bounds.Evaluator(models.BinaryVAE(4, units=2), np.zeros([1, 4]), 1, key=None)
    assert evaluator.threads == 3
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    evaluator = bounds.Evaluator(models.BinaryVAE(4, units=2), np.zeros([1, 4]), 1, key=None)
    assert evaluator.threads == workers.usable_cores()


def test_many_samples_approach_the_exact_likelihood_from_below():
    model, images = make_model(), RNG.integers(0, 2, size=(40, 6)).astype(np.uint8)
    exact = exact_nll(model, images).mean()
    found = [
        bounds.Evaluator(model, images, samples, noise.key(0, "x"))() for samples in (1, 20, 4000)
    ]
    assert found[0].nll > found[1].nll > found[2].nll - 0.01
    assert found[2].nll == pytest.approx(exact, abs=0.02)
    assert found[0].nll == pytest.approx(found[0].neg_elbo, abs=1e-5)
    assert found[1].neg_elbo > found[1].nll


@pytest.mark.parametrize("num_layers", [1, 2])
def test_pieces_are_put_together_rightly(num_layers, monkeypatch):
    """Sizes that divide neither images nor samples give what the log weights say."""
    monkeypatch.setattr(bounds, "_IMAGES", 3)
    monkeypatch.setattr(bounds, "_SAMPLES", 4)
    model, images = make_model(num_layers), RNG.integers(0, 2, size=(10, 6)).astype(np.uint8)
    key = noise.key(0, "x")
    found = bounds.Evaluator(model, images, 7, key)()
    log_w = np.empty([7, 10])
    for job in range(8):  # four pieces of three images, each in two pieces of four samples
        i, j = divmod(job, 2)
        u = noise.uniforms(key, job, [1, 4, num_layers, 3, 3])[0]
        x = images[3 * i : 3 * i + 3].astype(np.float32)
        piece = model.log_weights(
            np.pad(x, [(0, 3 - len(x)), (0, 0)]), tf.transpose(u, [1, 0, 2, 3])
        ).numpy()
        log_w[4 * j : 4 * j + 4, 3 * i : 3 * i + 3] = piece[: 7 - 4 * j, : len(x)]
    nll = -objectives.multisample_bound(tf.constant(log_w)).numpy()
    assert found.nll == pytest.approx(nll.mean(), abs=1e-5)
    assert found.nll_stderr == pytest.approx(nll.std(ddof=1) / np.sqrt(10), abs=1e-5)
    assert found.neg_elbo == pytest.approx(-log_w.mean(), abs=1e-5)
    assert found.images == 10


def test_repeated_evaluations_are_identical():
    model, images = make_model(2), RNG.integers(0, 2, size=(400, 6)).astype(np.uint8)
    evaluator = bounds.Evaluator(model, images, 60, noise.key(0, "x"))
    assert evaluator() == evaluator()


def test_multisample_bound_of_one_sample_is_the_elbo():
    log_w = tf.constant(RNG.normal(size=(1, 5)))
    np.testing.assert_allclose(
        objectives.multisample_bound(log_w), objectives.elbo(log_w), atol=1e-14
    )

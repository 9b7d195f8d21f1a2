"""Bounds of several samples: sums over cells, against enumeration of all K-tuples of samples."""

import numpy as np
import oracles
import tensorflow as tf

from proofs import Case, biased, f_of, over_cells, run, samples_of, unbiased
from proofs.antithetic import dirichlet_patterns, pattern_noise

LOGITS = (-0.9, 0.6)


def weighted_scores(row, case):
    """E[L], and the mean of `rws`: of the normalised weights times scores."""
    return oracles.bound_and_gradient(f_of, np.array(case.logits), samples_of(row, case), "rws")


def ovis_mean(row, case):
    """E[L], and its gradient plus gamma times the mean of `rws`."""
    logits, num_samples = np.array(case.logits), samples_of(row, case)
    value, exact = oracles.bound_and_gradient(f_of, logits, num_samples)
    _, scores = oracles.bound_and_gradient(f_of, logits, num_samples, "rws")
    return value, exact + case.options["gamma"] * scores


def over_cells_and_patterns(row, case):
    """Expectations over K independent samples, and as many antithetic ones."""
    num_samples, units = samples_of(row, case), len(case.logits)
    thresholds = [[1 / (1 + np.exp(-phi))] for phi in case.logits] * num_samples
    points, weights = oracles.cells(thresholds)
    u = points.reshape(len(weights), num_samples, units).swapaxes(0, 1)
    u_anti, weights_anti = pattern_noise(dirichlet_patterns, case.logits, num_samples)
    times, times_anti = len(weights), len(weights_anti)
    noise = [np.repeat(u, times_anti, axis=1), np.tile(u_anti, (1, times, 1))]
    values, grads = run(row, case, np.concatenate(noise))
    weights = np.outer(weights, weights_anti).ravel()
    return weights @ values, weights @ grads


# Of wake-sleep the encoder's gradient in a small network.


def recognised_dreams(row, case):
    """-encoder_loss and its gradient over the noise of dreams, those of the decoder left alone."""
    model = oracles.small_network(case.num_layers)
    group = model.gradient_estimators("wake_sleep")
    for estimator in group:
        estimator.row = row
    awake = [[]] * len(oracles.path_thresholds(model, group[0]))
    u, volumes = oracles.noise_of(model, awake + oracles.dream_thresholds(model))
    with tf.GradientTape() as tape:
        loss, _ = oracles.losses_over(model, u, volumes, group)
    grads = tape.gradient(loss, oracles.values_of(model, "encoder"))
    return 0.0, -np.concatenate([np.ravel(g) for g in grads])


def likely_dreams(row, case):
    """Sum over all images and codes of p(x, b) grad log q(b|x)."""
    model = oracles.small_network(case.num_layers)
    path = oracles.all_paths(model)
    images = tf.constant(oracles.binary_vectors(oracles.PIXELS))
    with tf.GradientTape() as tape:
        logits, log_q = oracles.logits_and_log_q(model, images, path)
        p = tf.stop_gradient(tf.exp(model.log_weight(images, path, logits) + log_q))
        exact = tf.reduce_sum(p * log_q)
    np.testing.assert_allclose(tf.reduce_sum(p), 1, rtol=1e-6)
    grads = tape.gradient(exact, oracles.values_of(model, "encoder"))
    return 0.0, np.concatenate([np.ravel(g) for g in grads])


def bound_of_model(row, case):
    """The gradient of the bound in the encoder's variables."""
    model, samples = oracles.small_network(case.num_layers), samples_of(row, case)
    _, grads = oracles.gradients_of_network(model, "encoder", num_samples=samples)
    return 0.0, np.concatenate([np.ravel(g) for g in grads])


unbiased("vimco", expectation=over_cells, cases=[Case(LOGITS, num_samples=k) for k in (2, 3)])
unbiased(
    "disarm_local", expectation=over_cells, cases=[Case(LOGITS, num_samples=k) for k in (1, 2, 3)]
)
unbiased(
    "arms_multisample",
    expectation=over_cells_and_patterns,
    cases=[Case((0.8,), num_samples=4), *(Case(LOGITS, num_samples=k) for k in (2, 3))],
)
biased(
    "ovis",
    expectation=over_cells,
    known=ovis_mean,
    cases=[
        Case(LOGITS, num_samples=k, options={"gamma": g}) for g in (0.0, 0.4, 1.0) for k in (2, 3)
    ],
)
biased(
    "rws",
    expectation=over_cells,
    known=weighted_scores,
    cases=[Case(LOGITS, num_samples=k) for k in (1, 2, 3)],
)
biased(
    "wake_sleep",
    expectation=recognised_dreams,
    known=likely_dreams,
    exact=bound_of_model,
    cases=[Case(num_samples=1, num_layers=t) for t in (1, 2)],
)

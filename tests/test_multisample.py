"""Multi-sample bounds: estimators and models against enumeration of all K-tuples of samples."""

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

import arm_tf
from arm_tf import bernoulli, estimators, layers, models, objectives
from arm_tf.training.config import Config

MULTISAMPLE = sorted(n for n, row in estimators.TABLE.items() if row.objective == "multisample")
OF_FUNCTIONS = [name for name in MULTISAMPLE if not estimators.TABLE[name].rule]
RNG = np.random.default_rng(0)
LOGITS = np.array([-0.7, 1.2])


def log_p(b):
    """An unnormalised log p(x, b) without symmetry."""
    return 1.5 * b[..., 0] - b[..., 1] + 2.5 * b[..., 0] * b[..., 1] - 0.3


def make_f(logits, log_p=log_p):
    logits = tf.stop_gradient(logits)
    return lambda b: log_p(b) - bernoulli.log_prob(b, logits)


def rows_of(name, num_samples):
    """Rows of noise."""
    return estimators.TABLE[name].rows(num_samples, 2)


def value_and_gradient(name, log_p, logits, u, **options):
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        f = make_f(logits, log_p)
        num_samples = u.shape[0] // rows_of(name, 1)
        value = arm_tf.expectation(
            f, logits, estimator=name, num_samples=num_samples, u=u, **options
        )
    return value, tape.gradient(value, logits)


def over_cells(name, num_samples, **options):
    """Exact expectations of value and gradient over the noise."""
    points, weights = oracles.cells(list(oracles.pair_thresholds(LOGITS)) * num_samples)
    u = tf.constant(points.reshape(-1, num_samples, 2).swapaxes(0, 1))
    logits = np.tile(LOGITS, (len(weights), 1))
    value, grad = value_and_gradient(name, log_p, logits, u, **options)
    return weights @ value.numpy(), weights @ grad.numpy()


def test_reweighted_wake_sleep_approaches_the_posterior():
    """E[rws] is zero for one sample, and nears E_p[b] - sigmoid(logits) with more."""
    b = oracles.binary_vectors(2)
    p = np.exp(log_p(b))
    limit = p @ b / p.sum() - 1 / (1 + np.exp(-LOGITS))
    grads = [over_cells("rws", num_samples)[1] for num_samples in (1, 2, 3)]
    np.testing.assert_allclose(grads[0], 0, atol=1e-15)
    distances = [np.linalg.norm(grad - limit) for grad in grads]
    assert distances[0] > distances[1] > distances[2]


def naive_signal(name, w, gamma):
    """The papers' formulas, sample by sample; w [K, cases]."""
    num_samples = len(w)
    bound = np.log(w.mean(axis=0))
    signals = []
    for k in range(num_samples):
        others = np.delete(w, k, axis=0)
        normalised = w[k] / w.sum(axis=0)
        if name == "vimco":
            replaced = np.concatenate([others, np.exp(np.log(others).mean(0, keepdims=True))])
            signals.append(bound - np.log(replaced.mean(axis=0)) - normalised)
        else:
            c = np.log(others.mean(0)) - gamma * normalised
            signals.append(bound - normalised - c - (1 - gamma) * np.log(1 - 1 / num_samples))
    return np.stack(signals)


@pytest.mark.parametrize("num_samples", [2, 5])
@pytest.mark.parametrize("name, gamma", [("vimco", 0), ("ovis", 0.0), ("ovis", 0.3), ("ovis", 1.0)])
def test_baselines_are_those_of_the_papers(name, gamma, num_samples):
    """Any baseline that is independent of its sample would pass the test of exactness."""
    logits = np.tile(LOGITS, (20, 1))
    u = tf.constant(RNG.uniform(size=(num_samples, 20, 2)))
    b = bernoulli.sample(logits, u)
    signal = naive_signal(name, np.exp(make_f(logits)(b)), gamma)
    expected = np.sum(signal[..., np.newaxis] * bernoulli.score(b, logits), axis=0)
    options = {"gamma": gamma} if name == "ovis" else {}
    _, grad = value_and_gradient(name, log_p, logits, u, **options)
    np.testing.assert_allclose(grad, expected, atol=1e-12)


def test_local_disarm_replaces_one_sample_at_a_time():
    """Replacing all samples at once would be exact too."""
    logits = np.tile(LOGITS, (20, 1))
    u = tf.constant(RNG.uniform(size=(3, 20, 2)))
    samples = bernoulli.sample(logits, u), bernoulli.antithetic_sample(logits, u)
    (b, w), (b_anti, w_anti) = ((s.numpy(), np.exp(make_f(logits)(s))) for s in samples)
    expected = 0
    for k in range(3):
        replaced = np.concatenate([np.delete(w, k, axis=0), w_anti[k : k + 1]])
        delta = np.log(w.mean(axis=0) / replaced.mean(axis=0))[:, np.newaxis]
        sign = np.where(b[k] == b_anti[k], 0, (-1) ** b_anti[k])
        expected += 0.5 * delta * sign / (1 + np.exp(-np.abs(LOGITS)))
        expected -= (w[k] / w.sum(axis=0))[:, np.newaxis] * bernoulli.score(b[k], logits)
    _, grad = value_and_gradient("disarm_local", log_p, logits, u)
    np.testing.assert_allclose(grad, expected, atol=1e-12)


def test_two_samples_reduce_vimco_to_ovis():
    """With one other sample, both take it as the baseline; they differ by W_k in the signal."""
    logits = np.tile(LOGITS, (20, 1))
    u = tf.constant(RNG.uniform(size=(2, 20, 2)))
    vimco, ovis, rws = (
        value_and_gradient(name, log_p, logits, u)[1] for name in ("vimco", "ovis", "rws")
    )
    np.testing.assert_allclose(vimco, ovis - rws, atol=1e-13)


def test_one_sample_reduces_local_disarm_to_disarm():
    logits = np.tile(LOGITS, (50, 1))
    u = tf.constant(RNG.uniform(size=(1, 50, 2)))
    local, disarm = (
        value_and_gradient(name, log_p, logits, u) for name in ("disarm_local", "disarm")
    )
    score = bernoulli.score(bernoulli.sample(logits, u[0]), logits)
    np.testing.assert_allclose(local[0], disarm[0], atol=1e-13)
    np.testing.assert_allclose(local[1], disarm[1] - score, atol=1e-13)


@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_variables_inside_f_get_the_gradient_of_the_bound(name):
    weights = tf.Variable(RNG.normal(size=2))
    logits = tf.constant(np.tile(LOGITS, (7, 1)))
    u = tf.constant(RNG.uniform(size=(rows_of(name, 3), 7, 2)))
    f = lambda b: tf.tanh(tf.linalg.matvec(b, weights))
    with tf.GradientTape() as tape:
        value = arm_tf.expectation(f, logits, estimator=name, num_samples=3, u=u)
    samples = [bernoulli.sample(logits, u[:3])]
    if name == "disarm_local":
        samples.append(bernoulli.antithetic_sample(logits, u))
    with tf.GradientTape() as plain:
        bound = tf.add_n([objectives.multisample_bound(f(b)) for b in samples]) / len(samples)
    assert value.shape == (7,)
    np.testing.assert_allclose(value, bound, atol=1e-14)
    np.testing.assert_allclose(
        tape.gradient(value, weights), plain.gradient(bound, weights), atol=1e-13
    )


@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_weights_of_very_different_size_keep_their_precision(name):
    logits = np.tile(LOGITS, (100, 1))
    u = RNG.uniform(size=(rows_of(name, 5), 100, 2))
    wide = lambda b: 1000.0 * (2.0 * b[..., 0] - 1.0) + b[..., 1]  # exact in single precision
    results = []
    for dtype in ("float32", "float64"):
        with tf.GradientTape() as tape:
            phi = tf.constant(logits, dtype)
            tape.watch(phi)
            value = arm_tf.expectation(
                wide, phi, estimator=name, num_samples=5, u=tf.constant(u, dtype)
            )
        results.append((value, tape.gradient(value, phi)))
    (value, grad), (exact_value, exact_grad) = results
    rounding = np.finfo("float32").eps * 1000
    np.testing.assert_allclose(value, exact_value, rtol=0, atol=rounding)
    atol = np.full([100, 1], 1e-6)
    if name == "disarm_local":  # of differences L - L_anti_k that may be in the thousands
        probs = 1 / (1 + np.exp(-logits))
        best, best_anti = wide(u < probs), wide(u > 1 - probs)
        others = [np.delete(best, k, axis=0).max(axis=0) for k in range(5)]
        jumps = np.maximum(best, others) - np.maximum(best_anti, others)
        large = (np.abs(jumps) > 10).sum(axis=0)
        assert 0 < (large > 0).sum() < 90
        atol += rounding * large[:, np.newaxis]
    if name == "arms_multisample":  # of differences L_jk - mean_i L_ik
        atol = np.full([100, 1], 10 * rounding)
    assert (np.abs(grad.numpy() - exact_grad.numpy()) <= atol + 1e-6 * np.abs(exact_grad)).all()


def test_keras_layer_takes_multisample_estimators():
    layer = layers.StochasticBinary("ovis", num_samples=3, gamma=0.0, seed=1)
    logits = tf.constant(np.tile(LOGITS, (4, 1)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = layer(logits, f=make_f(logits))
    assert value.shape == (4,) and np.abs(tape.gradient(value, logits)).max() > 0


@pytest.mark.parametrize(
    "use",
    [
        lambda: arm_tf.expectation(log_p, tf.zeros([3, 2]), estimator="wake_sleep"),
        lambda: layers.StochasticBinary("wake_sleep")(tf.zeros([3, 2]), f=log_p),
    ],
)
def test_wake_sleep_needs_a_model(use):
    with pytest.raises(ValueError, match="'wake_sleep' learns from images .* arm_tf.train"):
        use()


@pytest.mark.slow
@pytest.mark.parametrize("name", MULTISAMPLE)
def test_model_agrees_in_eager_graph_and_xla(name):
    model = oracles.small_network(2)
    group = model.gradient_estimators(name, 3)
    u = tf.constant(RNG.uniform(size=[model.noise_rows(group), 1, 2]))
    encoder, decoder = (oracles.values_of(model, part) for part in ("encoder", "decoder"))

    def gradients():
        with tf.GradientTape(persistent=True) as tape:
            encoder_loss, decoder_loss, _ = model.losses(oracles.X, u, group)
        assert tape.gradient(encoder_loss, decoder) == [None] * len(decoder)
        return tape.gradient(encoder_loss, encoder) + tape.gradient(decoder_loss, decoder)

    eager = gradients()
    for jit in (False, True):
        for got, want in zip(tf.function(gradients, jit_compile=jit)(), eager, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", MULTISAMPLE)
def test_training_improves_the_bound(name):
    """Four patterns of nine pixels become likelier than they are for independent pixels."""
    patterns = np.random.default_rng(2).integers(0, 2, size=(4, 9)).astype("float32")
    mean = np.clip(patterns.mean(axis=0), 1e-6, 1 - 1e-6)
    without_code = np.sum(mean * np.log(mean) + (1 - mean) * np.log(1 - mean))
    x = tf.constant(np.tile(patterns, (10, 1)))
    model = models.BinaryVAE(pixels=9, units=4, seed=3)
    group = model.gradient_estimators(name, 5)
    rows = model.noise_rows(group, "shared")
    parts = {part: oracles.values_of(model, part) for part in ("encoder", "decoder", "prior")}
    optimizers = {part: keras.optimizers.Adam(0.05) for part in parts}
    for part, optimizer in optimizers.items():
        optimizer.build(model.variable_groups[part])

    @tf.function
    def step(u):
        with tf.GradientTape(persistent=True) as tape:
            encoder_loss, decoder_loss, _ = model.losses(x, u, group, "shared")
            losses = {"encoder": tf.reduce_mean(encoder_loss)}
            loss = tf.reduce_mean(decoder_loss)
        for part, values in parts.items():
            grads = tape.gradient(losses.get(part, loss), values)
            optimizers[part].apply(grads, model.variable_groups[part])
        return loss

    rng = np.random.default_rng(0)
    noise = lambda: tf.constant(rng.uniform(size=(rows, 40, 4)), tf.float32)
    losses = [step(noise()).numpy() for _ in range(200)]
    assert -np.mean(losses[-20:]) > without_code + 1.0 > -losses[0] + 1.0


# Settings


def test_objective_follows_from_the_estimator():
    for name, row in estimators.TABLE.items():
        assert Config(estimator=name, units=10).objective == row.objective
    assert Config().decoder_samples == "independent"
    vimco = Config(estimator="vimco")
    assert (vimco.num_samples, vimco.decoder_samples) == (5, "shared")
    assert vimco.name == "glyphs-linear-1-vimco-seed0"
    assert Config(estimator="vimco", num_samples=5).name == vimco.name
    assert Config(estimator="vimco", decoder_samples="independent").name != vimco.name

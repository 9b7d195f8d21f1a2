"""Networks: the log weight, and the gradient of every layer against enumeration."""

import itertools
import pathlib
import textwrap

import numpy as np
import oracles
import proofs
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from small_runs import small_dataset

from arm_tf import models
from arm_tf.expectation import draw
from arm_tf.training import journal

FLIPPING = ("bitflip", "debiased", "ugc")  # whose second row of noise says which unit flips
PIXELS = 3
X = tf.constant([[1.0, 0.0, 1.0]], tf.float64)


def make_model(num_layers, network="linear", units=2, kind=models.BinaryVAE, **kwargs):
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
    for variable in model.variables:  # far from zero, biases and prior too
        variable.assign(rng.normal(scale=1.0, size=variable.shape))
    return model


def all_paths(model):
    """Every path b_1, …, b_T, each layer float64 [paths, 1, units]."""
    vectors = oracles.binary_vectors(model.units)
    paths = np.array(list(itertools.product(vectors, repeat=model.num_layers)))
    return [tf.constant(paths[:, t, np.newaxis]) for t in range(model.num_layers)]


def exact_elbo(model):
    """E[log w] for the one image X by enumeration; differentiable, a log q in w included."""
    path = all_paths(model)
    logits = [m(b) for m, b in zip(model.encoder_maps, [model.visible(X), *path], strict=False)]
    log_q = tf.add_n(
        [
            tf.reduce_sum(tfp.distributions.Bernoulli(logits=phi).log_prob(b), axis=-1)
            + tf.zeros([path[0].shape[0], 1], tf.float64)
            for b, phi in zip(path, logits, strict=True)
        ]
    )
    return tf.reduce_sum(tf.exp(log_q) * model.log_weight(X, path, logits))


def exact_gradients(model, part):
    variables = [v.value for v in model.variable_groups[part]]
    with tf.GradientTape() as tape:
        elbo = exact_elbo(model)
    return elbo.numpy(), [g.numpy() for g in tape.gradient(elbo, variables)]


@pytest.mark.parametrize("network", ["linear", "nonlinear"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_log_weight_is_that_of_the_model_written_with_distributions(num_layers, network):
    model = make_model(num_layers, network, input_scaling="symmetric", code_scaling="symmetric")
    path = all_paths(model)
    bernoulli = lambda logits: tfp.distributions.Independent(
        tfp.distributions.Bernoulli(logits=logits), 1
    )
    expected = bernoulli(model.prior_logits.value).log_prob(path[-1])
    below = tf.tile(X[np.newaxis], [path[0].shape[0], 1, 1])
    for t, b in enumerate(path):
        expected -= bernoulli(network_of(model.encoder[t], below)).log_prob(b)
        expected += bernoulli(network_of(model.decoder[t], b)).log_prob(below)
        below = b
    logits = [m(b) for m, b in zip(model.encoder_maps, [X, *path], strict=False)]
    np.testing.assert_allclose(model.log_weight(X, path, logits), expected, atol=1e-12)


def network_of(stochastic_map, inputs, slope=0.1):
    """The map written out: 2b - 1, then affine, with leaky ReLU between affine ones."""
    weights = stochastic_map.get_weights()
    hidden = 2 * inputs - 1
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        hidden = hidden @ kernel + bias
        hidden = tf.nn.relu(hidden) - slope * tf.nn.relu(-hidden)
    return hidden @ weights[-2] + weights[-1]


@pytest.mark.parametrize(
    "estimator, network, num_layers, t",
    [
        *[("arm", "linear", T, t) for T in (1, 2, 3) for t in range(T)],
        *[("arm", "nonlinear", T, t) for T in (1, 2) for t in range(T)],
        *[
            (estimator, "linear", 2, t)
            for estimator in sorted({*proofs.LINEAR_IN_CELLS, *FLIPPING} - {"arm"})
            for t in range(2)
        ],
    ],
)
def test_encoder_gradient_of_each_layer_is_exact(estimator, network, num_layers, t):
    """The expectation over all noise, as a sum over cells, is the gradient of the exact ELBO."""
    many = estimator in ("legrad", "legrad_fresh", "ram", "exact", "loo", "double_cv", "rodeo")
    model = make_model(num_layers, network, units=1 if num_layers == 3 or many else 2)
    assert_encoder_gradient_is_exact(model, t, estimator)


@pytest.mark.parametrize(
    "estimator, t",
    [("arm", 0), ("arm", 1), ("debiased", 0), ("debiased", 1), ("disarm", 0), ("loo", 1)],
)
def test_gradient_of_the_conditional_network_is_exact(estimator, t):
    kind = models.ConditionalNetwork
    model = make_model(2, units=1 if estimator == "loo" else 2, kind=kind)
    assert_encoder_gradient_is_exact(model, t, estimator)


def assert_encoder_gradient_is_exact(model, t, estimator):
    gradient_estimators = model.gradient_estimators(estimator)
    u, volumes = noise_of(model, noise_cells(model, t, gradient_estimators[0]))
    with tf.GradientTape() as tape:
        loss, _, _ = model.losses(
            tf.tile(X, [len(volumes), 1]), u, gradient_estimators, decoder_samples="shared"
        )
        loss = tf.reduce_sum(loss * volumes)
    variables = [v.value for v in model.encoder[t].trainable_variables]
    _, expected = exact_gradients(model, "encoder")
    size = len(variables)
    for got, want in zip(
        tape.gradient(loss, variables), expected[t * size : (t + 1) * size], strict=True
    ):
        np.testing.assert_allclose(-got, want, rtol=0, atol=1e-12)


def noise_of(model, thresholds):
    """One case of noise for each cell that the thresholds cut, and the cells' volumes."""
    midpoints, volumes = oracles.cells(thresholds)
    u = midpoints.T.reshape(-1, model.units, len(volumes)).swapaxes(1, 2)
    return tf.constant(u), volumes


def noise_cells(model, t, estimator):
    """Thresholds of the noise that the gradient of layer t depends on; the rest has one cell.

    Layer s takes the estimator's rows to threshold, the first of them for the shared path too,
    and, for each later layer, a row for each sample.
    """
    thresholds = []
    for s in range(model.num_layers):
        thresholds += row_thresholds(model, s, used=s <= t, pair=s == t)
        if estimator.row.name in FLIPPING:
            choice = [np.arange(1, model.units) / model.units] + [[]] * (model.units - 1)
            thresholds += choice if s == t else [[]] * model.units
        else:
            thresholds += (estimator.rows - 1) * row_thresholds(model, s, used=s == t)
        for later in range(s + 1, model.num_layers):
            thresholds += estimator.width * row_thresholds(model, later, used=s == t, pair=False)
    return thresholds


def row_thresholds(model, s, used=True, pair=True):
    """Thresholds of each number in a row for layer s, for any vector that may lie below it."""
    if not used:
        return [[]] * model.units
    below = tf.constant(oracles.binary_vectors(model.units)) if s else model.visible(X)
    thresholds = oracles.pair_thresholds(model.encoder_maps[s](below))[..., : 1 + pair]
    return list(thresholds.swapaxes(0, 1).reshape(model.units, -1))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("decoder_samples", ["independent", "shared"])
def test_decoder_gradient_is_exact(num_layers, decoder_samples):
    model = make_model(num_layers)
    thresholds = []
    for s in range(num_layers):  # of one sample for each layer's estimate
        used = decoder_samples == "shared"
        thresholds += row_thresholds(model, s, used, pair=False)
        for later in range(s + 1, num_layers):
            thresholds += row_thresholds(model, later, used, pair=False)
    if decoder_samples == "independent":
        for s in range(num_layers):
            thresholds += row_thresholds(model, s, pair=False)
    u, volumes = noise_of(model, thresholds)
    estimators = model.gradient_estimators("ar")
    assert u.shape[0] == model.noise_rows(estimators, decoder_samples)
    variables = [v.value for v in model.variable_groups["decoder"]] + [model.prior_logits.value]
    with tf.GradientTape() as tape:
        _, loss, _ = model.losses(tf.tile(X, [len(volumes), 1]), u, estimators, decoder_samples)
        loss = tf.reduce_sum(loss * volumes)
    with tf.GradientTape() as exact_tape:
        exact = exact_elbo(model)
    np.testing.assert_allclose(-loss, exact, atol=1e-12)
    expected = exact_tape.gradient(exact, variables)
    for got, want in zip(tape.gradient(loss, variables), expected, strict=True):
        np.testing.assert_allclose(-got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_layers, evaluations", [(1, 3), (2, 5), (3, 7)])
def test_arm_evaluates_f_twice_a_layer_and_once_for_the_decoder(num_layers, evaluations):
    model = make_model(num_layers)
    estimators = model.gradient_estimators("arm")
    assert model.evaluations(estimators) == evaluations
    assert model.evaluations(estimators, "shared") == evaluations - 1
    counted = []
    log_weight = model.log_weight

    def counting(x, path, logits):
        log_w = log_weight(x, path, logits)
        counted.append(log_w.shape[0])
        return log_w

    model.log_weight = counting
    u = tf.random.uniform([model.noise_rows(estimators), 1, 2], dtype=tf.float64)
    model.losses(X, u, estimators)
    assert sum(counted) == evaluations


def test_losses_send_no_gradient_to_the_other_part():
    model = make_model(2)
    estimators = model.gradient_estimators("arm")
    u = tf.constant(np.random.default_rng(0).uniform(size=[model.noise_rows(estimators), 1, 2]))
    with tf.GradientTape(persistent=True) as tape:
        losses = model.losses(X, u, estimators)
    for loss, other in ((losses.encoder, "decoder"), (losses.decoder, "encoder")):
        variables = [v.value for v in model.variable_groups[other]]
        assert tape.gradient(loss, variables) == [None] * len(variables)


@pytest.mark.parametrize("kind", [models.BinaryVAE, models.ConditionalNetwork])
@pytest.mark.parametrize("estimator", ["arm", "disarm", "concrete"])
def test_one_tape_has_all_gradients_of_the_elbo(kind, estimator):
    """Those of the parts at the same noise, eager and compiled, weighed by what follows."""
    model = make_model(2, kind=kind)
    x = tf.constant([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], tf.float64)
    weights = tf.constant([0.3, 2.0], tf.float64)
    group = model.gradient_estimators(estimator)
    u = draw(tf.zeros([2, 2], tf.float64), model.noise_rows(group), seed=5)
    encoder = [v.value for v in model.variable_groups["encoder"]]
    others = [v.value for part in ("decoder", "prior") for v in model.variable_groups[part]]
    with tf.GradientTape(persistent=True) as tape:
        losses = model.losses(x, u, group)
    expected = tape.gradient(losses.encoder, encoder, weights)
    expected += tape.gradient(losses.decoder, others, weights)

    def gradients():
        with tf.GradientTape() as tape:
            loss = -model.elbo(x, estimator, seed=5)
        return loss, tape.gradient(loss, encoder + others, weights)

    for run in (gradients, tf.function(gradients, jit_compile=True)):
        loss, found = run()
        np.testing.assert_allclose(loss, losses.decoder, rtol=1e-12)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", ["vimco", "wake_sleep", "nvil"])
def test_elbo_refuses_estimators_that_it_cannot_serve(estimator):
    with pytest.raises(ValueError, match=f"received '{estimator}'; use losses"):
        make_model(1).elbo(X, estimator)


def test_bound_of_the_conditional_network_is_that_by_enumeration():
    """E[log p(x_l|b_2)] and, with many samples, p(x_l|x_u), written out with distributions."""
    model = make_model(2, kind=models.ConditionalNetwork, input_scaling="symmetric")
    probability = lambda logits, b: np.exp(
        tfp.distributions.Bernoulli(logits=tf.constant(logits)).log_prob(b).numpy().sum()
    )
    vectors = oracles.binary_vectors(2)
    upper, lower = X.numpy()[0, :1], X.numpy()[0, 1:]
    kernels = [m.get_weights() for m in (*model.encoder, *model.decoder)]
    affine = lambda i, b: b @ kernels[i][0] + kernels[i][1]
    likelihood = bound = 0.0
    for b1, b2 in itertools.product(vectors, vectors):
        weight = probability(affine(0, 2 * upper - 1), b1) * probability(affine(1, b1), b2)
        p_lower = probability(affine(2, b2), lower)
        likelihood += weight * p_lower
        bound += weight * np.log(p_lower)

    u, volumes = noise_of(model, [t for s in range(2) for t in row_thresholds(model, s)])
    log_w = model.log_weights(tf.tile(X, [len(volumes), 1]), u[:, tf.newaxis])[0]
    np.testing.assert_allclose(volumes @ log_w.numpy(), bound, rtol=0, atol=1e-12)
    np.testing.assert_allclose(volumes @ np.exp(log_w), likelihood, rtol=0, atol=1e-12)


def test_completions_keep_the_upper_half():
    model = make_model(2, kind=models.ConditionalNetwork)
    u = tf.constant(np.random.default_rng(0).uniform(size=[model.picture_rows, 1, 2]))
    first, *completions = model.pictures(X, u)["completions"]
    np.testing.assert_array_equal(first, X)
    assert len({tuple(c.numpy().ravel()) for c in completions}) > 1
    for completion in completions:
        np.testing.assert_array_equal(completion[:, :1], X[:, :1])
        assert ((completion[:, 1:] > 0) & (completion[:, 1:] < 1)).numpy().all()


@pytest.mark.parametrize("estimator", ["vimco", "wake_sleep"])
def test_estimators_that_need_a_recognition_model_are_refused(estimator):
    with pytest.raises(ValueError, match="not for the conditional network"):
        make_model(2, kind=models.ConditionalNetwork).gradient_estimators(estimator)


def test_settings_have_the_effect_they_name():
    mean = np.array([0.2, 0.5, 0.9])
    make = lambda **kwargs: models.BinaryVAE(PIXELS, units=2, seed=1, **kwargs)
    plain = make()
    kernel, bias = plain.encoder[0].get_weights()
    x = X.numpy().astype("float32")
    limit = np.sqrt(6 / (PIXELS + 2))
    assert np.abs(kernel).max() <= limit and not bias.any()
    for scaling, seen in [("none", x), ("symmetric", 2 * x - 1), ("centered", x - mean)]:
        model = make(input_scaling=scaling, pixel_mean=mean)
        np.testing.assert_allclose(model.encoder_maps[0](x), seen @ kernel, atol=1e-6)
    bias = make(output_bias="data_mean", pixel_mean=mean).decoder[0].get_weights()[1]
    np.testing.assert_allclose(bias, np.log(mean / (1 - mean)), rtol=1e-5)
    for settings in ({"input_scaling": "centered"}, {"output_bias": "data_mean"}):
        with pytest.raises(ValueError, match="need pixel_mean, the mean of the training images"):
            make(**settings)
    assert make(prior="uniform").variable_groups["prior"] == []
    other = models.BinaryVAE(PIXELS, units=2, seed=2).encoder[0].get_weights()[0]
    assert (other != kernel).all()
    names = [v.shape for v in make(network="nonlinear").encoder[0].trainable_variables]
    assert names == [(3, 2), (2,), (2, 2), (2,), (2, 2), (2,)]


def test_initial_kernels_are_independent_uniform_draws():
    """Glorot variance, no common part, no two alike, of one seed or two; six standard errors."""
    draws = []
    for seed in (0, 1):
        model = models.BinaryVAE(200, 2, "nonlinear", units=200, seed=seed)
        for kernel in (w for m in (*model.encoder, *model.decoder) for w in m.get_weights()[::2]):
            kernel = kernel.astype(np.float64) * np.sqrt(sum(kernel.shape) / 2)
            # of variance 1 now: largest singular value (Marchenko-Pastur: 2), mean square
            assert np.linalg.norm(kernel, 2) < 2.1 * np.sqrt(200)
            assert abs((kernel**2).mean() - 1) < 6 * np.sqrt(0.8 / kernel.size)
            draws.append(kernel.ravel())
    correlation = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    assert np.abs(correlation).max() < 6 / np.sqrt(draws[0].size)


def test_generated_images_follow_the_model():
    """Average pixel probabilities over all cells of noise equal those by enumeration."""
    model = make_model(2)
    top, low = model.prior_logits.numpy(), oracles.binary_vectors(2)
    expected = 0
    for b2 in low:
        log_p2 = tfp.distributions.Bernoulli(logits=top).log_prob(b2).numpy().sum()
        logits = model.decoder[1](b2[np.newaxis]).numpy()[0]
        for b1 in low:
            log_p1 = tfp.distributions.Bernoulli(logits=logits).log_prob(b1).numpy().sum()
            pixels = tf.sigmoid(model.decoder[0](b1[np.newaxis])).numpy()[0]
            expected += np.exp(log_p2 + log_p1) * pixels
    thresholds = [1 / (1 + np.exp(-top[i])) for i in range(2)]
    thresholds += list(1 / (1 + np.exp(-model.decoder[1](low).numpy().T)))
    midpoints, volumes = oracles.cells([np.atleast_1d(t) for t in thresholds])
    u = tf.constant(midpoints.reshape(-1, 2, 2).swapaxes(0, 1))
    np.testing.assert_allclose(volumes @ model.generate(u).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    "setting", ["network", "input_scaling", "code_scaling", "prior", "output_bias"]
)
def test_unknown_choices_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} must be one of .*, received 'odd'"):
        models.BinaryVAE(PIXELS, units=2, **{setting: "odd"})


def test_the_recipe_for_a_model_gives_one():
    page = (pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.split("## A model")[1].split("Gradients, bounds")[0]
    lines = [line for line in section.splitlines() if line.startswith("    ") or not line]
    recipe: dict = {}
    exec(textwrap.dedent("\n".join(lines)), recipe)
    model = recipe["Mine"](num_layers=2, units=3)
    x = small_dataset().train[:5].astype("float32")
    gradient_estimators = model.gradient_estimators("arm")
    rows = model.noise_rows(gradient_estimators, "independent")
    losses = model.losses(x, tf.random.uniform([rows, 5, 3]), gradient_estimators, "independent")
    assert losses.encoder.shape == losses.decoder.shape == (5,)
    assert list(journal.pages(model, small_dataset(), seed=0)) == ["reconstructions"]

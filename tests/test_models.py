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
from kinds import each_kind
from oracles import PIXELS, X, small_network
from proofs.antithetic import dirichlet_patterns, pattern_noise
from small_runs import small_dataset

from arm_tf import estimators, models
from arm_tf.expectation import draw
from arm_tf.training import journal

BOUNDS = [n for n, row in estimators.TABLE.items() if row.objective == "multisample"]


@pytest.mark.parametrize("network", ["linear", "nonlinear"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_log_weight_is_that_of_the_model_written_with_distributions(num_layers, network):
    model = small_network(num_layers, network, input_scaling="symmetric", code_scaling="symmetric")
    path = oracles.all_paths(model)
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


MANY = ("legrad", "legrad_fresh", "ram", "exact", "loo", "double_cv", "rodeo")  # cells


@pytest.mark.parametrize(
    "estimator, network, num_layers, t",
    [
        *[("arm", "linear", T, t) for T in (1, 2, 3) for t in range(T)],
        *[("arm", "nonlinear", T, t) for T in (1, 2) for t in range(T)],
        *[
            (estimator, "linear", 2, t)
            for estimator in sorted({*proofs.LINEAR_IN_CELLS, *oracles.FLIPPING} - {"arm"})
            for t in range(2)
        ],
    ],
)
def test_encoder_gradient_of_each_layer_is_exact(estimator, network, num_layers, t):
    """The expectation over all noise, as a sum over cells, is the gradient of the exact ELBO."""
    units = 1 if num_layers == 3 or estimator in MANY else 2
    assert_encoder_gradient_is_exact(small_network(num_layers, network, units), t, estimator)


@pytest.mark.parametrize(
    "estimator, t",
    [("arm", 0), ("arm", 1), ("debiased", 0), ("debiased", 1), ("disarm", 0), ("loo", 1)],
)
def test_gradient_of_the_conditional_network_is_exact(estimator, t):
    units = 1 if estimator == "loo" else 2
    model = small_network(2, units=units, kind=models.ConditionalNetwork)
    assert_encoder_gradient_is_exact(model, t, estimator)


@pytest.mark.parametrize(
    "estimator, gamma, num_samples, num_layers, units",
    [
        *[(name, gamma, 2, 2, 2) for name, gamma in (("vimco", 0), ("rws", 1), ("ovis", 0.4))],
        *[(name, 0, 3, 2, 1) for name in ("vimco", "disarm_local")],
        ("vimco", 0, 2, 3, 1),
        ("disarm_local", 0, 1, 2, 2),
    ],
)
def test_encoder_gradient_of_a_bound_is_exact(estimator, gamma, num_samples, num_layers, units):
    """OVIS adds gamma times the mean of RWS to the bound's gradient, and RWS is that mean."""
    model = small_network(num_layers, units=units)
    joint = estimators.TABLE[estimator].joint
    for t in [None] if joint else range(num_layers):
        assert_encoder_gradient_is_exact(model, t, estimator, num_samples, gamma)


def assert_encoder_gradient_is_exact(model, t, estimator, num_samples=None, gamma=0):
    options = {"gamma": gamma} if estimator == "ovis" else {}
    group = model.gradient_estimators(estimator, num_samples, **options)
    u, volumes = oracles.noise_of(model, oracles.path_thresholds(model, group[0], t))
    variables = oracles.values_of(model, "encoder")
    with tf.GradientTape() as tape:
        loss, _ = oracles.losses_over(model, u, volumes, group)
    found = tape.gradient(loss, variables)
    samples = num_samples or 1
    _, expected = oracles.gradients_of_network(model, "encoder", num_samples=samples)
    if gamma:
        _, rws = oracles.gradients_of_network(model, "encoder", num_samples=samples, of="rws")
        rest = 0 if estimator == "rws" else 1
        expected = [rest * e + gamma * r for e, r in zip(expected, rws, strict=True)]
    size = len(variables) // model.num_layers
    part = slice(None) if t is None else slice(t * size, (t + 1) * size)
    for got, want in zip(found[part], expected[part], strict=True):
        np.testing.assert_allclose(-got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0, 1])
def test_encoder_gradient_of_arms_is_exact(t):
    """In the first layer over patterns of the antithetic samples; in the second they are pairs."""
    model = small_network(2, units=1)
    group = model.gradient_estimators("arms_multisample", 2)
    first = oracles.row_thresholds(model, 0, pair=False)
    later = oracles.row_thresholds(model, 1, used=t == 0, pair=False)
    second = oracles.row_thresholds(model, 1, used=t == 1)
    points, volumes = oracles.cells([*2 * first, *4 * later, *2 * second])
    logits = model.encoder_maps[0](oracles.X).numpy().ravel()
    patterns, chances = pattern_noise(dirichlet_patterns, logits, 2)
    if t == 1:
        patterns, chances = patterns[:, :1], np.ones(1)
    u = np.repeat(points.T[..., np.newaxis], len(chances), axis=1)
    patterns = np.tile(patterns, (1, len(volumes), 1))
    idle = np.full((2, *u.shape[1:]), 0.5)
    u = np.concatenate([u[:2], patterns, u[2:6], u[6:], idle])
    grads = oracles.layer_gradients(model, group, u)[t]
    _, expected = oracles.gradients_of_network(model, "encoder", num_samples=2)
    found = np.outer(volumes, chances).ravel() @ grads
    np.testing.assert_allclose(found, expected[2 * t + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "estimator, num_samples, num_layers, decoder_samples",
    [
        *[("ar", 1, T, samples) for T in (1, 2) for samples in ("independent", "shared")],
        *[("vimco", 2, T, samples) for T in (1, 2) for samples in ("independent", "shared")],
        ("disarm_local", 2, 1, "shared"),
        *[("wake_sleep", 2, 1, samples) for samples in ("independent", "shared")],
    ],
)
def test_decoder_gradient_is_exact(estimator, num_samples, num_layers, decoder_samples):
    """That of the ELBO, or of the bound over its samples, on which wake-sleep trains it, too."""
    model = small_network(num_layers)
    group = model.gradient_estimators(estimator, num_samples)
    thresholds = oracles.path_thresholds(model, group[0])
    if decoder_samples == "independent":
        thresholds = [[]] * len(thresholds)
        for s in range(num_layers):
            thresholds += num_samples * oracles.row_thresholds(model, s, pair=False)
    if estimator == "wake_sleep":
        thresholds += [[]] * len(oracles.dream_thresholds(model)) * num_samples
    parts = ["decoder"] if estimator == "wake_sleep" else ["decoder", "prior"]
    u, volumes = oracles.noise_of(model, thresholds)
    with tf.GradientTape() as tape:
        _, loss = oracles.losses_over(model, u, volumes, group, decoder_samples)
    value, expected = oracles.gradients_of_network(model, *parts, num_samples=num_samples)
    np.testing.assert_allclose(-loss, value, atol=1e-12)
    found = tape.gradient(loss, oracles.values_of(model, *parts))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(-got, want, rtol=0, atol=1e-12)


def test_wake_sleep_averages_over_its_dreams():
    model = small_network(2)
    variables = oracles.values_of(model, "encoder")

    def gradient(u):
        group = model.gradient_estimators("wake_sleep", u.shape[1])
        with tf.GradientTape() as tape:
            loss, _, _ = model.losses(X, tf.reshape(u, [-1, 1, 2]), group, "shared")
        return tape.gradient(loss, variables)

    rows = model.noise_rows(model.gradient_estimators("wake_sleep"), "shared")
    u = np.random.default_rng(0).uniform(size=(rows, 3, 1, 2))
    singles = [gradient(u[:, k : k + 1]) for k in range(3)]
    for got, *each in zip(gradient(u), *singles, strict=True):
        np.testing.assert_allclose(got, np.mean(each, axis=0), atol=1e-13)


@pytest.mark.parametrize("name", each_kind(estimators.TABLE))
def test_evaluations_are_as_many_as_a_network_says(name):
    model = small_network(2)
    counted = oracles.count_evaluations(model)
    group = model.gradient_estimators(name)
    for decoder_samples in ("shared", "independent"):
        counted.clear()
        rows = model.noise_rows(group, decoder_samples)
        model.losses(X, np.full([rows, 1, 2], 0.3), group, decoder_samples)
        assert sum(counted) == model.evaluations(group, decoder_samples)


@pytest.mark.parametrize(
    "name, num_samples, expected",
    [
        ("arm", 1, (2, 4, 6)),
        ("psa", 1, (3, 9, 18)),  # the flips of every later layer, too
        ("rebar", 2, (6, 12, 18)),
        ("vimco", 3, (3, 3, 3)),
        ("disarm_local", 3, (6, 12, 18)),
    ],
)
def test_evaluations_grow_with_the_layers(name, num_samples, expected):
    for num_layers, evaluations in enumerate(expected, 1):
        model = small_network(num_layers)
        group = model.gradient_estimators(name, num_samples)
        further = num_samples if name in BOUNDS else 1
        assert model.evaluations(group, "shared") == evaluations
        assert model.evaluations(group) == evaluations + further


def test_losses_send_no_gradient_to_the_other_part():
    model = small_network(2)
    group = model.gradient_estimators("arm")
    u = tf.constant(np.random.default_rng(0).uniform(size=[model.noise_rows(group), 1, 2]))
    with tf.GradientTape(persistent=True) as tape:
        losses = model.losses(X, u, group)
    for loss, other in ((losses.encoder, "decoder"), (losses.decoder, "encoder")):
        variables = [v.value for v in model.variable_groups[other]]
        assert tape.gradient(loss, variables) == [None] * len(variables)


@pytest.mark.parametrize(
    "kind, estimator, compiled",
    [
        (models.BinaryVAE, "arm", True),
        (models.BinaryVAE, "concrete", False),
        (models.ConditionalNetwork, "arm", False),
    ],
)
def test_one_tape_has_all_gradients_of_the_elbo(kind, estimator, compiled):
    """Those of the parts at the same noise, eager and compiled, weighed by what follows."""
    model = small_network(2, kind=kind)
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

    for run in [gradients, tf.function(gradients, jit_compile=True)][: 1 + compiled]:
        loss, found = run()
        np.testing.assert_allclose(loss, losses.decoder, rtol=1e-12)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", ["vimco", "wake_sleep", "nvil"])
def test_elbo_refuses_estimators_that_it_cannot_serve(estimator):
    with pytest.raises(ValueError, match=f"received '{estimator}'; use losses"):
        small_network(1).elbo(X, estimator)


def test_bound_of_the_conditional_network_is_that_by_enumeration():
    """E[log p(x_l|b_2)] and, with many samples, p(x_l|x_u), written out with distributions."""
    model = small_network(2, kind=models.ConditionalNetwork, input_scaling="symmetric")
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

    u, volumes = oracles.noise_of(
        model, [t for s in range(2) for t in oracles.row_thresholds(model, s)]
    )
    log_w = model.log_weights(tf.tile(X, [len(volumes), 1]), u[:, tf.newaxis])[0]
    np.testing.assert_allclose(volumes @ log_w.numpy(), bound, rtol=0, atol=1e-12)
    np.testing.assert_allclose(volumes @ np.exp(log_w), likelihood, rtol=0, atol=1e-12)


def test_completions_keep_the_upper_half():
    model = small_network(2, kind=models.ConditionalNetwork)
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
        small_network(2, kind=models.ConditionalNetwork).gradient_estimators(estimator)


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
    model = small_network(2)
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

"""Bias and variance of gradients at a frozen model."""

import contextlib
import itertools

import numpy as np
import oracles
import pytest
import small_runs
import tensorflow as tf
from matplotlib.text import Text

from arm_tf import estimators, models, noise, variance
from arm_tf.errors import ConfigError
from arm_tf.training import checkpoints, steps
from arm_tf.training.config import Config
from arm_tf.variance import figures, moments

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


def test_gradient_in_the_weights_is_that_of_the_logits_carried_on(eagerly):
    model = make_model()
    group = model.gradient_estimators("exact")
    logits, weights = moments.gradient_moments(model, X, group, 10, noise.key(0, "x"))
    by_image = logits.mean.reshape(4, 3)
    kernel = X.T @ by_image / 4
    np.testing.assert_allclose(weights.mean, [*kernel.ravel(), *by_image.mean(0)], atol=1e-5)
    assert logits.mean_variance == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("num_layers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_unbiased_estimators_show_no_bias_and_a_planted_one_is_seen(num_layers, eagerly):
    model = make_model(num_layers)
    config = Config(units=3, layers=num_layers)
    before = [variable.numpy() for variable in model.variables]
    samples = {"arm": 2, "loo": 4, "nvil": 4} if num_layers == 2 else {"arm": 2, "nvil": 4}
    rows = moments.compare(config, model, X, samples, 20, 5, rounds=1)
    assert [row["evaluations"] for row in rows] == [4 * num_layers] * len(rows)
    for row in rows[:-1]:
        assert row["bias_logits"] < 2 * row["bias_noise_logits"]
    assert rows[0]["variance_logits"] > 0
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())  # the model is frozen

    means, variances = RNG.normal(size=20), np.ones(20)
    reference = moments.Moments(means, variances, 1.0, 0.0, draws=1000)
    shifted = moments.Moments(means + 1.0, variances, 1.0, 0.0, draws=1000)
    bias, bias_noise = shifted.bias(reference)
    assert bias == pytest.approx(1, rel=0.01) and bias_noise == pytest.approx(0.002**0.5)


def test_samples_within_a_budget_of_evaluations():
    chosen = {name: variance.samples_within(name, 4, 5) for name in
              ("arm", "reinforce", "loo", "legrad", "exact")}  # fmt: skip
    assert variance.samples_within("exact", 100, 5) == 1  # costs the same for any number
    assert chosen == {"arm": 2, "reinforce": 4, "loo": 4, "legrad": 1, "exact": 1}


@pytest.mark.slow
def test_variances_at_a_frozen_model_are_in_the_published_order():
    """At as many evaluations of f, by five standard errors, with noise that the seed determines.

    RODEO beats Double CV at larger models only.
    """
    rng = np.random.default_rng(0)
    model = models.BinaryVAE(pixels=20, units=8, seed=0)
    for variable in model.variables:
        variable.assign(0.7 * rng.normal(size=variable.shape))
    x = rng.integers(0, 2, size=(10, 20)).astype("float32")
    samples = dict(arm=2, disarm=2, arms=4, loo=4, double_cv=4, rodeo=4, st_gumbel=4,
                   st_gumbel_rao=4, rebar=2, rebar_coupled=3)  # fmt: skip
    config = Config(units=8, estimator_learning_rate=1e-2)
    rows = moments.compare(config, model, x, samples, 300, 300)
    row = {row["estimator"]: row for row in rows}
    for worse, better in [("arm", "disarm"), ("disarm", "arms"), ("loo", "double_cv"),
                          ("loo", "rodeo"), ("st_gumbel", "st_gumbel_rao"),
                          ("rebar", "rebar_coupled")]:  # fmt: skip
        a, b = row[worse], row[better]
        assert a["evaluations"] == b["evaluations"]
        error = np.hypot(a["variance_stderr_logits"], b["variance_stderr_logits"])
        assert a["variance_logits"] - b["variance_logits"] > 5 * error, (worse, better)


@pytest.mark.slow
def test_multisample_estimators_are_held_against_the_gradient_of_their_bound():
    """By enumeration of all pairs of paths, where OVIS's bias is the mean of RWS."""
    exact_model = oracles.small_network(2)
    model = models.BinaryVAE(pixels=oracles.PIXELS, num_layers=2, units=2, seed=1)
    for variable, value in zip(model.variables, exact_model.variables, strict=True):
        variable.assign(value)
    x = oracles.X.numpy().astype("float32")
    _, added = oracles.gradients_of_network(exact_model, "encoder", num_samples=2, of="rws")
    bias = np.sqrt(np.mean(np.concatenate([np.ravel(grad) for grad in added]) ** 2))

    config = Config(units=2, layers=2)
    names = ("disarm_local", "ovis", "rws", "arm")
    rows = moments.compare(config, model, x, dict.fromkeys(names, 2), 4000, rounds=1)
    row = {row["estimator"]: row for row in rows}
    assert [row[name]["evaluations"] for name in names] == [8, 2, 2, 8]
    for name in ("disarm_local", "arm"):
        assert row[name]["bias_weights"] < 2 * row[name]["bias_noise_weights"], name
    assert abs(row["ovis"]["bias_weights"] - bias) < 3 * row["ovis"]["bias_noise_weights"] < bias
    assert row["rws"]["bias_weights"] is row["rws"]["bias_noise_logits"] is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vae", "conditional"])
def test_every_row_is_served_that_a_model_can_train_with(kind, few_draws):
    """And those that the table calls unbiased show none."""
    network = {"vae": models.BinaryVAE, "conditional": models.ConditionalNetwork}[kind]
    config = Config(model=kind, units=3, layers=2)
    model = network(pixels=6, num_layers=2, units=3, seed=0)
    num_samples = {}
    for name in estimators.TABLE:
        with contextlib.suppress(ConfigError):
            _, num_samples[name] = config.check_estimator("estimators", name)
    elbo = [name for name, row in estimators.TABLE.items() if row.objective == "elbo"]
    assert list(num_samples) == (elbo if kind == "conditional" else list(estimators.TABLE))
    rows = moments.compare(config, model, X, num_samples, 10, 4, rounds=1)
    assert [row["estimator"] for row in rows] == list(num_samples)
    for row in rows:
        name, table = row["estimator"], estimators.get(row["estimator"])
        assert np.isfinite(row["variance_logits"]) and row["microseconds"] > 0
        assert (row["bias_logits"] is None) == bool(table.ascends), name
        if not (table.biased or table.ascends):
            assert row["bias_logits"] <= 2 * row["bias_noise_logits"], name


def test_along_training_each_step_has_the_weights_of_its_own(tmp_path, few_draws):
    """Rows of kept weights are those of a model with these weights, compared by itself."""
    dataset = small_runs.small_dataset()
    config = small_runs.configure(tmp_path, keep_epochs=(0, 1), epochs=1, units=4)
    folder = small_runs.run(config, dataset)
    x = dataset.train[:3].astype("float32")
    compare = lambda model, *rest: [
        {k: v for k, v in row.items() if k.startswith(("step", "variance_", "bias_"))
         and "seconds" not in k}
        for row in moments.compare(config, model, x, {"arm": 2}, 20, 0, print, 1, *rest)
    ]  # fmt: skip
    model = steps.build_model(config, dataset)
    along = compare(model, checkpoints.restore_each(folder.path, model, "kept"))
    assert [row["step"] for row in along] == [0, 11]
    assert along[0]["variance_logits"] != along[1]["variance_logits"]
    fresh = steps.build_model(config, dataset)
    assert compare(fresh) == along[:1]
    for _ in checkpoints.restore_each(folder.path, fresh, "kept"):
        pass
    assert compare(fresh, [11]) == along[1:]


def test_time_is_the_median_of_rounds_in_turn_and_changes_nothing_else(monkeypatch, few_draws):
    model, config, turns = make_model(), Config(units=3), []
    samples = {"reinforce_baseline": 4, "nvil": 2}
    measured = moments.FrozenGradients.seconds

    def seconds(self, key, start):
        measured(self, key, start)
        turns.append((self.evaluations, start))
        return {0: 9.0, 2: 3.0, 4: 1.0, 6: 2.0}[start] * self.evaluations

    monkeypatch.setattr(moments.FrozenGradients, "seconds", seconds)
    rows = moments.compare(config, model, X, samples, 20, 4, rounds=3)
    assert turns == [(n, start) for start in (0, 2, 4, 6) for n in (4, 2)]
    assert [row["microseconds"] for row in rows] == [8e6, 4e6]
    assert rows[0]["microseconds_low"] == 6e6 and rows[0]["microseconds_high"] == 10e6
    assert rows[0]["variance_seconds_weights"] == 8 * rows[0]["variance_weights"]
    again = moments.compare(config, model, X, samples, 20, 4, rounds=1)
    assert [row["variance_logits"] for row in again] == [row["variance_logits"] for row in rows]


def test_pictures_name_every_estimator_apart():
    """No label covers another, and the front goes through those that no other beats."""
    names = [name for name in estimators.TABLE if name != "exact"]
    rng = np.random.default_rng(0)
    rows = [
        dict(estimator=name, objective=estimators.get(name).objective, evaluations=4, step=step,
             microseconds=np.exp(rng.normal()), variance_logits=np.exp(rng.normal()),
             variance_stderr_logits=0.1, bias_noise_logits=0.01,
             bias_logits=0.5 if estimators.get(name).biased else 0.01)
        for step in (10, 200) for name in names
    ]  # fmt: skip
    last = rows[len(names) :]
    figure = figures.variances(last, "x")
    assert len(figure.axes) == 4
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert all(not a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert [len(axes.texts) for axes in figure.axes[::2]] == [
        sum(row["objective"] == objective for row in last) for objective in ("elbo", "multisample")
    ]
    fair = lambda table: table.bias == "none" and not table.ascends
    elbo = [row for row in last if row["objective"] == "elbo" and row["bias_logits"] < 0.02
            and fair(estimators.get(row["estimator"]))]  # fmt: skip
    beaten = lambda row: any(
        other["microseconds"] < row["microseconds"]
        and other["variance_logits"] < row["variance_logits"]
        for other in elbo
    )
    front = figure.axes[1].lines[0].get_xydata()[:-1]
    best = sorted((r["microseconds"], r["variance_logits"] ** 0.5) for r in elbo if not beaten(r))
    np.testing.assert_allclose(front, best)
    along = figures.variances_along(rows, "x")
    assert {text.get_text() for text in along.axes[0].texts + along.axes[2].texts} == {
        f"{name} (4)" for name in names
    }

"""The univariate toy: ascent by the true gradient and by estimates of it."""

import csv
import json

import numpy as np
import pytest
from small_runs import assert_one_line

from arm_tf import estimators, figures, noise
from arm_tf.toy import univariate

P0S = (0.49, 0.499, 0.501, 0.51)


@pytest.fixture(scope="module")
def exact():
    return univariate.Ascent("exact")


def closed_form(p0, iterations, step_size=1.0):
    """Logits and gradients (1 - 2 p0) p (1 - p) of ascent by the true gradient."""
    logits, grads = np.zeros(iterations + 1), np.zeros(iterations)
    for i in range(iterations):
        p = 1 / (1 + np.exp(-logits[i]))
        grads[i] = (1 - 2 * p0) * p * (1 - p)
        logits[i + 1] = logits[i] + step_size * grads[i]
    return logits, grads


@pytest.mark.parametrize("p0, step_size", [*((p0, 1.0) for p0 in P0S), (0.49, 50.0)])
def test_exact_ascent_is_the_closed_form(exact, p0, step_size):
    logits, grads = closed_form(p0, 3000, step_size)
    probs = 1 / (1 + np.exp(-logits))
    trace = exact(p0, step_size)
    np.testing.assert_allclose(trace["estimate"], grads, rtol=1e-9)
    np.testing.assert_allclose(trace["true_gradient"], grads, rtol=1e-9)
    np.testing.assert_allclose(trace["probability"], probs[:-1], rtol=1e-9)
    assert trace["final_probability"] == pytest.approx(probs[-1], rel=1e-9)
    objective = probs * (1 - p0) ** 2 + (1 - probs) * p0**2
    np.testing.assert_allclose(trace["loss"], -objective[:-1], rtol=1e-9)
    path = univariate.true_path(p0, 3000, step_size)
    np.testing.assert_allclose(path, logits[:-1], rtol=1e-9, atol=1e-12)


def test_arm_ascent_is_its_formula_with_the_noise_of_each_iteration():
    u = noise.uniforms(noise.key(3, "toy 0.49"), 0, [40, 1, 1]).numpy().astype(np.float64)[:, 0, 0]
    trace = univariate.Ascent("arm", iterations=40)(0.49, 2.0, seed=3)
    logit = 0.0
    for i in range(40):
        p = 1 / (1 + np.exp(-logit))
        difference = ((u[i] > 1 - p) - 0.49) ** 2 - ((u[i] < p) - 0.49) ** 2
        assert trace["probability"][i] == pytest.approx(p, rel=1e-9)
        assert trace["estimate"][i] == pytest.approx(difference * (u[i] - 0.5), abs=1e-12)
        logit += 2.0 * trace["estimate"][i]


@pytest.mark.parametrize("name, stays", [("arm", True), ("reinforce", False)])
def test_loss_stays_with_the_true_gradients_under_arm_alone(exact, name, stays):
    """Of 300 seeds, the largest distance between the losses is 1.8e-5 for ARM at worst and 6.9e-4
    for REINFORCE at best; the whole range of the loss is 2e-3."""
    loss = exact(0.499)["loss"]
    ascent = univariate.Ascent(name)
    for seed in range(20):
        distance = np.abs(ascent(0.499, seed=seed)["loss"] - loss).max()
        assert distance < 6e-5 if stays else distance > 2e-4


@pytest.mark.parametrize("name", ["rebar", "relax", "reinforce_baseline"])
def test_parameters_are_learned_and_forgotten_between_ascents(name):
    ascent = univariate.Ascent(name, iterations=50)
    first = {key: np.array(value) for key, value in ascent.estimator.parameters.items()}
    trace = ascent(0.499, seed=1)
    learned = {key: np.array(value) for key, value in ascent.estimator.parameters.items()}
    assert first and all(np.any(first[key] != learned[key]) for key in first)
    ascent(0.51, seed=2)
    again = ascent(0.499, seed=1)
    np.testing.assert_array_equal(trace["estimate"], again["estimate"])


def test_learning_rate_is_that_of_what_is_learned():
    """Adam's first step has the length of its learning rate in each parameter."""
    ascent = univariate.Ascent("rebar", iterations=1, learning_rate=0.25)
    first = {key: np.array(value) for key, value in ascent.estimator.parameters.items()}
    ascent(0.499)
    for key, value in ascent.estimator.parameters.items():
        assert abs(np.array(value) - first[key]) == pytest.approx(0.25, rel=1e-3)


def test_estimates_of_several_samples_average_to_the_true_gradient():
    """Both means are within six standard errors, and ARM's error is a hundredth of REINFORCE's."""
    logits = np.linspace(-2.0, 2.0, 1000)
    truth = univariate.true_gradient(logits, 0.499)
    errors = {
        name: univariate.estimates_along(name, logits, 0.499, num_samples=100) - truth
        for name in ("arm", "reinforce")
    }
    for error in errors.values():
        assert abs(error.mean()) < 6 * error.std() / np.sqrt(len(error))
    assert errors["arm"].std() < 0.01 * errors["reinforce"].std()


def test_every_estimator_has_a_style_of_its_own():
    styles = {figures.estimator_style(name) for name in estimators.TABLE}
    assert len(styles) == len(estimators.TABLE)


def test_command_writes_tables_and_figures(call, tmp_path):
    arguments = ("--iterations=30", "--p0=0.3,0.499", "--estimators=exact,reinforce", "--seed=5")
    process = call("toy", *arguments, "--gradient_samples=1,4", f"--out={tmp_path}")
    assert process.returncode == 0 and not process.stderr, process.stderr
    with open(tmp_path / "traces.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 30
    trace = univariate.Ascent("reinforce", 30)(0.499, seed=5)
    written = [row for row in rows if (row["estimator"], row["p0"]) == ("reinforce", "0.499")]
    assert [int(row["iteration"]) for row in written] == list(range(30))
    for column in ("true_gradient", "estimate", "probability", "loss"):
        np.testing.assert_allclose([float(row[column]) for row in written], trace[column], 1e-6)
    record = json.loads((tmp_path / "toy.json").read_text(encoding="utf-8"))
    assert record["seed"] == 5 and record["p0"] == [0.3, 0.499]
    assert record["final_probability"]["reinforce"]["0.499"] == trace["final_probability"]
    for picture in ("traces", "losses", "gradients"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--estimators=amr", "Unknown estimator 'amr'"),
        ("--estimators=arm,vimco", "'vimco' has the gradient of another objective"),
        ("--estimators=", "at least one estimator"),
        ("--p0=0.49,x", "numbers from 0 to 1 separated by commas, received '0.49,x'"),
        ("--p0=1.5", "numbers from 0 to 1"),
        ("--iterations=0", "--iterations=0"),
        ("--step_size=-1", "--step_size must be a positive number, received -1.0"),
        ("--gradient_samples=0", "--gradient_samples must be integers of at least 1"),
        ("--out=setup.py", "Cannot write the folder setup.py"),
    ],
)
def test_errors_are_one_line(argument, message, call, tmp_path):
    out = [] if argument.startswith("--out") else [f"--out={tmp_path / 'out'}"]
    assert_one_line(call("toy", argument, *out), message)
    assert not (tmp_path / "out").exists()

"""Every estimator against exact gradients."""

import dataclasses
import re

import numpy as np
import oracles
import proofs
import pytest
import scipy.stats
import tensorflow as tf
from kinds import each_kind
from matplotlib.mathtext import MathTextParser

import arm_tf
from arm_tf import bernoulli, estimators
from arm_tf.estimators import score_function
from arm_tf.training.config import Config

RNG = np.random.default_rng(0)
LOGITS = {size: RNG.normal(scale=1.5, size=size) for size in (1, 2, 3, 4)}


def quadratic(size, dtype="float64"):
    """An f without symmetry: a random quadratic form plus a random linear one and a constant."""
    rng = np.random.default_rng(size)
    matrix = tf.constant(rng.normal(size=(size, size)), dtype)
    vector = tf.constant(rng.normal(size=size), dtype)
    return lambda b: (
        tf.reduce_sum(b * tf.linalg.matvec(matrix, b), -1) + tf.linalg.matvec(b, vector) + 3.0
    )


def gradient_at(name, f, logits, u, num_samples=None):
    """The estimator's value and gradient for each case of noise, through `arm_tf.expectation`."""
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = arm_tf.expectation(f, logits, estimator=name, num_samples=num_samples, u=u)
    return value.numpy(), tape.gradient(value, logits).numpy()


def over_cells(name, f, logits, dtype="float64", num_samples=None, nodes=1):
    """Value and gradient at nodes in the cells of the noise, and the nodes' weights."""
    rows = estimators.TABLE[name].rows(estimators.check(name, num_samples)[1], len(logits))
    thresholds = list(oracles.pair_thresholds(logits)) * rows
    points, weights = oracles.cells(thresholds, nodes)
    u = points.reshape(len(weights), rows, len(logits)).swapaxes(0, 1)
    logits = tf.constant(np.tile(logits, (len(weights), 1)), dtype)
    values, grads = gradient_at(name, f, logits, tf.constant(u, dtype), num_samples)
    return values.astype("float64"), grads.astype("float64"), weights


def moments(name, f, logits, num_samples=None):
    """Mean and variance of the gradient over the noise, exact for what is linear in cells."""
    _, grads, weights = over_cells(name, f, logits, num_samples=num_samples, nodes=2)
    mean = weights @ grads
    return mean, weights @ (grads - mean) ** 2


AVERAGES = {"ar", "reinforce", "arm", "disarm", "legrad", "ram"}
ELBO = sorted(name for name, row in estimators.TABLE.items() if row.objective == "elbo")
OF_FUNCTIONS = [name for name, row in estimators.TABLE.items() if not row.rule]


@pytest.mark.parametrize("name", sorted(estimators.TABLE))
def test_every_estimator_states_its_equation_and_source(name):
    row = estimators.TABLE[name]
    doc = row.function.__doc__
    assert re.search(r"grad_logits\w* = ", doc)
    if not row.link:
        assert row.source == "this package" and f"of {row.source}" in doc
        return
    authors, year = row.source.rsplit(" ", 1)
    first = re.split(r",| & | et al\.", authors)[0]
    assert first in doc and year in doc
    published = r"arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\d+/\S+|(proceedings|openreview)\.\S+"
    assert re.fullmatch(rf"https://({published})", row.link)


@pytest.mark.parametrize("name", sorted(estimators.TABLE))
def test_equation_is_typeset(name):
    equation = estimators.TABLE[name].equation
    assert re.search(r"\\phi|[bu]_k", equation)
    MathTextParser("path").parse(f"${equation}$")


def test_nvil_divides_its_gradient_by_the_signals_deviation():
    f, logits = quadratic(2), LOGITS[2]
    row = estimators.TABLE["nvil"]
    given = {"mean": 2.0, "square": 13.0}
    parameters = proofs.parameters_of(row, 2, seed=3, **given)
    points, weights = oracles.cells(list(oracles.pair_thresholds(logits)))
    tiled = tf.constant(np.tile(logits, (len(weights), 1)))
    f_b = lambda b, sample=None: f(b)
    grads = row(f_b, tiled, tf.constant(points[np.newaxis]), parameters).grad_logits.numpy()
    expected = oracles.expectation_and_gradient(f, logits)[1]
    np.testing.assert_allclose(3.0 * weights @ grads, expected, rtol=0, atol=1e-12)


def test_ugc_is_bitflip_for_units_closer_to_a_bound_than_half_of_one_in_all():
    """1/(2V) is 1/8; odds of 7 to 1 are there, and those a little evener are not."""
    logits = np.tile(np.log([1 / 7.01, 7.01, 1 / 6.99, 6.99]), [200, 1])
    u = RNG.uniform(size=(2, 200, 4))
    ugc, bitflip, disarm = (
        gradient_at(name, quadratic(4), logits, u[:rows])[1]
        for name, rows in (("ugc", 2), ("bitflip", 2), ("disarm", 1))
    )
    np.testing.assert_allclose(ugc[:, :2], bitflip[:, :2], atol=1e-12)
    np.testing.assert_allclose(ugc[:, 2:], disarm[:, 2:], atol=1e-12)
    assert np.abs(bitflip - disarm).max(axis=0).min() > 0.1


def test_moving_averages_decay_by_a_hundredth():
    """Plain means of what was seen at first; from the hundredth call on the past counts 0.99."""
    seen = RNG.normal(size=300)
    parameters, expected = {"mean": tf.constant(0.0, tf.float64), "calls": np.float64(0)}, 0.0
    for calls, value in enumerate(seen):
        parameters = score_function.updated_averages(parameters, mean=tf.constant(value))
        expected = np.mean(seen[: calls + 1]) if calls < 100 else 0.99 * expected + 0.01 * value
        assert parameters["mean"].numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["arm", "ar", "disarm"])
def test_cell_sum_is_the_exact_gradient_of_four_units(name):
    expected = oracles.expectation_and_gradient(quadratic(4), LOGITS[4])
    _, grads, weights = over_cells(name, quadratic(4), LOGITS[4])
    np.testing.assert_allclose(weights @ grads, expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", proofs.LINEAR_IN_CELLS)
def test_cell_sum_is_the_exact_gradient_in_single_precision(name):
    expected = oracles.expectation_and_gradient(quadratic(2), LOGITS[2])
    values, grads, weights = over_cells(name, quadratic(2, "float32"), LOGITS[2], "float32")
    np.testing.assert_allclose(weights @ values, expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(weights @ grads, expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["double_cv", "rodeo"])
def test_learned_parameters_descend_on_the_squared_gradient(name):
    row = estimators.TABLE[name]
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(size=(50, 3)))
    u = tf.constant(rng.uniform(size=(3, 50, 3)))
    start = {
        key: np.asarray(value) + 0.1 * rng.normal(size=np.shape(value))
        for key, value in row.initial_parameters(3).items()
    }

    def run(parameters):
        parameters = {key: tf.constant(value) for key, value in parameters.items()}
        return row(lambda b, sample=None: quadratic(3)(b), logits, u, parameters)

    for key, grad in run(start).parameter_grads.items():
        step = np.zeros_like(start[key])
        step.flat[0] = 1e-6
        up, down = (run({**start, key: start[key] + s}).grad_logits for s in (step, -step))
        slope = np.mean(up**2 - down**2) / 2e-6
        assert np.ravel(grad)[0] == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_nvil_baseline_fits_the_values():
    row = estimators.TABLE["nvil"]
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(size=(200, 3)))
    f = lambda b, sample=None: tf.reduce_sum(logits, -1) * 10 + tf.reduce_sum(b, -1)
    parameters = {key: tf.constant(v, tf.float64) for key, v in row.initial_parameters(3).items()}
    spread = []
    for _ in range(120):
        u = tf.constant(rng.uniform(size=(1, 200, 3)))
        estimate = row(f, logits, u, parameters)
        spread.append(np.mean(estimate.grad_logits**2))
        for key, grad in estimate.parameter_grads.items():
            parameters[key] -= 0.005 * grad
        parameters |= estimate.new_parameters
    assert np.mean(spread[-20:]) < 0.1 * spread[0]


@pytest.mark.parametrize("name", sorted(AVERAGES))
def test_samples_are_averaged(name):
    logits = tf.constant(RNG.normal(size=(5, 3)))
    u = tf.constant(RNG.uniform(size=(4, 5, 3)))
    f = quadratic(3)
    value, grad = gradient_at(name, f, logits, u, num_samples=4)
    singles = [gradient_at(name, f, logits, u[k : k + 1]) for k in range(4)]
    np.testing.assert_allclose(value, np.mean([v for v, _ in singles], axis=0), atol=1e-12)
    np.testing.assert_allclose(grad, np.mean([g for _, g in singles], axis=0), atol=1e-12)


@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_evaluations_are_as_many_as_the_table_says(name):
    counted = []

    def f(b):
        counted.append(b.shape[0])
        return tf.reduce_sum(b**2, axis=-1)

    row = estimators.TABLE[name]
    arm_tf.expectation(f, tf.zeros([2, 3]), estimator=name, num_samples=4)
    assert sum(counted) == row.evaluations(4, 3)
    cost = re.sub(r"(?<=[\dKV])(?=[KV(])", "*", row.cost).replace("^", "**")
    assert row.evaluations(4, 3) == eval(cost, {"K": 4, "V": 3})


@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_extreme_logits_stay_finite(name):
    extreme = 40.0 if name in ("nvil", "relax") else np.inf  # which have the logits in a network
    logits = tf.constant([[40.0, -40.0, 0.0], [-extreme, extreme, 40.0]])
    row, num_samples = estimators.check(name, None)
    u = RNG.uniform(size=(row.rows(num_samples, 3), 2, 3)).astype("float32")
    for noise in (u, np.zeros_like(u)):
        value, grad = gradient_at(name, quadratic(3, "float32"), logits, tf.constant(noise))
        assert np.isfinite(value).all() and np.isfinite(grad).all()


@pytest.mark.parametrize("name", each_kind(OF_FUNCTIONS))
def test_eager_graph_and_xla_agree(name):
    """In single precision, with learned parameters, and where noise and logits are extreme."""
    row, num_samples = estimators.check(name, None)
    logits = np.array([[40.0, -40.0, 0.0], [-40.0, 40.0, 40.0], [0.3, -1.2, 2.0]], "float32")
    u = RNG.uniform(size=(row.rows(num_samples, 3), 3, 3)).astype("float32")
    learned = proofs.parameters_of(row, 3, 0, "float32")
    f = lambda b, sample=None: tf.reduce_sum(b[..., :2] * b[..., 1:], -1) - b[..., 0]
    call = lambda u: row(f, tf.constant(logits), u, *([learned] if learned else []))
    compiled = tf.function(call), tf.function(call, jit_compile=True)
    for noise in (u, np.zeros_like(u), np.full_like(u, 1 - 2**-24)):
        eager = call(tf.constant(noise))
        for function in compiled:
            results = function(tf.constant(noise))
            for got, want in zip(tf.nest.flatten(results), tf.nest.flatten(eager), strict=True):
                assert np.isfinite(got).all()
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in ELBO if not estimators.TABLE[n].derivative])
def test_derivative_of_f_is_not_used(name):
    @tf.custom_gradient
    def f(b):
        def gradient(upstream):
            raise AssertionError("f was differentiated")

        return tf.reduce_sum(b, axis=-1), gradient

    row, num_samples = estimators.check(name, None)
    u = tf.constant(RNG.uniform(size=(row.rows(num_samples, 3), 2, 3)))
    gradient_at(name, f, tf.zeros([2, 3], tf.float64), u)


@pytest.mark.parametrize("name", [n for n in ELBO if estimators.TABLE[n].derivative])
def test_missing_derivative_is_named(name):
    f = lambda b: tf.cast(tf.reduce_sum(b, -1) > 1, b.dtype)
    with pytest.raises(ValueError, match=f"'{name}' needs the derivative of f"):
        arm_tf.expectation(f, tf.zeros([2, 3]), estimator=name)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_variance_falls_from_ar_to_arm_to_disarm(size):
    f, logits = quadratic(size), LOGITS[size]
    ar, arm, disarm = (moments(name, f, logits)[1] for name in ("ar", "arm", "disarm"))
    assert (disarm <= arm + 1e-12).all() and (arm <= ar + 1e-12).all()
    assert (disarm < arm).any() and (arm < ar).any()


def test_leave_one_out_beats_reinforce_at_two_evaluations_on_the_toy():
    toy = lambda b: (b[..., 0] - 0.499) ** 2
    for phi in (-2.0, 0.0, 1.5):
        loo, reinforce = (moments(n, toy, [phi], 2)[1] for n in ("loo", "reinforce"))
        assert loo < 0.01 * reinforce


def test_two_dirichlet_samples_are_disarm():
    logits = RNG.normal(size=(100, 3), scale=2)
    u = RNG.uniform(size=(1, 100, 3))
    d = np.where(logits < 0, u, 1 - u)
    arms = gradient_at("arms", quadratic(3), logits, -np.expm1(-np.concatenate([d, 1 - d])), 2)
    disarm = gradient_at("disarm", quadratic(3), logits, u)
    for got, expected in zip(arms, disarm, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize("num_samples", [3, 5])
def test_gaussian_copula_correction_is_the_bivariate_normal(num_samples):
    """With f(b) = b, sum_k (f_k - mean)(b_k - p) = K (b variance), which shows p - rho."""
    correlation = -1 / (num_samples - 1)
    normal = scipy.stats.multivariate_normal(cov=[[1, correlation], [correlation, 1]])
    for p in (0.02, 0.3, 0.5, 0.8):
        h = scipy.stats.norm.ppf(p)
        gap = p - normal.cdf([h, h])
        u = tf.constant(RNG.uniform(size=(num_samples, 1, 1)))
        logits = tf.constant([[np.log(p / (1 - p))]])
        _, grad = gradient_at("arms_gaussian", lambda b: b[..., 0], logits, u, num_samples)
        z = scipy.stats.norm.ppf(u.numpy()[:, 0, 0])
        z = (z - z.mean()) * np.sqrt(num_samples / (num_samples - 1))
        b = z < h if p <= 0.5 else ~(z < -h)
        expected = np.sum((b - b.mean()) * (b - p)) / (num_samples - 1) * p * (1 - p) / gap
        np.testing.assert_allclose(grad, [[expected]], rtol=1e-5, atol=1e-9)


def test_arm_is_zero_where_the_pair_agrees_whatever_f_does():
    logits = tf.constant([[3.0, 3.0], [0.1, 3.0]])
    u = tf.constant([[[0.4, 0.5], [0.2, 0.5]]])  # the second pair differs in its first unit
    draws = tf.constant([[0.1, 0.2], [0.3, 0.5]])
    noisy = lambda b: tf.reduce_sum(b, -1) + draws
    _, grad = gradient_at("arm", noisy, logits, u)
    np.testing.assert_array_equal(grad[0], 0)
    assert grad[1, 0] != 0


def test_arm_merges_ar_at_u_and_one_minus_u():
    logits, u = tf.constant(LOGITS[4]), RNG.uniform(size=(1, 4))
    f = quadratic(4)
    _, arm = gradient_at("arm", f, logits, tf.constant(u))
    halves = [gradient_at("ar", f, logits, tf.constant(v))[1] for v in (u, 1 - u)]
    np.testing.assert_allclose(arm, np.mean(halves, axis=0), atol=1e-12)


@pytest.mark.parametrize("alias, name", sorted(estimators.ALIASES.items()))
def test_alias_stands_for_a_row(alias, name):
    assert alias not in estimators.TABLE and estimators.get(alias) is estimators.TABLE[name]
    config = Config(estimator=alias, units=5, track_variance=("arm", alias))
    assert (config.estimator, config.track_variance) == (name, ("arm", name))
    assert config == Config.from_dict({**dataclasses.asdict(config), "estimator": alias})
    assert arm_tf.StochasticBinary(alias).get_config()["estimator"] == name
    assert f"| `{name}`, " in estimators.markdown() and alias in estimators.describe()


def test_half_the_samples_variance_has_the_gradient_of_leave_one_out():
    """VarGrad: of log q - log p, the samples held fixed."""
    logits, u = tf.constant(LOGITS[3]), tf.constant(RNG.uniform(size=(4, 3)))
    b = bernoulli.sample(logits, u)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        log_ratio = bernoulli.log_prob(b, logits) - quadratic(3)(b)
        loss = tf.reduce_sum((log_ratio - tf.reduce_mean(log_ratio)) ** 2) / (2 * 3)
    f = lambda b: quadratic(3)(b) - bernoulli.log_prob(b, tf.constant(LOGITS[3]))
    _, loo = gradient_at("loo", f, logits, u, 4)
    np.testing.assert_allclose(-tape.gradient(loss, logits), loo, atol=1e-12)


def test_bitflip_averages_to_local_expectations_over_its_unit():
    logits, u = RNG.normal(size=(1, 3)), RNG.uniform(size=(1, 1, 3))
    tiled = np.tile(logits, (3, 1))
    noise = np.stack([np.tile(u[0], (3, 1)), np.tile([[1 / 6], [1 / 2], [5 / 6]], 3)])
    _, flips = gradient_at("bitflip", quadratic(3), tiled, noise)
    assert (np.count_nonzero(flips, axis=0) == 1).all()
    _, legrad = gradient_at("legrad", quadratic(3), logits, u)
    np.testing.assert_allclose(flips.mean(0, keepdims=True), legrad, atol=1e-12)


@pytest.mark.parametrize(
    "name, aliases, taken", [("u2g", (), "u2g"), ("new", ("loo",), "loo"), ("new", ("zgr",), "zgr")]
)
def test_a_name_is_that_of_one_estimator(name, aliases, taken):
    row = {"summary": "", "source": "", "link": "", "equation": "", "aliases": aliases}
    with pytest.raises(ValueError, match=f"The name '{taken}' of '{name}' is one of "):
        estimators.estimator(name, **row)(lambda f, logits, u: None)
    assert "new" not in estimators.TABLE


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'amr' .*'arm'.*; known are ar, arm, arms, "):
        estimators.get("amr")


@pytest.mark.parametrize("name", [n for n, row in estimators.TABLE.items() if row.min_samples > 1])
def test_fewer_samples_than_the_least_give_no_estimate(name):
    row, units = estimators.TABLE[name], 2
    few = row.min_samples - 1
    logits, u = tf.constant([[0.3, -0.2]] * 50), RNG.uniform(size=(row.rows(few, units), 50, units))
    parameters = {key: tf.constant(v, tf.float32) for key, v in row.initial_parameters(2).items()}
    f = lambda b, sample=None: tf.reduce_sum(b, axis=-1) ** 2
    try:
        estimate = row(f, logits, tf.constant(u, tf.float32), *([parameters] if parameters else []))
    except (ValueError, ZeroDivisionError, tf.errors.InvalidArgumentError):
        return
    assert not np.isfinite(estimate.grad_logits).all()

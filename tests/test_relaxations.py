"""Estimators that use f's derivative: expectations by quadrature, learning, later layers."""

import itertools

import keras
import numpy as np
import oracles
import proofs
import pytest
import tensorflow as tf
from proofs import f_of
from proofs.relaxation import latent_grid, quadrature, sigmoid, straight_slopes
from proofs.straight_through import WEIGHTS

import arm_tf
from arm_tf import bernoulli, estimators
from arm_tf.estimators import rebar, relaxation
from arm_tf.expectation import GradientEstimator

FAMILIES = ("relaxation", "rebar", "straight_through")
FAMILY = sorted(n for n, row in estimators.TABLE.items() if row.family in FAMILIES)
LOGITS = {1: np.array([0.8]), 2: np.array([-0.9, 0.6]), 3: np.array([0.4, -1.1, 0.7])}


def parameters_of(name, units, seed=None, dtype="float64"):
    """The first parameters, or random ones around them."""
    return proofs.parameters_of(estimators.TABLE[name], units, seed, dtype)


def run(name, logits, u, parameters=None, f=f_of, **options):
    """The estimator by itself; logits [V] serve all cases of noise u [rows, cases, V]."""
    u = tf.convert_to_tensor(u)
    logits = tf.constant(np.broadcast_to(logits, u.shape[1:]), u.dtype)
    if parameters is None:
        parameters = parameters_of(name, u.shape[-1])
    return estimators.TABLE[name](f, logits, u, *([parameters] if parameters else []), **options)


def over_samples(name, logits, **kwargs):
    """Expectation of the gradient of an estimator with one row of noise."""
    points, weights = quadrature([[p] for p in sigmoid(logits)], 60)
    return weights @ run(name, logits, points[np.newaxis], **kwargs).grad_logits.numpy()


def test_muprop_is_free_of_noise_for_linear_f():
    f = lambda b, sample=None: tf.linalg.matvec(b, tf.constant([1.0, -2.0], tf.float64))
    u = np.random.default_rng(0).uniform(size=(1, 50, 2))
    grads = run("muprop", LOGITS[2], u, f=f).grad_logits
    expected = oracles.expectation_and_gradient(f, LOGITS[2])[1]
    np.testing.assert_allclose(grads, np.tile(expected, (50, 1)), atol=1e-12)


def test_muprop_expands_around_the_mean_of_later_layers():
    weights, u = np.array([0.5, -1.0]), np.random.default_rng(0).uniform(size=(1, 50, 2))
    later = []

    def f(b, sample=bernoulli.sample):
        later.append(sample(b * weights, u))
        return tf.reduce_sum(later[-1], axis=-1)

    estimate = run("muprop", LOGITS[2], u, f=f)
    sampled, mean = later
    np.testing.assert_allclose(mean[0], np.tile(sigmoid(sigmoid(LOGITS[2]) * weights), (50, 1)))
    np.testing.assert_allclose(estimate.value, tf.reduce_sum(sampled[0], axis=-1))


def estimators_of(model, name, **options):
    """The estimators of a model's layers, with parameters away from the first ones."""
    gradient_estimators = model.gradient_estimators(name, **options)
    for seed, estimator in enumerate(gradient_estimators):
        for key, value in parameters_of(name, model.units, seed).items():
            estimator.parameters[key].assign(value)
    return gradient_estimators


@pytest.mark.parametrize("t", [0, 1])
@pytest.mark.parametrize("name", ["rebar", "rebar_coupled", "relax"])
def test_each_of_two_layers_is_exact(name, t):
    """Over u, v and the noise of the layer after, which is relaxed in the control variate.

    In the first layer u and v enter in different terms of a sum, as in `proofs.rebar.over_pairs`.
    """
    model = oracles.small_network(2, units=1)
    first, second = (oracles.row_thresholds(model, s, pair=False) for s in range(2))
    v = [[]] * (estimators.TABLE[name].rows(1, 1) - 1)  # none where it is taken from u
    below, volumes = oracles.cells(first)
    cases = []  # noise of u, v, the layer after, and the second layer's estimate; weights
    fixed = lambda value, points: np.full([len(points), len(v)], value)
    if t == 0:
        points, weights = quadrature([*first, *second], 30)
        cases.append((points[:, :1], fixed(0.3, points), points[:, 1:], weights))
        for u, volume in zip(below if v else [], volumes, strict=bool(v)):
            points, weights = quadrature([*v, *second], 30)
            cases.append((0 * points[:, :1] + u, points[:, :1], points[:, 1:], volume * weights))
            points, weights = quadrature(second, 30)
            cases.append((0 * points + u, fixed(0.3, points), points, -volume * weights))
        cases = [(*noise, fixed(0.5, w[:, None]), 0 * noise[0], w) for *noise, w in cases]
    else:
        points, weights = quadrature([*second, *v], 30)
        for u, volume in zip(below, volumes, strict=True):
            idle = np.full_like(points, 0.5)  # v and the layer after
            cases.append((0 * points[:, :1] + u, idle, points, volume * weights))
    u = np.concatenate([np.column_stack(case[:-1]) for case in cases])
    weights = np.concatenate([case[-1] for case in cases])
    grads = oracles.layer_gradients(model, estimators_of(model, name), u.T[..., np.newaxis])
    _, expected = oracles.gradients_of_network(model, "encoder")
    np.testing.assert_allclose(weights @ grads[t], expected[2 * t + 1], rtol=0, atol=1e-8)


def test_bias_of_concrete_vanishes_with_the_temperature():
    """In proportion to it."""
    exact = oracles.expectation_and_gradient(f_of, LOGITS[2])[1]
    bias = [
        np.abs(over_samples("concrete", LOGITS[2], temperature=temperature) - exact).max()
        for temperature in (0.4, 0.2, 0.1, 0.05)
    ]
    assert (np.diff(bias) < 0).all() and bias[-1] < 0.02 * np.abs(exact).max()


def test_darn_is_exact_for_quadratic_f_and_straight_through_for_linear_f():
    quadratic = lambda b, sample=None: b[..., 0] ** 2 * (3 - b[..., 1]) + b[..., 1] ** 2
    linear = lambda b, sample=None: b[..., 0] * (3 - b[..., 1])
    for name, f in [("darn", quadratic), ("st", linear)]:
        exact = oracles.expectation_and_gradient(f, LOGITS[2])[1]
        np.testing.assert_allclose(over_samples(name, LOGITS[2], f=f), exact, atol=1e-11)


def weight_of(name, bit, phi):
    """The derivative of a sample of given value, with the estimator's default settings."""
    options = {option.name: option.default for option in estimators.TABLE[name].options}
    return WEIGHTS[name](bit, phi, options) if options else straight_slopes(name, bit, phi)


@pytest.mark.parametrize("name", ["st", "st_annealed", "darn", "reinmax", "mve", "gapped_st"])
def test_straight_through_goes_through_later_layers(name):
    """By enumeration: b_1 acts on f itself, and by the logits of b_2 on b_2."""
    model = oracles.small_network(2, units=1)
    gradient_estimators = model.gradient_estimators(name)
    if name == "st_annealed":
        for estimator in gradient_estimators:
            estimator.parameters["slope"].assign(2.5)
    u, volumes = oracles.noise_of(model, oracles.path_thresholds(model, gradient_estimators[0], 0))
    got = volumes @ oracles.layer_gradients(model, gradient_estimators, u)[0]

    logits_1 = model.encoder_maps[0](oracles.X)
    expected = 0
    for bits in itertools.product([0.0, 1.0], repeat=2):
        b_1, b_2 = (tf.constant([[[bit]]], tf.float64) for bit in bits)
        with tf.GradientTape() as tape:
            tape.watch([b_1, b_2])
            logits_2 = model.encoder_maps[1](b_1)
            log_w = model.log_weight(oracles.X, [b_1, b_2], [logits_1[np.newaxis], logits_2])
        direct, through = tape.gradient(log_w, [b_1, b_2])
        weight = np.squeeze(model.encoder[1].get_weights()[0])
        p_1, p_2 = sigmoid(logits_1.numpy().item()), sigmoid(logits_2.numpy().item())
        slope_1 = weight_of(name, bits[0], logits_1.numpy().item())
        slope_2 = weight_of(name, bits[1], logits_2.numpy().item())
        probability = (p_1 if bits[0] else 1 - p_1) * (p_2 if bits[1] else 1 - p_2)
        expected += probability * slope_1 * (direct + through * slope_2 * weight).numpy().item()
    np.testing.assert_allclose(got, [expected], rtol=0, atol=1e-12)


def test_concrete_relaxes_later_layers():
    """The reference weighs f at relaxed x_1 and x_2 by the derivative of the density of z_1."""
    model = oracles.small_network(2, units=1)
    first, second = model.encoder_maps
    points, weights = quadrature([[], []], 100)
    idle = np.full(len(points), 0.5)  # of the second layer's estimator
    noise = np.stack([*points.T, idle])[..., np.newaxis]
    gradient_estimators = model.gradient_estimators("concrete", temperature=0.7)
    got = weights @ oracles.layer_gradients(model, gradient_estimators, noise)[0]

    t, _, derivative = latent_grid(2)
    t = t[:, np.newaxis, :, np.newaxis]
    logits_1 = first(oracles.X)
    x_1 = tf.constant(sigmoid((logits_1 + t[..., 0, :]) / 0.7))
    logits_2 = second(x_1)
    x_2 = tf.constant(sigmoid((logits_2 + t[..., 1, :]) / 0.7))
    f_values = model.log_weight(oracles.X, [x_1, x_2], [logits_1[np.newaxis], logits_2])
    np.testing.assert_allclose(got, f_values.numpy()[:, 0] @ derivative[:, :1], rtol=0, atol=1e-9)


def test_latent_given_sample_is_that_of_the_same_sign():
    """z at u and the latent given b at the noise v that u stands for are one number."""
    logits = np.array([-3.0, 0.5, 2.0])
    u = np.random.default_rng(0).uniform(size=(100, 3))
    p = sigmoid(logits)
    b = u < p
    v = np.where(b, u / p, (u - p) / (1 - p))
    args = [tf.constant(np.broadcast_to(a, u.shape).astype(float)) for a in (logits, b, v)]
    with tf.GradientTape() as tape:
        tape.watch(args[0])
        y, slopes = relaxation.latent_given_sample(*args)
    np.testing.assert_allclose(y, relaxation.latent(logits, tf.constant(u)), rtol=1e-9)
    np.testing.assert_allclose(slopes, tape.gradient(y, args[0]), rtol=1e-9)
    coupled = rebar._slope_given_sample(args[0], args[1], y)
    np.testing.assert_allclose(coupled, slopes, rtol=1e-9)


def test_coupled_rebar_is_rebar_with_the_noise_left_in_the_first():
    u = np.random.default_rng(0).uniform(size=(1, 50, 3))
    p = sigmoid(LOGITS[3])
    v = np.where(u < p, u / p, (u - p) / (1 - p))
    coupled = run("rebar_coupled", LOGITS[3], u, parameters_of("rebar", 3, 0))
    rebar = run("rebar", LOGITS[3], np.concatenate([u, v]), parameters_of("rebar", 3, 0))
    for got, expected in zip(tf.nest.flatten(coupled), tf.nest.flatten(rebar), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["rebar", "rebar_coupled", "relax"])
def test_learned_parameters_descend_on_the_squared_gradient(name):
    """For an f with a later layer, which depends on the temperature as well."""
    rng = np.random.default_rng(0)
    logits, u = rng.normal(size=(40, 3)), rng.uniform(size=(4, 40, 3))  # K = 2, or 4 if coupled
    weights, later_u = rng.normal(size=3), tf.constant(rng.uniform(size=(40, 3)))

    def f(b, sample=bernoulli.sample):
        return f_of(b) + f_of(sample(b * weights - 0.5, later_u))

    start = parameters_of(name, 3, 0)
    grads = run(name, logits, u, start, f).parameter_grads
    assert set(grads) == set(start)
    for key, grad in grads.items():
        index = tuple(size // 2 for size in grad.shape)
        step = np.zeros(grad.shape)
        step[index] = 1e-5
        squares = [
            np.mean(run(name, logits, u, {**start, key: start[key] + s}, f).grad_logits ** 2)
            for s in (step, -step)
        ]
        slope = (squares[0] - squares[1]) / 2e-5
        assert slope != 0
        np.testing.assert_allclose(grad.numpy()[index], slope, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    "name, ratio", [("rebar", 0.85), pytest.param("relax", 0.7, marks=pytest.mark.slow)]
)
def test_learning_lowers_the_variance(name, ratio):
    logits = tf.constant(np.random.default_rng(0).normal(size=(100, 3)))
    estimator = GradientEstimator(name, 3, dtype="float64")
    optimizer = keras.optimizers.Adam(0.02)
    f = lambda b, sample=None: f_of(b) + 5.0

    def variance(seed):
        u = np.random.default_rng(seed).uniform(size=(2, 200 * 100, 3))
        grads = estimator.estimate(f, tf.tile(logits, [200, 1]), u)[1]
        return np.var(tf.reshape(grads, [200, 100, 3]), axis=0).mean()

    @tf.function
    def step(u):
        with tf.GradientTape() as tape:
            learning = estimator.estimate(f, logits, u)[2]
        variables = estimator.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(learning, variables), variables, strict=True))

    before = variance(1)
    rng = np.random.default_rng(2)
    for _ in range(300):
        step(tf.constant(rng.uniform(size=(2, 100, 3))))
    assert variance(1) < ratio * before


def test_relax_begins_as_rebar():
    u = np.random.default_rng(0).uniform(size=(2, 20, 3))
    rebar, relax = (run(name, LOGITS[3], u).grad_logits for name in ("rebar", "relax"))
    np.testing.assert_allclose(relax, rebar, atol=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_reach_only_what_they_should(name):
    """f's variables by the value alone, learned parameters by the learning term alone."""
    rng = np.random.default_rng(0)
    weight = tf.Variable(1.3, dtype=tf.float64)
    logits = tf.constant(rng.normal(size=(5, 3)))
    estimator = GradientEstimator(name, 3, num_samples=2, dtype="float64")
    u = tf.constant(rng.uniform(size=(estimator.rows, 5, 3)))
    f = lambda b, sample=None: tf.exp(weight * tf.reduce_sum(b, -1) / 3)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        value, grad_logits, learning = estimator.estimate(f, logits, u)
    points = u[:2] if name == "concrete" else bernoulli.sample(logits, u[:2])
    if name == "concrete":
        points = tf.sigmoid(2.0 * (logits - tf.math.log(points / (1 - points))))
    mean = tf.reduce_sum(points, -1) / 3
    expected = tf.reduce_sum(mean * tf.exp(weight * mean)) / 2
    np.testing.assert_allclose(tape.gradient(value, weight), expected, rtol=1e-12)
    assert tape.gradient(value, logits) is None
    learned = estimator.trainable_variables
    for target in (grad_logits, learning):
        assert tape.gradient(target, [weight, logits]) == [None, None]
    assert tape.gradient([value, grad_logits], learned) == [None] * len(learned)
    assert all(g is not None for g in tape.gradient(learning, learned))


@pytest.mark.parametrize("name", ["rebar", "rebar_coupled", "relax"])
def test_gradients_of_what_is_learned_are_constants(name):
    weight, start = tf.constant(1.3, tf.float64), parameters_of(name, 3)
    with tf.GradientTape() as tape:
        tape.watch([weight, start])
        u = np.random.default_rng(0).uniform(size=(2, 5, 3))
        f = lambda b, sample=None: weight * f_of(b)
        grads = run(name, LOGITS[3], u, start, f).parameter_grads
    assert not any(g is not None for g in tf.nest.flatten(tape.gradient(grads, [weight, start])))


def test_slope_grows_with_the_calls_up_to_five():
    slope = {"slope": tf.constant(1.0, tf.float64)}
    u = np.full((1, 1, 1), 0.5)
    once = run("st_annealed", LOGITS[1], u, slope).new_parameters
    assert once["slope"].numpy() == pytest.approx(1 + 0.04 / 1000)
    last = {"slope": tf.constant(4.99999, tf.float64)}
    assert run("st_annealed", LOGITS[1], u, last).new_parameters["slope"].numpy() == 5


@pytest.mark.parametrize("name", ["concrete", "st_gumbel"])
@pytest.mark.parametrize("temperature", [0, -0.5, float("nan")])
def test_temperature_must_be_positive(name, temperature):
    with pytest.raises(ValueError, match="temperature must be at least 0.001, received"):
        arm_tf.expectation(f_of, tf.zeros([2, 3]), estimator=name, temperature=temperature)


@pytest.mark.parametrize("name", FAMILY)
def test_f_without_derivative_is_refused(name):
    u = np.full((estimators.TABLE[name].rows(1, 3), 2, 3), 0.5)
    with pytest.raises(ValueError, match=f"'{name}' needs the derivative of f in b"):
        run(name, LOGITS[3], u, f=lambda b, sample=None: tf.cast(b[..., 0] > 0.5, b.dtype))

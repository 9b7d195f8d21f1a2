"""The layer and the model in every form in which Keras users have them."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf
from kinds import KINDS, each_kind
from small_runs import mirrored

import arm_tf
from arm_tf import StochasticBinary, StochasticModel, estimators
from arm_tf.expectation import draw, precise_dtype

ELBO = sorted(n for n, r in estimators.TABLE.items() if r.objective == "elbo")
LEARNING = sorted(n for n in ELBO if estimators.TABLE[n].initial)
RELAXING = sorted(n for n in ELBO if estimators.TABLE[n].relaxation)
FORMS = ("sequential", "functional", "subclass")
IN_FORMS = [(estimator, FORMS[i % 3]) for i, estimator in enumerate(ELBO)]  # in turn
FEW = [("arm", "sequential"), ("relax", "functional"), ("reinforce_baseline", "subclass")]
LIVES = [
    pytest.param(*pair, "float32", marks=() if pair[0] in KINDS else pytest.mark.slow)
    for pair in [*IN_FORMS, *(("arm", form) for form in FORMS)]
] + [
    pytest.param(*pair, policy, marks=pytest.mark.slow)
    for pair in FEW
    for policy in ("float64", "mixed_float16", "mixed_bfloat16")
]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 5)).astype("float32")  # a last batch that is smaller
Y = (X.sum(axis=1, keepdims=True) > 0).astype("float32")


@pytest.fixture(autouse=True)
def seeds_and_policy():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.backend.clear_session()


def dense(units, seed, **kwargs):
    return keras.layers.Dense(
        units, kernel_initializer=keras.initializers.GlorotUniform(seed), **kwargs
    )


@keras.saving.register_keras_serializable(package="arm_tf_tests")
class Classifier(keras.Model):
    """A user's own model, with the loss as a function of the samples."""

    def __init__(self, estimator="arm", **kwargs):
        super().__init__(**kwargs)
        self.estimator = estimator
        self.below, self.above = dense(4, 1), dense(1, 2)
        self.units = StochasticBinary(estimator, seed=3)

    def call(self, x):
        logits = self.below(x)
        targets = tf.cast(tf.reduce_sum(x, axis=-1) > 0, logits.dtype)
        error = lambda b: (self.above(tf.reshape(b, [-1, 4])), b)
        f = lambda b: (tf.reshape(error(b)[0], tf.shape(b)[:-1]) - targets) ** 2
        self.add_loss(tf.reduce_mean(self.units(logits, f=f)))
        return self.above(self.units(logits, training=False))

    def get_config(self):
        return {**super().get_config(), "estimator": self.estimator}


def build(form, estimator):
    """A compiled model of two stochastic layers, or of one in a subclass."""
    units = lambda seed: StochasticBinary(estimator, seed=seed)
    if form == "sequential":
        model = keras.Sequential([dense(4, 1), units(3), dense(3, 2), units(4), dense(1, 5)])
    elif form == "functional":
        x = keras.Input((5,))
        hidden = dense(4, 1)(x)
        b = keras.layers.Concatenate()([units(3)(hidden), units(4)(dense(3, 2)(x)), hidden])
        model = keras.Model(x, dense(1, 5)(b))
    if form == "subclass":
        model, loss = Classifier(estimator), None
    else:
        model, loss = StochasticModel(model), "mse"
    return model, loss


def fitted(form, estimator, mode):
    model, loss = build(form, estimator)
    metrics = [] if loss is None else ["mae"]
    model.compile(keras.optimizers.SGD(1e-3), loss, metrics=metrics, **MODES[mode])
    history = model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    return model


MODES = {
    "eager": dict(run_eagerly=True, jit_compile=False),
    "graph": dict(jit_compile=False),
    "xla": dict(jit_compile=True),
}


def weights_of(model):
    return [w.numpy().astype("float64") for w in model.weights]


def assert_same(model, other, **tolerance):
    for a, b in zip(weights_of(model), weights_of(other), strict=True):
        np.testing.assert_allclose(a, b, **tolerance or dict(rtol=0, atol=0))


@pytest.mark.parametrize(("estimator", "form", "policy"), LIVES)
def test_life_of_a_model(estimator, form, policy, tmp_path):
    """Built, fitted, evaluated, saved, loaded, cloned, trained further."""
    keras.config.set_dtype_policy(policy)
    model = fitted(form, estimator, "eager")
    assert all(np.isfinite(w).all() for w in weights_of(model))
    assert np.isfinite(model.evaluate(X, Y, verbose=0)).all()
    predicted = model.predict(X, verbose=0)
    assert predicted.shape == (11, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(model, loaded)
    loaded.fit(X, Y, verbose=0)
    clone = keras.models.clone_model(model)
    clone(X)
    assert [w.shape for w in clone.weights] == [w.shape for w in model.weights]


def spread_noise(self, logits, rows):
    """Noise that is the same with XLA as without, unlike TensorFlow's random numbers."""
    shape = tf.concat([[rows], tf.shape(logits)], axis=0)
    numbers = tf.range(tf.cast(tf.reduce_prod(shape), tf.int64)) + 12_345 * rows
    u = tf.cast(tf.math.floormod(numbers * 2_654_435_761, 2**32), tf.float64) / 2**32
    u = tf.ensure_shape(tf.reshape(u, shape), [rows, *logits.shape])
    return tf.cast(u, precise_dtype(logits.dtype))


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "form"), [*FEW, ("concrete", "sequential")])
def test_graph_and_xla_train_as_eager_does(estimator, form, monkeypatch):
    monkeypatch.setattr(StochasticBinary, "noise", spread_noise)
    first = fitted(form, estimator, "eager")
    for mode in ("graph", "xla"):
        assert_same(first, fitted(form, estimator, mode), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("form", FORMS)
def test_export(form, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = fitted(form, "arm", "graph")
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    served = loaded.serve(X)
    assert served.shape == (11, 1) and np.isfinite(tf.cast(served, tf.float32)).all()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["arm", "concrete", "nvil", "relax"])
def test_replicas_with_a_part_without_data(estimator):
    """Two replicas, of which one has nothing in the last batch."""
    strategy = mirrored(2)
    with strategy.scope():
        model = StochasticModel(build("sequential", estimator)[0].model)
        model.compile("adam", "mse")
    history = model.fit(X[:9], Y[:9], batch_size=4, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(w).all() for w in weights_of(model))


def test_replicas_draw_noise_of_their_own():
    strategy = mirrored(2)
    with strategy.scope():
        layer = StochasticBinary(seed=0)
        layer.build((None, 64))
    draw = tf.function(lambda: strategy.run(lambda: layer(tf.zeros([4, 64]), training=False)))
    first, second = strategy.experimental_local_results(draw())
    again = strategy.experimental_local_results(draw())[0]
    assert (first.numpy() != second.numpy()).any() and (first.numpy() != again.numpy()).any()


def test_what_an_estimator_learns_is_the_same_on_replicas(monkeypatch):
    """Two replicas with the same data and noise take the step of one."""

    def rows_apart(self, logits, rows):
        u = tf.reshape(tf.linspace(0.2, 0.8, rows), [rows] + [1] * logits.shape.rank)
        return tf.broadcast_to(u, tf.concat([[rows], tf.shape(logits)], axis=0))

    monkeypatch.setattr(StochasticBinary, "noise", rows_apart)
    learned = []
    for strategy in (tf.distribute.get_strategy(), mirrored(2)):
        with strategy.scope():
            kernel = [keras.initializers.GlorotUniform(seed) for seed in (0, 1)]
            dense = [keras.layers.Dense(4, kernel_initializer=kernel[0])]
            dense.append(keras.layers.Dense(1, kernel_initializer=kernel[1]))
            units = StochasticBinary("double_cv")
            inner = keras.Sequential([keras.Input((X.shape[1],)), dense[0], units, dense[1]])
            model = StochasticModel(inner)
            model.compile(keras.optimizers.SGD(1.0), "mse")
        x, y = np.tile(X[:2], (2, 1)), np.tile(Y[:2], (2, 1))
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        learned.append(units.gradient_estimator.parameters["alpha"].numpy())
    assert learned[0] != 0
    np.testing.assert_allclose(*learned, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_small_probabilities_at_any_precision(dtype, prob=1e-3):
    """Six standard deviations: a false failure in 5e8; the seed is fixed."""
    logits = tf.cast(tf.fill([1_000_000, 1], np.log(prob / (1 - prob))), dtype)
    exact = tf.sigmoid(tf.cast(logits[0, 0], tf.float64)).numpy()
    bound = 6 * np.sqrt(exact / 1e6)
    b = StochasticBinary(seed=1, dtype=dtype)(logits, training=False)
    assert b.dtype == dtype and abs(np.mean(tf.cast(b, tf.float64)) - exact) < bound
    value = arm_tf.expectation(lambda b: b[..., 0], logits, estimator="reinforce", seed=2)
    assert abs(np.mean(tf.cast(value, tf.float64)) - exact) < bound


@pytest.mark.parametrize("dtype, logit", [("float16", -8.0), ("bfloat16", -5.0)])
@pytest.mark.parametrize("estimator", ["arm", "disarm", "reinforce"])
def test_gradient_at_16_bits(dtype, logit, estimator):
    """f = b has the gradient p (1 - p), also where 16 bits could not tell u from 0."""
    points, weights = oracles.cells(oracles.pair_thresholds([logit]))
    logits = tf.fill([len(points), 1], tf.cast(logit, dtype))
    assert draw(logits, 1).dtype == tf.float32
    u = tf.constant(points[np.newaxis], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = arm_tf.expectation(lambda b: b[..., 0], logits, estimator=estimator, u=u)
    assert value.dtype == tf.float32
    grads = tf.cast(tape.gradient(value, logits), tf.float64).numpy()
    probs = 1 / (1 + np.exp(-logit))
    np.testing.assert_allclose(weights @ grads, [probs * (1 - probs)], rtol=2e-3)


@pytest.mark.parametrize("estimator", each_kind(ELBO))
def test_unknown_batch_size(estimator):
    layer = StochasticBinary(estimator)

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def gradient(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = layer(logits, f=lambda b: tf.reduce_sum(b**2, axis=-1))
        return tape.gradient(value, logits)

    layer.build((None, 3))
    assert [gradient(tf.zeros([n, 3])).shape[0] for n in (4, 2)] == [4, 2]


@pytest.mark.parametrize("estimator", LEARNING)
def test_checkpoints_hold_what_is_learned(estimator, tmp_path):
    first, second = StochasticBinary(estimator), StochasticBinary(estimator)
    for layer in (first, second):
        layer(tf.zeros([2, 3]), training=False)
    for variable in first.gradient_estimator.variables:
        variable.assign(variable + 1.5)
    path = tf.train.Checkpoint(first).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(second).restore(path).assert_consumed()
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_the_noise_is_no_weight():
    """As for Keras's own random layers, so that weights can be handed to a net without."""
    plain = keras.Sequential([keras.Input((5,)), dense(4, 1), dense(1, 2)])
    net = keras.Sequential([keras.Input((5,)), dense(4, 1), StochasticBinary(), dense(1, 2)])
    plain.set_weights(net.get_weights())
    assert len(net.layers[1].variables) == 1
    assert plain.count_params() == net.count_params()


def averages(layer):
    row = layer.gradient_estimator.row
    return [layer.gradient_estimator.parameters[name].numpy() for name in row.averages]


@pytest.mark.parametrize("estimator", ["reinforce_baseline", "nvil", "muprop", "st_annealed"])
@pytest.mark.parametrize("compiled", [False, True])
def test_averages_move_where_the_gradient_is_taken(estimator, compiled):
    """Once for each gradient, without `training`; not in inference, nor without a gradient."""
    layer = StochasticBinary(estimator, seed=0)
    logits = tf.constant(RNG.normal(size=(4, 3)), tf.float32)
    layer.build(logits.shape)
    call = lambda logits, training=None: layer(
        logits, f=lambda b: tf.reduce_sum(b, -1) + 1.0, training=training
    )
    call = tf.function(call, autograph=False) if compiled else call

    def differentiate(training=None):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = call(logits, training=training)
        tape.gradient(value, logits)

    before = averages(layer)
    call(logits)
    differentiate(training=False)
    assert averages(layer) == before
    differentiate()
    after = averages(layer)
    assert after != before
    differentiate()
    assert averages(layer) != after
    if "calls" in layer.gradient_estimator.parameters:
        assert layer.gradient_estimator.parameters["calls"].numpy() == 2


@pytest.mark.parametrize("estimator", ["reinforce_baseline", "nvil", "muprop"])
@pytest.mark.parametrize("case", ["no data", "one value that is NaN"])
def test_averages_survive_a_bad_batch(estimator, case):
    layer = StochasticBinary(estimator, seed=0)
    f = lambda b: tf.reduce_sum(b, -1) + 1.0

    def step(logits, f):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = layer(logits, f=f)
        tape.gradient(value, logits)

    step(tf.zeros([4, 3]), f)
    before = averages(layer)
    if case == "no data":
        step(tf.zeros([0, 3]), f)
    else:
        step(tf.zeros([4, 3]), lambda b: f(b) + tf.constant([0.0, np.nan, 0.0, 0.0]))
    assert averages(layer) == before
    step(tf.zeros([4, 3]), f)
    assert np.isfinite(averages(layer)).all() and averages(layer) != before


@pytest.mark.parametrize("estimator", ELBO)
def test_nan_logits_give_nan(estimator):
    logits = tf.constant([[0.0, np.nan], [0.0, 0.0]])
    layer = StochasticBinary(estimator, seed=0)
    np.testing.assert_array_equal(
        np.isnan(layer(logits, training=False)), [[False, True], [False, False]]
    )
    f = lambda b: tf.reduce_sum(b**2, axis=-1)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = layer(logits, f=f)
    np.testing.assert_array_equal(np.isnan(value), [True, False])
    grad = tape.gradient(value, logits)
    np.testing.assert_array_equal(np.isnan(grad), [[True, True], [False, False]])


@pytest.mark.parametrize("estimator", each_kind(RELAXING))
def test_relaxing_estimators_train_without_a_model_around_them(estimator):
    """Two layers, an ordinary loss, plain backpropagation: the gradient is StochasticModel's."""
    keras.config.set_dtype_policy("float64")
    layer = lambda seed: StochasticBinary(estimator, seed=seed)
    net = keras.Sequential(
        [keras.Input((5,)), dense(4, 1), layer(3), dense(3, 2), layer(4), dense(1, 5)]
    )
    if estimator != "concrete":  # whose samples are relaxed
        assert set(np.unique(net.layers[1](tf.zeros([5, 4]), training=True))) <= {0.0, 1.0}
    net.compile("adam", "mse", metrics=["mae"], run_eagerly=True)
    before = weights_of(net)
    net.fit(X, Y, epochs=1, verbose=0)
    moved = [not np.array_equal(a, b) for a, b in zip(before, weights_of(net), strict=True)]
    assert all(moved)
    assert set(np.unique(net.layers[1](tf.zeros([50, 4]), training=False))) == {0.0, 1.0}


@pytest.mark.parametrize("estimator", RELAXING)
def test_sample_has_the_estimators_derivative(estimator, monkeypatch):
    u = tf.constant(RNG.uniform(size=(1, 6, 3)))
    monkeypatch.setattr(StochasticBinary, "noise", lambda self, logits, rows: u)
    logits = tf.constant(RNG.normal(size=(6, 3)))
    layer = StochasticBinary(estimator, dtype="float64")
    f = lambda b: tf.reduce_sum(tf.exp(b[..., :1]) * b, axis=-1)

    def gradient(value):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            result = value()
        return tape.gradient(result, logits)

    np.testing.assert_allclose(
        gradient(lambda: f(layer(logits, training=True))),
        gradient(lambda: arm_tf.expectation(f, logits, estimator=estimator, u=u)),
        atol=1e-14,
    )


@pytest.mark.parametrize("estimator", ["arm", "loo", "relax"])
def test_other_samples_refuse_to_be_differentiated(estimator):
    net = keras.Sequential([keras.Input((5,)), dense(4, 1), StochasticBinary(estimator)])
    net.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(ValueError, match="wrap the model in arm_tf.StochasticModel"):
        net.fit(X, np.zeros([11, 4]), verbose=0)


@pytest.mark.parametrize("estimator", ["arm", "st", "concrete"])
def test_samples_in_inference_refuse_to_be_differentiated(estimator):
    layer, logits = StochasticBinary(estimator), tf.Variable(tf.zeros([2, 3]))
    with tf.GradientTape(persistent=True) as tape:
        b = layer(logits, training=False)
        held = layer(tf.stop_gradient(logits), training=False)
    with pytest.raises(ValueError, match="A binary sample has no gradient"):
        tape.gradient(b, logits)
    assert tape.gradient(held, logits) is None


class Sampler(tf.Module):
    def __init__(self):
        super().__init__()
        self.layer = StochasticBinary(seed=0)
        self.layer.build((None, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def sample(self, logits):
        return self.layer(logits)


class Expected(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def value(self, logits):
        return arm_tf.expectation(lambda b: tf.reduce_sum(b, axis=-1), logits, seed=1)


@pytest.mark.parametrize("with_gradients", [False, True])
def test_saved_model_of_a_sampler(with_gradients, tmp_path):
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=with_gradients)
    tf.saved_model.save(Sampler(), str(tmp_path), options=options)
    loaded = tf.saved_model.load(str(tmp_path))
    samples = [loaded.sample(tf.zeros([50, 3])).numpy() for _ in range(2)]
    assert set(np.unique(samples)) == {0.0, 1.0} and (samples[0] != samples[1]).any()


def test_saved_model_keeps_the_gradient(tmp_path):
    module, logits = Expected(), tf.constant(RNG.normal(size=(4, 3)), tf.float32)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(module, str(tmp_path), options=options)

    def gradient(module):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = module.value(logits)
        return tape.gradient(value, logits)

    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(gradient(loaded), gradient(module))


@pytest.mark.parametrize("first, second", [("arm_tf", "keras"), ("keras", "arm_tf")])
def test_a_saved_model_loads_by_name(first, second, tmp_path):
    model, _ = build("sequential", "arm")
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    program = f"""
        import {first}
        import {second}
        model = keras.saving.load_model({str(tmp_path / "model.keras")!r})
        assert type(model) is arm_tf.StochasticModel
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: StochasticBinary("arm", temperature=0.3),
            "Unknown option 'temperature' for 'arm'; it takes num_samples.",
        ),
        (
            lambda: StochasticBinary("amr"),
            r"Unknown estimator 'amr' \(did you mean .*'arm'\?\)",
        ),
        (lambda: StochasticBinary(tempreature=0.5), "tempreature.* The settings of .* temperature"),
        (lambda: StochasticBinary()(tf.constant([[1, 2]])), r"received dtype int32 .*\(1, 2\)"),
        (lambda: StochasticBinary()(keras.Input((2,), dtype="int32")), "received dtype int32"),
        (lambda: StochasticBinary()(tf.constant(1.0)), r"V known, received \(\)"),
        (lambda: StochasticBinary()(keras.Input((None,))), r"received \(None, None\)"),
        (lambda: StochasticBinary("concrete", temperature=0.0), "temperature must be at least"),
        (lambda: StochasticBinary("ovis", gamma="1"), "gamma must be at least 0, received '1'"),
        (lambda: StochasticBinary("arm", colour="red"), "colour"),
        (lambda: StochasticModel(Classifier()), "must be one keras.Sequential or functional"),
    ],
)
def test_errors_name_what_was_received(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_are_keywords_and_round_trip():
    layer = StochasticBinary("concrete", 3, seed=7, temperature=0.3, name="code")
    config = layer.get_config()
    assert config["temperature"] == 0.3
    assert StochasticBinary.from_config(config).get_config() == config


def test_functional_layer_with_f():
    x = keras.Input((5,))
    f = lambda b: tf.reduce_sum(b, axis=-1)
    value = StochasticBinary(seed=0)(dense(4, 1)(x), f=f)
    assert value.shape == (None,)
    model = keras.Model(x, value)
    model.compile("sgd", loss=lambda y, p: p, run_eagerly=True)
    before = weights_of(model)
    model.fit(X, Y[:, 0], verbose=0)
    assert not np.array_equal(before[0], weights_of(model)[0])


def test_masks_and_shapes_pass_through():
    layer = StochasticBinary()
    assert layer.compute_output_shape((None, 7, 3)) == (None, 7, 3)
    net = keras.Sequential([keras.layers.Masking(), StochasticBinary()])
    assert getattr(net(tf.zeros([2, 3, 4])), "_keras_mask", None) is not None


def test_policies_keep_noise_and_parameters_precise():
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = StochasticBinary("nvil")
    assert layer(tf.zeros([2, 3]), training=False).dtype == tf.bfloat16
    assert layer.noise(tf.zeros([2, 3], tf.bfloat16), 1).dtype == tf.float32
    assert {v.dtype for v in layer.gradient_estimator.variables} == {"float32"}
    assert precise_dtype("float64") == tf.float64


def test_a_subclass_that_is_built_can_be_backed_up(tmp_path):
    model = Classifier("nvil")
    model.build((None, 5))
    model.compile("sgd", run_eagerly=True)
    model.fit(X, epochs=2, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])
    assert model.units.gradient_estimator.parameters["calls"].numpy() == 2


def test_binarising_net_trains_on_a_batch():
    """Dense, binarise, mean square: ends elsewhere in no gradients for any variable."""
    net = keras.Sequential([keras.Input((5,)), dense(4, 1), StochasticBinary(seed=0)])
    model = StochasticModel(net)
    model.compile("sgd", "mse")
    before = net.layers[0].kernel.numpy()
    model.train_on_batch(X, np.ones([11, 4]))
    assert (net.layers[0].kernel.numpy() != before).any()

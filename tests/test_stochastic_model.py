"""Models trained under Keras's own `compile`: gradients against enumeration and other doors."""

import concurrent.futures
import itertools
import warnings

import keras
import numpy as np
import oracles
import proofs
import pytest
import tensorflow as tf

from arm_tf import StochasticBinary, StochasticModel, estimators, expectation, models
from arm_tf.expectation import precise_dtype
from arm_tf.stochastic_model import program
from arm_tf.stochastic_model import surrogates as surrogate_losses
from arm_tf.stochastic_model.batch_loss import BatchLoss
from arm_tf.stochastic_model.rest import Rest

ELBO = sorted(n for n, r in estimators.TABLE.items() if r.objective == "elbo")
X, Y = np.array([[0.3, -0.8]]), np.array([[0.7]])
LOSS = keras.losses.MeanSquaredError(reduction="sum", dtype="float64")


class Noise:
    """Stands in for the noise of all layers: an array for each time that one asks.

    Args:
      arrays: by the number of the request, [rows, batch, units]; 1/2 where there is none.

    Attributes:
      asked: layer's name, rows and shape [batch, units] of each request.
    """

    def __init__(self, monkeypatch, arrays=None):
        self.arrays, self.asked = arrays or {}, []
        monkeypatch.setattr(StochasticBinary, "noise", lambda *args: self.draw(*args))

    def draw(self, layer, logits, rows):
        shape = [rows, *logits.shape]
        u = self.arrays.get(len(self.asked), np.full(shape, 0.5))
        assert list(u.shape) == shape
        self.asked.append((layer.name, rows, logits.shape))
        return tf.constant(u, precise_dtype(logits.dtype))


def dense(units, seed, **kwargs):
    normal = lambda seed, stddev: keras.initializers.RandomNormal(stddev=stddev, seed=seed)
    return keras.layers.Dense(
        units,
        kernel_initializer=normal(seed, 1.0),
        bias_initializer=normal(100 + seed, 0.5),
        dtype="float64",
        **kwargs,
    )


def chain(estimator, **kwargs):
    """x -> two units -> one unit -> one output."""
    first, second = (StochasticBinary(estimator, dtype="float64", name=n, **kwargs) for n in "ab")
    inputs = keras.Input((2,), dtype="float64")
    return keras.Sequential([inputs, dense(2, 1), first, dense(1, 2), second, dense(1, 3)])


def chain_by_hand(weights, pick):
    kernel_1, bias_1, kernel_2, bias_2, kernel_3, bias_3 = weights
    a = pick("a", X @ kernel_1 + bias_1)
    b = pick("b", a @ kernel_2 + bias_2)
    return b @ kernel_3 + bias_3


def graph(estimator, **kwargs):
    """Two stochastic layers side by side, one after both, and connections that skip it."""
    binary = lambda name: StochasticBinary(estimator, dtype="float64", name=name, **kwargs)
    join = lambda *tensors: keras.layers.Concatenate(dtype="float64")(tensors)
    x = keras.Input((2,), dtype="float64")
    hidden = dense(2, 1, activation="tanh")(x)  # reaches the loss in every way
    a, b = binary("a")(dense(2, 2)(hidden)), binary("b")(dense(1, 3)(hidden))
    c = binary("c")(dense(1, 4)(join(a, hidden, b)))
    return keras.Model(x, dense(1, 5)(join(c, a, hidden)))


def graph_by_hand(weights, pick):
    pairs = zip(weights[::2], weights[1::2], strict=True)
    hidden, to_a, to_b, to_c, output = (lambda x, k=k, c=c: x @ k + c for k, c in pairs)
    h = tf.tanh(hidden(X))
    a, b = pick("a", to_a(h)), pick("b", to_b(h))
    c = pick("c", to_c(tf.concat([a, h, b], -1)))
    return output(tf.concat([c, a, h], -1))


NETS = {
    "chain": (chain, chain_by_hand, {"a": 2, "b": 1}, {"a": ["b"], "b": []}),
    "graph": (
        graph,
        graph_by_hand,
        {"a": 2, "b": 1, "c": 1},
        {"a": ["c"], "b": ["c"], "c": []},
    ),
}


def by_layer(inner):
    """Kernels and biases of the dense layers, in the order in which they were made."""
    dense_layers = [layer for layer in inner.layers if isinstance(layer, keras.layers.Dense)]
    dense_layers.sort(key=lambda layer: layer.kernel_initializer.seed)
    return [weight for layer in dense_layers for weight in (layer.kernel, layer.bias)]


def over_choices(by_hand, units, weights):
    """Every choice of all samples: its log-probability, the output, and logits by layer."""
    for choice in itertools.product(*(oracles.binary_vectors(n) for n in units.values())):
        chosen, logits = dict(zip(units, choice, strict=True)), {}

        def pick(name, phi, chosen=chosen, logits=logits):
            logits[name] = phi
            return tf.constant(chosen[name])[tf.newaxis]

        output = by_hand(weights, pick)
        log_q = sum(
            tf.reduce_sum(chosen[name] * phi - tf.nn.softplus(phi)) for name, phi in logits.items()
        )
        yield log_q, output, logits


def exact_gradients(net, weights):
    """Gradient of the expected loss by enumeration."""
    _, by_hand, units, _ = NETS[net]
    with tf.GradientTape() as tape:
        values = [tf.convert_to_tensor(w) for w in weights]
        tape.watch(values)
        total = sum(
            tf.exp(log_q) * tf.reduce_sum((output - Y) ** 2)
            for log_q, output, _ in over_choices(by_hand, units, values)
        )
    return tape.gradient(total, values)


def term_gradients(model, way, term, x, y, sample_weight=None):
    """Gradient of one addend of the loss: "path", or the estimators of a layer."""
    weights = by_layer(model.model)
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        path = y_pred.arm_tf_path
        if term == "path":
            total = model.compute_loss(x, y, path.outputs, sample_weight, training=False)
        loss = BatchLoss(model, y, sample_weight)
        for site in path.graph.after:
            terms, _ = surrogate_losses.surrogates_at(Rest(path, site, loss), way)
            if path.graph.steps[site].operation.name == term:
                total = terms[0]
    return [
        np.zeros(w.shape) if g is None else g.numpy()
        for w, g in zip(weights, tape.gradient(total, [w.value for w in weights]), strict=True)
    ]


def expected_gradients(net, estimator, monkeypatch, way="datum", **kwargs):
    """The model's gradient in expectation over all noise, a sum over cells for each addend."""
    build, by_hand, units, after = NETS[net]
    inner = build(estimator, **kwargs)
    model = StochasticModel(inner)
    model.compile("sgd", LOSS)
    weights = by_layer(inner)
    logits = {name: [] for name in units}
    for _, _, found in over_choices(by_hand, units, [w.numpy() for w in weights]):
        for name, phi in found.items():
            logits[name].append(np.asarray(phi)[0])
    thresholds = {n: np.moveaxis(oracles.pair_thresholds(v), 0, -1) for n, v in logits.items()}
    pair = {n: t.round(14).reshape(units[n], -1) for n, t in thresholds.items()}
    single = {n: t[:, 0].round(14) for n, t in thresholds.items()}

    noise = Noise(monkeypatch)
    model.compute_loss(X, Y, model(X, training=True), training=True)
    asked = noise.asked
    order = [name for name, _, _ in asked[: len(units)]]
    roles = [("path", name) for name in order]  # whose addend a request is for, and whose noise
    for owner in order:
        roles += [(owner, owner), *((owner, n) for n in order if n in after[owner])]
    assert [name for _, name in roles] == [name for name, _, _ in asked]

    total = 0
    for term in ["path", *units]:
        axes, which = [], []
        for i, ((owner, name), (_, rows, _)) in enumerate(zip(roles, asked, strict=True)):
            on_path = owner == "path" and name != term
            if way != "batch":  # which continues with the path's noise, not with noise of its own
                on_path = on_path and name not in after.get(term, [])
            if on_path or (owner == term and (way != "batch" or name == term)):
                axes += list((pair if owner == name else single)[name]) * rows
                which.append((i, rows, units[name]))
        points, cell_weights = oracles.cells(axes)
        arrays, used = {}, 0
        for i, rows, size in which:
            columns = points[:, used : used + rows * size]
            arrays[i] = columns.reshape(-1, rows, size).swapaxes(0, 1)
            used += rows * size
        count = len(points)
        noise = Noise(monkeypatch, arrays)
        tile = lambda v, count=count: np.tile(v, (count, 1))
        grads = term_gradients(model, way, term, tile(X), tile(Y), cell_weights)
        total = [a + b for a, b in zip(total, grads, strict=True)] if total else grads
    return weights, total


@pytest.mark.parametrize("estimator", proofs.LINEAR_IN_CELLS)
@pytest.mark.parametrize("net", NETS)
def test_expected_gradient_is_the_gradient_of_the_expected_loss(net, estimator, monkeypatch):
    weights, got = expected_gradients(net, estimator, monkeypatch)
    for g, expected in zip(got, exact_gradients(net, weights), strict=True):
        np.testing.assert_allclose(g, expected, rtol=0, atol=1e-12)


def test_a_wrong_gradient_fails_the_proof(monkeypatch):
    """The proof sees a gradient that is off by a thousandth in one unit."""
    plain = surrogate_losses.at_any_precision

    def wrong(*args):
        estimate = plain(*args)
        scale = tf.constant([1.001, 1.0][: estimate.grad_logits.shape[-1]], tf.float64)
        return estimate._replace(grad_logits=scale * estimate.grad_logits)

    monkeypatch.setattr(surrogate_losses, "at_any_precision", wrong)
    weights, got = expected_gradients("chain", "arm", monkeypatch)
    exact = exact_gradients("chain", weights)
    assert max(np.abs(g - e).max() for g, e in zip(got, exact, strict=True)) > 1e-6


@pytest.mark.parametrize(
    "estimator, pixels, units, batch",
    [*((name, 12, 4, 6) for name in ELBO), ("arm", 784, 200, 50), ("nvil", 784, 200, 50)],
)
def test_gradient_of_the_conditional_network_is_that_of_its_own_program(
    estimator, pixels, units, batch, monkeypatch
):
    """One batch of the paper's network, by this door and by `arm_tf.train_conditional`'s."""
    network = models.ConditionalNetwork(
        pixels, units=units, code_scaling="symmetric", dtype="float64", seed=1
    )
    own = network.gradient_estimators(estimator)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (batch, pixels)).astype("float64")
    rows, _, _ = network._noise_rows(own, "independent")
    u = rng.uniform(size=(rows, batch, units))
    first, later, second = np.split(u, [own[0].rows, own[0].rows + own[0].width])
    path = [first[:1], second[:1]]
    variables = [v for group in network.variable_groups.values() for v in group]
    with tf.GradientTape() as tape:
        encoder_loss, decoder_loss, _ = network.losses(
            tf.constant(images), tf.constant(np.concatenate([u, *path])), own
        )
        loss = tf.reduce_mean(encoder_loss) + tf.reduce_mean(decoder_loss)
    expected = tape.gradient(loss, [v.value for v in variables])

    binary = lambda: StochasticBinary(estimator, dtype="float64")
    (below, above), half = network.encoder, pixels // 2
    inputs = keras.Input((half,), dtype="float64")
    model = StochasticModel(
        keras.Model(inputs, network.decoder[0](binary()(above(binary()(below(inputs))))))
    )
    entropy = keras.losses.BinaryCrossentropy(from_logits=True, dtype="float64")
    model.compile("sgd", entropy, loss_weights=float(half))  # Keras takes the mean over pixels
    Noise(monkeypatch, dict(enumerate([*path, first, later, second])))
    upper, lower = images[:, :half], images[:, half:]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(upper, lower, model(upper, training=True), training=True)
    got = tape.gradient(loss, [v.value for v in variables])
    for g, e, variable in zip(got, expected, variables, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-12, err_msg=variable.path)


def binary(name=None, seed=0, **kwargs):
    return StochasticBinary("arm", seed=seed, name=name, **kwargs)


RNG = np.random.default_rng(0)
BATCH = 6


def simple(**kwargs):
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4), binary(**kwargs), keras.layers.Dense(2)]
    )


INPUTS = {simple: RNG.normal(size=(BATCH, 3)).astype("float32")}
TARGETS = {simple: RNG.normal(size=(BATCH, 2)).astype("float32")}
labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_activity_regularisers_are_part_of_what_is_estimated():
    """With no other loss, the gradient is that of the expected penalty, 0.7 sigmoid(logits)."""
    units = StochasticBinary("exact", activity_regularizer=keras.regularizers.L1(0.7))
    nothing = keras.layers.Lambda(lambda b: 0.0 * b)
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), units, nothing])
    model = StochasticModel(inner)
    model.compile("sgd", "mse")
    x = RNG.normal(size=(5, 2)).astype("float32")
    weights = [w.value for w in inner.layers[0].weights]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(y=np.zeros((5, 2)), y_pred=model(x, training=True))
    got = tape.gradient(loss, weights)
    with tf.GradientTape() as tape:
        expected = 0.7 * tf.reduce_sum(tf.sigmoid(x @ weights[0] + weights[1])) / 5
    for g, e in zip(got, tape.gradient(expected, weights), strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=1e-6)  # of addends near 0.1


def test_models_inside_are_taken_apart():
    """A functional model with stochastic layers in a Sequential one is the model written flat."""
    layers_ = [keras.layers.Dense(4), binary("a"), keras.layers.Dense(3), binary("b", 1)]
    x = keras.Input((4,))
    nested = keras.Sequential(
        [
            keras.Input((3,)),
            layers_[0],
            keras.Model(x, layers_[2](layers_[1](x))),
            keras.Sequential([layers_[3]]),
            keras.layers.Dense(2),
        ]
    )
    flat = keras.Sequential([keras.Input((3,)), *layers_, nested.layers[-1]])
    grads = []
    for inner in (nested, flat):
        for layer in layers_[1::2]:
            layer.seed_generator.state.assign([7, 0])
        model = StochasticModel(inner)
        model.compile("sgd", "mse")
        with tf.GradientTape() as tape:
            loss = model.compute_loss(
                y=TARGETS[simple], y_pred=model(INPUTS[simple], training=True), training=True
            )
        grads.append(tape.gradient(loss, [w.value for w in flat.trainable_weights]))
    for a, b in zip(*grads, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a).max() > 0


def test_a_frozen_model_inside_stays_in_inference():
    x = keras.Input((4,))
    inside = keras.Model(x, keras.layers.BatchNormalization()(binary()(x)))
    inputs = keras.Input((3,))
    outputs = inside(keras.layers.Dense(4)(inputs), training=False)
    model = StochasticModel(keras.Model(inputs, outputs))
    model.compile("sgd", "mse")
    model.fit(INPUTS[simple], np.zeros((BATCH, 4)), verbose=0)
    mean = inside.layers[-1].moving_mean.numpy()
    np.testing.assert_array_equal(mean, np.zeros(4))


def test_batch_normalisation_and_dropout_after_stochastic_units_train():
    inner = keras.Sequential(
        [
            keras.layers.Dense(4),
            binary(),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(2),
        ]
    )
    model = StochasticModel(inner)
    model.compile("adam", "mse", metrics=["mae"])
    history = model.fit(INPUTS[simple], TARGETS[simple], epochs=3, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_one_layer_used_twice():
    x = keras.Input((3,))
    shared, to_units = binary(), keras.layers.Dense(3)
    model = StochasticModel(keras.Model(x, shared(to_units(shared(to_units(x))))))
    model.compile("sgd", "mse")
    before = to_units.kernel.numpy()
    model.fit(INPUTS[simple], np.zeros((BATCH, 3)), verbose=0)
    assert (to_units.kernel.numpy() != before).any()


def test_units_on_a_grid_are_one_vector(monkeypatch):
    """Units [batch, 2, 2] have the gradients of units [batch, 4]."""
    u = RNG.uniform(size=(2, BATCH, 4)).astype("float32")
    kernel = RNG.normal(size=(3, 4)).astype("float32")
    grads = []
    for shape in ((4,), (2, 2)):
        noise = lambda self, logits, rows: tf.reshape(tf.constant(u[:rows]), [rows, *logits.shape])
        monkeypatch.setattr(StochasticBinary, "noise", noise)
        to_units = keras.layers.Dense(4, use_bias=False)
        reshape = keras.layers.Reshape
        model = StochasticModel(
            keras.Sequential(
                [
                    keras.Input((3,)),
                    to_units,
                    reshape(shape),
                    StochasticBinary("double_cv"),
                    reshape((4,)),
                    keras.layers.Lambda(lambda b: tf.reduce_sum(b, -1, keepdims=True) ** 2),
                ]
            )
        )
        to_units.kernel.assign(kernel)
        model.compile("sgd", "mse")
        with tf.GradientTape() as tape:
            loss = model.compute_loss(
                y=np.ones((BATCH, 1)), y_pred=model(INPUTS[simple], training=True), training=True
            )
        grads.append(tape.gradient(loss, to_units.kernel.value))
    np.testing.assert_allclose(*grads, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("estimator", ["legrad_fresh", "psa", "muprop", "st_gumbel"])
def test_units_of_two_layers_on_grids_are_vectors(estimator, monkeypatch):
    grads = []
    for shape in ((4,), (2, 2)):
        rng = np.random.default_rng(0)

        def noise(layer, logits, rows, rng=rng):
            u = rng.uniform(size=(rows, BATCH, 4)).astype("float32")
            return tf.constant(u.reshape(rows, *logits.shape))

        monkeypatch.setattr(StochasticBinary, "noise", noise)
        units = lambda seed, shape=shape: [
            keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(seed)),
            keras.layers.Reshape(shape),
            StochasticBinary(estimator),
            keras.layers.Flatten(),
        ]
        output = keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(2))
        inner = keras.Sequential([keras.Input((3,)), *units(0), *units(1), output])
        model = StochasticModel(inner)
        model.compile("sgd", "mse")
        with tf.GradientTape() as tape:
            loss = model.compute_loss(
                y=TARGETS[simple], y_pred=model(INPUTS[simple], training=True), training=True
            )
        grads.append(tape.gradient(loss, [v.value for v in inner.trainable_variables]))
    for g, e in zip(*grads, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)
    assert all(np.abs(g).max() > 1e-3 for g in grads[0][::2])


@keras.saving.register_keras_serializable(package="arm_tf_tests")
class Block(keras.layers.Layer):
    """A layer of a user's own, with stochastic units or a loss inside."""

    def __init__(self, units=False, **kwargs):
        super().__init__(**kwargs)
        self.units = binary() if units else None

    def call(self, x):
        if self.units is not None:
            return self.units(x, training=False)
        self.add_loss(tf.reduce_mean(x))
        return x


def fit_simple(model, loss="mse", y=None):
    model.compile("sgd", loss)
    model.fit(INPUTS[simple], TARGETS[simple] if y is None else y, verbose=0)


@pytest.mark.parametrize(
    "inner, loss, message",
    [
        (lambda: [keras.layers.Dense(2), Block(units=True)], "mse", "cannot be taken apart"),
        (
            lambda: [keras.layers.Dense(2), StochasticBinary("vimco")],
            "mse",
            "'vimco' .* another objective",
        ),
        (
            lambda: [
                keras.layers.Reshape((3, 1)),
                StochasticBinary("nvil"),
                keras.layers.Flatten(),
                keras.layers.Dense(2),
            ],
            "mse",
            r"'nvil' learns needs logits \[batch, units\]",
        ),
        (
            lambda: [keras.layers.Dense(13), StochasticBinary("exact"), keras.layers.Dense(2)],
            "mse",
            "at most 12 units",
        ),
        (
            lambda: [
                keras.layers.Dense(4),
                StochasticBinary("st"),
                keras.layers.Lambda(lambda b: tf.cast(b > 0.5, tf.float32)),
                keras.layers.Dense(2),
            ],
            "mse",
            "'st' needs the derivative of f",
        ),
        (
            lambda: [binary("a", 5), keras.layers.Dense(4), binary("b", 5), keras.layers.Dense(2)],
            "mse",
            "'a' and 'b' have the same seed, 5",
        ),
    ],
)
def test_what_cannot_be_done_is_said(inner, loss, message):
    with pytest.raises(ValueError, match=message):
        fit_simple(StochasticModel(keras.Sequential([keras.Input((3,)), *inner()])), loss)


class Doubled(StochasticModel):
    """A user's own model, whose outputs are others than the path's."""

    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs, training=training)


def nested():
    x = keras.Input((3,))
    return keras.Model(x, StochasticModel(simple())(x))


def encoder_inside():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), binary()])
    return keras.Sequential([keras.Input((3,)), StochasticModel(inner), keras.layers.Dense(2)])


@pytest.mark.parametrize("model", [nested, encoder_inside, lambda: Doubled(simple())])
def test_a_loss_without_the_estimators_gradients_is_refused(model):
    """Where Keras would train what follows on samples, and leave the rest as it is."""
    model = model()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Compile and fit the StochasticModel itself"):
        model.fit(INPUTS[simple], TARGETS[simple], verbose=0)
    assert np.isfinite(model.evaluate(INPUTS[simple], TARGETS[simple], verbose=0))


@pytest.mark.parametrize("estimator", ["arm", "st"])
def test_a_loop_of_ones_own_takes_compute_loss(estimator):
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    inner.add(StochasticBinary(estimator))
    inner.add(keras.layers.Dense(2))
    model = StochasticModel(inner)
    model.compile(loss="mse")
    weights = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        y = model(INPUTS[simple], training=True)
        by_hand = tf.reduce_mean((y - TARGETS[simple]) ** 2)
    with pytest.raises(ValueError, match="model.compute_loss"):
        tape.gradient(by_hand, weights)
    with tape:
        loss = model.compute_loss(y=TARGETS[simple], y_pred=y, training=True)
        more = loss + tf.reduce_mean(y)
    assert all(np.abs(grad).max() > 1e-4 for grad in tape.gradient(loss, weights))
    with pytest.raises(ValueError, match="all losses compiled"):
        tape.gradient(more, weights)


def test_steps_of_an_execution_are_one_program():
    """Several at once train as one at a time, up to rounding; what is left over, too."""
    x, y = RNG.normal(size=(11, 3)).astype("float32"), RNG.normal(size=(11, 1)).astype("float32")
    outcomes = []
    for steps in (1, 3):
        keras.utils.set_random_seed(0)
        inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
        inner.add(StochasticBinary("nvil", seed=0))
        inner.add(keras.layers.Dense(1))
        model = StochasticModel(inner)
        model.compile("adam", "mse", metrics=["mae"], jit_compile=True, steps_per_execution=steps)
        called = []
        if steps > 1:  # of six batches of two, the last of one, three are a program
            model.make_train_function()
            one_by_one = keras.Model._make_function(model, model.train_step)
            counting = lambda iterator, f=one_by_one, c=called: c.append(1) or f(iterator)
            model.train_function = program.in_one_program(model, steps, counting)
        history = model.fit(x, y, batch_size=2, epochs=3, shuffle=False, verbose=0).history
        assert len(called) == (3 if steps > 1 else 0)
        outcomes.append([history, model.get_weights()])
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *outcomes
    )


def test_callbacks_and_resuming(tmp_path):
    """Keras's callbacks; a fit that fails goes on from its backup."""

    class Failure(Exception):
        pass

    class Fail(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise Failure

    model = StochasticModel(simple())
    model.compile("adam", "mse", metrics=["mae"], steps_per_execution=2)
    callbacks = lambda: [
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras"),
        keras.callbacks.EarlyStopping(patience=9),
        keras.callbacks.TensorBoard(tmp_path / "events"),
    ]
    fit = lambda *more: model.fit(
        INPUTS[simple],
        TARGETS[simple],
        batch_size=2,
        epochs=4,
        validation_split=0.3,
        verbose=0,
        callbacks=[*callbacks(), *more],
    )
    with pytest.raises(Failure):
        fit(Fail())
    assert len(fit().history["loss"]) == 2
    loaded = keras.saving.load_model(tmp_path / "best.keras")
    assert loaded.evaluate(INPUTS[simple], TARGETS[simple], verbose=0)


def test_class_weights_and_metrics():
    inner = keras.Sequential([keras.layers.Dense(4), binary(), keras.layers.Dense(2)])
    model = StochasticModel(inner)
    model.compile("adam", labels, metrics=["accuracy"])
    y = np.arange(BATCH) % 2
    history = model.fit(INPUTS[simple], y, class_weight={0: 1.0, 1: 3.0}, verbose=0)
    assert set(history.history) == {"loss", "accuracy"}


def test_prediction_averages_samples():
    """The mean of b itself, within six standard deviations."""
    model = StochasticModel(keras.Sequential([keras.Input((3,)), binary()]))
    x = np.array([[-1.0, 0.0, 2.0]], "float32")
    mean = model.predict(x, num_samples=4000, verbose=0)
    probs = 1 / (1 + np.exp(-x))
    assert (np.abs(mean - probs) < 6 * np.sqrt(probs * (1 - probs) / 4000)).all()
    assert set(np.unique(model.predict(np.tile(x, (40, 1)), verbose=0))) == {0.0, 1.0}


def test_expectations_inside_are_left_as_they_are():
    """layer(logits, f=f) in a functional model is a value like any other, not a sample."""
    x = keras.Input((3,))
    f = lambda b: tf.reduce_sum(b, axis=-1)
    value = StochasticBinary("exact")(keras.layers.Dense(4)(x), f=f)
    model = StochasticModel(keras.Model(x, value))
    assert model(INPUTS[simple], training=True).shape == (BATCH,)
    fit_simple(model, y=np.zeros(BATCH))


def test_number_of_samples_is_checked():
    model = StochasticModel(simple())
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=f"at least 1, received {wrong}"):
            model.predict(INPUTS[simple], num_samples=wrong)
    assert model.predict(INPUTS[simple], num_samples=np.int64(2), verbose=0).shape == (BATCH, 2)


def test_a_model_whose_only_loss_comes_before_its_samples():
    """No compiled loss: the samples are worth nothing, and the penalty still trains."""
    first = keras.layers.Dense(4, activity_regularizer="l2")
    inner = keras.Sequential([keras.Input((3,)), first, binary(), keras.layers.Dense(2)])
    model = StochasticModel(inner)
    model.compile("sgd")
    before = first.kernel.numpy()
    model.fit(INPUTS[simple], verbose=0)
    assert (np.abs(first.kernel.numpy()) < np.abs(before)).any()


def eager(inner, loss="mse", **kwargs):
    model = StochasticModel(inner, **kwargs)
    model.compile("sgd", loss, run_eagerly=True)
    return model


def test_the_likeliest_bits_by_predict_model_and_layer():
    """What says more closely which bits decides: predict, then the model, then the layer."""
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), binary()])
    x = np.tile(INPUTS[simple], (20, 1))
    likeliest = inner.layers[0](x).numpy() > 0
    chosen = lambda model, **kwargs: model.predict(x, verbose=0, **kwargs)
    model = eager(inner)
    np.testing.assert_array_equal(chosen(model, deterministic=True), likeliest)
    assert (chosen(model) != likeliest).any()
    inner.layers[1].deterministic = True
    np.testing.assert_array_equal(chosen(model), likeliest)
    assert (chosen(eager(inner, deterministic=False)) != likeliest).any()
    assert (model.compute_loss(y=likeliest * 1.0, y_pred=model(x, training=True)) > 0).numpy()
    inner.layers[1].deterministic = False
    model = eager(inner, deterministic=True)
    np.testing.assert_array_equal(chosen(model), likeliest)
    assert (chosen(model, deterministic=False) != likeliest).any()
    assert StochasticModel.from_config(model.get_config()).deterministic


def test_evaluation_averages_samples():
    """The loss of the average of b, which over many samples is that of its mean."""
    inner = keras.Sequential([keras.Input((3,)), binary()])
    model = eager(inner)
    x = np.zeros((50, 3), "float32")
    evaluate = lambda **kwargs: model.evaluate(x, x + 0.5, verbose=0, **kwargs)
    assert evaluate() == pytest.approx(0.25)
    assert evaluate(num_samples=60) < 0.01  # 1 / 240 on average
    assert evaluate(deterministic=True) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="at least 1, received 0"):
        evaluate(num_samples=0)


def test_predictions_in_threads_keep_out_of_each_other_s_way():
    """Each thread has its number of samples, and numbers that alternate are traced once."""
    traced = []
    note = keras.layers.Lambda(lambda b: traced.append(1) or b)
    model = StochasticModel(keras.Sequential([keras.Input((3,)), binary(), note]))
    x = np.zeros((30, 3), "float32")
    are_bits = lambda y: set(np.unique(y)) <= {0.0, 1.0}
    predict = lambda k: model.predict(x, num_samples=k, verbose=0)
    first = [are_bits(predict(k)) for k in (1, 3)]
    before = len(traced)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda k: are_bits(predict(k)), [1, 3] * 10))
    assert first + found == [True, False] * 11
    assert len(traced) == before


def test_what_a_functional_model_says_of_itself():
    x = keras.Input((3,), name="x")
    b = binary()(keras.layers.Dense(4, name="logits")(x))
    outputs = {"cls": keras.layers.Dense(2, name="c")(b)}
    model = StochasticModel(keras.Model(x, outputs))
    assert model.inputs[0] is x and model.input_shape == (None, 3)
    assert model.output_names == ["c"] and model.outputs[0].shape == (None, 2)
    assert model.get_layer("logits").units == 4
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert "logits" in "\n".join(lines)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            lambda: StochasticBinary(64),
            r"must be a name such as 'arm', received 64; .*Dense\(units",
        ),
        (
            lambda: StochasticModel(keras.Input((3,)), keras.Input((3,))),
            "StochasticModel.keras.Mod",
        ),
        (lambda: StochasticModel(len), "must be one keras.Sequential or functional"),
    ],
)
def test_what_is_no_model_or_estimator(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "before",
    [
        lambda: [keras.layers.Dense(4, activation="sigmoid")],
        lambda: [keras.layers.Dense(4), keras.layers.ReLU()],
        lambda: [keras.layers.Dense(4), keras.layers.Activation("softplus")],
    ],
)
def test_activations_before_logits_are_warned_of(before):
    with pytest.warns(UserWarning, match="takes logits, .* leave out its activation"):
        keras.Sequential([keras.Input((3,)), *before(), binary()])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for activation in (None, "tanh", "leaky_relu"):
            dense = keras.layers.Dense(4, activation=activation)
            keras.Sequential([keras.Input((3,)), dense, keras.layers.Dropout(0.1), binary()])


def test_second_derivatives_are_refused():
    model = eager(simple())
    kernel = model.get_layer(index=0).kernel.value
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            y_pred = model(INPUTS[simple], training=True)
            loss = model.compute_loss(y=TARGETS[simple], y_pred=y_pred)
        norm = tf.reduce_sum(inner.gradient(loss, kernel) ** 2)
    with pytest.raises(ValueError, match="second derivatives"):
        outer.gradient(norm, kernel)


FLOATS = [
    (name, option.name)
    for name, row in estimators.TABLE.items()
    for option in row.options
    if isinstance(option.default, float) and row.objective == "elbo"
]


@pytest.mark.parametrize("estimator, option", FLOATS)
def test_options_that_change_are_followed(estimator, option, tmp_path):
    """A variable and a schedule give, at each step, the gradient of that step's number."""
    decay = keras.optimizers.schedules.ExponentialDecay(4.0, 1, 0.75)
    variable = keras.Variable(4.0, trainable=False)
    x, y = INPUTS[simple], TARGETS[simple]

    def build(value):
        units = StochasticBinary(estimator, seed=3, name="units", **{option: value})
        return keras.Sequential([keras.Input((3,)), units, keras.layers.Dense(2, "tanh")])

    nets = {"number": build(4.0), "variable": build(variable), "schedule": build(decay)}
    loaded = None
    for step in range(3):
        present = 4.0 * 0.75**step
        variable.assign(present)
        nets["number"] = build(present)
        if step == 2:
            path = tmp_path / "model.keras"
            eager(nets["schedule"]).save(path)
            loaded = keras.saving.load_model(path).model
            nets["loaded"] = loaded
        grads = []
        for net in nets.values():
            net.layers[1].set_weights(nets["variable"].layers[1].get_weights())
            net.layers[0].seed_generator.state.assign([3, step])
            with tf.GradientTape() as tape:
                logits = tf.constant(x)
                tape.watch(logits)
                model = eager(net)
                loss = model.compute_loss(y=y, y_pred=model(logits, training=True))
            grads.append(tape.gradient(loss, logits))
        for grad in grads[1:]:
            np.testing.assert_allclose(grads[0], grad, rtol=1e-5, atol=1e-7)
    assert loaded.layers[0].gradient_estimator.step.numpy() == 3


def test_options_of_a_variable_are_saved(tmp_path):
    variable = tf.Variable(0.25)
    build = lambda value: keras.Sequential(
        [keras.Input((3,)), StochasticBinary("st_gumbel", temperature=value)]
    )
    net = build(variable)
    with pytest.raises(TypeError):
        net.layers[0].options["temperature"] = 2.0
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras").layers[0]
    assert loaded.options["temperature"].numpy() == 0.25
    other = tf.Variable(1.0)
    net.save_weights(tmp_path / "net.weights.h5")
    build(other).load_weights(tmp_path / "net.weights.h5")
    assert other.numpy() == 0.25
    with pytest.raises(ValueError, match="latents must be an integer"):
        StochasticBinary("st_gumbel_rao", latents=tf.Variable(3))
    with pytest.raises(ValueError, match="a function keeps nothing between calls"):
        decay = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)
        expectation(lambda b: b[..., 0], tf.zeros(2), estimator="concrete", temperature=decay)


@pytest.mark.parametrize("estimator", ["arm", "relax", "legrad", "exact", "bitflip"])
def test_a_loop_of_ones_own_is_quiet(estimator, caplog):
    """Under a plain tf.function AutoGraph leaves the package alone, and converts the user's f."""
    layer, model = StochasticBinary(estimator), eager(simple())

    def f(b):
        if tf.reduce_sum(b) > 2.0:
            return tf.reduce_sum(b, -1)
        else:
            return -tf.reduce_sum(b, -1)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, f=f)) + tf.reduce_sum(expectation(f, x))
            loss += model.compute_loss(y=TARGETS[simple], y_pred=model(x, training=True))
        return tape.gradient(loss, x)

    if estimator == "relax":  # whose f has a derivative
        f = lambda b: tf.reduce_sum(b, -1)  # noqa: F811
    with caplog.at_level("WARNING", "tensorflow"):
        step(tf.constant(INPUTS[simple]))
    assert "AutoGraph" not in caplog.text

"""Any loss of a batch, in any form in which Keras takes it: right, whichever way it is evaluated.

What an estimator is given is held against the definition, N [L(one datum's samples changed) -
L(path)], with L from a plain Keras model of the bits; and the gradient against enumeration.
"""

import itertools
import warnings

import keras
import kinds
import numpy as np
import pytest
import tensorflow as tf

from arm_tf import StochasticBinary, StochasticModel, estimators
from arm_tf.expectation import GradientEstimator
from arm_tf.stochastic_model.batch_loss import BatchLoss
from arm_tf.stochastic_model.rest import Rest

L = keras.layers
BATCH, UNITS = 3, 2
EXPECTED = [name for name in kinds.KINDS if estimators.get(name).objective == "elbo"]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(BATCH, 4))


@pytest.fixture(autouse=True)
def double_precision():
    for dtype in ("float64", "float32"):
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)
        if dtype == "float64":
            keras.utils.set_random_seed(0)
            yield


def head(outputs):
    """From bits to outputs, in one of the structures that Keras knows; a function of tensors."""
    dense = lambda size, name: L.Dense(size, name=name, kernel_initializer="random_normal")
    c, r, reshape, mask = dense(2, "c"), dense(4, "r"), L.Reshape((2, 3)), L.Masking(0.0)
    steps = dense(6, "steps")
    return {
        "bits": lambda b: b,
        "one": c,
        "steps": lambda b: reshape(steps(b)),
        "masked": lambda b: mask(reshape(steps(b))),
        "list": lambda b: [c(b), r(b)],
        "dict": lambda b: {"cls": c(b), "rec": r(b)},
    }[outputs]


def stochastic(rest, estimator="arm", form="functional"):
    """A plain model of the bits, and a `StochasticModel` in one of the forms that it takes."""
    to_units, units = L.Dense(UNITS, name="to_units"), StochasticBinary(estimator)
    b, x, y = keras.Input((UNITS,), name="bits"), keras.Input((4,)), keras.Input((4,))
    plain = keras.Model(b, rest(b))
    if form == "sequential":
        return plain, StochasticModel(keras.Sequential([x, to_units, units, plain]))
    if form == "nested":
        below = keras.Model(x, units(to_units(x)))
        return plain, StochasticModel(keras.Model(y, rest(below(y))))
    return plain, StochasticModel(keras.Model(x, rest(units(to_units(x)))))


C, R = RNG.integers(0, 2, (BATCH, 2)).astype(float), RNG.normal(size=(BATCH, 4))
STEPS = RNG.integers(0, 3, (BATCH, 2))
WEIGHTS = np.array([0.5, 2.0, 1.0])
mse = lambda r: keras.losses.MeanSquaredError(reduction=r, dtype="float64")


def pairwise(y, b):
    s = tf.matmul(2 * b - 1, 2 * b - 1, transpose_b=True) / 2
    alike = tf.cast(tf.equal(y[:, :1], tf.transpose(y[:, :1])), s.dtype)
    return tf.reduce_mean((s - 2 * alike + 1) ** 2, -1)


def balance(y, p):
    """Little of what looks at the batch, beside much of what does not."""
    return tf.reduce_sum((y - p) ** 2, -1) + 1e-3 * tf.reduce_sum(tf.reduce_mean(p, 0) ** 2)


def valid_mean(y, p):
    valid = tf.cast(y > 0.5, p.dtype)
    return valid * (y - p) ** 2 / tf.reduce_sum(valid)


class Own(keras.losses.Loss):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return tf.reduce_mean((y_true - y_pred) ** 2)


categories = lambda **kwargs: keras.losses.SparseCategoricalCrossentropy(
    from_logits=True, dtype="float64", **kwargs
)
ignored = np.where(np.arange(BATCH * 2).reshape(BATCH, 2) % 3, -1, STEPS)
entropy = lambda r: keras.losses.BinaryCrossentropy(from_logits=True, reduction=r, dtype="float64")
BOTH = {"cls": C, "rec": R}

# By name: structure of the outputs, targets, compile's settings, sample weights, and the way.
CASES = {
    "name": ("one", C, dict(loss="mae"), None, "datum"),
    "sum": ("one", C, dict(loss=mse("sum")), None, "datum"),
    "no reduction": ("one", C, dict(loss=entropy(None)), None, "datum"),
    "'none', weights": ("one", C, dict(loss=entropy("none")), WEIGHTS, "datum"),
    "weights": ("one", C, dict(loss="mse"), WEIGHTS, "datum"),
    "mean with weights": ("one", C, dict(loss=mse("mean_with_sample_weight")), WEIGHTS, "datum"),
    "loss weight": ("one", C, dict(loss="mse", loss_weights=2.5), None, "datum"),
    "function": (
        "one",
        C,
        dict(loss=lambda y, p: tf.reduce_sum((y - p) ** 2, -1)),
        WEIGHTS,
        "datum",
    ),
    "ignored class": (
        "steps",
        ignored,
        dict(loss=categories(ignore_class=-1)),
        None,
        "datum",
    ),
    "ignored class, sum": (
        "steps",
        ignored,
        dict(loss=categories(ignore_class=-1, reduction="sum")),
        None,
        "datum",
    ),
    "weights of time steps": (
        "steps",
        STEPS,
        dict(loss=categories()),
        RNG.uniform(size=(BATCH, 2)),
        "datum",
    ),
    "mask of the bits": ("masked", STEPS, dict(loss=categories()), None, "output"),
    "count over the batch": ("one", C, dict(loss=valid_mean), None, "datum"),
    "list": ("list", [C, R], dict(loss=["mse", "mae"]), None, "datum"),
    "list, one loss": ("list", [C, R], dict(loss="mse"), None, "datum"),
    "list, part": ("list", [C, R], dict(loss=["mse", None]), None, "datum"),
    "list, by layer": ("list", [C, R], dict(loss={"c": "mse", "r": "mae"}), None, "datum"),
    "list, targets a dict": (
        "list",
        {"c": C, "r": R},
        dict(loss={"c": "mse", "r": "mae"}),
        None,
        "datum",
    ),
    "dict": (
        "dict",
        BOTH,
        dict(loss={"cls": "mse", "rec": "mae"}, loss_weights={"cls": 0.5, "rec": 2.0}),
        {"cls": WEIGHTS, "rec": WEIGHTS[::-1]},
        "datum",
    ),
    "dict, part": ("dict", {"cls": C}, dict(loss={"cls": "mse"}), None, "datum"),
    "dict, one mixes": (
        "dict",
        BOTH,
        dict(loss={"cls": pairwise, "rec": "mse"}),
        None,
        "output",
    ),
    "pairs": ("bits", C, dict(loss=pairwise), None, "output"),
    "pairs, weights": (
        "bits",
        C,
        dict(loss=pairwise),
        WEIGHTS,
        "output",
    ),
    "balance": ("one", C, dict(loss=balance), None, "output"),
    "one value": ("one", C, dict(loss=lambda y, p: tf.reduce_mean((y - p) ** 2)), None, "output"),
    "own __call__": ("one", C, dict(loss=Own(dtype="float64")), None, "output"),
    "dice": ("one", C, dict(loss=keras.losses.Dice(dtype="float64")), None, "output"),
}


def compiled(case, **kwargs):
    outputs, y, settings, weight, way = CASES[case]
    rest, model = stochastic(head(outputs), **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for net in (rest, model):
            net.compile("sgd", **settings)
    tensors = lambda t: keras.tree.map_structure(
        lambda leaf: None if leaf is None else tf.constant(leaf), t
    )
    return rest, model, tensors(y), tensors(weight), way


def with_bits(rest, bits, y, weight):
    """The loss of a plain Keras model at given bits."""
    return tf.reduce_sum(rest.compute_loss(None, y, rest(bits), weight))


def definition(rest, bits, y, weight):
    """f as the plain model has it: [S, BATCH, UNITS] to [S, BATCH]."""
    base = with_bits(rest, bits, y, weight)

    def f(b, **_):
        changed = lambda s, n: tf.tensor_scatter_nd_update(bits, [[n]], b[s, n][tf.newaxis])
        total = lambda s, n: with_bits(rest, changed(s, n), y, weight)
        rows = [[total(s, n) - base for n in range(BATCH)] for s in range(b.shape[0])]
        return BATCH * tf.convert_to_tensor(rows)

    return f


def ways_of(model, y, weight):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ways = model._ways_of(tf.constant(X), y, weight)
    return ways, [w for w in caught if "evaluated for the batch" in str(w.message)]


@pytest.mark.parametrize("case", CASES)
def test_what_an_estimator_is_given_is_the_definition(case):
    rest, model, y, weight, way = compiled(case)
    y_pred = model(X, training=True)
    path = keras.tree.flatten(y_pred)[0].arm_tf_path
    bits = next(path.values[s.writes[0]] for s in path.graph.steps if s.is_sampling)
    loss = model.compute_loss(X, y, path.outputs, weight, training=False)
    np.testing.assert_allclose(tf.reduce_sum(loss), with_bits(rest, bits, y, weight), rtol=1e-12)
    ways, said = ways_of(model, y, weight)
    ((site, found),) = ways.items()
    assert found == way and bool(said) == (way != "datum")
    b = tf.constant(RNG.integers(0, 2, (6, BATCH, UNITS)), "float64")
    f = Rest(path, site, BatchLoss(model, y, weight))
    offset = f(found, bits[tf.newaxis], {})
    for samples in (2, 6):  # one by one, and as many at once
        got = f(found, b[:samples], {}) - offset
        expected = definition(rest, bits, y, weight)(b[:samples])
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
        assert np.ptp(expected) > 1e-6


def gradients(model, y, weight):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(X, y, model(X, training=True), weight)
    return tape.gradient(loss, [v.value for v in model.trainable_variables])


def over_bits(model, probs):
    """All bits of the batch, with the noise that gives them and their probabilities."""
    for bits in itertools.product([0.0, 1.0], repeat=BATCH * UNITS):
        bits = np.reshape(bits, (BATCH, UNITS))
        yield bits, np.where(bits, 0.0, 1 - 1e-9), np.prod(np.where(bits, probs, 1 - probs))


@pytest.mark.parametrize(
    "case",
    [
        "pairs",
        "ignored class",
        "count over the batch",
        pytest.param("one value", marks=pytest.mark.slow),
        pytest.param("'none', weights", marks=pytest.mark.slow),
        pytest.param("dict", marks=pytest.mark.slow),
        pytest.param("balance", marks=pytest.mark.slow),
        pytest.param("mask of the bits", marks=pytest.mark.slow),
    ],
)
def test_gradient_is_that_of_the_expected_loss(case, monkeypatch):
    """Of all weights, over all bits of the batch, with the estimator that has no noise."""
    rest, model, y, weight, _ = compiled(case, estimator="exact")
    ways_of(model, y, weight)
    kernel, bias = (v.value for v in model.trainable_variables[:2])
    with tf.GradientTape() as tape:
        logits = X @ kernel + bias
        probs, total = tf.sigmoid(logits).numpy(), 0.0
        for bits, _, _ in over_bits(model, probs):
            log_q = tf.reduce_sum(bits * logits - tf.nn.softplus(logits))
            total += tf.exp(log_q) * with_bits(rest, tf.constant(bits), y, weight)
    variables = [v.value for v in model.trainable_variables]
    expected = tape.gradient(total, variables)
    got = 0
    for _, u, probability in over_bits(model, probs):
        noise = lambda layer, logits, rows, u=u: tf.constant(np.tile(u, (rows, 1, 1)))
        monkeypatch.setattr(StochasticBinary, "noise", noise)
        grads = gradients(model, y, weight)
        weighed = [0 if g is None else probability * g.numpy() for g in grads]
        got = [a + b for a, b in zip(got, weighed, strict=True)] if got else weighed
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, 0 if e is None else e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["sequential", "functional", "nested"])
@pytest.mark.parametrize("case", ["pairs", "ignored class", "dict", "one value"])
@pytest.mark.parametrize(
    "estimator", [pytest.param(e, marks=() if e == "arm" else pytest.mark.slow) for e in EXPECTED]
)
def test_estimators_have_the_definition_s_gradient(estimator, case, form, monkeypatch):
    """In every form of model: the row of the table at the plain model's f, with the same noise.

    For a loss that is a sum the model's f has another constant, which `reinforce` feels.
    """
    if form == "sequential" and case == "dict":
        return
    rest, model, y, weight, _ = compiled(case, estimator=estimator, form=form)
    ((site, way),) = ways_of(model, y, weight)[0].items()
    layer = next(v for v in model._flatten_layers() if isinstance(v, StochasticBinary))
    row, asked = layer.gradient_estimator, []
    rng = np.random.default_rng(1)

    def noise(layer, logits, rows):
        asked.append(tf.constant(rng.uniform(size=(rows, *logits.shape))))
        return asked[-1]

    monkeypatch.setattr(StochasticBinary, "noise", noise)
    monkeypatch.setattr(GradientEstimator, "update", lambda self, new: [])  # learns nothing yet
    to_units = next(v for v in model._flatten_layers() if v.name == "to_units")
    kernel, bias = to_units.kernel, to_units.bias
    with tf.GradientTape() as tape:
        y_pred = model(X, training=True)
        loss = model.compute_loss(X, y, y_pred, weight)
    got = tape.gradient(loss, bias.value)
    logits = X @ kernel.value + bias.value
    bits = tf.cast(asked[0][0] < tf.sigmoid(logits), "float64")
    path = keras.tree.flatten(y_pred)[0].arm_tf_path
    constant = Rest(path, site, BatchLoss(model, y, weight))(way, bits[tf.newaxis], {})
    f = definition(rest, bits, y, weight)
    estimate = row.run(lambda b, **_: f(b) + constant, logits, asked[1])
    expected = tf.reduce_sum(estimate.grad_logits, axis=0) / BATCH
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_wrong_divisor_is_seen(monkeypatch):
    """One datum's addend taken for a third more fails what the matrix above asserts."""
    plain = BatchLoss.addends

    def wrong(self, y_pred):
        return [addend * np.array([[1.0], [1.3], [1.0]]) for addend in plain(self, y_pred)]

    monkeypatch.setattr(BatchLoss, "addends", wrong)
    _, model, y, weight, _ = compiled("ignored class")
    ways, _ = ways_of(model, y, weight)
    assert set(ways.values()) != {"datum"}  # found out, and evaluated in another way


@pytest.mark.parametrize("per_datum", [True, False])
def test_what_the_user_says_of_the_loss(per_datum):
    outputs, y, settings, _, _ = CASES["pairs"]
    _, model = stochastic(head(outputs))
    model.per_datum = per_datum
    model.compile("sgd", **settings, run_eagerly=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        if per_datum:
            with pytest.raises(ValueError, match="per_datum=True refuses that"):
                model.fit(X, y, verbose=0)
        else:
            model.fit(X, y, verbose=0)


@keras.saving.register_keras_serializable(package="arm_tf_tests")
class Penalty(L.Layer):
    """A layer with a loss of its own, of the whole batch."""

    def call(self, x):
        self.add_loss(1e-3 * tf.reduce_mean(x) ** 2)
        return x


@keras.saving.register_keras_serializable(package="arm_tf_tests")
class Gates(L.Layer):
    """Logits [1, UNITS], one vector for the batch."""

    def build(self, shape):
        self.logits = self.add_weight(shape=(1, UNITS), name="logits")

    def call(self, x):
        return tf.identity(self.logits.value)

    def compute_output_shape(self, shape):
        return (1, UNITS)


def binary(**kwargs):
    return StochasticBinary("arm", **kwargs)


def sequence(*layers):
    return keras.Sequential([keras.Input((4,)), L.Dense(2), *layers, L.Dense(2)])


def folded():
    x = keras.Input((4,))
    b = binary()(L.Dense(UNITS)(keras.ops.reshape(x, (-1, 2))))
    return keras.Model(x, L.Dense(2)(L.Flatten()(keras.ops.reshape(b, (-1, 2, UNITS)))))


def gated():
    x = keras.Input((4,))
    return keras.Model(x, L.Dense(2)(L.Dense(UNITS)(x) * binary()(Gates()(x))))


def remembering():
    x = keras.Input((4,), batch_size=BATCH)
    b = binary()(L.Reshape((2, 2))(x))
    return keras.Model(x, L.Dense(2)(L.GRU(2, stateful=True)(b)))


def masked():
    x = keras.Input((4,))
    steps = L.Masking(0.0)(L.Reshape((2, 2))(x))
    return keras.Model(x, L.LSTM(2)(binary()(L.Dense(UNITS)(steps))))


def regularised():
    dense = L.Dense(3, activity_regularizer="l1", kernel_regularizer="l2")
    return sequence(binary(activity_regularizer="l2"), dense)


WHOLE = {
    "normalised": (lambda: sequence(binary(), L.BatchNormalization()), "batch"),
    "folded": (folded, "batch"),
    "gated": (gated, "batch"),
    "penalised": (lambda: sequence(binary(), Penalty()), "batch"),
    "remembering": (remembering, "batch"),
    "masked": (masked, "datum"),
    "regularised": (regularised, "datum"),
    "normalised by datum": (lambda: sequence(binary(), L.LayerNormalization()), "datum"),
}


@pytest.mark.parametrize("build", WHOLE)
def test_layers_that_see_the_batch_or_keep_a_state(build):
    """f against the same model run on whole batches, with one row of its bits given."""
    build, way = WHOLE[build]
    inner, x = build(), np.where([[1, 1, 0, 0], [1] * 4, [0, 0, 1, 1]], X, 0.0)
    model = StochasticModel(inner, per_datum=False)
    model.compile("sgd", "mse")
    states = [layer.states for layer in inner.layers if getattr(layer, "states", None)]
    variables = [*inner.non_trainable_variables, *keras.tree.flatten(states)]
    before = [v.numpy() for v in variables]
    y_pred = model(x, training=True)
    path = y_pred.arm_tf_path
    model.compute_loss(x, C, path.outputs, training=False)
    ((site, found),) = model._ways_of(tf.constant(x), tf.constant(C), None).items()
    assert found == way
    moved = [v.numpy() for v in variables]
    bits = path.values[path.graph.steps[site].writes[0]].numpy()
    b = RNG.integers(0, 2, (2, *bits.shape)).astype(float)
    f = Rest(path, site, BatchLoss(model, C, None))
    got = f(found, tf.reshape(b, [2, len(bits), -1]), {})
    got -= f(found, bits.reshape(1, len(bits), -1), {})
    for v, value in zip(variables, moved, strict=True):  # the path moved them, and nothing else
        np.testing.assert_array_equal(v.numpy(), value)
    layer = path.graph.steps[site].operation

    def total(bits):
        for v, value in zip(variables, before, strict=True):
            v.assign(value)
        given = StochasticModel(inner)
        given.compile("sgd", "mse")
        with pytest.MonkeyPatch.context() as patch:
            noise = lambda layer, logits, rows: tf.constant(np.where(bits, 0.0, 1 - 1e-9))[None]
            patch.setattr(StochasticBinary, "noise", noise)
            y_pred = given(x, training=True)
            return given.compute_loss(x, C, y_pred.arm_tf_path.outputs, training=False)

    for s, n in itertools.product(range(2), range(len(bits))):
        changed = bits.copy()
        changed[n] = b[s, n]
        expected = len(bits) * (total(changed) - total(bits))
        np.testing.assert_allclose(got[s, n], expected, rtol=0, atol=1e-12, err_msg=layer.name)


@pytest.mark.parametrize("build", ["normalised", "remembering", "gated"])
def test_they_train_compiled(build):
    model = StochasticModel(WHOLE[build][0](), per_datum=False)
    model.compile("sgd", "mse", jit_compile=True)
    before = [w.numpy() for w in model.trainable_weights]
    model.fit(np.tile(X, (2, 1)), np.tile(C, (2, 1)), batch_size=BATCH, verbose=0)
    assert all((a != b.numpy()).any() for a, b in zip(before, model.trainable_weights, strict=True))


def test_metrics_are_named_after_outputs():
    _, model, y, _, _ = compiled("dict")
    history = model.fit(X, CASES["dict"][1], verbose=0).history
    assert set(history) == {"loss", "cls_loss", "rec_loss"}

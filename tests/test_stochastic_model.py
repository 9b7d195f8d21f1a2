"""Models trained under Keras's own `compile`: gradients against enumeration and other doors."""

import itertools

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from arm_tf import StochasticBinary, StochasticModel, estimators, layers, models, stochastic_model

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
        return tf.constant(u, layers.precise_dtype(logits.dtype))


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


def term_gradients(model, noise, term, x, y, sample_weight=None):
    """Gradient of one addend of the loss: "path", or the estimators of a layer."""
    weights = by_layer(model.model)
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        if term == "path":
            total = model.compute_loss(x, y, y_pred, sample_weight, training=False)
        path = y_pred.arm_tf_path
        datum_loss = stochastic_model._DatumLoss(model, y, y_pred, sample_weight)
        for site in path.graph.after:
            surrogates = list(path._surrogates(site, datum_loss))
            if path.graph.steps[site].operation.name == term:
                total = surrogates[0]
    return [
        np.zeros(w.shape) if g is None else g.numpy()
        for w, g in zip(weights, tape.gradient(total, [w.value for w in weights]), strict=True)
    ]


def expected_gradients(net, estimator, monkeypatch, **kwargs):
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
            on_path = owner == "path" and name != term and name not in after.get(term, [])
            if owner == term or on_path:
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
        grads = term_gradients(model, noise, term, tile(X), tile(Y), cell_weights)
        total = [a + b for a, b in zip(total, grads, strict=True)] if total else grads
    return weights, total


@pytest.mark.parametrize("estimator", sorted(oracles.LINEAR_IN_CELLS))
@pytest.mark.parametrize("net", NETS)
def test_expected_gradient_is_the_gradient_of_the_expected_loss(net, estimator, monkeypatch):
    weights, got = expected_gradients(net, estimator, monkeypatch)
    for g, expected in zip(got, exact_gradients(net, weights), strict=True):
        np.testing.assert_allclose(g, expected, rtol=0, atol=1e-12)


def test_a_wrong_gradient_fails_the_proof(monkeypatch):
    """The proof sees a gradient that is off by a thousandth in one unit."""
    plain = layers.at_any_precision

    def wrong(*args):
        estimate = plain(*args)
        scale = tf.constant([1.001, 1.0][: estimate.grad_logits.shape[-1]], tf.float64)
        return estimate._replace(grad_logits=scale * estimate.grad_logits)

    monkeypatch.setattr(layers, "at_any_precision", wrong)
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

"""The binding of estimators to TensorFlow's gradients, and the Keras layer."""

import pathlib
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from kinds import each_kind

import arm_tf
from arm_tf import chain, estimators, layers
from arm_tf.expectation import GradientEstimator

RNG = np.random.default_rng(0)
LOGITS = tf.constant(RNG.normal(size=(5, 3)), tf.float32)


def test_variables_inside_f_get_the_gradient_of_the_average():
    weights = tf.Variable(RNG.normal(size=3))
    logits = tf.constant(RNG.normal(size=(4, 3)))
    u = tf.constant(RNG.uniform(size=(2, 4, 3)))
    f = lambda b: tf.tanh(tf.linalg.matvec(b, weights))
    with tf.GradientTape() as tape:
        value = arm_tf.expectation(f, logits, num_samples=2, u=u)
    b = tf.concat(
        [tf.cast(u < tf.sigmoid(logits), u.dtype), tf.cast(u > tf.sigmoid(-logits), u.dtype)], 0
    )
    with tf.GradientTape() as plain:
        average = tf.reduce_mean(f(b), axis=0)
    np.testing.assert_allclose(value, average, atol=1e-14)
    np.testing.assert_allclose(
        tape.gradient(value, weights), plain.gradient(average, weights), atol=1e-14
    )


def test_upstream_gradient_multiplies():
    u = tf.constant(RNG.uniform(size=(1, 5, 3)), tf.float32)
    scale = tf.constant([1.0, -2.0, 0.0, 0.5, 3.0])

    def gradient(weigh):
        with tf.GradientTape() as tape:
            tape.watch(LOGITS)
            value = weigh(arm_tf.expectation(lambda b: tf.reduce_sum(b**2, -1), LOGITS, u=u))
        return tape.gradient(value, LOGITS).numpy()

    np.testing.assert_allclose(
        gradient(lambda v: v * scale), gradient(lambda v: v) * scale.numpy()[:, None], rtol=1e-6
    )


def test_eager_graph_and_xla_agree():
    """Those of every estimator by itself are in `test_estimators`."""
    u = tf.constant(RNG.uniform(size=(3, 5, 3)), tf.float32)

    def value_and_gradient(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = arm_tf.expectation(
                lambda b: tf.reduce_sum(b[..., :2] * b[..., 1:], -1),
                logits,
                num_samples=3,
                u=u,
            )
        return value, tape.gradient(value, logits)

    eager = value_and_gradient(LOGITS)
    for jit in (False, True):
        compiled = tf.function(value_and_gradient, jit_compile=jit)(LOGITS)
        for got, expected in zip(compiled, eager, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    "estimator", each_kind(sorted(n for n, row in estimators.TABLE.items() if not row.rule))
)
def test_one_vector_of_double_precision_logits_in_a_graph(estimator):
    @tf.function
    def value_and_gradient(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            f = lambda b: tf.reduce_sum(b[..., :2] * b[..., 1:], -1)
            value = arm_tf.expectation(f, logits, estimator=estimator, seed=0)
        return value, tape.gradient(value, logits)

    value, grad = value_and_gradient(tf.constant(RNG.normal(size=3)))
    assert value.shape == () and grad.shape == (3,) and grad.dtype == tf.float64


def test_seed_determines_the_noise():
    f = lambda b: tf.reduce_sum(b * [1.0, 2.0, 4.0], -1)
    logits = tf.zeros([100, 3])
    run = lambda **kwargs: arm_tf.expectation(f, logits, estimator="ar", **kwargs).numpy()
    for seed in (1, np.int64(1), (1, 0)):
        np.testing.assert_array_equal(run(seed=seed), run(seed=1))
    assert (run(seed=1) != run(seed=2)).any() and (run(seed=(1, 1)) != run(seed=1)).any()
    assert (run() != run()).any()
    pairs = arm_tf.expectation(f, logits, seed=1, num_samples=np.int64(2)).numpy()
    assert (pairs == 3.5).all()  # u = 1 - u at even odds: complementary pairs


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(estimator="nope"), "Unknown estimator 'nope'"),
        (dict(num_samples=0), "num_samples must be an integer of at least 1 for 'arm', received 0"),
        (dict(num_samples=1.5), "received 1.5"),
        (dict(u=tf.zeros([1, 4, 3])), r"u must have shape .* \(1, 5, 3\), received \(1, 4, 3\)"),
        (dict(u=tf.zeros([1, 5, 3]), seed=1), "received both"),
        (dict(logits=tf.zeros([5, 3], tf.int32)), "received dtype int32"),
        (dict(logits=tf.constant(0.5)), r"shape \(\)"),
        (dict(f=LOGITS), "f must be a function of the samples, received <tf.Tensor"),
        (dict(f=lambda b: None), "f must map samples .* received None"),
        (dict(n_samples=2), r"'n_samples' for 'arm' \(did you mean 'num_samples'\?\)"),
        (dict(f=lambda b: b), r"received values of shape \(2, 5, 3\)"),
        (dict(f=lambda b: tf.zeros([2, 5], tf.float64)), "received float64"),
    ],
)
def test_errors_name_what_was_received(change, message):
    arguments = {"f": lambda b: tf.reduce_sum(b, -1), "logits": LOGITS, **change}
    with pytest.raises(ValueError, match=message):
        arm_tf.expectation(arguments.pop("f"), arguments.pop("logits"), **arguments)


def test_one_value_for_a_batch_of_unknown_size_is_refused():
    f = lambda b: tf.reduce_mean(tf.reduce_sum(b, -1), axis=1, keepdims=True)

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def value(logits):
        return arm_tf.expectation(f, logits)

    assert value(tf.zeros([1, 3])).shape == 1
    with pytest.raises(tf.errors.InvalidArgumentError, match="f must map samples"):
        value(tf.zeros([4, 3]))


def test_path_expectation_refuses_a_wrong_number_of_noise_rows():
    with pytest.raises(
        ValueError, match=r"u must have 4 rows of noise, received shape \(3, 5, 3\)"
    ):
        chain.path_expectation(
            lambda path, logits: 0,
            [tf.identity] * 2,
            LOGITS,
            tf.zeros([3, 5, 3]),
            [GradientEstimator("arm", 3) for _ in range(2)],
        )


SHARED = {  # later layers' noise, where not every evaluation has its own: as many, of K samples
    "ram": lambda k, v: k,
    "bitflip": lambda k, v: k,
    "ugc": lambda k, v: 2 * k,
}


@pytest.mark.parametrize(
    "estimator",
    sorted(
        name
        for name, row in estimators.TABLE.items()
        if row.objective == "elbo" and not row.derivative and not row.through_layers
    ),
)
def test_samples_are_continued_independently_unless_an_estimator_shares_the_noise(estimator):
    """Later units of even odds, which say what noise they had, whatever the sample before."""
    units, later = 3, []

    def f(path, logits):
        later.append(path[1].numpy())
        return tf.reduce_sum(path[0], axis=-1) + tf.zeros(path[1].shape[:-1])

    each = [GradientEstimator(estimator, 3), GradientEstimator(estimator, 3)]
    maps = [tf.identity, lambda b: tf.zeros([*b.shape[:-1], 3])]
    rows = chain.path_noise_rows(each)
    u = tf.constant(RNG.uniform(size=(rows, 100, units)), tf.float32)
    chain.path_expectation(f, maps, tf.zeros([100, units]), u, each)
    (first, _), num_samples = later, each[0].num_samples
    assert len(first) == each[0].evaluations
    own = SHARED.get(estimator, lambda k, v: len(first))(num_samples, units)
    assert len(np.unique(first, axis=0)) == own
    np.testing.assert_array_equal(first, np.resize(first[:own], first.shape))


@keras.saving.register_keras_serializable(package="arm_tf_tests")
class Autoencoder(keras.Model):
    """A model of a user's own: eight binary units between four pixels and four pixels."""

    def __init__(self, estimator="arm", **kwargs):
        super().__init__(**kwargs)
        self.estimator = estimator
        self.encode = keras.layers.Dense(8, kernel_initializer=keras.initializers.GlorotUniform(1))
        self.code = layers.StochasticBinary(estimator, num_samples=2, seed=3)
        self.decode = keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(2))

    def call(self, x):
        def error(b):
            return tf.reduce_sum(
                tf.nn.sigmoid_cross_entropy_with_logits(
                    labels=tf.broadcast_to(x, [b.shape[0], *tf.unstack(tf.shape(x))]),
                    logits=self.decode(b),
                ),
                axis=-1,
            )

        logits = self.encode(x)
        self.add_loss(tf.reduce_mean(self.code(logits, f=error)))
        return self.decode(self.code(logits))

    def get_config(self):
        return {**super().get_config(), "estimator": self.estimator}


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_layer_trains_in_a_model_of_ones_own(jit_compile, tmp_path):
    x = np.tile(np.eye(4, dtype="float32"), (64, 1))
    model = Autoencoder()
    model.compile(optimizer=keras.optimizers.Adam(0.1), jit_compile=jit_compile)
    model.fit(x, epochs=100, batch_size=32, verbose=0, shuffle=False)
    without_code = -4 * (0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert model.evaluate(x, verbose=0) < 0.5 * without_code

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.code.estimator, loaded.code.num_samples, loaded.code.seed) == ("arm", 2, 3)
    for saved, restored in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(saved.numpy(), restored.numpy())
    loaded.run_eagerly = True
    loaded.fit(x[:32], verbose=0)


def test_layer_samples_with_the_right_frequencies():
    logits = tf.tile(tf.constant([[-1.0, 0.0, 2.0]]), [20000, 1])
    b = layers.StochasticBinary(seed=0)(logits).numpy()
    assert set(np.unique(b)) == {0.0, 1.0}
    probs = 1 / (1 + np.exp([1.0, 0.0, -2.0]))
    # Six standard deviations: a false failure in 5e8 seeds; the seed is fixed.
    assert (np.abs(b.mean(0) - probs) < 6 * np.sqrt(probs * (1 - probs) / 20000)).all()


def test_nested_layers_train_both():
    """f of the first layer may itself be an expectation over a second layer."""
    first, second = (layers.StochasticBinary(seed=s) for s in (1, 2))
    weights = tf.Variable(RNG.normal(size=(3, 2)), dtype=tf.float32)
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        value = first(
            logits.value(),
            f=lambda b: second(tf.tensordot(b, weights, 1), f=lambda c: tf.reduce_sum(c**2, -1)),
        )
    assert value.shape == (5,)
    for grad in tape.gradient(value, [logits, weights]):
        assert np.abs(grad).max() > 0


def test_gradient_through_a_sample_is_refused():
    layer = layers.StochasticBinary()
    with tf.GradientTape() as tape:
        tape.watch(LOGITS)
        total = tf.reduce_sum(layer(LOGITS))
    with pytest.raises(
        ValueError, match=r"call the StochasticBinary layer as layer\(logits, f=f\)"
    ):
        tape.gradient(total, LOGITS)


def test_layer_errors_name_what_was_received():
    with pytest.raises(ValueError, match="Unknown estimator 'nope'"):
        layers.StochasticBinary("nope")
    with pytest.raises(ValueError, match="received 0"):
        layers.StochasticBinary(num_samples=0)
    with pytest.raises(ValueError, match="f must be a function of the samples, received 3"):
        layers.StochasticBinary()(LOGITS, f=3)


def test_config_round_trips():
    layer = layers.StochasticBinary("ar", num_samples=3, seed=7, name="code", dtype="float64")
    assert layers.StochasticBinary.from_config(layer.get_config()).get_config() == (
        layer.get_config()
    )


ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = [
    example
    for page in ("README.md", "docs/model.md")
    for example in re.findall(
        r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
    )
]


def test_readme_example_estimates_a_gradient():
    """At probability 1/2 the pair differs: f's mean, and (f(1) - f(0)) |u - 1/2|."""
    (example,) = (e for e in EXAMPLES if "arm_tf.expectation(" in e and "Joint" not in e)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["value"].numpy() == pytest.approx((0.499**2 + 0.501**2) / 2)
    assert 0 < names["grad_logits"].numpy()[0] <= (0.501**2 - 0.499**2) / 2


def test_readme_example_learns_to_compress(capsys):
    (example,) = (e for e in EXAMPLES if "StochasticModel" in e)
    assert len(example.splitlines()) < 25
    keras.utils.set_random_seed(0)
    names = {"__name__": "readme"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec(compile(example, "README.md", "exec"), names)
    assert names["wrong"] < 0.005
    assert f"{names['wrong']:.1%} of the pixels" in capsys.readouterr().out


def test_documented_example_finds_the_exact_posterior():
    """With orthogonal columns the posterior is a product, and its log-odds are known."""
    (example,) = (e for e in EXAMPLES if "JointDistribution" in e)
    tf.random.set_seed(0)
    names = {"__name__": "model"}
    exec(compile(example, "docs/model.md", "exec"), names)
    design, y = names["design"], names["y"]
    exact = design.T @ y - 0.5 * (design**2).sum(axis=0)
    found = names["logits"].numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), 1 / (1 + np.exp(-exact)), atol=0.02)
    assert (exact[:2] > 2).all() and (exact[2:] < -2).all()  # far from where it began


def test_documented_recurrent_example_learns():
    """From chance, log 2 nats, once the first input is passed on through two steps of bits."""
    (example,) = (e for e in EXAMPLES if "class Remember" in e)
    keras.utils.set_random_seed(0)
    names = {"__name__": "model"}
    exec(compile(example, "docs/model.md", "exec"), names)
    x = np.random.default_rng(0).normal(size=(1000, 3)).astype("float32")
    model = names["Remember"]()
    model.compile(keras.optimizers.Adam(0.05))
    y = (x[:, 0] > 0).astype("float32")
    losses = model.fit(x, y, batch_size=50, epochs=15, verbose=0).history["cross_entropy"]
    assert losses[0] > 0.6 and losses[-1] < 0.5

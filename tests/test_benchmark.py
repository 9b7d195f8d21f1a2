"""The benchmark: its plain reference is the same mathematics, and it finds a step's products."""

import numpy as np
import pytest
import tensorflow as tf
from small_runs import assert_one_line

from arm_tf import data, experiments, models
from arm_tf.benchmark import cost, plain_reference
from arm_tf.benchmark.bench import Bench
from arm_tf.benchmark.history import compare_with_history
from arm_tf.benchmark.products import products_alone, products_of
from arm_tf.errors import RunError
from arm_tf.training.config import Config

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("layers, network", [(1, "linear"), (1, "nonlinear"), (2, "linear")])
def test_plain_reference_has_the_models_elbo_and_learns(layers, network):
    step, elbo, (encoder, decoder) = plain_reference.make_step(
        layers, network, units=5, pixels=9, learning_rate=0.01
    )
    model = models.BinaryVAE(9, layers, network, units=5)
    for ours, plain in zip([*model.encoder, *model.decoder], [*encoder, *decoder], strict=True):
        ours.set_weights(plain.get_weights())
    x = tf.constant(np.tile(RNG.integers(0, 2, (1, 9)), (20, 1)), tf.float32)
    codes = [tf.constant(RNG.integers(0, 2, (20, 5)), tf.float32) for _ in range(layers)]
    logits = [m(b) for m, b in zip(model.encoder_maps, [x, *codes], strict=False)]
    expected = model.log_weight(x, [b[tf.newaxis] for b in codes], [p[tf.newaxis] for p in logits])
    np.testing.assert_allclose(elbo(x, codes), expected[0], rtol=1e-5)
    losses = [float(step(x)) for _ in range(200)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 3


def test_batches_are_shuffled_images():
    images = RNG.integers(0, 2, (40, 6)).astype(np.uint8)
    feed = iter(plain_reference.batches(images, 20))
    epoch = np.concatenate([next(feed).numpy(), next(feed).numpy()])
    assert epoch.dtype == np.float32 and (epoch != images).any()
    np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(images, axis=0))


def test_products_of_a_training_step_are_found_and_taken():
    images = RNG.integers(0, 2, (100, 784)).astype(np.uint8)
    dataset = data.Dataset("glyphs", images, images, images, False, None, "")
    bench = Bench(dataset, units=24, batch_size=20, steps_per_loop=2)
    products = bench.products()
    bench.close()
    pixels, units, batch = 784, 24, 20
    assert sorted((p.m, p.k, p.n) for p in products) == sorted(
        [
            (batch, pixels, units),  # encoder
            (2 * batch, units, pixels),  # decoder of the pair
            (batch, units, pixels),  # decoder of the independent sample
            (pixels, batch, units),  # gradient of the encoder
            (units, batch, pixels),  # gradient of the decoder
        ]
    )
    assert np.isfinite(products_alone(products, 3)())


def test_products_in_a_loop_are_told_from_those_outside():
    @tf.function(jit_compile=True, autograph=False)
    def program(a, b):
        first = tf.matmul(a, b, transpose_a=True)
        body = lambda i, c: (i + 1, tf.matmul(c, c, transpose_b=True))
        return tf.while_loop(lambda i, c: i < 3, body, (0, first))[1]

    arguments = tf.ones([70, 60]), tf.ones([70, 60])
    text = program.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    outside, inside = sorted(products_of(text), key=lambda p: p.in_loop)
    assert (outside.m, outside.k, outside.n, outside.in_loop) == (60, 70, 60, False)
    assert (inside.m, inside.k, inside.n, inside.in_loop) == (60, 60, 60, True)
    assert outside.shapes == ((70, 60), (70, 60)) and inside.shapes == ((60, 60), (60, 60))


def test_unknown_parts_are_one_line(call):
    process = call("benchmark", "--parts=steps,speed")
    assert_one_line(process, "--parts takes any of steps, fit, evaluation", status=(2,))


def test_history_notices_a_slower_step(tmp_path):
    def results(ratio, cores=2):
        spread = {"median": ratio, "low": ratio, "high": ratio}
        measured = {"time_over_products": spread, "speed_over_plain": spread}
        return {"cores": cores, "tensorflow": "2.21.0", "steps": {"linear": measured}}

    history = tmp_path / "history.csv"
    compare_with_history(results(9.0), history, record=False)  # none to compare with
    for ratio, cores in ((5.0, 2), (2.0, 2), (9.0, 4)):
        compare_with_history(results(ratio, cores), history, record=True)
    assert len(history.read_text(encoding="utf-8").splitlines()) == 4
    compare_with_history(results(2.5), history, record=False)
    with pytest.raises(RunError, match="linear takes 2.70 times its products, 2.00 in"):
        compare_with_history(results(2.7), history, record=False)


def test_speeds_are_of_an_epoch_of_each_estimator(monkeypatch):
    """The faster one comes first; an epoch of a dynamic set draws its bits."""
    drawn = []
    epoch = data.Dataset.epoch
    monkeypatch.setattr(data.Dataset, "epoch", lambda *given: drawn.append(given) or epoch(*given))
    linear = experiments.find("yin_zhou_2019/mnist_static-linear").settings

    def measure(functions, rounds):
        for function, work in functions.values():
            assert work == Config().steps_per_loop
            function()
        seconds = {"arm": [4.0, 5.0, 8.0], "reinforce": [1.0, 2.0, 2.0]}
        return {name: np.array(seconds[name]) for name in functions}

    monkeypatch.setattr(cost, "measure", measure)
    static, dynamic = (
        {**linear, "dataset": name, "units": 4, "steps_per_loop": 10}
        for name in ("mnist_static", "mnist_dynamic")
    )
    speeds = cost.measure_speeds(
        {
            ("static", "arm"): {**static, "epochs": 1, "eval_every": 1},
            ("static", "reinforce"): {**static, "estimator": "reinforce"},
            ("dynamic", "arm"): dynamic,
        },
        rounds=2,
    )
    arm = {"median": 0.2, "low": pytest.approx(0.1625), "high": pytest.approx(0.225)}
    assert speeds["dynamic"] == {"arm": arm}
    assert list(speeds["static"]) == ["reinforce", "arm"]
    assert sum(dataset.dynamic for dataset, *_ in drawn) == 2  # to compile, and a call
    assert sum(not dataset.dynamic for dataset, *_ in drawn) == 2


def test_speeds_of_no_runs_or_beside_an_export_are_one_line(call, tmp_path):
    for flags, message in {
        f"--speeds={tmp_path}": "There are no finished runs of a paper's experiment in",
        f"--speeds={tmp_path} --export=there": "--export and --speeds are two programs",
    }.items():
        assert_one_line(call("benchmark", *flags.split()), message)

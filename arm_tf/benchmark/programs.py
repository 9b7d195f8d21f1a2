"""Steps, `fit` and evaluation, against what they consist of."""

from __future__ import annotations

import concurrent.futures
import functools
import typing
from collections.abc import Callable

import numpy as np

from arm_tf.benchmark.bench import MODELS, Bench
from arm_tf.benchmark.products import products_alone, products_of
from arm_tf.benchmark.timing import as_text, measure, ratio, spread
from arm_tf.data import Dataset
from arm_tf.training import config

if typing.TYPE_CHECKING:
    from arm_tf.stochastic_model import StochasticModel

_PLAIN_STEPS = 20  # in one measurement
_EPOCHS = 5  # of a call of fit, which takes a while before its first step
_EVALUATED = (1000, 1000)  # images and samples of the test bound; its time grows with either


def measure_steps(dataset: Dataset, rounds: int) -> dict[str, typing.Any]:
    """Training steps of the three models of the paper, by model; a dict for each."""
    from arm_tf.benchmark import plain_reference

    results: dict[str, dict[str, typing.Any]] = {}
    for name, settings in MODELS.items():
        bench = Bench(dataset, **settings)
        size = bench.config.batch_size
        feed = iter(plain_reference.batches(dataset.train, size))

        def plain(jit, settings=settings, feed=feed):
            layers, network = settings.get("layers", 1), settings.get("network", "linear")
            step = plain_reference.make_step(layers, network, jit=jit)[0]
            return lambda: [step(next(feed)) for _ in range(_PLAIN_STEPS)][-1].numpy()

        products = bench.products()
        nothing = bench.arguments(0)
        functions = {
            "loop": (bench.run.run_steps, bench.steps),
            "products": (products_alone(products, bench.steps), bench.steps),
            "plain": (plain(False), _PLAIN_STEPS),
            "plain, compiled": (plain(True), _PLAIN_STEPS),
            "noise": (
                lambda feed=bench.run.feed: [u.numpy() for u in feed.noise(0)], bench.steps
            ),
            "optimiser": (bench.optimizer_steps(), bench.steps),
            "boundary": (lambda n=nothing, b=bench: b.learner.take_steps(*n)[0].numpy(),
                         bench.steps),
        }  # fmt: skip
        seconds = measure(functions, rounds)
        best_plain = min((seconds["plain"], seconds["plain, compiled"]), key=np.median)
        microseconds = {part: 1e6 * float(np.median(s)) for part, s in seconds.items()}
        named = ("products", "noise", "optimiser", "boundary")
        rest = microseconds["loop"] - sum(microseconds[part] for part in named)
        results[name] = {
            "steps_per_second": spread(1 / seconds["loop"]),
            "plain_steps_per_second": spread(1 / best_plain),
            "speed_over_plain": ratio(best_plain, seconds["loop"]),
            "time_over_products": ratio(seconds["loop"], seconds["products"]),
            "gigaflops_of_products": 2e-9
            * sum(p.m * p.k * p.n for p in products)
            / float(np.median(seconds["products"])),
            "microseconds": {**microseconds, "elementwise and rest": rest},
        }
        bench.close()
        result = results[name]
        print(
            f"{name:11} {result['steps_per_second']['median']:6.0f} steps/s, "
            f"{as_text(result['speed_over_plain'])} x plain "
            f"({result['plain_steps_per_second']['median']:.0f}), "
            f"{as_text(result['time_over_products'])} x products\n"
            f"{'':11} µs a step: "
            + ", ".join(f"{part} {value:.0f}" for part, value in result["microseconds"].items()),
            flush=True,
        )
    return results


def keras_vae(pixels: int, units: int = 200) -> StochasticModel:
    """The paper's linear VAE as a functional model, for `arm_tf.StochasticModel`.

    Outputs are the logits of the pixels and log q(b|x) - log p(b), float [batch, 1].
    """
    import keras
    import tensorflow as tf

    import arm_tf
    from arm_tf import bernoulli

    class Divergence(keras.layers.Layer):
        def build(self, shape):
            self.prior_logits = self.add_weight(shape=shape[-1:], initializer="zeros")

        def call(self, b, logits):
            log_q = bernoulli.log_prob(b, tf.stop_gradient(logits))
            return (log_q - bernoulli.log_prob(b, self.prior_logits))[:, tf.newaxis]

        def compute_output_spec(self, b, logits):
            return keras.KerasTensor((None, 1))

    x = keras.Input((pixels,))
    symmetric = keras.layers.Rescaling(2.0, -1.0)
    logits = keras.layers.Dense(units)(symmetric(x))
    b = arm_tf.StochasticBinary("arm")(logits)
    outputs = [keras.layers.Dense(pixels)(symmetric(b)), Divergence()(b, logits=logits)]
    return arm_tf.StochasticModel(keras.Model(x, outputs))


def measure_fit(dataset: Dataset, rounds: int) -> dict[str, typing.Any]:
    """Steps a second of `fit` on the linear model, and of a run's own loop; a dict."""
    import keras

    from arm_tf import bernoulli

    bench = Bench(dataset, **MODELS["linear"])
    size, pixels = bench.config.batch_size, dataset.train.shape[1]
    x = dataset.train.astype("float32")
    y = [x, np.zeros([len(x), 1], "float32")]
    losses = [lambda x, logits: -bernoulli.log_prob(x, logits), lambda _, value: value[:, 0]]
    adam = lambda: keras.optimizers.Adam(1e-4)
    functions: dict[str, tuple[Callable[[], object], int]] = {
        "loop": (bench.run.run_steps, bench.steps)
    }
    for name, together in (("fit", 1), ("fit, 20 steps an execution", 20)):
        model = keras_vae(pixels)
        model.compile(adam(), losses, jit_compile=True, steps_per_execution=together)
        fit = functools.partial(model.fit, x, y, batch_size=size, epochs=_EPOCHS, verbose=0)
        functions[name] = (fit, _EPOCHS * (len(x) // size))
    plain = keras.Sequential(
        [keras.Input((pixels,)), keras.layers.Dense(200, "sigmoid"), keras.layers.Dense(pixels)]
    )
    plain.compile(adam(), losses[0], jit_compile=True)
    fit = functools.partial(plain.fit, x, x, batch_size=size, epochs=_EPOCHS, verbose=0)
    functions["fit, no stochastic units"] = (fit, _EPOCHS * (len(x) // size))
    seconds = measure(functions, max(3, rounds // 3))
    bench.close()
    fits = list(functions)[1:]
    result = {
        "steps_per_second": {name: spread(1 / values) for name, values in seconds.items()},
        "speed_over_loop": {name: ratio(seconds["loop"], seconds[name]) for name in fits},
    }
    for name in fits:
        print(f"{name}: {as_text(result['speed_over_loop'][name])} x the loop's speed", flush=True)
    return result


def measure_evaluation(dataset: Dataset, rounds: int) -> dict[str, typing.Any]:
    """The test bound of the linear model; a dict."""
    import tensorflow as tf

    from arm_tf import noise
    from arm_tf.training import bounds, steps

    settings = config.Config(**MODELS["linear"])
    model = steps.build_model(settings, dataset)
    images, samples = _EVALUATED
    evaluator = bounds.Evaluator(model, dataset.test[:images], samples, noise.key(0, "test"))
    shape = [evaluator.samples, model.num_layers, evaluator.rows, model.units]
    piece = (dataset.test[: evaluator.rows], tf.zeros(shape), tf.constant(evaluator.samples))
    program = evaluator.piece.experimental_get_compiler_ir(*piece)(stage="optimized_hlo")
    found = products_of(program)
    loop = products_alone([p for p in found if p.in_loop], evaluator.samples)
    once = products_alone([p for p in found if not p.in_loop], 1)
    pieces = images * samples // (evaluator.rows * evaluator.samples)

    def products():
        with concurrent.futures.ThreadPoolExecutor(evaluator.threads) as pool:
            list(pool.map(lambda _: (loop(), once()), range(pieces)))

    seconds = measure({"bound": (evaluator, 1), "products": (products, 1)}, max(3, rounds // 3))
    result: dict[str, typing.Any] = {
        "images": images,
        "samples": samples,
        "seconds": spread(seconds["bound"]),
        "time_over_products": ratio(seconds["bound"], seconds["products"]),
    }
    print(
        f"test bound, {images:,} images, {samples:,} samples: {as_text(result['seconds'])} s, "
        f"{as_text(result['time_over_products'])} x products",
        flush=True,
    )
    return result

"""Measures speed and memory, with ratios: `python -m arm_tf.benchmark`.

Steps of training against a plain reference (`plain_reference`) and against their bare matrix
products, with a table of where a step's time goes; the test bound against its products; a
process's memory and start; trials at once; how cost grows with batch, units, layers, samples
and estimators; and what a comparison of all estimators in the paper's settings costs. What is
compared runs interleaved, round by round; figures are medians, with the quartiles as spread. Writes
benchmark.json, and benchmark.png for the first and the next to last of these.

With `--export=FOLDER` it writes the models' programs, for a machine without TensorFlow, instead.
With `--history=FILE` steps are held against ratios that `--record` has added to the file.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
from absl import flags

import arm_tf
from arm_tf import cli, data, estimators, paper
from arm_tf.training import config, run_folder, trials, workers

PARTS = ("steps", "fit", "evaluation", "process", "trials", "sweep", "cost")
_MODELS = {name: paper.SETTINGS[f"mnist_static-{name}"] for name in
           ("linear", "nonlinear", "two_layers")}  # fmt: skip
_PLAIN_STEPS = 20  # in one measurement
_EVALUATED = (1000, 1000)  # images and samples of the test bound; its time grows with either
_TRIALS, _TRIAL_STEPS = 5, 4200
_SWEEPS = {
    "batch_size": (12, 25, 50, 100, 200, 400),
    "units": (50, 100, 200, 400, 800),
    "layers": (1, 2, 3, 4),
    "num_samples": (1, 2, 4, 8, 16),
    "track_variance": (("arm",), ("arm", "disarm"), ("arm", "disarm", "loo", "rodeo")),
}
_TRAIN_IMAGES = {"mnist_static": 50_000, "mnist_threshold": 55_000, "omniglot": 23_000}
_COMPARED = {
    name: settings
    for name, settings in paper.SETTINGS.items()
    if name == "mnist_threshold-conditional" or not name.startswith("mnist_threshold")
}
_COMPARED_SEEDS, _CORES = 5, (2, 64, 1000)
_RECORDED = ("version", "tensorflow", "cores", "model", "time_over_products", "speed_over_plain")
_TOLERATED = 1.3  # times the recorded ratio of a step's time to that of its products


def random_images():
    """Bits of MNIST's size, number and density, as an `arm_tf.data.Dataset`."""
    rng = np.random.default_rng(0)
    splits = [rng.binomial(1, 0.13, (n, 784)).astype(np.uint8) for n in (50_000, 1000, 1000)]
    return data.Dataset("mnist_static", *splits, dynamic=False, published=False, checksum="")


def measure(functions, rounds):
    """Seconds of each function in each round, all of them called in turn.

    Args:
      functions: by name, a function and the number of units of work that a call does.
      rounds: int; one more comes first and does not count.

    Returns:
      By name, float [rounds], seconds for one unit of work.
    """
    seconds = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, (function, work) in functions.items():
            begin = time.perf_counter()
            function()
            seconds[name].append((time.perf_counter() - begin) / work)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def spread(values):
    """Median and quartiles, a dict of floats."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "low": low, "high": high}


def ratio(of, to):
    """Median and quartiles of the rounds' ratios."""
    return spread(of / to)


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product [m, k] x [k, n] of a compiled program, and where its operands lie.

    Attributes:
      m, k, n: ints.
      transpose_a, transpose_b: whether an operand is stored the other way round.
      in_loop: whether it is taken in the program's loop or once.
    """

    m: int
    k: int
    n: int
    transpose_a: bool
    transpose_b: bool
    in_loop: bool

    @property
    def shapes(self):
        """Shapes of the operands as stored."""
        a, b = (self.m, self.k), (self.k, self.n)
        return a[::-1] if self.transpose_a else a, b[::-1] if self.transpose_b else b


def products_of(program):
    """The matrix products in the text of an optimised XLA program; a list of `Product`."""
    shape = r"%?([\w.-]+) = \w+\[([\d,]*)\]"
    shapes = {name: size.split(",") for name, size in re.findall(shape, program)}
    bodies = set(re.findall(r"body=%?([\w.-]+)", program))
    found, computation = [], None
    for line in program.splitlines():
        if line.endswith("{") and "->" in line:
            computation = line.removeprefix("ENTRY ").split()[0].removeprefix("%")
        dot = re.search(
            shape + r"\S* dot\((?:\S+ )?%?([\w.-]+), .*lhs_contracting_dims=\{(\d)\}, "
            r"rhs_contracting_dims=\{(\d)\}",
            line,
        )
        if dot:
            size, a, a_axis, b_axis = dot.groups()[1:]
            m, n = map(int, size.split(","))
            k = int(shapes[a][int(a_axis)])
            found.append(Product(m, k, n, a_axis == "0", b_axis == "1", computation in bodies))
    return found


def products_alone(products, times):
    """A compiled function that takes the products in a loop, `times` over, and nothing else.

    Operands on the right that have the same shape, such as weights that are used twice, are one
    array; those on the left change with the last outputs, so that no product can be left out.
    """
    import tensorflow as tf

    rng = np.random.default_rng(0)
    array = lambda shape: tf.constant(rng.normal(scale=0.1, size=shape), tf.float32)
    left = [array(product.shapes[0]) for product in products]
    right = {shape: array(shape) for shape in {product.shapes[1] for product in products}}

    outputs = [tf.zeros([product.m, product.n]) for product in products]

    @tf.function(jit_compile=True, autograph=False)
    def run(left, outputs, right):
        def body(i, left, outputs):
            left = [
                tf.tensor_scatter_nd_update(a, [[0, 0]], [1e-3 * output[0, 0]])
                for a, output in zip(left, outputs, strict=True)
            ]
            outputs = [
                tf.matmul(a, right[p.shapes[1]], p.transpose_a, p.transpose_b)
                for a, p in zip(left, products, strict=True)
            ]
            return i + 1, left, outputs

        _, _, outputs = tf.while_loop(lambda i, *_: i < times, body, (0, left, outputs))
        return tf.add_n([output[0, 0] for output in outputs])

    return lambda: run(left, outputs, right).numpy()


class Bench:
    """A run in a folder that is thrown away, and the programs it consists of."""

    def __init__(self, dataset, /, **settings):
        from arm_tf.training import steps
        from arm_tf.training.run import Run

        self.folder = tempfile.TemporaryDirectory()
        self.config = config.Config(**{**settings, "logdir": self.folder.name, "name": "run"})
        folder = run_folder.RunFolder(self.config)
        folder.start(self.config, dataset)
        self._precision = steps.precision(self.config)
        self._precision.__enter__()  # until it is closed
        self.run = Run(self.config, dataset, folder)
        self.learner, self.steps = self.run.learner, self.config.steps_per_loop
        self.run.run_steps()  # compiles

    def arguments(self, count):
        """Arguments of the compiled loop for `count` steps from the present one."""
        return self.run.feed(self.run.step, count)

    def products(self):
        """The matrix products of a step; a list of `Product`."""
        program = self.learner.take_steps.experimental_get_compiler_ir(
            *self.run.feed(self.run.step, 1)
        )
        return [p for p in products_of(program(stage="optimized_hlo")) if p.in_loop]

    def optimizer_steps(self):
        """A function that takes as many steps of the optimisers alone as a loop does."""
        import tensorflow as tf

        groups = {part: self.learner.groups[part] for part in self.learner.optimizers}
        grads = {part: [tf.fill(v.shape, 1e-3) for v in group] for part, group in groups.items()}

        @tf.function(jit_compile=True, autograph=False)
        def run(grads):
            def body(i):
                for part, optimizer in self.learner.optimizers.items():
                    optimizer.apply([g + 0.0 for g in grads[part]], groups[part])
                return (i + 1,)

            return tf.while_loop(lambda i: i < self.steps, body, (0,))

        return lambda: run(grads)

    def export(self, folder):
        """Takes a loop of steps, and writes it as a program that any XLA runs.

        `program.hlo` is the loop before optimisation, a serialised HloModuleProto.
        `program.json` names its parameters (the arguments of `take_steps` that are not empty,
        then all variables that it reads) and its results (losses, gradient norms, and the new
        values of the variables, under the variables' names), each in order, and says how many
        steps it takes. `arguments.npz` and `expected.npz` hold the values, by name.

        Args:
          folder: path of a folder that exists.
        """
        take_steps, arguments = (
            self.learner.take_steps,
            self.arguments(self.steps),
        )
        compiled = take_steps.get_concrete_function(*arguments)
        program = take_steps.experimental_get_compiler_ir(*arguments)
        by_handle = {id(variable.handle): variable for variable in compiled.variables}
        variables = {}
        for handle in compiled.captured_inputs:
            variable = by_handle[id(handle)]
            variables[variable.name.removesuffix(":0")] = variable
        if len(variables) != len(compiled.captured_inputs):
            raise RuntimeError(f"Variables share names, received {compiled.variables}.")
        names = ("images", "order", "noise", "tracker_noise", "count")
        given = {n: np.asarray(a) for n, a in zip(names, arguments, strict=True)}
        values = {name: value for name, value in given.items() if value.size}
        values |= {name: variable.numpy() for name, variable in variables.items()}
        np.savez_compressed(folder / "arguments.npz", **values)

        losses, norms = take_steps(*arguments)
        results = {"losses": losses.numpy()}
        results |= {f"gradient_norm/{part}": norms[part].numpy() for part in sorted(norms)}
        parameters = list(values)
        aliases = re.search("input_output_alias={(.*?) }", program(stage="hlo"))[1]
        for result, parameter in re.findall(r"{(\d+)}: \((\d+),", aliases):
            if int(result) != len(results):
                raise RuntimeError(f"Expected result {len(results)} in {aliases}.")
            name = parameters[int(parameter)]
            results[name] = variables[name].numpy()
        np.savez_compressed(folder / "expected.npz", **results)
        (folder / "program.hlo").write_bytes(program(stage="hlo_serialized"))
        description = {
            "steps": self.steps,
            "parameters": parameters,
            "results": list(results),
            "shapes": {n: [str(v.dtype), *v.shape] for n, v in {**values, **results}.items()},
            "versions": run_folder.versions(),
        }
        run_folder.write_json(folder / "program.json", description)

    def close(self):
        """Gives back the run's precision and removes its folder."""
        self._precision.__exit__(None, None, None)
        self.run.folder.close()
        self.folder.cleanup()


def export(dataset, folder):
    """Writes the three models' programs, and beside them the script that runs them."""
    for name, settings in _MODELS.items():
        bench = Bench(dataset, **settings)
        bench.export(run_folder.make_folder(folder / name, "--export"))
        bench.close()
        print(f"Written to {folder / name}.", flush=True)
    script = shutil.copy(pathlib.Path(__file__).with_name("run_exported.py"), folder)
    print(f"python {script} {folder} runs them where numpy and JAX are.")


def measure_steps(dataset, rounds):
    """Training steps of the three models of the paper, by model; a dict for each."""
    from arm_tf.benchmark import plain_reference

    results = {}
    for name, settings in _MODELS.items():
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
            f"{_text(result['speed_over_plain'])} x plain "
            f"({result['plain_steps_per_second']['median']:.0f}), "
            f"{_text(result['time_over_products'])} x products\n"
            f"{'':11} µs a step: "
            + ", ".join(f"{part} {value:.0f}" for part, value in result["microseconds"].items()),
            flush=True,
        )
    return results


def keras_vae(pixels, units=200):
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


def measure_fit(dataset, rounds):
    """Steps a second of `fit` on the linear model, and of a run's own loop; a dict."""
    import keras

    from arm_tf import bernoulli

    bench = Bench(dataset, **_MODELS["linear"])
    size, pixels = bench.config.batch_size, dataset.train.shape[1]
    x = dataset.train.astype("float32")  # an epoch; what a call of fit takes besides is divided
    y = [x, np.zeros([len(x), 1], "float32")]
    losses = [lambda x, logits: -bernoulli.log_prob(x, logits), lambda _, value: value[:, 0]]
    adam = lambda: keras.optimizers.Adam(1e-4)
    functions = {"loop": (bench.run.run_steps, bench.steps)}
    for name, together in (("fit", 1), ("fit, 20 steps an execution", 20)):
        model = keras_vae(pixels)
        model.compile(adam(), losses, jit_compile=True, steps_per_execution=together)
        fit = lambda model=model: model.fit(x, y, batch_size=size, verbose=0)
        functions[name] = (fit, len(x) // size)
    plain = keras.Sequential(
        [keras.Input((pixels,)), keras.layers.Dense(200, "sigmoid"), keras.layers.Dense(pixels)]
    )
    plain.compile(adam(), losses[0], jit_compile=True)
    fit = lambda: plain.fit(x, x, batch_size=size, verbose=0)
    functions["fit, no stochastic units"] = (fit, len(x) // size)
    seconds = measure(functions, max(3, rounds // 3))
    bench.close()
    fits = list(functions)[1:]
    result = {
        "steps_per_second": {name: spread(1 / values) for name, values in seconds.items()},
        "speed_over_loop": {name: ratio(seconds["loop"], seconds[name]) for name in fits},
    }
    for name in fits:
        print(f"{name}: {_text(result['speed_over_loop'][name])} x the loop's speed", flush=True)
    return result


def measure_evaluation(dataset, rounds):
    """The test bound of the linear model; a dict."""
    import tensorflow as tf

    from arm_tf import noise
    from arm_tf.training import bounds, steps

    settings = config.Config(**_MODELS["linear"])
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
    result = {
        "images": images,
        "samples": samples,
        "seconds": spread(seconds["bound"]),
        "time_over_products": ratio(seconds["bound"], seconds["products"]),
    }
    print(
        f"test bound, {images:,} images, {samples:,} samples: {_text(result['seconds'])} s, "
        f"{_text(result['time_over_products'])} x products",
        flush=True,
    )
    return result


def _run_alone(arguments):
    """Runs a Python process to its end; its peak memory in MiB.

    Raises:
      RunError: it failed.
    """
    peak = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            stdout=output,
            stderr=output,
        )
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # it has just ended
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            time.sleep(0.02)
        output.seek(0)
        if process.returncode:
            last = output.read().splitlines()[-1:]
            raise run_folder.RunError(f"{' '.join(arguments)} failed: {' '.join(last)}")
    return peak / 2**20


def measure_process(rounds):
    """Memory of a default run above TensorFlow's, and the time up to its first steps; a dict."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    waits, peaks, imports = [], [], []
    for _ in range(max(2, rounds // 5)):
        imports.append(_run_alone(["-c", "import tensorflow"]))
        with tempfile.TemporaryDirectory() as folder:
            begin = time.time()
            run = ["-m", "arm_tf.train", "--max_steps=420", "--test_samples=100", "--name=run"]
            peaks.append(_run_alone([*run, f"--logdir={folder}"]))
            (events,) = pathlib.Path(folder, "run", "train").glob("events*")
            scalars = [e for e in EventFileLoader(str(events)).Load() if e.step]
            waits.append(scalars[0].wall_time - begin)
    result = {
        "mebibytes_above_import": spread(np.array(peaks) - np.array(imports)),
        "mebibytes_of_import": spread(imports),
        "seconds_to_first_steps": spread(waits),
    }
    print(
        f"process: {_text(result['mebibytes_above_import'], 0)} MiB above import tensorflow, "
        f"{_text(result['seconds_to_first_steps'], 1)} s to the end of the first loop of steps",
        flush=True,
    )
    return result


def measure_trials():
    """Steps a second of several trials, as many at once as there are cores, and of one; a dict."""
    settings = config.Config(max_steps=_TRIAL_STEPS, eval_every=1000, test_samples=1, name="run")

    def rates(number):
        with tempfile.TemporaryDirectory() as folder:
            lines = dataclasses.replace(settings, logdir=folder).flag_file().splitlines()
            _run_alone(["-m", "arm_tf.train", *lines, f"--trials={number}"])
            results = pathlib.Path(folder).rglob("result.json")
            return [run_folder.read_json(path)["steps_per_second"] for path in results]

    alone = rates(1) + rates(1)
    together = rates(_TRIALS)
    at_once = trials.concurrency(_TRIALS)
    result = {
        "trials": _TRIALS,
        "at_once": at_once,
        "steps_per_second_alone": alone,
        "steps_per_second_together": together,
        "throughput_over_one": at_once * float(np.mean(together) / np.mean(alone)),
    }
    print(
        f"{_TRIALS} trials, {at_once} at once: {at_once * np.mean(together):.0f} steps/s added up, "
        f"one alone on all cores {np.mean(alone):.0f}, ratio {result['throughput_over_one']:.2f}",
        flush=True,
    )
    return result


def measure_sweep(dataset, rounds):
    """Milliseconds a step as one setting of the linear model after the other grows; a dict."""
    results = {}
    for setting, values in _SWEEPS.items():
        results[setting] = []
        for value in values:
            bench = Bench(dataset, **{**_MODELS["linear"], setting: value, "steps_per_loop": 20})
            seconds = measure({"loop": (bench.run.run_steps, 20)}, rounds)["loop"]
            bench.close()
            number = len(value) if isinstance(value, tuple) else value
            results[setting].append({"value": number, "milliseconds": spread(1e3 * seconds)})
        grown = ", ".join(
            f"{r['value']}: {r['milliseconds']['median']:.2f}" for r in results[setting]
        )
        print(f"ms a step by {setting}: {grown}", flush=True)
    return results


def measure_cost(dataset, rounds):
    """Steps a second of every estimator, and what comparing them at full length costs; a dict.

    Every estimator but enumeration, which is not for so many units, is measured on the linear model
    for MNIST, and ARM in each of the seven settings of the paper's tables; the rate of another
    estimator in another setting is taken to be ARM's there times its rate over ARM's on the linear
    model. A run occupies the cores of this process.
    """
    names = [name for name in estimators.TABLE if name != "exact"]
    cells = {("mnist_static-linear", name): {"estimator": name} for name in names}
    cells |= {(setting, "arm"): {} for setting in _COMPARED}
    benches = {
        cell: Bench(dataset, **{**_COMPARED[cell[0]], **change, "steps_per_loop": 20})
        for cell, change in cells.items()
    }
    print(f"cost: {len(benches)} programs compiled, measuring", flush=True)
    functions = {cell: (bench.run.run_steps, bench.steps) for cell, bench in benches.items()}
    seconds = {
        cell: float(np.median(values))
        for cell, values in measure(functions, max(3, rounds // 5)).items()
    }
    for bench in benches.values():
        bench.close()
    by_estimator = {name: seconds["mnist_static-linear", name] for name in names}
    by_setting = {setting: seconds[setting, "arm"] for setting in _COMPARED}
    hours = {}
    for setting, settings in _COMPARED.items():
        size = settings.get("batch_size", config.paper_batch_size(settings["dataset"]))
        steps = settings["epochs"] * (_TRAIN_IMAGES[settings["dataset"]] // size)
        for name in names:
            row = estimators.get(name)
            if settings.get("model") == "conditional" and (row.objective != "elbo" or row.rule):
                continue
            relative = by_estimator[name] / by_estimator["arm"]
            hours[setting, name] = steps * by_setting[setting] * relative / 3600
    cores = workers.usable_cores()
    total, longest = _COMPARED_SEEDS * sum(hours.values()), max(hours.values())
    dear = sorted({name for _, name in hours}, key=by_estimator.get)[-2:]
    frugal = [value for (_, name), value in hours.items() if name not in dear]
    result = {
        "steps_per_second": {name: 1 / value for name, value in by_estimator.items()},
        "steps_per_second_of_arm": {name: 1 / value for name, value in by_setting.items()},
        "runs": _COMPARED_SEEDS * len(hours),
        "core_hours": cores * total,
        "longest_run_hours": longest,
        "dearest": dear,
        "core_hours_without_dearest": cores * _COMPARED_SEEDS * sum(frugal),
        "longest_run_hours_without_dearest": max(frugal),
        "cores_of_a_run": cores,
    }
    print(f"{result['runs']} runs on {cores} cores each:")
    for which in ("", "_without_dearest"):
        core_hours, run = result[f"core_hours{which}"], result[f"longest_run_hours{which}"]
        days = {n: max(core_hours / n, run) / 24 for n in _CORES}
        result[f"days{which}"] = days
        print(
            f"{'without ' + ' and '.join(dear) if which else 'all estimators'}: {core_hours:,.0f} "
            f"core hours, longest run {run:.1f} h; days on "
            + ", ".join(f"{n:,} cores {value:.1f}" for n, value in days.items()),
            flush=True,
        )
    return result


def compare_with_history(results, path, record):
    """Holds the steps' ratios against the last ones recorded on as many cores, or adds them.

    Rates say as much of the machine as of the program; ratios of one interleaved run bear
    comparison.

    Args:
      results: dict with "cores", "tensorflow" and "steps", what `main` writes.
      path: of a CSV file, a line for each record and model.
      record: bool, whether to add these ratios to it in place of the comparison.

    Raises:
      RunError: a step takes more than 1.3 times as many of its products as it did.
    """
    path, rows = pathlib.Path(path), []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    slower = []
    for model, measured in results["steps"].items():
        now = measured["time_over_products"]["median"]
        before = [
            row for row in rows if (row["model"], row["cores"]) == (model, str(results["cores"]))
        ]
        if before and now > _TOLERATED * float(before[-1]["time_over_products"]):
            last = before[-1]
            slower.append(
                f"{model} takes {now:.2f} times its products, {last['time_over_products']} in "
                f"version {last['version']}"
            )
        ratios = (f"{now:.2f}", f"{measured['speed_over_plain']['median']:.2f}")
        values = (arm_tf.__version__, results["tensorflow"], results["cores"], model, *ratios)
        rows.append(dict(zip(_RECORDED, values, strict=True)))
    if record:
        lines = [",".join(_RECORDED), *(",".join(map(str, row.values())) for row in rows)]
        run_folder.write_text(path, "\n".join(lines) + "\n")
        print(f"Recorded in {path}.")
    elif slower:
        raise run_folder.RunError(f"A step has become slower: {'; '.join(slower)}.")


def _text(values, digits=2):
    low, high = (f"{values[key]:.{digits}f}" for key in ("low", "high"))
    return f"{values['median']:.{digits}f} ({low}–{high})"


def main():
    values = flags.FLAGS
    unknown = set(values.parts) - set(PARTS)
    if unknown or values.rounds < 2:
        raise config.ConfigError(
            f"--parts takes any of {', '.join(PARTS)} and --rounds at least 2, received "
            f"{','.join(values.parts)} and {values.rounds}."
        )
    flag = "export" if values.export else "out"
    out = run_folder.make_folder(values[flag].value, f"--{flag}")
    load = psutil.getloadavg()[0]
    cli.load_tensorflow()
    import tensorflow as tf

    if values.export:
        return export(random_images(), out)
    if load > 0.5:
        print(f"Other work is running (load {load:.1f}): ratios may do, rates do not.")
    from arm_tf import figures

    dataset = random_images()
    results = {
        "cores": workers.usable_cores(),
        "processor": platform.processor() or platform.machine(),
        "devices": [device.name for device in tf.config.list_physical_devices()],
        "tensorflow": tf.__version__,
        "rounds": values.rounds,
    }
    measurements = {
        "steps": lambda: measure_steps(dataset, values.rounds),
        "fit": lambda: measure_fit(dataset, values.rounds),
        "evaluation": lambda: measure_evaluation(dataset, values.rounds),
        "process": lambda: measure_process(values.rounds),
        "trials": measure_trials,
        "sweep": lambda: measure_sweep(dataset, values.rounds),
        "cost": lambda: measure_cost(dataset, values.rounds),
    }
    for part in PARTS:
        if part in values.parts:
            results[part] = measurements[part]()
            run_folder.write_json(out / "benchmark.json", results)
    print(f"Written to {out / 'benchmark.json'}.")
    if values.history and "steps" in results:
        compare_with_history(results, values.history, values.record)
    if {"steps", "sweep"} & set(results):
        figures.benchmark(results).savefig(out / "benchmark.png")
        print(f"Drawn in {out / 'benchmark.png'}.")


if __name__ == "__main__":
    flags.DEFINE_list("parts", list(PARTS), "What to measure, with commas.")
    flags.DEFINE_integer("rounds", 15, "Rounds of measurements.")
    flags.DEFINE_string("export", None, "Folder for programs to run elsewhere; measures nothing.")
    flags.DEFINE_string("out", "runs/benchmark", "Folder for the files.")
    flags.DEFINE_string("history", None, "CSV file of ratios, which steps are compared with.")
    flags.DEFINE_bool("record", False, "Add the ratios to --history in place of comparing.")
    cli.run(main)

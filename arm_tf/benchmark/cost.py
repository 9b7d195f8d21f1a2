"""How cost grows with settings, what a comparison of all estimators costs, and runs' speeds."""

import itertools
import typing
from collections.abc import Mapping

import numpy as np

from arm_tf import data, estimators, experiments
from arm_tf.benchmark.bench import MODELS, Bench
from arm_tf.benchmark.timing import measure, random_images, spread
from arm_tf.data import Dataset
from arm_tf.training import workers
from arm_tf.training.config import Config, names_of

_Name = typing.TypeVar("_Name")

_SWEEPS = {
    "batch_size": (12, 25, 50, 100, 200, 400),
    "units": (50, 100, 200, 400, 800),
    "layers": (1, 2, 3, 4),
    "num_samples": (1, 2, 4, 8, 16),
    "track_variance": (("arm",), ("arm", "disarm"), ("arm", "disarm", "loo", "rodeo")),
}
_TRAIN_IMAGES = {"mnist_static": 50_000, "mnist_threshold": 55_000, "omniglot": 23_000}
_LINEAR = "yin_zhou_2019/mnist_static-linear"
_COMPARED = {  # those with figures
    experiment.name: experiment.settings
    for experiment in experiments.matching(["yin_zhou_2019/*"])
    if any(cell.published["test_nll"] for cell in experiment.cells)
}
_COMPARED_SEEDS, _CORES = 5, (2, 64, 1000)


def measure_sweep(dataset: Dataset, rounds: int) -> dict[str, list[dict[str, typing.Any]]]:
    """Milliseconds a step as one setting of the linear model after the other grows; a dict."""
    results: dict[str, list[dict[str, typing.Any]]] = {}
    for setting, values in _SWEEPS.items():
        results[setting] = []
        for value in values:
            bench = Bench(dataset, **{**MODELS["linear"], setting: value, "steps_per_loop": 20})
            seconds = measure({"loop": (bench.run.run_steps, 20)}, rounds)["loop"]
            bench.close()
            number = len(value) if isinstance(value, tuple) else value
            results[setting].append({"value": number, "milliseconds": spread(1e3 * seconds)})
        grown = ", ".join(
            f"{r['value']}: {r['milliseconds']['median']:.2f}" for r in results[setting]
        )
        print(f"ms a step by {setting}: {grown}", flush=True)
    return results


def measure_cost(dataset: Dataset, rounds: int) -> dict[str, typing.Any]:
    """Steps a second of every estimator, and what comparing them at full length costs; a dict.

    Every estimator but enumeration, which is not for so many units, is measured on the linear model
    for MNIST, and ARM in each of the seven settings of the paper's tables; the rate of another
    estimator in another setting is taken to be ARM's there times its rate over ARM's on the linear
    model. A run occupies the cores of this process.
    """
    names = [name for name in estimators.TABLE if name != "exact"]
    cells = {(_LINEAR, name): {"estimator": name} for name in names}
    cells |= {(setting, "arm"): {} for setting in _COMPARED}
    seconds = _seconds_a_step(
        {
            cell: Bench(dataset, **{**_COMPARED[cell[0]], **change, "steps_per_loop": 20})
            for cell, change in cells.items()
        },
        rounds,
    )
    medians = {cell: float(np.median(values)) for cell, values in seconds.items()}
    by_estimator = {name: medians[_LINEAR, name] for name in names}
    by_setting = {setting: medians[setting, "arm"] for setting in _COMPARED}
    hours = {}
    for setting, settings in _COMPARED.items():
        size = settings.get("batch_size", data.batch_size(settings["dataset"]))
        steps = settings["epochs"] * (_TRAIN_IMAGES[settings["dataset"]] // size)
        for name in names:
            row = estimators.get(name)
            if settings.get("model") == "conditional" and (row.objective != "elbo" or row.rule):
                continue
            relative = by_estimator[name] / by_estimator["arm"]
            hours[setting, name] = steps * by_setting[setting] * relative / 3600
    cores = workers.usable_cores()
    total, longest = _COMPARED_SEEDS * sum(hours.values()), max(hours.values())
    dear = sorted({name for _, name in hours}, key=by_estimator.__getitem__)[-2:]
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


def measure_speeds(
    cells: Mapping[tuple[str, str], dict[str, typing.Any]], rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Steps a second in the settings of runs, which `arm_tf.report` draws curves against time with.

    Those of an experiment run interleaved. A call is an epoch of as many images as a loop of steps
    takes, so that the drawing of a dynamic set's bits is part of it.

    Args:
      cells: settings of a run by experiment and estimator, as `arm_tf.report.Run.speed_of`.
      rounds: int; a fifth of it, and at least three, are taken.

    Returns:
      By experiment and then by estimator, the fastest first, the dict of `timing.spread`.
    """
    speeds: dict[str, dict[str, dict[str, float]]] = {}
    for experiment, group in itertools.groupby(sorted(cells), key=lambda cell: cell[0]):
        print(experiment, flush=True)
        benches = {}
        for cell in group:
            step = {name: v for name, v in cells[cell].items() if name not in names_of("execution")}
            config = Config(**{**step, "epochs": rounds + 5, "max_steps": None})
            images = random_images(
                config.steps_per_loop * config.batch_size, config.dataset.endswith("_dynamic")
            )
            benches[cell[1]] = Bench(images, **config.settings())
        seconds = _seconds_a_step(benches, rounds)
        rates = {name: spread(1 / values) for name, values in seconds.items()}
        fastest = sorted(rates, key=lambda name: -rates[name]["median"])
        speeds[experiment] = {name: rates[name] for name in fastest}
    return speeds


def _seconds_a_step(benches: Mapping[_Name, Bench], rounds: int) -> dict[_Name, np.ndarray]:
    """Seconds of a step of training in each round, interleaved, by name; closes the benches."""
    print(f"{len(benches)} programs compiled, measuring", flush=True)
    functions = {name: (bench.run.run_steps, bench.steps) for name, bench in benches.items()}
    seconds = measure(functions, max(3, rounds // 5))
    for bench in benches.values():
        bench.close()
    return seconds

"""Measures speed and memory, with ratios: `python -m arm_tf.benchmark`.

Steps of training against a plain reference (`plain_reference`) and against their bare matrix
products, with a table of where a step's time goes; the test bound against its products; a
process's memory and start; trials at once; how cost grows with batch, units, layers, samples
and estimators; and what a comparison of all estimators in the paper's settings costs. What is
compared runs interleaved, round by round; figures are medians, with the quartiles as spread. Writes
benchmark.json, and benchmark.png for the first and the next to last of these.

With `--export=FOLDER` it writes the models' programs, for a machine without TensorFlow, instead.
With `--speeds=FOLDER` it measures the estimators of the finished runs in that folder instead, and
writes there the speeds with which `arm_tf.report` draws their curves against time.
With `--history=FILE` steps are held against ratios that `--record` has added to the file.
"""

import platform
import typing

import psutil
from absl import flags

from arm_tf import cli, files, report
from arm_tf.benchmark.bench import export
from arm_tf.benchmark.cost import measure_cost, measure_speeds, measure_sweep
from arm_tf.benchmark.history import compare_with_history
from arm_tf.benchmark.processes import measure_process, measure_trials
from arm_tf.benchmark.programs import measure_evaluation, measure_fit, measure_steps
from arm_tf.benchmark.timing import random_images
from arm_tf.errors import ConfigError, RunError
from arm_tf.training import workers

PARTS = ("steps", "fit", "evaluation", "process", "trials", "sweep", "cost")


def main() -> None:
    values = flags.FLAGS
    unknown = set(values.parts) - set(PARTS)
    if unknown or not values.parts or values.rounds < 2:
        raise ConfigError(
            f"--parts takes any of {', '.join(PARTS)} and --rounds at least 2, received "
            f"{','.join(values.parts)} and {values.rounds}."
        )
    cli.check_integer("rounds", 2)
    if values.export and values.speeds:
        raise ConfigError(
            "--export and --speeds are two programs; give one, received "
            f"--export={values.export} and --speeds={values.speeds}."
        )
    cells = _cells(values.speeds) if values.speeds else {}
    flag = next((flag for flag in ("export", "speeds") if getattr(values, flag)), "out")
    out = files.make_folder(getattr(values, flag), f"--{flag}")
    load = psutil.getloadavg()[0]
    cli.load_tensorflow()
    import tensorflow as tf

    if values.export:
        return export(random_images(), out)
    if load > 0.5:
        print(f"Other work is running (load {load:.1f}): ratios may do, rates do not.")
    results: dict[str, typing.Any] = {
        "cores": workers.usable_cores(),
        "processor": platform.processor() or platform.machine(),
        "devices": [device.name for device in tf.config.list_physical_devices()],
        "tensorflow": tf.__version__,
        "rounds": values.rounds,
    }
    if values.speeds:
        results["speeds"] = measure_speeds(cells, values.rounds)
        files.write_json(out / report.SPEEDS, results)
        print(f"Written to {out / report.SPEEDS}.")
        return
    from arm_tf.benchmark import figures

    dataset = random_images()
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
            files.write_json(out / "benchmark.json", results)
    print(f"Written to {out / 'benchmark.json'}.")
    if values.history and "steps" in results:
        compare_with_history(results, values.history, values.record)
    if {"steps", "sweep"} & set(results):
        figures.parts_and_growth(results).savefig(out / "benchmark.png")
        print(f"Drawn in {out / 'benchmark.png'}.")


def _cells(folder: str) -> dict[tuple[str, str], dict[str, typing.Any]]:
    """Settings of the finished runs in a folder, by what their speeds hang on."""
    runs = [run for run in report.gather(folder)[0] if run.experiment]
    if not runs:
        raise RunError(f"There are no finished runs of a paper's experiment in {folder}.")
    return {run.speed_of: run.config.settings() for run in runs}


if __name__ == "__main__":
    flags.DEFINE_list("parts", list(PARTS), "What to measure, with commas.")
    flags.DEFINE_integer("rounds", 15, "Rounds of measurements.")
    flags.DEFINE_string("export", None, "Folder for programs to run elsewhere; measures nothing.")
    flags.DEFINE_string(
        "speeds",
        None,
        "Folder of finished runs whose speeds to write there; measures nothing else.",
    )
    flags.DEFINE_string("out", "runs/benchmark", "Folder for the files.")
    flags.DEFINE_string("history", None, "CSV file of ratios, which steps are compared with.")
    flags.DEFINE_bool("record", False, "Add the ratios to --history in place of comparing.")
    cli.run(main)

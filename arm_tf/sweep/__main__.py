"""Trains a grid of runs: `python -m arm_tf.sweep --experiments='yin_zhou_2019/*-linear'`.

Every experiment with every estimator, learning rate and seed, a processor for each run; other
settings, given as to `arm_tf.train`, hold for all. A run that fails is tried again from its last
checkpoint; the same command after a stop or a crash does only what is left. For each experiment
and estimator the learning rate is the one of the best validation, as papers choose it; with
--rates_first only the first seed is trained at every rate, and the others at that one. Writes
sweep.json and sweep.md into --logdir; `arm_tf.report` reads the runs.

--experiments='yin_zhou_2019/*' is all of that paper's tables 2 and 3, with its estimators and
learning rates. --dry_run says what there is to do and what it costs. With --address the runs are
trained on a Ray cluster, whose machines must all see --logdir; that needs the extra `[sweep]`.
"""

import contextlib
import pathlib
import time
import typing
from collections.abc import Callable, Sequence

from absl import flags

from arm_tf import cli, data, experiments, files
from arm_tf.errors import ConfigError, DataError, RunError
from arm_tf.sweep import (
    estimate,
    find_finished,
    grid,
    markdown,
    outline,
    rates_first,
    runs_in,
    summarise,
)
from arm_tf.training import run_folder, scheduler
from arm_tf.training.workers import usable_cores

_SECONDS_BETWEEN_VIEWS = 10

_Number = typing.TypeVar("_Number", int, float)


def _numbers(name: str, kind: Callable[[str], _Number]) -> list[_Number]:
    try:
        return [kind(text) for text in getattr(flags.FLAGS, name)]
    except ValueError:
        given = ",".join(getattr(flags.FLAGS, name))
        raise ConfigError(f"--{name} must be numbers with commas, received {given!r}.") from None


def main() -> None:
    values = flags.FLAGS
    cells = _cells()
    if values.address and values.workers:
        raise ConfigError("--workers is of this machine, and --address of a cluster; give one.")
    runs = [run for folder in {cell.config.logdir for cell in cells} for run in runs_in(folder)]
    find_finished(cells, runs)
    left_out, unreadable = _without_data(cells)
    cells = [cell for cell in cells if cell not in [*left_out, *unreadable]]
    is_rates_first = bool(values.experiments) if values.rates_first is None else values.rates_first
    jobs = rates_first(cells) if is_rates_first else cells
    for job in jobs:
        job.is_ready()  # decides what is decided
    jobs = list({job.path: job for job in reversed(jobs)}.values())[::-1]
    if values.dry_run:
        print(outline(jobs, runs))
        return
    logdir = files.make_folder(values.logdir)
    to_do = [job for job in jobs if not job.result]
    steps_before = {cell.path: _steps(cell.path) for cell in cells}
    begun, finished_before = time.monotonic(), len(jobs) - len(to_do)
    left = lambda: estimate.Paces([*runs, *(job.config for job in jobs)]).left(
        job.config for job in jobs if not job.is_given_up
    )
    if values.address:
        workers = scheduler.ray_tasks(values.address)
    else:
        at_once = values.workers or usable_cores()
        workers = scheduler.processes(at_once, 1, scheduler.append_to_file)
    with workers as (slots, start):
        asked = f"{len(jobs)} runs, {finished_before} of them finished before"
        print(f"{asked}; {slots} at once; {left()}.", flush=True)
        came_to_an_end = scheduler.run(
            to_do, slots, start, values.retries, _SECONDS_BETWEEN_VIEWS, left
        )
    if not came_to_an_end:
        print("Stopped; the same command does what is left.")
        return
    steps = sum(job.result.get("steps", 0) - steps_before[job.path] for job in to_do if job.result)
    throughput = {"workers": slots, "steps": steps, "seconds": time.monotonic() - begun}
    if not steps:
        with contextlib.suppress(*files.UNREADABLE):  # the record of the sweep that took them
            earlier = files.read_json(logdir / "sweep.json")["throughput"]
            throughput = {name: float(earlier[name]) for name in throughput}
    rows = summarise(cells)
    table = markdown(rows, " or −".join(sorted({cell.config.likelihood for cell in cells})))
    failed = [job for job in jobs if not job.result]
    record = {
        "chosen": rows,
        "throughput": throughput,
        "failed": {job.config.name: job.failures for job in failed if job.failures},
    }
    print(table, end="")
    with files.writing(logdir):
        files.write_json(logdir / "sweep.json", record)
        files.write_text(logdir / "sweep.md", table)
    if throughput["steps"] and throughput["seconds"]:
        rate = throughput["steps"] / throughput["seconds"]
        by = f"{throughput['workers']:g} workers"
        print(f"{rate:.0f} steps/s by {by}, starts and tests included.")
    errors = []
    if failed:
        names = [job.config.name for job in failed if job.failures]
        waiting = len(failed) - len(names)
        wait = f", for which {waiting} others wait" if waiting else ""
        errors.append(
            f"{len(names)} of {len(jobs)} runs failed{wait}: {', '.join(names)}; see output.txt "
            "in their folders."
        )
    if left_out:
        sources = dict.fromkeys(cell.source for cell in left_out)
        errors.append(f"Left out for want of data: {', '.join(sources)}.")
    if unreadable:
        names = [cell.config.name for cell in unreadable]
        errors.append(f"Left out, since config.json cannot be read: {', '.join(names)}.")
    if errors:
        raise RunError(" ".join(errors))


def _steps(path: pathlib.Path) -> int:
    """The last evaluated step of the run in a folder."""
    with contextlib.suppress(RunError, KeyError):
        return max((int(row["step"]) for row in run_folder.read_metrics(path)), default=0)
    return 0


def _cells() -> list[scheduler.Job]:
    """The cells that the flags ask for."""
    values = flags.FLAGS
    for name in ("experiment", "learning_rate", "seed", *["estimator"] * bool(values.estimators)):
        if values[name].present:
            raise ConfigError(
                f"--{name} is one value, and --{name}s are those that a sweep trains; give those."
            )
    rates, seeds = _numbers("learning_rates", float), _numbers("seeds", int)
    changes = cli.settings_given()
    selected = experiments.matching(values.experiments)
    if not selected:
        rates = rates or [5e-4, 1e-4, 5e-5]
    return grid(selected, changes, values.estimators, rates, seeds)


def _without_data(
    cells: Sequence[scheduler.Job],
) -> tuple[list[scheduler.Job], list[scheduler.Job]]:
    """Cells whose data cannot be had, and finished ones that do not say on which data they were.

    Prints a line on those of each data set.

    Raises:
      DataError: there are no others.
      RunError: a finished run is of other data.
    """
    by_data: dict[tuple, list[scheduler.Job]] = {}
    for cell in cells:
        key = (cell.config.dataset, cell.config.data_dir, cell.config.image_shape)
        by_data.setdefault(key, []).append(cell)
    left_out: list[scheduler.Job] = []
    unreadable: list[scheduler.Job] = []
    for (dataset, folder, shape), group in by_data.items():
        try:
            loaded = data.load(dataset, folder, image_shape=shape)
        except DataError as error:
            left_out += group
            if len(left_out) == len(cells):
                raise
            sources = dict.fromkeys(cell.source for cell in group)
            print(f"Left out for want of data: {', '.join(sources)}. {error}", flush=True)
        else:
            for cell in group:
                try:
                    if cell.result:
                        run_folder.check_data(cell.path, loaded)
                except run_folder.UnreadableError:
                    unreadable.append(cell)
    return left_out, unreadable


if __name__ == "__main__":
    cli.define_flags()
    flags.DEFINE_list(
        "experiments",
        [],
        "Experiments of papers, as `arm_tf.train --experiment=help` lists them; * stands for "
        "anything, as in 'yin_zhou_2019/*-linear'. Unset: the settings that flags give.",
    )
    flags.DEFINE_list("estimators", [], "Estimators; unset: those of each experiment.")
    flags.DEFINE_list(
        "learning_rates",
        [],
        "To choose from; unset: those of each experiment, or else 5e-4, 1e-4 and 5e-5.",
    )
    flags.DEFINE_bool(
        "rates_first",
        None,
        "Train every learning rate with the first seed alone, and the other seeds at the best; "
        "unset: with --experiments.",
    )
    flags.DEFINE_list("seeds", list(map(str, experiments.SEEDS)), "Seeds, a trial each.")
    flags.DEFINE_string("address", None, "Of a Ray cluster; unset: this machine alone.")
    flags.DEFINE_integer(
        "workers", None, "Runs at once on this machine; unset: its processors.", lower_bound=1
    )
    flags.DEFINE_integer("retries", 2, "How often a failed run is tried again.", lower_bound=0)
    flags.DEFINE_bool(
        "dry_run", False, "Say what there is to do with the data, and what it costs; train nothing."
    )
    cli.run(main)

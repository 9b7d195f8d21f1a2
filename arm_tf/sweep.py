"""Trains a grid of runs: `python -m arm_tf.sweep --flagfiles=FILE,… --estimators=arm,loo`.

Every flag file with every estimator, learning rate and seed, a processor for each run; other
settings, given as to `arm_tf.train`, hold for all. A run that fails is tried again from its last
checkpoint; the same command after a stop or a crash does only what is left. For each flag file and
estimator the learning rate is the one of the best validation, as the paper chooses it. Writes
sweep.json and sweep.md into --logdir; `arm_tf.report` reads the runs. With --address the runs are
trained on a Ray cluster, whose machines must all see --logdir; that needs the extra `[sweep]`.
"""

import dataclasses
import itertools
import os
import pathlib
import time
import typing
from collections.abc import Callable, Sequence

from absl import flags

from arm_tf import cli, data, files
from arm_tf.errors import ConfigError, RunError
from arm_tf.training import scheduler, trials
from arm_tf.training.config import Config
from arm_tf.training.workers import usable_cores

_SECONDS_BETWEEN_VIEWS = 10

_Number = typing.TypeVar("_Number", int, float)


def grid(
    flag_files: Sequence[str | os.PathLike[str]],
    overrides: Sequence[str],
    estimators: Sequence[str] = (),
    learning_rates: Sequence[float] = (),
    seeds: Sequence[int] = (),
) -> list[scheduler.Job]:
    """The cells of a sweep.

    Args:
      flag_files: paths; none stands for the default settings.
      overrides: flags, "--name=value", for every run.
      estimators, learning_rates, seeds: values; none of one kind stands for the flag file's own.

    Returns:
      A list of `arm_tf.training.scheduler.Job`.

    Raises:
      ConfigError: a flag file or a combination that cannot be used.
    """
    varied = {"estimator": estimators, "learning_rate": learning_rates, "seed": seeds}
    varied = {name: list(dict.fromkeys(values)) for name, values in varied.items() if values}
    cells = []
    for file in flag_files or [""]:
        parsed = flags.FlagValues()
        cli.define_flags(parsed)
        try:
            own_flags = cli.with_flag_files([f"--flagfile={file}"] if file else [])
            parsed(["sweep", *own_flags, *overrides])
        except flags.Error as error:
            raise ConfigError(f"{file or 'flags'}: {error}") from None
        if parsed["name"].value:
            raise ConfigError("--name is not for a sweep, whose runs are named by their settings.")
        config = cli.config_from_flags(parsed)
        for values in itertools.product(*varied.values()):
            settings: dict[str, typing.Any] = dict(zip(varied, values, strict=True))
            source = pathlib.Path(file).stem if file else "defaults"
            cells.append(scheduler.Job(dataclasses.replace(config, **settings), source))
    by_path: dict[pathlib.Path, scheduler.Job] = {}
    for cell in cells:
        other = by_path.setdefault(cell.path, cell)
        if other.config != cell.config:
            raise ConfigError(
                f"{other.source} and {cell.source} have runs of one name, {cell.config.name}, "
                "on other data; rename a file, or use another --logdir."
            )
    return cells


def summarise(cells: Sequence[scheduler.Job]) -> list[dict[str, typing.Any]]:
    """For each flag file and estimator the learning rate of the best validation, and its bounds.

    Returns:
      Dicts with "source", "estimator", "learning_rate", "valid_nll" (a mean over seeds), "test_nll"
      (each seed's), "mean", "deviation", and "tried" (validation bounds by learning rate).
    """
    groups: dict[tuple[str, str], dict[float, list[dict[str, typing.Any]]]] = {}
    for cell in cells:
        if cell.result:
            group = groups.setdefault((cell.source, cell.config.estimator), {})
            group.setdefault(cell.config.learning_rate, []).append(cell.result)
    rows = []
    for (source, estimator), by_rate in groups.items():
        tried = {
            rate: trials.Figure.of(result["valid_nll"] for result in results).mean
            for rate, results in by_rate.items()
        }
        best = min(tried, key=tried.__getitem__)
        bounds = [result["test_nll"] for result in by_rate[best]]
        rows.append(
            {
                "source": source,
                "estimator": estimator,
                "learning_rate": best,
                "valid_nll": tried[best],
                "test_nll": bounds,
                **trials.Figure.of(bounds)._asdict(),
                "tried": {str(rate): bound for rate, bound in tried.items()},
            }
        )
    return sorted(rows, key=lambda row: (row["source"], row["mean"]))


def markdown(rows: Sequence[dict[str, typing.Any]], likelihood: str = "log p") -> str:
    """The rows of `summarise` as a Markdown table, and in its head what the bounds are on."""
    lines = [
        f"| flag file | estimator | learning rate | validation | test −{likelihood} ≤ | trials |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        bound = trials.Figure(row["mean"], row["deviation"])
        lines.append(
            f"| {row['source']} | {row['estimator']} | {row['learning_rate']:g} | "
            f"{row['valid_nll']:.2f} | {bound} | {len(row['test_nll'])} |"
        )
    return "\n".join(lines) + "\n"


def _numbers(name: str, kind: Callable[[str], _Number]) -> list[_Number]:
    try:
        return [kind(text) for text in getattr(flags.FLAGS, name)]
    except ValueError:
        given = ",".join(getattr(flags.FLAGS, name))
        raise ConfigError(f"--{name} must be numbers with commas, received {given!r}.") from None


def main() -> None:
    values = flags.FLAGS
    own = {"objective", *(field.name for field in dataclasses.fields(Config))}
    overrides = [values[name].serialize() for name in sorted(own) if values[name].present]
    cells = grid(
        values.flagfiles,
        overrides,
        values.estimators,
        _numbers("learning_rates", float),
        _numbers("seeds", int),
    )
    for dataset, folder, shape in {
        (cell.config.dataset, cell.config.data_dir, cell.config.image_shape) for cell in cells
    }:
        data.load(dataset, folder, image_shape=shape)
    logdir = files.make_folder(values.logdir)
    jobs = list({cell.path: cell for cell in cells if not cell.result}.values())
    begun, finished_before = time.monotonic(), sum(bool(cell.result) for cell in cells)
    if values.address:
        workers = scheduler.ray_tasks(values.address)
    else:
        at_once = values.workers or usable_cores()
        workers = scheduler.processes(at_once, 1, scheduler.append_to_file)
    with workers as (slots, start):
        runs = f"{len(cells)} runs, {finished_before} of them finished before; {slots} at once."
        print(runs, flush=True)
        came_to_an_end = scheduler.run(jobs, slots, start, values.retries, _SECONDS_BETWEEN_VIEWS)
    if not came_to_an_end:
        print("Stopped; the same command does what is left.")
        return
    steps = sum(job.result["steps"] for job in jobs if job.result)
    throughput = {"workers": slots, "steps": steps, "seconds": time.monotonic() - begun}
    rows = summarise(cells)
    table = markdown(rows, " or −".join(sorted({cell.config.likelihood for cell in cells})))
    failed = [cell for cell in cells if not cell.result]
    record = {
        "chosen": rows,
        "throughput": throughput,
        "failed": {c.config.name: c.failures for c in failed},
    }
    files.write_json(logdir / "sweep.json", record)
    files.write_text(logdir / "sweep.md", table)
    print(table, end="")
    if throughput["steps"]:
        rate = throughput["steps"] / throughput["seconds"]
        print(f"{rate:.0f} steps/s by {throughput['workers']} workers, starts and tests included.")
    if failed:
        raise RunError(
            f"{len(failed)} of {len(cells)} runs failed: "
            f"{', '.join(cell.config.name for cell in failed)}; see output.txt in their folders."
        )


if __name__ == "__main__":
    cli.define_flags()
    flags.DEFINE_list("flagfiles", [], "Flag files, such as those in runs/paper.")
    flags.DEFINE_list("estimators", [], "Estimators; unset: that of each flag file.")
    flags.DEFINE_list("learning_rates", ["5e-4", "1e-4", "5e-5"], "Learning rates to choose from.")
    flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds, a trial each.")
    flags.DEFINE_string("address", None, "Of a Ray cluster; unset: this machine alone.")
    flags.DEFINE_integer(
        "workers", None, "Runs at once on this machine; unset: its processors.", lower_bound=1
    )
    flags.DEFINE_integer("retries", 2, "How often a failed run is tried again.", lower_bound=0)
    cli.run(main)

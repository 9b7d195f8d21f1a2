"""Trains a grid of runs: `python -m arm_tf.sweep --flagfiles=FILE,… --estimators=arm,loo`.

Every flag file with every estimator, learning rate and seed, a processor for each run; other
settings, given as to `arm_tf.train`, hold for all. A run that fails is tried again from its last
checkpoint; the same command after a stop or a crash does only what is left. For each flag file and
estimator the learning rate is the one of the best validation, as the paper chooses it; with
--rates_first only the first seed is trained at every rate, and the others at that one. Writes
sweep.json and sweep.md into --logdir; `arm_tf.report` reads the runs.

--paper stands for the flag files of the paper's tables 2 and 3, their learning rates, and
--rates_first; --cells takes a part. --dry_run says what there is to do and what it costs. With
--address the runs are trained on a Ray cluster, whose machines must all see --logdir; that needs
the extra `[sweep]`.
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import itertools
import os
import pathlib
import time
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from absl import flags

from arm_tf import cli, data, files, paper
from arm_tf.errors import ConfigError, DataError, RunError
from arm_tf.training import estimate, run_folder, scheduler, trials
from arm_tf.training.config import INCIDENTAL, Config, flag_file
from arm_tf.training.workers import usable_cores

_SECONDS_BETWEEN_VIEWS = 10

_Number = typing.TypeVar("_Number", int, float)


def paper_cells() -> dict[str, list[str]]:
    """The cells of the paper's tables 2 and 3, flags by EXPERIMENT-ESTIMATOR, as its flag files."""
    return {
        f"{experiment}-{estimator}": flag_file({**settings, "estimator": estimator}).splitlines()
        for experiment, settings in paper.SETTINGS.items()
        for estimator in paper.PUBLISHED[experiment]
    }


def select(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names, in their order, that patterns such as "omniglot-*" fit; all without a pattern.

    Raises:
      ConfigError: a pattern fits none.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, cutoff=0) or ["none"]
            raise ConfigError(f"--cells: no cell {pattern!r}; most like it: {', '.join(near)}.")
    fits = lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    return [name for name in names if not patterns or fits(name)]


def grid(
    flag_files: Sequence[str | os.PathLike[str]] | Mapping[str, Sequence[str]],
    overrides: Sequence[str],
    estimators: Sequence[str] = (),
    learning_rates: Sequence[float] = (),
    seeds: Sequence[int] = (),
) -> list[scheduler.Job]:
    """The cells of a sweep.

    Args:
      flag_files: paths, or flags by name; none stands for the default settings.
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
    if not isinstance(flag_files, Mapping):
        flag_files = {str(file): [f"--flagfile={file}"] for file in flag_files} or {"": []}
    for file, own_flags in flag_files.items():
        parsed = flags.FlagValues()
        cli.define_flags(parsed)
        try:
            parsed(["sweep", *cli.with_flag_files(own_flags), *overrides])
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


def runs_in(logdir: str | os.PathLike[str]) -> list[Config]:
    """Configurations of the runs in a folder, by the names that they have there; a list."""
    found = []
    for file in sorted(pathlib.Path(logdir).glob("*/config.json")):
        with contextlib.suppress(ConfigError, RunError):
            config = run_folder.read_config(file.parent)
            found.append(dataclasses.replace(config, logdir=str(logdir), name=file.parent.name))
    return found


def find_finished(cells: Sequence[scheduler.Job], runs: Iterable[Config]) -> None:
    """Lets finished ones among the runs stand for cells from which they differ incidentally."""
    settings = lambda config: [*config.settings().items(), ("logdir", config.logdir)]
    key = lambda config: tuple((k, v) for k, v in settings(config) if k not in INCIDENTAL)
    finished: dict[Hashable, Config] = {}
    for config in runs:
        result = run_folder.read_result(run_folder.run_path(config))
        if result and result.get("data_published") is not False:
            finished.setdefault(key(config), config)
    for cell in cells:
        if not cell.result:
            cell.config = finished.get(key(cell.config), cell.config)


@dataclasses.dataclass(eq=False)
class _AtBestRate(scheduler.Job):
    """A run at the learning rate of the best validation, once all with the first seed have ended.

    Attributes:
      group: the grid's cells of its flag file and estimator.
    """

    group: Sequence[scheduler.Job] = ()

    def is_ready(self) -> bool:
        first, seed = self.group[0].config.seed, self.config.seed
        rates = [cell for cell in self.group if cell.config.seed == first]
        if not all(cell.is_given_up or cell.result for cell in rates):
            return False
        if by_rate := _finished(self.group):
            best = _best_rate(by_rate)
            self.config = next(
                cell.config
                for cell in self.group
                if (cell.config.learning_rate, cell.config.seed) == (best, seed)
            )
        return bool(by_rate)


def rates_first(cells: Sequence[scheduler.Job]) -> list[scheduler.Job]:
    """Of a grid every learning rate with the first seed, and the other seeds at the best rate."""
    jobs = []
    for group in _by_estimator(cells).values():
        rate, first = group[0].config.learning_rate, group[0].config.seed
        jobs += [cell for cell in group if cell.config.seed == first]
        others = [c for c in group if c.config.seed != first and c.config.learning_rate == rate]
        jobs += [_AtBestRate(cell.config, cell.source, group=group) for cell in others]
    return jobs


def _by_estimator(cells: Iterable[scheduler.Job]) -> dict[tuple[str, str], list[scheduler.Job]]:
    """Cells by flag file and estimator, lists."""
    groups: dict[tuple[str, str], list[scheduler.Job]] = {}
    for cell in cells:
        groups.setdefault((cell.source, cell.config.estimator), []).append(cell)
    return groups


def _finished(cells: Iterable[scheduler.Job]) -> dict[float, dict[int, dict[str, typing.Any]]]:
    """Results by learning rate and seed."""
    found: dict[float, dict[int, dict[str, typing.Any]]] = {}
    for cell in cells:
        if result := cell.result:
            found.setdefault(cell.config.learning_rate, {})[cell.config.seed] = result
    return found


def _best_rate(results: Mapping[float, Mapping[int, dict[str, typing.Any]]]) -> float:
    return trials.best_rate(
        {rate: {s: r["valid_nll"] for s, r in by_seed.items()} for rate, by_seed in results.items()}
    )


def outline(jobs: Sequence[scheduler.Job], runs: Iterable[Config] = ()) -> str:
    """What is finished and what is left, a line for each flag file and estimator, and in all.

    The pace of the runs tells of that of the jobs.
    """
    paces = estimate.Paces([*runs, *(job.config for job in jobs)])
    lines = []
    for (source, estimator), group in _by_estimator(jobs).items():
        seeds: dict[str, list[str]] = {}
        for job in group:
            if not job.is_ready():
                seeds.setdefault("the best", []).append(str(job.config.seed))
            elif not job.result:
                seeds.setdefault(f"{job.config.learning_rate:g}", []).append(str(job.config.seed))
        rates: dict[str, list[str]] = {}
        for rate, given in seeds.items():
            rates.setdefault(", ".join(given), []).append(rate)
        to_do = "; ".join(f"{', '.join(each)} with seed {given}" for given, each in rates.items())
        title = source if source.endswith(estimator) else f"{source}, {estimator}"
        finished = len(group) - sum(map(len, seeds.values()))
        left = paces.left(job.config for job in group)
        rest = f"; to do {to_do}; {left}" if to_do else ""
        lines.append(f"{title}: {finished} of {len(group)} runs finished{rest}.")
    left = paces.left(job.config for job in jobs)
    known = "How long a run takes is known once one like it has been evaluated."
    lines += [f"In all {len(jobs)} runs; {left}."] + [known] * bool(left.unknown)
    return "\n".join(lines)


def summarise(cells: Sequence[scheduler.Job]) -> list[dict[str, typing.Any]]:
    """For each flag file and estimator the learning rate of the best validation, and its bounds.

    Returns:
      Dicts with "source", "estimator", "learning_rate", "valid_nll" (a mean over seeds), "test_nll"
      (each seed's), "mean", "deviation", and "tried" (validation bounds by learning rate).
    """
    rows = []
    for (source, estimator), group in _by_estimator(cells).items():
        by_rate = _finished(group)
        if not by_rate:
            continue
        tried = {
            rate: trials.Figure.of(result["valid_nll"] for result in results.values()).mean
            for rate, results in by_rate.items()
        }
        best = _best_rate(by_rate)
        bounds = [result["test_nll"] for result in by_rate[best].values()]
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
    cells = _cells(overrides)
    left_out = _without_data(cells)
    cells = [cell for cell in cells if cell not in left_out]
    runs = [run for folder in {cell.config.logdir for cell in cells} for run in runs_in(folder)]
    find_finished(cells, runs)
    is_rates_first = values.paper if values.rates_first is None else values.rates_first
    jobs = rates_first(cells) if is_rates_first else cells
    for job in jobs:
        job.is_ready()  # decides what is decided
    jobs = list({job.path: job for job in jobs}.values())
    if values.dry_run:
        print(outline(jobs, runs))
        return
    logdir = files.make_folder(values.logdir)
    to_do = [job for job in jobs if not job.result]
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
    steps = sum(job.result["steps"] for job in to_do if job.result)
    throughput = {"workers": slots, "steps": steps, "seconds": time.monotonic() - begun}
    rows = summarise(cells)
    table = markdown(rows, " or −".join(sorted({cell.config.likelihood for cell in cells})))
    failed = [job for job in jobs if not job.result]
    record = {
        "chosen": rows,
        "throughput": throughput,
        "failed": {job.config.name: job.failures for job in failed if job.failures},
    }
    files.write_json(logdir / "sweep.json", record)
    files.write_text(logdir / "sweep.md", table)
    print(table, end="")
    if throughput["steps"]:
        rate = throughput["steps"] / throughput["seconds"]
        print(f"{rate:.0f} steps/s by {throughput['workers']} workers, starts and tests included.")
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
    if errors:
        raise RunError(" ".join(errors))


def _cells(overrides: Sequence[str]) -> list[scheduler.Job]:
    """The cells that the flags ask for."""
    values = flags.FLAGS
    rates, seeds = _numbers("learning_rates", float), _numbers("seeds", int)
    if not values.paper:
        names = {file: pathlib.Path(file).stem for file in values.flagfiles}
        selected = select(names.values(), values.cells)
        flag_files = [file for file in values.flagfiles if names[file] in selected]
        return grid(flag_files, overrides, values.estimators, rates, seeds)
    if values.flagfiles:
        raise ConfigError("--paper stands for flag files of its own; leave --flagfiles out.")
    by_name, cells = paper_cells(), []
    for name in select(by_name, values.cells):
        if not flags.FLAGS["learning_rates"].present:
            rates = list(paper.learning_rates(name.rpartition("-")[0]))
        cells += grid({name: by_name[name]}, overrides, values.estimators, rates, seeds)
    return cells


def _without_data(cells: Sequence[scheduler.Job]) -> list[scheduler.Job]:
    """Cells whose data cannot be had; prints a line on those of each data set.

    Raises:
      DataError: there are no others.
    """
    by_data: dict[tuple, list[scheduler.Job]] = {}
    for cell in cells:
        key = (cell.config.dataset, cell.config.data_dir, cell.config.image_shape)
        by_data.setdefault(key, []).append(cell)
    left_out: list[scheduler.Job] = []
    for (dataset, folder, shape), group in by_data.items():
        try:
            data.load(dataset, folder, image_shape=shape)
        except DataError as error:
            left_out += group
            if len(left_out) == len(cells):
                raise
            sources = dict.fromkeys(cell.source for cell in group)
            print(f"Left out for want of data: {', '.join(sources)}. {error}", flush=True)
    return left_out


if __name__ == "__main__":
    cli.define_flags()
    flags.DEFINE_bool("paper", False, "Sweep the paper's tables 2 and 3, with --rates_first.")
    flags.DEFINE_list("flagfiles", [], "Flag files, such as those in runs/paper.")
    flags.DEFINE_list(
        "cells",
        [],
        "Names of flag files to take of those, without their ending; * stands for anything, as in "
        "mnist_static-*-arm. Unset: all.",
    )
    flags.DEFINE_list("estimators", [], "Estimators; unset: that of each flag file.")
    flags.DEFINE_list(
        "learning_rates", ["5e-4", "1e-4", "5e-5"], "To choose from; --paper has its own."
    )
    flags.DEFINE_bool(
        "rates_first",
        None,
        "Train every learning rate with the first seed alone, and the other seeds at the best.",
    )
    flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds, a trial each.")
    flags.DEFINE_string("address", None, "Of a Ray cluster; unset: this machine alone.")
    flags.DEFINE_integer(
        "workers", None, "Runs at once on this machine; unset: its processors.", lower_bound=1
    )
    flags.DEFINE_integer("retries", 2, "How often a failed run is tried again.", lower_bound=0)
    flags.DEFINE_bool("dry_run", False, "Say what there is to do and what it costs; do nothing.")
    cli.run(main)

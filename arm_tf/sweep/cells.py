"""The grid of a sweep, what is finished of it, and the order in which to train it."""

import collections
import contextlib
import dataclasses
import difflib
import fnmatch
import itertools
import os
import pathlib
import typing
from collections.abc import Hashable, Iterable, Mapping, Sequence

from absl import flags

from arm_tf import cli, paper
from arm_tf.errors import ConfigError, RunError
from arm_tf.training import run_folder, scheduler, trials
from arm_tf.training.config import INCIDENTAL, Config, flag_file


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


def named(files: Iterable[str]) -> dict[str, list[str]]:
    """Flags of flag files, by the files' names without ending, and without folder if that tells."""
    paths = {file: pathlib.Path(file) for file in files}
    stems = collections.Counter(path.stem for path in paths.values())
    name = lambda path: path.stem if stems[path.stem] == 1 else path.with_suffix("").as_posix()
    return {name(path): [f"--flagfile={file}"] for file, path in paths.items()}


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
        flag_files = named(map(str, flag_files)) or {"defaults": []}
    for source, own_flags in flag_files.items():
        parsed = flags.FlagValues()
        cli.define_flags(parsed)
        try:
            parsed(["sweep", *cli.with_flag_files(own_flags), *overrides])
        except (flags.Error, ValueError) as error:  # the second for a value of --noNAME
            raise ConfigError(f"{source}: {error}") from None
        if parsed["name"].value:
            raise ConfigError("--name is not for a sweep, whose runs are named by their settings.")
        config = cli.config_from_flags(parsed)
        for values in itertools.product(*varied.values()):
            settings: dict[str, typing.Any] = dict(zip(varied, values, strict=True))
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
        result = None
        with contextlib.suppress(RunError):
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

    @property
    def result(self) -> dict[str, typing.Any] | None:
        return super().result if self.is_ready() else None

    def is_ready(self) -> bool:
        first, seed = self.group[0].config.seed, self.config.seed
        rates = [cell for cell in self.group if cell.config.seed == first]
        if not all(cell.is_given_up or cell.result for cell in rates):
            return False
        if by_rate := results_of(rates):  # not of other seeds, which would change as they end
            best = best_rate(by_rate)
            self.config = next(
                cell.config
                for cell in self.group
                if (cell.config.learning_rate, cell.config.seed) == (best, seed)
            )
        return bool(by_rate)


def rates_first(cells: Sequence[scheduler.Job]) -> list[scheduler.Job]:
    """Of a grid every learning rate with the first seed, and the other seeds at the best rate."""
    jobs = []
    for group in by_estimator(cells).values():
        rate, first = group[0].config.learning_rate, group[0].config.seed
        jobs += [cell for cell in group if cell.config.seed == first]
        others = [c for c in group if c.config.seed != first and c.config.learning_rate == rate]
        jobs += [_AtBestRate(cell.config, cell.source, group=group) for cell in others]
    return jobs


def by_estimator(cells: Iterable[scheduler.Job]) -> dict[tuple[str, str], list[scheduler.Job]]:
    """Cells by flag file and estimator, lists."""
    groups: dict[tuple[str, str], list[scheduler.Job]] = {}
    for cell in cells:
        groups.setdefault((cell.source, cell.config.estimator), []).append(cell)
    return groups


def results_of(cells: Iterable[scheduler.Job]) -> dict[float, dict[int, dict[str, typing.Any]]]:
    """Results by learning rate and seed."""
    found: dict[float, dict[int, dict[str, typing.Any]]] = {}
    for cell in cells:
        if result := cell.result:
            found.setdefault(cell.config.learning_rate, {})[cell.config.seed] = result
    return found


def best_rate(results: Mapping[float, Mapping[int, dict[str, typing.Any]]]) -> float:
    """The learning rate of the best validation among `results_of` cells."""
    return trials.best_rate(
        {rate: {s: r["valid_nll"] for s, r in by_seed.items()} for rate, by_seed in results.items()}
    )

"""The grid of a sweep, what is finished of it, and the order in which to train it."""

import contextlib
import dataclasses
import os
import pathlib
import types
import typing
from collections.abc import Hashable, Iterable, Mapping, Sequence

from arm_tf import estimators
from arm_tf.errors import ConfigError, RunError
from arm_tf.experiments import Experiment
from arm_tf.training import run_folder, scheduler, trials
from arm_tf.training.config import Config, names_of


def grid(
    experiments: Sequence[Experiment | None],
    changes: Mapping[str, typing.Any] = types.MappingProxyType({}),
    names: Sequence[str] = (),
    learning_rates: Sequence[float] = (),
    seeds: Sequence[int] = (),
) -> list[scheduler.Job]:
    """The cells of a sweep.

    Args:
      experiments: of papers; none stands for the default settings.
      changes: settings of every run that are not the experiment's, by name.
      names: of estimators; none stands for those of each experiment.
      learning_rates: likewise.
      seeds: none stands for that of `changes`.

    Returns:
      A list of `arm_tf.training.scheduler.Job`, the estimator varying faster than the experiment,
      then the rate, then the seed.

    Raises:
      ConfigError: a combination that cannot be used.
    """
    if "name" in changes:
        raise ConfigError("--name is not for a sweep, whose runs are named by their settings.")
    jobs: list[scheduler.Job] = []
    for experiment in experiments or [None]:
        name, rates = None, learning_rates
        own: dict[str, list[dict[str, typing.Any]]] = {}
        if experiment:
            name, rates = experiment.name, learning_rates or experiment.rates
            for cell in experiment.cells:
                own.setdefault(cell.estimator, []).append({"num_samples": cell.num_samples})
        one = [changes["estimator"]] if "estimator" in changes else []
        asked = names or one or list(own) or [Config.estimator]
        configs = [
            Config.of(name, **{"estimator": estimator, **samples, **changes, **rate, **seed})
            for estimator in asked
            for samples in own.get(estimator, [{}])
            for rate in [{"learning_rate": rate} for rate in rates] or [{}]
            for seed in [{"seed": seed} for seed in seeds] or [{}]
        ]
        one_a_run = {config.name: config for config in configs}
        jobs += [scheduler.Job(config, name or "defaults") for config in one_a_run.values()]
    return jobs


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
    incidental = names_of("execution")
    settings = lambda config: [*config.settings().items(), ("logdir", config.logdir)]
    key = lambda config: tuple((k, v) for k, v in settings(config) if k not in incidental)
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
      group: the grid's cells of its experiment and estimator.
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
    """Cells by experiment and estimator, the latter with its K where that is not the usual one."""
    groups: dict[tuple[str, str], list[scheduler.Job]] = {}
    for cell in cells:
        name, samples = cell.config.estimator, cell.config.num_samples
        is_usual = samples == estimators.check(name, None)[1]
        label = name if is_usual else f"{name}, num_samples={samples}"
        groups.setdefault((cell.source, label), []).append(cell)
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

"""The runs below a folder, as they come into tables and figures."""

import csv
import dataclasses
import math
import os
import pathlib
import typing
from collections.abc import Iterable

from arm_tf import estimators, files, paper
from arm_tf.errors import RunError
from arm_tf.training import config, run_folder

# Settings in which runs of one experiment may differ from the paper's without a word.
_INCIDENTAL = {"seed", "epochs", "max_steps", *config.INCIDENTAL}
STAND_IN = "-stand_in"  # at the end of an experiment's name: the data are not the published ones


COLUMNS = {
    "run": "run",
    "test_nll": "test −log p ≤",
    "test_neg_elbo": "test −ELBO",
    "best_epoch": "best epoch",
    "epochs": "epochs",
    "steps_per_second": "steps/s",
    "evaluations_per_step": "evaluations of f",
    "gradient_variance": "gradient variance",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      name: of its folder, below the folder that was searched.
      config: `arm_tf.training.config.Config`.
      result: dict, what result.json holds.
      metrics: rows of metrics.csv, dicts of floats; all have `training_seconds`, which in runs of
        versions that did not write it is steps over the result's steps a second of training.
      gradient_variance: of its own estimator, where `arm_tf.variance` measured it, or None.
    """

    name: str
    config: config.Config
    result: dict[str, typing.Any]
    metrics: list[dict[str, float]]
    gradient_variance: float | None

    @property
    def experiment(self) -> str | None:
        """Name of the paper's experiment with the same data and network, or None."""
        same = ("dataset", "model", "network", "layers")
        for name, settings in paper.SETTINGS.items():
            other = config.Config(**settings)
            if all(getattr(other, field) == getattr(self.config, field) for field in same):
                return name
        return None

    @property
    def is_comparable(self) -> bool:
        """Whether it is an experiment of the paper, at full length on the published data."""
        if self.experiment is None or self.result.get("data_published") is not True:
            return False
        return self.result["epochs"] == paper.SETTINGS[self.experiment]["epochs"]

    @property
    def departures(self) -> dict[str, typing.Any]:
        """Settings that are not the paper's; a dict."""
        experiment, estimator = self.experiment, self.config.estimator
        assert experiment, "there are no settings of the paper for this run"
        usual = {"estimator": estimator, "num_samples": estimators.check(estimator, None)[1]}
        plain = config.Config(**{**paper.SETTINGS[experiment], **usual})
        differing = set(self.config.differences(plain)) - _INCIDENTAL
        return {name: getattr(self.config, name) for name in sorted(differing)}


def gather(folder: str | os.PathLike[str]) -> tuple[list[Run], list[str]]:
    """The finished runs below a folder, and notes on what was passed over.

    Args:
      folder: path.

    Returns:
      A list of `Run`, sorted by the test bound, and a list of str.
    """
    runs, notes = [], []
    for config_file in sorted(pathlib.Path(folder).rglob("config.json")):
        path = config_file.parent
        name = path.relative_to(folder).as_posix()
        try:
            settings = run_folder.read_config(path)
            metrics = run_folder.read_metrics(path)
            if not (path / "result.json").exists():
                epoch = f"{metrics[-1]['epoch']:g}" if metrics else "none"
                notes.append(f"{name}: not finished (epoch {epoch} of {settings.epochs})")
                continue
            result = files.read_json(path / "result.json")
            missing = {*COLUMNS, "valid_nll"} - set(result) - {"run", "gradient_variance"}
            if missing:
                raise KeyError(f"no {', '.join(sorted(missing))}")
            if not all("training_seconds" in row for row in metrics):
                rate = result["steps_per_second"]
                metrics = [{**row, "training_seconds": row["step"] / rate} for row in metrics]
            variance = _own_variance(path, settings.estimator)
            runs.append(Run(name, settings, result, metrics, variance))
        except (OSError, ValueError, KeyError, TypeError, RunError) as error:
            notes.append(f"{name}: cannot be read ({error})")
    return sorted(runs, key=lambda run: run.result["test_nll"]), notes


def _own_variance(path: pathlib.Path, estimator: str) -> float | None:
    """Of the run's own estimator in the weights, where `arm_tf.variance` measured it, or None."""
    file = path / "variance.csv"
    if not file.exists():
        return None
    variance = None  # the last step's, where there are several
    with open(file, newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["estimator"] == estimator:
                variance = float(row["variance_weights"])
    return variance


def by_trials(runs: Iterable[Run]) -> dict[tuple, list[Run]]:
    """Runs that differ in the seed alone: by experiment, estimator and departures, lists."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.experiment, run.config.estimator, tuple(run.departures.items()))
        groups.setdefault(key, []).append(run)
    return groups


def named(estimator: str, departures: Iterable[tuple[str, typing.Any]]) -> str:
    """An estimator with the settings that are not the paper's, as a text."""
    return ", ".join([estimator, *(f"{name}={value}" for name, value in departures)])


def curves(runs: Iterable[Run]) -> dict[str, dict[str, list[list[dict[str, float]]]]]:
    """Curves of each of the paper's experiments among the runs, for `figures.elbo_curves`.

    Returns:
      By experiment, in the paper's order ("…-stand_in" on other data than the published files), and
      then by estimator and departures from the paper's settings (a text), a list of trials' metrics
      at the steps that all of them evaluated; runs of other lengths than the longest of their
      experiment are left out.
    """
    by_experiment: dict[str, list[Run]] = {}
    for run in runs:
        if run.experiment and run.metrics and math.isfinite(run.result["test_nll"]):
            other = STAND_IN if run.result.get("data_published") is False else ""
            by_experiment.setdefault(run.experiment + other, []).append(run)
    found: dict[str, dict[str, list[list[dict[str, float]]]]] = {}
    order = list(paper.SETTINGS)
    for experiment in sorted(by_experiment, key=lambda x: order.index(x.removesuffix(STAND_IN))):
        group = by_experiment[experiment]
        longest = max(run.result["steps"] for run in group)
        groups: dict[str, list[Run]] = {}
        for run in group:
            if run.result["steps"] == longest:
                kept = [(name, v) for name, v in run.departures.items() if name != "test_samples"]
                groups.setdefault(named(run.config.estimator, kept), []).append(run)
        for name, same in groups.items():
            steps = set.intersection(*({row["step"] for row in run.metrics} for run in same))
            found.setdefault(experiment, {})[name] = [
                [row for row in run.metrics if row["step"] in steps] for run in same
            ]
    return found

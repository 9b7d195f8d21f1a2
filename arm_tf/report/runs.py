"""The runs below a folder, as they come into tables and figures."""

import dataclasses
import functools
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

SPEEDS = "speeds.json"  # the file, in a folder with runs

COLUMNS = {
    "run": "run",
    "test_nll": "test −log p ≤",
    "test_neg_elbo": "test −ELBO",
    "best_epoch": "best epoch",
    "epochs": "epochs",
    "steps_per_second": "steps/s",
    "evaluations_per_step": "evaluations of f a step",
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
        versions that did not write it is steps over the result's steps a second of training. Where
        the folder that was searched holds speeds.json, of `arm_tf.benchmark --speeds`, it is steps
        over the speed of `speed_of` there, and NaN where there is none.
      gradient_variance: of its own estimator, where `arm_tf.variance` measured it, or None.
      variance_samples: K at which that is, or None where that is not known.
    """

    name: str
    config: config.Config
    result: dict[str, typing.Any]
    metrics: list[dict[str, float]]
    gradient_variance: float | None
    variance_samples: int | None = None

    @functools.cached_property
    def _place(self) -> tuple[str, str] | None:
        """Folder of the flag files of the paper whose experiment it is, and its name, or None.

        Of several, those from whose settings it departs least, and which have its estimator.
        """
        places = [
            (folder, name)
            for folder, its in paper.PAPERS.items()
            for name in its.settings
            if all(
                getattr(_plain(folder, name), field) == getattr(self.config, field)
                for field in its.told_by
            )
        ]
        departures = lambda place: len(set(self._departures(*place)) - {"num_samples"})
        rank = lambda place: (departures(place), self._cell(*place) is None)
        return min(places, key=rank, default=None)

    @property
    def source(self) -> str | None:
        """Folder of the flag files of the paper whose experiment it is, as in PAPERS, or None."""
        return self._place[0] if self._place else None

    @property
    def experiment(self) -> str | None:
        """Name of that paper's experiment with the same data and network, or None."""
        return self._place[1] if self._place else None

    @property
    def is_comparable(self) -> bool:
        """Whether it is an experiment of *the* paper, at full length on the published data."""
        if not self._place or self._place[0] != "paper":
            return False
        is_published = self.result.get("data_published") is True
        return is_published and self.result["epochs"] == paper.SETTINGS[self._place[1]]["epochs"]

    @property
    def is_stand_in(self) -> bool:
        """Whether its data are known not to be the published files."""
        return self.result.get("data_published") is False

    @property
    def picture(self) -> str:
        """Name of the picture that its curves are in, with those of its experiment; a file's."""
        folder = f"{self.source}-" if self.source in paper.OTHERS else ""
        return f"{folder}{self.experiment}{'-stand_in' * self.is_stand_in}"

    @property
    def is_benchmark(self) -> bool:
        """Whether it is an experiment of another paper, of any length, on the published data."""
        return self.source in paper.OTHERS and self.result.get("data_published") is True

    @property
    def evaluations(self) -> int:
        """Evaluations of f that the estimator makes, the decoder's further one left out."""
        return self.config.evaluations

    @property
    def departures(self) -> dict[str, typing.Any]:
        """Settings that are not the paper's; a dict, with any K but the estimator's usual one."""
        assert self._place, "there are no settings of a paper for this run"
        return self._departures(*self._place)

    @property
    def speed_of(self) -> tuple[str, str]:
        """What its speed hangs on: the experiment, as its picture is named, and the estimator.

        The latter with settings that are not the paper's, but for learning rates.
        """
        settings = [(name, value) for name, value in self.departures.items()
                    if name != "test_samples" and not name.endswith("learning_rate")]  # fmt: skip
        return self.picture, named(self.config.estimator, settings)

    def published(self, name: str) -> paper.Figure:
        """A figure that the paper has of it, by its name in result.json or metrics.csv, or None."""
        cell = self._cell(*self._place) if self._place else None
        if not (self._place and cell):
            return None
        folder, experiment = self._place
        return paper.PAPERS[folder].published.get(experiment, {}).get(cell, {}).get(name)

    def _departures(self, folder: str, experiment: str) -> dict[str, typing.Any]:
        cell = self._cell(folder, experiment)
        its, estimator = paper.PAPERS[folder], self.config.estimator
        own = its.cells[experiment][cell] if cell else {}
        usual = {"estimator": estimator, "num_samples": estimators.check(estimator, None)[1]}
        plain = config.Config(**{**its.settings[experiment], **own, **usual})
        differing = set(self.config.differences(plain)) - _INCIDENTAL
        return {name: getattr(self.config, name) for name in sorted(differing)}

    def _cell(self, folder: str, experiment: str) -> str | None:
        """Name of the paper's cell with the same estimator, and its samples, or None."""
        for name, cell in paper.PAPERS[folder].cells[experiment].items():
            asked = estimators.check(cell["estimator"], cell.get("num_samples"))
            if (asked[0].name, asked[1]) == (self.config.estimator, self.config.num_samples):
                return name
        return None


@functools.cache
def _plain(folder: str, experiment: str) -> config.Config:
    """A paper's settings for an experiment."""
    return config.Config(**paper.PAPERS[folder].settings[experiment])


def gather(folder: str | os.PathLike[str]) -> tuple[list[Run], list[str]]:
    """The finished runs below a folder, and notes on what was passed over.

    Args:
      folder: path.

    Returns:
      A list of `Run`, sorted by the test bound, and a list of str.
    """
    runs, notes = [], []
    speeds = {}
    try:
        speeds = _speeds(pathlib.Path(folder) / SPEEDS)
    except files.UNREADABLE as error:
        notes.append(f"{SPEEDS}: cannot be read ({error})")
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
            result = run_folder.read_result(path) or {}
            missing = {*COLUMNS, "valid_nll"} - set(result) - {"run", "gradient_variance"}
            if missing:
                raise KeyError(f"no {', '.join(sorted(missing))}")
            if not all("training_seconds" in row for row in metrics):
                rate = result["steps_per_second"]
                metrics = [{**row, "training_seconds": row["step"] / rate} for row in metrics]
            variance = _own_variance(path, settings.estimator)
            run = Run(name, settings, result, metrics, *variance)
            if speeds and run.experiment:
                rate = speeds.get(run.speed_of, math.nan)
                metrics = [{**row, "training_seconds": row["step"] / rate} for row in metrics]
                run = dataclasses.replace(run, metrics=metrics)
            runs.append(run)
        except (*files.UNREADABLE, RunError) as error:
            notes.append(f"{name}: cannot be read ({error})")
    return sorted(runs, key=lambda run: run.result["test_nll"]), notes


def _speeds(file: pathlib.Path) -> dict[tuple[str, str], float]:
    """Steps a second by `Run.speed_of`, as `arm_tf.benchmark --speeds` has measured them."""
    if not file.exists():
        return {}
    speeds = {
        (experiment, estimator): float(rate["median"])
        for experiment, rates in files.read_json(file)["speeds"].items()
        for estimator, rate in rates.items()
    }
    if not all(rate > 0 for rate in speeds.values()):
        raise ValueError("a speed is not above 0")
    return speeds


def _own_variance(path: pathlib.Path, estimator: str) -> tuple[float | None, int | None]:
    """Of the run's estimator in the weights, and at which K, if `arm_tf.variance` measured it."""
    file = path / "variance.csv"
    if not file.exists():
        return None, None
    variance = samples = None  # the last step's, where there are several
    for row in files.read_csv(file):
        if row["estimator"] == estimator:
            variance = float(row["variance_weights"])
            samples = int(row["samples"]) if "samples" in row else None
    return variance, samples


def by_trials(runs: Iterable[Run]) -> dict[tuple, list[Run]]:
    """Runs of a paper that differ in the seed alone: by experiment, estimator and departures."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.experiment, run.config.estimator, tuple(run.departures.items()))
        groups.setdefault(key, []).append(run)
    return groups


def by_seed(runs: Iterable[Run]) -> dict[int, Run]:
    """One run a seed, of several the one of the best validation."""
    worst_first = sorted(runs, key=lambda run: run.result["valid_nll"], reverse=True)
    return {run.config.seed: run for run in worst_first}


def named(estimator: str, departures: Iterable[tuple[str, typing.Any]]) -> str:
    """An estimator with the settings that are not the paper's, as a text."""
    text = lambda name, value: scientific(value) if name == "learning_rate" else value
    return ", ".join([estimator, *(f"{name}={text(name, v)}" for name, v in departures)])


def scientific(number: float) -> str:
    """A number as people write a learning rate: "1e-4"."""
    mantissa, exponent = f"{number:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def curves(runs: Iterable[Run]) -> dict[str, dict[str, list[list[dict[str, float]]]]]:
    """Curves of each of the papers' experiments among the runs, for `figures.elbo_curves`.

    Returns:
      By `Run.picture`, in the papers' order, and then by estimator and departures from the paper's
      settings (a text), a list of trials' metrics at the steps that all of them evaluated; runs of
      other lengths than the longest of their experiment are left out.
    """
    order: list[tuple] = [
        (folder, name) for folder, its in paper.PAPERS.items() for name in its.settings
    ]
    found: dict[str, dict[str, list[list[dict[str, float]]]]] = {}
    by_picture: dict[str, list[Run]] = {}
    of_papers = [run for run in runs if run.experiment and run.metrics]
    place = lambda run: (order.index((run.source, run.experiment)), run.is_stand_in)
    for run in sorted(of_papers, key=place):
        if math.isfinite(run.result["test_nll"]):
            by_picture.setdefault(run.picture, []).append(run)
    for picture, group in by_picture.items():
        longest = max(run.result["steps"] for run in group)
        groups: dict[str, list[Run]] = {}
        for run in group:
            if run.result["steps"] == longest:
                kept = [(name, v) for name, v in run.departures.items() if name != "test_samples"]
                groups.setdefault(named(run.config.estimator, kept), []).append(run)
        for name, trials in groups.items():
            same = by_seed(trials).values()
            steps = set.intersection(*({row["step"] for row in run.metrics} for run in same))
            found.setdefault(picture, {})[name] = [
                [row for row in run.metrics if row["step"] in steps] for run in same
            ]
    return found

"""The runs below a folder, as they come into tables and figures."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import typing
from collections.abc import Iterable, Iterator

from arm_tf import experiments, files
from arm_tf.errors import RunError
from arm_tf.training import config, run_folder

SPEEDS = "speeds.json"  # the file, in a folder with runs
TABLE, _METRICS = "runs.json", "metrics.csv"  # of a table of runs

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
      record: what config.json holds, and further "result", what result.json does, "metrics", rows
        of metrics.csv, and "variance", the last row of its own estimator in variance.csv or None;
        a dict.
      metrics: rows of metrics.csv, dicts of floats; all have `training_seconds`, which in runs of
        versions that did not write it is steps over the result's steps a second of training. Where
        the folder that was searched holds speeds.json, of `arm_tf.benchmark --speeds`, it is steps
        over the speed of `speed_of` there, and NaN where there is none.
    """

    name: str
    config: config.Config
    record: dict[str, typing.Any]
    metrics: list[dict[str, float]]

    @property
    def result(self) -> dict[str, typing.Any]:
        """What result.json holds."""
        return self.record["result"]

    @property
    def experiment(self) -> experiments.Experiment | None:
        """The experiment that it was started as, or None."""
        name = self.config.experiment
        return None if name is None else experiments.find(name)

    @property
    def gradient_variance(self) -> float | None:
        """Of its own estimator in the weights, where `arm_tf.variance` has measured it."""
        variance = self.record["variance"]
        return variance and float(variance["variance_weights"])

    @property
    def variance_samples(self) -> int | None:
        """K at which that is, or None where that is not known."""
        samples = (self.record["variance"] or {}).get("samples")
        return samples and int(samples)

    @property
    def is_comparable(self) -> bool:
        """Whether it is an experiment of *the* paper, at full length on the published data."""
        its = self.experiment
        if not (its and its.paper == experiments.PAPER and self.is_published):
            return False
        return self.result["epochs"] == its.settings["epochs"]

    @property
    def is_benchmark(self) -> bool:
        """Whether it is an experiment of another paper, of any length, on the published data."""
        its = self.experiment
        return its is not None and its.paper != experiments.PAPER and self.is_published

    @property
    def is_published(self) -> bool:
        """Whether its data are known to be the published files."""
        return self.result.get("data_published") is True

    @property
    def is_stand_in(self) -> bool:
        """Whether its data are known not to be the published files."""
        return self.result.get("data_published") is False

    @property
    def evaluations(self) -> int:
        """Evaluations of f that the estimator makes, the decoder's further one left out."""
        return self.config.evaluations

    @property
    def departures(self) -> dict[str, typing.Any]:
        """Settings that are not the paper's; a dict, with any K but the estimator's usual one."""
        without_a_word = config.names_of("trial", "execution")
        changed = sorted(self.config.changed.items())
        return {name: value for name, value in changed if name not in without_a_word}

    @property
    def picture(self) -> str:
        """The experiment's name, under which its curves are drawn, apart where data are others."""
        return f"{self.config.experiment}{'-stand_in' * self.is_stand_in}"

    @property
    def speed_of(self) -> tuple[str, str]:
        """What its speed hangs on: `picture` and the estimator.

        The latter with settings that are not the paper's, but for learning rates.
        """
        settings = [(name, value) for name, value in self.departures.items()
                    if name != "test_samples" and not name.endswith("learning_rate")]  # fmt: skip
        return self.picture, label(self.config.estimator, settings)

    def published(self, figure: str) -> experiments.Published:
        """A figure that the paper has of it, by its name in result.json or metrics.csv, or None."""
        its, own = self.experiment, self.config
        cell = its and its.cell(own.estimator, own.num_samples)
        return cell.published.get(figure) if cell else None


def gather(folder: str | os.PathLike[str]) -> tuple[list[Run], list[str]]:
    """The finished runs below a folder, and notes on what was passed over.

    Args:
      folder: path; the runs have folders of their own, or are rows of a table of `save`.

    Returns:
      A list of `Run`, sorted by the test bound, and a list of str.
    """
    folder = pathlib.Path(folder)
    speeds: dict[tuple[str, str], float] = {}
    records: dict[str, dict[str, typing.Any]] = {}
    runs: list[Run] = []
    notes: list[str] = []
    with reading(SPEEDS, notes):
        speeds = _speeds(folder / SPEEDS)
    for file in folder.rglob("config.json"):
        name = file.parent.relative_to(folder).as_posix()
        with reading(name, notes):
            records[name] = _record(file.parent)
    for file in folder.rglob(TABLE):
        with reading(file.relative_to(folder).as_posix(), notes):
            for name, record in _table(file.parent).items():
                records[(file.parent / name).relative_to(folder).as_posix()] = record
    for name, record in records.items():
        with reading(name, notes):
            settings = config.Config.from_dict(record["config"])
            metrics, result = record["metrics"], record["result"]
            if result is None:
                epoch = f"{metrics[-1]['epoch']:g}" if metrics else "none"
                notes.append(f"{name}: not finished (epoch {epoch} of {settings.epochs})")
                continue
            missing = {*COLUMNS, "valid_nll"} - set(result) - {"run", "gradient_variance"}
            if missing:
                raise KeyError(f"no {', '.join(sorted(missing))}")
            run = Run(name, settings, record, metrics)
            rate = result["steps_per_second"]
            has_speed = bool(speeds and run.experiment)
            if has_speed:
                rate = speeds.get(run.speed_of, math.nan)
            if has_speed or not all("training_seconds" in row for row in metrics):
                metrics = [{**row, "training_seconds": row["step"] / rate} for row in metrics]
            runs.append(dataclasses.replace(run, metrics=metrics))
    bound = lambda run: (math.isnan(run.result["test_nll"]), run.result["test_nll"], run.name)
    return sorted(runs, key=bound), sorted(notes)


@contextlib.contextmanager
def reading(name: str, notes: list[str]) -> Iterator[None]:
    """A context in which whatever is wrong with a file's contents is a note on `name`."""
    try:
        yield
    except (*files.UNREADABLE, RunError, StopIteration) as error:
        notes.append(f"{name}: cannot be read ({error})")


def _record(path: pathlib.Path) -> dict[str, typing.Any]:
    """`Run.record` of the run in a folder, "result" None before its end."""
    record = files.read_json(path / "config.json")
    own = []
    if (path / "variance.csv").exists():
        estimator = record["config"]["estimator"]
        rows = files.read_csv(path / "variance.csv")
        own = [row for row in rows if row["estimator"] == estimator]
    return {
        **record,
        "result": run_folder.read_result(path),
        "variance": own[-1] if own else None,
        "metrics": run_folder.read_metrics(path),
    }


def _table(folder: pathlib.Path) -> dict[str, dict[str, typing.Any]]:
    """By name, `Run.record` of the runs in a folder's table."""
    rows = files.read_json(folder / TABLE)
    records = {row.pop("name"): {**row, "metrics": []} for row in rows}
    with open(folder / _METRICS, newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            metrics = records[row.pop("run")]["metrics"]
            metrics.append({name: float(value) for name, value in row.items() if value != ""})
    return records


def save(runs: Iterable[Run], folder: pathlib.Path) -> None:
    """Writes runs as a table, a row a run in runs.json and a row an evaluation in metrics.csv."""
    rows, evaluations = [], []
    for run in sorted(runs, key=lambda run: run.name):
        record = {"name": run.name, **run.record}
        evaluations += [{"run": run.name, **row} for row in record.pop("metrics")]
        rows.append(json.dumps(record))
    columns = list(dict.fromkeys(column for row in evaluations for column in row))
    text = lambda value: value if isinstance(value, str) else f"{value:.10g}"
    lines = io.StringIO()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: text(value) for name, value in row.items()} for row in evaluations)
    files.write_text(folder / _METRICS, lines.getvalue())
    files.write_text(folder / TABLE, "[\n" + ",\n".join(rows) + "\n]\n")


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


def by_trials(runs: Iterable[Run]) -> dict[tuple, list[Run]]:
    """Runs of a paper that differ in the seed alone: by experiment, estimator and departures."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.config.experiment, run.config.estimator, tuple(run.departures.items()))
        groups.setdefault(key, []).append(run)
    return groups


def by_seed(runs: Iterable[Run]) -> dict[int, Run]:
    """One run a seed, of several the one of the best validation."""
    worst_first = sorted(runs, key=lambda run: run.result["valid_nll"], reverse=True)
    return {run.config.seed: run for run in worst_first}


def label(estimator: str, departures: Iterable[tuple[str, typing.Any]]) -> str:
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
    order = list(experiments.TABLE)
    found: dict[str, dict[str, list[list[dict[str, float]]]]] = {}
    by_picture: dict[str, list[Run]] = {}
    of_papers = [run for run in runs if run.experiment and run.metrics]
    for run in sorted(of_papers, key=lambda r: (order.index(r.config.experiment), r.is_stand_in)):
        if math.isfinite(run.result["test_nll"]):
            by_picture.setdefault(run.picture, []).append(run)
    for picture, group in by_picture.items():
        longest = max(run.result["steps"] for run in group)
        groups: dict[str, list[Run]] = {}
        for run in group:
            if run.result["steps"] == longest:
                kept = [(name, v) for name, v in run.departures.items() if name != "test_samples"]
                groups.setdefault(label(run.config.estimator, kept), []).append(run)
        for name, trials in groups.items():
            same = by_seed(trials).values()
            steps = set.intersection(*({row["step"] for row in run.metrics} for run in same))
            found.setdefault(picture, {})[name] = [
                [row for row in run.metrics if row["step"] in steps] for run in same
            ]
    return found

"""Gathers finished runs into the paper's tables and figures: `python -m arm_tf.report runs`.

Prints the tables and writes them as report.md and report.csv into the folder, with a figure of the
negative ELBO against steps and seconds for each experiment of the paper. Runs of the paper's length
on the published data stand beside the published figures; all others are in tables of their own.
Runs that are not finished, and files that cannot be read, are named and passed over.
"""

import csv
import dataclasses
import io
import math
import pathlib
import statistics

from absl import flags

from arm_tf import cli, estimators, paper
from arm_tf.training import config, run_folder

# Settings in which runs of one experiment may differ from the paper's without a word.
_INCIDENTAL = {"seed", "logdir", "name", "data_dir", "jit", "steps_per_loop", "epochs", "max_steps"}
_EVALUATION = {"eval_every", "eval_samples", "test_samples"}
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
      metrics: rows of metrics.csv, dicts of floats.
      gradient_variance: of its own estimator, where `arm_tf.variance` measured it, or None.
    """

    name: str
    config: config.Config
    result: dict
    metrics: list
    gradient_variance: float | None

    @property
    def experiment(self):
        """Name of the paper's experiment with the same data and network, or None."""
        same = ("dataset", "model", "network", "layers")
        for name, settings in paper.SETTINGS.items():
            other = config.Config(**settings)
            if all(getattr(other, field) == getattr(self.config, field) for field in same):
                return name
        return None

    @property
    def is_comparable(self):
        """Whether it is an experiment of the paper, at full length on the published data."""
        if self.experiment is None or self.result.get("data_published") is not True:
            return False
        return self.result["epochs"] == paper.SETTINGS[self.experiment]["epochs"]

    @property
    def departures(self):
        """Settings that are not the paper's, as a text; "" where all are."""
        estimator = self.config.estimator
        usual = {"estimator": estimator, "num_samples": estimators.check(estimator, None)[1]}
        plain = config.Config(**{**paper.SETTINGS[self.experiment], **usual})
        differing = set(self.config.differences(plain)) - _INCIDENTAL - _EVALUATION
        return ", ".join(f"{name}={getattr(self.config, name)}" for name in sorted(differing))


def gather(folder):
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
            result = run_folder.read_json(path / "result.json")
            missing = set(COLUMNS) - set(result) - {"run", "gradient_variance"}
            if missing:
                raise KeyError(f"no {', '.join(sorted(missing))}")
            variance = _own_variance(path, settings.estimator)
            runs.append(Run(name, settings, result, metrics, variance))
        except (OSError, ValueError, KeyError, TypeError, run_folder.RunError) as error:
            notes.append(f"{name}: cannot be read ({error})")
    return sorted(runs, key=lambda run: run.result["test_nll"]), notes


def _own_variance(path, estimator):
    """Of the run's own estimator in the weights, where `arm_tf.variance` measured it, or None."""
    file = path / "variance.csv"
    if not file.exists():
        return None
    with open(file, newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["estimator"] == estimator:
                return float(row["variance_weights"])
    return None


def _trials(runs):
    """Runs that differ in the seed alone: by experiment, estimator and departures, lists."""
    groups = {}
    for run in runs:
        key = (run.experiment, run.config.estimator, run.departures)
        groups.setdefault(key, []).append(run)
    return groups


def compared(runs):
    """Rows of the paper's tables for which there are comparable runs.

    Returns:
      Dicts with "experiment", "estimator", "published" (a text), "mean" and "deviation" over
      trials, "difference" from the published figure, "seeds", "samples" and "departures".
    """
    rows = []
    groups = _trials(run for run in runs if run.is_comparable)
    for (experiment, estimator, departures), trials in groups.items():
        bounds = [run.result["test_nll"] for run in trials]
        mean = statistics.fmean(bounds)
        text, value = _published(paper.PUBLISHED[experiment].get(estimator))
        rows.append(
            {
                "experiment": experiment,
                "estimator": estimator,
                "published": text,
                "mean": mean,
                "deviation": statistics.stdev(bounds) if len(bounds) > 1 else None,
                "difference": None if value is None else mean - value,
                "seeds": " ".join(str(s) for s in sorted(run.config.seed for run in trials)),
                "samples": " ".join(str(s) for s in {run.result["test_samples"] for run in trials}),
                "departures": departures,
            }
        )
    order = list(paper.SETTINGS)
    return sorted(rows, key=lambda row: (order.index(row["experiment"]), row["mean"]))


def _published(figure):
    """A published figure as a text, and its number, None where that is a bound or missing."""
    if figure is None:
        return "–", None
    if isinstance(figure, tuple):
        return f"{figure[0]} ± {figure[1]}", figure[0]
    return (figure, None) if isinstance(figure, str) else (str(figure), figure)


def markdown(runs):
    """The tables of a list of `Run` as Markdown."""
    parts = []
    rows = compared(runs)
    if rows:
        parts.append(
            "Test −log p(x) in nats, bounds at the epoch of the best validation, ± the standard "
            "deviation over trials; the paper's figures beside.\n\n"
            + _table(
                ["experiment", "estimator", "published", "ours", "difference", "seeds",
                 "samples of the bound", "settings not the paper's"],
                [[r["experiment"], r["estimator"], r["published"],
                  f"{r['mean']:.2f}" + (f" ± {r['deviation']:.2f}" if r["deviation"] else ""),
                  "–" if r["difference"] is None else f"{r['difference']:+.2f}",
                  r["seeds"], r["samples"], r["departures"] or "–"] for r in rows],
            )
        )  # fmt: skip
    published = [run for run in runs if run.result.get("data_published") is not False]
    others = [run for run in published if not run.is_comparable]
    stand_ins = [run for run in runs if run.result.get("data_published") is False]
    if others:
        title = "Other runs: shorter ones, or of no experiment of the paper.\n\n" if rows else ""
        parts.append(title + _run_table(others))
    if stand_ins:
        parts.append(
            "Runs on data that are not the published files, and compare with nothing published.\n\n"
            + _run_table(stand_ins)
        )
    return "\n".join(parts)


def _run_table(runs):
    rows = [[_text(key, value) for key, value in _row(run).items()] for run in runs]
    return _table(list(COLUMNS.values()), rows)


def _row(run):
    values = {"run": run.name, "gradient_variance": run.gradient_variance}
    return {key: values[key] if key in values else run.result[key] for key in COLUMNS}


def _table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _text(key, value):
    if value is None:
        return "–"
    if key == "gradient_variance":
        return f"{value:.2e}"
    if key in ("test_nll", "test_neg_elbo"):
        return f"{value:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table_csv(runs):
    """All runs as the text of a CSV file, with the experiment and the published figure of each."""
    file = io.StringIO()
    extra = ["experiment", "estimator", "seed", "comparable", "published"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *extra])
    for run in runs:
        experiment, estimator = run.experiment, run.config.estimator
        figure = paper.PUBLISHED[experiment].get(estimator) if experiment else None
        writer.writerow(
            [*_row(run).values(), experiment or "", estimator, run.config.seed,
             run.is_comparable, _published(figure)[0]]
        )  # fmt: skip
    return file.getvalue()


def curves(runs):
    """Curves of each of the paper's experiments among the runs, for `plots.elbo_curves`.

    Returns:
      By experiment, and then by estimator and departures from the paper's settings (a text), a
      list of trials' metrics at the steps that all of them evaluated; runs of other lengths than
      the longest of their experiment are left out.
    """
    by_experiment = {}
    for run in runs:
        if run.experiment and run.metrics and math.isfinite(run.result["test_nll"]):
            by_experiment.setdefault(run.experiment, []).append(run)
    found = {}
    for experiment, group in by_experiment.items():
        longest = max(run.result["steps"] for run in group)
        groups = _trials(run for run in group if run.result["steps"] == longest)
        for (_, estimator, departures), trials in groups.items():
            steps = set.intersection(*({row["step"] for row in run.metrics} for run in trials))
            name = f"{estimator}, {departures}" if departures else estimator
            found.setdefault(experiment, {})[name] = [
                [row for row in run.metrics if row["step"] in steps] for run in trials
            ]
    return found


def main():
    folder = pathlib.Path(flags.FLAGS.folder)
    if not folder.is_dir():
        raise run_folder.RunError(f"{folder} is not a folder.")
    runs, notes = gather(folder)
    text = markdown(runs)
    run_folder.write_text(folder / "report.md", text)
    run_folder.write_text(folder / "report.csv", table_csv(runs))
    written = ["report.md", "report.csv"]
    groups = curves(runs)
    if groups:
        from arm_tf import figures

        for experiment, group in groups.items():
            file = f"curves-{experiment}.png"
            figures.elbo_curves(group, experiment).savefig(folder / file)
            written.append(file)
    print(text, end="")
    for note in notes:
        print(f"Passed over {note}.")
    print(f"Written to {folder}: {', '.join(written)}.")


if __name__ == "__main__":
    flags.DEFINE_string("folder", "runs", "Folder with the folders of runs.")
    cli.run(main, argument="folder")

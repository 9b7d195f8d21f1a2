"""Gathers finished runs into the paper's tables and figures: `python -m arm_tf.report runs`.

Prints the tables and writes them as report.md and report.csv into the folder, with a figure of the
negative ELBO against steps and seconds for each experiment of the paper. Runs of the paper's length
on the published data stand beside the published figures; all others are in tables of their own.
Runs that are not finished, and files that cannot be read, are named and passed over. Of what the
toy, the benchmark and sweeps have written into the folder it prints the tables, too.
"""

import csv
import dataclasses
import io
import math
import os
import pathlib
import typing
from collections.abc import Iterable, Sequence

from absl import flags

from arm_tf import cli, estimators, files, paper
from arm_tf.errors import RunError
from arm_tf.training import config, run_folder, trials

# Settings in which runs of one experiment may differ from the paper's without a word.
_INCIDENTAL = {"seed", "logdir", "name", "data_dir", "jit", "steps_per_loop", "epochs", "max_steps"}
_EVALUATION = {"eval_every", "eval_samples"}
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
        differing = set(self.config.differences(plain)) - _INCIDENTAL - _EVALUATION
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
            missing = set(COLUMNS) - set(result) - {"run", "gradient_variance"}
            if missing:
                raise KeyError(f"no {', '.join(sorted(missing))}")
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
    with open(file, newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["estimator"] == estimator:
                return float(row["variance_weights"])
    return None


def _by_trials(runs: Iterable[Run]) -> dict[tuple, list[Run]]:
    """Runs that differ in the seed alone: by experiment, estimator and departures, lists."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.experiment, run.config.estimator, tuple(run.departures.items()))
        groups.setdefault(key, []).append(run)
    return groups


def _named(estimator: str, departures: Iterable[tuple[str, typing.Any]]) -> str:
    """An estimator with the settings that are not the paper's, as a text."""
    return ", ".join([estimator, *(f"{name}={value}" for name, value in departures)])


def compared(runs: Iterable[Run]) -> list[dict[str, typing.Any]]:
    """Rows of the paper's tables for which there are comparable runs.

    Returns:
      Dicts with "experiment", "estimator" (and settings that are not the paper's, but for the
      learning rate), "learning_rate", "published" (a text), "ours" (`arm_tf.trials.Figure`),
      "difference" from the published figure or None, "epochs" and "seeds".
    """
    rows = []
    groups = _by_trials(run for run in runs if run.is_comparable)
    for (experiment, estimator, departures), group in groups.items():
        ours = trials.Figure.of(run.result["test_nll"] for run in group)
        text, value = _published(paper.PUBLISHED[experiment].get(estimator))
        others = [(name, v) for name, v in departures if name != "learning_rate"]
        rows.append(
            {
                "experiment": experiment,
                "estimator": _named(f"`{estimator}`", others),
                "learning_rate": group[0].config.learning_rate,
                "published": text,
                "ours": ours,
                "difference": None if value is None else ours.mean - value,
                "epochs": group[0].result["epochs"],
                "seeds": sorted(run.config.seed for run in group),
            }
        )
    order = list(paper.SETTINGS)
    return sorted(rows, key=lambda row: (order.index(row["experiment"]), row["ours"].mean))


def _published(figure: float | tuple[float, float] | str | None) -> tuple[str, float | None]:
    """A published figure as a text, and its number, None where that is a bound or missing."""
    if figure is None:
        return "–", None
    if isinstance(figure, tuple):
        return f"{figure[0]} ± {figure[1]}", figure[0]
    return (figure, None) if isinstance(figure, str) else (str(figure), figure)


def markdown(runs: Sequence[Run]) -> str:
    """The tables of a list of `Run` as Markdown."""
    parts = []
    rows = compared(runs)
    if rows:
        parts.append(
            "Test −log p(x) in nats (−log p(x_l|x_u) of the conditional network): bounds over "
            f"{config.Config().test_samples:,} samples at the epoch of the best validation, ± the "
            "standard deviation over seeds, and beside them the paper's.\n\n"
            + _table(
                ["experiment", "estimator", "learning rate", "published", "ours", "difference",
                 "epochs", "seeds"],
                [[_title(r["experiment"]), r["estimator"], _scientific(r["learning_rate"]),
                  r["published"], str(r["ours"]),
                  "–" if r["difference"] is None else f"{r['difference']:+.2f}".replace("-", "−"),
                  f"{r['epochs']:,.0f}", ", ".join(map(str, r["seeds"]))] for r in rows],
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


def _title(experiment: str) -> str:
    """An experiment's name as the paper writes it: "MNIST-static, two layers"."""
    dataset, network = (
        experiment.replace("omniglot", "OMNIGLOT").replace("mnist", "MNIST").split("-")
    )
    return f"{dataset.replace('_', '-')}, {network.replace('_', ' ')}"


def _scientific(number: float) -> str:
    """A number as people write a learning rate: "1e-4"."""
    mantissa, exponent = f"{number:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _run_table(runs: Iterable[Run]) -> str:
    rows = [[_text(key, value) for key, value in _row(run).items()] for run in runs]
    return _table(list(COLUMNS.values()), rows)


def _row(run: Run) -> dict[str, typing.Any]:
    values = {"run": run.name, "gradient_variance": run.gradient_variance}
    return {key: values[key] if key in values else run.result[key] for key in COLUMNS}


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _text(key: str, value: typing.Any) -> str:
    if value is None:
        return "–"
    if key == "gradient_variance":
        return f"{value:.2e}"
    if key in ("test_nll", "test_neg_elbo"):
        return f"{value:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table_csv(runs: Iterable[Run]) -> str:
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


def curves(runs: Iterable[Run]) -> dict[str, dict[str, list[list[dict[str, float]]]]]:
    """Curves of each of the paper's experiments among the runs, for `plots.elbo_curves`.

    Returns:
      By experiment, and then by estimator and departures from the paper's settings (a text), a
      list of trials' metrics at the steps that all of them evaluated; runs of other lengths than
      the longest of their experiment are left out.
    """
    by_experiment: dict[str, list[Run]] = {}
    for run in runs:
        if run.experiment and run.metrics and math.isfinite(run.result["test_nll"]):
            by_experiment.setdefault(run.experiment, []).append(run)
    found: dict[str, dict[str, list[list[dict[str, float]]]]] = {}
    for experiment, group in by_experiment.items():
        longest = max(run.result["steps"] for run in group)
        groups = _by_trials(run for run in group if run.result["steps"] == longest)
        for (_, estimator, departures), same in groups.items():
            steps = set.intersection(*({row["step"] for row in run.metrics} for run in same))
            found.setdefault(experiment, {})[_named(estimator, departures)] = [
                [row for row in run.metrics if row["step"] in steps] for run in same
            ]
    return found


def measurements(folder: str | os.PathLike[str]) -> list[str]:
    """Tables of what the toy, the benchmark and sweeps have written into a folder; Markdown.

    Args:
      folder: path; toy.json and benchmark.json are looked for in it, sweep.json below it, too.

    Returns:
      A list of str.
    """
    folder = pathlib.Path(folder)
    tables: list[str] = []
    for name, render in (("toy.json", _toy_tables), ("benchmark.json", _benchmark_tables)):
        if (folder / name).exists():
            tables += render(files.read_json(folder / name))
    sweeps = [files.read_json(path)["throughput"] for path in folder.rglob("sweep.json")]
    sweeps = sorted((s for s in sweeps if s["steps"]), key=lambda sweep: sweep["workers"])
    if sweeps:
        tables.append(_table(
            ["workers", *(str(s["workers"]) for s in sweeps)],
            [["seconds", *(f"{s['seconds']:.0f}" for s in sweeps)],
             ["steps a second", *(f"{s['steps'] / s['seconds']:.0f}" for s in sweeps)]],
        ))  # fmt: skip
    return tables


def _toy_tables(record: dict[str, typing.Any]) -> list[str]:
    rows = [
        [f"`{name}`", *(f"{ends[str(p0)]:.3f}" for p0 in record["p0"])]
        for name, ends in record["final_probability"].items()
    ]
    return [_table(["probability of 1 at the end", *(f"p0 = {p0}" for p0 in record["p0"])], rows)]


def _benchmark_tables(results: dict[str, typing.Any]) -> list[str]:
    def spread(value):
        return f"{value['median']:.2f} ({value['low']:.2f}–{value['high']:.2f})"

    tables = []
    if "steps" in results:
        steps = results["steps"].values()
        rows = [["steps a second", *(f"{s['steps_per_second']['median']:.0f}" for s in steps)]]
        for title, key in (("times the plain reference", "speed_over_plain"),
                           ("time over that of the products", "time_over_products")):  # fmt: skip
            rows.append([title, *(spread(s[key]) for s in steps)])
        for part in ("products", "elementwise and rest", "optimiser", "noise", "boundary"):
            rows.append([f"µs: {part}", *(f"{s['microseconds'][part]:.0f}" for s in steps)])
        names = [name.replace("_", " ") for name in results["steps"]]
        tables.append(_table(["a step of training", *names], rows))
    if "fit" in results:
        fit = results["fit"]
        rows = [[name, f"{rate['median']:.0f}",
                 spread(fit["speed_over_loop"][name]) if name in fit["speed_over_loop"] else "–"]
                for name, rate in fit["steps_per_second"].items()]  # fmt: skip
        tables.append(_table(["the linear model", "steps a second", "of the loop's"], rows))
    if "cost" in results:
        cost = results["cost"]
        rows = [[f"`{name}`", f"{rate:.0f}"] for name, rate in cost["steps_per_second"].items()]
        tables.append(_table(["estimator, linear model", "steps a second"], rows))
        rows = [[_title(name), f"{rate:.0f}"]
                for name, rate in cost["steps_per_second_of_arm"].items()]  # fmt: skip
        tables.append(_table(["experiment, ARM", "steps a second"], rows))
        dearest = " and ".join(f"`{name}`" for name in cost["dearest"])
        rows = [
            [
                name,
                f"{cost[f'core_hours{which}']:,.0f}",
                f"{cost[f'longest_run_hours{which}']:.1f} h",
                *(f"{days:.1f} days" for days in cost[f"days{which}"].values()),
            ]
            for which, name in (
                ("", f"all, {cost['runs']} runs"),
                ("_without_dearest", f"without {dearest}"),
            )
        ]
        cores = [f"{int(number):,} cores" for number in cost["days"]]
        tables.append(_table(["comparison", "core hours", "longest run", *cores], rows))
    return tables


def tables(folder: str | os.PathLike[str]) -> tuple[str, list[Run], list[str]]:
    """All that there is to print of a folder, as Markdown.

    Args:
      folder: path.

    Returns:
      str; the runs that were found, as of `gather`; and notes on what was passed over.
    """
    runs, notes = gather(folder)
    parts = [markdown(runs)] if runs else []
    return "\n".join(parts + measurements(folder)), runs, notes


def main() -> None:
    folder = pathlib.Path(flags.FLAGS.folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder.")
    text, runs, notes = tables(folder)
    files.write_text(folder / "report.md", text)
    files.write_text(folder / "report.csv", table_csv(runs))
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

"""Tables of runs, in Markdown and as CSV."""

import csv
import io
import statistics
import typing
from collections.abc import Iterable, Sequence

from arm_tf import experiments
from arm_tf.experiments import SEEDS, title
from arm_tf.report.runs import COLUMNS, Run, by_seed, by_trials, label, scientific
from arm_tf.training import config, trials


def compared(runs: Iterable[Run]) -> list[dict[str, typing.Any]]:
    """Rows of the paper's tables for which there are comparable runs.

    Returns:
      Dicts with "experiment", "estimator" (and settings that are not the paper's, but for the
      learning rate), "learning_rate" (that of the best validation), "missing" (those of the
      paper's that were not run), "published" (a text), "ours" (`arm_tf.trials.Figure`),
      "difference" from the published figure or None, "neg_elbo" (`Figure`, in the test, of the
      weights of "ours"), "epochs", "seeds", and "rates": by learning rate dicts with "valid",
      "test" and "neg_elbo" (`Figure`) and "seeds".
    """
    cells: dict[tuple, dict[float, dict[int, Run]]] = {}
    for (experiment, estimator, departures), group in by_trials(
        run for run in runs if run.is_comparable
    ).items():
        others = tuple((name, v) for name, v in departures if name != "learning_rate")
        by_rate = cells.setdefault((experiment, estimator, others), {})
        by_rate[group[0].config.learning_rate] = by_seed(group)
    rows = []
    for (name, estimator, others), by_rate in cells.items():
        validation = {
            rate: {seed: run.result["valid_nll"] for seed, run in same.items()}
            for rate, same in by_rate.items()
        }
        rates: dict[float, dict[str, typing.Any]] = {
            rate: {
                "valid": trials.Figure.of(validation[rate].values()),
                "test": trials.Figure.of(run.result["test_nll"] for run in same.values()),
                "neg_elbo": trials.Figure.of(run.result["test_neg_elbo"] for run in same.values()),
                "seeds": sorted(same),
            }
            for rate, same in sorted(by_rate.items(), reverse=True)
        }
        best = trials.best_rate(validation)
        experiment = experiments.find(name)
        figure = None if others else next(iter(by_rate[best].values())).published("test_nll")
        number, ours = experiments.number_of(figure), rates[best]["test"]
        rows.append(
            {
                "experiment": name,
                "estimator": label(f"`{estimator}`", others),
                "learning_rate": best,
                "missing": [r for r in experiment.rates if r not in rates],
                "published": experiments.text_of(figure),
                "ours": ours,
                "difference": None if number is None else ours.mean - number,
                "neg_elbo": rates[best]["neg_elbo"],
                "epochs": experiment.settings["epochs"],
                "seeds": rates[best]["seeds"],
                "rates": rates,
            }
        )
    order = list(experiments.TABLE)
    return sorted(rows, key=lambda row: (order.index(row["experiment"]), row["ours"].mean))


def other_papers(runs: Iterable[Run]) -> list[dict[str, typing.Any]]:
    """Rows of the table of other papers' experiments, in the papers' order.

    Returns:
      Dicts with "paper", "experiment", "estimator" (and settings that are not the paper's),
      "evaluations" of f, "published" and "ours" (dicts of texts by the figure's name, "–" where
      there is none), "samples" of the bound "test_k_nll", or None where the run is older than it,
      "steps", "all_steps" of the paper, and "seeds".
    """
    of_length: dict[int, list[Run]] = {}
    for run in runs:
        if run.is_benchmark:
            of_length.setdefault(run.result["steps"], []).append(run)
    groups = [
        (steps, *key, list(by_seed(group).values()))
        for steps, of_it in of_length.items()
        for key, group in by_trials(of_it).items()
    ]
    table = list(experiments.TABLE)

    def order(group):
        steps, experiment, *_, same = group
        bound = statistics.fmean(run.result["test_nll"] for run in same)
        return table.index(experiment), -steps, bound

    rows = []
    for steps, name, estimator, departures, group in sorted(groups, key=order):
        experiment = experiments.find(name)
        others = [(name, value) for name, value in departures if name != "num_samples"]
        figures = [{**(run.metrics[-1] if run.metrics else {}), **run.result} for run in group]
        ours = {
            name: str(trials.Figure.of(figure[name] for figure in figures))
            if all(name in figure for figure in figures)
            else "–"
            for name in ("train_neg_elbo", "test_nll", "test_k_nll")
        }
        rows.append(
            {
                "paper": experiment.paper,
                "experiment": name,
                "estimator": label(f"`{estimator}`", others),
                "evaluations": group[0].evaluations,
                "published": {name: experiments.text_of(group[0].published(name)) for name in ours},
                "ours": ours,
                "samples": figures[0].get("test_k_samples"),
                "steps": steps,
                "all_steps": experiment.settings["max_steps"],
                "seeds": sorted(run.config.seed for run in group),
            }
        )
    return rows


def _other_papers_table(rows: Iterable[dict[str, typing.Any]]) -> str:
    def steps(row):
        whole = f"{row['all_steps']:,}"
        return whole if row["steps"] == row["all_steps"] else f"{row['steps']:,} of {whole}"

    return table(
        ["paper", "experiment", "estimator", "evaluations of f", "training −ELBO: published",
         "ours", "test −log p ≤, 100 samples: published", "ours", "K samples: ours", "steps",
         "which seeds"],
        [[r["paper"], title(r["experiment"]), r["estimator"], str(r["evaluations"]),
          r["published"]["train_neg_elbo"], r["ours"]["train_neg_elbo"],
          r["published"]["test_nll"], r["ours"]["test_nll"],
          r["ours"]["test_k_nll"] + (f" (K = {r['samples']})" if r["samples"] else ""),
          steps(r), ", ".join(map(str, r["seeds"]))] for r in rows],
    )  # fmt: skip


def markdown(runs: Sequence[Run]) -> str:
    """The tables of a list of `Run` as Markdown."""
    parts = []
    rows = compared(runs)
    if rows:
        parts.append(
            "Test −log p(x) in nats (−log p(x_l|x_u) of the conditional network): bounds over "
            f"{config.Config().test_samples:,} samples at the epoch of the best validation, ± the "
            "standard deviation over seeds, and beside them the paper's, and the test −ELBO of the "
            "same weights. The learning rate is that of the best validation among those run.\n\n"
            + table(
                ["experiment", "estimator", "published", "ours", "difference", "test −ELBO",
                 "learning rate", "rates not run", "epochs", "seeds"],
                [[title(r["experiment"]), r["estimator"], r["published"], str(r["ours"]),
                  "–" if r["difference"] is None else f"{r['difference']:+.2f}".replace("-", "−"),
                  str(r["neg_elbo"]), scientific(r["learning_rate"]),
                  ", ".join(map(scientific, r["missing"])) or "–",
                  f"{r['epochs']:,}", f"{len(r['seeds'])} of {len(SEEDS)}"] for r in rows],
            )
        )  # fmt: skip
    several = [row for row in rows if len(row["rates"]) > 1]
    if several:
        parts.append(
            "By learning rate, where there are several:\n\n"
            + table(
                ["experiment", "estimator", "learning rate", "validation −log p ≤",
                 "test −log p ≤", "which seeds"],
                [[title(r["experiment"]), r["estimator"], scientific(rate),
                  str(tried["valid"]), str(tried["test"]), ", ".join(map(str, tried["seeds"]))]
                 for r in several for rate, tried in r["rates"].items()],
            )
        )  # fmt: skip
    benchmarks = other_papers(runs)
    if benchmarks:
        parts.append(
            "Other papers: −ELBO in training, its mean since the evaluation before the last, and "
            "test −log p(x), in nats: bounds at the epoch of the best validation, over 100 samples "
            "and over as many as the estimator evaluates f at, ± the standard deviation over "
            "seeds.\n\n" + _other_papers_table(benchmarks)
        )
    published = [run for run in runs if not run.is_stand_in]
    others = [run for run in published if not (run.is_comparable or run.is_benchmark)]
    stand_ins = [run for run in runs if run.is_stand_in]
    if others:
        beside = rows or benchmarks
        head = "Other runs: shorter ones, or of no experiment of the paper.\n\n" if beside else ""
        parts.append(head + _run_table(others))
    if stand_ins:
        parts.append(
            "Runs on data that are not the published files, and compare with nothing published.\n\n"
            + _run_table(stand_ins)
        )
    return "\n".join(parts)


def _run_table(runs: Iterable[Run]) -> str:
    rows = []
    for run in runs:
        cells = {key: _text(key, value) for key, value in _row(run).items()}
        if run.variance_samples not in (None, run.config.num_samples):
            cells["gradient_variance"] += f" (K = {run.variance_samples})"
        rows.append(list(cells.values()))
    return table(list(COLUMNS.values()), rows)


def _row(run: Run) -> dict[str, typing.Any]:
    values = {"run": run.name, "gradient_variance": run.gradient_variance}
    return {key: values[key] if key in values else run.result[key] for key in COLUMNS}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of texts."""
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
    """All runs as the text of a CSV file, with paper, experiment and published figure of each."""
    file = io.StringIO()
    extra = ["experiment", "estimator", "seed", "comparable", "published", "paper"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *extra])
    for run in runs:
        its, own = run.experiment, run.config
        writer.writerow(
            [*_row(run).values(), own.experiment or "", own.estimator, own.seed,
             run.is_comparable or run.is_benchmark, experiments.text_of(run.published("test_nll")),
             its.paper if its else ""]
        )  # fmt: skip
    return file.getvalue()

"""What is left of a sweep, and what has come of it."""

import typing
from collections.abc import Iterable, Sequence

from arm_tf.sweep import estimate
from arm_tf.sweep.cells import best_rate, by_estimator, results_of
from arm_tf.training import scheduler, trials
from arm_tf.training.config import Config


def outline(jobs: Sequence[scheduler.Job], runs: Iterable[Config] = ()) -> str:
    """What is finished and what is left, a line for each experiment and estimator, and in all.

    The pace of the runs tells of that of the jobs.
    """
    paces = estimate.Paces([*runs, *(job.config for job in jobs)])
    lines = []
    for (source, estimator), group in by_estimator(jobs).items():
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
        finished = len(group) - sum(map(len, seeds.values()))
        left = paces.left(job.config for job in group)
        rest = f"; to do {to_do}; {left}" if to_do else ""
        lines.append(f"{source}, {estimator}: {finished} of {len(group)} runs finished{rest}.")
    left = paces.left(job.config for job in jobs)
    known = "How long a run takes is known once one like it has been evaluated."
    lines += [f"In all {len(jobs)} runs; {left}."] + [known] * bool(left.unknown)
    return "\n".join(lines)


def summarise(cells: Sequence[scheduler.Job]) -> list[dict[str, typing.Any]]:
    """For each experiment and estimator the learning rate of the best validation, and its bounds.

    Returns:
      Dicts with "source", "estimator", "learning_rate", "valid_nll" (a mean over seeds), "test_nll"
      (each seed's), "mean", "deviation", and "tried" (validation bounds by learning rate).
    """
    rows = []
    for (source, estimator), group in by_estimator(cells).items():
        by_rate = results_of(group)
        if not by_rate:
            continue
        tried = {
            rate: trials.Figure.of(result["valid_nll"] for result in results.values()).mean
            for rate, results in by_rate.items()
        }
        best = best_rate(by_rate)
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
        f"| experiment | estimator | learning rate | validation | test −{likelihood} ≤ | trials |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        bound = trials.Figure(row["mean"], row["deviation"])
        lines.append(
            f"| {row['source']} | {row['estimator']} | {row['learning_rate']:g} | "
            f"{row['valid_nll']:.2f} | {bound} | {len(row['test_nll'])} |"
        )
    return "\n".join(lines) + "\n"

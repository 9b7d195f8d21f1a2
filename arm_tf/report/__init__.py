"""Finished runs as the paper's tables and figures."""

import os
import typing
from collections.abc import Iterable

from arm_tf import experiments
from arm_tf.report.measurements import measurements
from arm_tf.report.runs import SPEEDS, TABLE, Run, curves, gather, save
from arm_tf.report.tables import compared, markdown, other_papers, table_csv

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "SPEEDS",
    "TABLE",
    "Run",
    "compared",
    "curves",
    "gather",
    "markdown",
    "other_papers",
    "pictures",
    "save",
    "summary",
    "table_csv",
]


def summary(folder: str | os.PathLike[str]) -> tuple[str, list[Run], list[str]]:
    """All that there is to print of a folder, as Markdown.

    Args:
      folder: path.

    Returns:
      str; the runs that were found, as of `gather`; and notes on what was passed over.
    """
    runs, notes = gather(folder)
    tables, others = measurements(folder)
    parts = [markdown(runs)] if runs else []
    return "\n".join(parts + tables), runs, notes + others


def pictures(runs: Iterable[Run]) -> "dict[str, Figure]":
    """The paper's figures of runs, by file name without its ending.

    Args:
      runs: list of `Run`.

    Returns:
      "curves-EXPERIMENT" for each group of `curves`, and "variance-FOLDER" for each run that has
      followed variances; matplotlib Figures, whose titles say how long the runs are.
    """
    from arm_tf import figures

    runs = list(runs)
    found = {}
    by_picture = {run.picture: run for run in runs if run.experiment}
    for name, group in curves(runs).items():
        [longest, *_] = next(iter(group.values()))
        found[f"curves-{name.replace('/', '-')}"] = figures.elbo_curves(
            group, _title(by_picture[name], longest)
        )
    for run in runs:
        if run.metrics and any(column.startswith("variance_") for column in run.metrics[-1]):
            name = f"variance-{run.name.replace('/', '-')}"
            found[name] = figures.variance_curves(run.metrics, _title(run, run.metrics))
    return found


def _title(run: Run, metrics: list[dict[str, float]]) -> str:
    its = run.experiment
    if not its:
        return run.name
    epochs, usual = metrics[-1]["epoch"], its.settings["epochs"]
    is_full = epochs == usual or metrics[-1]["step"] == its.settings.get("max_steps")
    title = f"{its.title}, {epochs:,.4g} epochs"
    title = title if its.paper == experiments.PAPER else f"{its.paper}: {title}"
    title += "" if is_full else f" (shortened; the paper has {usual:,})"
    return f"{title}, not the published data" if run.is_stand_in else title

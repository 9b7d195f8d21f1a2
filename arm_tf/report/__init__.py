"""Finished runs as the paper's tables and figures."""

import os

from arm_tf.report.measurements import measurements
from arm_tf.report.runs import Run, curves, gather
from arm_tf.report.tables import compared, markdown, other_papers, table_csv

__all__ = [
    "Run",
    "compared",
    "curves",
    "gather",
    "markdown",
    "other_papers",
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
    parts = [markdown(runs)] if runs else []
    return "\n".join(parts + measurements(folder)), runs, notes

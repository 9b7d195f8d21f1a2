"""Grids of runs."""

from arm_tf.sweep.cells import find_finished, grid, named, paper_cells, rates_first, runs_in, select
from arm_tf.sweep.summary import markdown, outline, summarise

__all__ = [
    "find_finished",
    "grid",
    "markdown",
    "named",
    "outline",
    "paper_cells",
    "rates_first",
    "runs_in",
    "select",
    "summarise",
]

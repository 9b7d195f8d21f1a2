"""Grids of runs."""

from arm_tf.sweep.cells import find_finished, grid, rates_first, runs_in
from arm_tf.sweep.summary import markdown, outline, summarise

__all__ = [
    "find_finished",
    "grid",
    "markdown",
    "outline",
    "rates_first",
    "runs_in",
    "summarise",
]

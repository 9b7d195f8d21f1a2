"""What papers run, by name: settings, estimators and published figures, a module for each paper."""

import difflib
import fnmatch
from collections.abc import Sequence

from arm_tf.errors import ConfigError
from arm_tf.experiments import (
    dimitriev_zhou_2021,
    dong_2020,
    shi_2022,
    titsias_shi_2022,
    yin_zhou_2019,
)
from arm_tf.experiments.experiment import Cell, Experiment, Published, number_of, text_of, title

__all__ = [
    "PAPER",
    "SEEDS",
    "TABLE",
    "Cell",
    "Experiment",
    "Published",
    "describe",
    "find",
    "matching",
    "number_of",
    "text_of",
    "title",
]

SEEDS = (0, 1, 2, 3, 4)  # five trials
PAPER = yin_zhou_2019.EXPERIMENTS[0].paper  # which this package reproduces
TABLE = {
    experiment.name: experiment
    for source in (yin_zhou_2019, dong_2020, dimitriev_zhou_2021, titsias_shi_2022, shi_2022)
    for experiment in source.EXPERIMENTS
}


def find(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
      ConfigError: there is none.
    """
    if name not in TABLE:
        raise _unknown(name)
    return TABLE[name]


def matching(patterns: Sequence[str]) -> list[Experiment]:
    """The experiments whose names fit patterns such as "yin_zhou_2019/*", in the table's order.

    Raises:
      ConfigError: a pattern fits none.
    """
    for pattern in patterns:
        if not fnmatch.filter(TABLE, pattern):
            raise _unknown(pattern)
    names = {name for pattern in patterns for name in fnmatch.filter(TABLE, pattern)}
    return [experiment for name, experiment in TABLE.items() if name in names]


def _unknown(name: str) -> ConfigError:
    near = ", ".join(difflib.get_close_matches(name, TABLE, cutoff=0))
    return ConfigError(
        f"No experiment is named {name!r}; most like it: {near} (--experiment=help lists all)."
    )


def describe() -> str:
    """The table as text, one line an experiment: its estimators, and what is published of each."""
    lines = ["Experiments, with their estimators and the published test −log p in nats:"]
    for name, experiment in TABLE.items():
        texts: dict[str, list[str]] = {}
        for cell in experiment.cells:
            at = [f"K = {cell.num_samples}"] if cell.num_samples else []
            figure = cell.published.get("test_nll")
            at += [text_of(figure)] if figure else []
            texts.setdefault(cell.estimator, []).extend(at)
        shown = [f"{name} {', '.join(at)}".strip() for name, at in texts.items()]
        lines.append(f"{name:47}{'; '.join(shown)}")
    return "\n".join(lines)

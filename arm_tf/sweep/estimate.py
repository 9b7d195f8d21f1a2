"""What is left of several runs, in core hours, from the pace of those that have begun."""

import contextlib
import functools
import itertools
import math
import pathlib
import statistics
import typing
from collections.abc import Hashable, Iterable

from arm_tf.errors import RunError
from arm_tf.training import run_folder
from arm_tf.training.config import Config, names_of

_REST = 5  # evaluations of f that the rest of a step takes as long as, by those of ARM and LeGrad


class Pace(typing.NamedTuple):
    """How a run goes: seconds a step, evaluations included; steps an epoch; the last step."""

    seconds: float
    steps_per_epoch: float
    step: float


class Left(typing.NamedTuple):
    """What is left of several runs.

    Attributes:
      core_hours: float, of those whose pace is known.
      unknown: int, the number of others.
    """

    core_hours: float
    unknown: int

    def __str__(self) -> str:
        if self.unknown and not self.core_hours:
            return "unknown core hours left"
        others = f" and {self.unknown} runs of unknown length" if self.unknown else ""
        return f"about {self.core_hours:,.1f} core hours{others} left"


class Paces:
    """The paces of runs that have been evaluated, for estimates of what is left of them and others.

    Args:
      configs: `arm_tf.training.config.Config` of each.
    """

    def __init__(self, configs: Iterable[Config]) -> None:
        self._own: dict[pathlib.Path, Pace] = {}
        self._like: dict[Hashable, list[tuple[Pace, int]]] = {}  # and evaluations of f
        for config in configs:
            path = run_folder.run_path(config)
            found = (_pace_of_finished if _is_finished(path) else pace)(path)
            if found and path not in self._own:
                self._own[path] = found
                for key in _keys(config):
                    self._like.setdefault(key, []).append((found, config.evaluations))

    def left(self, configs: Iterable[Config]) -> Left:
        """What is left of the runs of some configurations.

        A run goes on at its own pace, or else at the mean pace of those of the same data, model,
        estimator and execution, or else of the same data and model, in proportion to the
        evaluations of f and five more for the rest of a step, a rule of thumb. Starts and final
        tests are not counted.

        Args:
          configs: of the runs.

        Returns:
          A `Left`.
        """
        seconds, unknown = 0.0, 0
        for config in configs:
            path = run_folder.run_path(config)
            if _is_finished(path):
                continue
            own, evaluations = self._own.get(path), config.evaluations
            like = next(filter(None, map(self._like.get, _keys(config))), None)
            like = [(own, evaluations)] if own else like
            if not like:
                unknown += 1
                continue
            steps = config.epochs * like[0][0].steps_per_epoch
            steps = min(steps, config.max_steps or math.inf) - (own.step if own else 0)
            relative = [pace.seconds / (theirs + _REST) for pace, theirs in like]
            seconds += steps * (evaluations + _REST) * statistics.fmean(relative)
        return Left(seconds / 3600, unknown)


def pace(path: pathlib.Path) -> Pace | None:
    """The `Pace` of the run in a folder, None before its first evaluation or without its times.

    Seconds are the median over the intervals between evaluations, which pauses do not change.
    """
    rows: list[dict[str, float]] = []
    with contextlib.suppress(RunError):
        rows = run_folder.read_metrics(path)
    if not rows or any(math.isnan(row.get("seconds", math.nan)) for row in rows):
        return None
    start = [] if len(rows) > 1 else [{"seconds": 0.0, "step": 0.0}]  # the first compiles, too
    seconds = statistics.median(
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise([*start, *rows])
    )
    return Pace(seconds, rows[-1]["step"] / rows[-1]["epoch"], rows[-1]["step"])


_pace_of_finished = functools.cache(pace)


def _is_finished(path: pathlib.Path) -> bool:
    return (path / "result.json").exists()


def _keys(config: Config) -> list[Hashable]:
    """What runs have in common whose pace is the same, the closest first."""
    return [
        tuple((name, getattr(config, name)) for name in names_of(*kinds))
        for kinds in (("data", "model", "estimator", "execution"), ("data", "model"))
    ]

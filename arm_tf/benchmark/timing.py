"""Interleaved timing, and how its figures are told."""

import time
import typing
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from arm_tf import data
from arm_tf.data import Dataset

_Name = typing.TypeVar("_Name")


def random_images(number: int = 50_000, dynamic: bool = False) -> Dataset:
    """Images of MNIST's size, number and density, as an `arm_tf.data.Dataset`; grey if dynamic."""
    rng = np.random.default_rng(0)
    train, valid, test = (
        rng.binomial(1, 0.13, (n, 784)).astype(np.uint8) for n in (number, 1000, 1000)
    )
    train *= 255 if dynamic else 1
    return data.Dataset(
        "mnist_static", train, valid, test, dynamic=dynamic, published=False, checksum=""
    )


def measure(
    functions: Mapping[_Name, tuple[Callable[[], object], int]], rounds: int
) -> dict[_Name, np.ndarray]:
    """Seconds of each function in each round, all of them called in turn.

    Args:
      functions: by name, a function and the number of units of work that a call does.
      rounds: int; one more comes first and does not count.

    Returns:
      By name, float [rounds], seconds for one unit of work.
    """
    seconds: dict[_Name, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, (function, work) in functions.items():
            begin = time.perf_counter()
            function()
            seconds[name].append((time.perf_counter() - begin) / work)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def spread(values: np.ndarray | Sequence[float]) -> dict[str, float]:
    """Median and quartiles, a dict of floats."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "low": low, "high": high}


def ratio(of: np.ndarray, to: np.ndarray) -> dict[str, float]:
    """Median and quartiles of the rounds' ratios."""
    return spread(of / to)


def as_text(values: dict[str, float], digits: int = 2) -> str:
    """The dict of `spread` as "median (low–high)"."""
    low, high = (f"{values[key]:.{digits}f}" for key in ("low", "high"))
    return f"{values['median']:.{digits}f} ({low}–{high})"

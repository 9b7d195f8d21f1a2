"""Straight-through made unbiased: sums over cells of the noise, and over which unit flips."""

import numpy as np
import oracles

from proofs import Case, run, samples_of, unbiased


def rotated_thresholds(thresholds, count):
    """Where (u + k / count) mod 1 crosses one of the thresholds or 1, for any k."""
    edges = np.append(thresholds, 1.0)
    return np.unique(np.mod(edges[:, None] - np.arange(count) / count, 1.0).round(14))


def row_thresholds(thresholds, count, rotated):
    """Thresholds of all numbers in `count` rows of noise, from those of each unit."""
    if not rotated:
        return list(thresholds) * count
    first = [rotated_thresholds(unit, count) for unit in thresholds]
    return first + [[]] * (len(thresholds) * (count - 1))


def choice_thresholds(units, flips):
    """Those of the row that says which units flip, by its first number."""
    return [rotated_thresholds(np.arange(1, units) / units, flips)] + [[]] * (units - 1)


def over_flips(row, case):
    units, num_samples = len(case.logits), samples_of(row, case)
    probs = 1 / (1 + np.exp(-np.array(case.logits)))
    rotated, flips = case.options.get("rotated", True), case.options.get("flips", 1)
    thresholds = row_thresholds(probs[:, None], num_samples, rotated)
    points, weights = oracles.cells(thresholds + choice_thresholds(units, flips))
    u = points.reshape(len(weights), num_samples + 1, units).swapaxes(0, 1)
    values, grads = run(row, case, u)
    return weights @ values, weights @ grads


ONE, TWO, THREE = (0.8,), (-0.9, 0.6), (0.4, -1.1, 0.7)
unbiased(
    "debiased",
    expectation=over_flips,
    cases=[
        *(Case(logits) for logits in (ONE, TWO, THREE, (3.0, -2.5))),
        *(
            Case(logits, num_samples, {"flips": flips, "rotated": rotated})
            for logits, num_samples, flips in ((ONE, 3, 1), (TWO, 2, 2), (TWO, 3, 1), (TWO, 1, 3))
            for rotated in (True, False)
        ),
        Case(THREE, 3, {"flips": 2}),
    ],
)

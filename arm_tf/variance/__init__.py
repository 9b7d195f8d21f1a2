"""Estimators' gradients at a frozen model: bias, variance and time."""

from arm_tf import estimators


def samples_within(name: str, budget: int, units: int) -> int:
    """The largest num_samples that evaluates f within `budget`, or the least there is; int."""
    row = estimators.get(name)
    num_samples = row.min_samples
    while row.evaluations(num_samples + 1, units) <= budget:
        num_samples += 1
        if row.evaluations(num_samples + 1, units) == row.evaluations(num_samples, units):
            break  # costs the same for any number
    return num_samples

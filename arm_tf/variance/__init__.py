"""Estimators' gradients at a frozen model: bias, variance and time."""

from arm_tf import estimators


def samples_within(name: str, budget: int, units: int, **options: float) -> int:
    """The largest num_samples that evaluates f within `budget`; int.

    It is the least there is where that costs more, or where any number costs the same.
    """
    row = estimators.get(name)
    num_samples = row.min_samples
    count = lambda num_samples: row.count(num_samples, units, **options)
    if count(num_samples + 1) > count(num_samples):
        while count(num_samples + 1) <= budget:
            num_samples += 1
    return num_samples

"""Ratios by version, which a later change is held against."""

import csv
import os
import pathlib
import typing

import arm_tf
from arm_tf import files
from arm_tf.errors import RunError

_RECORDED = ("version", "tensorflow", "cores", "model", "time_over_products", "speed_over_plain")
_TOLERATED = 1.3  # times the recorded ratio of a step's time to that of its products


def compare_with_history(
    results: dict[str, typing.Any], path: str | os.PathLike[str], record: bool
) -> None:
    """Holds the steps' ratios against the last ones recorded on as many cores, or adds them.

    Rates say as much of the machine as of the program; ratios of one interleaved run bear
    comparison.

    Args:
      results: dict with "cores", "tensorflow" and "steps", what `main` writes.
      path: of a CSV file, a line for each record and model.
      record: bool, whether to add these ratios to it in place of the comparison.

    Raises:
      RunError: a step takes more than 1.3 times as many of its products as it did.
    """
    path, rows = pathlib.Path(path), []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    slower = []
    for model, measured in results["steps"].items():
        now = measured["time_over_products"]["median"]
        before = [
            row for row in rows if (row["model"], row["cores"]) == (model, str(results["cores"]))
        ]
        if before and now > _TOLERATED * float(before[-1]["time_over_products"]):
            last = before[-1]
            slower.append(
                f"{model} takes {now:.2f} times its products, {last['time_over_products']} in "
                f"version {last['version']}"
            )
        ratios = (f"{now:.2f}", f"{measured['speed_over_plain']['median']:.2f}")
        values = (arm_tf.__version__, results["tensorflow"], results["cores"], model, *ratios)
        rows.append(dict(zip(_RECORDED, values, strict=True)))
    if record:
        lines = [",".join(_RECORDED), *(",".join(map(str, row.values())) for row in rows)]
        files.write_text(path, "\n".join(lines) + "\n")
        print(f"Recorded in {path}.")
    elif slower:
        raise RunError(f"A step has become slower: {'; '.join(slower)}.")

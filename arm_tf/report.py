"""Gathers finished runs into a table: `python -m arm_tf.report runs`.

Prints the table and writes it as report.md and report.csv into the folder. Runs that are not
finished, and files that cannot be read, are named and passed over.
"""

import csv
import json
import pathlib

from absl import flags

from arm_tf import cli, run_folder

COLUMNS = {
    "run": "run",
    "test_nll": "test −log p ≤",
    "test_neg_elbo": "test −ELBO",
    "best_epoch": "best epoch",
    "epochs": "epochs",
    "steps_per_second": "steps/s",
    "evaluations_per_step": "evaluations of f",
    "gradient_variance": "gradient variance",
}


def gather(folder):
    """Rows of finished runs below a folder, and notes on what was passed over.

    Args:
      folder: path.

    Returns:
      A list of dicts with the keys of `COLUMNS`, sorted by the test bound, and a list of str.
    """
    rows, notes = [], []
    for config_file in sorted(pathlib.Path(folder).rglob("config.json")):
        path = config_file.parent
        name = str(path.relative_to(folder))
        if not (path / "result.json").exists():
            notes.append(f"{name}: not finished")
            continue
        try:
            result = run_folder.read_json(path / "result.json")
            row = {"run": name, **{key: result[key] for key in COLUMNS if key in result}}
            missing = set(COLUMNS) - set(row) - {"gradient_variance"}
            if missing:
                raise KeyError(f"no {', '.join(sorted(missing))}")
            row["gradient_variance"] = _own_variance(path, result["estimator"])
            rows.append(row)
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{name}: cannot be read ({error})")
    return sorted(rows, key=lambda row: row["test_nll"]), notes


def _own_variance(path, estimator):
    """Of the run's own estimator in the weights, where `arm_tf.variance` measured it, or None."""
    file = path / "variance.csv"
    if not file.exists():
        return None
    with open(file, newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["estimator"] == estimator:
                return float(row["variance_weights"])
    return None


def markdown(rows):
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        lines.append("| " + " | ".join(_text(key, row[key]) for key in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _text(key, value):
    if value is None:
        return "–"
    if key == "gradient_variance":
        return f"{value:.2e}"
    if key in ("test_nll", "test_neg_elbo"):
        return f"{value:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main():
    folder = pathlib.Path(flags.FLAGS.folder)
    if not folder.is_dir():
        raise run_folder.RunError(f"{folder} is not a folder.")
    rows, notes = gather(folder)
    table = markdown(rows)
    print(table, end="")
    for note in notes:
        print(f"Passed over {note}.")
    run_folder.write_text(folder / "report.md", table)
    lines = [",".join(COLUMNS)] + [",".join(json.dumps(v) for v in row.values()) for row in rows]
    run_folder.write_text(folder / "report.csv", "\n".join(lines) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("folder", "runs", "Folder with the folders of runs.")
    cli.run(main, argument="folder")

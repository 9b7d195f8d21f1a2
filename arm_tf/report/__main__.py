"""Gathers finished runs into the paper's tables and figures: `python -m arm_tf.report runs`.

Prints the tables and writes them as report.md and report.csv into the folder, with a figure of the
negative ELBO against steps and seconds for each experiment of a paper, and of variances where a run
has followed them. Runs of the paper's length on the published data stand beside the published
figures, and those of other papers' experiments, of any length, in a table that says how long; all
others are in tables of their own.
Runs that are not finished, and files that cannot be read, are named and passed over. Of what the
toy, the benchmark, sweeps and `arm_tf.variance` have written into the folder it prints the tables,
too.
"""

import pathlib

from absl import flags

from arm_tf import cli, files
from arm_tf.errors import RunError
from arm_tf.report import pictures, summary, table_csv


def main() -> None:
    folder = pathlib.Path(flags.FLAGS.folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder.")
    text, runs, notes = summary(folder)
    print(text, end="")
    for note in notes:
        print(f"Passed over {note}.")
    written = ["report.md", "report.csv"]
    with files.writing(folder, "--folder"):
        files.write_text(folder / "report.md", text)
        files.write_text(folder / "report.csv", table_csv(runs))
        for name, figure in pictures(runs).items():
            figure.savefig(folder / f"{name}.png")
            written.append(f"{name}.png")
    print(f"Written to {folder}: {', '.join(written)}.")


if __name__ == "__main__":
    flags.DEFINE_string("folder", "runs", "Folder with the folders of runs.")
    cli.run(main, argument="folder")

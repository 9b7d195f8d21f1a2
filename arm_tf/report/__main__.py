"""Gathers finished runs into the paper's tables and figures: `python -m arm_tf.report runs`.

Prints the tables and writes them as report.md and report.csv into the folder, with a figure of the
negative ELBO against steps and seconds for each experiment of a paper, and of variances where a run
has followed them. A run is of the experiment that it was started as, with --experiment. Those of
the paper's length on the published data stand beside the published figures, and those of other
papers' experiments, of any length, in a table that says how long; all others are in tables of their
own.
Runs that are not finished, and files that cannot be read, are named and passed over. Of what the
toy, the benchmark, sweeps and `arm_tf.variance` have written into the folder it prints the tables,
too.

With --save=TABLE it adds the finished runs to a table of runs instead: a row a run in
TABLE/runs.json, a row an evaluation in TABLE/metrics.csv, of which it reports as of their folders.
"""

import pathlib

from absl import flags

from arm_tf import cli, files
from arm_tf.errors import RunError
from arm_tf.report import gather, pictures, save, summary, table_csv


def main() -> None:
    folder = pathlib.Path(flags.FLAGS.folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder.")
    if flags.FLAGS.save:
        table = files.make_folder(flags.FLAGS.save, "--save")
        found, notes = gather(folder)
        there, unreadable = gather(table)
        if unreadable:
            raise RunError(f"{table} holds what would be lost: {'; '.join(unreadable)}.")
        with files.writing(table, "--save"):
            save({run.name: run for run in [*there, *found]}.values(), table)
        written = [f"{len(found)} runs beside {len(there)} that were there"]
        folder = table
    else:
        text, runs, notes = summary(folder)
        print(text, end="")
        written = ["report.md", "report.csv"]
        with files.writing(folder, "--folder"):
            files.write_text(folder / "report.md", text)
            files.write_text(folder / "report.csv", table_csv(runs))
            for name, figure in pictures(runs).items():
                figure.savefig(folder / f"{name}.png")
                written.append(f"{name}.png")
    for note in notes:
        print(f"Passed over {note}.")
    print(f"Written to {folder}: {', '.join(written)}.")


if __name__ == "__main__":
    flags.DEFINE_string("folder", "runs", "Folder with the folders of runs.")
    flags.DEFINE_string("save", None, "Folder of a table of runs to add those in --folder to.")
    cli.run(main, argument="folder")

"""Writes papers' settings as flag files: `python -m arm_tf.paper`.

A flag file is a cell of a paper's tables, an experiment and an estimator: of tables 2 and 3 of the
paper that this package reproduces in runs/paper, of others in folders beside it.
"""

import pathlib

from arm_tf import cli, files
from arm_tf.paper import PAPERS
from arm_tf.training import config

FOLDER = pathlib.Path("runs")


def flag_files(folder: str = "paper") -> dict[str, str]:
    """The text of each flag file of a paper, by its name."""
    paper = PAPERS[folder]
    return {
        f"{name}-{cell}.flags": f"# {name}, {cell}: as the authors' script, or with its "
        f"settings.\n{config.flag_file({**paper.settings[name], **settings})}"
        for name, cells in paper.cells.items()
        for cell, settings in cells.items()
    }


def main() -> None:
    for folder in PAPERS:
        path = FOLDER / folder
        path.mkdir(parents=True, exist_ok=True)
        texts = flag_files(folder)
        for name, text in texts.items():
            files.write_text(path / name, text)
        print(f"Wrote {len(texts)} flag files to {path}.")


if __name__ == "__main__":
    cli.run(main)

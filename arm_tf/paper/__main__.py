"""Writes the paper's settings as flag files: `python -m arm_tf.paper`.

A flag file is a cell of the paper's tables 2 and 3, an experiment and an estimator.
"""

import pathlib

from arm_tf import cli, files
from arm_tf.paper import PUBLISHED, SETTINGS
from arm_tf.training import config

FOLDER = pathlib.Path("runs/paper")


def flag_files() -> dict[str, str]:
    """The text of each flag file, by its name."""
    return {
        f"{name}-{estimator}.flags": f"# {name}, {estimator}: as the authors' script, or with its "
        f"settings.\n{config.flag_file({**SETTINGS[name], 'estimator': estimator})}"
        for name, estimators in PUBLISHED.items()
        for estimator in estimators
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = flag_files()
    for name, text in texts.items():
        files.write_text(FOLDER / name, text)
    print(f"Wrote {len(texts)} flag files to {FOLDER}.")


if __name__ == "__main__":
    cli.run(main)

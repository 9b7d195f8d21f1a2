"""Folders and files that are written whole or not at all."""

import json
import os
import pathlib
import time
import typing

from arm_tf.errors import RunError

_TRIES, _SECONDS_BETWEEN_TRIES = 10, 0.1  # to replace a file


def make_folder(path: str | os.PathLike[str], flag: str = "--logdir") -> pathlib.Path:
    """Makes a folder that can be written, its parents too, where there is none yet; its path.

    Args:
      path: of the folder.
      flag: by which a user can choose another.

    Raises:
      RunError: that is not possible.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.tmp"
        probe.touch()
        probe.unlink(missing_ok=True)
    except (OSError, UnicodeEncodeError) as error:  # the second in a locale without its letters
        raise cannot_write(path, error, flag) from None
    return path


def cannot_write(path: pathlib.Path, error: Exception, flag: str = "--logdir") -> RunError:
    """The error that says why a folder cannot be written, and which flag names another."""
    reason = getattr(error, "strerror", error)
    return RunError(f"Cannot write the folder {path}: {reason}; choose another with {flag}.")


def read_json(path: str | os.PathLike[str]) -> typing.Any:
    """The contents of a JSON file."""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Writes `value` as JSON, replacing the file in one move."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, replacing the old one in one move once the new one is on disk."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    for tries_left in reversed(range(_TRIES)):
        try:
            return os.replace(temporary, path)
        except PermissionError:  # on Windows, while somebody reads the old one
            if not tries_left:
                raise
            time.sleep(_SECONDS_BETWEEN_TRIES)

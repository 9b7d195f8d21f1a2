"""Folders and files that are written whole or not at all, and read as what they are."""

import contextlib
import csv
import json
import os
import pathlib
import time
import typing
from collections.abc import Iterator

from arm_tf.errors import RunError

_TRIES, _SECONDS_BETWEEN_TRIES = 10, 0.1  # to replace a file
# What reading a file raises whose contents are not what they should be.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_MOST = 2**28  # bytes of a file that is read


def make_folder(path: str | os.PathLike[str], flag: str = "--logdir") -> pathlib.Path:
    """Makes a folder that can be written, its parents too, where there is none yet; its path.

    Args:
      path: of the folder.
      flag: by which a user can choose another.

    Raises:
      RunError: that is not possible.
    """
    path = pathlib.Path(path)
    with writing(path, flag):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.tmp"
        probe.touch()
        probe.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], flag: str = "--logdir") -> Iterator[None]:
    """A context in which a failure to write a folder is a `RunError`.

    Args:
      path: of the folder.
      flag: by which a user can choose another.
    """
    try:
        yield
    except (OSError, UnicodeEncodeError) as error:  # the second in a locale without its letters
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"Cannot write the folder {path}: {reason}; mend that, or choose another with {flag}."
        ) from None


def read_text(path: str | os.PathLike[str]) -> str:
    """The contents of a text file; a pipe or a device, which may never end, is refused.

    Raises:
      OSError, ValueError: it cannot be read.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    if path.stat().st_size > _MOST:
        raise ValueError(f"more than {_MOST:,} bytes")
    return path.read_text(encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> typing.Any:
    """The contents of a JSON file; raises OSError or ValueError where it is none."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a CSV file by its header; raises OSError or ValueError where it is none."""
    try:
        return list(csv.DictReader(read_text(path).splitlines()))
    except csv.Error as error:
        raise ValueError(str(error)) from None


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Writes `value` as JSON, replacing the file in one move."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, replacing the old one in one move once the new one is on disk."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
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
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise

"""The folder of a run: its settings, metrics and result as files that are never half-written."""

import contextlib
import csv
import dataclasses
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import typing
from collections.abc import Iterator, Sequence

import filelock

from arm_tf import files
from arm_tf.data import Dataset
from arm_tf.errors import RunError
from arm_tf.training.config import Config, flag_file

_LIBRARIES = ("tensorflow", "keras", "tensorflow-probability", "numpy")


class RunFolder:
    """The folder `logdir/name` of one run, held by this process alone.

    Args:
      config: `arm_tf.training.config.Config`.

    Raises:
      RunError: the folder cannot be written, is in use by another process, holds unreadable
        settings, or holds a run with other settings.
    """

    def __init__(self, config: Config) -> None:
        self.path = run_path(config)
        self._is_new = not os.path.exists(self.path)  # also where the name is too long for a path
        files.make_folder(self.path)
        # The system's own kind of lock, which ends with the process. Its file stays: another might
        # have opened it already, and would lock what nobody else finds any more.
        self._lock = filelock.FileLock(self.path / ".lock", timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise RunError(f"Another process is training the run in {self.path}.") from None
        except OSError as error:
            raise files.cannot_write(self.path, error) from None
        try:
            if (self.path / "config.json").exists():
                self._compare(config)
        except BaseException:
            self.close()
            raise

    def _compare(self, config: Config) -> None:
        begun = read_config(self.path)
        differing = config.differences(begun)
        if differing:
            flag = lambda name, value: flag_file({name: value}).strip() or f"no --{name}"
            started, received = (
                ", ".join(flag(name, settings[name]) for name in differing)
                for settings in (begun.settings(), config.settings())
            )
            raise RunError(
                f"The run in {self.path} was started with {started}; received {received}. "
                "Repeat what it was started with, or choose another --name."
            )

    def close(self) -> None:
        """Lets other processes use the folder."""
        self._lock.release()

    def discard_if_new(self) -> None:
        """Removes the folder again if this process made it and wrote no more than settings."""
        if os.name == "nt":  # which does not remove an open file
            self.close()
        if self._is_new:
            with contextlib.suppress(OSError):  # another process has come to the folder
                for name in ("config.json", "flags.txt", ".lock"):
                    (self.path / name).unlink(missing_ok=True)
                self.path.rmdir()
        self.close()

    def start(self, config: Config, dataset: Dataset) -> None:
        """Writes flags.txt and config.json, or checks that the run goes on with the same data.

        Raises:
          RunError: the data differ from those that the run was started with.
        """
        record = {
            "config": dataclasses.asdict(config),
            "changed": config.changed,
            "data": {
                "checksum": dataset.checksum,
                "published": dataset.published,
                "images": {s: len(getattr(dataset, s)) for s in ("train", "valid", "test")},
            },
            "versions": versions(),
        }
        if (self.path / "config.json").exists():
            check_data(self.path, dataset)
            return
        with self.writing():
            files.write_text(self.path / "flags.txt", config.flag_file())
            files.write_json(self.path / "config.json", record)

    @contextlib.contextmanager
    def writing(self, *errors: type[Exception]) -> Iterator[None]:
        """A context in which a failure to write the folder is a `RunError`.

        Args:
          errors: exceptions other than OSError that a library raises then.
        """
        caught: tuple[type[Exception], ...] = (OSError, *errors)
        try:
            (self.path / ".lock").stat()  # TensorFlow would make a folder that is gone anew
            yield
        except caught as error:
            reason = " ".join(str(getattr(error, "strerror", error)).split())
            reason = re.sub(r"{{.*?}} ?| \[Op:\w+\]", "", reason)
            raise RunError(
                f"Cannot write the folder {self.path}: {reason}; once that is mended, the same "
                "command goes on from the last checkpoint there."
            ) from error

    @property
    def result(self) -> dict[str, typing.Any] | None:
        """The result of a finished run, None before that."""
        return read_result(self.path)

    def write_result(self, result: dict[str, typing.Any]) -> None:
        """Writes result.json, which marks the run as finished."""
        files.write_json(self.path / "result.json", result)

    def write_metrics(self, rows: Sequence[dict[str, float]]) -> None:
        """Replaces metrics.csv by `rows`, dicts; empty where one lacks a column of the last."""
        columns = list(rows[-1]) if rows else []
        lines = [",".join(columns)] if rows else []
        lines += [",".join(f"{row[c]:.10g}" if c in row else "" for c in columns) for row in rows]
        files.write_text(self.path / "metrics.csv", "\n".join(lines) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on; a dict."""
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **libraries}


def run_path(config: Config) -> pathlib.Path:
    """Where the folder of a configuration's run is."""
    return pathlib.Path(config.logdir) / config.name


def read_config(path: str | os.PathLike[str]) -> Config:
    """The configuration that a run's folder was started with.

    Raises:
      RunError: there is none, or it cannot be read.
    """
    file = pathlib.Path(path) / "config.json"
    if not file.exists():
        raise RunError(f"{path} is not the folder of a run: it has no config.json.")
    with _reading(file):
        return Config.from_dict(files.read_json(file)["config"])


def read_result(path: str | os.PathLike[str]) -> dict[str, typing.Any] | None:
    """The result of the finished run in a folder, a dict; None before that."""
    file = pathlib.Path(path) / "result.json"
    if not file.exists():
        return None
    with _reading(file):
        return files.read_json(file)


def read_metrics(
    path: str | os.PathLike[str], last_step: float = math.inf
) -> list[dict[str, float]]:
    """Rows of a run's metrics.csv up to a step as dicts of floats, [] where there is none yet.

    Raises:
      RunError: the file is damaged.
    """
    file = pathlib.Path(path) / "metrics.csv"
    if not file.exists():
        return []
    with _reading(file), open(file, newline="", encoding="utf-8") as lines:
        rows = [
            {k: float(v) for k, v in row.items() if v != ""}  # "": of a version without the column
            for row in csv.DictReader(lines)
        ]
        return [row for row in rows if row["step"] <= last_step]


def check_data(path: str | os.PathLike[str], dataset: Dataset) -> None:
    """Raises RunError unless the run in folder `path` was started with these data."""
    file = pathlib.Path(path) / "config.json"
    with _reading(file):
        begun_with = files.read_json(file)["data"]["checksum"]
    if begun_with != dataset.checksum:
        raise RunError(
            f"The run in {path} was started with other data (checksum {begun_with[:12]}…, "
            f"now {dataset.checksum[:12]}…); give it those, or choose another --name."
        )


@contextlib.contextmanager
def _reading(file: pathlib.Path) -> Iterator[None]:
    """A context in which whatever is wrong with a file's contents is a `RunError`."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"Cannot read {file}: {type(error).__name__}: {error}") from None

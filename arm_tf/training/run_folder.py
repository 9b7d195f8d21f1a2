"""The folder of a run: its settings, metrics and result as files that are never half-written."""

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import sys
import typing
import warnings
from collections.abc import Iterator, Sequence

import filelock

from arm_tf import files
from arm_tf.data import Dataset
from arm_tf.errors import RunError
from arm_tf.training.config import Config, flag_file

_LIBRARIES = ("tensorflow", "keras", "tensorflow-probability", "numpy")
_PATTERN = "*?[]" + "\\" * (os.name != "nt")  # by TensorFlow, which seeks and deletes checkpoints
_ESSENTIAL = ("test_nll", "valid_nll")  # figures without which there is no result
_FIGURES = (*_ESSENTIAL, "test_neg_elbo", "test_k_nll", "best_epoch", "epochs", "steps",
            "evaluations_per_step", "test_samples")  # fmt: skip


class UnreadableError(RunError):
    """A file of a run whose contents are not what they should be."""


class RunFolder:
    """The folder `logdir/name` of one run, held by this process alone.

    Args:
      config: `arm_tf.training.config.Config`.

    Raises:
      RunError: the folder cannot be written, is in use by another process, holds unreadable
        settings or checkpoints without settings, or holds a run with other settings.
    """

    def __init__(self, config: Config) -> None:
        self.path = run_path(config)
        check_path(self.path)
        self._is_new = not os.path.exists(self.path)  # also where the name is too long for a path
        files.make_folder(self.path)
        # The system's own kind of lock, which ends with the process. Its file stays: another might
        # have opened it already, and would lock what nobody else finds any more.
        self._lock = filelock.FileLock(self.path / ".lock", timeout=0, thread_local=False)
        with files.writing(self.path), warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise RunError(f"Another process is training the run in {self.path}.") from None
            except NotImplementedError as error:  # filelock's, where there are no locks
                raise OSError(str(error)) from None
            self._held = (self.path / ".lock").stat()
        if notes:  # a file system without locks, for which there is a weaker kind
            print(f"{self.path}: {notes[0].message}.", file=sys.stderr)
        try:
            if (self.path / "config.json").exists():
                self.check_settings(config, read_config(self.path))
            elif (self.path / "checkpoints").exists():
                raise RunError(
                    f"The run in {self.path} has lost its config.json, without which nobody knows "
                    "its settings. Put that back, or choose another --name."
                )
        except BaseException:
            self.close()
            raise

    def check_settings(self, config: Config, begun: Config) -> None:
        """Raises RunError unless a configuration is the one that the run was begun with."""
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
            with contextlib.suppress(OSError, RunError):  # another process has come to the folder
                self._check_held()
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
            self._check_held()
            yield
        except caught as error:
            reason = " ".join(str(getattr(error, "strerror", error)).split())
            reason = re.sub(r"{{.*?}} ?| \[Op:\w+\]", "", reason)
            raise RunError(
                f"Cannot write the folder {self.path}: {reason}; once that is mended, the same "
                "command goes on from the last checkpoint there."
            ) from error

    def _check_held(self) -> None:
        """Raises OSError where the folder is gone, RunError where another is in its place."""
        if not os.path.samestat((self.path / ".lock").stat(), self._held):
            raise RunError(
                f"The folder {self.path} was deleted while this run went on, and another run has "
                "made it anew; nothing more is written. Train this one under another --name."
            )

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


def check_path(path: pathlib.Path) -> None:
    """Raises RunError where TensorFlow would take the path of a run for a pattern of others."""
    if special := sorted(set(_PATTERN) & set(str(path))):
        raise RunError(
            f"The folder {path} has {' '.join(special)} in its path, by which TensorFlow finds "
            "checkpoints of other runs; rename it, or choose another with --logdir."
        )


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
    """The result of the finished run in a folder, a dict; None before that.

    Raises:
      RunError: the file is damaged, lacks a bound, or holds something else than numbers as figures.
    """
    file = pathlib.Path(path) / "result.json"
    if not file.exists():
        return None
    with _reading(file):
        result = files.read_json(file)
        figures = {name: result[name] for name in _FIGURES if name in {*_ESSENTIAL, *result}}
        for name, value in figures.items():
            if type(value) not in (int, float):
                raise ValueError(f"{name} is {str(value)[:20]!r}, not a number")
            float(value)  # or it is too large for that
        return result


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Rows of a run's metrics.csv as dicts of floats, [] where there is none yet.

    Raises:
      RunError: the file is damaged.
    """
    file = pathlib.Path(path) / "metrics.csv"
    if not file.exists():
        return []
    with _reading(file):
        rows = [
            {k: float(v) for k, v in row.items() if v != ""}  # "": of a version without the column
            for row in files.read_csv(file)
        ]
        for row in rows:
            is_whole = rows[0].keys() <= row.keys() and 0 < row["step"] < math.inf
            if not is_whole or not row["epoch"] > 0:
                raise ValueError(f"figures are missing at step {row['step']:g}")
        if len({row["step"] for row in rows}) < len(rows):
            raise ValueError("a step is there twice")
        return rows


def check_data(path: str | os.PathLike[str], dataset: Dataset) -> None:
    """Raises RunError unless the run in folder `path` was started with these data."""
    file = pathlib.Path(path) / "config.json"
    with _reading(file):
        begun_with = files.read_json(file)["data"]["checksum"]
        if not isinstance(begun_with, str):
            raise ValueError("the checksum of the data is not a text")
    if begun_with != dataset.checksum:
        raise RunError(
            f"The run in {path} was started with other data (checksum {begun_with[:12]}…, "
            f"now {dataset.checksum[:12]}…); give it those, or choose another --name."
        )


@contextlib.contextmanager
def _reading(file: pathlib.Path) -> Iterator[None]:
    """A context in which whatever is wrong with a file's contents is an `UnreadableError`."""
    try:
        yield
    except files.UNREADABLE as error:
        raise UnreadableError(f"Cannot read {file}: {type(error).__name__}: {error}") from None

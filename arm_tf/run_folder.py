"""The folder of a run: its settings, metrics and result as files that are never half-written."""

import csv
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform

from arm_tf import config as config_lib

_LIBRARIES = ("tensorflow", "keras", "tensorflow-probability", "numpy")


class RunError(RuntimeError):
    """A run that cannot start or go on; the message is one line: what is wrong, what to do."""


class RunFolder:
    """The folder `logdir/name` of one run, held by this process alone.

    Args:
      config: `arm_tf.config.Config`.

    Raises:
      RunError: the folder cannot be written, is in use by another process, holds unreadable
        settings, or holds a run with other settings.
    """

    def __init__(self, config):
        self.path = pathlib.Path(config.logdir) / config.name
        self._is_new = not self.path.exists()
        make_folder(self.path)
        self._lock = open(self.path / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"Another process is training the run in {self.path}.") from None
        if (self.path / "config.json").exists():
            self._compare(config)

    def _compare(self, config):
        differing = config.differences(read_config(self.path))
        if differing:
            raise RunError(
                f"The run in {self.path} was started with other values of "
                f"{', '.join('--' + name for name in differing)}; "
                "repeat those, or choose another --name."
            )

    def close(self):
        """Lets other processes use the folder."""
        self._lock.close()

    def discard_if_new(self):
        """Removes the folder again if this process made it and left nothing in it."""
        self.close()
        if self._is_new:
            (self.path / ".lock").unlink()
            self.path.rmdir()

    def start(self, config, dataset):
        """Writes flags.txt and config.json, or checks that the run goes on with the same data.

        Raises:
          RunError: the data differ from those that the run was started with.
        """
        record = {
            "config": dataclasses.asdict(config),
            "data": {
                "checksum": dataset.checksum,
                "published": dataset.published,
                "images": {s: len(getattr(dataset, s)) for s in ("train", "valid", "test")},
            },
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in _LIBRARIES},
            },
        }
        if (self.path / "config.json").exists():
            check_data(self.path, dataset)
            return
        write_text(self.path / "flags.txt", config.flag_file())
        write_json(self.path / "config.json", record)

    @property
    def result(self):
        """The result of a finished run, None before that."""
        path = self.path / "result.json"
        return read_json(path) if path.exists() else None

    def write_result(self, result):
        """Writes result.json, which marks the run as finished."""
        write_json(self.path / "result.json", result)

    def write_metrics(self, rows):
        """Replaces metrics.csv by `rows`, dicts with the same keys."""
        lines = [",".join(rows[0])] if rows else []
        lines += [",".join(f"{value:.10g}" for value in row.values()) for row in rows]
        write_text(self.path / "metrics.csv", "\n".join(lines) + "\n")


def make_folder(path, flag="--logdir"):
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
        (path / ".lock").touch()
    except OSError as error:
        raise RunError(
            f"Cannot write the folder {path}: {error.strerror}; choose another with {flag}."
        ) from None
    return path


def read_config(path):
    """The configuration that a run's folder was started with.

    Raises:
      RunError: there is none, or it cannot be read.
    """
    file = pathlib.Path(path) / "config.json"
    if not file.exists():
        raise RunError(f"{path} is not the folder of a run: it has no config.json.")
    try:
        return config_lib.Config.from_dict(read_json(file)["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"Cannot read {file}: {error}") from None


def read_metrics(path):
    """Rows of a run's metrics.csv as dicts of floats, [] where there is none yet."""
    file = pathlib.Path(path) / "metrics.csv"
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as lines:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(lines)]


def check_data(path, dataset):
    """Raises RunError unless the run in folder `path` was started with these data."""
    begun_with = read_json(pathlib.Path(path) / "config.json")["data"]["checksum"]
    if begun_with != dataset.checksum:
        raise RunError(
            f"The run in {path} was started with other data (checksum {begun_with[:12]}…, "
            f"now {dataset.checksum[:12]}…); give it those, or choose another --name."
        )


def read_json(path):
    """The contents of a JSON file."""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def write_json(path, value):
    """Writes `value` as JSON, replacing the file in one move."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    """Writes a text file, replacing the old one in one move once the new one is on disk."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

"""Checkpoints of a run: its latest state, the weights of its best validation, and those to keep."""

import contextlib
import json
import os
import pathlib
import re
import sys
import typing
from collections.abc import Iterator

import keras
import tensorflow as tf

from arm_tf.data import Dataset
from arm_tf.errors import RunError
from arm_tf.models.network import BinaryNetwork
from arm_tf.training import steps
from arm_tf.training.config import Config
from arm_tf.training.run_folder import RunFolder, check_path


class Checkpoints:
    """The checkpoints in the folder of a run.

    Args:
      folder: `arm_tf.training.run_folder.RunFolder`.
      state: dict of what a checkpoint holds, nested lists and dicts of variables; "weights" are
        the model's. Beside it there is a record, what the run knows in Python, as JSON.

    Raises:
      RunError: the folder cannot be written.
    """

    def __init__(self, folder: RunFolder, state: dict[str, typing.Any]) -> None:
        self._folder = folder
        path = folder.path / "checkpoints"
        with tf.device("CPU"):
            self._record = tf.Variable("", dtype=tf.string)
        self._of_earlier_versions = tf.train.Checkpoint(**state)  # which wrote no record
        with self._writing():
            latest = tf.train.Checkpoint(**state, record=self._record)
            self._latest = _manager(latest, path, keep=2)
            weights = tf.train.Checkpoint(weights=state["weights"])
            self._best = _manager(weights, path / "best", keep=1)
            self._kept = _manager(weights, path / "kept", keep=None)

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return self._folder.writing(tf.errors.OpError)

    def save(self, record: dict[str, typing.Any]) -> None:
        """Writes the state under a new name, so that those before it stay as they are."""
        self._record.assign(json.dumps(record))
        with self._writing():
            self._latest.save()

    def restore_latest(self) -> dict[str, typing.Any] | None:
        """Restores the newest checkpoint that is not damaged, if there is any checkpoint.

        Returns:
          The record that it was saved with; None where there is none.

        Raises:
          RunError: there are only damaged ones, or the system does not let them be read.
        """
        paths = self._latest.checkpoints
        for path in reversed(paths):
            try:
                if restore(self._latest.checkpoint, path, self._of_earlier_versions):
                    counter = self._latest.checkpoint.save_counter
                    counter.assign(self._of_earlier_versions.save_counter)
                    return None
                return json.loads(self._record.numpy())
            except Damaged as error:
                if path == paths[0]:
                    raise RunError(
                        f"{error}; no other checkpoint is left. "
                        "Choose another --name to train anew."
                    ) from None
                print(f"{error}; going on from the checkpoint before it.", file=sys.stderr)
        return None

    def save_best(self, step: int) -> None:
        """Writes the weights as the best so far."""
        with self._writing():
            self._best.save(step)

    def keep(self, step: int) -> None:
        """Writes the weights for good."""
        with self._writing():
            self._kept.save(step)

    def restore_best(self) -> None:
        """Restores the weights that were the best.

        Raises:
          RunError: they are damaged, or the system does not let them be read.
        """
        try:
            none = str(self._folder.path / "checkpoints" / "best" / "ckpt")
            with self._writing():  # where the folder is no longer this run's, nor are they
                restore(self._best.checkpoint, self._best.latest_checkpoint or none)
        except Damaged as error:
            raise RunError(
                f"{error}; the weights of the best validation are lost. "
                "Choose another --name to train anew."
            ) from None


def load_model(path: pathlib.Path, config: Config, dataset: Dataset) -> BinaryNetwork:
    """The model of a run with the weights of its best validation.

    Raises:
      RunError: the run has no evaluated checkpoint yet, or a damaged one.
    """
    model = steps.build_model(config, dataset)
    next(restore_each(path, model, "best"))
    return model


def restore_each(path: pathlib.Path, model: BinaryNetwork, which: str) -> Iterator[int]:
    """Puts weights that a run has saved into a model, one after the other.

    Args:
      path: the run's folder.
      model: that of the run; what it holds before the next step is asked for are the weights.
      which: "best", those of the best validation, or "kept", all that --keep_epochs asked for.

    Yields:
      int, the step that they were saved at, in ascending order.

    Raises:
      RunError: there are none, or damaged ones.
    """
    check_path(path)
    saved = _indices(path / "checkpoints" / which)
    if not saved:
        keep = "; train it with --keep_epochs" if which == "kept" else ""
        raise RunError(f"The run in {path} has no {which} weights yet{keep}.")
    for step in sorted(saved) if which == "kept" else [max(saved)]:
        restore(tf.train.Checkpoint(weights=tensors(model)), str(saved[step].with_suffix("")))
        yield step


def _indices(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Index files of a folder's checkpoints, by number; files of other names are left alone.

    Raises:
      RunError: a pipe or the like is among them, for which TensorFlow would wait.
    """
    for path in folder.glob("*"):
        if not (path.is_file() or path.is_dir()):
            raise RunError(f"{path} is not a regular file; remove it.")
    found = {re.fullmatch(r"ckpt-(\d+)\.index", path.name): path for path in folder.glob("*.index")}
    return {int(match[1]): path for match, path in found.items() if match}


def tensors(holder: keras.layers.Layer | keras.optimizers.Optimizer) -> list[tf.Variable]:
    """The TensorFlow variables of a Keras model, layer or optimiser, for checkpoints."""
    return [variable.value for variable in holder.variables]


def _manager(
    checkpoint: tf.train.Checkpoint, folder: pathlib.Path, keep: int | None
) -> tf.train.CheckpointManager:
    """A `tf.train.CheckpointManager` that finds a folder's checkpoints also if their list is bad.

    TensorFlow's list of them is what the writing of a checkpoint ends with, so that there are
    none where there is no list. A damaged one is replaced by the names of the files there.
    """
    found, listed = _indices(folder), None
    with contextlib.suppress(Exception):  # of any kind: it parses whatever the file holds
        listed = tf.train.get_checkpoint_state(str(folder))
    whole = listed and len(listed.all_model_checkpoint_timestamps) == len(
        listed.all_model_checkpoint_paths
    )  # a manager forgets those without a time
    if not whole and (folder / "checkpoint").exists():
        if found:
            names = [f"ckpt-{number}" for number in sorted(found)]
            times = [found[number].stat().st_mtime for number in sorted(found)]
            tf.compat.v1.train.update_checkpoint_state(
                str(folder.absolute()), names[-1], names, all_model_checkpoint_timestamps=times
            )
        else:
            (folder / "checkpoint").unlink()
    return tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=keep)


class Damaged(RunError):
    """A checkpoint that is damaged, or not of this model."""


def restore(checkpoint: tf.train.Checkpoint, path: str, *others: tf.train.Checkpoint) -> int:
    """Restores every variable of a `tf.train.Checkpoint`; TensorFlow compares their checksums.

    Args:
      checkpoint: `tf.train.Checkpoint`.
      path: of the files, without their endings.
      *others: to try in its place where the files hold other variables.

    Returns:
      int, which of them the files are of, 0 for the first.

    Raises:
      Damaged: a file is damaged, lost, or not of this model.
      RunError: the system does not let a file be read, which says nothing of its contents.
    """
    reason = "it is not a checkpoint of this model"
    for which, each in enumerate((checkpoint, *others)):
        try:
            status = each.restore(path)
        except Exception as error:  # OpError, IndexError and others, depending on the damage
            reason = str(error).splitlines()[0]
            break
        try:
            status.assert_consumed()
            return which
        except AssertionError:
            status.expect_partial()
    folder, name = pathlib.Path(path).parent, pathlib.Path(path).name
    try:
        for file in os.listdir(folder):
            if file.startswith(f"{name}."):
                (folder / file).read_bytes()
    except FileNotFoundError:
        reason = "it is gone"
    except OSError as error:
        raise RunError(
            f"Cannot read {path}: {error.strerror}; once that is mended, the same command goes on."
        ) from None
    raise Damaged(f"Cannot restore {path}: {reason}")

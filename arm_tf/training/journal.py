"""What a run writes beside its checkpoints: metrics, events for TensorBoard, pictures, result."""

import contextlib
import typing
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from arm_tf import figures, noise
from arm_tf.data import Dataset
from arm_tf.errors import RunError
from arm_tf.models.network import BinaryNetwork
from arm_tf.training import board
from arm_tf.training.config import Config
from arm_tf.training.run_folder import RunFolder

_IMAGES_SHOWN = 64
_EVALUATIONS_PER_PICTURE = 10
_LOSS_TAGS = {"elbo": "bounds/neg_elbo", "multisample": "bounds/nll"}  # as in evaluations


class Journal:
    """The record of a run, in its folder.

    Args:
      folder: `arm_tf.training.run_folder.RunFolder`.
      config: `arm_tf.training.config.Config`.
      pictures: called without arguments; the model's present pictures as pages, by name.
      metrics: rows of metrics.csv, one an evaluation, so far.

    Attributes:
      metrics: the same, and those that follow.

    Raises:
      RunError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        pictures: Callable[[], dict[str, np.ndarray]],
        metrics: list[dict[str, float]],
    ) -> None:
        self._folder, self._config, self._pictures = folder, config, pictures
        with self._writing():
            self._writers = {
                split: tf.summary.create_file_writer(str(folder.path / split))
                for split in ("train", "valid", "test")
            }
            if metrics:
                self._folder.write_metrics(metrics)  # whatever has become of the file meanwhile
        self.metrics = metrics
        self._begin_events()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return self._folder.writing(tf.errors.OpError)

    @contextlib.contextmanager
    def _events(self, writer: str, step: float | None = None) -> Iterator[None]:
        """Makes a writer TensorFlow's default, to which it writes; one that fails is closed.

        It would stay the default otherwise, since its context cannot flush it then.
        """
        with self._writing(), self._writers[writer].as_default(step):
            try:
                yield
                self._writers[writer].flush()
            except tf.errors.OpError:
                with contextlib.suppress(tf.errors.OpError):
                    self._writers[writer].close()
                raise

    def _begin_events(self, failed: bool = False) -> None:
        """Replaces the events of the run itself; of two statuses TensorBoard takes the first."""
        path = self._folder.path
        with self._writing():
            old = list(path.glob("events.out.tfevents.*"))
            self._writers["run"] = tf.summary.create_file_writer(str(path))
            with self._events("run"):
                board.write_settings(self._config)
                if failed:
                    board.write_failure()
            for file in old:
                file.unlink()

    def note_failure(self) -> None:
        """Lets TensorBoard show that the run has failed, where the folder can be written.

        It is taken back when the run goes on; a TensorBoard open all the while keeps it.
        """
        with contextlib.suppress(RunError):
            self._begin_events(failed=True)

    def write_loop(
        self,
        step: int,
        loss: float,
        norms: dict[str, float],
        variances: dict[str, float],
        steps_per_second: float,
    ) -> None:
        """Writes the events of a loop of steps.

        Args:
          step: int, the last one.
          loss: float, mean over the steps, in nats.
          norms: of the gradients at the last step, by part of the model.
          variances: of the gradients of estimators that are followed, by name.
          steps_per_second: float.
        """
        with self._events("train", step):
            tf.summary.scalar(_LOSS_TAGS[self._config.objective], loss)
            tf.summary.scalar("training/learning_rate", self._config.learning_rate)
            tf.summary.scalar("training/steps_per_second", steps_per_second)
            for part, norm in norms.items():
                tf.summary.scalar(f"gradient_norm/{part}", norm)
            for name, variance in variances.items():
                tf.summary.scalar(f"gradient_variance/{name}", variance)

    def write_evaluation(self, row: dict[str, float]) -> None:
        """Adds a row to the metrics, its events, and now and then pictures."""
        self.metrics.append(row)
        has_pictures = len(self.metrics) % _EVALUATIONS_PER_PICTURE == 1
        pages = self._pictures() if has_pictures else {}
        with self._writing():
            self._folder.write_metrics(self.metrics)
            with self._events("valid", row["step"]):
                tf.summary.scalar("bounds/neg_elbo", row["valid_neg_elbo"])
                tf.summary.scalar("bounds/nll", row["valid_nll"])
            with self._events("test", row["step"]):
                tf.summary.scalar("bounds/neg_elbo", row["test_neg_elbo"])
                for name, page in pages.items():
                    tf.summary.image(f"images/{name}", page[np.newaxis, :, :, np.newaxis])

    def flush(self) -> None:
        """Brings all events to the disk."""
        with self._writing():
            for writer in self._writers.values():
                writer.flush()

    def save_pictures(self) -> None:
        """Writes the model's pictures and curves.png for the present weights."""
        pages = self._pictures()
        path = self._folder.path
        with self._writing():
            for name, page in pages.items():
                figures.save_grid(path / f"{name}.png", page)
            if self.metrics:
                figure = figures.run_curves(
                    self.metrics, self._config.name, self._config.likelihood
                )
                figure.savefig(path / "curves.png")

    def write_result(self, result: dict[str, typing.Any]) -> None:
        """Writes the final figures, and with them that the run is finished."""
        with self._writing():
            with self._events("test", result["best_step"]):
                tf.summary.scalar("bounds/nll", result["test_nll"])
            with self._events("run"):
                board.write_result(result, result["best_step"])
            self._folder.write_result(result)


def pages(model: BinaryNetwork, dataset: Dataset, seed: int) -> dict[str, np.ndarray]:
    """The model's pictures as pages; of test images, rows above what belongs to them.

    Args:
      model: `arm_tf.models.BinaryVAE` or `ConditionalNetwork`.
      dataset: `arm_tf.data.Dataset`.
      seed: int, of the noise.

    Returns:
      By name, float32 [rows, columns] as of `arm_tf.figures.grid`.
    """
    test = dataset.test  # may be sorted by class
    x = test[:: -(-len(test) // _IMAGES_SHOWN)].astype(np.float32)
    key = noise.key(seed, "pictures")
    u = noise.uniforms(key, 0, [1, model.picture_rows, _IMAGES_SHOWN, model.units])[0]
    pictures = model.pictures(x, u[:, : len(x)])
    return {
        name: figures.grid(*map(np.asarray, images), image_shape=dataset.image_shape)
        for name, images in pictures.items()
    }

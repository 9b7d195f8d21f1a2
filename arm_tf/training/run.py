"""One run: its model, its optimisers, and the position that checkpoints keep."""

import dataclasses
import functools
import hashlib
import json
import math
import time
import typing
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from arm_tf import noise
from arm_tf.data import Dataset
from arm_tf.errors import RunError
from arm_tf.training import bounds, replicas, run_folder
from arm_tf.training.checkpoints import Checkpoints
from arm_tf.training.config import Config
from arm_tf.training.feed import Feed
from arm_tf.training.journal import Journal, pages
from arm_tf.training.learner import Learner
from arm_tf.training.run_folder import RunFolder
from arm_tf.training.workers import ALONE, Cluster, Stop


class Run:
    """A run, from its start or its newest checkpoint to its result.

    Args:
      config: `arm_tf.training.config.Config`.
      dataset: `arm_tf.data.Dataset`.
      folder: `arm_tf.training.run_folder.RunFolder`; a checkpoint in it is restored. None
        for workers other than the chief, which take its state and write nothing.
      cluster: `arm_tf.training.workers.Cluster`.
      clock: called without arguments, seconds since some moment.

    Raises:
      RunError: there are fewer training images than one batch, a batch cannot be shared equally
        among the replicas, or no checkpoint can be restored.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        folder: RunFolder | None,
        cluster: Cluster = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.dataset, self.folder = config, dataset, folder
        self.cluster, self.clock = cluster, clock
        self.loss_name = {"elbo": "neg_elbo", "multisample": "neg_bound"}[config.objective]
        self.strategy = replicas.strategy(config.distribute)
        num_replicas = self.strategy.num_replicas_in_sync
        if config.batch_size % num_replicas:
            raise RunError(
                f"--batch_size={config.batch_size} cannot be shared equally among {num_replicas} "
                "replicas; choose a multiple of that."
            )
        with replicas.working_together(cluster), self.strategy.scope():
            if cluster.addresses:
                self._compare_with_chief()
            self.learner = Learner(config, dataset, self.strategy)
        self.feed = Feed(config, dataset, self.learner.noise_rows)
        self.steps_per_epoch = self.feed.steps_per_epoch
        self.total_steps = config.epochs * self.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.is_compiled = False
        self.evaluators = {
            "valid": self.evaluator(dataset.valid, config.eval_samples, "valid"),
            "test": self.evaluator(dataset.test, 1, "test"),
        }
        self.position = {
            "step": tf.Variable(0, dtype=tf.int64),
            "loss_sum": tf.Variable(0.0, dtype=tf.float64),  # since the last evaluation
            "steps_summed": tf.Variable(0, dtype=tf.int64),
            "best_valid_nll": tf.Variable(math.inf, dtype=tf.float64),
            "best_step": tf.Variable(0, dtype=tf.int64),
            "training_seconds": tf.Variable(0.0, dtype=tf.float64),  # in `run_steps`
            "seconds": tf.Variable(0.0, dtype=tf.float64),  # evaluation included
        }
        state = {**self.learner.state, "position": self.position}
        if folder:
            self.checkpoints = Checkpoints(folder, state)
            record = self.checkpoints.restore_latest() or {}
            if "config" in record:
                folder.check_settings(config, Config.from_dict(record["config"]))
            metrics = record.get("metrics")
            if metrics is None:  # of an earlier version
                # The row of this step is there without its evaluation if the run died in between.
                last_step = self.step if self.is_evaluated else self.step - 1
                metrics = run_folder.read_metrics(folder.path)
                metrics = [row for row in metrics if row["step"] <= last_step]
            pictures = functools.partial(pages, self.learner.model, dataset, config.seed)
            self.journal = Journal(folder, config, pictures, metrics)
        if cluster.addresses:
            variables = tf.nest.flatten(state)
            with replicas.working_together(cluster):
                values = replicas.from_chief(self.strategy, variables)
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        self.begun = self.clock() - float(self.position["seconds"])

    def _compare_with_chief(self) -> None:
        """Raises RunError unless the chief has the same settings and data."""
        own = json.dumps([self.config.settings(), self.dataset.checksum])
        own = tf.constant(int(hashlib.sha256(own.encode()).hexdigest()[:15], 16), tf.int64)
        if replicas.from_chief(self.strategy, [own])[0] != own:
            raise RunError(
                f"This is {self.cluster}, whose settings or data are not those of worker 0; "
                "give all workers the same."
            )

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.position["step"])

    @property
    def is_evaluated(self) -> bool:
        """Whether the present step has been evaluated."""
        return not int(self.position["steps_summed"])

    def evaluator(self, images: np.ndarray, num_samples: int, purpose: str) -> bounds.Evaluator:
        """Bounds over `images` with noise of their own, as `arm_tf.training.bounds.Evaluator`."""
        key = noise.key(self.config.seed, purpose)
        return bounds.Evaluator(self.learner.model, images, num_samples, key, self.config.jit)

    def run_steps(self) -> tuple[float, float]:
        """Takes steps up to the end of a loop, of the epoch or of the run, and logs them.

        Returns:
          loss: the mean of the steps' training losses, in nats.
          steps_per_second: float.

        Raises:
          RunError: a loss or gradient is not finite.
        """
        if not self.is_compiled:
            with replicas.working_together(self.cluster):
                self.learner.take_steps(*self.feed(self.step, 0))
            self.is_compiled = True
        begin, config, step = self.clock(), self.config, self.step
        left_in_epoch = self.steps_per_epoch - step % self.steps_per_epoch
        count = min(config.steps_per_loop, left_in_epoch, self.total_steps - step)
        with replicas.working_together(self.cluster):
            losses, norms = self.learner.take_steps(*self.feed(step, count))
            losses = losses.numpy()[:count].astype(np.float64)
            norms = {part: float(norm) for part, norm in norms.items()}
        if not np.isfinite(losses).all():
            raise self.not_finite("The loss", step + 1 + int(np.argmin(np.isfinite(losses))))
        if not all(map(math.isfinite, norms.values())):
            raise self.not_finite("The gradient", step + count)

        total = float(self.position["loss_sum"])
        for loss in losses.tolist():  # one by one: the same sum for any steps_per_loop
            total += loss
        self.position["loss_sum"].assign(total)
        self.position["steps_summed"].assign_add(count)
        self.position["step"].assign(step + count)
        seconds = self.clock() - begin
        self.position["training_seconds"].assign_add(seconds)
        if self.folder:
            self.journal.write_loop(
                self.step, losses.mean(), norms, self.learner.tracker.variances(), count / seconds
            )
        return losses.mean(), count / seconds

    def not_finite(self, what: str, step: int) -> RunError:
        """The `RunError` of a run that has become infinite or not a number."""
        path = run_folder.run_path(self.config)
        is_kept = tf.train.latest_checkpoint(str(path / "checkpoints"))
        kept = f"; the last good checkpoint in {path} is kept" if is_kept else ""
        return RunError(
            f"{what} is not finite at step {step}{kept}. A smaller --learning_rate may help."
        )

    def keep_weights(self) -> None:
        """Keeps the weights for good where the settings ask for those of this epoch's end."""
        epoch, steps = divmod(self.step, self.steps_per_epoch)
        if self.folder and not steps and epoch in self.config.keep_epochs:
            self.checkpoints.keep(self.step)

    def evaluation_is_due(self) -> bool:
        """Whether the present step ends an interval between evaluations and was not evaluated.

        Never on workers other than the chief.
        """
        step = self.step
        interval = self.config.eval_every * self.steps_per_epoch
        ends_interval = step == self.total_steps or (step > 0 and step % interval == 0)
        return self.cluster.is_chief and ends_interval and not self.is_evaluated

    def agrees(self, stop: Stop) -> bool:
        """Whether to stop before the next step: all workers do where one of them was asked to.

        A request that comes meanwhile waits for the next time, when the others learn of it.
        """
        if not self.cluster.addresses:
            return stop.requested
        with replicas.working_together(self.cluster):
            return replicas.any_worker(self.strategy, stop.requested)

    def evaluate(self, stop: Stop) -> dict[str, float]:
        """Validates, keeps the weights if they are the best so far, writes metrics and events.

        Args:
          stop: `Stop`; one that other workers have to agree to waits for the end.

        Returns:
          The new row of metrics.

        Raises:
          RunError: the validation bound is not finite, or the folder cannot be written.
          Stopped: `stop` was requested meanwhile; nothing has changed.
        """
        step, position = self.step, self.position
        check = [] if self.cluster.addresses else [stop.check]
        valid = self.evaluators["valid"](*check)
        test = self.evaluators["test"](*check)
        if not math.isfinite(valid.nll):
            raise self.not_finite("The validation bound", step)
        if valid.nll < float(position["best_valid_nll"]):
            self.checkpoints.save_best(step)
            position["best_valid_nll"].assign(valid.nll)
            position["best_step"].assign(step)
        row = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "seconds": self.clock() - self.begun,
            "training_seconds": float(position["training_seconds"]),
            f"train_{self.loss_name}": float(position["loss_sum"]) / int(position["steps_summed"]),
            "valid_neg_elbo": valid.neg_elbo,
            "valid_nll": valid.nll,
            "test_neg_elbo": test.neg_elbo,
            **{f"variance_{k}": v for k, v in self.learner.tracker.variances().items()},
        }
        position["loss_sum"].assign(0.0)
        position["steps_summed"].assign(0)
        self.journal.write_evaluation(row)
        return row

    def save(self) -> None:
        """Writes a checkpoint from which the run goes on as if it had never stopped."""
        if not self.folder:
            return
        self.position["seconds"].assign(self.clock() - self.begun)
        record = {"config": dataclasses.asdict(self.config), "metrics": self.journal.metrics}
        self.checkpoints.save(record)
        self.journal.flush()

    def finish(self, progress: Callable[[float], object]) -> dict[str, typing.Any]:
        """Measures the weights of the best validation on the test set and writes result.json.

        Args:
          progress: called with the fraction done; may raise to stop.

        Returns:
          The result, a dict.
        """
        config, learner, position = self.config, self.learner, self.position
        best_step = int(position["best_step"])
        self.checkpoints.restore_best()
        test = self.evaluator(self.dataset.test, config.test_samples, "final test")(progress)
        samples = min(learner.estimators[0].evaluations, config.test_samples)
        few = self.evaluator(self.dataset.test, samples, "test of K")(lambda _: progress(1.0))
        self.journal.save_pictures()
        result = {
            "dataset": config.dataset,
            "data_published": self.dataset.published,
            "model": config.model,
            "layers": config.layers,
            "network": config.network,
            "estimator": config.estimator,
            "seed": config.seed,
            "steps": self.step,
            "epochs": self.step / self.steps_per_epoch,
            "best_step": best_step,
            "best_epoch": best_step / self.steps_per_epoch,
            "valid_nll": float(position["best_valid_nll"]),
            "valid_samples": config.eval_samples,
            "test_nll": test.nll,
            "test_nll_stderr": test.nll_stderr,
            "test_neg_elbo": test.neg_elbo,
            "test_samples": config.test_samples,
            "test_k_nll": few.nll,  # at as many samples as the estimator evaluates f
            "test_k_samples": samples,
            "test_images": test.images,
            "evaluations_per_step": learner.model.evaluations(
                learner.estimators, config.decoder_samples
            ),
            "steps_per_second": self.step / float(position["training_seconds"]),
            "training_seconds": float(position["training_seconds"]),
            "seconds": self.clock() - self.begun,
        }
        self.journal.write_result(result)
        return result

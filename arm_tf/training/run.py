"""One run: its model, its optimisers, and the position that checkpoints keep."""

import contextlib
import hashlib
import json
import math
import sys
import time

import numpy as np
import tensorflow as tf

from arm_tf import figures, noise
from arm_tf.training import board, bounds, moments, replicas, run_folder, steps
from arm_tf.training.run_folder import RunError
from arm_tf.training.workers import ALONE

_IMAGES_SHOWN = 64
_EVALUATIONS_PER_PICTURE = 10
_LOSS_TAGS = {"elbo": "bounds/neg_elbo", "multisample": "bounds/nll"}  # as in evaluations


def epoch_order(num_images, seed, epoch):
    """Order in which an epoch visits the training images; int32 [num_images]."""
    return np.random.default_rng([seed, epoch]).permutation(num_images).astype(np.int32)


class Trainer:
    """One run: its model, its optimisers, and the position that checkpoints keep.

    Args:
      config: `arm_tf.training.config.Config`.
      dataset: `arm_tf.data.Dataset`.
      folder: `arm_tf.training.run_folder.RunFolder`; a checkpoint in it is restored. None
        for workers other than the chief, which take its state and write nothing.
      cluster: `arm_tf.training.workers.Cluster`.

    Raises:
      RunError: there are fewer training images than one batch, a batch cannot be shared equally
        among the replicas, or no checkpoint can be restored.
    """

    def __init__(self, config, dataset, folder, cluster=ALONE):
        self.config, self.dataset, self.folder = config, dataset, folder
        self.cluster = cluster
        self.loss_name = {"elbo": "neg_elbo", "multisample": "neg_bound"}[config.objective]
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        if not self.steps_per_epoch:
            raise RunError(
                f"--batch_size={config.batch_size} is more than the "
                f"{len(dataset.train)} training images."
            )
        self.total_steps = config.epochs * self.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)

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
            self.model = steps.build_model(config, dataset)
            self.estimators = steps.build_gradient_estimators(config, self.model)
            self.tracker = moments.VarianceTracker(
                {
                    name: steps.build_gradient_estimators(config, self.model, name)
                    for name in config.track_variance
                },
                self.model.variable_groups["encoder"],
            )
            learned = [self.tracker, *self.estimators]
            self.groups = {
                **self.model.variable_groups,
                "estimator": [v for layer in learned for v in layer.trainable_variables],
            }
            self.optimizers = steps.build_optimizers(config, self.groups)
        self.take_steps = steps.make_steps(
            config,
            self.model,
            self.estimators,
            self.tracker,
            self.groups,
            self.optimizers,
            self.strategy,
        )
        self.noise_rows = {
            "train": self.model.noise_rows(self.estimators, config.decoder_samples),
            "variance": self.tracker.noise_rows(self.model),  # apart: tracking changes nothing
        }
        self.is_compiled = False
        self.epoch, self.epoch_images = None, None  # the epoch under way, its images on the device
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
            "training_seconds": tf.Variable(0.0, dtype=tf.float64),
            "seconds": tf.Variable(0.0, dtype=tf.float64),  # evaluation included
        }
        self.metrics = []
        state = {
            "weights": steps.tensors(self.model),
            "estimators": [steps.tensors(layer) for layer in learned],
            "optimizers": {
                part: steps.tensors(optimizer) for part, optimizer in self.optimizers.items()
            },
            "position": self.position,
        }
        if folder:
            self._open(state)
        if cluster.addresses:
            variables = tf.nest.flatten(state)
            with replicas.working_together(cluster):
                values = replicas.from_chief(self.strategy, variables)
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        self.begun = time.monotonic() - float(self.position["seconds"])

    def _open(self, state):
        """Opens the folder's files for writing, and takes up the state that they hold."""
        path = self.folder.path
        checkpoints = path / "checkpoints"
        with self.writing():
            self.latest = steps.checkpoint_manager(
                tf.train.Checkpoint(**state), checkpoints, keep=2
            )
            self.best = steps.checkpoint_manager(
                tf.train.Checkpoint(weights=state["weights"]), checkpoints / "best", keep=1
            )
            self.writers = {
                split: tf.summary.create_file_writer(str(path / split))
                for split in ("train", "valid", "test")
            }
        self._restore()
        # The row of this step is there without its evaluation if the run died between the two.
        steps_evaluated = self.step if self.is_evaluated else self.step - 1
        self.metrics = run_folder.read_metrics(path, steps_evaluated)
        self._begin_events()

    def _begin_events(self, failed=False):
        """Replaces the events of the run itself; of two statuses TensorBoard takes the first."""
        path = self.folder.path
        with self.writing():
            old = list(path.glob("events.out.tfevents.*"))
            self.writers["run"] = tf.summary.create_file_writer(str(path))
            with self.writers["run"].as_default():
                board.write_settings(self.config)
                if failed:
                    board.write_failure()
            self.writers["run"].flush()
            for file in old:
                file.unlink()

    def note_failure(self):
        """Lets TensorBoard show that the run has failed, where the folder can be written.

        It is taken back when the run goes on; a TensorBoard open all the while keeps it.
        """
        if self.folder:
            with contextlib.suppress(RunError):
                self._begin_events(failed=True)

    def _compare_with_chief(self):
        """Raises RunError unless the chief has the same settings and data."""
        own = json.dumps([self.config.settings(), self.dataset.checksum])
        own = tf.constant(int(hashlib.sha256(own.encode()).hexdigest()[:15], 16), tf.int64)
        if replicas.from_chief(self.strategy, [own])[0] != own:
            raise RunError(
                f"This is {self.cluster}, whose settings or data are not those of worker 0; "
                "give all workers the same."
            )

    def _restore(self):
        """Restores the newest checkpoint that is not damaged, if there is any checkpoint."""
        paths = self.latest.checkpoints
        for path in reversed(paths):
            try:
                return steps.restore(self.latest.checkpoint, path)
            except RunError as error:
                if path == paths[0]:
                    raise RunError(
                        f"{error}; no other checkpoint is left. "
                        "Choose another --name to train anew."
                    ) from None
                print(f"{error}; going on from the checkpoint before it.", file=sys.stderr)

    def writing(self):
        """A context in which a failure to write the run's folder is a `RunError`."""
        return self.folder.writing(tf.errors.OpError)

    @property
    def step(self):
        """Steps done."""
        return int(self.position["step"])

    @property
    def is_evaluated(self):
        """Whether the present step has been evaluated."""
        return not int(self.position["steps_summed"])

    def evaluator(self, images, num_samples, purpose):
        """Bounds over `images` with noise of their own, as `arm_tf.training.bounds.Evaluator`."""
        key = noise.key(self.config.seed, purpose)
        return bounds.Evaluator(self.model, images, num_samples, key, self.config.jit)

    def run_steps(self):
        """Takes steps up to the end of a loop, of the epoch or of the run, and logs them.

        Returns:
          loss: the mean of the steps' training losses, in nats.
          steps_per_second: float.

        Raises:
          RunError: a loss or gradient is not finite.
        """
        if not self.is_compiled:
            with replicas.working_together(self.cluster):
                self.take_steps(*self.arguments(0))
            self.is_compiled = True
        begin, config, step = time.monotonic(), self.config, self.step
        left_in_epoch = self.steps_per_epoch - step % self.steps_per_epoch
        count = min(config.steps_per_loop, left_in_epoch, self.total_steps - step)
        with replicas.working_together(self.cluster):
            losses, norms = self.take_steps(*self.arguments(count))
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
        seconds = time.monotonic() - begin
        self.position["training_seconds"].assign_add(seconds)
        if self.folder:
            self._log(step + count, losses.mean(), norms, count / seconds)
        return losses.mean(), count / seconds

    def _log(self, step, loss, norms, steps_per_second):
        """Writes the events of a loop of steps."""
        with self.writing(), self.writers["train"].as_default(step):
            tf.summary.scalar(_LOSS_TAGS[self.config.objective], loss)
            tf.summary.scalar("training/learning_rate", self.config.learning_rate)
            tf.summary.scalar("training/steps_per_second", steps_per_second)
            for part, norm in norms.items():
                tf.summary.scalar(f"gradient_norm/{part}", norm)
            for name, variance in self.tracker.variances().items():
                tf.summary.scalar(f"gradient_variance/{name}", variance)

    def arguments(self, count):
        """Arguments of `take_steps` for `count` steps from the present one."""
        config = self.config
        epoch, done = divmod(self.step, self.steps_per_epoch)
        if self.epoch != epoch:
            self.epoch = epoch
            if self.epoch_images is None or self.dataset.dynamic:
                self.epoch_images = tf.constant(self.dataset.epoch(config.seed, epoch))
            order = epoch_order(len(self.dataset.train), config.seed, epoch)
            order = order[: self.steps_per_epoch * config.batch_size]
            self.order = order.reshape(self.steps_per_epoch, config.batch_size)
        order = np.zeros([config.steps_per_loop, config.batch_size], np.int32)
        order[:count] = self.order[done : done + count]
        return self.epoch_images, order, *self.noise(), tf.constant(count)

    def noise(self):
        """Uniform noise of a loop of steps from the present one, for training and the tracker."""
        config = self.config
        shape = [config.steps_per_loop, config.batch_size, config.units]
        return [
            noise.uniforms(noise.key(config.seed, purpose), self.step, [shape[0], rows, *shape[1:]])
            for purpose, rows in self.noise_rows.items()
        ]

    def not_finite(self, what, step):
        """The `RunError` of a run that has become infinite or not a number."""
        return RunError(
            f"{what} is not finite at step {step}; the last good checkpoint in "
            f"{run_folder.run_path(self.config)} is kept. A smaller --learning_rate may help."
        )

    def evaluation_is_due(self):
        """Whether the present step ends an interval between evaluations and was not evaluated.

        Never on workers other than the chief.
        """
        step = self.step
        interval = self.config.eval_every * self.steps_per_epoch
        ends_interval = step == self.total_steps or (step > 0 and step % interval == 0)
        return self.cluster.is_chief and ends_interval and not self.is_evaluated

    def agrees(self, stop):
        """Whether to stop before the next step: all workers do where one of them was asked to.

        A request that comes meanwhile waits for the next time, when the others learn of it.
        """
        if not self.cluster.addresses:
            return stop.requested
        with replicas.working_together(self.cluster):
            return replicas.any_worker(self.strategy, stop.requested)

    def evaluate(self, stop):
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
            with self.writing():
                self.best.save(step)
            position["best_valid_nll"].assign(valid.nll)
            position["best_step"].assign(step)
        row = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "seconds": time.monotonic() - self.begun,
            f"train_{self.loss_name}": float(position["loss_sum"]) / int(position["steps_summed"]),
            "valid_neg_elbo": valid.neg_elbo,
            "valid_nll": valid.nll,
            "test_neg_elbo": test.neg_elbo,
            **{f"variance_{k}": v for k, v in self.tracker.variances().items()},
        }
        position["loss_sum"].assign(0.0)
        position["steps_summed"].assign(0)
        self.metrics.append(row)
        has_pictures = len(self.metrics) % _EVALUATIONS_PER_PICTURE == 1
        pictures = self.pictures() if has_pictures else {}
        with self.writing():
            self.folder.write_metrics(self.metrics)
            with self.writers["valid"].as_default(step):
                tf.summary.scalar("bounds/neg_elbo", valid.neg_elbo)
                tf.summary.scalar("bounds/nll", valid.nll)
            with self.writers["test"].as_default(step):
                tf.summary.scalar("bounds/neg_elbo", test.neg_elbo)
                for name, page in pictures.items():
                    tf.summary.image(f"images/{name}", page[np.newaxis, :, :, np.newaxis])
        return row

    def save(self):
        """Writes a checkpoint from which the run goes on as if it had never stopped."""
        if not self.folder:
            return
        self.position["seconds"].assign(time.monotonic() - self.begun)
        with self.writing():
            self.latest.save()  # under a new name, so that those before it stay as they are
            for writer in self.writers.values():
                writer.flush()

    def pictures(self):
        """The model's pictures as pages; of test images, rows above what belongs to them."""
        model = self.model
        test = self.dataset.test  # may be sorted by class
        x = test[:: -(-len(test) // _IMAGES_SHOWN)].astype(np.float32)
        key = noise.key(self.config.seed, "pictures")
        u = noise.uniforms(key, 0, [1, model.picture_rows, _IMAGES_SHOWN, model.units])[0]
        pictures = model.pictures(x, u[:, : len(x)])
        shape = self.dataset.image_shape
        return {
            name: figures.grid(*map(np.asarray, images), image_shape=shape)
            for name, images in pictures.items()
        }

    def save_pictures(self):
        """Writes the model's pictures and curves.png for the present weights."""
        pictures = self.pictures()
        with self.writing():
            for name, page in pictures.items():
                figures.save_grid(self.folder.path / f"{name}.png", page)
            if self.metrics:
                figure = figures.run_curves(self.metrics, self.config.name)
                figure.savefig(self.folder.path / "curves.png")

    def finish(self, progress):
        """Measures the weights of the best validation on the test set and writes result.json.

        Args:
          progress: called with the fraction done; may raise to stop.

        Returns:
          The result, a dict.
        """
        config, position = self.config, self.position
        best_step = int(position["best_step"])
        try:
            steps.restore(self.best.checkpoint, self.best.latest_checkpoint)
        except RunError as error:
            raise RunError(
                f"{error}; the weights of the best validation are lost. "
                "Choose another --name to train anew."
            ) from None
        test = self.evaluator(self.dataset.test, config.test_samples, "final test")(progress)
        with self.writing(), self.writers["test"].as_default(best_step):
            tf.summary.scalar("bounds/nll", test.nll)
            self.writers["test"].flush()
        self.save_pictures()
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
            "test_images": test.images,
            "evaluations_per_step": self.model.evaluations(self.estimators, config.decoder_samples),
            "steps_per_second": self.step / float(position["training_seconds"]),
            "seconds": time.monotonic() - self.begun,
        }
        with self.writing():
            with self.writers["run"].as_default():
                board.write_result(result, best_step)
            self.writers["run"].flush()
            self.folder.write_result(result)
        return result

"""Training: a run from start or checkpoint to result, with a progress bar, and its stops."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tqdm

from arm_tf import noise
from arm_tf.data import Dataset
from arm_tf.errors import RunError
from arm_tf.training import bounds, checkpoints, run_folder, steps
from arm_tf.training.config import Config
from arm_tf.training.run import Run
from arm_tf.training.run_folder import RunFolder
from arm_tf.training.stopwatch import Stopwatch
from arm_tf.training.workers import ALONE, Cluster, Stop, Stopped


def train(
    config: Config, dataset: Dataset, folder: RunFolder | None, cluster: Cluster = ALONE
) -> None:
    """Trains, or goes on training, until the run is finished or asked to stop.

    Args:
      config: `arm_tf.training.config.Config`.
      dataset: `arm_tf.data.Dataset`.
      folder: `arm_tf.training.run_folder.RunFolder`, started with the two; None for workers
        other than the chief.
      cluster: `arm_tf.training.workers.Cluster`.

    Raises:
      RunError: the loss is not finite, there are fewer training images than one batch, or too
        little memory.
    """
    with Stop() as stop, Stopwatch() as watch, _in_memory(), steps.precision(config):
        try:
            run = Run(config, dataset, folder, cluster, watch.seconds)
        except RunError:
            if folder:
                folder.discard_if_new()
            raise
        resumed = f" from step {run.step:,}" if run.step else ""
        replicas = run.strategy.num_replicas_in_sync
        shared = f" on {replicas} replicas" if replicas > 1 else ""
        print(
            f"Training {run_folder.run_path(config)}{resumed}{shared}: "
            f"{len(dataset.train):,} training, {len(dataset.valid):,} validation and "
            f"{len(dataset.test):,} test images, {run.total_steps:,} steps, "
            f"{run.steps_per_epoch:,} an epoch.",
            flush=True,
        )
        try:
            _train_to_end(run, stop)
            if not folder:
                return
            with _bar(1.0, 0.0, "{desc}{percentage:3.0f}% [{elapsed}<{remaining}]") as bar:
                bar.set_description(f"test bound with {config.test_samples:,} samples")

                def progress(fraction):
                    stop.check()
                    bar.update(fraction - bar.n)

                result = run.finish(progress)
        except Stopped:
            if folder:
                run.journal.save_pictures()
            print(f"Stopped at step {run.step:,}; the same command goes on from there.")
            return
        except Exception:
            if folder:
                run.journal.note_failure()
            raise
    note = "" if dataset.published is not False else " These are not the published data."
    print(
        f"Test bound on -{config.likelihood}: {result['test_nll']:.2f} ± "
        f"{result['test_nll_stderr']:.2f} nats ({result['test_samples']:,} samples, "
        f"{result['test_images']:,} images), with the weights of epoch {result['best_epoch']:g}, "
        f"where validation was best ({result['valid_nll']:.2f}).{note}\n"
        f"Results, pictures and events are in {folder.path}."
    )


@contextlib.contextmanager
def _in_memory() -> Iterator[None]:
    """A context in which too little memory is a `RunError`."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise RunError(
            "There is too little memory for these settings; try a smaller --batch_size, "
            "--num_samples, --steps_per_loop or --units."
        ) from error


def evaluate_run(
    path: pathlib.Path, config: Config, dataset: Dataset, split: str, num_samples: int
) -> bounds.Bounds:
    """Bounds of a run's best weights over one split of its data.

    Args:
      path: the run's folder.
      config, dataset: those of the run.
      split: "train", "valid" or "test"; of re-binarised training images, the first epoch's.
      num_samples: int, samples of the bound.

    Returns:
      `arm_tf.training.bounds.Bounds`.

    Raises:
      RunError: the run has no evaluated checkpoint yet.
    """
    model = checkpoints.load_model(path, config, dataset)
    images = dataset.epoch(config.seed, 0) if split == "train" else getattr(dataset, split)
    key = noise.key(config.seed, f"final {split}")
    bar = _bar(1.0, 0.0, "{percentage:3.0f}% [{elapsed}<{remaining}]")
    with steps.precision(config), bar:
        return bounds.Evaluator(model, images, num_samples, key, config.jit)(
            lambda fraction: bar.update(fraction - bar.n)
        )


def _train_to_end(run: Run, stop: Stop) -> None:
    """Steps, evaluations and checkpoints up to the run's last step.

    Raises:
      Stopped: `stop` was requested; the run has been saved.
    """
    with _bar(run.total_steps, run.step, None) as bar:
        figures = {}
        rates: list[float] = []
        while True:
            run.keep_weights()
            try:
                if run.evaluation_is_due():
                    row = run.evaluate(stop)
                    run.save()
                    figures["valid bound"] = f"{row['valid_nll']:.2f}"
                    speed = f"{np.mean(rates):.0f} steps/s" if rates else ""
                    rates = []
                    _say(
                        bar,
                        f"epoch {row['epoch']:g}  step {row['step']:,}  train loss "
                        f"{row[f'train_{run.loss_name}']:.2f}  -ELBO: valid "
                        f"{row['valid_neg_elbo']:.2f}, test {row['test_neg_elbo']:.2f}  "
                        f"bound on -{run.config.likelihood}: valid {row['valid_nll']:.2f}  {speed}",
                    )
                if run.agrees(stop):
                    raise Stopped
            except Stopped:
                run.save()
                raise
            if run.step == run.total_steps:
                return
            loss, rate = run.run_steps()
            rates.append(rate)
            figures["train loss"] = f"{loss:.2f}"
            bar.set_postfix(figures, refresh=False)
            bar.update(run.step - bar.n)


def _bar(total: float, initial: float, bar_format: str | None) -> tqdm.tqdm:
    """A progress bar where a person is watching, else one that shows nothing."""
    return tqdm.tqdm(
        total=total,
        initial=initial,
        bar_format=bar_format,
        unit="step",
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
    )


def _say(bar: tqdm.tqdm, line: str) -> None:
    """Prints a line, above the bar where there is one."""
    if bar.disable:
        print(line, flush=True)
    else:
        bar.write(line)

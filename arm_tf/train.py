"""Trains a binary VAE: `python -m arm_tf.train --dataset=omniglot --layers=2`.

With --experiment=NAME it has the settings of a paper's experiment, and other flags change them;
--experiment=help lists those. The same command run again resumes a run that was stopped; --help
lists the settings.
"""

import dataclasses
import functools

from absl import flags

from arm_tf import cli, data, estimators, experiments
from arm_tf.errors import ConfigError, DataError
from arm_tf.training import trials, workers
from arm_tf.training.config import Config
from arm_tf.training.run_folder import RunFolder, check_data, read_result, run_path


def define_flags() -> None:
    """Defines the flags of this program: those of `arm_tf.training.config.Config`, and its own."""
    cli.define_flags()
    flags.DEFINE_integer(
        "trials", 1, "Trials to run at once, with --seed and the seeds that follow it."
    )
    flags.DEFINE_integer(
        "wait_for_workers", 600, "Seconds that workers wait for one another to start."
    )


def main() -> None:
    if flags.FLAGS.estimator == "help":
        print(estimators.describe())
        return
    if flags.FLAGS.experiment == "help":
        print(experiments.describe())
        return
    config = cli.config_from_flags()
    if flags.FLAGS.estimator in estimators.ALIASES:
        print(f"{flags.FLAGS.estimator} is {config.estimator}, for binary units.")
    cli.check_integer("trials", 1, 10_000)
    cli.check_integer("wait_for_workers", 1)
    if flags.FLAGS.trials > 1 and config.distribute != "none":
        raise ConfigError(
            f"--trials={flags.FLAGS.trials} takes --distribute=none, "
            f"received {config.distribute!r}."
        )
    if flags.FLAGS.trials > 1:
        trials.run(trials.configurations(config, flags.FLAGS.trials))
    else:
        train(config, wait_for_workers=flags.FLAGS.wait_for_workers)


def train(config: Config, dataset: data.Dataset | None = None, wait_for_workers: int = 600) -> None:
    """Trains the run of a configuration, or goes on with it.

    Args:
      config: `arm_tf.training.config.Config`.
      dataset: `arm_tf.data.Dataset`, as `arm_tf.data.from_arrays` makes it, whose name stands in
        for that in the configuration; None loads what the configuration names.
      wait_for_workers: int, seconds that several workers wait for one another to start.

    Raises:
      ConfigError, DataError, RunError: as the command refuses it in one line.
    """
    if dataset is not None:
        if not isinstance(dataset, data.Dataset):
            raise DataError(
                f"dataset: expected an arm_tf.data.Dataset, found {type(dataset).__name__}; "
                "make one with arm_tf.data.from_arrays"
            )
        config = dataclasses.replace(config, dataset=dataset.name)
    cluster = workers.find(config.distribute)
    folder = RunFolder(config) if cluster.is_chief else None
    try:
        _train(config, dataset, folder, cluster, wait_for_workers)
    finally:
        if folder:
            folder.close()


def _train(
    config: Config,
    dataset: data.Dataset | None,
    folder: RunFolder | None,
    cluster: workers.Cluster,
    wait_for_workers: int,
) -> None:
    """As `train`; `folder` is a `RunFolder`, or None for workers other than the chief."""
    path = run_path(config)
    is_finished = read_result(path) is not None
    if dataset is None:
        try:
            dataset = config.load_data()
        except DataError:
            if folder:
                folder.discard_if_new()
            if not is_finished or data.is_file(config.dataset):
                raise
    if is_finished:
        if dataset:
            check_data(path, dataset)
        print(f"The run in {path} is finished; its figures are in result.json.")
        return
    assert dataset  # which is loaded above unless the run is finished
    if folder:
        folder.start(config, dataset)

    if cluster.addresses:
        print(f"This is {cluster}; waiting for the others.", flush=True)
    cli.load_tensorflow(config.distribute, functools.partial(cluster.starting, wait_for_workers))
    from arm_tf.training import session

    session.train(config, dataset, folder, cluster)


if __name__ == "__main__":
    define_flags()
    cli.run(main)

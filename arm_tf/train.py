"""Trains a binary VAE: `python -m arm_tf.train --dataset=omniglot --layers=2`.

The same command run again resumes a run that was stopped; --help lists the settings.
"""

from absl import flags

from arm_tf import cli, data, estimators
from arm_tf.run_folder import RunFolder


def main():
    if flags.FLAGS.estimator == "help":
        print(estimators.describe())
        return
    config = cli.config_from_flags()
    folder = RunFolder(config)
    if folder.result:
        print(f"The run in {folder.path} is finished; its figures are in result.json.")
        return
    try:
        dataset = data.load(
            config.dataset, config.data_dir, config.valid_images, config.test_images
        )
    except data.DataError:
        folder.discard_if_new()
        raise
    folder.start(config, dataset)

    cli.load_tensorflow()
    from arm_tf import training

    training.train(config, dataset, folder)


if __name__ == "__main__":
    cli.define_flags()
    cli.run(main)

"""Bounds of a trained model: `python -m arm_tf.evaluate runs/NAME --split=test`."""

import dataclasses
import pathlib

from absl import flags

from arm_tf import cli
from arm_tf.errors import ConfigError
from arm_tf.training import run_folder


def main() -> None:
    values = flags.FLAGS
    if values.run is None:
        raise ConfigError("--run must name the folder of a run, received nothing.")
    if values.split not in ("train", "valid", "test"):
        raise ConfigError(f"--split must be one of train, valid, test, received {values.split!r}.")
    cli.check_integer("samples", 1, 100_000)
    folder = pathlib.Path(values.run)
    settings = run_folder.read_config(folder)
    data_dir = values.data_dir or settings.data_dir
    dataset = dataclasses.replace(settings, data_dir=data_dir).load_data()
    run_folder.check_data(folder, dataset)

    cli.load_tensorflow()
    from arm_tf.training import session

    bounds = session.evaluate_run(folder, settings, dataset, values.split, values.samples)
    print(
        f"{values.split} bound on -{settings.likelihood}: {bounds.nll:.2f} ± "
        f"{bounds.nll_stderr:.2f} nats, negative ELBO {bounds.neg_elbo:.2f} nats "
        f"({values.samples:,} samples, {bounds.images:,} images"
        f"{'; not the published data' if dataset.published is False else ''})."
    )


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Folder of the run, such as runs/NAME.")
    flags.DEFINE_string("split", "test", "Images to evaluate on: train, valid or test.")
    flags.DEFINE_integer("samples", 1000, "Samples of the bound for each image.")
    flags.DEFINE_string("data_dir", None, "Folder with the data files; unset: the run's own.")
    cli.run(main, argument="run")

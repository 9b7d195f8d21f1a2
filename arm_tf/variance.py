"""Compares estimators' gradients at a frozen model: `python -m arm_tf.variance --run=runs/NAME`.

For each estimator, at the same number of evaluations of f: bias and variance of the gradient in
the logits and in the encoder's weights, over the noise alone. Without --run, a fresh model of the
settings that the flags give. Writes variance.csv and variance.png.
"""

import dataclasses
import pathlib
import typing

from absl import flags

from arm_tf import cli, estimators, files
from arm_tf.errors import ConfigError
from arm_tf.training import run_folder

_COLUMNS = ("variance", "variance_stderr", "bias", "bias_noise")


def samples_within(name: str, budget: int, units: int) -> int:
    """The largest num_samples that evaluates f within `budget`, or the least there is; int."""
    row = estimators.get(name)
    num_samples = row.min_samples
    while row.evaluations(num_samples + 1, units) <= budget:
        num_samples += 1
        if row.evaluations(num_samples + 1, units) == row.evaluations(num_samples, units):
            break  # costs the same for any number
    return num_samples


def print_row(row: dict[str, typing.Any]) -> None:
    """Prints one estimator's figures."""
    parts = [f"{row['estimator']:20}{row['evaluations']:>6} evaluations"]
    for where in ("logits", "weights"):
        parts.append(
            f"{where}: variance {row[f'variance_{where}']:.3e} ± "
            f"{row[f'variance_stderr_{where}']:.0e}, bias {row[f'bias_{where}']:.1e} "
            f"(noise {row[f'bias_noise_{where}']:.0e})"
        )
    print("   ".join(parts), flush=True)


def main() -> None:
    values = flags.FLAGS
    for name in ("images", "draws", "evaluations"):
        if getattr(values, name) < 1:
            raise ConfigError(
                f"--{name} must be an integer of at least 1, received {getattr(values, name)}."
            )
    if values.run:
        folder = pathlib.Path(values.run)
        config = run_folder.read_config(folder)
        config = dataclasses.replace(config, data_dir=values.data_dir or config.data_dir)
    else:
        config = cli.config_from_flags()
        folder = None
    out = pathlib.Path(values.out or folder or pathlib.Path(config.logdir) / "variance")
    num_samples = {}
    for name in values.estimators:
        try:
            row, _ = estimators.check(name, None, config.units)
        except ValueError as error:
            raise ConfigError(f"--estimators: {error}") from None
        if row.objective != "elbo":
            raise ConfigError(
                f"--estimators: {name!r} has the gradient of another objective, {row.objective}."
            )
        num_samples[row.name] = samples_within(name, values.evaluations, config.units)
    dataset = config.load_data()
    files.make_folder(out, "--out")

    cli.load_tensorflow()
    from arm_tf import figures
    from arm_tf.training import checkpoints, moments, steps

    if folder:
        model = checkpoints.load_model(folder, config, dataset)
    else:
        model = steps.build_model(config, dataset)
    x = dataset.epoch(config.seed, 0)[: values.images].astype("float32")
    with steps.precision(config):
        rows = moments.compare(
            config, model, x, num_samples, values.draws, values.adapt_steps, print_row
        )
    header = ["estimator", "samples", "evaluations"]
    header += [f"{column}_{where}" for where in ("logits", "weights") for column in _COLUMNS]
    lines = [",".join(header)]
    lines += [",".join(f"{row[key]}" for key in header) for row in rows]
    files.write_text(out / "variance.csv", "\n".join(lines) + "\n")
    figures.variances(rows, config.name).savefig(out / "variance.png")
    print(f"Written to {out / 'variance.csv'} and {out / 'variance.png'}.")


if __name__ == "__main__":
    cli.define_flags()
    flags.DEFINE_string("run", None, "Folder of a run whose best weights to use; unset: fresh.")
    flags.DEFINE_list(
        "estimators", ["arm", "disarm", "loo", "reinforce"], "Which to compare, with commas."
    )
    flags.DEFINE_integer("evaluations", 4, "Evaluations of f for each datum and layer, at most.")
    flags.DEFINE_integer("draws", 500, "Draws of the noise.")
    flags.DEFINE_integer("images", 50, "Training images in the batch, the first ones.")
    flags.DEFINE_integer("adapt_steps", 300, "Steps on what an estimator learns, beforehand.")
    flags.DEFINE_string("out", None, "Folder for the files; unset: that of the run.")
    cli.run(main)

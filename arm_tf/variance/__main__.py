"""Compares estimators' gradients at a frozen model: `python -m arm_tf.variance runs/NAME`.

Bias and variance of each one's gradient in the logits and in the encoder's weights, over the noise
alone, and the time that it takes. ELBO estimators have as many samples as --evaluations of f pay
for, those of a multi-sample bound --num_samples, which says what bound it is; the two are held
against references of their own (`arm_tf.variance.moments.compare`). Without a run, at a fresh model
of the settings that the flags give; with --trajectory=runs/NAME at all weights that a run with
--keep_epochs has kept.

Time is that of the whole gradient in the encoder for the batch of --images, noise included, on this
machine: the median over --rounds in which all estimators take their turn, compilation excluded.

Writes variance.csv and variance.png, bias and time against deviation (of the last weights), and for
weights of several steps trajectory.png, the variance along training.
"""

import dataclasses
import pathlib
import typing

from absl import flags

from arm_tf import cli, estimators, files
from arm_tf.errors import ConfigError
from arm_tf.training import run_folder
from arm_tf.variance import samples_within

_COLUMNS = ("variance", "variance_stderr", "variance_seconds", "bias", "bias_noise")
_TIMES = ("microseconds", "microseconds_low", "microseconds_high")


def print_row(row: dict[str, typing.Any]) -> None:
    """Prints one estimator's figures."""
    parts = [
        f"{row['estimator']:20}{row['evaluations']:>6} evaluations{row['microseconds']:>8.0f} µs"
    ]
    ascends = estimators.get(row["estimator"]).ascends
    for where in ("logits", "weights"):
        part = f"{where}: variance {row[f'variance_{where}']:.3e} ± "
        part += f"{row[f'variance_stderr_{where}']:.0e}"
        if not ascends:
            part += f", bias {row[f'bias_{where}']:.1e} (noise {row[f'bias_noise_{where}']:.0e})"
        parts.append(part)
    if ascends:
        parts.append(f"no bias, since it ascends {ascends}")
    print("   ".join(parts), flush=True)


def _given_besides_a_run() -> dict[str, typing.Any]:
    """Settings that flags give and that the weights of a run do not depend on; by name.

    Raises:
      ConfigError: others are given.
    """
    given = cli.settings_given()
    given.pop("num_samples", None)
    free = {"data_dir", "seed", "jit", *estimators.OPTIONS}
    if others := sorted(set(given) - free):
        raise ConfigError(
            f"--{others[0]} is a setting of the run, whose own holds; with --run and --trajectory "
            f"give {', '.join('--' + name for name in sorted(free))} alone."
        )
    return given


def main() -> None:
    values = flags.FLAGS
    for name in ("images", "draws", "evaluations", "rounds"):
        cli.check_integer(name, 1)
    cli.check_integer("adapt_steps", 0)
    if not values.estimators:
        raise ConfigError("--estimators must name at least one estimator.")
    if values.run and values.trajectory:
        raise ConfigError("--run and --trajectory both name a run; give one of them.")
    folder = None
    if values.run or values.trajectory:
        folder = pathlib.Path(values.run or values.trajectory)
        config = dataclasses.replace(run_folder.read_config(folder), **_given_besides_a_run())
    else:
        config = cli.config_from_flags()
    out = pathlib.Path(values.out or folder or pathlib.Path(config.logdir) / "variance")
    bound_samples = config.num_samples if config.objective == "multisample" else None
    num_samples = {}
    for name in values.estimators:
        row, _ = config.check_estimator("estimators", name)
        if row.objective == "elbo":
            samples = samples_within(name, values.evaluations, config.units, **config.options(name))
        else:
            asked = bound_samples if values.num_samples is None else values.num_samples
            _, samples = config.check_estimator("estimators", name, asked)
        num_samples[row.name] = samples
    dataset = config.load_data()
    if folder:
        run_folder.check_data(folder, dataset)
    if values.images > len(dataset.train):
        raise ConfigError(
            f"--images must be at most {len(dataset.train)}, the training images, received "
            f"{values.images}."
        )
    files.make_folder(out, "--out")

    cli.load_tensorflow()
    from arm_tf.training import checkpoints, steps
    from arm_tf.variance import figures, moments

    model = steps.build_model(config, dataset)
    weights: typing.Iterable[int] = (0,)
    if folder:
        which = "kept" if values.trajectory else "best"
        weights = checkpoints.restore_each(folder, model, which)
    x = dataset.epoch(config.seed, 0)[: values.images].astype("float32")
    seen: set[int] = set()

    def report(row):
        if values.trajectory and row["step"] not in seen:
            print(f"Step {row['step']:,}:")
        seen.add(row["step"])
        print_row(row)

    with steps.precision(config):
        rows = moments.compare(
            config, model, x, num_samples, values.draws, values.adapt_steps, report, values.rounds,
            weights,
        )  # fmt: skip
    header = ["estimator", "samples", "evaluations"]
    header += [f"{column}_{where}" for where in ("logits", "weights") for column in _COLUMNS]
    header += ["objective", "step", *_TIMES]
    lines = [",".join(header)]
    lines += [",".join("" if row[k] is None else f"{row[k]}" for k in header) for row in rows]
    written = [out / "variance.csv"]
    with files.writing(out, "--out"):
        files.write_text(written[0], "\n".join(lines) + "\n")
        for name, picture in figures.pictures(rows, config.name).items():
            written.append(out / f"{name}.png")
            picture.savefig(written[-1])
    print(f"Written to {', '.join(map(str, written))}.")


if __name__ == "__main__":
    cli.define_flags()
    flags.DEFINE_string("run", None, "Folder of a run whose best weights to use; unset: fresh.")
    flags.DEFINE_string(
        "trajectory", None, "Folder of a run, all of whose weights of --keep_epochs to use."
    )
    flags.DEFINE_list(
        "estimators", ["arm", "disarm", "loo", "reinforce"], "Which to compare, with commas."
    )
    flags.DEFINE_integer(
        "evaluations", 4, "Evaluations of f for each datum and layer, at most; for the ELBO."
    )
    flags.DEFINE_integer("draws", 500, "Draws of the noise.")
    flags.DEFINE_integer("images", 50, "Training images in the batch, the first ones.")
    flags.DEFINE_integer(
        "adapt_steps", 300, "Steps on what an estimator learns, before it is measured."
    )
    flags.DEFINE_integer("rounds", 5, "Rounds of timing, of ten estimates each.")
    flags.DEFINE_string("out", None, "Folder for the files; unset: that of the run.")
    cli.run(main, argument="run")

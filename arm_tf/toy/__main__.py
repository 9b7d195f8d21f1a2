"""The univariate toy of the paper's Figure 1: `python -m arm_tf.toy`.

Maximises E[(z - p0)^2], z ~ Bernoulli(sigmoid(phi)), by gradient ascent from phi = 0, for several
p0 and estimators, each with its own number of samples an iteration: one, unless it compares them
with one another. Writes traces.csv, toy.json, and three figures: losses.png with all estimators,
and with REINFORCE and ARM (or, where neither is named, the first four) traces.png with gradients
and probabilities, and gradients.png with estimates of several samples.
"""

import importlib.metadata
import math
import pathlib
import typing
from collections.abc import Callable, Mapping

from absl import flags

from arm_tf import cli, estimators, files
from arm_tf.errors import ConfigError

_COLUMNS = ("true_gradient", "estimate", "probability", "loss")
_Number = typing.TypeVar("_Number", int, float)
_LIBRARIES = ("tensorflow", "keras", "numpy")


def numbers(
    name: str, kind: Callable[[str], _Number], accepts: Callable[[_Number], bool], description: str
) -> list[_Number]:
    """The values of a list flag, without repetitions.

    Raises:
      ConfigError: one is not what the description says, or there is none.
    """
    text = getattr(flags.FLAGS, name)
    try:
        values = [kind(number) for number in text]
    except ValueError:
        values = []
    if not values or not all(map(accepts, values)):
        raise ConfigError(
            f"--{name} must be {description} separated by commas, received {','.join(text)!r}."
        )
    return list(dict.fromkeys(values))


def check_estimator(name: str, num_samples: int | None = None) -> None:
    """Raises ConfigError for an unknown estimator, another objective or too few samples."""
    try:
        row, _ = estimators.check(name, num_samples, units=1)
    except ValueError as error:
        raise ConfigError(f"--estimators: {error}") from None
    if row.objective != "elbo":
        raise ConfigError(
            f"--estimators: {name!r} has the gradient of another objective, {row.objective}."
        )


def table(traces: Mapping[tuple[str, float], dict[str, typing.Any]]) -> str:
    """Rows of traces.csv as text: each estimator's trace at each p0, iteration by iteration."""
    lines = [",".join(("estimator", "p0", "iteration", *_COLUMNS))]
    for (name, p0), trace in traces.items():
        columns = zip(*(trace[column] for column in _COLUMNS), strict=True)
        lines += [
            f"{name},{p0},{i}," + ",".join(f"{value:.10g}" for value in values)
            for i, values in enumerate(columns)
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    values = flags.FLAGS
    p0s = numbers("p0", float, lambda p0: 0.0 <= p0 <= 1.0, "numbers from 0 to 1")
    sample_counts = numbers("gradient_samples", int, lambda k: k >= 1, "integers of at least 1")
    if max(sample_counts) > 100_000:
        raise ConfigError(
            f"--gradient_samples must be at most 100,000, received {max(sample_counts)}."
        )
    for name in ("step_size", "estimator_learning_rate"):
        if not 0 < getattr(values, name) < math.inf:
            received = getattr(values, name)
            raise ConfigError(f"--{name} must be a positive number, received {received}.")
    names = list(dict.fromkeys(estimators.ALIASES.get(n, n) for n in values.estimators))
    if not names:
        raise ConfigError("--estimators must name at least one estimator.")
    for name in names:
        check_estimator(name)
    shown = [name for name in ("reinforce", "arm") if name in names] or names[:4]
    for name in shown:
        for num_samples in sample_counts:
            check_estimator(name, num_samples)
    out = pathlib.Path(values.out)
    files.make_folder(out, "--out")

    cli.load_tensorflow()
    from arm_tf.toy import figures, univariate

    traces = {}
    print("Probability at the end" + "".join(f"{f'p0 = {p0}':>12}" for p0 in p0s))
    for name in names:
        ascent = univariate.Ascent(name, values.iterations, values.estimator_learning_rate)
        for p0 in p0s:
            traces[name, p0] = ascent(p0, values.step_size, values.seed)
        finals = [traces[name, p0]["final_probability"] for p0 in p0s]
        print(f"{name:22}" + "".join(f"{final:12.4f}" for final in finals), flush=True)

    shown_p0 = 0.499 if 0.499 in p0s else p0s[0]
    path = univariate.true_path(shown_p0, values.iterations, values.step_size)
    gradients = {
        (name, k): univariate.estimates_along(name, path, shown_p0, k, values.seed)
        for name in shown
        for k in sample_counts
    }
    settings = ("iterations", "step_size", "estimator_learning_rate", "seed")
    record = {
        **{name: values[name].value for name in settings},
        "p0": p0s,
        "gradient_samples": sample_counts,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "final_probability": {
            name: {str(p0): traces[name, p0]["final_probability"] for p0 in p0s} for name in names
        },
    }
    shown_traces = {key: trace for key, trace in traces.items() if key[0] in shown}
    at_p0 = {name: traces[name, shown_p0]["loss"] for name in names}
    truth = univariate.true_gradient(path, shown_p0)
    with files.writing(out, "--out"):
        files.write_text(out / "traces.csv", table(traces))
        files.write_json(out / "toy.json", record)
        figures.toy_traces(shown_traces).savefig(out / "traces.png")
        figures.toy_losses(at_p0, shown_p0).savefig(out / "losses.png")
        figures.toy_gradients(gradients, truth, shown_p0).savefig(out / "gradients.png")
    print(f"Tables and figures are in {out}.")


if __name__ == "__main__":
    flags.DEFINE_list(
        "estimators", ["exact", "reinforce", "rebar", "relax", "arm"], "Which, with commas."
    )
    flags.DEFINE_list("p0", ["0.49", "0.499", "0.501", "0.51"], "Values of p0, with commas.")
    flags.DEFINE_integer(
        "iterations", 3000, "Steps of gradient ascent.", lower_bound=1, upper_bound=1_000_000
    )
    flags.DEFINE_float("step_size", 1.0, "What the gradient is multiplied by in a step.")
    flags.DEFINE_float(
        "estimator_learning_rate", 1e-3, "Adam's step size for what an estimator learns."
    )
    flags.DEFINE_list(
        "gradient_samples", ["10", "100", "1000"], "Samples an estimate in gradients.png."
    )
    flags.DEFINE_integer("seed", 0, "Determines the noise.", lower_bound=0)
    flags.DEFINE_string("out", "runs/toy", "Folder for the files.")
    cli.run(main)

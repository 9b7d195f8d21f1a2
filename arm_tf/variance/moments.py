"""Mean, variance and time of gradient estimates at a frozen model."""

import dataclasses
import time
import typing
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from arm_tf import estimators, noise
from arm_tf.expectation import GradientEstimator
from arm_tf.models.network import BinaryNetwork
from arm_tf.training import steps
from arm_tf.training.config import Config

_GROUPS = 10  # of draws, whose scatter gives the standard error of a variance
_AT_ONCE = 10  # estimates in one call of a compiled loop


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and variance over the noise of a gradient, for every logit or every weight.

    Attributes:
      mean: float64 [coordinates].
      variance: float64 [coordinates], of one draw.
      mean_variance: the variance averaged over coordinates.
      mean_variance_stderr: its standard error.
      draws: how many the mean is over.
    """

    mean: np.ndarray
    variance: np.ndarray
    mean_variance: float
    mean_variance_stderr: float
    draws: int

    def bias(self, reference: "Moments") -> tuple[float, float]:
        """Root mean square over coordinates of the bias, and the size below which it is noise.

        Args:
          reference: `Moments` of an unbiased estimator.

        Returns:
          bias: sqrt(max(0, mean_i (mean_i - reference_i)^2 - noise^2)).
          noise: sqrt(mean_i (variance_i / draws + reference variance_i / its draws)).
        """
        noise = np.mean(self.variance / self.draws + reference.variance / reference.draws)
        square = np.mean((self.mean - reference.mean) ** 2)
        return float(np.sqrt(max(0.0, square - noise))), float(np.sqrt(noise))


class FrozenGradients:
    """An estimator's gradients for a model and batch that stay as they are, over the noise alone.

    Everything is compiled once, and counts with the weights that the model has when it is called.

    Args:
      model: `arm_tf.models.network.BinaryNetwork`.
      x: float [batch, pixels].
      gradient_estimators: T instances of `arm_tf.expectation.GradientEstimator`.
      learning_rate: float, of the estimators' own parameters in `settle`.
    """

    def __init__(
        self,
        model: BinaryNetwork,
        x: np.ndarray,
        gradient_estimators: Sequence[GradientEstimator],
        learning_rate: float = 0.01,
    ) -> None:
        self.evaluations = model.evaluations(gradient_estimators, "shared")
        rows = model.noise_rows(gradient_estimators, "shared")
        self._shape = [rows, x.shape[0], model.units]
        weights = [variable.value for variable in model.variable_groups["encoder"]]
        learned = [v for layer in gradient_estimators for v in layer.trainable_variables]
        self._parameters = [v for layer in gradient_estimators for v in layer.variables]
        optimizer = keras.optimizers.Adam(learning_rate)
        optimizer.build(learned)
        self._sizes = [
            model.num_layers * x.shape[0] * model.units,
            sum(int(np.prod(weight.shape)) for weight in weights),
        ]

        def gradients(u):
            offsets = [tf.zeros([x.shape[0], model.units], u.dtype)] * model.num_layers
            offsets = [tf.identity(offset) for offset in offsets]
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(offsets)
                loss, _, estimator_loss = model.losses(x, u, gradient_estimators, "shared", offsets)
                mean_loss = tf.reduce_mean(loss)
            logit_grads = tape.gradient(loss, offsets)
            weight_grads = tape.gradient(mean_loss, weights)
            flat = [
                -tf.concat([tf.reshape(grad, [-1]) for grad in grads], axis=0)
                for grads in (logit_grads, weight_grads)
            ]
            return flat, tape.gradient(estimator_loss, [v.value for v in learned])

        def adapt(u, _):
            grads = gradients(u)[1]  # moving averages move on by themselves
            if learned:
                optimizer.apply(grads, learned)
            return []

        def accumulate(u, count, *moments):
            flat, _ = gradients(u)
            updated = []
            for grad, mean, square in zip(flat, moments[::2], moments[1::2], strict=True):
                change = grad - mean
                mean += change / tf.cast(count, grad.dtype)
                updated += [mean, square + change * (grad - mean)]  # Welford's update
            return updated

        def add(u, _, *sums):
            (_, weight_grad), learned_grads = gradients(u)
            return [s + g for s, g in zip(sums, [weight_grad, *learned_grads], strict=True)]

        self._adapt, self._accumulate, self._add = map(_loop, (adapt, accumulate, add))
        self._zeros = [tf.zeros([self._sizes[1]]), *(tf.zeros(v.shape) for v in learned)]

    def _noise(self, key: tf.Tensor, start: int) -> tf.Tensor:
        return noise.uniforms(key, start, [_AT_ONCE, *self._shape])

    def settle(self, key: tf.Tensor, steps: int) -> None:
        """Takes steps in which what the estimators learn, and their moving averages, settle.

        Args:
          key: uint64 [1] from `noise.key`.
          steps: int.
        """
        for done in range(0, steps if self._parameters else 0, _AT_ONCE):
            self._adapt(self._noise(key, done), done, min(_AT_ONCE, steps - done))

    def moments(self, key: tf.Tensor, draws: int, start: int = 0) -> list[Moments]:
        """Moments of the gradient; arguments and results as of `gradient_moments`.

        Args:
          key: uint64 [1].
          draws: int.
          start: int, the position of the first draw's noise.
        """
        group_draws = max(2, -(-draws // _GROUPS))
        groups = []
        for group in range(_GROUPS):
            moments = [tf.zeros([size]) for size in self._sizes for _ in range(2)]
            for done in range(0, group_draws, _AT_ONCE):
                u = self._noise(key, start + group * group_draws + done)
                count = min(_AT_ONCE, group_draws - done)
                moments = self._accumulate(u, done, count, *moments)
            groups.append([moment.numpy().astype(np.float64) for moment in moments])
        stacked = [np.stack(each) for each in zip(*groups, strict=True)]  # [groups, coordinates]
        results = []
        for means, squares in zip(stacked[::2], stacked[1::2], strict=True):
            variances = squares / (group_draws - 1)
            by_group = variances.mean(axis=1)
            results.append(
                Moments(
                    mean=means.mean(axis=0),
                    variance=variances.mean(axis=0),
                    mean_variance=float(by_group.mean()),
                    mean_variance_stderr=float(by_group.std(ddof=1) / np.sqrt(_GROUPS)),
                    draws=_GROUPS * group_draws,
                )
            )
        return results

    def seconds(self, key: tf.Tensor, start: int) -> float:
        """Seconds of an estimate, by ten of them; what the estimators keep is as it was before.

        Timed is what a training step does for the encoder: noise, and the batch's whole gradient in
        the encoder's weights and in what the estimators learn; no step of an optimiser.

        Args:
          key: uint64 [1].
          start: int, the position of the first estimate's noise.
        """
        before = [parameter.numpy() for parameter in self._parameters]
        begin = time.perf_counter()
        self._add(self._noise(key, start), 0, _AT_ONCE, *self._zeros)[0].numpy()
        seconds = (time.perf_counter() - begin) / _AT_ONCE
        for parameter, value in zip(self._parameters, before, strict=True):
            parameter.assign(value)
        return seconds


def _loop(
    body: Callable[..., list[tf.Tensor]],
) -> Callable[..., list[tf.Tensor]]:
    """A compiled loop over estimates: `body(u, count, *state)` for the first of many noises.

    The function's arguments are the noises, float [_AT_ONCE, …]; how many estimates there were
    before; how many to take; and the state.
    """

    @tf.function(jit_compile=True, autograph=False)
    def loop(u, done, number, *state):
        step = lambda i, *state: (i + 1, *body(u[i], done + i + 1, *state))
        return tf.while_loop(lambda i, *_: i < number, step, (0, *state))[1:]

    return lambda u, done, number, *state: loop(u, tf.constant(done), tf.constant(number), *state)


def gradient_moments(
    model: BinaryNetwork,
    x: np.ndarray,
    gradient_estimators: Sequence[GradientEstimator],
    draws: int,
    key: tf.Tensor,
    adapt_steps: int = 0,
    learning_rate: float = 0.01,
) -> list[Moments]:
    """Moments of an estimator's gradients for a frozen model and batch, over the noise alone.

    Args:
      model: `arm_tf.models.BinaryVAE`; its weights stay as they are.
      x: float [batch, pixels].
      gradient_estimators: T instances of `arm_tf.expectation.GradientEstimator`.
      draws: int, rounded up to a multiple of ten.
      key: uint64 [1] from `noise.key`.
      adapt_steps: int, steps in which what the estimators learn, and their moving averages,
        settle before anything is measured.
      learning_rate: float, of those steps.

    Returns:
      `Moments` of the gradient of each datum's objective in its logits, [T batch V] coordinates,
      and of the gradient of the batch mean in the encoder's weights.
    """
    gradients = FrozenGradients(model, x, gradient_estimators, learning_rate)
    gradients.settle(key, adapt_steps)
    return gradients.moments(key, draws, adapt_steps)


def compare(
    config: Config,
    model: BinaryNetwork,
    x: np.ndarray,
    num_samples: dict[str, int],
    draws: int,
    adapt_steps: int = 0,
    report: Callable[[dict[str, typing.Any]], object] = lambda row: None,
    rounds: int = 5,
    weights: Iterable[int] = (0,),
) -> list[dict[str, typing.Any]]:
    """Bias, variance and time of several estimators' gradients for a frozen model and batch.

    The bias is against a reference for each objective. For the ELBO that is "exact" for one layer
    of few enough units, else a long average of "ram", or of "disarm" for more units than it takes.
    For a multi-sample bound it is a long average of "disarm_local" at the same K, which has less
    variance than "vimco". Estimators whose row says that they ascend something else have no bias.

    Args:
      config: `arm_tf.training.config.Config`, for seed and the estimators' settings.
      model, x, draws, adapt_steps: as in `gradient_moments`.
      num_samples: K by estimator's name.
      report: called with each row.
      rounds: int, of timed estimates, `FrozenGradients.seconds`: in each round all estimators take
        their turn, so that what else the machine does hits all alike. One more comes first and
        does not count, as it compiles.
      weights: steps of training; `model` has the weights of each when it is drawn from the
        iterable. What estimators learn at one step they go on with at the next.

    Returns:
      Rows, dicts with "estimator", "objective", "samples", "evaluations" (of f for each datum),
      "step", "microseconds" (of an estimate, the median), "microseconds_low" and "…_high" (the
      quartiles) and, for each of "logits" and "weights", "variance_…", "variance_stderr_…",
      "variance_seconds_…" (variance times the seconds of an estimate: the variance that is left of
      the mean of all the estimates that a second has room for), "bias_…" and "bias_noise_…" (None
      where there is none).
    """
    key = noise.key(config.seed, "variance")
    build = lambda name, samples: FrozenGradients(
        model, x, steps.build_gradient_estimators(config, model, name, samples)
    )
    gradients = {name: build(name, samples) for name, samples in num_samples.items()}
    table = {name: estimators.get(name) for name in num_samples}
    aims = {  # what a reference is of: an objective, and the samples of a multi-sample bound
        name: (row.objective, num_samples[name] if row.objective == "multisample" else 1)
        for name, row in table.items()
        if not row.ascends
    }
    references = {
        aim: (build(*by), number)
        for aim in set(aims.values())
        for *by, number in [_reference(model, *aim, draws)]
    }
    timing: dict[str, list[float]] = {name: [] for name in gradients}
    rows: list[dict[str, typing.Any]] = []
    for step in weights:
        for i in range(0 if rows else rounds + 1):
            for name, each in gradients.items():
                timing[name].append(each.seconds(key, i * _AT_ONCE))
        expected = {
            aim: reference.moments(key, number) for aim, (reference, number) in references.items()
        }
        for name, each in gradients.items():
            own_key = noise.key(config.seed, "variance of each")
            each.settle(own_key, adapt_steps)
            found = each.moments(own_key, draws, adapt_steps)
            low, median, high = np.percentile(timing[name][1:], [25, 50, 75]) * 1e6
            row = {
                "estimator": name,
                "objective": table[name].objective,
                "samples": num_samples[name],
                "evaluations": each.evaluations,
                "step": step,
                "microseconds": median,
                "microseconds_low": low,
                "microseconds_high": high,
            }
            for i, where in enumerate(("logits", "weights")):
                aim = aims.get(name)
                bias, bias_noise = found[i].bias(expected[aim][i]) if aim else (None, None)
                row |= {
                    f"variance_{where}": found[i].mean_variance,
                    f"variance_stderr_{where}": found[i].mean_variance_stderr,
                    f"variance_seconds_{where}": found[i].mean_variance * median / 1e6,
                    f"bias_{where}": bias,
                    f"bias_noise_{where}": bias_noise,
                }
            rows.append(row)
            report(row)
    return rows


def _reference(
    model: BinaryNetwork, objective: str, num_samples: int, draws: int
) -> tuple[str, int, int]:
    """An unbiased estimator of an objective, its samples, and draws enough of it."""
    if objective == "multisample":
        return "disarm_local", num_samples, 10 * draws
    takes = lambda name: model.units <= (estimators.get(name).max_units or model.units)
    if model.num_layers == 1 and takes("exact"):
        return "exact", 1, 2
    return ("ram", 1, draws) if takes("ram") else ("disarm", 1, 10 * draws)

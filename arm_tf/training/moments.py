"""Mean and variance of gradient estimates at a frozen model."""

import dataclasses
import typing
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from arm_tf import estimators, noise
from arm_tf.expectation import GradientEstimator
from arm_tf.models.network import BinaryNetwork
from arm_tf.training import steps
from arm_tf.training.config import Config

_GROUPS = 10  # of draws, whose scatter gives the standard error of a variance


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
      `Moments` of the gradient of each datum's ELBO in its logits, [T batch V] coordinates, and
      of the gradient of the batch mean in the encoder's weights.
    """
    rows = model.noise_rows(gradient_estimators, "shared")
    shape = [1, rows, x.shape[0], model.units]
    weights = [variable.value for variable in model.variable_groups["encoder"]]
    learned = [v for layer in gradient_estimators for v in layer.trainable_variables]
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(learned)

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

    @tf.function(jit_compile=True, autograph=False)
    def adapt(u):
        grads = gradients(u)[1]  # moving averages move on by themselves
        if learned:
            optimizer.apply(grads, learned)

    @tf.function(jit_compile=True, autograph=False)
    def accumulate(u, count, *moments):
        flat, _ = gradients(u)
        updated = []
        for grad, mean, square in zip(flat, moments[::2], moments[1::2], strict=True):
            change = grad - mean
            mean += change / count
            updated += [mean, square + change * (grad - mean)]  # Welford's update
        return updated

    position = 0
    has_parameters = any(layer.variables for layer in gradient_estimators)
    for position in range(adapt_steps if has_parameters else 0):
        adapt(noise.uniforms(key, position, shape)[0])
    sizes = [
        model.num_layers * x.shape[0] * model.units,
        sum(int(np.prod(weight.shape)) for weight in weights),
    ]
    group_draws = max(2, -(-draws // _GROUPS))
    groups = []
    for _ in range(_GROUPS):
        moments = [tf.zeros([size]) for size in sizes for _ in range(2)]
        for count in range(1, group_draws + 1):
            position += 1
            u = noise.uniforms(key, position, shape)[0]
            moments = accumulate(u, tf.constant(float(count)), *moments)
        groups.append([moment.numpy().astype(np.float64) for moment in moments])
    stacked = [np.stack(moment) for moment in zip(*groups, strict=True)]  # [groups, coordinates]
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


def compare(
    config: Config,
    model: BinaryNetwork,
    x: np.ndarray,
    num_samples: dict[str, int],
    draws: int,
    adapt_steps: int = 0,
    report: Callable[[dict[str, typing.Any]], object] = lambda row: None,
) -> list[dict[str, typing.Any]]:
    """Bias and variance of several estimators' gradients for a frozen model and batch.

    The bias is against "exact" for one layer of few enough units, else against a long average of
    "disarm", which is unbiased. All estimators must have the objective "elbo".

    Args:
      config: `arm_tf.training.config.Config`, for seed and the estimators' settings.
      model, x, draws, adapt_steps: as in `gradient_moments`.
      num_samples: K by estimator's name.
      report: called with each row.

    Returns:
      Rows, dicts with "estimator", "samples", "evaluations" (of f for each datum) and, for each of
      "logits" and "weights", "variance_…", "variance_stderr_…", "bias_…" and "bias_noise_…".
    """
    key = noise.key(config.seed, "variance")
    most = estimators.get("exact").max_units
    feasible = model.num_layers == 1 and (most is None or model.units <= most)
    group = steps.build_gradient_estimators(config, model, "exact" if feasible else "disarm")
    reference = gradient_moments(model, x, group, 2 if feasible else 10 * draws, key)
    key = noise.key(config.seed, "variance of each")
    rows = []
    for name, samples in num_samples.items():
        group = steps.build_gradient_estimators(config, model, name, samples)
        moments = gradient_moments(model, x, group, draws, key, adapt_steps)
        row = {
            "estimator": name,
            "samples": samples,
            "evaluations": model.evaluations(group, "shared"),
        }
        for where, found, expected in zip(("logits", "weights"), moments, reference, strict=True):
            bias, bias_noise = found.bias(expected)
            row |= {
                f"variance_{where}": found.mean_variance,
                f"variance_stderr_{where}": found.mean_variance_stderr,
                f"bias_{where}": bias,
                f"bias_noise_{where}": bias_noise,
            }
        rows.append(row)
        report(row)
    return rows

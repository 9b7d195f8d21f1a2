"""The training step: model, estimators and optimisers of a configuration, and the compiled loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from arm_tf import models
from arm_tf.data import Dataset
from arm_tf.expectation import GradientEstimator
from arm_tf.models.network import BinaryNetwork
from arm_tf.training import replicas
from arm_tf.training.config import Config, names_of
from arm_tf.training.tracker import VarianceTracker

_MODELS = {"vae": models.BinaryVAE, "conditional": models.ConditionalNetwork}
_ADAM_EPSILON = 1e-8  # that of TensorFlow 1, which the paper's experiments used


@contextlib.contextmanager
def precision(config: Config) -> Iterator[None]:
    """A context in which TensorFlow multiplies as precisely as a configuration asks it to."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(config.tf32)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def build_model(config: Config, dataset: Dataset) -> BinaryNetwork:
    """The model that a configuration describes, freshly initialised."""
    height, width = dataset.image_shape
    settings = {name: getattr(config, name) for name in names_of("model")}
    del settings["tf32"]  # which `precision` is for
    kind, num_layers = settings.pop("model"), settings.pop("layers")
    if kind == "conditional":
        settings["upper"] = height // 2 * width
        del settings["prior"]
    return _MODELS[kind](
        dataset.train.shape[1],
        num_layers,
        pixel_mean=dataset.train_mean,
        seed=config.seed,
        **settings,
    )


def build_gradient_estimators(
    config: Config, model: BinaryNetwork, name: str | None = None, num_samples: int | None = None
) -> list[GradientEstimator]:
    """An estimator for each stochastic layer: the configuration's, or another one by name."""
    if name is None:
        name, num_samples = config.estimator, config.num_samples
    return model.gradient_estimators(name, num_samples, **config.options(name))


def build_optimizers(
    config: Config, variable_groups: dict[str, list[keras.Variable]]
) -> dict[str, keras.optimizers.Optimizer]:
    """One Keras optimiser for each part of the model that has variables to train."""
    adam = lambda betas, learning_rate=config.learning_rate: keras.optimizers.Adam(
        learning_rate, beta_1=betas[0], beta_2=betas[1], epsilon=_ADAM_EPSILON
    )
    optimizers = {
        "encoder": adam(config.encoder_betas),
        "decoder": adam(config.decoder_betas),
        "prior": keras.optimizers.SGD(config.prior_learning_rate),
        "estimator": adam((0.9, 0.999), config.estimator_learning_rate),
    }
    optimizers = {part: optimizers[part] for part, group in variable_groups.items() if group}
    for part, optimizer in optimizers.items():
        optimizer.build(variable_groups[part])
    return optimizers


def make_steps(
    config: Config,
    model: BinaryNetwork,
    gradient_estimators: Sequence[GradientEstimator],
    tracker: VarianceTracker,
    variable_groups: dict[str, list[keras.Variable]],
    optimizers: dict[str, keras.optimizers.Optimizer],
    strategy: tf.distribute.Strategy,
) -> tf.types.experimental.PolymorphicFunction:
    """A compiled function that takes up to `config.steps_per_loop` training steps in one call.

    The function's arguments are the training images, uint8 [N, pixels]; the images of each
    step, int32 [steps_per_loop, batch]; its noise, float32 [steps_per_loop, rows, batch,
    units]; the tracker's noise likewise; and how many steps to take, int32. It returns the
    loss of each step (the negative ELBO or bound) in nats, float32 [steps_per_loop], and the
    gradient norms by part at the last step.

    Each replica of `strategy` takes its share of every batch, with the noise of that share, and
    all apply the mean gradient. The collective operations that this takes keep XLA out.
    """
    groups = {part: variable_groups[part] for part in optimizers}
    is_alone = strategy.num_replicas_in_sync == 1

    def step(images, order, u, tracker_u, is_last):
        x = tf.cast(tf.gather(images, replicas.share(order, axis=0)), tf.float32)
        u, tracker_u = replicas.share(u, axis=1), replicas.share(tracker_u, axis=1)
        with tf.GradientTape(persistent=True) as tape:
            each = model.losses(x, u, gradient_estimators, config.decoder_samples)
            decoder_loss = tf.reduce_mean(each.decoder)
            losses = {
                "encoder": tf.reduce_mean(each.encoder),
                "decoder": decoder_loss,
                "prior": decoder_loss,
                "estimator": each.estimator + tracker.update(model, x, tracker_u),
            }
        all_grads = []
        for part, variables in groups.items():
            grads = tape.gradient(losses[part], [variable.value for variable in variables])
            grads = replicas.mean(grads)
            optimizers[part].apply(replicas.addends(grads), variables)
            all_grads.append(grads)
        norms = tf.cond(  # they cost as much as an optimiser's step
            is_last,
            lambda: tf.stack([tf.linalg.global_norm(grads) for grads in all_grads]),
            lambda: tf.zeros([len(groups)]),
        )
        return replicas.mean(decoder_loss), norms

    @tf.function(jit_compile=config.jit and is_alone, autograph=False)
    def steps(images, order, u, tracker_u, count):
        def body(i, losses, _):
            each = strategy.run(step, (images, order[i], u[i], tracker_u[i], i + 1 == count))
            loss, norms = (strategy.experimental_local_results(value)[0] for value in each)
            return i + 1, tf.tensor_scatter_nd_update(losses, [[i]], [loss]), norms

        start = (0, tf.zeros([config.steps_per_loop]), tf.zeros([len(groups)]))
        _, losses, norms = tf.while_loop(lambda i, *_: i < count, body, start)
        return losses, dict(zip(groups, tf.unstack(norms), strict=True))

    return steps

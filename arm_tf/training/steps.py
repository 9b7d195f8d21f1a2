"""The training step: model, estimators and optimisers of a configuration, and the compiled loop."""

import contextlib

import keras
import tensorflow as tf

from arm_tf import estimators, models
from arm_tf.training import replicas
from arm_tf.training.run_folder import RunError

_MODELS = {"vae": models.BinaryVAE, "conditional": models.ConditionalNetwork}
_ADAM_EPSILON = 1e-8  # that of TensorFlow 1, which the paper's experiments used


def build_model(config, dataset):
    """The model that a configuration describes, freshly initialised.

    From here on TensorFlow multiplies with the precision that the configuration asks for.
    """
    tf.config.experimental.enable_tensor_float_32_execution(config.tf32)
    height, width = dataset.image_shape
    options = {"prior": config.prior} if config.model == "vae" else {"upper": height // 2 * width}
    return _MODELS[config.model](
        pixels=dataset.train.shape[1],
        num_layers=config.layers,
        network=config.network,
        units=config.units,
        leaky_slope=config.leaky_slope,
        input_scaling=config.input_scaling,
        code_scaling=config.code_scaling,
        output_bias=config.output_bias,
        pixel_mean=dataset.train_mean,
        seed=config.seed,
        **options,
    )


def load_model(path, config, dataset):
    """The model of a run with the weights of its best validation.

    Raises:
      RunError: the run has no evaluated checkpoint yet, or a damaged one.
    """
    latest = None
    with contextlib.suppress(Exception):  # of any kind, where the list of checkpoints is damaged
        latest = tf.train.latest_checkpoint(str(path / "checkpoints" / "best"))
    if latest is None:
        raise RunError(f"The run in {path} has no evaluated checkpoint yet, or a damaged one.")
    model = build_model(config, dataset)
    restore(tf.train.Checkpoint(weights=tensors(model)), latest)
    return model


def tensors(holder):
    """The TensorFlow variables of a Keras model, layer or optimiser, for checkpoints."""
    return [variable.value for variable in holder.variables]


def checkpoint_manager(checkpoint, folder, keep):
    """A `tf.train.CheckpointManager` that finds a folder's checkpoints also if their list is bad.

    TensorFlow's list of them is what the writing of a checkpoint ends with, so that there are
    none where there is no list. A damaged one is replaced by the names of the files there.
    """
    listed = None
    with contextlib.suppress(Exception):  # of any kind: it parses whatever the file holds
        listed = tf.train.get_checkpoint_state(str(folder))
    whole = listed and len(listed.all_model_checkpoint_timestamps) == len(
        listed.all_model_checkpoint_paths
    )  # a manager forgets those without a time
    if not whole and (folder / "checkpoint").exists():
        found = {int(path.stem.rpartition("-")[2]): path for path in folder.glob("ckpt-*.index")}
        if found:
            names = [f"ckpt-{number}" for number in sorted(found)]
            times = [found[number].stat().st_mtime for number in sorted(found)]
            tf.compat.v1.train.update_checkpoint_state(
                str(folder.absolute()), names[-1], names, all_model_checkpoint_timestamps=times
            )
        else:
            (folder / "checkpoint").unlink()
    return tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=keep)


def restore(checkpoint, path):
    """Restores every variable of a `tf.train.Checkpoint`; TensorFlow compares their checksums.

    Raises:
      RunError: the file is damaged, or not of this model.
    """
    try:
        status = checkpoint.restore(path)
    except Exception as error:  # OpError, IndexError and others, depending on the damage
        reason = str(error).splitlines()[0]
    else:
        try:
            status.assert_consumed()
            return
        except AssertionError:
            status.expect_partial()
            reason = "it is not a checkpoint of this model"
    raise RunError(f"Cannot restore {path}: {reason}")


def build_gradient_estimators(config, model, name=None, num_samples=None):
    """An estimator for each stochastic layer: the configuration's, or another one by name."""
    if name is None:
        name, num_samples = config.estimator, config.num_samples
    options = {option: getattr(config, option) for option in estimators.get(name).options}
    return model.gradient_estimators(name, num_samples, **options)


def build_optimizers(config, variable_groups):
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


def make_steps(config, model, gradient_estimators, tracker, variable_groups, optimizers, strategy):
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
            encoder_loss, decoder_loss, estimator_loss = model.losses(
                x, u, gradient_estimators, config.decoder_samples
            )
            decoder_loss = tf.reduce_mean(decoder_loss)
            losses = {
                "encoder": tf.reduce_mean(encoder_loss),
                "decoder": decoder_loss,
                "prior": decoder_loss,
                "estimator": estimator_loss + tracker.update(model, x, tracker_u),
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

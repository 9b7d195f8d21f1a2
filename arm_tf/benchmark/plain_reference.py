"""The authors' training step written plainly, which `arm_tf.benchmark` measures against.

One `tf.function` call a step, images from `tf.data`, noise drawn in the step, Keras optimisers:
what one would write at first from Algorithm 1 and 2 of Yin & Zhou 2019. The mathematics is that of
`arm_tf.models.BinaryVAE` with the "arm" estimator and independent samples for the decoder.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


def make_step(
    layers: int = 1,
    network: str = "linear",
    units: int = 200,
    pixels: int = 784,
    learning_rate: float = 1e-4,
    jit: bool = False,
) -> tuple[
    Callable[[tf.Tensor], tf.Tensor],
    Callable[..., tf.Tensor],
    tuple[list[keras.Sequential], list[keras.Sequential]],
]:
    """A function that takes one training step on a batch, float [batch, pixels].

    Returns:
      step: it returns the batch's mean negative ELBO in nats.
      elbo: function of images and codes b_1, …, b_T that returns log p(x, b) - log q(b|x).
      maps: the encoder's and the decoder's, two lists of Keras models.
    """

    def make_map(outputs):
        hidden = []
        if network == "nonlinear":
            for _ in range(2):
                hidden += [keras.layers.Dense(units), keras.layers.LeakyReLU(0.1)]
        return keras.Sequential([*hidden, keras.layers.Dense(outputs)])

    encoder = [make_map(units) for _ in range(layers)]
    decoder = [make_map(units if t else pixels) for t in range(layers)]
    for t in range(layers):
        encoder[t].build((None, units if t else pixels))
        decoder[t].build((None, units))
    prior = tf.Variable(tf.zeros([units]))
    encoder_variables = [v for m in encoder for v in m.trainable_variables]
    decoder_variables = [v for m in decoder for v in m.trainable_variables]
    encoder_adam = keras.optimizers.Adam(learning_rate)
    decoder_adam = keras.optimizers.Adam(learning_rate)
    encoder_adam.build(encoder_variables)
    decoder_adam.build(decoder_variables)

    def log_prob(b, logits):
        return tf.reduce_sum(b * logits - tf.nn.softplus(logits), axis=-1)

    def elbo(x, codes):
        value = log_prob(codes[-1], prior)
        for t, b in enumerate(codes):
            below = codes[t - 1] if t else x
            value += log_prob(below, decoder[t](b)) - log_prob(b, encoder[t](below))
        return value

    def sample(logits):
        return tf.cast(tf.random.uniform(tf.shape(logits)) < tf.sigmoid(logits), tf.float32)

    def continue_up(codes):
        for t in range(len(codes), layers):
            codes = [*codes, sample(encoder[t](codes[-1]))]
        return codes

    @tf.function(jit_compile=jit)
    def step(x):
        with tf.GradientTape() as tape:
            codes: list[tf.Tensor] = []
            objective = 0.0
            for t in range(layers):
                logits = encoder[t](codes[-1] if t else x)
                u = tf.random.uniform(tf.shape(logits))
                pair = (
                    tf.cast(u > tf.sigmoid(-logits), tf.float32),
                    tf.cast(u < tf.sigmoid(logits), tf.float32),
                )
                f_anti, f_b = (elbo(x, continue_up([*codes, b])) for b in pair)
                grad = (f_anti - f_b)[:, tf.newaxis] * (u - 0.5)
                objective += tf.reduce_sum(tf.stop_gradient(grad) * logits)
                codes.append(pair[1])
            objective = objective / tf.cast(tf.shape(x)[0], tf.float32)
        gradients = tape.gradient(objective, encoder_variables)
        encoder_adam.apply([-g for g in gradients], encoder_variables)

        codes = continue_up([sample(encoder[0](x))])
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(elbo(x, codes))
        gradients = tape.gradient(loss, [*decoder_variables, prior])
        decoder_adam.apply(gradients[:-1], decoder_variables)
        prior.assign_sub(0.01 * gradients[-1])
        return loss

    return step, elbo, (encoder, decoder)


def batches(images: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """An endless, shuffled `tf.data` pipeline of float batches from uint8 [N, pixels]."""
    return (
        tf.data.Dataset.from_tensor_slices(images)
        .shuffle(len(images), reshuffle_each_iteration=True)
        .repeat()
        .batch(batch_size)
        .map(lambda x: tf.cast(x, tf.float32))
        .prefetch(2)
    )

"""Tensors in structures, with Keras's masks."""

import typing

import keras
import tensorflow as tf


def leaf(structure: typing.Any) -> typing.Any:
    """The first tensor of a structure."""
    return keras.tree.flatten(structure)[0]


def with_mask(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """`x`, with Keras's mask of another tensor, if that has one."""
    mask = getattr(like, "_keras_mask", None)
    if mask is not None:
        x = tf.identity(x)
        x._keras_mask = mask
    return x


def repeat(x: tf.Tensor, times: int) -> tf.Tensor:
    """`x` [batch, ...] and its mask so many times along the batch, [times * batch, ...]."""
    x = tf.convert_to_tensor(x)
    tiled = tf.tile(x, [times] + [1] * (x.shape.rank - 1))
    mask = getattr(x, "_keras_mask", None)
    if mask is not None:
        tiled._keras_mask = repeat(mask, times)
    return tiled

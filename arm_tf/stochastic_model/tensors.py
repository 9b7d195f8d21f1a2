"""Tensors in structures, and rows of tensors, with Keras's masks."""

import typing
from collections.abc import Callable

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
    return _also_mask(lambda x: tf.tile(x, [times] + [1] * (x.shape.rank - 1)), x)


def block(x: tf.Tensor, s: int | tf.Tensor, blocks: int) -> tf.Tensor:
    """Block s of `x` [blocks * batch, ...] and of its mask, [batch, ...]."""
    if blocks == 1:
        return x
    split = lambda x: tf.reshape(x, tf.concat([[blocks, -1], tf.shape(x)[1:]], axis=0))
    return _also_mask(lambda x: tf.ensure_shape(split(x)[s], [None, *x.shape[1:]]), x)


def put(x: tf.Tensor, n: int | tf.Tensor, rows: tf.Tensor, i: int | tf.Tensor) -> tf.Tensor:
    """`x` [batch, ...], whose row n is row i of `rows`, with the masks of both."""

    def replace(x, rows):
        size = tf.shape(x)[0]
        here = tf.reshape(tf.range(size) == n, [-1] + [1] * (x.shape.rank - 1))
        return tf.where(here, rows[i][tf.newaxis], x)

    return _also_mask(replace, x, rows)


def over(function: Callable[..., tf.Tensor], rows: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The function of each row of a tensor, float `dtype` [rows, ...]."""
    if tf.executing_eagerly():  # where `vectorized_map` would trace anew at every call
        return tf.map_fn(function, rows, fn_output_signature=dtype)
    return tf.vectorized_map(function, rows)


def _also_mask(function: Callable[..., tf.Tensor], *tensors: tf.Tensor) -> tf.Tensor:
    """The function of tensors, which has as its mask the function of their masks."""
    tensors = tuple(map(tf.convert_to_tensor, tensors))
    result = function(*tensors)
    masks = [getattr(x, "_keras_mask", None) for x in tensors]
    if all(mask is not None for mask in masks):
        result._keras_mask = function(*map(tf.convert_to_tensor, masks))
    return result

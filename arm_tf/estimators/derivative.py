"""f's derivative in its samples."""

from __future__ import annotations

import typing
from collections.abc import Callable

from arm_tf.estimators import lazy

if typing.TYPE_CHECKING:
    import tensorflow as tf
else:
    tf = lazy("tensorflow")


def differentiate(
    name: str, f: Callable[..., tf.Tensor], b: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """f(b) and its derivative at each sample.

    Args:
      name: of the estimator, for the error.
      f: maps [S, ..., V] to [S, ...], each value from its own sample.
      b: float [S, ..., V].

    Returns:
      float [S, ...], differentiable in whatever f uses, and float [S, ..., V], a constant.

    Raises:
      ValueError: f is not differentiable in b.
    """
    f_b, slopes = value_and_slopes(name, f, b)
    return f_b, tf.stop_gradient(slopes)


def value_and_slopes(
    name: str, f: Callable[..., tf.Tensor], b: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """As `differentiate`, with derivatives that can be differentiated once more."""
    f_b, slopes, _ = value_and_slopes_through(name, f, b, [])
    return f_b, slopes


def value_and_slopes_through(
    name: str, f: Callable[..., tf.Tensor], b: tf.Tensor, later: list[tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """As `value_and_slopes`, with f's derivatives in tensors between b and f(b), too.

    Args:
      later: list that f fills with those tensors.
    """
    with tf.GradientTape() as tape:
        tape.watch(b)
        f_b = f(b)
    slopes, *later_slopes = tape.gradient(f_b, [b, *later])
    if slopes is None:
        raise ValueError(
            f"{name!r} needs the derivative of f in b, but f is not differentiable in b; use "
            "an estimator that needs none, such as 'arm'."
        )
    pairs = zip(later_slopes, later, strict=True)
    return f_b, slopes, [tf.zeros_like(x) if c is None else c for c, x in pairs]

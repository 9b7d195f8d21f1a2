"""By which way the loss is evaluated for other samples: found out by trying.

On small made-up batches, with the weights as they are and with others, the samples of one datum
change. A way is taken if it gives what the definition gives, and if nothing of the other data
moves, to the last bit.
"""

import contextlib
import functools
import typing
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from arm_tf.layers import eagerly
from arm_tf.stochastic_model.batch_loss import BatchLoss
from arm_tf.stochastic_model.path import Path, variables
from arm_tf.stochastic_model.rest import Rest

WAYS = ("datum", "output", "batch")  # from the cheapest to the one that is always right
_TRIALS = 3
_BATCH, _LENGTH = 4, 3  # sizes of axes that may have any
_NONE_SEEN = -1  # of `WAYS` the last


def find(
    model: keras.Model, loss_model: keras.Model, x: typing.Any, y: typing.Any, weight: typing.Any
) -> dict[int, str]:
    """The way for each sampling step, by its index.

    Args:
      model: with the layers, Sequential or functional.
      loss_model: the compiled model around it.
      x, y, weight: a batch, of which kinds and shapes matter.
    """
    tries: list[dict[int, int]] = []
    each = lambda size: [_try(model, loss_model, x, y, weight, size, s) for s in range(_TRIALS)]
    for size in dict.fromkeys([_BATCH, model.inputs[0].shape[0]]):  # some take no other than theirs
        with contextlib.suppress(Exception):  # whatever made-up data do to a model or loss
            tries = tries or eagerly(functools.partial(each, size))
    best = lambda site: max((found[site] for found in tries), default=_NONE_SEEN)
    return {site: WAYS[best(site)] for site in Path.sites(model)}


def _try(
    model: keras.Model,
    loss_model: keras.Model,
    x: typing.Any,
    y: typing.Any,
    weight: typing.Any,
    size: int,
    seed: int,
) -> dict[int, int]:
    """The way for each sampling step on one made-up batch; `_NONE_SEEN` where nothing changes."""
    rng = np.random.default_rng(seed)
    made_up = lambda low, structure: keras.tree.map_structure(
        lambda t: None if t is None else _like(t, size, low, rng), structure
    )
    state = [(v, _weights(v, seed > 0, rng)) for v in variables(model)]
    with keras.StatelessScope(state_mapping=state, collect_losses=True):
        path = Path(
            model,
            made_up(0.0, x),
            loss_model.add_loss,
            lambda layer, logits: tf.constant(rng.uniform(size=logits.shape), logits.dtype),
            _mean,
        )
    loss = BatchLoss(loss_model, made_up(None, y), made_up(0.5, weight))

    def draw(shape: Sequence[int]) -> np.ndarray:
        if seed > 0:
            return rng.integers(0, 2, shape)
        in_turn = np.arange(shape[0]) % 2  # all of a datum's units 0, or all 1
        return np.broadcast_to(np.reshape(in_turn, [-1] + [1] * (len(shape) - 1)), shape)

    return {site: _way(Rest(path, site, loss), draw) for site in path.graph.after}


def _mean(logits: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """In place of samples, so that whatever comes before a stochastic layer is felt after it."""
    return tf.sigmoid(logits)


def _way(rest: Rest, draw: Callable[[Sequence[int]], np.ndarray]) -> int:
    """The way for one sampling step, as an index of `WAYS`, or `_NONE_SEEN`."""
    path = rest.path
    noise = {j: u[tf.newaxis] for j, u in path.noise.items()}
    bits = path.values[path.graph.steps[rest.site].writes[0]].numpy()
    other = draw(bits.shape).astype(bits.dtype)
    size = len(bits)
    rows = range(min(size, _BATCH))

    def passed(b):
        (found,) = path.rest(rest.site, [tf.constant(b)], 1, noise, _mean)
        by_keras = sum(not step.is_sampling for step, _ in found.regularised)
        seen = [*found.outputs, *(output for _, output in found.regularised)]
        return found.outputs, seen, len(found.losses) > by_keras

    def changed(n):
        b = bits.copy()
        b[n] = other[n]
        return b

    outputs, seen, has_other_losses = passed(bits)
    changed_passes = [passed(changed(n)) for n in rows]
    alone, moved = _alone(seen, [seen_n for _, seen_n, _ in changed_passes], size)
    total = lambda b: float(rest.of_batches([tf.constant(b)], _mean)[0])
    on_path, divisor = total(bits), float(rest.divisor)
    definition = np.array([divisor * (total(changed(n)) - on_path) for n in rows])
    if not np.isfinite(definition).all() or not definition.any():
        return _NONE_SEEN
    if not alone or has_other_losses or not moved:
        return WAYS.index("batch")

    def agrees(way):
        f = lambda *bs: rest(
            way, tf.reshape(np.stack(bs), [len(bs), size, -1]), noise, _mean
        ).numpy()
        scale = np.abs(definition).max() * 1e-3
        scale += 1e-5 * divisor * abs(on_path)
        rise = lambda f_other, f_bits: (f_other - f_bits)[: len(rows)]
        close = lambda f_other, f_bits: np.abs(rise(f_other, f_bits) - definition).max() <= scale
        if not close(f(other)[0], f(bits)[0]):
            return False
        twice = f(bits, bits)  # differs where layers draw noise of their own, for each row
        return (twice[0] != twice[1]).any() or close(*f(other, bits))

    def are_addends():
        addends = lambda outputs: rest.loss.addends(path.structured(outputs))
        with path.scope():
            alone, _ = _alone(addends(outputs), [addends(o) for o, _, _ in changed_passes], size)
        return alone

    for way in WAYS[:-1]:
        try:
            if (way != "datum" or are_addends()) and agrees(way):
                return WAYS.index(way)
        except Exception:  # a batch of another size, or a loss that cannot be looked into
            continue
    return WAYS.index("batch")


def _alone(before: list[tf.Tensor], after: list[list[tf.Tensor]], size: int) -> tuple[bool, bool]:
    """Whether a datum n changes only row n of every tensor, and whether it changes that at all."""
    alone, moved = True, False
    for n, tensors in enumerate(after):
        for old, new in zip(before, tensors, strict=True):
            if old.shape.rank == 0 or old.shape[0] != size or new.shape != old.shape:
                return False, True
            moves = np.not_equal(old, new).reshape(size, -1).any(axis=1)
            moved |= bool(moves[n])
            alone &= not np.delete(moves, n).any()
    return alone, moved


def _weights(variable: keras.Variable, others: bool, rng: np.random.Generator) -> tf.Tensor:
    """A variable's value, or another one; the first trace of a step knows variables without any."""
    has_value = bool(variable.value.is_initialized())
    value = tf.convert_to_tensor(variable.value) if has_value else tf.zeros(variable.shape)
    value = tf.cast(value, variable.dtype)
    if not value.dtype.is_floating or (has_value and not (others and variable.trainable)):
        return value
    return value + tf.cast(0.5 * rng.uniform(size=variable.shape), value.dtype)


def _like(t: typing.Any, size: int, low: float | None, rng: np.random.Generator) -> typing.Any:
    """Values of a tensor's kind: numbers from `low` on for floats, or else zeros and ones."""
    is_tensor = isinstance(t, (tf.Tensor, tf.SparseTensor, tf.RaggedTensor))
    t = t if is_tensor else tf.convert_to_tensor(t)
    shape = [size, *(_LENGTH if n is None else n for n in t.shape[1:])] if t.shape.rank else []
    if t.dtype == tf.string:
        return tf.fill(shape, "a")
    if t.dtype.is_floating and low is not None:
        made = tf.cast(low + rng.uniform(size=shape), t.dtype)
    else:
        made = tf.cast(rng.integers(0, 2, shape), t.dtype)
    if isinstance(t, tf.SparseTensor):
        return tf.sparse.from_dense(made)
    return tf.RaggedTensor.from_tensor(made) if isinstance(t, tf.RaggedTensor) else made

"""One training pass of a model, and what comes after one of its stochastic layers."""

import functools
import math
import typing
from collections.abc import Callable

import keras
import tensorflow as tf

from arm_tf import bernoulli, chain
from arm_tf.layers import StochasticBinary
from arm_tf.stochastic_model.graph import Graph, Step
from arm_tf.stochastic_model.tensors import repeat, with_mask


class Path:
    """One training pass of a model: all values, with one sample of each stochastic layer.

    Args:
      model: `keras.Sequential` or a functional `keras.Model`.
      inputs: of the model.
      add_loss: called with the penalties of stochastic layers that have an activity regulariser.
      noise: function of (layer, logits [..., V]) that gives uniform noise of this shape.
      sample: function of (logits, u).

    Attributes:
      inputs: as given.
      values: a dict of tensors by slot of the graph.
      noise: that of the sampling steps, [batch, ...], by their index.
      outputs: of the model, structured as its own.
    """

    def __init__(
        self,
        model: keras.Model,
        inputs: typing.Any,
        add_loss: Callable[[tf.Tensor], None],
        noise: Callable[[StochasticBinary, tf.Tensor], tf.Tensor],
        sample: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = bernoulli.sample,
    ) -> None:
        self.graph, self.inputs = Graph(model), inputs
        # Everything that the pass reads, before a layer moves its averages, states or seeds.
        self._state = [(v, tf.convert_to_tensor(v.value)) for v in variables(model)]
        self._symbols, self._structure = model.inputs, model.outputs
        if isinstance(model, keras.Function):
            self._symbols, self._structure = model.input, model.output
        flat = keras.Model(self._symbols, model.inputs)(inputs)  # checked and cast
        self.values = dict(zip(self.graph.inputs, keras.tree.flatten(flat), strict=True))
        self.noise: dict[int, tf.Tensor] = {}
        for i, step in enumerate(self.graph.steps):
            if step.is_sampling:
                layer, logits = self.sampling(i)
                layer.check_dtype(logits)
                self.noise[i] = noise(layer, logits)
                written = [_sample(logits, self.noise[i], sample)]
                if layer.activity_regularizer:
                    add_loss(penalty(layer, written[0]))
            else:
                written = step(self.values.get)
            self.values |= dict(zip(step.writes, written, strict=True))
        self.outputs = self.structured([self.values[slot] for slot in self.graph.outputs])

    @staticmethod
    def sites(model: keras.Model) -> list[int]:
        """Indices of the steps of a model's graph that sample."""
        return list(Graph(model).after)

    def sampling(self, index: int) -> tuple[StochasticBinary, tf.Tensor]:
        """The layer of a sampling step, and its logits in the layer's dtype."""
        step = self.graph.steps[index]
        (slot,) = step.reads.values()
        logits = self.values[slot]
        return step.operation, with_mask(tf.cast(logits, step.operation.compute_dtype), logits)

    def structured(self, flat: list[tf.Tensor]) -> typing.Any:
        """Flat outputs in the structure of the model's."""
        outputs = keras.tree.pack_sequence_as(self._structure, flat)
        is_single = isinstance(outputs, (list, tuple)) and len(outputs) == 1
        return outputs[0] if is_single else outputs

    def scope(self) -> keras.StatelessScope:
        """A scope in which variables are as the pass met them, and are not written."""
        return keras.StatelessScope(state_mapping=self._state, collect_losses=True)

    def rest(
        self,
        site: int,
        blocks: list[tf.Tensor],
        samples: int,
        noise: dict[int, tf.Tensor],
        sample: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = bernoulli.sample,
    ) -> list["Passed"]:
        """The steps after one that samples, for other samples of it.

        The layers see each block as a batch of its own. Later stochastic layers sample for all
        blocks at once, since an estimator's `sample` may relate its samples to one another.

        Args:
          site: index of the step.
          blocks: other samples, float [samples * batch, ...] each.
          samples: int, in each block; what does not depend on them is as on the path.
          noise: uniform [width, batch, ...] of the sampling steps among them, by index.
          sample: function of (logits, u).

        Returns:
          `Passed` of each block.
        """
        steps, passed, scopes = self.graph.steps, [Passed() for _ in blocks], []
        value = lambda own, slot: self._value(own, slot, samples)
        for block, own in zip(blocks, passed, strict=True):
            scopes.append(self.scope())
            (slot,) = steps[site].reads.values()
            own.write(steps[site], [with_mask(block, value(own, slot))])
        for j in self.graph.after[site]:
            if j in noise:
                (slot,) = steps[j].reads.values()
                dtype = steps[j].operation.compute_dtype
                every = [value(own, slot) for own in passed]
                total = samples * len(blocks)
                (u,) = chain.cycle([noise[j]], total)
                u = tf.broadcast_to(u, tf.concat([[total], tf.shape(u)[1:]], axis=0))
                units = math.prod(every[0].shape[1:])
                flat = [tf.cast(tf.cast(logits, dtype), u.dtype) for logits in every]
                flat = [tf.reshape(logits, [samples, -1, units]) for logits in flat]
                b_j = sample(tf.concat(flat, axis=0), tf.reshape(u, [total, -1, units]))
                for own, logits, b in zip(passed, every, tf.split(b_j, len(blocks)), strict=True):
                    b = tf.reshape(tf.cast(b, dtype), tf.shape(logits))
                    own.write(steps[j], [with_mask(b, logits)])
                continue
            for own, scope in zip(passed, scopes, strict=True):
                with scope:
                    own.write(steps[j], steps[j](functools.partial(value, own)))
                    own.losses += scope.losses  # before another call of the layer clears its own
                    scope.losses.clear()
        for own in passed:
            own.outputs = [value(own, slot) for slot in self.graph.outputs]
        return passed

    def _value(self, own: "Passed", slot: int, samples: int) -> tf.Tensor:
        if slot in own.values:
            return own.values[slot]
        on_path = self.values[slot]
        return repeat(on_path, samples) if self.graph.has_batch[slot] else on_path


class Passed:
    """What has become of other samples in the steps after them.

    Attributes:
      values: by slot.
      outputs: of the model, flat.
      regularised: pairs of a step with an activity regulariser and what it puts out.
      losses: that layers have added, those of their activity regularisers included.
    """

    def __init__(self) -> None:
        self.values: dict[int, tf.Tensor] = {}
        self.outputs: list[tf.Tensor] = []
        self.regularised: list[tuple[Step, tf.Tensor]] = []
        self.losses: list[tf.Tensor] = []

    def write(self, step: Step, outputs: list[tf.Tensor]) -> None:
        """Takes a step's outputs."""
        self.values.update(zip(step.writes, outputs, strict=True))
        if getattr(step.operation, "activity_regularizer", None):
            self.regularised.extend((step, output) for output in outputs)


def variables(model: keras.Model) -> list[keras.Variable]:
    """All that the layers hold, with those that Keras does not list, as a stateful RNN's states."""
    found = list(model.variables)
    for layer in model._flatten_layers():
        held = [value for value in vars(layer).values() if isinstance(value, (list, tuple))]
        found += [v for v in keras.tree.flatten(held) if isinstance(v, keras.Variable)]
    return list({id(variable): variable for variable in found}.values())


def penalty(layer: keras.layers.Layer, output: tf.Tensor) -> tf.Tensor:
    """That of an activity regulariser, a number, as Keras takes it: over the data of the batch."""
    loss = layer.activity_regularizer(output)
    return tf.math.divide_no_nan(loss, tf.cast(tf.shape(output)[0], loss.dtype))


def _sample(logits: tf.Tensor, u: tf.Tensor, sample: Callable[..., tf.Tensor]) -> tf.Tensor:
    """Binary units, whose gradient in the logits is zero; NaN where the logits are."""
    b = tf.cast(sample(tf.cast(logits, u.dtype), u), logits.dtype)
    return with_mask(tf.where(tf.math.is_nan(logits), logits, b), logits)

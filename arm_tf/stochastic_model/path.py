"""One training pass of a model, and what comes after one of its stochastic layers."""

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
                written = [_sample(logits, self.noise[i])]
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
        b: tf.Tensor,
        samples: int,
        noise: dict[int, tf.Tensor],
        sample: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = bernoulli.sample,
    ) -> tuple[list[tf.Tensor], list[tuple[Step, tf.Tensor]]]:
        """The steps after one that samples, for other samples of it, within `scope`.

        Args:
          site: index of the step.
          b: float [samples * batch, ...].
          samples: int; what does not depend on b is as on the path for each of them.
          noise: uniform [width, batch, ...] of the sampling steps among them, by index.
          sample: function of (logits, u).

        Returns:
          The flat outputs [samples * batch, ...], and pairs of a step with an activity regulariser
          and what it puts out, the one that samples included.
        """
        steps, changed = self.graph.steps, dict[int, tf.Tensor]()
        regularised: list[tuple[Step, tf.Tensor]] = []

        def value(slot):
            if slot not in changed and not self.graph.has_batch[slot]:
                return self.values[slot]
            return changed[slot] if slot in changed else repeat(self.values[slot], samples)

        def write(step, outputs):
            changed.update(zip(step.writes, outputs, strict=True))
            if getattr(step.operation, "activity_regularizer", None):
                regularised.extend((step, output) for output in outputs)

        write(steps[site], [with_mask(b, value(next(iter(steps[site].reads.values()))))])
        for j in self.graph.after[site]:
            if j in noise:
                dtype = steps[j].operation.compute_dtype
                (logits,) = (value(slot) for slot in steps[j].reads.values())
                (u,) = chain.cycle([noise[j]], samples)
                u = tf.broadcast_to(u, tf.concat([[samples], tf.shape(u)[1:]], axis=0))
                units = math.prod(logits.shape[1:])
                each = lambda x, units=units: tf.reshape(x, [samples, -1, units])
                b_j = sample(each(tf.cast(tf.cast(logits, dtype), u.dtype)), each(u))
                b_j = tf.reshape(tf.cast(b_j, dtype), tf.shape(logits))
                write(steps[j], [with_mask(b_j, logits)])
            else:
                write(steps[j], steps[j](value))
        return [value(slot) for slot in self.graph.outputs], regularised


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


def _sample(logits: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """Binary units, whose gradient in the logits is zero; NaN where the logits are."""
    b = tf.cast(bernoulli.sample(tf.cast(logits, u.dtype), u), logits.dtype)
    return with_mask(tf.where(tf.math.is_nan(logits), logits, b), logits)

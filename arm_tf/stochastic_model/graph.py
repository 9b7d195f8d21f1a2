"""A Keras model as a list of calls, in which stochastic layers stand by themselves."""

import dataclasses
import inspect
import typing
from collections.abc import Callable

import keras
import tensorflow as tf

from arm_tf.layers import StochasticBinary


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of a graph: its operation, and the slots of values that it reads and writes.

    Attributes:
      operation: a Keras layer or operation.
      arguments: its symbolic arguments, Keras's.
      reads, writes: slots; of what it reads, by the identity of the symbolic tensor.
      training: the `training` that a model around it was called with, or None.
    """

    operation: typing.Any
    arguments: typing.Any
    reads: dict[int, int]
    writes: tuple[int, ...]
    training: bool | None

    @property
    def is_sampling(self) -> bool:
        """Whether it draws the samples of a stochastic layer."""
        is_stochastic = isinstance(self.operation, StochasticBinary)
        return is_stochastic and "f" not in self.arguments.kwargs

    def __call__(self, value: Callable[[int], tf.Tensor]) -> list[tf.Tensor]:
        """The flat outputs, with value(slot) for every input."""
        values = {tensor: value(slot) for tensor, slot in self.reads.items()}
        args, kwargs = self.arguments.fill_in(values)
        if "training" in inspect.signature(self.operation.call).parameters:
            kwargs.setdefault("training", True if self.training is None else self.training)
        return keras.tree.flatten(self.operation(*args, **kwargs))


class Graph:
    """A model as a list of steps, with the models inside it that hold stochastic layers unfolded.

    Attributes:
      inputs, outputs: slots.
      steps: list of `Step`, each after those that it reads from.
      after: for the index of a sampling step, the indices of the steps that depend on it.
      has_batch: whether the value of each slot has a batch axis; a list.
    """

    def __init__(self, model: keras.Model) -> None:
        self.steps: list[Step] = []
        self.has_batch: list[bool] = []
        self.batch = model.inputs[0].shape[0]  # None where it may be any
        self.inputs = [self._slot(tensor) for tensor in model.inputs]
        self.outputs = self._unfold(model, self.inputs, None)
        self._refuse_shared_noise()
        self.after: dict[int, list[int]] = {}
        for i, step in enumerate(self.steps):
            if step.is_sampling:
                reached, found = set(step.writes), []
                for j in range(i + 1, len(self.steps)):
                    if reached & set(self.steps[j].reads.values()):
                        reached |= set(self.steps[j].writes)
                        found.append(j)
                self.after[i] = found

    def _refuse_shared_noise(self) -> None:
        """Raises ValueError where two layers draw the same noise."""
        names: dict[int, str] = {}
        for layer in (step.operation for step in self.steps if step.is_sampling):
            if layer.seed is not None and names.setdefault(layer.seed, layer.name) != layer.name:
                raise ValueError(
                    f"The layers {names[layer.seed]!r} and {layer.name!r} have the same seed, "
                    f"{layer.seed}, with which they draw the same noise; give each one of its own."
                )

    def _slot(self, tensor: keras.KerasTensor) -> int:
        self.has_batch.append(len(tensor.shape) > 0 and tensor.shape[0] == self.batch)
        return len(self.has_batch) - 1

    def _unfold(self, model: keras.Model, inputs: list[int], training: bool | None) -> list[int]:
        """Adds a model's steps on given slots; the slots of its outputs."""
        slots = {id(tensor): slot for tensor, slot in zip(model.inputs, inputs, strict=True)}
        nodes = keras.Function(model.inputs, model.outputs)._nodes_by_depth
        for depth in sorted(nodes, reverse=True):
            for node in nodes[depth]:
                if node.is_input:
                    continue
                reads = {id(tensor): slots[id(tensor)] for tensor in node.input_tensors}
                operation, within = node.operation, node.arguments.kwargs.get("training", training)
                if _holds_stochastic_layers(operation):
                    if not isinstance(operation, (keras.Sequential, keras.Function)):
                        raise ValueError(
                            f"The layer {operation.name!r} holds a StochasticBinary layer and "
                            "cannot be taken apart; a StochasticModel takes such layers in "
                            "Sequential and functional models."
                        )
                    read = [slots[id(tensor)] for tensor in node.input_tensors]
                    writes = self._unfold(operation, read, within)
                else:
                    writes = [self._slot(tensor) for tensor in node.outputs]
                    step = Step(operation, node.arguments, reads, tuple(writes), within)
                    self.steps.append(step)
                slots |= {id(t): slot for t, slot in zip(node.outputs, writes, strict=True)}
        return [slots[id(tensor)] for tensor in model.outputs]


def _holds_stochastic_layers(operation: keras.Operation) -> bool:
    if isinstance(operation, StochasticBinary) or not isinstance(operation, keras.layers.Layer):
        return False
    parts = operation._flatten_layers(include_self=False)
    return any(isinstance(part, StochasticBinary) for part in parts)

"""Any Keras network with stochastic binary layers, trained under its own `compile` and `fit`.

The loss as a function of one layer's samples is the rest of the network and the compiled loss, so
that every gradient estimator applies as it stands.
"""

import dataclasses
import inspect
import itertools
import math
import typing
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from arm_tf import bernoulli, chain, estimators
from arm_tf.expectation import (
    GradientEstimator,
    at_any_precision,
    attach_gradient,
    gradient_after,
)
from arm_tf.layers import StochasticBinary, no_gradient


@keras.saving.register_keras_serializable(package="arm_tf")
class StochasticModel(keras.Model):
    """A Sequential or functional model whose `StochasticBinary` layers their estimators train.

    `compile`, `fit`, `evaluate`, `predict`, saving and callbacks are Keras's own. In training the
    model takes one path: every stochastic layer t samples b_t from its logits, and the loss of that
    path is what is reported and what reaches the weights that follow on samples, by plain
    backpropagation with all b_t held fixed. To it come the gradients of all logits,

      dE[loss] / d logits_t,  of  f_t(b_t) = what a datum adds to the loss,

    by the estimator of layer t (Yin & Zhou 2019, proposition 2): f_t continues each of the
    estimator's samples, independently, through what comes after layer t, with its other inputs,
    parallel stochastic layers included, as they are on the path. What does not depend on layer t is
    not evaluated again, and all samples of a layer are one batch. So the gradient of every weight
    is an unbiased estimate of that of E[loss] if the estimators are unbiased. It is that of
    `compute_loss`; any other gradient through the outputs of a training pass raises a ValueError.

    What a datum adds to the loss is made of the compiled losses, with their weights, masks and
    sample weights, and of activity regularisers. A layer after a stochastic one that mixes the data
    of a batch sees all samples as one batch: BatchNormalization takes its means over them, moves
    its averages with each of them, and the estimate leaves out what one datum's sample does to
    the loss of another. Dropout draws anew for each sample; the estimate is of the expectation over
    its masks, too.

    Args:
      model: `keras.Sequential` or a functional `keras.Model`; models of these kinds inside it may
        hold stochastic layers, too. Each input of a `StochasticBinary` layer is [batch, ..., V],
        all units of a datum being one vector.
      **kwargs: arguments of `keras.Model`.

    Raises:
      ValueError: another kind of model or, once it is called, a stochastic layer inside a layer
        that cannot be taken apart, a layer after a stochastic one with a loss of its own, an
        estimator of another objective than E[f], or a compiled loss without a value for each datum.
    """

    def __init__(self, model: keras.Model, **kwargs: typing.Any) -> None:
        super().__init__(autocast=False, **kwargs)  # the model inside casts its inputs itself
        if not isinstance(model, (keras.Sequential, keras.Function)):
            raise ValueError(
                "model must be a keras.Sequential or a functional keras.Model, received "
                f"{model!r}; in a model written as a class call a StochasticBinary layer as "
                "layer(logits, f=f)."
            )
        self.model = model
        self._num_samples = 1
        if model.built:
            self.build(model.input_shape)

    def build(self, input_shape: typing.Any) -> None:
        if not self.model.built:
            self.model.build(input_shape)

    def call(self, inputs: typing.Any, training: bool | None = None) -> typing.Any:
        if not training:
            return self.model(inputs, training=training)
        path = _Path(self, inputs)
        if not path.graph.after:
            return path.outputs
        outputs = keras.tree.map_structure(_for_compute_loss, path.outputs)
        _leaf(outputs).arm_tf_path = path  # as Keras attaches masks
        return outputs

    def compute_loss(
        self,
        x: typing.Any = None,
        y: typing.Any = None,
        y_pred: typing.Any = None,
        sample_weight: typing.Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        path = getattr(_leaf(y_pred), "arm_tf_path", None)
        if not training or path is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        y_pred = keras.tree.map_structure(_with_mask, path.outputs, y_pred)
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        terms, estimates = path.surrogates(_DatumLoss(self, y, y_pred, sample_weight))
        loss += tf.add_n([tf.cast(term, loss.dtype) for term in terms])
        return gradient_after(loss, lambda: estimates)

    def make_train_function(self, force: bool = False) -> None:
        """Keras's own but where XLA compiles: `steps_per_execution` steps are one program there.

        As many calls of a program of one step, which Keras makes, copy all variables as often.
        """
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        steps = self.steps_per_execution
        is_plain = type(self).train_step is keras.Model.train_step
        is_alone = self.distribute_strategy.num_replicas_in_sync == 1
        if steps > 1 and self.jit_compile and not self.run_eagerly and is_plain and is_alone:
            self.train_function: typing.Any = _in_one_program(self, steps, self.train_function)

    def predict(
        self,
        x: typing.Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: list[keras.callbacks.Callback] | None = None,
        num_samples: int = 1,
    ) -> typing.Any:
        """As `keras.Model.predict`, with outputs averaged over samples of the stochastic layers.

        Args:
          num_samples: int, how many; the mean is of what the model puts out, be it probabilities or
            logits.

        Raises:
          ValueError: num_samples is not an integer of at least 1.
        """
        if not estimators.is_integer(num_samples) or num_samples < 1:
            raise ValueError(
                f"num_samples must be an integer of at least 1, received {num_samples!r}."
            )
        if num_samples != self._num_samples:
            self._num_samples = num_samples
            self.predict_function = None
        return super().predict(x, batch_size, verbose, steps, callbacks)

    def predict_step(self, data: typing.Any) -> typing.Any:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self(x, training=False)
        if self._num_samples == 1:
            return outputs

        def add(i, total):
            more = self(x, training=False)
            return i + 1, tf.nest.map_structure(tf.add, total, more)

        _, total = tf.while_loop(lambda i, _: i < self._num_samples, add, (1, outputs))
        return tf.nest.map_structure(lambda t: t / tf.cast(self._num_samples, t.dtype), total)

    def get_config(self) -> dict[str, typing.Any]:
        config = super().get_config()
        return {**config, "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(
        cls, config: dict[str, typing.Any], custom_objects: dict[str, typing.Any] | None = None
    ) -> "StochasticModel":
        model = keras.saving.deserialize_keras_object(config.pop("model"), custom_objects)
        return cls(model, **config)


def _in_one_program(
    model: keras.Model, steps: int, one_by_one: Callable[..., typing.Any]
) -> Callable[..., typing.Any]:
    """A train function that takes batches of one size as a loop of one compiled program.

    Args:
      model: `keras.Model`.
      steps: int, batches of a call.
      one_by_one: Keras's train function, which takes what is left.
    """

    @tf.function(jit_compile=True, autograph=False)
    def loop(batches):
        def body(i):
            model.train_step(tf.nest.map_structure(lambda array: array[i], batches))
            return (i + 1,)

        tf.while_loop(lambda i: i < steps, body, (0,))
        return model.get_metrics_result()

    def train_function(iterator):
        if not isinstance(iterator, tf.data.Iterator):
            return one_by_one(iterator)
        batches = list(itertools.islice(iterator, steps))
        if not batches:
            raise StopIteration
        leaves = [tf.nest.flatten(batch) for batch in batches]
        are_dense = all(isinstance(leaf, tf.Tensor) for batch in leaves for leaf in batch)
        if not are_dense or len(batches) < steps:
            return one_by_one(iter(batches))
        if len({tuple(tuple(leaf.shape) for leaf in batch) for batch in leaves}) > 1:
            return one_by_one(iter(batches))
        return loop(tf.nest.map_structure(lambda *arrays: tf.stack(arrays), *batches))

    return train_function


@dataclasses.dataclass(frozen=True)
class _Step:
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
        is_stochastic = isinstance(self.operation, StochasticBinary)
        return is_stochastic and "f" not in self.arguments.kwargs

    def __call__(self, value: Callable[[int], tf.Tensor]) -> list[tf.Tensor]:
        """The flat outputs, with value(slot) for every input."""
        values = {tensor: value(slot) for tensor, slot in self.reads.items()}
        args, kwargs = self.arguments.fill_in(values)
        if "training" in inspect.signature(self.operation.call).parameters:
            kwargs.setdefault("training", True if self.training is None else self.training)
        return keras.tree.flatten(self.operation(*args, **kwargs))


class _Graph:
    """A model as a list of steps, with the models inside it that hold stochastic layers unfolded.

    Attributes:
      inputs, outputs: slots.
      steps: list of `_Step`, each after those that it reads from.
      after: for the index of a sampling step, the indices of the steps that depend on it.
      has_batch: whether the value of each slot has a batch axis; a list.
    """

    def __init__(self, model: keras.Model) -> None:
        self.steps: list[_Step] = []
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
                    step = _Step(operation, node.arguments, reads, tuple(writes), within)
                    self.steps.append(step)
                slots |= {id(t): slot for t, slot in zip(node.outputs, writes, strict=True)}
        return [slots[id(tensor)] for tensor in model.outputs]


class _Path:
    """One training pass of a `StochasticModel`: all values, with one sample of each layer.

    Attributes:
      outputs: of the model, structured as its own.
    """

    def __init__(self, model: StochasticModel, inputs: typing.Any) -> None:
        self.graph = _Graph(model.model)
        symbols, outputs = model.model.inputs, model.model.outputs
        if isinstance(model.model, keras.Function):
            symbols, outputs = model.model.input, model.model.output
        flat = keras.Model(symbols, model.model.inputs)(inputs)  # checked and cast
        self.values = dict(zip(self.graph.inputs, keras.tree.flatten(flat), strict=True))
        for step in self.graph.steps:
            if step.is_sampling:
                (logits,) = (self.values[slot] for slot in step.reads.values())
                written = [_sample(step.operation, logits)]
                if step.operation.activity_regularizer:
                    loss = step.operation.activity_regularizer(written[0])
                    size = tf.cast(tf.shape(logits)[0], loss.dtype)
                    model.add_loss(tf.math.divide_no_nan(loss, size))
            else:
                written = step(self.values.get)
            self.values |= dict(zip(step.writes, written, strict=True))
        values = [self.values[slot] for slot in self.graph.outputs]
        outputs = keras.tree.pack_sequence_as(outputs, values)
        is_single = isinstance(outputs, (list, tuple)) and len(outputs) == 1
        self.outputs = outputs[0] if is_single else outputs

    def surrogates(self, datum_loss: "_DatumLoss") -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Zeros to add to the loss, whose gradients are those of the estimators.

        Returns:
          The zeros, and the estimates of the gradients in all logits; two lists.
        """
        terms, estimates = [], []
        for site in self.graph.after:
            terms_of_site, estimate = self._surrogates(site, datum_loss)
            terms += terms_of_site
            estimates.append(estimate)
        return terms, estimates

    def _surrogates(self, site: int, datum_loss: "_DatumLoss") -> tuple[list[tf.Tensor], tf.Tensor]:
        """Those of one sampling step: for the logits, and for what its estimator learns."""
        layer, (logits,) = self._sampling(site)
        estimator, units = _estimator(layer, logits), math.prod(logits.shape[1:])
        size = tf.shape(logits)[0]
        flat = tf.reshape(logits, [size, units])
        u = layer.noise(flat, estimator.row.rows(estimator.num_samples, units))
        width = estimator.row.width(estimator.num_samples, units)
        later = {}  # noise of later stochastic layers, the same whenever f is evaluated
        for j in self.graph.after[site]:
            if self.graph.steps[j].is_sampling:
                later_layer, (later_logits,) = self._sampling(j)
                later[j] = later_layer.noise(later_logits, width)

        def f(b, sample=bernoulli.sample):  # [S, batch, V] to [S, batch]
            samples = b.shape[0]
            merged = tf.reshape(b, tf.concat([[samples * size], tf.shape(logits)[1:]], axis=0))
            values, penalties = self._continue(site, merged, samples, later, sample)
            outputs = [values(slot) for slot in self.graph.outputs]
            loss = datum_loss(outputs, samples, penalties, u.dtype)
            return tf.ensure_shape(tf.reshape(loss, [samples, size]), b.shape[:-1])

        through = chain.connected if later else lambda f: f  # else f must have a derivative
        run = lambda f, logits, u: estimator.run(through(f), logits, u)
        estimate = at_any_precision(run, f, flat, u)
        learn = lambda: estimator.update(estimate.new_parameters)
        zeros = tf.zeros_like(estimate.value)
        surrogate = attach_gradient(zeros, flat, estimate.grad_logits, learn)
        divisor = tf.cast(datum_loss.divisor, u.dtype)
        terms = [tf.math.divide_no_nan(tf.reduce_sum(surrogate), divisor)]
        if estimator.trainable_variables:
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            terms.append(estimator.learning(estimate) / replicas)  # which Keras adds up
        return terms, estimate.grad_logits

    def _sampling(self, index: int) -> tuple[StochasticBinary, list[tf.Tensor]]:
        """The layer of a sampling step, and its logits on the path."""
        layer = self.graph.steps[index].operation
        logits = [self.values[slot] for slot in self.graph.steps[index].reads.values()]
        return layer, [tf.cast(phi, layer.compute_dtype) for phi in logits]

    def _continue(
        self,
        site: int,
        b: tf.Tensor,
        samples: int,
        later: dict[int, tf.Tensor],
        sample: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    ) -> tuple[Callable[[int], tf.Tensor], list[tf.Tensor]]:
        """The steps after one that samples, for other samples of it.

        Args:
          site: index of the step.
          b: float [samples * batch, ...].
          samples: int.
          later: noise [width, batch, ...] of the sampling steps among them, by index.
          sample: function of (logits, u).

        Returns:
          Function of a slot that gives its value, and activity penalties [samples * batch].
        """
        steps = self.graph.steps
        changed: dict[int, tf.Tensor] = {}
        penalties: list[tf.Tensor] = []

        def value(slot):
            if slot not in changed and not self.graph.has_batch[slot]:
                return self.values[slot]
            return changed[slot] if slot in changed else _repeat(self.values[slot], samples)

        def write(step, outputs):
            changed.update(zip(step.writes, outputs, strict=True))
            regularizer = getattr(step.operation, "activity_regularizer", None)
            if regularizer:
                each = lambda output: regularizer(output[tf.newaxis])
                penalties.extend(tf.vectorized_map(each, output) for output in outputs)

        write(steps[site], [_with_mask(b, value(next(iter(steps[site].reads.values()))))])
        for j in self.graph.after[site]:
            if j in later:
                layer = steps[j].operation
                (logits,) = (value(slot) for slot in steps[j].reads.values())
                (u,) = chain.cycle([later[j]], samples)
                u = tf.broadcast_to(u, tf.concat([[samples], tf.shape(u)[1:]], axis=0))
                units = math.prod(logits.shape[1:])
                each = lambda x, units=units: tf.reshape(x, [samples, -1, units])
                own = tf.cast(tf.cast(logits, layer.compute_dtype), u.dtype)
                b_j = sample(each(own), each(u))
                b_j = tf.reshape(tf.cast(b_j, layer.compute_dtype), tf.shape(logits))
                write(steps[j], [_with_mask(b_j, logits)])
            else:
                write(steps[j], steps[j](value))
                _refuse_other_losses(steps[j])
        return value, penalties


class _DatumLoss:
    """What each datum adds to a model's loss, as a function of other outputs than the path's.

    Keras adds up the values of a loss and divides by a number that depends on the reduction, on
    masks and on weights, but not on the values; on the path it is found from values of one.

    Attributes:
      size: int, the data.
      divisor: float, the data over all replicas; what is returned are averages' addends times it.
    """

    def __init__(
        self, model: StochasticModel, y: typing.Any, y_pred: typing.Any, sample_weight: typing.Any
    ) -> None:
        compiled = model._compile_loss
        self.sample_weight = sample_weight
        self.size = tf.shape(_leaf(y_pred))[0]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self.divisor = tf.cast(self.size * replicas, keras.config.floatx())
        self.losses = []
        if compiled is None:
            return
        self.structure = compiled._y_pred_build_structure
        names = getattr(model, "output_names", None)
        if isinstance(y, dict) and not isinstance(y_pred, dict) and names:
            y = [y[name] for name in names]
        self.y = self._structured(keras.tree.flatten(y))
        y_pred = self._structured(keras.tree.flatten(y_pred))
        for path, loss, weight, _ in compiled._flat_losses:
            y_t, y_p = _at(path, self.y), _at(path, y_pred)
            values = _values(loss, y_t, y_p)
            if not values.shape.rank:
                raise ValueError(
                    f"The loss {loss.name!r} has one value for the batch; a StochasticModel needs "
                    "a value for each datum, shape [batch, ...]: leave out the mean over the batch."
                )
            weights = self._weights(path) if loss.reduction == "mean_with_sample_weight" else None
            ones = tf.ones_like(values)
            total = _Fixed(ones, loss.dtype, loss.reduction)(y_t, y_p, weights)
            added = _Fixed(ones, loss.dtype, None)(y_t, y_p, weights)
            scale = tf.math.divide_no_nan(tf.reduce_sum(total), tf.reduce_sum(added))
            scale *= tf.cast(self.divisor, scale.dtype)
            self.losses.append((path, loss, scale if weight is None else scale * weight))

    def _structured(self, flat: list[tf.Tensor]) -> typing.Any:
        """Flat targets or outputs in the structure that the paths of the losses lead through."""
        nested = keras.tree.is_nested(self.structure)
        return keras.tree.pack_sequence_as(self.structure, flat) if nested else flat[0]

    def _weights(self, path: tuple) -> typing.Any:
        nested = keras.tree.is_nested(self.sample_weight)
        return _at(path, self.sample_weight) if nested else self.sample_weight

    def __call__(
        self, outputs: list[tf.Tensor], samples: int, penalties: list[tf.Tensor], dtype: tf.DType
    ) -> tf.Tensor:
        """Addends of the data times the divisor, `dtype` [samples * batch].

        Args:
          outputs: of the model, flat, [samples * batch, ...].
          samples: int.
          penalties: of activities, [samples * batch] each.
          dtype: float.
        """
        addends = [tf.zeros([samples * self.size], dtype)]
        addends += [tf.cast(penalty, dtype) for penalty in penalties]
        y_pred = self._structured(outputs) if self.losses else None
        for path, loss, scale in self.losses:
            y_t, y_p = _repeat(_at(path, self.y), samples), _at(path, y_pred)
            weights = self._weights(path)
            weights = None if weights is None else _repeat(weights, samples)
            values = _Fixed(_values(loss, y_t, y_p), loss.dtype, None)(y_t, y_p, weights)
            values = tf.reduce_sum(tf.reshape(values, [tf.shape(values)[0], -1]), axis=1)
            addends.append(tf.cast(scale * values, dtype))
        return tf.add_n(addends)


class _Fixed(keras.losses.Loss):
    """A loss of given values, for Keras to mask, weigh and reduce."""

    def __init__(self, values: tf.Tensor, dtype: str, reduction: str | None) -> None:
        super().__init__(name="values", reduction=reduction, dtype=dtype)
        self.values = values

    def call(self, y_true: typing.Any, y_pred: typing.Any) -> tf.Tensor:
        return self.values


def _values(loss: keras.losses.Loss, y_true: typing.Any, y_pred: typing.Any) -> tf.Tensor:
    convert = lambda x: tf.cast(x, loss.dtype)
    return loss.call(*keras.tree.map_structure(convert, (y_true, y_pred)))


def _sample(layer: StochasticBinary, logits: tf.Tensor) -> tf.Tensor:
    """One sample of a stochastic layer, whose gradient in the logits is zero."""
    layer.check_dtype(logits)
    cast = tf.cast(logits, layer.compute_dtype)
    u = layer.noise(cast, 1)[0]
    b = tf.cast(bernoulli.sample(tf.cast(cast, u.dtype), u), cast.dtype)
    return _with_mask(tf.where(tf.math.is_nan(cast), cast, b), logits)


@tf.custom_gradient
def _refuse_gradient(output: tf.Tensor) -> tf.Tensor:
    reason = (
        "The outputs of a StochasticModel have gradients only in the loss that its own "
        "compute_loss makes of them. Compile and fit the StochasticModel itself, with all other "
        "layers inside of it and all losses compiled; in a loop of your own take "
        "loss = model.compute_loss(x, y, model(x, training=True))."
    )
    return tf.identity(output), lambda upstream: no_gradient(output, reason)


def _for_compute_loss(output: tf.Tensor) -> tf.Tensor:
    """An output whose gradient is refused to others, since it would lack those of estimators."""
    return _with_mask(_refuse_gradient(output), output)


def _estimator(layer: StochasticBinary, logits: tf.Tensor) -> GradientEstimator:
    """The layer's estimator, once it is known to suit.

    Raises:
      ValueError: it has another objective, or what it learns has another size than the units.
    """
    estimator, units = layer.gradient_estimator, math.prod(logits.shape[1:])
    if estimator.row.objective != "elbo":
        raise ValueError(
            f"{layer.estimator!r} of the layer {layer.name!r} estimates the gradient of another "
            "objective than an expected loss; take one of an expected loss, such as 'arm'."
        )
    estimators.check(layer.estimator, layer.num_samples, units)
    shapes = {name: np.shape(v) for name, v in estimator.row.initial_parameters(units).items()}
    if any(tuple(estimator.parameters[name].shape) != shape for name, shape in shapes.items()):
        raise ValueError(
            f"What {layer.estimator!r} learns needs logits [batch, units], received "
            f"{logits.shape} in the layer {layer.name!r}; put a Flatten before it."
        )
    return estimator


def _refuse_other_losses(step: _Step) -> None:
    """Raises ValueError where a layer has added a loss that cannot be shared among the data."""
    layer = step.operation
    if not isinstance(layer, keras.layers.Layer):
        return
    known = sum(variable.regularizer is not None for variable in layer.trainable_variables)
    known += len(step.writes) if layer.activity_regularizer else 0
    if len(layer.losses) > known:
        raise ValueError(
            f"The layer {layer.name!r}, which depends on stochastic units, adds a loss of its "
            "own, which has no value for each datum; make it a compiled loss of an output."
        )


def _holds_stochastic_layers(operation: keras.Operation) -> bool:
    if isinstance(operation, StochasticBinary) or not isinstance(operation, keras.layers.Layer):
        return False
    parts = operation._flatten_layers(include_self=False)
    return any(isinstance(part, StochasticBinary) for part in parts)


def _leaf(structure: typing.Any) -> typing.Any:
    return keras.tree.flatten(structure)[0]


def _at(path: tuple, structure: typing.Any) -> typing.Any:
    for key in path:
        structure = structure[key]
    return structure


def _with_mask(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """`x`, with Keras's mask of another tensor, if that has one."""
    mask = getattr(like, "_keras_mask", None)
    if mask is not None:
        x = tf.identity(x)
        x._keras_mask = mask
    return x


def _repeat(x: tf.Tensor, times: int) -> tf.Tensor:
    """`x` [batch, ...] and its mask so many times along the batch, [times * batch, ...]."""
    x = tf.convert_to_tensor(x)
    tiled = tf.tile(x, [times] + [1] * (x.shape.rank - 1))
    mask = getattr(x, "_keras_mask", None)
    if mask is not None:
        tiled._keras_mask = _repeat(mask, times)
    return tiled

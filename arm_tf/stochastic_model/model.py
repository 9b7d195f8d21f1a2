"""The Keras model, whose loss gets the gradients of its stochastic layers' estimators.

The loss as a function of one layer's samples is the rest of the network and the compiled loss, so
that every gradient estimator applies as it stands.
"""

import contextlib
import contextvars
import types
import typing
import warnings
from collections.abc import Iterator

import keras
import tensorflow as tf

from arm_tf import estimators
from arm_tf.expectation import gradient_after
from arm_tf.layers import likeliest_bits, no_gradient
from arm_tf.stochastic_model.batch_loss import BatchLoss
from arm_tf.stochastic_model.graph import Graph
from arm_tf.stochastic_model.path import Path
from arm_tf.stochastic_model.program import in_one_program
from arm_tf.stochastic_model.surrogates import surrogates
from arm_tf.stochastic_model.tensors import leaf, with_mask
from arm_tf.stochastic_model.ways import find

# How many samples a prediction averages, and whether its bits are the likeliest.
_inference = contextvars.ContextVar[tuple[int, bool | None]]("arm_tf_inference", default=(1, None))


@keras.saving.register_keras_serializable(package="arm_tf")
class StochasticModel(keras.Model):
    """A Sequential or functional model whose `StochasticBinary` layers their estimators train.

    `compile`, `fit`, `evaluate`, `predict`, saving and callbacks are Keras's own. In training the
    model takes one path: every stochastic layer t samples b_t from its logits, and the loss L of
    that path is what is reported and what reaches the weights that follow on samples, by plain
    backpropagation with all b_t held fixed. To it come the gradients of all logits. For datum n of
    a batch of N the estimator of layer t (Yin & Zhou 2019, proposition 2) is given

      f_n(b_tn) = N [L(b_tn, the other data as on the path) - L(path)],

    where each of its samples b_tn continues, independently, through what comes after layer t, with
    the other inputs of that, parallel stochastic layers included, as they are on the path. So the
    gradient of every weight is an unbiased estimate of that of E[L] if the estimators are unbiased,
    for every loss L of the batch. It is the gradient of `compute_loss`; any other gradient through
    the outputs of a training pass raises a ValueError, and so does a second derivative.

    What f costs depends on what looks at more than one datum, which is found out by trying on a
    small made-up batch before the first step:

    - Nothing: L is a sum over the data, as almost all losses of Keras are. The S samples of a layer
      pass through the rest of the network as one batch of S N rows.
    - The loss alone, as a pairwise or contrastive one, a mean over the batch inside of a square, or
      one that returns a single number: it is evaluated S N times.
    - A layer after the samples, as BatchNormalization, one that folds time into the batch, or one
      with a loss of its own: that layer and all that follows run S N times.

    The last two warn, once a model. Layers that keep a state, as a stateful RNN, move it once a
    batch. Dropout draws masks anew for each batch, and the estimate is of the expectation over
    them, too.

    Args:
      model: `keras.Sequential` or a functional `keras.Model`; models of these kinds inside it may
        hold stochastic layers, too. All units [batch, ..., V] of a datum are one vector.
      per_datum: bool, what the user knows of the loss. True refuses to train where the loss is not
        a sum over the data; False says that it need not be, and silences the warning.
      deterministic: bool, whether bits in inference are the likeliest, 1[logits > 0], in place of
        samples; None leaves it to each layer.
      **kwargs: arguments of `keras.Model`.

    Raises:
      ValueError: another kind of model; once it is called, a stochastic layer inside a layer that
        cannot be taken apart, an estimator of another objective than E[f], or a loss that is not a
        sum over the data where per_datum=True.
    """

    def __init__(
        self,
        model: keras.Model,
        *more: typing.Any,
        per_datum: bool | None = None,
        deterministic: bool | None = None,
        **kwargs: typing.Any,
    ) -> None:
        # Not for Keras to track: functions by kind and `_inference`, and ways by kinds of batches.
        self._kept = types.SimpleNamespace(functions={}, ways={})
        if not isinstance(model, (keras.Sequential, keras.Function)) or more:
            received = ", ".join(map(repr, [model, *more]))
            raise ValueError(
                "model must be one keras.Sequential or functional keras.Model, as in "
                f"StochasticModel(keras.Model(inputs, outputs)), received {received}; in a model "
                "written as a class call a StochasticBinary layer as layer(logits, f=f)."
            )
        super().__init__(autocast=False, **kwargs)  # the model inside casts its inputs itself
        self.model = model
        self.per_datum, self.deterministic = per_datum, deterministic
        if model.built:
            self.build(model.input_shape)

    def build(self, input_shape: typing.Any) -> None:
        if not self.model.built:
            self.model.build(input_shape)

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: typing.Any, training: bool | None = None) -> typing.Any:
        if not training:
            return self._infer(inputs, training)
        path = Path(self.model, inputs, self.add_loss, lambda layer, x: layer.noise(x, 1)[0])
        if not path.graph.after:
            return path.outputs
        outputs = keras.tree.map_structure(_for_compute_loss, path.outputs)
        leaf(outputs).arm_tf_path = path  # as Keras attaches masks
        return outputs

    def _infer(self, inputs: typing.Any, training: bool | None) -> typing.Any:
        """Outputs in inference, averaged over samples as `_inference` says."""
        num_samples, deterministic = _inference.get()
        with likeliest_bits(self.deterministic if deterministic is None else deterministic):
            outputs = self.model(inputs, training=training)
            if num_samples == 1:
                return outputs

            def add(i, total):
                more = self.model(inputs, training=training)
                return i + 1, tf.nest.map_structure(tf.add, total, more)

            _, total = tf.while_loop(lambda i, _: i < num_samples, add, (1, outputs))
        return tf.nest.map_structure(lambda t: t / tf.cast(num_samples, t.dtype), total)

    @tf.autograph.experimental.do_not_convert
    def compute_loss(
        self,
        x: typing.Any = None,
        y: typing.Any = None,
        y_pred: typing.Any = None,
        sample_weight: typing.Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        path = getattr(leaf(y_pred), "arm_tf_path", None)
        if not training or path is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        y_pred = keras.tree.map_structure(with_mask, path.outputs, y_pred)
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        ways = self._ways_of(path.inputs, y, sample_weight)
        terms, estimates = surrogates(path, BatchLoss(self, y, sample_weight), ways)
        total = tf.add_n([tf.cast(term, loss.dtype) for term in terms])
        size = tf.cast(tf.size(loss), loss.dtype)  # of a loss without reduction Keras takes the sum
        return gradient_after(loss + tf.math.divide_no_nan(total, size), lambda: estimates)

    def _ways_of(self, x: typing.Any, y: typing.Any, weight: typing.Any) -> dict[int, str]:
        """How f is evaluated for each stochastic layer (see `Rest`), found once for each kind."""
        kind = lambda t: None if t is None else (t.dtype, tuple(t.shape[1:]))
        batch = keras.tree.flatten([x, y, weight])
        layers = self._flatten_layers()
        key = (self._compile_loss, *map(kind, batch), *(layer.trainable for layer in layers))
        if key not in self._kept.ways:
            found = find(self.model, self, x, y, weight)
            if any(way != "datum" for way in found.values()):
                self._say_what_it_costs(found)
            self._kept.ways[key] = found
        return self._kept.ways[key]

    def _say_what_it_costs(self, ways: dict[int, str]) -> None:
        layers = {way: [] for way in ("output", "batch")}  # type: dict[str, list[str]]
        steps = Graph(self.model).steps
        for site, way in ways.items():
            if way != "datum":
                layers[way].append(repr(steps[site].operation.name))
        what = []
        if layers["output"]:
            what.append("the loss, which is no sum over the data (or has one value for the batch),")
        if layers["batch"]:
            what.append(f"what comes after {', '.join(layers['batch'])}, which mixes the data,")
        message = f"For each sample of each datum {' and '.join(what)} is evaluated for the batch"
        if self.per_datum:
            raise ValueError(
                f"{message}, and per_datum=True refuses that: return a value for each datum from "
                "the loss, put layers that see the batch before the units, or leave per_datum out."
            )
        if self.per_datum is None:
            warnings.warn(
                f"{message}: right, but slower with every datum. per_datum=False says that this is "
                "meant; where it is not, return a value for each datum from the loss.",
                stacklevel=2,
            )

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
            self.train_function: typing.Any = in_one_program(self, steps, self.train_function)

    def predict(
        self,
        x: typing.Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: list[keras.callbacks.Callback] | None = None,
        *,
        num_samples: int = 1,
        deterministic: bool | None = None,
    ) -> typing.Any:
        """As `keras.Model.predict`, with outputs averaged over samples of the stochastic layers.

        Args:
          num_samples: int, how many; the mean is of what the model puts out, be it probabilities or
            logits.
          deterministic: bool, whether bits are the likeliest in place of samples; None for the
            model's own choice.

        Raises:
          ValueError: num_samples is not an integer of at least 1.
        """
        with _inferring(num_samples, deterministic):
            return super().predict(x, batch_size, verbose, steps, callbacks)

    def evaluate(
        self,
        *args: typing.Any,
        num_samples: int = 1,
        deterministic: bool | None = None,
        **kwargs: typing.Any,
    ) -> typing.Any:
        """As `keras.Model.evaluate`, for outputs as `predict` gives them with these arguments."""
        with _inferring(num_samples, deterministic):
            return super().evaluate(*args, **kwargs)

    # Keras keeps one compiled function of each of these; here there is one for each way to infer,
    # so that neither another number of samples nor another thread takes its place.
    predict_function = property(
        lambda self: self._kept.functions.get(("predict", _inference.get())),
        lambda self, value: self._keep_function("predict", value),
    )
    test_function = property(
        lambda self: self._kept.functions.get(("test", _inference.get())),
        lambda self, value: self._keep_function("test", value),
    )

    def _keep_function(self, kind: str, function: typing.Any) -> None:
        if function is None:
            for key in [key for key in self._kept.functions if key[0] == kind]:
                del self._kept.functions[key]
        else:
            self._kept.functions[kind, _inference.get()] = function

    # What Keras says of a functional model is that of the model inside.
    inputs = property(lambda self: self.model.inputs)
    outputs = property(lambda self: self.model.outputs)
    input_shape = property(lambda self: self.model.input_shape)
    output_shape = property(lambda self: self.model.output_shape)
    input_names = property(lambda self: getattr(self.model, "input_names", None))
    output_names = property(lambda self: getattr(self.model, "output_names", None))

    def get_layer(self, name: str | None = None, index: int | None = None) -> keras.layers.Layer:
        return self.model.get_layer(name, index)

    def summary(self, *args: typing.Any, **kwargs: typing.Any) -> None:
        self.model.summary(*args, **kwargs)

    def get_config(self) -> dict[str, typing.Any]:
        config = super().get_config()
        return {
            **config,
            "model": keras.saving.serialize_keras_object(self.model),
            "per_datum": self.per_datum,
            "deterministic": self.deterministic,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, typing.Any], custom_objects: dict[str, typing.Any] | None = None
    ) -> "StochasticModel":
        model = keras.saving.deserialize_keras_object(config.pop("model"), custom_objects)
        return cls(model, **config)


@contextlib.contextmanager
def _inferring(num_samples: int, deterministic: bool | None) -> Iterator[None]:
    """Lets models infer so, in this thread."""
    if not estimators.is_integer(num_samples) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1, received {num_samples!r}.")
    token = _inference.set((int(num_samples), deterministic))
    try:
        yield
    finally:
        _inference.reset(token)


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
    return with_mask(_refuse_gradient(output), output)

"""The Keras model, whose loss gets the gradients of its stochastic layers' estimators.

The loss as a function of one layer's samples is the rest of the network and the compiled loss, so
that every gradient estimator applies as it stands.
"""

import typing

import keras
import tensorflow as tf

from arm_tf import estimators
from arm_tf.expectation import gradient_after
from arm_tf.layers import no_gradient
from arm_tf.stochastic_model.datum_loss import DatumLoss
from arm_tf.stochastic_model.path import Path
from arm_tf.stochastic_model.program import in_one_program
from arm_tf.stochastic_model.tensors import leaf, with_mask


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
        path = Path(self.model, inputs, self.add_loss)
        if not path.graph.after:
            return path.outputs
        outputs = keras.tree.map_structure(_for_compute_loss, path.outputs)
        leaf(outputs).arm_tf_path = path  # as Keras attaches masks
        return outputs

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
        terms, estimates = path.surrogates(DatumLoss(self, y, y_pred, sample_weight))
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
            self.train_function: typing.Any = in_one_program(self, steps, self.train_function)

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

"""The loss as a function of one layer's samples, in three ways that differ in cost."""

import typing
from collections.abc import Callable

import keras
import tensorflow as tf

from arm_tf import bernoulli
from arm_tf.stochastic_model.batch_loss import BatchLoss
from arm_tf.stochastic_model.path import Path, penalty
from arm_tf.stochastic_model.tensors import block, over, put

_UNROLLED = 4  # as many samples are taken one by one, which is quick to trace


class Rest:
    """f_n(b_n) = N [L(b_n, the other data as on the path) - L(path)], for data n = 1 … N.

    L is the loss of the whole batch, and b_n the units of one row of the layer's logits. Given the
    other data, whose samples are independent of b_n, the gradient of E[f_n(b_n) / N] in the logits
    of n is that of E[L], whatever L is. Each way gives f for all n, at S samples of each:

    - "batch" is the definition: S N passes of the batch through the steps after the layer.
    - "output" is it if these steps treat the rows of a batch one by one. All samples pass
      through them as one batch of S N rows; the loss alone is evaluated S N times.
    - "datum" is it, but for a constant, if the loss is a sum over the data, too: each of the S
      batches has an addend for each datum.

    Args:
      path: `Path`.
      site: index of the step that samples.
      loss: `BatchLoss`.

    Attributes:
      size: int, the rows N.
      divisor: float, the rows over all replicas, by which averages of f make the loss.
    """

    def __init__(self, path: Path, site: int, loss: BatchLoss) -> None:
        self.path, self.site, self.loss = path, site, loss
        self.layer, self.logits = path.sampling(site)
        self.size = tf.shape(self.logits)[0]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self.divisor = tf.cast(self.size * replicas, path.noise[site].dtype)

    def __call__(
        self,
        way: str,
        b: tf.Tensor,
        noise: dict[int, tf.Tensor],
        sample: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = bernoulli.sample,
    ) -> tf.Tensor:
        """f by one of the ways.

        Args:
          way: "datum", "output" or "batch".
          b: float [S, N, V].
          noise: uniform [width, N, ...] of later stochastic layers, by the index of their steps.
          sample: function of (logits, u) for these layers.

        Returns:
          float [S, N].
        """
        samples = b.shape[0]
        merged = tf.reshape(b, tf.concat([[samples * self.size], tf.shape(self.logits)[1:]], 0))
        merged = tf.cast(merged, self.layer.compute_dtype)
        values = getattr(self, f"_by_{way}")(merged, samples, noise, sample)
        return self.divisor * tf.cast(tf.reshape(values, [samples, self.size]), self.divisor.dtype)

    def _by_datum(
        self, b: tf.Tensor, samples: int, noise: dict[int, tf.Tensor], sample: Callable
    ) -> tf.Tensor:
        outputs, penalties = self._outputs(b, samples, noise, sample)

        def each(s):
            rows = [block(output, s, samples) for output in outputs]
            with self.path.scope():
                addends = self.loss.addends(self.path.structured(rows))
            return tf.add_n([self._by_row(addend) for addend in [self._zeros(), *addends]])

        if samples <= _UNROLLED:
            return tf.stack([each(s) for s in range(samples)]) + penalties
        return over(each, tf.range(samples), self.divisor.dtype) + penalties

    def _by_output(
        self, b: tf.Tensor, samples: int, noise: dict[int, tf.Tensor], sample: Callable
    ) -> tf.Tensor:
        outputs, penalties = self._outputs(b, samples, noise, sample)
        path = [self.path.values[slot] for slot in self.path.graph.outputs]

        def total(outputs):
            with self.path.scope():
                loss = self.loss.total(self.path.structured(outputs))
            return tf.cast(loss, self.divisor.dtype)

        def each(i):
            pairs = zip(path, outputs, strict=True)
            return total([put(on_path, i % self.size, new, i) for on_path, new in pairs])

        totals = over(each, tf.range(samples * self.size), self.divisor.dtype) - total(path)
        return tf.reshape(totals, [samples, self.size]) + penalties

    def _by_batch(
        self, b: tf.Tensor, samples: int, noise: dict[int, tf.Tensor], sample: Callable
    ) -> tf.Tensor:
        on_path = self.path.values[self.path.graph.steps[self.site].writes[0]]
        base = self.of_batches([on_path])[0]

        def each(n):  # all samples of one row, which an estimator's `sample` may relate
            rows = [put(on_path, n, b, s * self.size + n) for s in range(samples)]
            return tf.stack(self.of_batches(rows, sample)) - base

        def one(i):
            return self.of_batches([put(on_path, i % self.size, b, i)])[0] - base

        dtype = self.divisor.dtype
        if sample is bernoulli.sample:
            return tf.map_fn(one, tf.range(samples * self.size), fn_output_signature=dtype)
        return tf.transpose(tf.map_fn(each, tf.range(self.size), fn_output_signature=dtype))

    def of_batches(
        self, batches: list[tf.Tensor], sample: Callable = bernoulli.sample
    ) -> list[tf.Tensor]:
        """The whole loss for batches of other samples b [N, ...] than the path's, a number each.

        Later layers sample with the noise of the path, as they do for the other data.
        """
        noise = {j: u[tf.newaxis] for j, u in self.path.noise.items()}
        totals = []
        for passed in self.path.rest(self.site, batches, 1, noise, sample):
            own = [(step, b) for step, b in passed.regularised if step.is_sampling]
            losses = [*passed.losses, *(penalty(step.operation, b) for step, b in own)]
            with self.path.scope():
                total = self.loss.total(self.path.structured(passed.outputs), losses)
            totals.append(tf.cast(total, self.divisor.dtype))
        return totals

    def _outputs(
        self, b: tf.Tensor, samples: int, noise: dict[int, tf.Tensor], sample: Callable
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Outputs [S N, ...] of one pass of all samples, and penalties [S, N]."""
        (passed,) = self.path.rest(self.site, [b], samples, noise, sample)
        total = tf.zeros([samples, self.size], self.divisor.dtype)
        for step, output in passed.regularised:
            each = lambda row, layer=step.operation: tf.cast(
                penalty(layer, row[tf.newaxis]), self.divisor.dtype
            )
            penalties = over(each, output, self.divisor.dtype)
            total += tf.reshape(penalties, [samples, self.size]) / tf.cast(self.size, total.dtype)
        return passed.outputs, total

    def _zeros(self) -> tf.Tensor:
        return tf.zeros([self.size], keras.config.floatx())

    def _by_row(self, addend: tf.Tensor) -> typing.Any:
        summed = tf.reduce_sum(tf.reshape(addend, [self.size, -1]), axis=1)
        return tf.cast(summed, self.divisor.dtype)

"""Bounds on -log p over a set of images, in pieces of bounded memory."""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from arm_tf import noise
from arm_tf.models.network import BinaryNetwork
from arm_tf.training import workers

_IMAGES = 250  # in one piece
_SAMPLES = 25  # in one piece


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Averages over images, in nats.

    Attributes:
      nll: the bound on -log p, which `Config.likelihood` names, -log (1/S) sum_s w_s.
      nll_stderr: standard error of `nll` over the images.
      neg_elbo: the negative ELBO, -(1/S) sum_s log w_s.
      images: how many there are.
    """

    nll: float
    nll_stderr: float
    neg_elbo: float
    images: int


class Evaluator:
    """Multi-sample bounds of a model with fixed noise, so that evaluations can be compared.

    Args:
      model: has `num_layers`, `units` and `log_weights(x, u)`.
      images: uint8 [N, pixels], zeros and ones.
      num_samples: int S >= 1.
      key: uint64 [1] from `noise.key`.
      jit: whether to compile with XLA.
    """

    def __init__(
        self,
        model: BinaryNetwork,
        images: np.ndarray,
        num_samples: int,
        key: tf.Tensor,
        jit: bool = True,
    ) -> None:
        self.model, self.images, self.num_samples, self.key = model, images, num_samples, key
        self.samples = min(num_samples, _SAMPLES)
        self.rows = min(len(images), _IMAGES)
        self.threads = workers.threads()
        self.piece = tf.function(self._piece, jit_compile=jit, autograph=False)

    def _piece(self, x: tf.Tensor, u: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """log sum_s w_s and sum_s log w_s over the first `count` samples; float [images] each."""
        x = tf.cast(x, tf.float32)
        log_w = tf.map_fn(  # one sample at a time stays in the processor's cache
            lambda u_s: self.model.log_weights(x, u_s[:, tf.newaxis])[0],
            u,
            fn_output_signature=tf.float32,
        )
        used = (tf.range(self.samples) < count)[:, tf.newaxis]
        log_sum = tf.reduce_logsumexp(tf.where(used, log_w, -math.inf), axis=0)
        return log_sum, tf.reduce_sum(tf.where(used, log_w, 0.0), axis=0)

    def __call__(self, progress: Callable[[float], object] = lambda fraction: None) -> Bounds:
        """The bounds at the model's present weights.

        Pieces run on all cores at once and are put together in order, so that the result is the
        same on every call.

        Args:
          progress: called with the fraction done after each piece; may raise to stop.

        Returns:
          `Bounds`.
        """
        pieces = -(-self.num_samples // self.samples)
        starts = range(0, len(self.images), self.rows)
        shape = [1, self.samples, self.model.num_layers, self.rows, self.model.units]

        def run(job):
            i, j = divmod(job, pieces)
            x = self.images[starts[i] : starts[i] + self.rows]
            missing = self.rows - len(x)
            if missing:
                x = np.pad(x, [(0, missing), (0, 0)])
            u = noise.uniforms(self.key, job, shape)[0]
            count = min(self.samples, self.num_samples - j * self.samples)
            log_sum, log_w = self.piece(x, u, tf.constant(count))
            return [values.numpy()[: self.rows - missing] for values in (log_sum, log_w)]

        log_sums, log_ws = [], []
        jobs = range(len(starts) * pieces)
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            try:
                for job, (log_sum, log_w) in enumerate(pool.map(run, jobs)):
                    log_sums.append(log_sum.astype(np.float64))
                    log_ws.append(log_w.astype(np.float64))
                    progress((job + 1) / len(jobs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

        def each_image(values, reduce):
            parts = range(0, len(jobs), pieces)
            return np.concatenate([reduce(values[i : i + pieces], axis=0) for i in parts])

        nll = math.log(self.num_samples) - each_image(log_sums, np.logaddexp.reduce)
        neg_elbo = -each_image(log_ws, np.sum) / self.num_samples
        return Bounds(
            nll=float(nll.mean()),
            nll_stderr=float(nll.std(ddof=1) / math.sqrt(len(nll))) if len(nll) > 1 else math.nan,
            neg_elbo=float(neg_elbo.mean()),
            images=len(nll),
        )

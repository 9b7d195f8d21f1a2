"""One training over several devices or hosts: what `tf.distribute` is asked to do for it.

Every replica holds all variables and takes an equal share of each batch. Noise and order are those
of the whole batch, of which a replica uses the part that is its share's, so that any number of
replicas computes the same gradient up to rounding.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import tensorflow as tf

from arm_tf.errors import RunError
from arm_tf.training.workers import Cluster

_OF_OTHERS = (  # errors that TensorFlow has for what happens to other workers
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)
_SUM, _MEAN = tf.distribute.ReduceOp.SUM, tf.distribute.ReduceOp.MEAN


@functools.cache
def strategy(name: str) -> tf.distribute.Strategy:
    """The process's `tf.distribute.Strategy` for a choice of `Config.distribute`.

    "multi_worker" has to come before any other use of TensorFlow, and waits for all workers.
    """
    if name == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def share(array: tf.Tensor, axis: int) -> tf.Tensor:
    """A replica's part of an array of the whole batch, equal parts along an axis."""
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return array
    size = array.shape[axis] // replicas
    return tf.gather(array, context.replica_id_in_sync_group * size + tf.range(size), axis=axis)


def mean(tensors: tf.Tensor | list[tf.Tensor]) -> tf.Tensor | list[tf.Tensor]:
    """The mean over replicas of tensors that each of them has."""
    context = tf.distribute.get_replica_context()
    return tensors if context.num_replicas_in_sync == 1 else context.all_reduce(_MEAN, tensors)


def addends(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Tensors that add up over the replicas, as Keras optimisers do it, to those that all have."""
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    return tensors if replicas == 1 else [tensor / replicas for tensor in tensors]


def from_chief(
    strategy: tf.distribute.Strategy, values: Sequence[tf.Tensor | tf.Variable]
) -> list[tf.Tensor]:
    """The values that tensors or variables have on the first worker; a list."""

    def broadcast(*values):
        context = tf.distribute.get_replica_context()
        is_first = tf.equal(context.replica_id_in_sync_group, 0)
        kept = [tf.where(is_first, value, tf.zeros_like(value)) for value in values]
        return [context.all_reduce(_SUM, value) for value in kept]

    everywhere = tf.function(strategy.run)(broadcast, [tf.convert_to_tensor(v) for v in values])
    return [strategy.experimental_local_results(value)[0] for value in everywhere]


def any_worker(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether a Python bool is true on any of the workers."""
    flags = strategy.run(
        lambda: tf.distribute.get_replica_context().all_reduce(_SUM, tf.constant(float(flag)))
    )
    return float(strategy.experimental_local_results(flags)[0]) > 0


@contextlib.contextmanager
def working_together(cluster: Cluster) -> Iterator[None]:
    """A context in which it is a `RunError` if another worker of the cluster is lost."""
    try:
        yield
    except _OF_OTHERS as error:
        if not cluster.addresses:
            raise
        raise RunError(
            f"Lost {cluster.lost(error)}; the same commands on all workers go on from the last "
            "checkpoint."
        ) from error

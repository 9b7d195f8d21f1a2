"""Small runs for tests: their data, their settings, and whether two of them are the same."""

import contextlib
import signal

import numpy as np
import tensorflow as tf

from arm_tf import data
from arm_tf.training import run_folder, session
from arm_tf.training.config import Config

TIMES = {"seconds", "training_seconds", "steps_per_second"}


def small_dataset():
    """Small, learnable: noisy copies of four patterns."""
    rng = np.random.default_rng(0)
    patterns = rng.random((4, 784)) < 0.2
    images = [
        (patterns[rng.integers(4, size=n)] ^ (rng.random((n, 784)) < 0.02)).astype(np.uint8)
        for n in (230, 50, 60)
    ]
    return data.Dataset("glyphs", *images, dynamic=False, published=True, checksum="c")


def mirrored(count):
    """A strategy over the first so many of the tests' devices.

    It has no collective operations, which TensorFlow would mix up with those of another strategy
    in the same process, and which need tracing.
    """
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(count)], tf.distribute.ReductionToOneDevice()
    )


def configure(logdir, **settings):
    values = dict(
        units=8,
        epochs=3,
        batch_size=20,
        learning_rate=1e-3,
        eval_samples=7,
        test_samples=30,
        steps_per_loop=4,
        logdir=str(logdir),
        name="run",
    )
    return Config(**{**values, **settings})


def run(config, dataset):
    folder = run_folder.RunFolder(config)
    folder.start(config, dataset)
    session.train(config, dataset, folder)
    folder.close()
    return folder


@contextlib.contextmanager
def eager(eagerly=True):
    """Within it TensorFlow's functions run without being traced, or are traced again."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(eagerly)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


@contextlib.contextmanager
def before_steps(action, monkeypatch):
    """Within it, `action(running)` is called before a run takes its next steps, each time."""
    run_steps = session.Run.run_steps

    def wrapper(running):
        action(running)
        return run_steps(running)

    with monkeypatch.context() as patch:
        patch.setattr(session.Run, "run_steps", wrapper)
        yield


def asked_to_stop_at(step, monkeypatch):
    """A context in which a run is asked to stop when it comes to a step."""

    def ask(running):
        if running.step == step:
            signal.raise_signal(signal.SIGTERM)

    return before_steps(ask, monkeypatch)


def run_stopped_at(step, config, dataset, monkeypatch):
    """Starts a run that is asked to stop when it comes to a step."""
    with asked_to_stop_at(step, monkeypatch):
        return run(config, dataset)


def assert_one_line(process, message, status=(1, 2)):
    """A command has ended with an error of one line that holds a message."""
    assert process.returncode in status, process.stderr
    assert len(process.stderr.strip().splitlines()) == 1, process.stderr
    assert process.stderr.startswith("Error: ") and message in process.stderr, process.stderr


def weights(folder):
    """Every tensor in the newest checkpoint, but for the clocks."""
    reader = tf.train.load_checkpoint(str(folder.path / "checkpoints"))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.startswith(("weights", "optimizers", "position", "estimators"))
        and "seconds" not in name
    }


def figures(folder):
    return {k: v for k, v in folder.result.items() if k not in TIMES}


def metrics(folder):
    return [
        {k: v for k, v in row.items() if k not in TIMES}
        for row in run_folder.read_metrics(folder.path)
    ]


def assert_same_run(folder, other):
    a, b = weights(folder), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert figures(folder) == figures(other)
    assert metrics(folder) == metrics(other)

import gc
import os
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest
from absl import app, flags
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parents[1]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_configure(config):
    """Four devices in every process of the tests, for trainings that are shared among them."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return  # xdist's own process, which runs no test
    import tensorflow as tf

    four = [tf.config.LogicalDeviceConfiguration()] * 4
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], four)


@pytest.fixture
def eagerly():
    """TensorFlow's functions run without being traced, which takes longer than a few steps."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def few_draws(monkeypatch, eagerly):
    """Gradients are compared by few estimates, eagerly."""
    monkeypatch.setattr("arm_tf.variance.moments._GROUPS", 2)
    monkeypatch.setattr("arm_tf.variance.moments._AT_ONCE", 2)


@pytest.fixture
def call(monkeypatch, capfd):
    """Runs `python -m arm_tf.NAME ARGUMENTS` in this process, which has TensorFlow already.

    What comes back is a `subprocess.CompletedProcess`.
    """

    def call(name, *arguments):
        app.define_help_flags()  # once and for all
        saved = flagsaver.save_flag_values()
        capfd.readouterr()
        status = 0
        with monkeypatch.context() as patch:
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", [f"arm_tf.{name}", *map(str, arguments)])
            patch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
            try:
                runpy.run_module(f"arm_tf.{name}", run_name="__main__")
            except SystemExit as exit:
                status = exit.code or 0
            finally:
                flagsaver.restore_flag_values(saved)
                flags.FLAGS.unparse_flags()
        gc.collect()  # closes folders, as the end of a process would
        output = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, status, output.out, output.err)

    return call


@pytest.fixture(autouse=True)
def same_numbers(request):
    """A module's `RNG` starts anew in every test, so that its numbers are the same in any order."""
    if hasattr(request.module, "RNG"):
        request.module.RNG = np.random.default_rng(0)

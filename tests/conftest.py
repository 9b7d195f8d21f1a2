import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_configure():
    """Four devices in every process of the tests, for trainings that are shared among them."""
    import tensorflow as tf

    four = [tf.config.LogicalDeviceConfiguration()] * 4
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], four)


@pytest.fixture(autouse=True)
def same_numbers(request):
    """A module's `RNG` starts anew in every test, so that its numbers are the same in any order."""
    if hasattr(request.module, "RNG"):
        request.module.RNG = np.random.default_rng(0)

"""ARM and its rivals: gradients for stochastic binary networks in TensorFlow 2.

Attributes are loaded on first use, so that command-line programs can answer
`--help` and refuse a bad flag without waiting for TensorFlow.
"""

import importlib

__version__ = "0.1.0"

_SUBMODULES = ("bernoulli", "data", "estimators", "layers", "models", "objectives")


def __getattr__(name):
    if name == "expectation":
        return importlib.import_module("arm_tf.layers").expectation
    if name in _SUBMODULES:
        return importlib.import_module(f"arm_tf.{name}")
    raise AttributeError(f"module 'arm_tf' has no attribute {name!r}")


def __dir__():
    return [*globals(), "expectation", *_SUBMODULES]

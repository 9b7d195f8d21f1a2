"""ARM and its rivals: gradients for stochastic binary networks in TensorFlow 2.

`expectation`, `StochasticBinary` and `StochasticModel` are what most uses take.
"""

import importlib
import sys

__version__ = "0.1.0"

_SUBMODULES = ("bernoulli", "data", "estimators", "layers", "models", "objectives")
_HOMES = {
    "expectation": "layers",
    "StochasticBinary": "layers",
    "StochasticModel": "stochastic_model",
}


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f"arm_tf.{_HOMES[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"arm_tf.{name}")
    raise AttributeError(f"module 'arm_tf' has no attribute {name!r}")


def __dir__():
    return [*globals(), *_HOMES, *_SUBMODULES]


# Keras finds a saved model's classes by name once their modules are loaded. The programs, which
# Python is still looking for when it comes by here, answer --help before they load TensorFlow.
_IS_PROGRAM = sys.argv[:1] == ["-m"] and any("arm_tf" in word for word in sys.orig_argv[1:3])
if not _IS_PROGRAM:
    for _home in set(_HOMES.values()):
        importlib.import_module(f"arm_tf.{_home}")

"""ARM and its rivals: gradients for stochastic binary networks in TensorFlow 2.

`expectation`, `StochasticBinary` and `StochasticModel` are what most uses take.
"""

import importlib
import sys
import typing

__version__ = "0.1.0"

_SUBMODULES = ("bernoulli", "chain", "data", "estimators", "layers", "models", "objectives")
_HOMES = {
    "expectation": "expectation",
    "StochasticBinary": "layers",
    "StochasticModel": "stochastic_model",
}


def __getattr__(name: str) -> typing.Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"arm_tf.{_HOMES[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"arm_tf.{name}")
    raise AttributeError(f"module 'arm_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES, *_SUBMODULES]


def _is_program() -> bool:
    """Whether Python is still looking for one of the programs, `python -m arm_tf.NAME`."""
    words = sys.orig_argv
    if sys.argv[:1] != ["-m"] or "-m" not in words:
        return False
    return words[words.index("-m") + 1 :][0].split(".")[0] == __name__


def _say_if_interrupted(*error: typing.Any) -> None:
    """Says in one line that Ctrl-C came while a program was still being loaded."""
    if issubclass(error[0], KeyboardInterrupt):
        print("Error: interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(*error)


# Keras finds a saved model's classes by name once their modules are loaded; the programs answer
# --help before they load TensorFlow.
if _is_program():
    sys.excepthook = _say_if_interrupted
else:
    for _name, _home in _HOMES.items():  # the function takes the place of the module of its name
        globals()[_name] = getattr(importlib.import_module(f"arm_tf.{_home}"), _name)

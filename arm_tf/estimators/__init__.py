"""Gradient estimators for E[f(b)], b ~ prod_v Bernoulli(sigmoid(logits_v)), and their table.

An estimator is a pure function `(f, logits, u) -> (f_values, grad_logits)`:

  f: maps binary floats [S, ..., V] to values [S, ...]; S is the estimator's choice.
  logits: float [..., V], a constant as far as gradients are concerned.
  u: float [K, ..., V], uniform noise; K is the number of samples. An estimator never draws noise.
  f_values: float [S, ...], f at every sample that was evaluated.
  grad_logits: float [..., V], the estimate of the gradient of E[f(b)].

To add one, write the function in a module of this folder and give it a row in `TABLE`.
The table itself needs no TensorFlow, so that programs can check a name at once.
"""

import dataclasses
import importlib


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A row of the table: where the function lives and what it costs.

    Attributes:
      function: "module.name" below this package.
      evaluations: evaluations of f for each of the K noise samples.
      summary: what it is, in one line.
      source: the publication it comes from.
    """

    function: str
    evaluations: int
    summary: str
    source: str

    def __call__(self, f, logits, u):
        """Runs the estimator; arguments and results are described above."""
        module, name = self.function.split(".")
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)(f, logits, u)


TABLE = {
    "arm": Estimator(
        "antithetic.arm", 2, "augment-REINFORCE-merge: an antithetic pair", "Yin & Zhou 2019"
    ),
    "ar": Estimator(
        "score_function.ar", 1, "augment-REINFORCE: ARM before merging", "Yin & Zhou 2019"
    ),
    "reinforce": Estimator(
        "score_function.reinforce", 1, "score function without a baseline", "Williams 1992"
    ),
}


def get(name):
    """The table's row for `name`.

    Raises:
      ValueError: there is no such estimator; the message lists those there are.
    """
    if name not in TABLE:
        raise ValueError(f"Unknown estimator {name!r}; known are {', '.join(sorted(TABLE))}.")
    return TABLE[name]

"""Gradient estimators for E[f(b)], b ~ prod_v Bernoulli(sigmoid(logits_v)), and their table.

An estimator is a pure function `(f, logits, u) -> Estimate`, or `(f, logits, u, parameters)` where
it learns something:

  f: maps binary floats [S, ..., V] to values [S, ...]; S is the estimator's choice. For a network
    with further stochastic layers, `f(b, sample=...)` takes a function of (logits, u) that stands
    in for `bernoulli.sample` in those layers, such as a relaxation of it.
  logits: float [..., V], a constant as far as gradients are concerned.
  u: float [rows, ..., V], uniform noise. An estimator never draws noise.
  parameters: a dict of tensors, at first those of the row's `initial` function.

To add one, write the function in a module of this folder and give it a row in `TABLE`. The table
itself needs no TensorFlow, so that programs can check a name at once.
"""

import dataclasses
import importlib
import numbers
import typing
from collections.abc import Callable


class Estimate(typing.NamedTuple):
    """What an estimator returns.

    Attributes:
      value: float [...], estimate of E[f(b)], the average of f over the samples evaluated unless
        the estimator says otherwise; differentiable in whatever f uses.
      grad_logits: float [..., V], estimate of the gradient of E[f(b)] in the logits.
      parameter_grads: gradients by which to descend on the learned parameters, by name.
      new_parameters: next values of the parameters that are not learned by gradient, by name.
    """

    value: typing.Any
    grad_logits: typing.Any
    parameter_grads: dict = {}
    new_parameters: dict = {}


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A row of the table: where the function lives, what it needs and what it costs.

    Attributes:
      function: "module.name" below this package.
      summary: what it is, in one line.
      source: the publication it comes from.
      evaluations: evaluations of f, as a function of num_samples K and units V.
      cost: the same, to be read.
      min_samples: least K.
      default_samples: K unless given; None for the least.
      rows: rows of noise, as a function of K and V.
      width: samples that get noise of their own in later layers, as a function of K and V; where
        f is called at more, they share it in turn.
      biased: whether the expectation is not the exact gradient.
      derivative: whether f is differentiated in b.
      initial: name of the function of V in the same module that gives the first parameters.
      averages: names of the parameters that are not learned by gradient.
      relaxation: name of the function of (logits, u[, parameters]) in the same module that gives
        a sample with the derivative in its logits that the estimator takes it to have, and next
        parameters; None where sampling has none.
      options: names of the settings it takes, from `OPTIONS`.
      max_units: largest V, where cost grows with it; None for no limit.
      objective: "elbo" for E[f(b)], "multisample" for E[log mean_k exp f(b_k)].
      joint: whether f at K paths through a network's layers serves all of them, where other
        estimators take samples at one layer after the other.
      dreams: whether it learns from samples of the generative model.
    """

    function: str
    summary: str
    source: str
    evaluations: Callable[[int, int], int]
    cost: str
    min_samples: int = 1
    default_samples: int | None = None
    rows: Callable[[int, int], int] = lambda k, v: k
    width: Callable[[int, int], int] = lambda k, v: k
    biased: bool = False
    derivative: bool = False
    initial: str | None = None
    averages: tuple = ()
    relaxation: str | None = None
    options: tuple = ()
    max_units: int | None = None
    objective: str = "elbo"
    joint: bool = False
    dreams: bool = False

    def _load(self, name):
        module = self.function.split(".")[0]
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)

    def __call__(self, f, logits, u, *parameters, **options):
        """Runs the estimator; arguments and results are described above."""
        return self._load(self.function.split(".")[1])(f, logits, u, *parameters, **options)

    def initial_parameters(self, units):
        """The parameters to begin with, a dict of arrays; {} for an estimator without any."""
        return self._load(self.initial)(units) if self.initial else {}

    def sample(self, logits, u, *parameters, **options):
        """Runs the function that `relaxation` names."""
        return self._load(self.relaxation)(logits, u, *parameters, **options)


OPTIONS = {  # settings of estimators, and what they must be
    "temperature": ("positive", lambda value: value > 0),
    "gamma": ("at least 0", lambda value: value >= 0),
}


def _once(k, v):
    return k


def _pairs(k, v):
    return 2 * k


def _triples(k, v):
    return 3 * k


def _flips(k, v):
    return k * (v + 1)


def _vectors(k, v):
    return 2**v


TABLE = {
    "ar": Estimator(
        "score_function.ar",
        "augment-REINFORCE: ARM before merging",
        "Yin & Zhou 2019",
        _once,
        "K",
    ),
    "reinforce": Estimator(
        "score_function.reinforce", "score function without a baseline", "Williams 1992", _once, "K"
    ),
    "reinforce_baseline": Estimator(
        "score_function.reinforce_baseline",
        "score function with a moving-average baseline",
        "Williams 1992",
        _once,
        "K",
        initial="reinforce_baseline_parameters",
        averages=("mean", "calls"),
    ),
    "nvil": Estimator(
        "score_function.nvil",
        "score function with a learned baseline, signal centred and normalised",
        "Mnih & Gregor 2014",
        _once,
        "K",
        initial="nvil_parameters",
        averages=("mean", "square", "calls"),
    ),
    "loo": Estimator(
        "score_function.loo",
        "score function, the other samples' mean as baseline",
        "Kool et al. 2019",
        _once,
        "K",
        min_samples=2,
    ),
    "arm": Estimator(
        "antithetic.arm",
        "augment-REINFORCE-merge: f at an antithetic pair",
        "Yin & Zhou 2019",
        _pairs,
        "2K",
        width=_pairs,
    ),
    "disarm": Estimator(
        "antithetic.disarm",
        "ARM with the noise integrated out given the pair (U2G)",
        "Dong, Mnih & Tucker 2020",
        _pairs,
        "2K",
        width=_pairs,
    ),
    "arms": Estimator(
        "antithetic.arms",
        "K jointly antithetic samples from a Dirichlet copula",
        "Dimitriev & Zhou 2021",
        _once,
        "K",
        min_samples=2,
    ),
    "arms_gaussian": Estimator(
        "antithetic.arms_gaussian",
        "K jointly antithetic samples from a Gaussian copula",
        "Dimitriev & Zhou 2021",
        _once,
        "K",
        min_samples=3,
    ),
    "legrad": Estimator(
        "enumeration.legrad",
        "local expectation gradients: f with each unit flipped",
        "Titsias & Lázaro-Gredilla 2015",
        _flips,
        "K(V + 1)",
        width=_flips,
        max_units=1000,
    ),
    "ram": Estimator(
        "enumeration.ram",
        "LeGrad with common noise in the layers after",
        "Tokui & Sato 2017",
        _flips,
        "K(V + 1)",
        max_units=1000,
    ),
    "exact": Estimator(
        "enumeration.exact",
        "enumeration of all vectors of a layer",
        "Williams 1992",
        _vectors,
        "2^V",
        width=_vectors,
        max_units=12,
    ),
    "double_cv": Estimator(
        "control_variates.double_cv",
        "leave-one-out with a linear control variate from f's derivative",
        "Titsias & Shi 2022",
        _once,
        "K",
        min_samples=2,
        derivative=True,
        initial="double_cv_parameters",
    ),
    "rodeo": Estimator(
        "control_variates.rodeo",
        "leave-one-out with discrete Stein operators as control variates",
        "Shi et al. 2022",
        _once,
        "K",
        min_samples=2,
        derivative=True,
        initial="rodeo_parameters",
    ),
    "concrete": Estimator(
        "relaxation.concrete",
        "derivative of f at samples of the Concrete relaxation",
        "Maddison et al. 2017",
        _once,
        "K",
        biased=True,
        derivative=True,
        relaxation="concrete_sample",
        options=("temperature",),
    ),
    "st": Estimator(
        "relaxation.st",
        "straight-through: sampling has the derivative of its mean",
        "Bengio et al. 2013",
        _once,
        "K",
        biased=True,
        derivative=True,
        relaxation="st_sample",
    ),
    "st_annealed": Estimator(
        "relaxation.st_annealed",
        "straight-through through a sigmoid that grows steeper in training",
        "Chung et al. 2017",
        _once,
        "K",
        biased=True,
        derivative=True,
        relaxation="st_annealed_sample",
        initial="st_annealed_parameters",
        averages=("slope",),
    ),
    "st_gumbel": Estimator(
        "relaxation.st_gumbel",
        "straight-through: sampling has the derivative of its Concrete relaxation",
        "Jang et al. 2017",
        _once,
        "K",
        biased=True,
        derivative=True,
        relaxation="st_gumbel_sample",
        options=("temperature",),
    ),
    "darn": Estimator(
        "relaxation.darn",
        "1/2 estimator, exact for an f quadratic in each unit of a single layer",
        "Gregor et al. 2014",
        _once,
        "K",
        biased=True,
        derivative=True,
        relaxation="darn_sample",
    ),
    "muprop": Estimator(
        "relaxation.muprop",
        "score function with f's first-order expansion at the mean as control variate",
        "Gu et al. 2016",
        lambda k, v: k + 1,
        "K + 1",
        derivative=True,
        initial="muprop_parameters",
        averages=("mean", "calls"),
    ),
    "rebar": Estimator(
        "relaxation.rebar",
        "score function with f at relaxed samples as control variate",
        "Tucker et al. 2017",
        _triples,
        "3K",
        rows=_pairs,
        derivative=True,
        initial="rebar_parameters",
    ),
    "relax": Estimator(
        "relaxation.relax",
        "REBAR with a network added to the control variate",
        "Grathwohl et al. 2018",
        _triples,
        "3K",
        rows=_pairs,
        derivative=True,
        initial="relax_parameters",
    ),
    "vimco": Estimator(
        "multisample.vimco",
        "multi-sample bound, score function with each sample's baseline from the others",
        "Mnih & Rezende 2016",
        _once,
        "K",
        min_samples=2,
        default_samples=5,
        objective="multisample",
        joint=True,
    ),
    "ovis": Estimator(
        "multisample.ovis",
        "multi-sample bound, baselines of asymptotically least variance; unbiased at gamma = 0",
        "Liévin et al. 2020",
        _once,
        "K",
        min_samples=2,
        default_samples=5,
        biased=True,
        options=("gamma",),
        objective="multisample",
        joint=True,
    ),
    "disarm_local": Estimator(
        "multisample.disarm_local",
        "multi-sample bound, DisARM for each sample with the others held fixed",
        "Dong, Mnih & Tucker 2020",
        _pairs,
        "2K",
        default_samples=5,
        width=_pairs,
        objective="multisample",
    ),
    "rws": Estimator(
        "multisample.rws",
        "reweighted wake-sleep: the encoder follows the weighted samples",
        "Bornschein & Bengio 2015",
        _once,
        "K",
        default_samples=5,
        biased=True,
        objective="multisample",
        joint=True,
    ),
    "wake_sleep": Estimator(
        "multisample.wake_sleep",
        "the encoder learns from what the generative model dreams",
        "Hinton et al. 1995",
        _once,
        "K",
        biased=True,
        objective="multisample",
        joint=True,
        dreams=True,
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


def check(name, num_samples, units=None, options=()):
    """The table's row for `name`, fit for K = num_samples, V = units and settings.

    Args:
      name: str.
      num_samples: int, or None for the estimator's own number.
      units: int, or None where it is not known yet.
      options: dict of settings.

    Returns:
      The row and num_samples.

    Raises:
      ValueError: an unknown name, too few samples, too many units, or a setting that the estimator
        does not have or cannot use.
    """
    row = get(name)
    if num_samples is None:
        num_samples = row.default_samples or row.min_samples
    if not _is_integer(num_samples) or num_samples < row.min_samples:
        raise ValueError(
            f"num_samples must be an integer of at least {row.min_samples} for {name!r}, "
            f"received {num_samples!r}."
        )
    if row.max_units is not None and units is not None and units > row.max_units:
        raise ValueError(
            f"{name!r} takes at most {row.max_units} units a layer, received {units}: it would "
            f"evaluate f {row.cost} times for each datum, where V is the units."
        )
    for option in sorted(options):
        if option not in row.options:
            raise ValueError(
                f"Unknown option {option} for {name!r}; "
                f"it takes {', '.join(row.options) or 'none'}."
            )
        expected, suits = OPTIONS[option]
        if not isinstance(options[option], numbers.Real) or not suits(options[option]):
            raise ValueError(f"{option} must be {expected}, received {options[option]!r}.")
    return row, int(num_samples)


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def describe():
    """The table as text, one line an estimator."""
    lines = [
        f"{name:20}{row.cost + ' evaluations':26}"
        f"{'biased' if row.biased else 'unbiased':10}{row.summary} ({row.source})"
        for name, row in sorted(TABLE.items())
    ]
    return "\n".join(lines)


def markdown():
    """The table in Markdown, as README.md shows it."""
    lines = ["| `--estimator` | what | evaluations of f | bias | source |", "|---|---|---|---|---|"]
    lines += [
        f"| `{name}` | {row.summary} | {row.cost} | {'yes' if row.biased else 'none'} | "
        f"{row.source} |"
        for name, row in TABLE.items()
    ]
    return "\n".join(lines) + "\n"

"""Gradient estimators for E[f(b)], b ~ prod_v Bernoulli(sigmoid(logits_v)), and their table.

An estimator is a pure function `(f, logits, u) -> Estimate`, or `(f, logits, u, parameters)` where
it learns something:

  f: maps binary floats [S, ..., V] to values [S, ...]; S is the estimator's choice. For a network
    with further stochastic layers, `f(b, sample=...)` takes a function of (logits, u) that stands
    in for `bernoulli.sample` in those layers, such as a relaxation of it.
  logits: float [..., V], a constant as far as gradients are concerned.
  u: float [rows, ..., V], uniform noise. An estimator never draws noise.
  parameters: a dict of tensors, at first those of the row's `initial` function.

To add one, write the function, with its row beside it, in a module of this folder, old or new:

  from arm_tf.estimators import Estimate, Option, estimator, lazy

  tf = lazy("tensorflow")

  @estimator("mine", summary="…", source="Author 2030", link="https://…", equation=r"…",
             options=(Option("strength", 0.5, low=0.0, help="Of mine: …"),))
  def mine(f, logits, u, strength=0.5): …

and its proof in `tests/proofs/`. Flags, settings, tables, error messages and the look of its curves
follow from the row. The table needs no TensorFlow, so that programs can check a name at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import numbers
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping

if typing.TYPE_CHECKING:
    import tensorflow as tf

FAMILIES = (  # modules of this folder in the table's order; others come after them, by name
    "score_function",
    "antithetic",
    "enumeration",
    "control_variates",
    "relaxation",
    "rebar",
    "multisample",
    "straight_through",
)

_Function = typing.TypeVar("_Function", bound=Callable)


class _Lazy(types.ModuleType):
    def __getattr__(self, name: str) -> typing.Any:
        return getattr(importlib.import_module(self.__name__), name)


def lazy(name: str) -> types.ModuleType:
    """The module of a name, which is imported where it is first used.

    For TensorFlow and what imports it: a row stands beside its function, and a program that reads
    the table must not wait seconds for what only the function needs.
    """
    return _Lazy(name)


class Estimate(typing.NamedTuple):
    """What an estimator returns.

    Attributes:
      value: float [...], estimate of E[f(b)], the average of f over the samples evaluated unless
        the estimator says otherwise; differentiable in whatever f uses.
      grad_logits: float [..., V], estimate of the gradient of E[f(b)] in the logits.
      parameter_grads: gradients by which to descend on the learned parameters, by name.
      new_parameters: next values of the parameters that are not learned by gradient, by name.
    """

    value: tf.Tensor
    grad_logits: tf.Tensor
    parameter_grads: dict[str, tf.Tensor] = {}
    new_parameters: dict[str, tf.Tensor] = {}


@dataclasses.dataclass(frozen=True)
class Option:
    """A setting of an estimator: a keyword of its function, and a flag of the programs.

    Attributes:
      name: str.
      default: float, int or bool, that of the function's keyword too.
      help: a sentence, for `--help`.
      low: the least number that is allowed.
    """

    name: str
    default: float | int
    help: str
    low: float | int = 0

    def check(self, value: typing.Any) -> None:
        """Raises ValueError unless `value` is one, and within the limits.

        Scalar tensors and variables, and functions of a step, are taken as they are where the
        option is no whole number, on which shapes depend, and no switch.
        """
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{self.name} must be True or False, received {value!r}.")
            return
        kind: typing.Any = numbers.Integral if isinstance(self.default, int) else numbers.Real
        is_scalar = hasattr(value, "dtype") and getattr(value, "shape", None) == ()
        if kind is numbers.Real and not isinstance(value, kind) and (is_scalar or callable(value)):
            return
        if (
            not isinstance(value, kind)
            or isinstance(value, bool)
            or not self.low <= value < math.inf
        ):
            noun = "an integer of " if kind is numbers.Integral else ""
            raise ValueError(f"{self.name} must be {noun}at least {self.low}, received {value!r}.")


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A row of the table: what an estimator is, what it needs and what it costs.

    Attributes:
      name: by which it is chosen.
      function: as described above.
      family: the module that the function is in.
      summary: what it is, in one line.
      equation: the estimate of the gradient, in LaTeX.
      source: the publication it comes from, "Author & Author year".
      link: URL of that; "" where there is none.
      evaluations: evaluations of f, as a function of num_samples K and units V, and of options by
        name that change them.
      cost: the same, to be read.
      min_samples: least K.
      default_samples: K unless given; None for the least.
      rows: rows of noise, as a function of K and V.
      width: samples that get noise of their own in later layers, as a function of K and V; where
        f is called at more, they share it in turn.
      biased: whether the expectation is not the exact gradient.
      derivative: whether f is differentiated in b.
      initial: function of V that gives the first parameters; None for none.
      averages: names of the parameters that are not learned by gradient.
      relaxation: function of (logits, u[, parameters]) that gives a sample with the derivative in
        its logits that the estimator takes it to have, and next parameters; None where sampling
        has none.
      options: a tuple of `Option`.
      max_units: largest V, where cost grows with it; None for no limit.
      objective: "elbo" for E[f(b)], "multisample" for E[log mean_k exp f(b_k)].
      ascends: what grad_logits estimates the gradient of where that is not the objective, in words;
        without `biased`, the objective times a factor.
      joint: whether f at K paths through a network's layers serves all of them, where other
        estimators take samples at one layer after the other.
      through_layers: whether in a network it flips the units of later layers too, for as many
        evaluations of f again for each of them; it has a bias there, and none in a single layer.
      rule: whether it is no estimator but a rule to train the encoder of a generative model by,
        which the model carries out. Its function maps log q(b|x) of K pairs that the model dreamt,
        float [K, ...], to what the encoder ascends, [...].
      aliases: a tuple of other names, of estimators that for binary units are this one; its
        function's docstring says why.
    """

    name: str
    function: Callable[..., typing.Any]
    family: str
    summary: str
    equation: str
    source: str = "this package"
    link: str = ""
    evaluations: Callable[..., int] = lambda k, v: k
    cost: str = "K"
    min_samples: int = 1
    default_samples: int | None = None
    rows: Callable[[int, int], int] = lambda k, v: k
    width: Callable[[int, int], int] = lambda k, v: k
    biased: bool = False
    derivative: bool = False
    initial: Callable[[int], dict[str, typing.Any]] | None = None
    averages: tuple[str, ...] = ()
    relaxation: Callable[..., tuple[tf.Tensor, dict[str, tf.Tensor]]] | None = None
    options: tuple[Option, ...] = ()
    max_units: int | None = None
    objective: str = "elbo"
    ascends: str = ""
    joint: bool = False
    through_layers: bool = False
    rule: bool = False
    aliases: tuple = ()

    def __call__(
        self,
        f: Callable[..., tf.Tensor],
        logits: tf.Tensor,
        u: tf.Tensor,
        *parameters: dict[str, tf.Tensor],
        **options: float,
    ) -> Estimate:
        """Runs the estimator; arguments and results are described above."""
        if self.rule:
            raise ValueError(
                f"{self.name!r} learns from images that a generative model dreams, which a "
                "function f of the samples does not have; it is a training rule of arm_tf.train, "
                "for binary VAEs."
            )
        return self.function(f, logits, u, *parameters, **options)

    def count(self, num_samples: int, units: int, **options: float) -> int:
        """Evaluations of f, with settings of the estimator."""
        taken = inspect.signature(self.evaluations).parameters
        options = {name: value for name, value in options.items() if name in taken}
        return self.evaluations(num_samples, units, **options)

    @property
    def cited(self) -> str:
        """The source in Markdown, with its link."""
        return f"[{self.source}]({self.link})" if self.link else self.source

    @property
    def bias(self) -> str:
        """Whether there is one, as tables say it."""
        if self.biased:
            return "yes"
        if self.ascends:
            return "none up to a factor"
        return "in several layers" if self.through_layers else "none"

    def initial_parameters(self, units: int) -> dict[str, typing.Any]:
        """The parameters to begin with, a dict of arrays; {} for an estimator without any."""
        return self.initial(units) if self.initial else {}

    def sample(
        self, logits: tf.Tensor, u: tf.Tensor, *parameters: dict[str, tf.Tensor], **options: float
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Runs `relaxation`."""
        assert self.relaxation, f"{self.name} has no sample with a derivative"
        return self.relaxation(logits, u, *parameters, **options)


TABLE: dict[str, Estimator] = {}
ALIASES: dict[str, str] = {}  # other names, with those in the table
OPTIONS: dict[str, Option] = {}  # of all estimators, by name


def estimator(name: str, **row: typing.Any) -> Callable[[_Function], _Function]:
    """Gives the function below it a row of the table.

    Args:
      name: by which the estimator is chosen.
      **row: other attributes of `Estimator`; function and family are those of the function.

    Raises:
      ValueError: a name, or that of an option, is taken by another.
    """

    def register(function):
        family = function.__module__.rpartition(".")[2]
        if name in TABLE and TABLE[name].family != family:
            raise ValueError(f"{TABLE[name].family} and {family} both have an estimator {name!r}.")
        new = Estimator(name, function, family, **row)
        for taken in (name, *new.aliases):
            owner = ALIASES.get(taken, taken if taken in TABLE else name)
            if owner != name:
                raise ValueError(f"The name {taken!r} of {name!r} is one of {owner!r} already.")
        for option in new.options:
            if OPTIONS.setdefault(option.name, option) != option:
                raise ValueError(
                    f"The option {option.name} of {name!r} is not that of other estimators; "
                    "give it another name, or the same default, help and limit."
                )
        TABLE[name] = new
        ALIASES.update(dict.fromkeys(new.aliases, name))
        return function

    return register


def _register_all() -> None:
    """Imports the modules of this folder, which gives their functions rows."""
    found = [module.name for module in pkgutil.iter_modules(__path__)]
    others = sorted(set(found) - set(FAMILIES))
    for module in [*FAMILIES, *others]:
        importlib.import_module(f"{__name__}.{module}")


_register_all()


def get(name: str) -> Estimator:
    """The table's row for `name`, or for what it is an alias of.

    Raises:
      ValueError: there is no such estimator; the message lists those there are.
    """
    row = TABLE.get(ALIASES.get(name, name))
    if row is None:
        raise ValueError(
            f"Unknown estimator {name!r}{_similar(name, [*TABLE, *ALIASES])}; "
            f"known are {', '.join(sorted(TABLE))}."
        )
    return row


def _similar(name: object, known: Iterable[str]) -> str:
    """Guesses at what was meant, to put after an unknown name, or nothing."""
    found = difflib.get_close_matches(str(name).lower(), known, n=3)
    return f" (did you mean {', '.join(map(repr, found))}?)" if found else ""


def check(
    name: str,
    num_samples: int | None,
    units: int | None = None,
    options: Mapping[str, object] = types.MappingProxyType({}),
) -> tuple[Estimator, int]:
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
    if not is_integer(num_samples) or num_samples < row.min_samples:
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
        own = {own.name: own for own in row.options}
        if option not in own:
            takes = ["num_samples", *own]
            raise ValueError(
                f"Unknown option {option!r} for {name!r}{_similar(option, takes)}; "
                f"it takes {', '.join(takes)}."
            )
        own[option].check(options[option])
    return row, int(num_samples)


def is_integer(value: object) -> bool:
    """Whether a value is a whole number of Python's or NumPy's, and no truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def describe() -> str:
    """The table as text, one line an estimator."""
    lines = [
        f"{name:20}{row.cost + ' evaluations':26}"
        f"bias: {row.bias:20}{row.summary} ({row.source})"
        f"{'; also ' * bool(row.aliases)}{', '.join(row.aliases)}"
        for name, row in sorted(TABLE.items())
    ]
    return "\n".join(lines)


def markdown() -> str:
    """The table in Markdown, as README.md and the documentation show it."""
    lines = ["| `--estimator` | what | evaluations of f | bias | source |", "|---|---|---|---|---|"]
    names = lambda row: ", ".join(f"`{name}`" for name in (row.name, *row.aliases))
    lines += [
        f"| {names(row)} | {row.summary} | {row.cost} | {row.bias} | {row.cited} |"
        for row in TABLE.values()
    ]
    return "\n".join(lines) + "\n"

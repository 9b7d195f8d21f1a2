"""The settings of a run and their limits."""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import typing
from collections.abc import Mapping, Sequence

from arm_tf import data, estimators, experiments
from arm_tf.errors import ConfigError

# What a setting may be of, and of what such settings decide.
KINDS = {
    "data": "what is trained on",
    "model": "the network",
    "estimator": "the gradient",
    "optimiser": "a step along it",
    "trial": "how long, and with which random numbers",
    "evaluation": "the bounds that are reported",
    "execution": "how fast; runs that are compared may differ in it",
    "place": "where, and under which name; nothing that is computed",
}
_FLOAT_LIMIT = 1e30  # float32 must hold the numbers
# Fit for paths and flag files.
_LINE = re.compile(r"[^\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]+")
_STEM = 40  # characters of a file's name in that of a run, which leave room for the rest
_DECODER_SAMPLES = {"elbo": "independent", "multisample": "shared"}  # as is usual
_EARLIER_WORDS = {"shared": "antithetic"}  # of decoder_samples, which names of runs are made with


def _setting(
    default: typing.Any,
    help: str,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float = 2**31 - 1,
    *,
    of: str,
    common: bool = False,
) -> typing.Any:
    """A field that knows its kind.

    Args:
      default, help: the value where none is given, and what --help says.
      choices: the values that it may have, or None for any.
      low, high: the least number and, of integers, the greatest.
      of: one of KINDS.
      common: whether people vary it, so that the name of a run says it and --help says it first.
    """
    metadata = dict(help=help, of=of, choices=choices, low=low, high=high, common=common)
    return dataclasses.field(default=default, metadata=metadata)


class _Filled:
    """A setting's value that is not what was asked for, which it remembers.

    `dataclasses.replace` hands it on to the next `Config`, which asks for the same again.
    """

    asked: typing.Any = None


class _FilledInt(_Filled, int):
    pass


class _FilledStr(_Filled, str):
    pass


def _filled(value: int | str, asked: typing.Any) -> typing.Any:
    """`value`, an int or str, for a setting of which `asked` was asked for."""
    filled = {int: _FilledInt, str: _FilledStr}[type(value)](value)
    filled.asked = asked
    return filled


def _with_options(cls: type) -> type:
    """A class of settings with one for each option of an estimator, after `num_samples`."""
    settings = {}
    for name, kind in cls.__annotations__.items():
        settings[name] = kind
        if name == "num_samples":
            for option in estimators.OPTIONS.values():
                if option.name in cls.__annotations__ or hasattr(cls, option.name):
                    raise ValueError(
                        f"An estimator's option {option.name!r} has the name of another setting; "
                        "give it another."
                    )
                settings[option.name] = type(option.default)
                setting = _setting(option.default, option.help, of="estimator", low=option.low)
                setattr(cls, option.name, setting)
    cls.__annotations__ = settings
    return cls


@dataclasses.dataclass(frozen=True)
@_with_options
class Config:
    """Everything that determines a training run, with the defaults of `python -m arm_tf.train`.

    What is left unset is filled in from the rest: `config.batch_size` is a number, `config.name` a
    name. It stays unset for `dataclasses.replace`, which fills it in from the new settings, and
    `asked` says what was asked for. Options of the estimators are settings, too.

    Raises:
      ConfigError: a value outside its limits.
    """

    experiment: str | None = _setting(
        None,
        "Experiment of a paper, whose settings hold where no flag says otherwise; "
        "--experiment=help lists them with a line each.",
        of="place",
        common=True,
    )
    dataset: str = _setting(
        "glyphs",
        "Which data to train on: a FILE.npz or FILE.npy of your own, or a name.",
        data.DATASETS,
        of="data",
        common=True,
    )
    data_dir: str | None = _setting(
        None,
        "Folder with data files that are already there; unset: download on first use.",
        of="place",
    )
    image_shape: tuple | None = _setting(
        None,
        "Height and width of the images in a file of your own, such as 28,28; unset: guessed.",
        of="data",
    )
    valid_images: int | None = _setting(
        None, "Use only the first so many validation images; unset: all.", low=1, of="evaluation"
    )
    test_images: int | None = _setting(
        None, "Use only the first so many test images; unset: all.", low=1, of="evaluation"
    )

    model: str = _setting(
        "vae",
        "Variational autoencoder, or network for the lower half of an image given the upper.",
        ("vae", "conditional"),
        of="model",
        common=True,
    )
    layers: int = _setting(
        1, "Number of stochastic layers.", low=1, high=1_000, of="model", common=True
    )
    network: str = _setting(
        "linear",
        "Maps between layers: one dense layer, or two more with leaky ReLU before it.",
        ("linear", "nonlinear"),
        of="model",
        common=True,
    )
    units: int = _setting(
        200,
        "Units in each stochastic and each deterministic layer.",
        low=1,
        high=100_000,
        of="model",
    )
    leaky_slope: float = _setting(0.1, "Slope of the leaky ReLU below zero.", low=0, of="model")
    input_scaling: str = _setting(
        "none",
        "What the encoder sees of the pixels x: x, 2x - 1, or x minus the mean training image.",
        ("none", "symmetric", "centered"),
        of="model",
    )
    code_scaling: str = _setting(
        "none",
        "What every map sees of binary units b: b or 2b - 1.",
        ("none", "symmetric"),
        of="model",
    )
    prior: str = _setting(
        "learned",
        "Logits of the top layer's prior: learned from zero, or fixed at zero.",
        ("learned", "uniform"),
        of="model",
    )
    output_bias: str = _setting(
        "zeros",
        "Initial bias of the map to the pixels: zero, or the logit of the mean training image.",
        ("zeros", "data_mean"),
        of="model",
    )

    estimator: str = _setting(
        "arm",
        "Gradient estimator; --estimator=help lists them with a line each.",
        tuple(sorted(estimators.TABLE)),
        of="estimator",
        common=True,
    )
    num_samples: int = _setting(
        None,
        "Noise samples of the estimator; unset: the estimator's own number.",
        low=1,
        high=100_000,
        of="estimator",
    )
    track_variance: tuple = _setting(
        (),
        "Estimators whose gradient variance to follow on the way, with commas; --estimator=help "
        "lists them.",
        tuple(sorted(estimators.TABLE)),
        of="estimator",
    )
    decoder_samples: str = _setting(
        None,
        "Where the gradient of decoder and prior comes from: one further independent sample (K "
        "for a multi-sample bound), or the samples of the estimator, which saves evaluations; "
        "unset: the first for the ELBO, the second for a multi-sample bound.",
        ("independent", "shared"),
        of="estimator",
    )

    learning_rate: float = _setting(
        1e-4, "Adam's step size, encoder and decoder.", low=0, of="optimiser"
    )
    encoder_betas: tuple = _setting(
        (0.9, 0.999), "Adam's decay rates for the encoder.", of="optimiser"
    )
    decoder_betas: tuple = _setting(
        (0.9, 0.999), "Adam's decay rates for the decoder.", of="optimiser"
    )
    estimator_learning_rate: float = _setting(
        1e-3, "Adam's step size for what the estimator learns.", low=0, of="estimator"
    )
    prior_learning_rate: float = _setting(
        0.01, "Step size of the prior's plain SGD.", low=0, of="optimiser"
    )
    batch_size: int = _setting(
        None,
        "Images a step; unset: 25 for OMNIGLOT and 50 otherwise.",
        low=1,
        high=100_000,
        of="data",
    )
    epochs: int = _setting(
        100,
        "Passes over the training images; the last, incomplete batch of each is left out.",
        low=1,
        of="trial",
    )
    max_steps: int | None = _setting(
        None, "Stop after so many steps, also in mid-epoch.", low=1, of="trial"
    )
    seed: int = _setting(
        0, "Determines initial weights, order of images, and noise.", low=0, of="trial", common=True
    )

    eval_every: int = _setting(1, "Epochs between evaluations.", low=1, of="execution")
    eval_samples: int = _setting(
        100, "Samples of the validation bound on -log p(x).", low=1, high=100_000, of="evaluation"
    )
    test_samples: int = _setting(
        1000, "Samples of the final bounds on -log p(x).", low=1, high=100_000, of="evaluation"
    )
    steps_per_loop: int = _setting(
        100, "Steps in one call of the compiled loop.", low=1, high=100_000, of="execution"
    )
    jit: bool = _setting(True, "Compile with XLA.", of="execution")
    tf32: bool = _setting(
        False,
        "Let NVIDIA GPUs round products to TensorFloat-32; faster, and less exact.",
        of="model",
    )

    distribute: str = _setting(
        "none",
        "Share each batch among the GPUs of a machine, or among machines as TF_CONFIG has them.",
        ("none", "mirrored", "multi_worker"),
        of="place",
    )
    keep_epochs: tuple = _setting(
        (),
        "Epochs after which to keep the weights for good, such as 0,1,10, for arm_tf.variance.",
        low=0,
        of="place",
    )
    logdir: str = _setting("runs", "Folder that holds the folders of runs.", of="place")
    name: str = _setting(
        None, "Name of the run's folder; unset: built from the settings.", of="place"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = self.asked(field.name)
            if field.name == "decoder_samples" and value in _EARLIER_WORDS.values():
                value = "shared"
            if field.name in ("estimator", "track_variance"):
                value = _without_aliases(value)
            _check(field, value)
            object.__setattr__(self, field.name, value)
        if self.experiment is not None:
            experiments.find(self.experiment)
        dataset, data_dir = self.dataset, self.data_dir
        if data.is_file(dataset):  # whose folder does not change what is computed
            path = pathlib.PurePath(data_dir or "", dataset)
            if path.name != dataset:
                self._fill_in("dataset", path.name)
            if path.parent != pathlib.PurePath() and str(path.parent) != data_dir:
                self._fill_in("data_dir", str(path.parent))
        if self.model == "conditional" and self.prior != Config.prior:
            raise ConfigError(
                f"--model=conditional has no prior, received --prior={self.prior}; leave it out."
            )
        self.check_estimator("estimator", self.estimator, self.num_samples)
        for name in self.track_variance:
            self.check_estimator("track_variance", name)
        for name, value in _usual(self.dataset, self.estimator).items():
            if getattr(self, name) is None:
                self._fill_in(name, value)
        name = self._default_name()
        if self.name in (None, name):
            object.__setattr__(self, "name", _filled(name, None))

    def _fill_in(self, name: str, value: int | str) -> None:
        object.__setattr__(self, name, _filled(value, getattr(self, name)))

    def asked(self, name: str) -> typing.Any:
        """The value of a setting that was asked for, None where it was left unset."""
        value = getattr(self, name)
        return value.asked if isinstance(value, _Filled) else value

    @property
    def objective(self) -> str:
        """What the estimator ascends, "elbo" or "multisample"."""
        return estimators.get(self.estimator).objective

    def check_estimator(
        self, flag: str, name: str, num_samples: int | None = None
    ) -> tuple[estimators.Estimator, int]:
        """An estimator's row of the table, and num_samples as `estimators.check` fills it in.

        Raises:
          ConfigError: the model cannot have the estimator; the message names the flag.
        """
        try:
            row, num_samples = estimators.check(name, num_samples, self.units)
        except ValueError as error:
            raise ConfigError(f"--{flag}={name}: {error}") from None
        if self.model == "conditional" and (row.objective != "elbo" or row.rule):
            raise ConfigError(
                f"--model=conditional takes in --{flag} what ascends the ELBO and needs no prior, "
                f"received {name!r}."
            )
        return row, num_samples

    def _default_name(self) -> str:
        """Names the settings that people vary, and a digest of any others that are not default."""
        model = "" if self.model == "vae" else f"{self.model}-"
        dataset = self.dataset
        if data.is_file(dataset):
            dataset = re.sub(r"[^\w=+,-]", "_", pathlib.PurePath(dataset).stem)[:_STEM]
        name = f"{dataset}-{model}{self.network}-{self.layers}-{self.estimator}-seed{self.seed}"
        usual = _usual(self.dataset, self.estimator)
        others = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata["of"] != "place"
            and not field.metadata["common"]
            and getattr(self, field.name) != usual.get(field.name, field.default)
        }
        if others.get("decoder_samples") in _EARLIER_WORDS:
            others["decoder_samples"] = _EARLIER_WORDS[others["decoder_samples"]]
        if others:
            digest = hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
            name += f"-{digest[:8]}"
        return name

    @property
    def likelihood(self) -> str:
        """Of what the model has a lower bound; for people."""
        return {"vae": "log p(x)", "conditional": "log p(x_l|x_u)"}[self.model]

    def options(self, name: str) -> dict[str, typing.Any]:
        """The settings of an estimator; a dict."""
        return {option.name: getattr(self, option.name) for option in estimators.get(name).options}

    @property
    def evaluations(self) -> int:
        """Evaluations of f that the estimator makes for each datum and layer."""
        row = estimators.get(self.estimator)
        return row.count(self.num_samples, self.units, **self.options(self.estimator))

    def load_data(self) -> data.Dataset:
        """The data set, as `arm_tf.data.load` finds it."""
        return data.load(
            self.dataset, self.data_dir, self.valid_images, self.test_images, self.image_shape
        )

    def settings(self) -> dict[str, typing.Any]:
        """The settings that determine what is computed; a dict."""
        place = names_of("place")
        return {name: v for name, v in dataclasses.asdict(self).items() if name not in place}

    def differences(self, other: "Config") -> list[str]:
        """Names of the settings in which what two runs compute differs."""
        others = other.settings()
        return [name for name, value in self.settings().items() if value != others[name]]

    @classmethod
    def of(cls, experiment: str | None, **changes: typing.Any) -> "Config":
        """The configuration of an experiment, or of None, the defaults, with changes to it."""
        if experiment is not None:
            own = experiments.find(experiment).settings_with(
                changes.get("estimator", cls.estimator)
            )
            changes = {**own, "experiment": experiment, **changes}
        return cls(**changes)

    @property
    def changed(self) -> dict[str, typing.Any]:
        """The settings that are not those of the experiment with this estimator; a dict."""
        if self.experiment is None:
            return {}
        own = experiments.find(self.experiment).settings_with(self.estimator)
        plain = {field.name: field.default for field in dataclasses.fields(self)}
        plain |= {**_usual(own["dataset"], self.estimator), **own}
        return {name: value for name, value in self.settings().items() if value != plain[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, typing.Any]) -> "Config":
        """The configuration that `dataclasses.asdict` gave, also after a trip through JSON.

        Those of earlier versions hold an "objective", which has to be the estimator's.

        Raises:
          ConfigError: an unknown or unusable setting.
        """
        values = dict(values)
        objective = values.pop("objective", None)
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ConfigError(f"Unknown settings: {', '.join(unknown)}.")
        given: dict[str, typing.Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        config = cls(**given)
        if objective not in (None, config.objective):
            raise ConfigError(
                f"--objective={objective} is not that of --estimator={config.estimator}, "
                f"{config.objective}; leave it out."
            )
        return config

    def flag_file(self) -> str:
        """The configuration as the text of a flag file, one `--name=value` a line."""
        return flag_file(dataclasses.asdict(self))


def names_of(*kinds: str) -> list[str]:
    """Names of the settings of some kinds."""
    return [field.name for field in dataclasses.fields(Config) if field.metadata["of"] in kinds]


def _usual(dataset: str, estimator: str) -> dict[str, typing.Any]:
    """What stands for settings that are left unset, but for the name; a dict."""
    row, num_samples = estimators.check(estimator, None)
    return {
        "batch_size": data.batch_size(dataset),
        "num_samples": num_samples,
        "decoder_samples": _DECODER_SAMPLES[row.objective],
    }


def _without_aliases(value: typing.Any) -> typing.Any:
    """A name, or a tuple of names, of estimators as they are in the table."""
    if isinstance(value, tuple):
        return tuple(map(_without_aliases, value))
    return estimators.ALIASES.get(value, value) if isinstance(value, str) else value


def flag_file(settings: Mapping[str, typing.Any]) -> str:
    """The text of a flag file for a dict of settings; those that are None are left out."""
    lines = []
    for name, value in settings.items():
        if isinstance(value, bool):
            lines.append(f"--{'' if value else 'no'}{name}\n")
        elif value is not None:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            lines.append(f"--{name}={text}\n")
    return "".join(lines)


def _check(field: dataclasses.Field, value: typing.Any) -> None:
    """Raises ConfigError unless `value` suits the field's type, choices and limits."""

    def refuse(expected):
        raise ConfigError(f"--{field.name} must be {expected}, received {value!r}.")

    types = typing.get_args(field.type) or (field.type,)
    choices, low, high = (field.metadata[key] for key in ("choices", "low", "high"))
    if value is None and field.default is None:
        return
    if tuple in types and choices:
        if not isinstance(value, tuple) or any(name not in choices for name in value):
            refuse(f"any of {', '.join(choices)}")
        return
    is_own = field.name == "dataset" and (value == data.ARRAYS or data.is_file(value))
    if choices and value not in choices and not is_own:
        also = ", or a file, .npz or .npy" if field.name == "dataset" else ""
        refuse(f"one of {', '.join(choices)}{also}")
    if bool in types and not isinstance(value, bool):
        refuse("true or false")
    if int in types and (type(value) is not int or not low <= value <= high):
        refuse(f"an integer from {low} to {high:,}")
    if float in types and not (type(value) in (int, float) and low <= value < _FLOAT_LIMIT):
        refuse(f"a finite number of at least {low} and below {_FLOAT_LIMIT:g}")
    if field.name == "image_shape":
        if not isinstance(value, tuple) or len(value) != 2 or not all(map(_is_positive, value)):
            refuse("a height and a width, such as 28,28")
    elif field.name == "keep_epochs":
        if not isinstance(value, tuple) or any(type(v) is not int or v < low for v in value):
            refuse("whole numbers of at least 0, such as 0,1,10")
    elif tuple in types and not (
        isinstance(value, tuple) and len(value) == 2 and all(_is_number(v, 1) for v in value)
    ):
        refuse("two numbers of at least 0 and below 1, such as 0.9,0.999")
    if str in types and not (isinstance(value, str) and _LINE.fullmatch(value)):
        refuse("a text that is not empty, in one line of Unicode")
    if field.name == "name" and not re.fullmatch(r"[\w=+,-][\w=+,.-]{0,199}", value):
        refuse("a folder name of letters, digits and any of _ - + = , . (not first)")


def _is_positive(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_number(value: typing.Any, below: float = math.inf) -> bool:
    return type(value) in (int, float) and 0 <= value < below

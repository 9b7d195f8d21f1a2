"""What papers compare estimators by: experiments, their estimators, and published figures.

Those since 2020 share a benchmark: a binary VAE of 200 units, one dense layer each way or two more
of 200 leaky ReLU units, on images binarised anew whenever they are seen, 1,000,000 steps. Settings
are those of the authors' public code:

  disarm: https://github.com/google-research/google-research/tree/master/disarm/binary
  arms: https://github.com/alekdimi/arms
  double_cv: https://github.com/thjashin/double-cv
  rodeo: https://github.com/thjashin/rodeo

What they publish, training ELBO and a bound on test images, each with a standard error over five
runs, could be verified of none of the four, since only their code, not the papers' tables, was at
hand; so no figure is given, and `published` is empty. The code has none, in its READMEs or
elsewhere.
"""

import dataclasses
import math
import typing

from arm_tf import estimators

# A mean and a deviation or standard error, a figure, or, as a text, a bound. None: not given.
Figure = float | tuple[float, float] | str | None

_MODEL = ("dataset", "model", "network", "layers")
_PROTOCOL = ("units", "batch_size", "input_scaling", "code_scaling", "output_bias", "prior")


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper's experiments.

    Attributes:
      title: "Author & Author year".
      settings: by experiment, its settings, a dict.
      cells: by experiment, its estimators: by name, what a flag file adds to the settings, a dict.
      published: by experiment and name, as far as they are known, published figures in nats by the
        name that they have in a run, "test_nll" or "train_neg_elbo"; a dict.
      told_by: settings by which a run is known to be of an experiment.
    """

    title: str
    settings: dict[str, dict[str, typing.Any]]
    cells: dict[str, dict[str, dict[str, typing.Any]]]
    published: dict[str, dict[str, dict[str, Figure]]]
    told_by: tuple[str, ...] = _MODEL


_STEPS = 1_000_000
_TRAIN_IMAGES = {"mnist_dynamic": 50_000, "fashion_dynamic": 50_000, "omniglot_dynamic": 23_000}
_NETWORKS: dict[str, dict[str, typing.Any]] = {
    "linear": {},
    "nonlinear": {"network": "nonlinear", "leaky_slope": 0.3},
}


def _settings(
    batch_size: int, *networks: str, **settings: typing.Any
) -> dict[str, dict[str, typing.Any]]:
    """By experiment, settings of 1,000,000 steps, evaluated every 20 epochs."""
    return {
        f"{dataset}-{network}": {
            "dataset": dataset,
            **_NETWORKS[network],
            **settings,
            "batch_size": batch_size,
            "epochs": math.ceil(_STEPS / (images // batch_size)),
            "max_steps": _STEPS,
            "eval_every": 20,
            "test_samples": 100,
        }
        for dataset, images in _TRAIN_IMAGES.items()
        for network in networks
    }


def _at(evaluations: int, *names: str) -> dict[str, dict[str, typing.Any]]:
    """Estimators at so many evaluations of f, by name and their number."""
    return {
        f"{name}-{evaluations}": {
            "estimator": name,
            "num_samples": evaluations // estimators.get(name).evaluations(1, 1),
        }
        for name in names
    }


# What RELAX learns, it learns at the encoder's rate, and the decoder from RELAX's own sample.
def _relax(learning_rate: float) -> dict[str, dict[str, typing.Any]]:
    return {
        "relax": {
            "estimator": "relax",
            "decoder_samples": "shared",
            "estimator_learning_rate": learning_rate,
        }
    }


def _paper(
    title: str,
    settings: dict[str, dict[str, typing.Any]],
    cells: dict[str, dict[str, typing.Any]],
    relax: bool = True,
) -> Paper:
    """A paper with the same estimators in every experiment, and RELAX or not."""
    return Paper(
        title,
        settings,
        {
            name: {**cells, **(_relax(own["learning_rate"]) if relax else {})}
            for name, own in settings.items()
        },
        {},
        (*_MODEL, *_PROTOCOL),
    )


_DISARM = _settings(
    50,
    "linear",
    "nonlinear",
    input_scaling="centered",
    code_scaling="symmetric",
    output_bias="data_mean",
    prior="learned",
    learning_rate=1e-4,
)
_SHARED: dict[str, typing.Any] = {"prior": "uniform", "decoder_samples": "shared"}
_RODEO = _settings(100, "nonlinear", **_SHARED, learning_rate=1e-3)
_RODEO["fashion_dynamic-nonlinear"]["learning_rate"] = 3e-4

# By the folder of their flag files.
OTHERS = {
    "disarm": _paper(
        "Dong et al. 2020",
        _DISARM,
        {name: {"estimator": name} for name in ("arm", "disarm", "loo")},
    ),
    "arms": _paper(
        "Dimitriev & Zhou 2021",
        _DISARM,
        {
            name: cell
            for evaluations in (4, 6, 8)  # the code's pairs, twice
            for name, cell in _at(evaluations, "disarm", "loo", "arms", "arms_gaussian").items()
        },
        relax=False,
    ),
    "double_cv": _paper(
        "Titsias & Shi 2022",
        _settings(100, "linear", "nonlinear", **_SHARED, learning_rate=1e-3),
        {
            **_at(2, "disarm", "loo", "double_cv"),
            **_at(4, "disarm", "loo", "arms", "double_cv"),
        },
    ),
    "rodeo": _paper(
        "Shi et al. 2022",
        _RODEO,
        {
            **_at(2, "disarm", "loo", "double_cv", "rodeo"),
            **_at(3, "loo", "arms", "double_cv", "rodeo"),
        },
    ),
}

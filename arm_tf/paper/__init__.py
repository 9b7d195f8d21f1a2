"""The paper's settings and published figures.

Where the authors' scripts differ from one another, in scaling, slope, prior, Adam's decay rates,
batch or epochs, so do the settings here (see https://github.com/mingzhang-yin/ARM-gradient).
"""

import typing

from arm_tf.paper.benchmarks import OTHERS, Figure, Paper

SEEDS = (0, 1, 2, 3, 4)  # five trials

_ALL = {"learning_rate": 1e-4, "epochs": 1200, "eval_every": 5}
_LINEAR = {"input_scaling": "symmetric", "code_scaling": "symmetric"}
_NONLINEAR = {"network": "nonlinear", "leaky_slope": 0.1, "prior": "uniform"}
_TWO_LAYERS = {"layers": 2}
_OMNIGLOT = {"dataset": "omniglot", "valid_images": 1300, "test_images": 8000, **_ALL}
_SLOW_BETAS = {"encoder_betas": (0.5, 0.99999)}

# By name of the experiment.
SETTINGS: dict[str, dict[str, typing.Any]] = {
    "mnist_static-linear": {"dataset": "mnist_static", **_ALL, **_LINEAR},
    "mnist_static-nonlinear": {"dataset": "mnist_static", **_ALL, **_NONLINEAR},
    "mnist_static-two_layers": {"dataset": "mnist_static", **_ALL, **_TWO_LAYERS},
    "omniglot-linear": {**_OMNIGLOT, **_SLOW_BETAS},
    "omniglot-nonlinear": {
        **_OMNIGLOT,
        **_SLOW_BETAS,
        "network": "nonlinear",
        "leaky_slope": 0.3,
        "learning_rate": 5e-5,
        "batch_size": 20,
        "epochs": 800,
    },
    "omniglot-two_layers": {**_OMNIGLOT, **_TWO_LAYERS},
    "mnist_threshold-linear": {"dataset": "mnist_threshold", **_ALL, **_LINEAR},
    "mnist_threshold-nonlinear": {"dataset": "mnist_threshold", **_ALL, **_NONLINEAR},
    "mnist_threshold-two_layers": {"dataset": "mnist_threshold", **_ALL, **_TWO_LAYERS},
    "mnist_threshold-conditional": {
        "dataset": "mnist_threshold",
        "model": "conditional",
        "layers": 2,
        **_LINEAR,
        "learning_rate": 1e-4,
        "batch_size": 100,
        "epochs": 2000,
        "eval_every": 20,
    },
}

# Test -log p in nats by experiment and estimator (Yin & Zhou 2019, tables 2 and 3): a mean and a
# standard deviation over five trials, a figure, or, as a text, a bound. The figures other than
# ARM's in the tables of autoencoders are quoted there from earlier work. None: not given.
PUBLISHED: dict[str, dict[str, Figure]] = {
    "mnist_static-linear": {
        "reinforce": 164.0,
        "wake_sleep": 120.8,
        "nvil": 113.1,
        "legrad": "≤ 117.5",
        "muprop": "≤ 113.0",
        "concrete": 107.3,
        "rebar": 107.7,
        "relax": "≤ 113.6",
        "arm": (107.2, 0.1),
    },
    "mnist_static-nonlinear": {
        "reinforce": 114.6,
        "wake_sleep": None,
        "nvil": 102.2,
        "legrad": None,
        "muprop": 99.1,
        "concrete": 99.6,
        "rebar": 101.4,
        "relax": "≤ 119.2",
        "arm": (98.4, 0.3),
    },
    "mnist_static-two_layers": {
        "reinforce": 159.2,
        "wake_sleep": 107.7,
        "nvil": 99.8,
        "legrad": None,
        "muprop": "≤ 100.4",
        "concrete": 95.6,
        "rebar": 95.4,
        "relax": "≤ 100.9",
        "arm": (96.7, 0.3),
    },
    "omniglot-linear": {
        "nvil": 117.6,
        "muprop": 117.6,
        "concrete": 117.7,
        "rebar": 117.7,
        "relax": "≤ 122.1",
        "arm": (115.8, 0.2),
    },
    "omniglot-nonlinear": {
        "nvil": 116.6,
        "muprop": 117.5,
        "concrete": 116.7,
        "rebar": 118.0,
        "relax": "≤ 128.2",
        "arm": (117.6, 0.4),
    },
    "omniglot-two_layers": {
        "nvil": 111.4,
        "muprop": 111.2,
        "concrete": 111.3,
        "rebar": 110.8,
        "relax": "≤ 115.4",
        "arm": (109.8, 0.3),
    },
    "mnist_threshold-linear": {"arm": None, "rebar": None, "relax": None},
    "mnist_threshold-nonlinear": {"arm": None, "rebar": None, "relax": None},
    "mnist_threshold-two_layers": {"arm": None, "rebar": None, "relax": None},
    "mnist_threshold-conditional": {
        "reinforce": 72.0,
        "darn": 59.7,
        "st_gumbel": 59.3,
        "st": 58.9,
        "muprop": 58.9,
        "st_annealed": 58.7,
        "arm": (57.9, 0.1),
    },
}

# All papers whose experiments are flag files, by the folder of those.
PAPERS = {
    "paper": Paper(
        "Yin & Zhou 2019",
        SETTINGS,
        {name: {e: {"estimator": e} for e in figures} for name, figures in PUBLISHED.items()},
        {
            name: {e: {"test_nll": figure} for e, figure in figures.items()}
            for name, figures in PUBLISHED.items()
        },
    ),
    **OTHERS,
}


def learning_rates(experiment: str) -> tuple[float, ...]:
    """Those among which the paper chooses by validation, for an experiment; a tuple."""
    is_fixed = SETTINGS[experiment].get("model") == "conditional"
    return (1e-4,) if is_fixed else (5e-4, 1e-4, 5e-5)


def batch_size(dataset: str) -> int:
    """Images a step for a data set, but for the experiments whose settings say otherwise; int."""
    return 25 if dataset in ("omniglot", "omniglot_dynamic") else 50

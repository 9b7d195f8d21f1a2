"""The benchmark that papers since 2020 share, each with settings of its own.

A binary VAE of 200 units, one dense layer each way or two more of 200 leaky ReLU units, on images
binarised anew whenever they are seen, 1,000,000 steps.

What these papers publish, training ELBO and a bound on test images, each with a standard error over
five runs, could be verified of none, since only their code, not the papers' tables, was at hand;
so no figure is given. The code has none, in its READMEs or elsewhere. `Cell.published` is where a
figure that somebody has read there belongs.
"""

import math
import typing
from collections.abc import Iterable

from arm_tf import estimators
from arm_tf.experiments.experiment import Cell, Experiment

_STEPS = 1_000_000
_TRAIN_IMAGES = {"mnist_dynamic": 50_000, "fashion_dynamic": 50_000, "omniglot_dynamic": 23_000}
_NETWORKS: dict[str, dict[str, typing.Any]] = {
    "linear": {},
    "nonlinear": {"network": "nonlinear", "leaky_slope": 0.3},
}
DISARM: dict[str, typing.Any] = {  # the settings of DisARM's code, which ARMS's has, too
    "input_scaling": "centered",
    "code_scaling": "symmetric",
    "output_bias": "data_mean",
    "batch_size": 50,
    "learning_rate": 1e-4,
}
DOUBLE_CV: dict[str, typing.Any] = {  # those of Double CV's, which RODEO's has, too
    "prior": "uniform",
    "decoder_samples": "shared",
    "batch_size": 100,
    "learning_rate": 1e-3,
}


def experiments(
    source: str,
    paper: str,
    settings: dict[str, typing.Any],
    cells: Iterable[Cell],
    networks: Iterable[str] = tuple(_NETWORKS),
    relax: bool = True,
    **rates: float,
) -> tuple[Experiment, ...]:
    """A paper's experiments on the three data sets, with the same estimators in each.

    Args:
      source, paper: as in `Experiment`.
      settings: of all of them.
      cells: of all of them, but for RELAX's.
      networks: "linear" or "nonlinear".
      relax: whether there is RELAX, too: what it learns, it learns at the encoder's rate, and the
        decoder from RELAX's own sample.
      rates: learning rates of data sets that have others than in `settings`, by name.
    """
    found = []
    for dataset, images in _TRAIN_IMAGES.items():
        for network in networks:
            batch_size = settings["batch_size"]
            rate = rates.get(dataset, settings["learning_rate"])
            own = {
                "dataset": dataset,
                **_NETWORKS[network],
                **settings,
                "learning_rate": rate,
                "epochs": math.ceil(_STEPS / (images // batch_size)),
                "max_steps": _STEPS,
                "eval_every": 20,
                "test_samples": 100,
            }
            relaxed = {"decoder_samples": "shared", "estimator_learning_rate": rate}
            further = [Cell("relax", settings=relaxed)] if relax else []
            name = f"{source}/{dataset}-{network}"
            found.append(Experiment(name, paper, own, (*cells, *further)))
    return tuple(found)


def at(evaluations: int, *names: str) -> tuple[Cell, ...]:
    """Estimators at so many evaluations of f."""
    return tuple(
        Cell(name, evaluations // estimators.get(name).evaluations(1, 1)) for name in names
    )

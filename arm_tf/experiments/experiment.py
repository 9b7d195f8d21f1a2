"""What an experiment is: a paper's settings, its estimators, and what it has published."""

import dataclasses
import typing

from arm_tf import estimators

# A mean and a deviation or standard error, a figure, or, as a text, a bound. None: not given.
Published = float | tuple[float, float] | str | None


@dataclasses.dataclass(frozen=True)
class Cell:
    """An estimator of an experiment: a cell of the paper's table.

    Attributes:
      estimator: its name.
      num_samples: K, or None for the estimator's usual number.
      settings: what it has beside those of the experiment, a dict.
      published: figures in nats, as far as they are known, by the name that they have in a run,
        "test_nll" or "train_neg_elbo"; a dict.
    """

    estimator: str
    num_samples: int | None = None
    settings: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    published: dict[str, Published] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a paper compares estimators by.

    Attributes:
      name: "SOURCE/DATA-NETWORK", SOURCE being the name of the module that it is in.
      paper: "Author & Author year".
      settings: those of `arm_tf.training.config.Config` that are not its defaults, a dict.
      cells: the paper's estimators, a tuple of `Cell`.
      learning_rates: those among which the paper chooses by validation; none where it has one.
    """

    name: str
    paper: str
    settings: dict[str, typing.Any]
    cells: tuple[Cell, ...]
    learning_rates: tuple[float, ...] = ()

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to train with: those to choose from, or its one."""
        return self.learning_rates or (self.settings["learning_rate"],)

    @property
    def title(self) -> str:
        """The name for people, without the paper's: "MNIST-static, two layers"."""
        return title(self.name)

    def settings_with(self, estimator: str) -> dict[str, typing.Any]:
        """The settings of a run with an estimator, also with one that the paper does not have."""
        estimator = estimators.ALIASES.get(estimator, estimator)
        own = (cell.settings for cell in self.cells if cell.estimator == estimator)
        return {**self.settings, **next(own, {}), "estimator": estimator}

    def cell(self, estimator: str, num_samples: int) -> Cell | None:
        """The paper's cell with an estimator at K samples, or None."""
        for cell in self.cells:
            if cell.estimator == estimator:
                if estimators.check(estimator, cell.num_samples)[1] == num_samples:
                    return cell
        return None


def title(name: str) -> str:
    """An experiment's name for people, without the paper's: "MNIST-static, two layers"."""
    dataset, network = (
        name.rpartition("/")[2]
        .replace("omniglot", "OMNIGLOT")
        .replace("fashion", "Fashion")
        .replace("mnist", "MNIST")
        .split("-")
    )
    return f"{dataset.replace('_', '-')}, {network.replace('_', ' ')}"


def text_of(figure: Published) -> str:
    """A published figure as a text."""
    if figure is None:
        return "–"
    return f"{figure[0]} ± {figure[1]}" if isinstance(figure, tuple) else str(figure)


def number_of(figure: Published) -> float | None:
    """A published figure as a number, None where that is a bound or missing."""
    if isinstance(figure, tuple):
        return figure[0]
    return None if isinstance(figure, str) else figure

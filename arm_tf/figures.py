"""Pictures of a run: grids of images and curves."""

import os
import typing
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from arm_tf import estimators

_SCALE = 2  # screen pixels for each image pixel
_LABELS = {
    "train_neg_elbo": ("training, −ELBO", "#0072B2", "-"),
    "train_neg_bound": ("training, multi-sample bound", "#0072B2", "--"),
    "valid_neg_elbo": ("validation, −ELBO", "#E69F00", "-"),
    "test_neg_elbo": ("test, −ELBO", "#009E73", "-"),
    "valid_nll": ("validation, bound on −{likelihood}", "#E69F00", "--"),
}

_DASHES = ("-", (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.5)), (0, (8, 1.5, 2.5, 1.5)))
# Told apart in all common kinds of colour vision (Okabe & Ito 2008; Tol's wine), one a family.
_COLORS = ("#0072B2", "#D55E00", "#000000", "#CC79A7", "#E69F00", "#56B4E9", "#009E73", "#882255")
_GOLDEN = 0.618  # of the circle of hues, to the next colour after those
DPI = 120
STYLE: dict[typing.Any, bool] = {"axes.spines.top": False, "axes.spines.right": False}
_LEGEND_COLUMNS = 3
_PARTS = {"train": "training", "valid": "validation", "test": "test"}


def estimator_style(name: str) -> tuple[str, typing.Any]:
    """Colour and line style of an estimator of the table, the same in every figure.

    The colour is its family's, the line goes by its place in the family: five patterns, the same in
    a shade, and both again with ever more long dashes between.

    Returns:
      Two values for the `color` and `linestyle` of matplotlib.
    """
    family = estimators.get(name).family
    families = list(dict.fromkeys(row.family for row in estimators.TABLE.values()))
    number = families.index(family)
    color: typing.Any  # one of matplotlib's many ways to say it
    if number < len(_COLORS):
        color = to_rgb(_COLORS[number])
    else:
        color = hsv_to_rgb((number * _GOLDEN % 1, 0.8, 0.7))
    place = [n for n, row in estimators.TABLE.items() if row.family == family].index(name)
    rounds, pattern = divmod(place, len(_DASHES))
    long_dashes, is_shade = divmod(rounds, 2)
    if is_shade:
        color = [0.5 * value if max(color) else 0.6 for value in color]  # of black, grey
    dashes = _DASHES[pattern]
    if long_dashes:
        dashes = (0, (*(dashes[1] if pattern else (3, 1)), *(14, 3) * long_dashes))
    return to_hex(color), dashes


def grid(
    images: np.ndarray, *others: np.ndarray, image_shape: tuple[int, int] = (28, 28)
) -> np.ndarray:
    """Images as one picture, row by row; under each row, the rows of `others` that belong to it.

    Args:
      images: float [N, pixels] in [0, 1], 1 is ink.
      *others: of the same shape.
      image_shape: (height, width) of an image.

    Returns:
      float32 [rows, columns], 0 is ink and 1 is paper, with lines of paper between images.
    """
    height, width = image_shape
    columns = 16 if others else 8
    missing = -len(images) % columns
    rows = [
        np.pad(part, [(0, missing), (0, 0)]).reshape(-1, columns, height, width)
        for part in (images, *others)
    ]
    page = np.stack(rows, axis=1).astype(np.float32).reshape(-1, columns, height, width)
    framed = np.pad(page, [(0, 0), (0, 0), (1, 1), (1, 1)]).swapaxes(1, 2)
    return 1.0 - framed.reshape(len(page) * (height + 2), columns * (width + 2))


def save_grid(path: str | os.PathLike[str], page: np.ndarray) -> None:
    """Writes a page made by `grid` as a PNG file."""
    page = np.repeat(np.repeat(np.rint(page * 255).astype(np.uint8), _SCALE, 0), _SCALE, 1)
    Image.fromarray(page).save(path)


def run_curves(
    metrics: Sequence[dict[str, float]], title: str, likelihood: str = "log p(x)"
) -> Figure:
    """Figure of a run's negative ELBOs and bounds, in nats, against epochs.

    Args:
      metrics: rows of metrics.csv as dicts; needs at least one.
      title: str.
      likelihood: str, what the bounds are on.

    Returns:
      matplotlib Figure.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        epochs = [row["epoch"] for row in metrics]
        curves = {name: look for name, look in _LABELS.items() if name in metrics[0]}
        for name, (label, color, style) in curves.items():
            values = [row[name] for row in metrics]
            marker = "o" if len(metrics) == 1 else None
            label = label.format(likelihood=likelihood)
            axes.plot(epochs, values, style, marker=marker, color=color, label=label)
        best = min(metrics, key=lambda row: row["valid_nll"])
        axes.plot(
            best["epoch"],
            best["valid_nll"],
            "o",
            color="black",
            fillstyle="none",
            label=f"best validation bound, {best['valid_nll']:.2f}",
        )
        axes.set(xlabel="epoch", ylabel="nats", title=title)
        tail = [row[name] for row in metrics[len(metrics) // 20 :] for name in curves]
        span = max(tail) - min(tail)
        axes.set_ylim(min(tail) - 0.05 * span - 0.1, max(tail) + 0.05 * span + 0.1)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def elbo_curves(trials: Mapping[str, Sequence[Sequence[dict[str, float]]]], title: str) -> Figure:
    """Figure of the negative ELBO in training, validation and test, against steps and seconds.

    The mean over trials, and a band of one standard deviation where there are several. The second
    curve of an estimator is fainter than the first, and so on. Axes end where the median of the
    curves is after a twentieth of its length, or above the end of the worst.

    Args:
      trials: dict from estimator, or "estimator, settings", to a list of trials' rows of
        metrics.csv, with `training_seconds`, of equal lengths. Where a trial's are NaN, not having
        been measured, time is the mean of the others', or there is no curve against it.
      title: str.

    Returns:
      matplotlib Figure.
    """
    with matplotlib.rc_context(STYLE):
        legend_rows = -(-len(trials) // _LEGEND_COLUMNS)
        figure = Figure(figsize=(10, 9 + 0.25 * legend_rows), dpi=DPI, layout="constrained")
        panels = figure.subplots(3, 2, sharex="col", sharey="row")
        for (part, word), row in zip(_PARTS.items(), panels, strict=True):
            shown = {
                name: runs
                for name, runs in trials.items()
                if np.isfinite(
                    [r.get(f"{part}_neg_elbo", np.nan) for rows in runs for r in rows]
                ).all()
            }
            lowest, tops, ends = [], [], []
            drawn: list[str] = []
            for name, runs in shown.items():
                estimator = name.partition(",")[0]
                color, dashes = estimator_style(estimator)
                strength = 0.6 ** drawn.count(estimator)
                drawn.append(estimator)
                values = np.array([[r[f"{part}_neg_elbo"] for r in rows] for rows in runs])
                mean, deviation = (
                    values.mean(axis=0),
                    values.std(axis=0, ddof=min(1, len(runs) - 1)),
                )
                label = f"{name} ({len(runs)} seeds)" if len(runs) > 1 else name
                for axes, against in zip(row, ("step", "training_seconds"), strict=True):
                    along = np.array([[r[against] for r in rows] for rows in runs])
                    measured = along[~np.isnan(along).any(axis=1)]
                    if not len(measured):
                        continue
                    x = measured.mean(axis=0)
                    look = {"color": color, "alpha": strength, "linestyle": dashes}
                    axes.plot(x, mean, **look, label=label)
                    look = {"color": color, "alpha": 0.2 * strength}
                    axes.fill_between(x, mean - deviation, mean + deviation, **look)
                lowest.append(mean.min())
                tops.append(mean[len(mean) // 20])
                ends.append(mean[-1])
            if shown:
                row[0].set_ylim(min(lowest) - 1, max(np.median(tops), *ends) + 1)
            row[0].set_ylabel(f"{word} −ELBO (nats)")
            for axes in row:
                axes.grid(alpha=0.3)
        panels[2, 0].set_xlabel("steps")
        panels[2, 0].xaxis.set_major_formatter(EngFormatter(sep=""))
        panels[2, 1].set_xlabel("seconds of training alone")
        figure.suptitle(title)
        handles, labels = panels[1, 0].get_legend_handles_labels()
        look = {"ncols": _LEGEND_COLUMNS, "frameon": False}
        figure.legend(handles, labels, loc="outside lower center", **look)
    return figure


def variance_curves(metrics: Sequence[dict[str, float]], title: str) -> Figure:
    """Figure of the variances that a run with --track_variance has followed, against steps.

    Args:
      metrics: rows of the run's metrics.csv as dicts.
      title: str.

    Returns:
      matplotlib Figure.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        for column in metrics[0]:
            if column.startswith("variance_"):
                name = column.removeprefix("variance_")
                color, dashes = estimator_style(name)
                values = [row[column] for row in metrics]
                steps = [row["step"] for row in metrics]
                axes.plot(steps, values, color=color, linestyle=dashes, label=name)
        axes.set(yscale="log", xlabel="steps", ylabel="variance of the gradient", title=title)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def estimator_label(name: str) -> str:
    """An estimator's name for people."""
    return "true gradient" if name == "exact" else name

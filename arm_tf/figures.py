"""Pictures of a run: grids of images and curves."""

import os
import typing
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox
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
# Told apart in all common kinds of colour vision (Okabe & Ito 2008), one a family of the table.
_COLORS = ("#0072B2", "#D55E00", "#000000", "#CC79A7", "#E69F00", "#56B4E9", "#009E73")
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
        metrics.csv, with `training_seconds`, of equal lengths.
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
                name: runs for name, runs in trials.items() if f"{part}_neg_elbo" in runs[0][0]
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
                    x = np.mean([[r[against] for r in rows] for rows in runs], axis=0)
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
        panels[2, 1].set_xlabel("seconds of training (evaluation and pauses left out)")
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


def variances(rows: Sequence[dict[str, typing.Any]], title: str) -> Figure:
    """Figure of several estimators' gradients in the logits: deviation against bias and time.

    A row of two panels for each objective. A bias below twice its noise is at "none seen", and so
    are estimators that ascend something else, as crosses; dots are hollow where the table says that
    there is a bias, or one is seen. The grey lines are the fronts, of those that no other beats in
    both; that of the time is of the full dots. Deviations of zero but for rounding, as of "exact",
    are not drawn.

    Args:
      rows: dicts with "estimator", "objective", "evaluations", "microseconds", "variance_logits",
        "variance_stderr_logits", "bias_logits" and "bias_noise_logits".
      title: str.

    Returns:
      matplotlib Figure.
    """
    groups = _by_objective(rows)
    with matplotlib.rc_context(STYLE):
        figure, grid = _rows_of_panels(len(groups), sharey="row")
        to_label = []
        for (objective, group), (by_bias, by_time) in zip(groups.items(), grid, strict=False):
            deviations = np.sqrt([row["variance_logits"] for row in group])
            seen = [_seen_bias(row) for row in group]
            least = min(filter(None, seen), default=1.0)
            nowhere = 10 ** (np.floor(np.log10(least)) - 0.5)  # to the left of all that is seen
            biases = np.array([bias or nowhere for bias in seen])
            times = np.array([row["microseconds"] for row in group])
            table = [estimators.get(row["estimator"]) for row in group]
            is_fair = np.array([not row.ascends for row in table])
            is_full = np.array(
                [not (row.biased or bias) for row, bias in zip(table, seen, strict=True)]
            )
            for axes, values, on_front in (
                (by_bias, biases, is_fair),
                (by_time, times, is_fair & is_full),
            ):
                axes.set(xscale="log", yscale="log")
                _plain_ticks(axes.xaxis, axes.yaxis)
                axes.grid(alpha=0.3)
                _draw_front(axes, values[on_front], deviations[on_front])
                for row, x, y, full, fair in zip(
                    group, values, deviations, is_full, is_fair, strict=True
                ):
                    color, _ = estimator_style(row["estimator"])
                    axes.plot(x, y, "o" if fair else "x", color=color, markersize=6,
                              markerfacecolor=color if full else "white")  # fmt: skip
                    name = f"{row['estimator']} ({row['evaluations']})"
                    to_label.append((axes, x, y, name, color))
            by_bias.axvspan(nowhere / 10**0.5, nowhere * 10**0.5, color="#eeeeee", zorder=0)
            by_bias.set_xlim(nowhere / 10**0.5, 5 * max(biases))
            ticks = [x for x in by_bias.get_xticks() if 4 * nowhere < x <= by_bias.get_xlim()[1]]
            by_bias.set_xticks([nowhere, *ticks], ["none seen", *(f"{x:g}" for x in ticks)])
            by_bias.set(xlabel="bias (root mean square)", ylabel="standard deviation, one estimate")
            by_time.set_xlabel("microseconds an estimate")
            low, high = min(times), max(times)
            by_time.set_xlim(low / 1.5, high * max(2.0, (high / low) ** 0.25))
            name = {"elbo": "ELBO", "multisample": "multi-sample bound"}[objective]
            by_bias.set_title(f"{name}: gradient in the logits (evaluations of f)", loc="left")
            by_time.set_title("full: unbiased; hollow: biased; ×: ascends something else; grey: "
                              "front, here of the unbiased", loc="left", fontsize=8)  # fmt: skip
        figure.suptitle(title)
        _label(figure, to_label)
    return figure


def variances_along(rows: Sequence[dict[str, typing.Any]], title: str) -> Figure:
    """Figure of the variance of several estimators' gradients in the logits along training.

    Args:
      rows: as of `variances`, with "step"; those of a step together, in ascending order.
      title: str.

    Returns:
      matplotlib Figure, with a row of two panels for each objective: variance, and the biases that
      are above twice their noise at some step.
    """
    groups = _by_objective(rows)
    steps = sorted({row["step"] for row in rows})
    with matplotlib.rc_context(STYLE):
        figure, grid = _rows_of_panels(len(groups), sharey=False)
        for (objective, group), panels in zip(groups.items(), grid, strict=False):
            names = dict.fromkeys(row["estimator"] for row in group)
            for axes, what in zip(panels, ("variance", "bias"), strict=True):
                ends = []
                for name in names:
                    own = [row for row in group if row["estimator"] == name]
                    values = [row[f"{what}_logits"] for row in own]
                    if what == "bias":
                        values = [_seen_bias(row) or np.nan for row in own]
                    if not np.isfinite(values).any():
                        continue
                    color, dashes = estimator_style(name)
                    axes.plot(range(len(values)), values, color=color, linestyle=dashes,
                              marker="o", markersize=3)  # fmt: skip
                    last = max(i for i, value in enumerate(values) if np.isfinite(value))
                    ends.append((last, values[last], f"{name} ({own[0]['evaluations']})", color))
                axes.set_yscale("log")
                _plain_ticks(axes.yaxis)
                axes.set_xticks(range(len(steps)), [f"{step:,}" for step in steps])
                axes.set_xlim(-0.1, 1.45 * max(len(steps) - 1, 1))
                axes.set(xlabel="steps of training", ylabel=f"{what} of the gradient in the logits")
                axes.grid(alpha=0.3)
                _label_ends(figure, axes, ends)
            name = {"elbo": "ELBO", "multisample": "multi-sample bound"}[objective]
            panels[0].set_title(f"{name} (evaluations of f)", loc="left")
        figure.suptitle(title)
    return figure


def _rows_of_panels(number: int, sharey: typing.Literal["row", False]) -> tuple[Figure, np.ndarray]:
    """A figure of rows of two panels, one where there is nothing to draw, and its axes."""
    number = max(1, number)
    figure = Figure(figsize=(12, 0.6 + 5.4 * number), dpi=DPI, layout="constrained")
    return figure, figure.subplots(number, 2, sharey=sharey, squeeze=False)


def _by_objective(
    rows: Sequence[dict[str, typing.Any]],
) -> dict[str, list[dict[str, typing.Any]]]:
    """The rows of each objective, without those of no variance but for rounding."""
    groups: dict[str, list[dict[str, typing.Any]]] = {}
    for row in rows:
        groups.setdefault(row["objective"], []).append(row)
    least = 1e-10 * max(row["variance_logits"] for row in rows)
    return {
        objective: [row for row in group if row["variance_logits"] > least]
        for objective, group in groups.items()
        if any(row["variance_logits"] > least for row in group)
    }


def _seen_bias(row: dict[str, typing.Any]) -> float | None:
    """The bias in the logits where it is above twice its noise."""
    bias, size = row["bias_logits"], row["bias_noise_logits"]
    return bias if bias is not None and bias > 2 * size else None


def _plain_ticks(*logarithmic: Axis) -> None:
    for axis in logarithmic:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_locator(NullLocator())


def _draw_front(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """A staircase through the points that no other is below and left of."""
    best: list[tuple[float, float]] = []
    for point in sorted(zip(x, y, strict=True)):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    if best:
        xs, ys = zip(*best, strict=True)
        axes.step([*xs, 1e9 * xs[-1]], [*ys, ys[-1]], where="post", color="#dddddd", linewidth=4,
                  scalex=False, scaley=False, solid_capstyle="butt", zorder=1)  # fmt: skip


def _label(figure: Figure, points: Sequence[tuple]) -> None:
    """Names points where there is room, with a thin line to those that are far.

    Args:
      points: tuples of axes, x, y, text and colour.
    """
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    taken: dict[Axes, list[Bbox]] = {}
    for axes, x, y, *_ in points:
        centre = axes.transData.transform((x, y))
        taken.setdefault(axes, []).append(Bbox([centre - 4 * pixels, centre + 4 * pixels]))
    angles = [0, *np.pi * np.array([1, 0.25, -0.25, 0.75, -0.75, 0.12, -0.12, 0.88, -0.88])]
    places = [(r, angle) for r in (7, *range(12, 240, 8)) for angle in angles]
    for axes, x, y, text, color in sorted(points, key=lambda point: -point[2]):
        label = axes.text(0, 0, text, fontsize=8)
        size = label.get_window_extent().size + pixels
        label.remove()
        inside, centre = axes.get_window_extent(), axes.transData.transform((x, y))
        for r, angle in places:
            offset = r * np.array([np.cos(angle), np.sin(angle)])
            is_left = np.cos(angle) < 0
            corner = centre + offset * pixels - size * (is_left, 0.5)
            box = Bbox([corner, corner + size])
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0
            if fits and box.y1 <= inside.y1 and not any(box.overlaps(o) for o in taken[axes]):
                break
        taken[axes].append(box)
        line = dict(arrowstyle="-", color=color, alpha=0.5, linewidth=0.6, shrinkA=0, shrinkB=3)
        axes.annotate(
            text, (x, y), offset, textcoords="offset points", fontsize=8, color=color,
            ha="right" if is_left else "left", va="center", arrowprops=line if r > 12 else None,
        ).set_in_layout(False)  # fmt: skip


def _label_ends(figure: Figure, axes: Axes, ends: Sequence[tuple]) -> None:
    """Names lines at their ends: tuples of x, y, text and colour."""
    figure.draw_without_rendering()
    gap = 10 * figure.dpi / 72
    ends = sorted(ends, key=lambda end: end[1])
    heights = [float(axes.transData.transform(end[:2])[1]) for end in ends]
    up, down = list(heights), list(heights)
    for i in range(1, len(ends)):
        up[i] = max(up[i], up[i - 1] + gap)
        down[-1 - i] = min(down[-1 - i], down[-i] - gap)
    right = max((end[0] for end in ends), default=0)
    for (x, y, text, color), high, low in zip(ends, up, down, strict=True):
        at = axes.transData.inverted().transform((0, (high + low) / 2))[1]
        axes.annotate(text, (x, y), (right + 0.08, at), fontsize=8, color=color, va="center",
                      arrowprops=dict(arrowstyle="-", color=color, alpha=0.5, linewidth=0.6,
                                      shrinkA=0, shrinkB=0)).set_in_layout(False)  # fmt: skip

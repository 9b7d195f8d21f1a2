"""Pictures of a run: grids of images and curves."""

import os
import typing
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
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
_DPI = 120
_STYLE: dict[typing.Any, bool] = {"axes.spines.top": False, "axes.spines.right": False}
_TOPS: dict[str, dict[str, typing.Any]] = {
    "arm": {"zorder": 3, "lw": 2.5},
    "exact": {"zorder": 4},
}  # drawn above the others in the toy's losses
_PARTS = {"train": "training", "valid": "validation"}


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
    page = np.pad(page, [(0, 0), (0, 0), (1, 1), (1, 1)]).swapaxes(1, 2)
    return 1.0 - page.reshape(len(page) * (height + 2), columns * (width + 2))


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
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.5), dpi=_DPI, layout="constrained")
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
    """Figure of the negative ELBO in training and validation, against steps and seconds.

    The mean over trials, and a band of one standard deviation where there are several. The second
    curve of an estimator is fainter than the first, and so on.

    Args:
      trials: dict from estimator, or "estimator, settings", to a list of trials' rows of
        metrics.csv, of equal lengths.
      title: str.

    Returns:
      matplotlib Figure.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 7), dpi=_DPI, layout="constrained")
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        for (part, word), row in zip(_PARTS.items(), panels, strict=True):
            shown = {
                name: runs for name, runs in trials.items() if f"{part}_neg_elbo" in runs[0][0]
            }
            tops, ends = [], []
            drawn: list[str] = []
            for name, runs in shown.items():
                estimator = name.partition(",")[0]
                color, dashes = estimator_style(estimator)
                strength = 0.5 ** drawn.count(estimator)
                drawn.append(estimator)
                values = np.array([[r[f"{part}_neg_elbo"] for r in rows] for rows in runs])
                mean, deviation = (
                    values.mean(axis=0),
                    values.std(axis=0, ddof=min(1, len(runs) - 1)),
                )
                for axes, against in zip(row, ("step", "seconds"), strict=True):
                    x = np.mean([[r[against] for r in rows] for rows in runs], axis=0)
                    look = {"color": color, "alpha": strength, "linestyle": dashes}
                    axes.plot(x, mean, **look, label=name)
                    look = {"color": color, "alpha": 0.2 * strength}
                    axes.fill_between(x, mean - deviation, mean + deviation, **look)
                tops.append(mean[len(mean) // 20])
                ends.append(mean.min())
            if shown:
                row[0].set_ylim(min(ends) - 1, max(tops) + 1)
            row[0].set_ylabel(f"{word} −ELBO (nats)")
            for axes in row:
                axes.grid(alpha=0.3)
        panels[1, 0].set_xlabel("steps")
        panels[1, 1].set_xlabel("seconds, evaluation included")
        panels[1, 0].ticklabel_format(axis="x", scilimits=(-3, 4), useMathText=True)
        figure.suptitle(title)
        handles, labels = panels[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def variance_curves(metrics: Sequence[dict[str, float]], title: str) -> Figure:
    """Figure of the variances that a run with --track_variance has followed, against steps.

    Args:
      metrics: rows of the run's metrics.csv as dicts.
      title: str.

    Returns:
      matplotlib Figure.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.5), dpi=_DPI, layout="constrained")
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


def _estimator_label(name: str) -> str:
    return "true gradient" if name == "exact" else name


def toy_traces(traces: Mapping[tuple[str, float], dict[str, typing.Any]]) -> Figure:
    """Figure of the toy's gradients and probabilities: a column for each p0.

    A row for each estimator, with its estimates and the true gradient at the same phi, each on its
    own scale; below, the probabilities of all.

    Args:
      traces: dict from (estimator, p0) to what `arm_tf.toy.ascent` returns.

    Returns:
      matplotlib Figure.
    """
    names = list(dict.fromkeys(name for name, _ in traces))
    p0s = list(dict.fromkeys(p0 for _, p0 in traces))
    with matplotlib.rc_context(_STYLE):
        size = (2.8 + 2.6 * len(p0s), 0.6 + 1.8 * (len(names) + 1))
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        panels = figure.subplots(len(names) + 1, len(p0s), sharex=True, squeeze=False)
        for column, p0 in zip(panels.T, p0s, strict=True):
            column[0].set_title(f"$p_0$ = {p0}")
            for axes, name in zip(column, names, strict=False):
                color, dashes = estimator_style(name)
                trace = traces[name, p0]
                axes.plot(trace["estimate"], ".", color=color, markersize=1.5)
                axes.plot(trace["true_gradient"], color="black", linewidth=1.5)
                axes.ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)
                column[-1].plot(trace["probability"], color=color, linestyle=dashes)
            column[-1].set(xlabel="iteration", ylim=(-0.03, 1.03))
        for axes, name in zip(panels[:, 0], names, strict=False):
            axes.set_ylabel(f"gradient in φ,\n{_estimator_label(name)}")
        panels[-1, 0].set_ylabel("probability σ(φ)")
        handles = [Line2D([], [], color="black", linewidth=1.5, label="true gradient")]
        for name in names:
            color, dashes = estimator_style(name)
            dots: dict[str, typing.Any] = {"linestyle": "", "marker": ".", "color": color}
            handles.append(Line2D([], [], **dots, label=f"{name}, estimate"))
            line: dict[str, typing.Any] = {"linestyle": dashes, "color": color}
            handles.append(Line2D([], [], **line, label=f"{name}, probability"))
        figure.legend(handles=handles, loc="outside right upper", frameon=False)
        figure.align_ylabels(panels[:, 0])
    return figure


def toy_losses(losses: Mapping[str, np.ndarray], p0: float) -> Figure:
    """Figure of the toy's loss, the negative objective, against iterations.

    Args:
      losses: dict from estimator to float [iterations].
      p0: float.

    Returns:
      matplotlib Figure.
    """
    with matplotlib.rc_context(_STYLE):
        size = (7.5, max(4.0, 0.8 + 0.21 * len(losses)))
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        axes = figure.add_subplot()
        for name, values in losses.items():
            color, dashes = estimator_style(name)
            top = _TOPS.get(name, {})
            axes.plot(values, color=color, linestyle=dashes, label=_estimator_label(name), **top)
        axes.set(xlabel="iteration", ylabel="loss, −E[($z - p_0$)²]", title=f"$p_0$ = {p0}")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def toy_gradients(
    gradients: Mapping[tuple[str, int], np.ndarray], true_gradient: np.ndarray, p0: float
) -> Figure:
    """Figure of gradients estimated with several samples at each iteration, beside the true one.

    Args:
      gradients: dict from (estimator, number of samples) to float [iterations].
      true_gradient: float [iterations].
      p0: float.

    Returns:
      matplotlib Figure, a row for each estimator and a column for each number.
    """
    names = list(dict.fromkeys(name for name, _ in gradients))
    counts = list(dict.fromkeys(count for _, count in gradients))
    with matplotlib.rc_context(_STYLE):
        size = (2.6 + 2.8 * len(counts), 0.8 + 2.0 * len(names))
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        panels = figure.subplots(len(names), len(counts), sharex=True, sharey="row", squeeze=False)
        for row, name in zip(panels, names, strict=True):
            for axes, count in zip(row, counts, strict=True):
                color, _ = estimator_style(name)
                label = f"{name}, estimate" if count == counts[0] else None
                axes.plot(true_gradient, color="black", linewidth=1.5, zorder=3)
                axes.plot(gradients[name, count], ".", color=color, markersize=1.5, label=label)
            row[0].set_ylabel(f"gradient in φ,\n{_estimator_label(name)}")
            row[0].ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)
        for axes, count in zip(panels[0], counts, strict=True):
            axes.set_title(f"{count} samples" if count > 1 else "1 sample")
        for axes in panels[-1]:
            axes.set_xlabel("iteration")
        panels[0, 0].lines[0].set_label("true gradient")
        figure.suptitle(f"$p_0$ = {p0}")
        figure.legend(loc="outside right upper", frameon=False, markerscale=6)
    return figure


def variances(rows: Sequence[dict[str, typing.Any]], title: str) -> Figure:
    """Figure of the gradient variances of several estimators, one dot and error bar each.

    A variance of zero, as "exact" has, is outside the logarithmic axes and not drawn.

    Args:
      rows: dicts with "estimator", "evaluations", and for each of "logits" and "weights"
        "variance_…" and "variance_stderr_…".
      title: str.

    Returns:
      matplotlib Figure.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 1.6 + 0.3 * len(rows)), dpi=_DPI, layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        labels = [f"{row['estimator']} ({row['evaluations']})" for row in rows]
        for axes, where in zip(panels, ("logits", "weights"), strict=True):
            values = [row[f"variance_{where}"] for row in rows]
            errors = [row[f"variance_stderr_{where}"] for row in rows]
            for i, (row, value, error) in enumerate(zip(rows, values, errors, strict=True)):
                color, _ = estimator_style(row["estimator"])
                axes.errorbar(value, i, xerr=error, fmt="o", color=color)
            axes.set_xscale("log")
            decades = np.log10([value for value in values if value > 0] or [1.0])
            axes.set_xlim(10.0 ** np.floor(min(decades)), 10.0 ** np.ceil(max(decades) + 0.01))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(f"variance of the gradient in the {where}")
            axes.grid(alpha=0.3)
        panels[0].set_yticks(range(len(rows)), labels)
        panels[0].invert_yaxis()
        panels[0].set_ylabel("estimator (evaluations of f)")
        figure.suptitle(title)
    return figure


def benchmark(results: dict[str, typing.Any]) -> Figure:
    """Figure of where a step's time goes, and how it grows with each setting.

    Args:
      results: dict that `arm_tf.benchmark` writes, with "steps" or "sweep" or both.

    Returns:
      matplotlib Figure.
    """
    sweep = results.get("sweep", {})
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(12, 6.5), dpi=_DPI, layout="constrained")
        first, *panels = figure.subplots(2, 3).flat
        parts = ("products", "elementwise and rest", "optimiser", "noise", "boundary")
        colors = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7")
        models = results.get("steps", {})
        left = np.zeros(len(models))
        for part, color in zip(parts, colors, strict=True):
            widths = np.array([model["microseconds"][part] for model in models.values()])
            first.barh(list(models), widths, left=left, color=color, label=part)
            left += widths
        first.set(xlabel="µs a step", title="where the time goes")
        first.invert_yaxis()
        first.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
        first.set_visible(bool(models))
        for axes, (setting, rows) in zip(panels, sweep.items(), strict=False):
            values = [row["value"] for row in rows]
            medians = np.array([row["milliseconds"]["median"] for row in rows])
            errors = [
                [abs(row["milliseconds"][side] - row["milliseconds"]["median"]) for row in rows]
                for side in ("low", "high")
            ]
            axes.errorbar(values, medians, yerr=errors, fmt="o-", color="#0072B2", label="measured")
            line = medians[-1] * np.array(values) / values[-1]
            axes.plot(values, line, ":", color="black", label="in proportion")
            label = {"track_variance": "estimators tracked"}.get(setting, setting.replace("_", " "))
            axes.set(xscale="log", yscale="log", xlabel=label, ylabel="ms a step")
            axes.set_xticks(values, values)
            axes.set_yticks([0.5, 1, 2, 5, 10, 20, 50], [0.5, 1, 2, 5, 10, 20, 50])
            axes.set_ylim(0.8 * min(medians), 1.25 * max(medians))
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        if sweep:
            panels[0].legend(frameon=False, loc="upper left")
    return figure

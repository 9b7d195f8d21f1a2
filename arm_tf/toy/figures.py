"""The toy's figures, the paper's Figure 1 and those of its appendix."""

import typing
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from arm_tf.figures import DPI, STYLE, estimator_label, estimator_style

_TOPS: dict[str, dict[str, typing.Any]] = {
    "arm": {"zorder": 3, "lw": 2.5},
    "exact": {"zorder": 4},
}  # drawn above the others in the toy's losses


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
    with matplotlib.rc_context(STYLE):
        size = (2.8 + 2.6 * len(p0s), 0.6 + 1.8 * (len(names) + 1))
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
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
            axes.set_ylabel(f"gradient in φ,\n{estimator_label(name)}")
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
    with matplotlib.rc_context(STYLE):
        size = (7.5, max(4.0, 0.8 + 0.21 * len(losses)))
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        for name, values in losses.items():
            color, dashes = estimator_style(name)
            top = _TOPS.get(name, {})
            axes.plot(values, color=color, linestyle=dashes, label=estimator_label(name), **top)
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
    with matplotlib.rc_context(STYLE):
        size = (2.6 + 2.8 * len(counts), 0.8 + 2.0 * len(names))
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        panels = figure.subplots(len(names), len(counts), sharex=True, sharey="row", squeeze=False)
        for row, name in zip(panels, names, strict=True):
            for axes, count in zip(row, counts, strict=True):
                color, _ = estimator_style(name)
                label = f"{name}, estimate" if count == counts[0] else None
                axes.plot(true_gradient, color="black", linewidth=1.5, zorder=3)
                axes.plot(gradients[name, count], ".", color=color, markersize=1.5, label=label)
            row[0].set_ylabel(f"gradient in φ,\n{estimator_label(name)}")
            row[0].ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)
        for axes, count in zip(panels[0], counts, strict=True):
            axes.set_title(f"{count} samples" if count > 1 else "1 sample")
        for axes in panels[-1]:
            axes.set_xlabel("iteration")
        panels[0, 0].lines[0].set_label("true gradient")
        figure.suptitle(f"$p_0$ = {p0}")
        figure.legend(loc="outside right upper", frameon=False, markerscale=6)
    return figure

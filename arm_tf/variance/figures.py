"""Pictures of a comparison of estimators' gradients."""

import typing
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from arm_tf import estimators
from arm_tf.figures import DPI, STYLE, estimator_style


def pictures(rows: Sequence[dict[str, typing.Any]], title: str) -> dict[str, Figure]:
    """The figures of a comparison, as of `variances_along`, by file name without its ending.

    "variance", of the last step, and, where there are several steps, "trajectory".
    """
    steps = list(dict.fromkeys(row["step"] for row in rows))
    found = {"variance": variances([row for row in rows if row["step"] == steps[-1]], title)}
    if len(steps) > 1:
        found["trajectory"] = variances_along(rows, title)
    return found


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
                [row.bias == "none" and not bias for row, bias in zip(table, seen, strict=True)]
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
                if not ends:
                    axes.set_yticks([])
                    axes.text(0.5, 0.5, "none seen", transform=axes.transAxes, ha="center")
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

"""The benchmark's figure."""

import typing

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from arm_tf.figures import DPI, STYLE


def parts_and_growth(results: dict[str, typing.Any]) -> Figure:
    """Figure of where a step's time goes, and how it grows with each setting.

    Args:
      results: dict that `arm_tf.benchmark` writes, with "steps" or "sweep" or both.

    Returns:
      matplotlib Figure.
    """
    sweep = results.get("sweep", {})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 6.5), dpi=DPI, layout="constrained")
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

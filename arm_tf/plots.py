"""Pictures of a run: grids of images and curves."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

_SCALE = 2  # screen pixels for each image pixel
_LABELS = {
    "train_neg_elbo": ("training, −ELBO", "#0072B2", "-"),
    "train_neg_bound": ("training, multi-sample bound", "#0072B2", "--"),
    "valid_neg_elbo": ("validation, −ELBO", "#E69F00", "-"),
    "test_neg_elbo": ("test, −ELBO", "#009E73", "-"),
    "valid_nll": ("validation, bound on −log p(x)", "#E69F00", "--"),
}


def grid(images, *others, side=28):
    """Images as one picture, row by row; under each row, the rows of `others` that belong to it.

    Args:
      images: float [N, side * side] in [0, 1], 1 is ink.
      *others: of the same shape.
      side: int, width and height in pixels.

    Returns:
      float32 [height, width], 0 is ink and 1 is paper, with lines of paper between images.
    """
    columns = 16 if others else 8
    missing = -len(images) % columns
    rows = [
        np.pad(part, [(0, missing), (0, 0)]).reshape(-1, columns, side, side)
        for part in (images, *others)
    ]
    page = np.stack(rows, axis=1).astype(np.float32).reshape(-1, columns, side, side)
    page = np.pad(page, [(0, 0), (0, 0), (1, 1), (1, 1)]).swapaxes(1, 2)
    return 1.0 - page.reshape(len(page) * (side + 2), columns * (side + 2))


def save_grid(path, page):
    """Writes a page made by `grid` as a PNG file."""
    page = np.repeat(np.repeat(np.rint(page * 255).astype(np.uint8), _SCALE, 0), _SCALE, 1)
    Image.fromarray(page).save(path)


def save_curves(path, metrics, title):
    """Plots a run's negative ELBOs and bounds, in nats, against epochs.

    Args:
      path: of the PNG file.
      metrics: rows of metrics.csv as dicts; needs at least one.
      title: str.
    """
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        epochs = [row["epoch"] for row in metrics]
        curves = {name: look for name, look in _LABELS.items() if name in metrics[0]}
        for name, (label, color, style) in curves.items():
            values = [row[name] for row in metrics]
            marker = "o" if len(metrics) == 1 else None
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
        figure.savefig(path, dpi=120)


def save_variances(path, rows, title):
    """Plots the gradient variances of several estimators, one dot and error bar each.

    A variance of zero, as "exact" has, is outside the logarithmic axes and not drawn.

    Args:
      path: of the PNG file.
      rows: dicts with "estimator", "evaluations", and for each of "logits" and "weights"
        "variance_…" and "variance_stderr_…".
      title: str.
    """
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 1.6 + 0.3 * len(rows)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        labels = [f"{row['estimator']} ({row['evaluations']})" for row in rows]
        for axes, where in zip(panels, ("logits", "weights"), strict=True):
            values = [row[f"variance_{where}"] for row in rows]
            errors = [row[f"variance_stderr_{where}"] for row in rows]
            axes.errorbar(values, range(len(rows)), xerr=errors, fmt="o", color="#0072B2")
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
        figure.savefig(path, dpi=120)


def save_benchmark(path, results):
    """Plots where a step's time goes, and how it grows with each setting.

    Args:
      path: of the PNG file.
      results: dict that `arm_tf.benchmark` writes, with "steps" or "sweep" or both.
    """
    sweep = results.get("sweep", {})
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 6.5), layout="constrained")
        first, *panels = figure.subplots(2, 3).flat
        parts = ("products", "elementwise and rest", "optimiser", "noise", "boundary")
        colors = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7")
        models = results.get("steps", {})
        left = np.zeros(len(models))
        for part, color in zip(parts, colors, strict=True):
            values = np.array([model["microseconds"][part] for model in models.values()])
            first.barh(list(models), values, left=left, color=color, label=part)
            left += values
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
            panels[0].legend(frameon=False, loc="lower right")
        figure.savefig(path, dpi=120)

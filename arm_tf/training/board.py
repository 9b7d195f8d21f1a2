"""What TensorBoard shows of a run beside curves and pictures: settings, outcome, joint charts.

They are events in the run's own folder, which make the run a row of the HParams tab, named after
the folder. From all rows TensorBoard finds out by itself which settings differ, and puts those
first; as metrics it offers the scalars in the folder and in those below it, sorted by their tags.
"""

import typing

import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.summary import session_end_pb

from arm_tf.training.config import Config, names_of

# The HParams tab, which sorts a dash before a slash, has these before "bounds/", other tabs after.
_FIGURES = {
    "bounds-final/test_neg_elbo": "test_neg_elbo",
    "bounds-final/test_nll": "test_nll",
    "bounds-final/train_steps_per_second": "steps_per_second",
    "bounds-final/valid_best_epoch": "best_epoch",
    "bounds-final/valid_nll": "valid_nll",
}


def write_settings(config: Config) -> None:
    """Writes the settings for the HParams and Text tabs, and the charts of Custom Scalars.

    Args:
      config: `arm_tf.training.config.Config`.
    """
    settings = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in config.settings().items()
    }
    unset = {name for name, value in settings.items() if value in (None, "")}
    rows = [f"| {n} | {'unset' if n in unset else v} |" for n, v in settings.items()]
    tf.summary.text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]), step=0)
    left_out = {*unset, *names_of("evaluation", "execution")}
    columns = {n: v for n, v in settings.items() if n not in left_out}
    hparams.hparams(columns, trial_id="")  # never one row for several runs
    charts = {"gradient norms": "gradient_norm/", "steps a second": "training/steps_per_second"}
    if config.track_variance:
        charts["gradient variances"] = "gradient_variance/"
    bound = f"bound on −{config.likelihood}"
    categories = [
        _category("bounds", {"negative ELBO": "bounds/neg_elbo", bound: "bounds/nll"}),
        _category("training", charts),
    ]
    _write(custom_scalar.pb(layout_pb2.Layout(category=categories)))


def _category(title: str, charts: dict[str, str]) -> layout_pb2.Category:
    """A row of charts: for each title, what the tags of its curves begin with."""
    chart = [
        layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[tag]))
        for title, tag in charts.items()
    ]
    return layout_pb2.Category(title=title, chart=chart)


def write_result(result: dict[str, typing.Any], step: int) -> None:
    """Writes that the run has succeeded, and its final figures.

    Args:
      result: dict, what result.json holds.
      step: int, at which to show the figures.
    """
    for tag, figure in _FIGURES.items():
        tf.summary.scalar(tag, result[figure], step)
    _write(session_end_pb(api_pb2.STATUS_SUCCESS))


def write_failure() -> None:
    """Writes that the run has failed."""
    _write(session_end_pb(api_pb2.STATUS_FAILURE))


def _write(summary: typing.Any) -> None:
    tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=0)

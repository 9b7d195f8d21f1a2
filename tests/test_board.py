"""TensorBoard: what its own plugins find in the folders of runs, whichever way those ended."""

import errno
import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from small_runs import (
    assert_same_run,
    before_steps,
    configure,
    eager,
    run,
    run_stopped_at,
    small_dataset,
)
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import (
    api_pb2,
    backend_context,
    get_experiment,
    list_session_groups,
)

from arm_tf import figures
from arm_tf.errors import RunError
from arm_tf.training import board, run_folder
from arm_tf.training.config import Config

FIGURES = {
    "bounds-final/test_neg_elbo": "test_neg_elbo",
    "bounds-final/test_nll": "test_nll",
    "bounds-final/train_steps_per_second": "steps_per_second",
    "bounds-final/valid_best_epoch": "best_epoch",
    "bounds-final/valid_nll": "valid_nll",
}


class Board:
    """A log folder as TensorBoard reads it."""

    def __init__(self, logdir):
        multiplexer = plugin_event_multiplexer.EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(logdir)).Reload()
        self.provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
        self.context = base_plugin.TBContext(data_provider=self.provider)

    def hparams(self, plugin, request):
        """The response of a part of the HParams plugin to a request."""
        context = backend_context.Context(self.context)
        return plugin.Handler(RequestContext(), context, "", request).run()

    def rows(self):
        """Rows of the HParams tab by name, `api_pb2.SessionGroup`."""
        request = api_pb2.ListSessionGroupsRequest(
            slice_size=100, allowed_statuses=api_pb2.Status.values()
        )
        groups = self.hparams(list_session_groups, request).session_groups
        return {group.name: group for group in groups}

    def status(self):
        """That of the only session in the only row."""
        (row,) = self.rows().values()
        (session,) = row.sessions
        return api_pb2.Status.Name(session.status)

    def tags(self):
        """The tags of scalars, a set for each folder."""
        scalars = self.provider.list_scalars(
            RequestContext(), experiment_id="", plugin_name="scalars"
        )
        return {folder: set(tags) for folder, tags in scalars.items()}

    def charts(self):
        """The charts of Custom Scalars: by title, pairs of the folders and tags in them."""
        layout = json.loads(CustomScalarsPlugin(self.context).layout_impl(RequestContext(), ""))
        return {
            chart["title"]: {
                (folder, tag)
                for folder, tags in self.tags().items()
                for tag in tags
                if re.match("|".join(chart["multiline"]["tag"]), tag)
            }
            for category in layout["category"]
            for chart in category["chart"]
        }

    def texts(self, folder):
        """The texts of a run's settings."""
        tensors = self.provider.read_tensors(
            RequestContext(), experiment_id="", plugin_name="text", downsample=100
        )
        return [datum.numpy.item().decode() for datum in tensors[folder]["settings"]]


def plain(logdir, **settings):
    """A configuration of 22 steps, in two epochs."""
    return configure(logdir, epochs=2, **settings)


@pytest.fixture(scope="module")
def dataset():
    return small_dataset()


@pytest.fixture(scope="module", autouse=True)
def without_tracing():
    with eager():
        yield


@pytest.fixture(scope="module")
def several(tmp_path_factory, dataset):
    """A log folder with three runs."""
    logdir = tmp_path_factory.mktemp("several")
    run(plain(logdir, name="a"), dataset)
    run(plain(logdir, name="b", learning_rate=0.01, track_variance=("arm", "loo")), dataset)
    run(plain(logdir, name="c", estimator="vimco", max_steps=20), dataset)
    return logdir


def test_settings_and_figures_are_those_of_the_files(several):
    rows = Board(several).rows()
    assert list(rows) == ["a", "b", "c"]
    for name, row in rows.items():
        files = [
            json.loads((several / name / f).read_text(encoding="utf-8"))
            for f in ("config.json", "result.json")
        ]
        settings, result = files[0]["config"], files[1]
        for setting, value in row.hparams.items():
            value = getattr(value, value.WhichOneof("kind"))
            if isinstance(settings[setting], list):
                assert value == ",".join(map(str, settings[setting]))
            else:
                assert value == settings[setting]
        assert row.hparams.keys() >= {"dataset", "estimator", "learning_rate", "seed", "units"}
        assert ("max_steps" in row.hparams) == (name == "c")
        values = {m.name.tag: m.value for m in row.metric_values if not m.name.group}
        assert values == pytest.approx({tag: result[key] for tag, key in FIGURES.items()})
        assert [session.status for session in row.sessions] == [api_pb2.STATUS_SUCCESS]


def test_what_differs_and_the_final_figures_are_the_first_columns(several):
    """The tab shows the first five of either unless it is told otherwise."""
    experiment = Board(several).hparams(get_experiment, api_pb2.GetExperimentRequest())
    differing = [info.name for info in experiment.hparam_infos if info.differs]
    assert differing == ["decoder_samples", "estimator", "learning_rate", "num_samples"]
    assert [info.name for info in experiment.hparam_infos][: len(differing)] == differing
    (names,) = [
        info.domain_discrete for info in experiment.hparam_infos if info.name == "estimator"
    ]
    assert set(names) == {"arm", "vimco"}
    metrics = [(info.name.tag, info.name.group) for info in experiment.metric_infos]
    assert metrics[:5] == [(tag, "") for tag in FIGURES]
    assert ("bounds/nll", "valid") in metrics


def test_repeated_run_is_a_row_of_its_own(several, tmp_path):
    """Also under the same name elsewhere, rather than averaged with the other."""
    for name in ("a", "again", "elsewhere/a"):
        shutil.copytree(several / "a", tmp_path / name)
    rows = Board(tmp_path).rows()
    assert [(name, len(row.sessions)) for name, row in rows.items()] == [
        ("a", 1), ("again", 1), ("elsewhere/a", 1)
    ]  # fmt: skip


def test_bounds_are_called_what_they_are_of(tmp_path):
    """Those of the conditional network are on −log p(x_l|x_u)."""
    config = Config(model="conditional", layers=2)
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        board.write_settings(config)
    charts = Board(tmp_path).charts()
    assert "bound on −log p(x_l|x_u)" in charts and "bound on −log p(x)" not in charts
    metrics = [{"epoch": 1.0, "valid_neg_elbo": 3.0, "valid_nll": 2.0}]
    figure = figures.run_curves(metrics, "run", config.likelihood)
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert "validation, bound on −log p(x_l|x_u)" in labels


def test_one_chart_has_training_validation_and_test(several):
    board = Board(several)
    charts = board.charts()
    elbo, bound = charts["negative ELBO"], charts["bound on −log p(x)"]
    curves = {
        (f"{run}/{split}", "bounds/neg_elbo")
        for run in "ab"
        for split in ("train", "valid", "test")
    }
    assert elbo == curves | {("c/valid", "bounds/neg_elbo"), ("c/test", "bounds/neg_elbo")}
    curves = {(f"{run}/{split}", "bounds/nll") for run in "abc" for split in ("valid", "test")}
    assert bound == curves | {("c/train", "bounds/nll")}
    assert charts["gradient norms"] == {
        (f"{run}/train", f"gradient_norm/{part}")
        for run in "abc"
        for part in ("encoder", "decoder", "prior")
    }
    assert charts["steps a second"] == {
        (f"{run}/train", "training/steps_per_second") for run in "abc"
    }
    assert charts["gradient variances"] == {
        ("b/train", f"gradient_variance/{e}") for e in ("arm", "loo")
    }


def test_text_has_all_settings(several):
    for name in "abc":
        (text,) = Board(several).texts(name)
        rows = [row.strip("| ").split(" | ") for row in text.splitlines()[2:]]
        config = run_folder.read_config(several / name)
        assert [row[0] for row in rows] == list(config.settings())
        values = dict(rows)
        assert values["learning_rate"] == str(config.learning_rate)
        assert values["encoder_betas"] == "0.9,0.999"
        assert values["max_steps"] == ("20" if name == "c" else "unset")
        assert values["track_variance"] == ("arm,loo" if name == "b" else "unset")


@pytest.mark.parametrize("events_are_lost", [False, True])
def test_run_that_was_stopped_is_one_session(
    events_are_lost, several, dataset, tmp_path, monkeypatch
):
    """Also where its folder is one from before there were such events."""
    config = plain(tmp_path, name="a")
    run_stopped_at(4, config, dataset, monkeypatch)
    if events_are_lost:
        for file in (tmp_path / "a").glob("events*"):
            file.unlink()
    else:
        assert Board(tmp_path).status() == "STATUS_UNKNOWN"
    run_stopped_at(15, config, dataset, monkeypatch)
    folder = run(config, dataset)
    board = Board(tmp_path)
    assert board.status() == "STATUS_SUCCESS" and len(board.texts("a")) == 1
    assert len(list(folder.path.glob("events*"))) == 1
    assert board.rows()["a"].hparams == Board(several).rows()["a"].hparams
    done = run_folder.RunFolder(plain(several, name="a"))
    assert_same_run(done, folder)
    done.close()


def test_run_that_failed_says_so_until_it_goes_on(dataset, tmp_path, monkeypatch):
    config = plain(tmp_path)

    def poison(running):
        if running.step == 11:
            running.learner.model.prior_logits.assign(running.learner.model.prior_logits * np.nan)

    with before_steps(poison, monkeypatch), pytest.raises(RunError, match="not finite"):
        run(config, dataset)
    assert Board(tmp_path).status() == "STATUS_FAILURE"
    run_stopped_at(15, config, dataset, monkeypatch)
    assert Board(tmp_path).status() == "STATUS_UNKNOWN"
    run(config, dataset)
    assert Board(tmp_path).status() == "STATUS_SUCCESS"


def test_run_without_its_result_has_failed(dataset, tmp_path, monkeypatch):
    config, replace = plain(tmp_path), os.replace

    def full(source, target):
        if pathlib.Path(target).name == "result.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(RunError, match="No space left"):
            run(config, dataset)
    assert Board(tmp_path).status() == "STATUS_FAILURE"
    run(config, dataset)
    board = Board(tmp_path)
    assert board.status() == "STATUS_SUCCESS"
    assert board.tags()["run"] == set(FIGURES)

"""Runs: what they write, and that stopping, resuming and looping change nothing."""

import csv
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_runs import (
    assert_same_run,
    before_steps,
    configure,
    eager,
    figures,
    metrics,
    run,
    run_stopped_at,
    small_dataset,
    weights,
)

from arm_tf import data, estimators, experiments, models, noise, train
from arm_tf.errors import DataError, RunError
from arm_tf.training import checkpoints, run_folder, session, steps, tracker
from arm_tf.training.config import Config
from arm_tf.training.feed import epoch_order


@pytest.fixture(scope="module")
def dataset():
    return small_dataset()


@pytest.fixture(scope="module", autouse=True)
def without_tracing():
    """What runs compute is compared bit for bit, which does not take compiled steps."""
    with eager():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dataset):
    return run(configure(tmp_path_factory.mktemp("finished")), dataset)


def test_weights_to_keep_are_those_of_their_epochs_and_change_nothing(
    dataset, finished, tmp_path, monkeypatch
):
    """Also where the run was stopped at such an epoch and went on."""
    assert Config(keep_epochs=(1,)).name == Config().name
    config = configure(tmp_path, keep_epochs=(0, 1, 2, 7))
    run_stopped_at(11, config, dataset, monkeypatch)
    folder = run(config, dataset)
    assert_same_run(folder, finished)
    model, fresh = steps.build_model(config, dataset), steps.build_model(config, dataset)
    kept = [
        (step, [variable.numpy() for variable in model.variables])
        for step in checkpoints.restore_each(folder.path, model, "kept")
    ]
    assert [step for step, _ in kept] == [0, 11, 22]
    for values, expected in [
        (kept[0][1], [variable.numpy() for variable in fresh.variables]),
        (kept[1][1], newest(run(configure(tmp_path / "1", epochs=1), dataset))),
    ]:
        for value, other in zip(values, expected, strict=True):
            np.testing.assert_array_equal(value, other)
    with pytest.raises(RunError, match="no kept weights yet; train it with --keep_epochs"):
        next(checkpoints.restore_each(finished.path, model, "kept"))
    (best,) = checkpoints.restore_each(finished.path, model, "best")
    assert best == finished.result["best_step"]


def newest(folder):
    """The model's weights in the newest checkpoint."""
    reader = tf.train.load_checkpoint(str(folder.path / "checkpoints"))
    names = [n for n in reader.get_variable_to_shape_map() if n.startswith("weights/")]
    return [reader.get_tensor(name) for name in sorted(names, key=lambda n: int(n.split("/")[1]))]


@pytest.mark.parametrize("tf32", [False, True])
def test_products_have_the_precision_asked_for(tf32, dataset, tmp_path, monkeypatch):
    """While a run trains; afterwards the process has its own again."""
    is_enabled = tf.config.experimental.tensor_float_32_execution_enabled
    before, seen = is_enabled(), []
    with before_steps(lambda running: seen.append(is_enabled()), monkeypatch):
        run(configure(tmp_path, tf32=tf32, max_steps=1), dataset)
    assert seen == [tf32] and is_enabled() == before


@pytest.mark.parametrize(
    "experiment", experiments.matching(["*/mnist_dynamic-*"]), ids=lambda its: its.name
)
def test_models_and_estimators_of_other_papers_can_be_built(experiment, dataset):
    model = steps.build_model(Config.of(experiment.name), dataset)
    for cell in experiment.cells:
        name, samples = cell.estimator, cell.num_samples
        config = Config.of(experiment.name, estimator=name, num_samples=samples)
        built = steps.build_gradient_estimators(config, model)
        further = config.decoder_samples == "independent"
        number = 3 if name == "relax" else estimators.get(name).evaluations(samples, 200)
        assert model.evaluations(built, config.decoder_samples) == number + further


def test_run_folder_has_everything(finished, dataset):
    names = {path.name for path in finished.path.iterdir()}
    assert names >= {
        "flags.txt", "config.json", "metrics.csv", "result.json", "checkpoints",
        "samples.png", "reconstructions.png", "curves.png", "train", "valid", "test",
    }  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp")]
    result = finished.result
    assert set(result) >= {
        "dataset", "layers", "network", "estimator", "seed", "steps", "best_epoch", "valid_nll",
        "test_nll", "test_neg_elbo", "test_samples", "steps_per_second", "training_seconds",
        "seconds",
    }  # fmt: skip
    assert (result["steps"], result["test_images"], result["evaluations_per_step"]) == (33, 60, 3)
    assert result["test_nll"] < result["test_k_nll"] < result["test_neg_elbo"]
    assert result["test_k_samples"] == 2
    rows = list(csv.DictReader(open(finished.path / "metrics.csv", newline="", encoding="utf-8")))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["train_neg_elbo"]) < float(rows[0]["train_neg_elbo"]) - 20
    assert min(float(row["valid_nll"]) for row in rows) == pytest.approx(result["valid_nll"])
    record = json.loads((finished.path / "config.json").read_text(encoding="utf-8"))
    assert record["data"]["checksum"] == "c" and record["versions"]["tensorflow"]
    assert record["data"]["images"] == {"train": 230, "valid": 50, "test": 60}


def test_events_hold_scalars_and_pictures(finished):
    tags = {}
    for split in ("train", "valid", "test"):
        (path,) = (finished.path / split).glob("events*")
        tags[split] = {
            value.tag
            for event in tf.compat.v1.train.summary_iterator(str(path))
            for value in event.summary.value
        }
    assert tags["train"] == {
        "bounds/neg_elbo", "training/learning_rate", "training/steps_per_second",
        "gradient_norm/encoder", "gradient_norm/decoder", "gradient_norm/prior",
    }  # fmt: skip
    assert tags["valid"] == {"bounds/neg_elbo", "bounds/nll"}
    assert tags["test"] == {
        "bounds/neg_elbo", "bounds/nll", "images/samples", "images/reconstructions",
    }  # fmt: skip


def test_flag_file_repeats_the_configuration(finished):
    from absl import flags

    from arm_tf import cli

    values = flags.FlagValues()
    cli.define_flags(flag_values=values)
    values(["program", f"--flagfile={finished.path / 'flags.txt'}"])
    assert cli.config_from_flags(values) == run_folder.read_config(finished.path)


@pytest.mark.parametrize("steps_per_loop", [5, 100])
def test_steps_per_loop_changes_nothing(steps_per_loop, finished, dataset, tmp_path):
    other = run(configure(tmp_path, steps_per_loop=steps_per_loop), dataset)
    assert_same_run(finished, other)


@pytest.mark.parametrize("stop_at", [11, 17])
def test_stopping_and_resuming_changes_nothing(stop_at, finished, dataset, tmp_path, monkeypatch):
    """Asked to stop in mid-epoch or right at its end, the run goes on bit for bit."""
    config = configure(tmp_path, steps_per_loop=1)
    assert run_stopped_at(stop_at, config, dataset, monkeypatch).result is None
    assert_same_run(finished, run(config, dataset))


@pytest.mark.slow
def test_run_begun_by_an_earlier_version_goes_on(dataset, tmp_path):
    """`earlier_run` stopped at step 22 of 33; it ends as the run that this version takes whole.

    Equal to rounding: the two may come from processors that add in another order.
    """
    folder = tmp_path / "earlier"
    shutil.copytree(pathlib.Path(__file__).parent / "earlier_run", folder)
    settings = json.loads((folder / "config.json").read_text())["config"]
    config = Config.from_dict({**settings, "logdir": str(tmp_path)})
    resumed = run(config, dataset)
    whole = run(dataclasses.replace(config, name="whole"), dataset)
    assert [row["step"] for row in metrics(resumed)] == [11, 22, 33]
    known = ["training_seconds" in row for row in run_folder.read_metrics(resumed.path)]
    assert known == [False, True, True]  # the earlier version wrote it in checkpoints alone
    for key, value in figures(whole).items():
        assert figures(resumed)[key] == (
            pytest.approx(value, 1e-5) if isinstance(value, float) else value
        ), key
    others = weights(whole)
    for name, value in weights(resumed).items():
        np.testing.assert_allclose(value, others[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_stop_during_the_final_test_keeps_the_last_weights(
    finished, dataset, tmp_path, monkeypatch
):
    config = configure(tmp_path)
    finish = session.Run.finish

    def stopping(running, progress):
        signal.raise_signal(signal.SIGINT)
        return finish(running, progress)

    with monkeypatch.context() as patch:
        patch.setattr(session.Run, "finish", stopping)
        assert run(config, dataset).result is None
    assert_same_run(finished, run(config, dataset))


def test_tracked_variance_is_logged_resumes_and_leaves_the_run_alone(
    finished, dataset, tmp_path, monkeypatch
):
    tracked = dict(track_variance=("ar", "disarm", "double_cv"), epochs=1)
    whole = run(configure(tmp_path / "whole", **tracked), dataset)
    (last,) = metrics(whole)
    assert metrics(finished)[0].items() <= last.items()
    assert last["variance_disarm"] < last["variance_ar"]
    assert min(last[f"variance_{name}"] for name in tracked["track_variance"]) > 0

    config = configure(tmp_path / "stopped", **tracked)
    run_stopped_at(8, config, dataset, monkeypatch)
    assert_same_run(whole, run(config, dataset))


def test_variance_without_noise_is_zero():
    """Also after a few steps, in which the averages hold little of the past."""
    model = models.BinaryVAE(pixels=5, units=2, seed=0)
    exact = {"exact": model.gradient_estimators("exact")}
    followed = tracker.VarianceTracker(exact, model.variable_groups["encoder"])
    x = tf.constant([[1.0, 0.0, 1.0, 1.0, 0.0]])
    for _ in range(3):
        followed.update(model, x, tf.fill([followed.noise_rows(model), 1, 2], 0.5))
        assert followed.variances()["exact"] == pytest.approx(0, abs=1e-6)


def test_what_an_estimator_learns_is_kept_over_a_stop(dataset, tmp_path, monkeypatch):
    """NVIL has both a network with its optimiser and moving averages."""
    nvil = dict(estimator="nvil", epochs=1)
    whole = run(configure(tmp_path / "whole", **nvil), dataset)
    learned = [name for name in weights(whole) if name.startswith(("estimators", "optimizers/est"))]
    assert len(learned) > 10
    config = configure(tmp_path / "stopped", **nvil)
    run_stopped_at(4, config, dataset, monkeypatch)
    assert_same_run(whole, run(config, dataset))


def test_best_weights_are_those_of_the_best_validation(dataset, tmp_path):
    """Validated on images unlike those it learns, a run is best early and measured there."""
    config = configure(tmp_path, epochs=2)
    dataset = dataclasses.replace(dataset, valid=1 - dataset.valid)
    folder = run(config, dataset)
    rows = run_folder.read_metrics(folder.path)
    best = min(rows, key=lambda row: row["valid_nll"])
    assert best["step"] < rows[-1]["step"]
    assert folder.result["best_epoch"] == best["epoch"]
    assert folder.result["valid_nll"] == pytest.approx(best["valid_nll"])
    bounds = session.evaluate_run(folder.path, config, dataset, "test", config.test_samples)
    assert bounds.nll == folder.result["test_nll"]


def test_max_steps_stops_in_mid_epoch_with_a_result(dataset, tmp_path):
    folder = run(configure(tmp_path, max_steps=15), dataset)
    assert folder.result["steps"] == 15
    assert [row["step"] for row in run_folder.read_metrics(folder.path)] == [11, 15]


@pytest.mark.parametrize("jit", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiled_steps_give_the_same_numbers(jit, finished, dataset, tmp_path):
    with eager(False):
        compiled = run(configure(tmp_path, jit=jit), dataset)
    assert compiled.result["valid_nll"] == pytest.approx(finished.result["valid_nll"], abs=0.01)
    assert compiled.result["test_nll"] == pytest.approx(finished.result["test_nll"], abs=0.01)


def test_loss_that_is_not_finite_stops_the_run(dataset, tmp_path, monkeypatch):

    def poison_at(step):
        def poison(running):
            if running.step == step:
                logits = running.learner.model.prior_logits
                logits.assign(logits * np.nan)

        return before_steps(poison, monkeypatch)

    config = configure(tmp_path, steps_per_loop=1)
    other = r"not finite at step 3\. A smaller --learning_rate"
    with poison_at(2), pytest.raises(RunError, match=other):
        run(dataclasses.replace(config, name="other"), dataset)
    with poison_at(12), pytest.raises(RunError, match="loss is not finite at step 13; .* is kept"):
        run(config, dataset)
    reader = tf.train.load_checkpoint(str(tmp_path / "run" / "checkpoints"))
    assert reader.get_tensor("position/step/.ATTRIBUTES/VARIABLE_VALUE") == 11
    assert all(np.isfinite(value).all() for value in weights_in(reader))


def weights_in(reader):
    names = [n for n in reader.get_variable_to_shape_map() if n.startswith("weights")]
    assert names
    return [reader.get_tensor(name) for name in names]


def test_batch_larger_than_the_data_is_refused(dataset, tmp_path):
    with pytest.raises(RunError, match="--batch_size=500 is more than the 230 training"):
        run(configure(tmp_path, batch_size=500), dataset)
    assert not (tmp_path / "run").exists()
    assert run(configure(tmp_path, max_steps=1), dataset).result


def test_dynamic_images_are_drawn_anew_each_epoch(dataset, tmp_path):
    grey = np.full((40, 784), 128, np.uint8)
    dynamic = data.Dataset(
        "mnist_dynamic", grey, dataset.valid, dataset.test, True, True, checksum="d"
    )
    config = configure(tmp_path, max_steps=3)
    folder = run_folder.RunFolder(config)
    running = session.Run(config, dynamic, folder)
    seen = []
    for _ in range(2):
        running.run_steps()
        seen.append(running.feed.images.numpy())
    assert running.step == 3 and (seen[0] != seen[1]).mean() == pytest.approx(0.5, abs=0.05)


@pytest.fixture(scope="module")
def own():
    """Images of 7 x 5 pixels, as a user gives them."""
    images = np.random.default_rng(0).random((130, 7, 5)) < 0.3
    return data.from_arrays(images[:100], images[100:110], images[110:])


@pytest.mark.parametrize(
    "model, layers, name", [("vae", 1, "reconstructions"), ("conditional", 2, "completions")]
)
def test_pictures_of_images_of_another_shape(model, layers, name, own, tmp_path):
    folder = run(configure(tmp_path, dataset="arrays", model=model, layers=layers, epochs=1), own)
    page = np.asarray(Image.open(folder.path / f"{name}.png"))[::2, ::2]
    below = {"vae": 2, "conditional": 4}[model]  # an image and what belongs to it
    assert page.shape == (2 * below * 9, 16 * 7)
    cells = page.reshape(2 * below, 9, 16, 7).swapaxes(1, 2)[..., 1:-1, 1:-1]
    images = own.test.reshape(20, 7, 5)
    shown = [255 * (1 - images[:16]), 255 * (1 - images[16:])]
    np.testing.assert_array_equal(cells[0], shown[0])
    np.testing.assert_array_equal(cells[below][:4], shown[1])
    if model == "conditional":  # given are the upper half of the rows
        for row in cells[1:4]:
            np.testing.assert_array_equal(row[:, :3], shown[0][:, :3])
            assert (row[:, 3:] != shown[0][:, 3:]).mean() > 0.9
    else:
        assert Image.open(folder.path / "samples.png").size == (2 * 8 * 7, 2 * 3 * 9)


def test_training_from_python(own, tmp_path, capsys):
    config = configure(tmp_path, name=None, batch_size=50, epochs=1)
    train.train(config, own)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("arrays-linear-1-arm-seed0-")
    result = run_folder.read_result(path)
    assert result["dataset"] == "arrays" and result["data_published"] is None
    settings = run_folder.read_config(path)
    bounds = session.evaluate_run(path, settings, own, "test", config.test_samples)
    assert bounds.nll == result["test_nll"]

    with pytest.raises(RunError, match="started with other data") as refusal:
        train.train(config, dataclasses.replace(own, checksum="other"))
    train.train(config, own)
    assert "is finished" in capsys.readouterr().out, refusal  # which keeps the folder no longer
    with pytest.raises(DataError, match="given from Python"):
        train.train(dataclasses.replace(settings, name="other"))
    with pytest.raises(DataError, match="expected an arm_tf.data.Dataset, found tuple"):
        train.train(config, (own.train, own.valid, own.test))
    named = dataclasses.replace(config, name="mine", dataset="mnist_static", max_steps=1)
    train.train(named, own)
    assert run_folder.read_config(tmp_path / "mine").dataset == "arrays"
    assert len(list(tmp_path.iterdir())) == 2


def test_each_epoch_visits_every_image_once():
    orders = [epoch_order(1000, 0, epoch) for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()
    np.testing.assert_array_equal(np.sort(orders[0]), np.arange(1000))


def test_noise_is_a_function_of_seed_purpose_and_position():
    for shape in ([6, 3, 5], [6, 2, 4]):  # with and without numbers left over in a block
        key = noise.key(0, "train")
        whole = noise.uniforms(key, 10, shape).numpy()
        np.testing.assert_array_equal(whole[2:5], noise.uniforms(key, 12, [3, *shape[1:]]))
        for seed, purpose in ((1, "train"), (0, "test")):
            assert (whole != noise.uniforms(noise.key(seed, purpose), 10, shape).numpy()).all()
        assert 0 <= whole.min() and whole.max() < 1 and len(np.unique(whole)) == whole.size


ROOT = pathlib.Path(__file__).parents[1]


def start(*arguments):
    """A training command in a process of its own, as a user's shell would start it."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, "-m", "arm_tf.train", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


FAST = ("--units=8", "--eval_samples=5", "--test_samples=5", "--test_images=200",
        "--valid_images=200", "--max_steps=1200", "--learning_rate=1e-3")  # fmt: skip


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit(tmp_path):
    """kill -9 in the midst of compiled steps on the embedded data, through the command line."""
    whole = start(*FAST, f"--logdir={tmp_path}", "--name=whole")
    output = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, output
    process = start(*FAST, f"--logdir={tmp_path}", "--name=killed")
    process.stdout.readline()  # "Training …": what follows is steps and evaluations
    time.sleep(0.4)
    process.kill()
    process.communicate()
    assert process.returncode != 0
    last = start(*FAST, f"--logdir={tmp_path}", "--name=killed")
    output = last.communicate(timeout=300)[0]
    assert last.returncode == 0, output
    configs = [run_folder.read_config(tmp_path / name) for name in ("whole", "killed")]
    assert_same_run(*[run_folder.RunFolder(config) for config in configs])

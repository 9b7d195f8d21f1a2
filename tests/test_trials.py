"""Several trials at once: seeds and names, the same results as alone, failures, the summary."""

import json
import pathlib
import subprocess
import sys

import pytest
from small_runs import assert_one_line

from arm_tf.training import trials
from arm_tf.training.config import Config

ROOT = pathlib.Path(__file__).parents[1]
FAST = ("--units=8", "--eval_samples=2", "--test_samples=30", "--test_images=200",
        "--valid_images=100", "--max_steps=20", "--steps_per_loop=10")  # fmt: skip


def start(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "arm_tf.train", *FAST, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", [None, "mine"])
def test_trials_differ_in_seed_and_name_alone(name):
    configs = trials.configurations(Config(seed=3, epochs=7, name=name), 3)
    assert [c.seed for c in configs] == [3, 4, 5]
    assert len({c.name for c in configs}) == 3
    assert configs[0].differences(configs[1]) == ["seed"]
    if name is None:
        assert configs[1].name == Config(seed=4, epochs=7).name


@pytest.mark.slow
def test_trials_get_what_each_gets_alone_and_are_summed_up(tmp_path):
    together = start("--trials=2", "--seed=1", f"--logdir={tmp_path / 'together'}")
    assert together.returncode == 0, together.stdout
    assert "[seed 1] Training" in together.stdout and "[seed 2] Training" in together.stdout
    assert start("--seed=2", f"--logdir={tmp_path / 'alone'}").returncode == 0
    read = lambda path: json.loads((path / "result.json").read_text(encoding="utf-8"))
    (alone,) = (tmp_path / "alone").iterdir()
    assert read(tmp_path / "together" / alone.name)["test_nll"] == read(alone)["test_nll"]
    (file,) = (tmp_path / "together").glob("*.json")
    summary = json.loads(file.read_text(encoding="utf-8"))
    bounds = summary["test_nll"]
    assert summary["seeds"] == [1, 2] and bounds["trials"][1] == read(alone)["test_nll"]
    assert bounds["mean"] == pytest.approx(sum(bounds["trials"]) / 2)
    difference = bounds["trials"][0] - bounds["trials"][1]
    assert bounds["deviation"] == pytest.approx(abs(difference) / 2**0.5)


@pytest.mark.slow
def test_a_failing_trial_is_named_and_the_others_finish(tmp_path):
    (tmp_path / "run-seed1").mkdir()
    (tmp_path / "run-seed1" / "config.json").write_text("{", encoding="utf-8")
    process = start("--trials=2", "--name=run", f"--logdir={tmp_path}")
    assert process.returncode == 1
    assert process.stderr.startswith("Error: The trials with seed 1 failed")
    assert (tmp_path / "run-seed0" / "result.json").exists()
    assert not list(tmp_path.glob("*.json"))


def test_no_trials_are_refused(call):
    assert_one_line(call("train", "--trials=0"), "--trials must be an integer of at least 1", (2,))

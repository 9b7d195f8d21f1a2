"""What runs will cost, compared with figures worked out by hand."""

import dataclasses

import pytest

from arm_tf.sweep import estimate
from arm_tf.training import run_folder
from arm_tf.training.config import Config


def write(config, rows, is_finished=False):
    """A run's folder with metrics of (step, epoch, seconds)."""
    path = run_folder.run_path(config)
    path.mkdir(parents=True)
    lines = ["step,epoch,seconds", *(",".join(map(str, row)) for row in rows)]
    (path / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if is_finished:
        (path / "result.json").write_text("{}", encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path):
    return Config(logdir=str(tmp_path), epochs=100)


def test_pace_is_that_between_evaluations_without_start_and_pauses(config):
    path = write(config, [(50, 1, 90), (100, 2, 100), (150, 3, 110), (200, 4, 999), (250, 5, 1009)])
    assert estimate.pace(path) == (pytest.approx(10 / 50), 50, 250)
    (path / "metrics.csv").write_text("step,epoch,seconds\n50,1,90\n", encoding="utf-8")
    assert estimate.pace(path) == (pytest.approx(90 / 50), 50, 50)
    (path / "metrics.csv").write_text("step,epoch\n", encoding="utf-8")
    assert estimate.pace(path) is None
    (path / "metrics.csv").write_text("step,epoch,seconds\n50,", encoding="utf-8")
    assert estimate.pace(path) is None
    (path / "metrics.csv").write_text("step,epoch,seconds\n50,1,nan\n", encoding="utf-8")
    assert estimate.pace(path) is None


def test_a_run_goes_on_at_its_own_pace_or_the_mean_of_the_closest(config):
    replace = dataclasses.replace
    own = config  # 36 s an epoch, 90 epochs left
    write(own, [(50 * epoch, epoch, 36 * epoch) for epoch in range(1, 11)])
    finished = replace(config, seed=1, learning_rate=1e-2)  # 72 s
    write(finished, [(50, 1, 72), (100, 2, 144)], is_finished=True)
    slow = replace(config, estimator="legrad")  # 360 s
    write(slow, [(50, 1, 360), (100, 2, 720)], is_finished=True)
    paces = estimate.Paces([own, finished, slow, finished])
    hours = lambda *configs: paces.left(configs)
    assert hours(finished, slow) == (0, 0)
    assert hours(own) == (pytest.approx(90 * 36 / 3600), 0)
    new = replace(config, seed=2)  # as the two of its estimator
    assert hours(new) == (pytest.approx(100 * 54 / 3600), 0)
    other = replace(config, estimator="loo", eval_every=5)  # as all three, by evaluations of f
    seconds = ((36 + 72) / (2 + 5) + 360 / (201 + 5)) / 3 * (2 + 5)
    assert hours(other) == (pytest.approx(100 * seconds / 3600), 0)
    short = replace(new, max_steps=500)  # 10 epochs
    assert hours(short) == (pytest.approx(10 * 54 / 3600), 0)
    foreign = replace(config, layers=2)
    assert hours(foreign) == (0, 1)
    assert hours(own, new, foreign, foreign) == (pytest.approx(0.9 + 1.5), 2)


def test_what_is_left_is_said_in_core_hours():
    assert str(estimate.Left(1234.56, 0)) == "about 1,234.6 core hours left"
    assert str(estimate.Left(2.0, 3)) == "about 2.0 core hours and 3 runs of unknown length left"
    assert str(estimate.Left(0.0, 3)) == "unknown core hours left"

"""Sweeps: the grid, the choice of the learning rate, and what crashes leave undone."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from arm_tf import sweep
from arm_tf.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
FLAG_FILES = [str(ROOT / "runs" / "paper" / f"mnist_static-{name}-arm.flags") for name in
              ("linear", "two_layers")]  # fmt: skip


def test_grid_has_every_combination_with_settings_of_its_own():
    cells = sweep.grid(FLAG_FILES, ["--epochs=3"], ["arm", "arms"], [1e-3, 1e-4], [0, 1, 1])
    assert len(cells) == 16 and len({cell.config.name for cell in cells}) == 16
    assert {cell.source for cell in cells} == {
        "mnist_static-linear-arm", "mnist_static-two_layers-arm",
    }  # fmt: skip
    assert all(cell.config.epochs == 3 for cell in cells)
    two_layers = [cell.config for cell in cells if cell.config.layers == 2]
    assert len(two_layers) == 8 and not any(c.code_scaling == "symmetric" for c in two_layers)
    samples = {cell.config.estimator: cell.config.num_samples for cell in cells}
    assert samples == {"arm": 1, "arms": 2}  # each estimator's own number


def test_what_is_not_varied_is_the_flag_files():
    (cell,) = sweep.grid(FLAG_FILES[:1], ["--seed=7"])
    assert (cell.config.estimator, cell.config.seed) == ("arm", 7)
    assert cell.config.learning_rate == 1e-4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((["nowhere.flags"], []), "nowhere.flags"),
        (([], ["--units=0"]), "--units must be"),
        (([], ["--name=x"]), "--name is not for a sweep"),
        (([], [], ["amr"]), "--estimator must be one of"),
        (([], ["--num_samples=1"], ["loo"]), "at least 2"),
    ],
)
def test_unusable_grids_are_refused_before_anything_runs(arguments, message):
    with pytest.raises(ConfigError, match=message):
        sweep.grid(*arguments)


def test_runs_of_one_name_on_different_data_are_refused(tmp_path):
    files = [tmp_path / "a.flags", tmp_path / "b.flags"]
    for file in files:
        file.write_text(f"--dataset={file.stem}/digits.npz\n")
    with pytest.raises(ConfigError, match="a and b have runs of one name, digits-linear"):
        sweep.grid(files, [])
    files[1].write_text(files[0].read_text(encoding="utf-8"), encoding="utf-8")
    assert len(sweep.grid(files, [])) == 2


def write_result(cell, valid, test):
    cell.path.mkdir(parents=True)
    (cell.path / "result.json").write_text(
        json.dumps({"valid_nll": valid, "test_nll": test}), encoding="utf-8"
    )


def test_learning_rate_is_chosen_by_validation(tmp_path):
    cells = sweep.grid([], [f"--logdir={tmp_path}"], ["arm", "loo"], [1e-3, 1e-4], [0, 1])
    for cell in cells[:-1]:  # the last one is not finished
        slow = cell.config.learning_rate == 1e-4
        write_result(cell, valid=90.0 + slow, test=80.0 - slow + cell.config.seed)
    arm, loo = sorted(sweep.summarise(cells), key=lambda row: row["estimator"])
    assert arm["learning_rate"] == 1e-3 and arm["tried"] == {"0.001": 90.0, "0.0001": 91.0}
    assert arm["mean"] == 80.5 and arm["deviation"] == pytest.approx(0.5**0.5)
    assert loo["learning_rate"] == 1e-3 and len(loo["test_nll"]) == 2
    assert "| defaults | arm | 0.001 | 90.00 | 80.50 ± 0.71 | 2 |" in sweep.markdown([arm])
    assert "| test −log p(x_l|x_u) ≤ |" in sweep.markdown([arm], "log p(x_l|x_u)")


def start(logdir, *arguments):
    command = [sys.executable, "-m", "arm_tf.sweep", *arguments, "--estimators=arm",
               "--learning_rates=1e-3", "--seeds=0,1", "--units=8", "--epochs=8",
               "--eval_samples=2", "--test_samples=5", f"--logdir={logdir}"]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, seconds=300):
    """Waits, on a busy machine for as long as Ray may take to start, until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def kill_workers(process, name):
    """Kills the processes below one whose command line holds a name."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(child.cmdline()):
                child.kill()


def assert_finished(process, logdir):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert len(list(logdir.glob("*/result.json"))) == 2
    (resumed,) = logdir.glob("*seed0*/output.txt")
    assert "from step" in resumed.read_text(encoding="utf-8")
    (chosen,) = json.loads((logdir / "sweep.json").read_text(encoding="utf-8"))["chosen"]
    assert len(chosen["test_nll"]) == 2
    return output


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_workers_are_tried_again_and_killed_sweeps_do_what_is_left(tmp_path):
    first = start(tmp_path, "--workers=1")
    wait_for(lambda: list(tmp_path.glob("*seed0*/checkpoints/*.index")))
    kill_workers(first, "arm_tf.training.scheduler")
    wait_for(lambda: list(tmp_path.glob("*/result.json")))
    (finished,) = tmp_path.glob("*/result.json")
    written = finished.stat().st_mtime_ns
    first.send_signal(signal.SIGKILL)
    output = first.communicate()[0]
    assert "failed, will be tried again: the worker died (signal 9)" in output, output
    second = start(tmp_path, "--workers=1")
    assert "2 runs, 1 of them finished before" in assert_finished(second, tmp_path)
    assert finished.stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_tasks_on_ray_are_tried_again_and_stopped_where_they_can_go_on(tmp_path):
    pytest.importorskip("ray")
    first = start(tmp_path, "--address=local")
    wait_for(lambda: list(tmp_path.glob("*seed0*/checkpoints/*.index")))
    kill_workers(first, "ray::_train_in_task")
    while "failed, will be tried again: the worker died" not in (line := first.stdout.readline()):
        assert line, "ended without a failure"
    (output,) = tmp_path.glob("*seed0*/output.txt")
    text = lambda: output.read_text(encoding="utf-8")
    wait_for(lambda: "from step" in text())
    first.send_signal(signal.SIGTERM)
    assert "Stopped; the same command does what is left." in first.communicate(timeout=300)[0]
    assert first.returncode == 0 and "Stopped at step" in text()
    assert_finished(start(tmp_path, "--address=local"), tmp_path)

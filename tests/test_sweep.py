"""Sweeps: the grid, the choice of the learning rate, and what crashes leave undone."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from arm_tf import experiments, sweep
from arm_tf.errors import ConfigError
from arm_tf.training import scheduler

ROOT = pathlib.Path(__file__).parents[1]
TWO = experiments.matching(["yin_zhou_2019/mnist_static-linear", "yin_*/mnist_static-two*"])
LINEAR = TWO[0].name


def test_grid_has_every_combination_with_settings_of_its_own():
    cells = sweep.grid(TWO, {"epochs": 3}, ["arm", "arms"], [1e-3, 1e-4], [0, 1, 1])
    assert len(cells) == 16 and len({cell.config.name for cell in cells}) == 16
    assert {cell.source for cell in cells} == {experiment.name for experiment in TWO}
    assert all(cell.config.experiment == cell.source for cell in cells)
    assert all(cell.config.epochs == 3 for cell in cells)
    two_layers = [cell.config for cell in cells if cell.config.layers == 2]
    assert len(two_layers) == 8 and not any(c.code_scaling == "symmetric" for c in two_layers)
    samples = {cell.config.estimator: cell.config.num_samples for cell in cells}
    assert samples == {"arm": 1, "arms": 2}  # each estimator's own number


def test_what_is_not_varied_is_the_experiments_or_else_that_of_the_flags():
    cells = sweep.grid(TWO[:1], {"seed": 7})
    assert [cell.config.estimator for cell in cells] == [
        cell.estimator for cell in TWO[0].cells for _ in range(3)
    ]
    assert {cell.config.learning_rate for cell in cells} == {5e-4, 1e-4, 5e-5}
    assert {cell.config.seed for cell in cells} == {7}
    (cell,) = sweep.grid([], {"units": 7})
    assert (cell.config.units, cell.config.experiment, cell.source) == (7, None, "defaults")
    assert len(sweep.grid(TWO[:1], {"estimator": "loo"}, [], [1e-4])) == 1


def test_cells_that_differ_in_the_number_of_samples_are_told_apart():
    arms = experiments.find("dimitriev_zhou_2021/mnist_dynamic-linear")
    cells = sweep.grid([arms], {}, [], [], [0])
    found = sweep.outline(cells).splitlines()[:-2]
    assert len(found) == len(cells) == 12 and len(set(found)) == 12
    assert found[8].startswith(f"{arms.name}, arms, num_samples=8: 0 of 1 runs finished")
    samples = [cell.config.num_samples for cell in sweep.grid([arms], {}, ["loo", "rodeo"])]
    assert samples == [4, 6, 8, 2]
    assert len(sweep.grid([arms], {"num_samples": 5}, ["loo"])) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([], {"units": 0}), "--units must be"),
        (([], {"name": "x"}), "--name is not for a sweep"),
        (([], {}, ["amr"]), "--estimator must be one of"),
        (([], {"num_samples": 1}, ["loo"]), "at least 2"),
    ],
)
def test_unusable_grids_are_refused_before_anything_runs(arguments, message):
    with pytest.raises(ConfigError, match=message):
        sweep.grid(*arguments)


def write_result(cell, valid, test, data=None):
    cell.path.mkdir(parents=True)
    if data:
        record = {"config": dataclasses.asdict(cell.config), "data": {"checksum": data}}
        (cell.path / "config.json").write_text(json.dumps(record), encoding="utf-8")
    (cell.path / "result.json").write_text(
        json.dumps({"valid_nll": valid, "test_nll": test}), encoding="utf-8"
    )


def test_learning_rate_is_chosen_by_validation(tmp_path):
    cells = sweep.grid([], {"logdir": str(tmp_path)}, ["arm", "loo"], [1e-3, 1e-4], [0, 1])
    for cell in cells[:-1]:  # the last one is not finished
        slow = cell.config.learning_rate == 1e-4
        write_result(cell, valid=90.0 + slow, test=80.0 - slow + cell.config.seed)
    arm, loo = sorted(sweep.summarise(cells), key=lambda row: row["estimator"])
    assert arm["learning_rate"] == 1e-3 and arm["tried"] == {"0.001": 90.0, "0.0001": 91.0}
    assert arm["mean"] == 80.5 and arm["deviation"] == pytest.approx(0.5**0.5)
    assert loo["learning_rate"] == 1e-3 and len(loo["test_nll"]) == 2
    assert "| defaults | arm | 0.001 | 90.00 | 80.50 ± 0.71 | 2 |" in sweep.markdown([arm])
    assert "| test −log p(x_l|x_u) ≤ |" in sweep.markdown([arm], "log p(x_l|x_u)")


RATES, SEEDS = [1e-2, 1e-3, 1e-4], [0, 1, 2]
BOUNDS = {1e-2: 95.0, 1e-3: 90.0, 1e-4: 92.0}  # of validation, by learning rate


def rates_first(logdir, estimators=("arm",)):
    grid = sweep.grid([], {"logdir": str(logdir)}, estimators, RATES, SEEDS)
    return grid, sweep.rates_first(grid)


def train(jobs, bounds, slots=1, retries=0, stop_after=None):
    """Whether fake runs, which fail without a bound, came to an end; which were begun, in order."""
    begun = []

    def start(config):
        begun.append((config.estimator, config.learning_rate, config.seed))
        bound = bounds.get(config.learning_rate)
        if bound is not None:
            write_result(scheduler.Job(config), bound + config.seed / 10, test=bound)
        if len(begun) == stop_after:
            signal.raise_signal(signal.SIGTERM)
        future = concurrent.futures.Future()
        future.set_result("no luck" if bound is None else None)
        return future

    to_do = [job for job in jobs if not job.result]
    return scheduler.run(to_do, slots, start, retries), begun


def test_every_rate_has_a_run_before_the_other_seeds_go_on_at_the_best(tmp_path):
    grid, jobs = rates_first(tmp_path, ["arm", "loo"])
    assert len(grid) == 18 and len(jobs) == 10
    came_to_an_end, begun = train(jobs, BOUNDS)
    assert came_to_an_end and begun == [
        (estimator, rate, seed)
        for estimator in ("arm", "loo")
        for rate, seed in [*((rate, 0) for rate in RATES), (1e-3, 1), (1e-3, 2)]
    ]
    for row in sweep.summarise(grid):
        assert (row["learning_rate"], len(row["test_nll"])) == (1e-3, 3)
        assert row["tried"] == {"0.01": 95.0, "0.001": pytest.approx(90.1), "0.0001": 92.0}


def test_seeds_at_a_rate_that_was_the_best_wait_for_a_further_rate(tmp_path):
    """What an earlier sweep has trained at another rate stands for nothing."""
    _, before = rates_first(tmp_path)
    assert train(before, {**BOUNDS, 1e-3: None})[0]  # 1e-4 is the best
    grid = sweep.grid([], {"logdir": str(tmp_path)}, ["arm"], [1e-4, 1e-3], SEEDS)
    jobs = sweep.rates_first(grid)
    assert [bool(job.result) for job in jobs] == [True, False, False, False]
    assert train([job for job in jobs if not job.result], BOUNDS)[1] == [
        ("arm", 1e-3, seed) for seed in SEEDS
    ]


def test_seeds_wait_for_every_rate_and_other_cells_go_on_meanwhile(tmp_path):
    _, jobs = rates_first(tmp_path, ["arm", "loo"])
    assert [job.is_ready() for job in jobs] == [True, True, True, False, False] * 2
    write_result(jobs[0], 95.0, 95.0)
    write_result(jobs[1], 90.0, 90.0)
    assert not jobs[3].is_ready()
    _, begun = train(jobs, BOUNDS, slots=2)
    assert begun[:3] == [("arm", 1e-4, 0), ("loo", 1e-2, 0), ("arm", 1e-3, 1)]


def test_a_stopped_sweep_does_what_is_left(tmp_path):
    assert train(rates_first(tmp_path)[1], BOUNDS, stop_after=2) == (
        False, [("arm", 1e-2, 0), ("arm", 1e-3, 0)],
    )  # fmt: skip
    assert train(rates_first(tmp_path)[1], BOUNDS, stop_after=2) == (
        False, [("arm", 1e-4, 0), ("arm", 1e-3, 1)],
    )  # fmt: skip
    assert train(rates_first(tmp_path)[1], BOUNDS) == (True, [("arm", 1e-3, 2)])
    assert train(rates_first(tmp_path)[1], BOUNDS) == (True, [])


def test_a_rate_that_fails_for_good_is_left_out_of_the_choice_until_it_is_mended(tmp_path):
    _, jobs = rates_first(tmp_path)
    came_to_an_end, begun = train(jobs, {1e-3: 90.0, 1e-4: 92.0}, retries=1)
    assert came_to_an_end and begun.count(("arm", 1e-2, 0)) == 2
    assert begun[-2:] == [("arm", 1e-3, 1), ("arm", 1e-3, 2)]
    assert [job.failures for job in jobs] == [["no luck"] * 2, [], [], [], []]
    _, begun = train(rates_first(tmp_path)[1], {1e-2: 80.0})
    assert begun == [("arm", 1e-2, seed) for seed in SEEDS]


def test_seeds_of_rates_that_all_fail_are_not_begun(tmp_path):
    _, jobs = rates_first(tmp_path)
    assert train(jobs, {}) == (True, [("arm", rate, 0) for rate in RATES])
    assert not any(job.is_ready() for job in jobs[3:])


def test_the_rate_is_chosen_over_the_seeds_that_all_rates_have(tmp_path):
    grid, _ = rates_first(tmp_path)
    bounds = {(1e-3, 0): 90.0, (1e-3, 1): 93.0, (1e-4, 0): 91.0}
    for cell in grid:
        bound = bounds.get((cell.config.learning_rate, cell.config.seed))
        if bound:
            write_result(cell, bound, test=80.0)
    (row,) = sweep.summarise(grid)
    assert (row["learning_rate"], row["valid_nll"]) == (1e-3, 91.5)


def test_finished_runs_that_differ_incidentally_are_not_trained_again(tmp_path):
    grid = lambda: sweep.grid([], {"logdir": str(tmp_path)}, [], RATES[:1], SEEDS)
    others = [{"eval_every": 7, "jit": False}, {"eval_every": 7, "units": 9}, {"eval_samples": 9}]
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"config": {"a": 1}}', encoding="utf-8")
    for cell, settings in zip(grid(), others, strict=True):
        other = scheduler.Job(dataclasses.replace(cell.config, **settings))
        write_result(other, 90.0, 80.0)
        record = {"config": dataclasses.asdict(other.config)}
        (other.path / "config.json").write_text(json.dumps(record), encoding="utf-8")
    cells = grid()
    sweep.find_finished(cells, sweep.runs_in(tmp_path))
    assert [bool(cell.result) for cell in cells] == [True, False, False]
    assert [cell.config.eval_every for cell in cells] == [7, 1, 1]
    result = {**cells[0].result, "data_published": False}
    (cells[0].path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    cells = grid()
    sweep.find_finished(cells, sweep.runs_in(tmp_path))
    assert not any(cell.result for cell in cells)


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "arm_tf.sweep", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name, value", [("learning_rate", "1e-3"), ("seed", "7"), ("experiment", LINEAR)]
)
def test_one_value_beside_those_of_the_sweep_is_refused(name, value):
    process = call(f"--{name}={value}", "--dry_run")
    assert process.returncode == 2 and f"--{name} is one value, and --{name}s" in process.stderr


def test_experiments_have_their_own_rates_and_a_dry_run_says_what_is_left(tmp_path):
    changes = {"dataset": "glyphs", "logdir": str(tmp_path)}
    for cell in sweep.grid(TWO[:1], changes, ["arm"]):
        bound = 90 + abs(cell.config.learning_rate - 1e-4)
        write_result(cell, bound, test=80, data=cell.config.load_data().checksum)
        # 10 epochs of 100 steps, of 36 s each, of which one is too long
        rows = "".join(f"{100 * i},{i},{36 * i + 900 * (i > 5)}\n" for i in range(1, 11))
        (cell.path / "metrics.csv").write_text(f"step,epoch,seconds\n{rows}", encoding="utf-8")
    settings = [f"--{name}={value}" for name, value in changes.items()]
    process = call(
        f"--experiments={LINEAR},yin*-conditional", "--estimators=rebar,arm", *settings, "--dry_run"
    )
    assert process.returncode == 0, process.stderr
    conditional = "yin_zhou_2019/mnist_threshold-conditional"
    assert process.stdout.splitlines() == [
        f"{LINEAR}, rebar: 0 of 7 runs finished; to do 0.0005, 0.0001, 5e-05 with seed 0; "
        "the best with seed 1, 2, 3, 4; about 96.0 core hours left.",
        f"{LINEAR}, arm: 3 of 7 runs finished; to do 0.0001 with seed 1, 2, 3, 4; "
        "about 48.0 core hours left.",
        *(
            f"{conditional}, {name}: 0 of 5 runs finished; to do 0.0001 with seed 0; "
            "the best with seed 1, 2, 3, 4; unknown core hours left."
            for name in ("rebar", "arm")
        ),
        "In all 24 runs; about 144.0 core hours and 10 runs of unknown length left.",
        "How long a run takes is known once one like it has been evaluated.",
    ]
    assert len(list(tmp_path.iterdir())) == 3


def test_experiments_without_data_are_left_out_and_do_not_stop_the_others(tmp_path):
    train, test = (np.zeros([count, 28, 28], np.uint8) for count in (60_000, 10_000))
    np.savez_compressed(tmp_path / "mnist.npz", x_train=train, x_test=test)
    threshold = "yin_zhou_2019/mnist_threshold-linear"
    omniglot = "yin_zhou_2019/omniglot-linear"
    own = {"logdir": str(tmp_path / "logs"), "data_dir": str(tmp_path)}
    (cell,) = sweep.grid([experiments.find(threshold)], own, ["arm"], [1e-3], [0])
    write_result(cell, 90.0, 80.0, data=cell.config.load_data().checksum)
    arguments = ["--estimators=arm", "--learning_rates=1e-3", "--seeds=0"]
    arguments += [f"--{name}={value}" for name, value in own.items()]
    process = call(f"--experiments={omniglot},{threshold}", *arguments)
    assert process.returncode == 1
    assert process.stdout.startswith(f"Left out for want of data: {omniglot}. ")
    assert "chardata.mat: no such file; put https://" in process.stdout.splitlines()[0]
    assert f"| {threshold} | arm | 0.001 | 90.00 | 80.00 | 1 |" in process.stdout
    assert process.stderr.endswith(f"\nError: Left out for want of data: {omniglot}.\n")
    process = call(f"--experiments={omniglot}", *arguments)
    assert process.returncode == 1 and not process.stdout
    assert "chardata.mat: no such file; put https://" in process.stderr


def test_finished_runs_of_other_data_are_refused(tmp_path):
    (cell,) = sweep.grid([], {"logdir": str(tmp_path)}, [], [1e-3], [0])
    write_result(cell, 90.0, 80.0, data="of another file")
    process = call("--learning_rates=1e-3", "--seeds=0", f"--logdir={tmp_path}")
    assert process.returncode == 1 and not process.stdout
    assert "was started with other data (checksum of another " in process.stderr


def test_seeds_stay_at_the_rate_that_was_chosen(tmp_path):
    """Though other seeds, there from an earlier sweep, would choose another."""
    grid, jobs = rates_first(tmp_path)
    bounds = {(rate, 0): bound for rate, bound in [(1e-2, 95.0), (1e-3, 91.0), (1e-4, 90.0)]}
    bounds |= {(1e-2, 1): 95.0, (1e-3, 1): 80.0}
    for cell in grid:
        bound = bounds.get((cell.config.learning_rate, cell.config.seed))
        if bound:
            write_result(cell, bound, test=bound)
    assert train(jobs, {1e-4: 90.0})[1] == [("arm", 1e-4, 1), ("arm", 1e-4, 2)]
    assert all(job.result for job in jobs)


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
    record = json.loads((logdir / "sweep.json").read_text(encoding="utf-8"))
    (chosen,) = record["chosen"]
    assert len(chosen["test_nll"]) == 2
    results = [json.loads(path.read_text("utf-8")) for path in logdir.glob("*/result.json")]
    assert 0 < record["throughput"]["steps"] <= sum(result["steps"] for result in results)
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

"""Several runs at once: the queue, retries, stops, and processes that end with who started them."""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from arm_tf import files
from arm_tf.training import scheduler
from arm_tf.training.config import Config

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = "arm_tf.training.scheduler"


def jobs(logdir, number):
    return [scheduler.Job(Config(seed=seed, logdir=str(logdir))) for seed in range(number)]


def finish(config):
    path = pathlib.Path(config.logdir, config.name)
    path.mkdir(parents=True)
    result = {"test_nll": 1.0, "valid_nll": 1.0}
    files.write_json(path / "result.json", result)  # which the scheduler may be reading


class Workers:
    """Workers without a process, which do in a thread what `train` does for a configuration."""

    def __init__(self, train):
        self.train, self.begun, self.futures, self.most = train, [], [], 0
        self.pool = concurrent.futures.ThreadPoolExecutor()

    def start(self, config):
        self.begun.append(config.seed)
        self.most = max(self.most, 1 + sum(not future.done() for future in self.futures))
        attempt = self.begun.count(config.seed)
        self.futures.append(self.pool.submit(self.train, config, attempt))
        return self.futures[-1]


def test_runs_that_fail_are_tried_again_after_the_others(tmp_path, capsys):
    two = threading.Barrier(2, timeout=60)

    def train(config, attempt):
        if config.seed < 2 and attempt == 1:
            two.wait()  # until both have begun
        if config.seed == 0 and attempt == 1:
            return "no luck"
        if config.seed == 1 and attempt == 1:
            raise OSError("gone")
        if config.seed == 2:
            return None  # without a result
        return finish(config)

    workers = Workers(train)
    queue = jobs(tmp_path, 4)
    left = lambda: f"{sum(not job.result for job in queue)} left"
    assert scheduler.run(queue, 2, workers.start, retries=1, seconds_between_views=60, left=left)
    assert workers.most == 2 and workers.begun[:4] == [0, 1, 2, 3]
    assert sorted(workers.begun) == [0, 0, 1, 1, 2, 2, 3]
    assert [job.failures for job in queue] == [
        ["no luck"], ["the worker died (OSError)"], ["it was stopped"] * 2, [],
    ]  # fmt: skip
    name = queue[0].config.name
    output = capsys.readouterr().out
    assert f"{name} failed, will be tried again: no luck\n" in output
    assert f"{name}: test bound 1.00\n" in output
    assert output.endswith("finished 3 of 4, failed 1, waiting 0, running 0; 1 left\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_the_queue(number, tmp_path, capsys):
    def train(config, attempt):
        if config.seed == 1:
            psutil.Process().send_signal(number)
            time.sleep(1)
        return finish(config)

    workers, queue = Workers(train), jobs(tmp_path, 4)
    assert not scheduler.run(queue, 1, workers.start)
    assert workers.begun == [0, 1] and not any(job.failures for job in queue)
    assert not capsys.readouterr().out  # nothing was asked for


def start(command, *arguments):
    """A command that trains two runs for ever."""
    arguments = (
        *arguments,
        "--units=8",
        "--eval_samples=2",
        "--epochs=100000",
        "--eval_every=1000",
    )
    return subprocess.Popen(
        [sys.executable, "-m", f"arm_tf.{command}", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(condition, seconds=300):
    """Waits, on a busy machine for long, until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def running(process):
    """The processes below one that train a run."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [child for child in below if PROGRAM in child.cmdline()]


def outputs(logdir):
    return [path.read_text(encoding="utf-8") for path in logdir.glob("*/output.txt")]


@pytest.mark.slow
def test_stopped_trials_are_saved(tmp_path):
    process = start("train", "--trials=2", f"--logdir={tmp_path}")
    training = 0
    while training < 2:
        training += "] Training" in process.stdout.readline()
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert "[seed 0] Stopped at step" in output and "[seed 1] Stopped at step" in output
    assert output.endswith("Stopped; the same command goes on from there.\n")
    assert len(list(tmp_path.glob("*/checkpoints/checkpoint"))) == 2


@pytest.mark.slow
def test_stopped_sweeps_are_saved(tmp_path):
    arguments = ("--learning_rates=1e-4", "--seeds=0,1,2", "--workers=2", f"--logdir={tmp_path}")
    process = start("sweep", *arguments)
    wait_for(lambda: sum("Training" in text for text in outputs(tmp_path)) == 2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert output.endswith("Stopped; the same command does what is left.\n")
    assert "tried again" not in output and not list(tmp_path.glob("*.json"))
    assert ["Stopped at step" in text for text in outputs(tmp_path)] == [True, True]
    assert len(list(tmp_path.glob("*/checkpoints/checkpoint"))) == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_processes_end_with_who_started_them(tmp_path):
    process = start("train", "--trials=2", f"--logdir={tmp_path}")
    wait_for(lambda: len(list(tmp_path.glob("*/config.json"))) == 2)
    children = running(process)
    assert len(children) == 2
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(children, timeout=20)[1]

import signal
import subprocess
import sys
import time

import pytest
from small_runs import before_steps, configure, run, small_dataset

from arm_tf.training import run_folder, session

CHILD = """
import time
from arm_tf.training.stopwatch import Stopwatch
with Stopwatch() as watch:
    begin, began = watch.seconds(), time.monotonic()
    print("ready", flush=True)
    input()
    print(watch.seconds() - begin, time.monotonic() - began)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a system without SIGSTOP")
def test_pause_is_left_out():
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGSTOP)
        time.sleep(3)
        child.send_signal(signal.SIGCONT)
        child.stdin.write("\n")
        child.stdin.flush()
        running, elapsed = map(float, child.stdout.readline().split())
    assert 3.3 <= elapsed and 0.2 < running < elapsed - 2.5


def test_training_seconds_are_those_of_steps(tmp_path, monkeypatch, eagerly):
    """Of a clock that moves a second with each call of the steps, 1,000 with an evaluation."""
    passed = [0.0]

    def lasting(method, seconds):
        def longer(*args):
            passed[0] += seconds
            return method(*args)

        return longer

    monkeypatch.setattr(session.Stopwatch, "seconds", lambda watch: passed[0])
    monkeypatch.setattr(session.Run, "evaluate", lasting(session.Run.evaluate, 1_000))

    def slow_down(running):
        if not running.is_compiled:
            running.learner.take_steps = lasting(running.learner.take_steps, 1)

    with before_steps(slow_down, monkeypatch):
        folder = run(configure(tmp_path, steps_per_loop=11), small_dataset())  # a loop an epoch
    rows = run_folder.read_metrics(folder.path)
    assert [row["training_seconds"] for row in rows] == [1, 2, 3]
    assert [row["seconds"] for row in rows] == [1_002, 2_003, 3_004]  # compiling took one
    assert folder.result["training_seconds"] == 3 and folder.result["seconds"] == 3_004

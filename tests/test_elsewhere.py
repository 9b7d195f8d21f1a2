"""The programs without what macOS, Windows and plain terminals lack."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMALL = ("--units=8", "--eval_samples=2", "--test_samples=10", "--test_images=50",
         "--valid_images=50", "--steps_per_loop=10", "--nojit", "--learning_rate=1e-3")  # fmt: skip
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "elsewhere"), str(ROOT)]),
    "PYTHONIOENCODING": "ascii",
}


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "arm_tf.train", *SMALL, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="ascii",
    )


def end(process):
    """What a process has printed, and its errors, at its end."""
    output, errors = process.communicate(timeout=300)
    return output, errors.splitlines()


def test_it_is_taken_away_from_the_programs():
    code = """
import os, signal
try:
    import fcntl
except ImportError:
    print(hasattr(os, "sched_getaffinity") or hasattr(signal, "SIGPIPE"))
"""
    process = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, encoding="ascii"
    )
    assert (process.stdout, process.stderr) == ("False\n", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a single process")
def test_run_is_held_killed_resumed_and_stopped(tmp_path):
    command = (f"--logdir={tmp_path}", "--name=run", "--epochs=100000")
    first = start(*command, "--eval_every=1")
    assert first.stdout.readline().startswith("Training ")
    _, errors = end(start(*command))
    assert errors == [f"Error: Another process is training the run in {tmp_path / 'run'}."]
    assert first.stdout.readline().startswith("epoch 1 ")  # and a checkpoint
    first.kill()
    end(first)

    second = start(*command)
    assert " from step " in second.stdout.readline()
    second.send_signal(signal.SIGINT)
    output, errors = end(second)
    assert second.returncode == 0 and not errors, errors
    assert "the same command goes on from there" in output


@pytest.mark.slow
def test_trials_print_their_results_in_ascii(tmp_path):
    process = start(f"--logdir={tmp_path}", "--max_steps=20", "--trials=2")
    output, errors = end(process)
    assert process.returncode == 0 and not errors, errors
    assert output.count("Test bound on -log p(x): ") == 2
    assert "Test bound on -log p(x) over 2 trials: " in output and r" \xb1 " in output

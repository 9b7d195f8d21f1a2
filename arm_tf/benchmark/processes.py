"""Whole processes: their start and memory, and several at once."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Sequence

import numpy as np
import psutil

from arm_tf import files
from arm_tf.benchmark.timing import as_text, spread
from arm_tf.errors import RunError
from arm_tf.training import config, trials

_TRIALS, _TRIAL_STEPS = 5, 4200


def _run_alone(arguments: Sequence[str]) -> float:
    """Runs a Python process to its end; its peak memory in MiB.

    Raises:
      RunError: it failed.
    """
    peak = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            stdout=output,
            stderr=output,
        )
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # it has just ended
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            time.sleep(0.02)
        output.seek(0)
        if process.returncode:
            last = output.read().splitlines()[-1:]
            raise RunError(f"{' '.join(arguments)} failed: {' '.join(last)}")
    return peak / 2**20


def measure_process(rounds: int) -> dict[str, typing.Any]:
    """Memory of a default run above TensorFlow's, and the time up to its first steps; a dict."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    waits, peaks, imports = [], [], []
    for _ in range(max(2, rounds // 5)):
        imports.append(_run_alone(["-c", "import tensorflow"]))
        with tempfile.TemporaryDirectory() as folder:
            begin = time.time()
            run = ["-m", "arm_tf.train", "--max_steps=420", "--test_samples=100", "--name=run"]
            peaks.append(_run_alone([*run, f"--logdir={folder}"]))
            (events,) = pathlib.Path(folder, "run", "train").glob("events*")
            scalars = [e for e in EventFileLoader(str(events)).Load() if e.step]
            waits.append(scalars[0].wall_time - begin)
    result = {
        "mebibytes_above_import": spread(np.array(peaks) - np.array(imports)),
        "mebibytes_of_import": spread(imports),
        "seconds_to_first_steps": spread(waits),
    }
    print(
        f"process: {as_text(result['mebibytes_above_import'], 0)} MiB above import tensorflow, "
        f"{as_text(result['seconds_to_first_steps'], 1)} s to the end of the first loop of steps",
        flush=True,
    )
    return result


def measure_trials() -> dict[str, typing.Any]:
    """Steps a second of several trials, as many at once as there are cores, and of one; a dict."""
    settings = config.Config(max_steps=_TRIAL_STEPS, eval_every=1000, test_samples=1, name="run")

    def rates(number):
        with tempfile.TemporaryDirectory() as folder:
            lines = dataclasses.replace(settings, logdir=folder).flag_file().splitlines()
            _run_alone(["-m", "arm_tf.train", *lines, f"--trials={number}"])
            results = pathlib.Path(folder).rglob("result.json")
            return [files.read_json(path)["steps_per_second"] for path in results]

    alone = rates(1) + rates(1)
    together = rates(_TRIALS)
    at_once = trials.concurrency(_TRIALS)
    result = {
        "trials": _TRIALS,
        "at_once": at_once,
        "steps_per_second_alone": alone,
        "steps_per_second_together": together,
        "throughput_over_one": at_once * float(np.mean(together) / np.mean(alone)),
    }
    print(
        f"{_TRIALS} trials, {at_once} at once: {at_once * np.mean(together):.0f} steps/s added up, "
        f"one alone on all cores {np.mean(alone):.0f}, ratio {result['throughput_over_one']:.2f}",
        flush=True,
    )
    return result

"""Several trials of one configuration, which differ in the seed, at once on one machine."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
import typing

from arm_tf.training import run_folder, workers

_FIGURES = ("test_nll", "test_neg_elbo", "valid_nll")


class Figure(typing.NamedTuple):
    """A figure over trials; as a text, "107.20 ± 0.28", or "107.20" of one trial.

    Attributes:
      mean: float.
      deviation: float, the standard deviation between trials; None for a single one.
    """

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values):
        """The figure of a sequence of floats, one a trial."""
        values = list(values)
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation)

    def __str__(self):
        deviation = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{deviation}"


def configurations(config, trials):
    """The configurations of `trials` trials, with the seeds that follow `config.seed`; a list."""
    seeds = range(config.seed, config.seed + trials)
    name = config.asked("name")
    return [
        dataclasses.replace(config, seed=seed, name=name and f"{name}-seed{seed}") for seed in seeds
    ]


def run(configs):
    """Trains each configuration in a process of its own, several at once, and sums them up.

    There are as many processes as cores, each with its share of threads: more of either slow one
    another down. A GPU is shared without reserving its memory. Output appears with the seed in
    front. A finished trial is left as it is; SIGINT and SIGTERM stop all of them where they can
    go on.

    Args:
      configs: of the trials, a list from `configurations`.

    Returns:
      Summary of the results, a dict as written to the file; None if the trials were stopped.

    Raises:
      RunError: some trials failed; the others are finished.
    """
    at_once = concurrency(len(configs))
    environment = {
        **os.environ,
        "TF_NUM_INTRAOP_THREADS": str(workers.usable_cores() // at_once),
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "PYTHONIOENCODING": "utf-8",
    }
    waiting, running, failed = list(configs), {}, []
    stopped = threading.Event()

    def stop(*_):
        stopped.set()
        for process in running:
            _stop(process)

    handlers = {number: signal.signal(number, stop) for number in workers.STOP_SIGNALS}
    try:
        while running or (waiting and not stopped.is_set()):
            while waiting and len(running) < at_once and not stopped.is_set():
                config = waiting.pop(0)
                process = _start(config, environment)
                running[process] = config.seed, _relay(process, config.seed)
                if stopped.is_set():
                    _stop(process)
            process = _wait_for_any(running)
            seed, reader = running.pop(process)
            reader.join()
            if process.returncode:
                failed.append(seed)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stopped.is_set():
        print("Stopped; the same command goes on from there.")
        return None
    if failed:
        raise run_folder.RunError(
            f"The trials with seed {', '.join(map(str, sorted(failed)))} failed; see their output "
            "above. The same command tries them again."
        )
    return summarise(configs)


def concurrency(trials):
    """How many of a number of trials run at once; int."""
    return min(trials, workers.usable_cores())


def summarise(configs):
    """Writes, and returns, the figures of finished trials one by one and together.

    The file is `logdir/NAME.json`, NAME that of the first trial with all seeds. Figures are in
    nats; "deviation" is the standard deviation between trials.
    """
    first, last = configs[0], configs[-1]
    results = [run_folder.read_result(run_folder.run_path(config)) for config in configs]
    summary = {"seeds": [c.seed for c in configs], "runs": [c.name for c in configs]}
    for figure in _FIGURES:
        values = [result[figure] for result in results]
        summary[figure] = {"trials": values, **Figure.of(values)._asdict()}
    name = first.name.removesuffix(f"-seed{first.seed}")
    if name == first.name:  # the digest of further settings follows the seed
        name = first.name.replace(f"-seed{first.seed}-", "-")
    file = pathlib.Path(first.logdir) / f"{name}-seeds{first.seed}to{last.seed}.json"
    run_folder.write_json(file, summary)
    bounds = summary["test_nll"]["trials"]
    print(
        f"Test bound on -log p(x) over {len(configs)} trials: {Figure.of(bounds)} nats (mean and "
        f"standard deviation; {', '.join(f'{value:.2f}' for value in bounds)}). Written to {file}."
    )
    return summary


def _start(config, environment):
    command = [sys.executable, "-m", "arm_tf.train", *config.flag_file().splitlines()]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        # Ctrl-C reaches the trials through `run` alone; the second is what Windows has for it.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def _stop(process):
    """Asks a trial to stop where it can go on; Windows' SIGTERM would end it at once."""
    with contextlib.suppress(OSError):  # it has just ended
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


def _relay(process, seed):
    """A thread that prints what a trial prints."""

    def relay():
        for line in process.stdout:
            with contextlib.suppress(BrokenPipeError):  # the trial has to get rid of its output
                print(f"[seed {seed}] {line}", end="", flush=True)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    return thread


def _wait_for_any(processes):
    """The first of the processes that ends."""
    while True:
        for process in processes:
            try:
                process.wait(timeout=0.1)
                return process
            except subprocess.TimeoutExpired:
                pass

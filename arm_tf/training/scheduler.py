"""Runs of several configurations, as many at once as there are workers: a queue, retries, a stop.

Workers are processes of this machine, or tasks on a Ray cluster that have such a process each.
Either kind is a context with how many runs it trains at once, and a function that begins one: of a
configuration, it returns a `concurrent.futures.Future` of the line that says why the run was not
finished, or None. At the context's end the runs that are left stop where they can go on.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import math
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable, Collection, Iterator, Sequence

from arm_tf.errors import ConfigError, RunError
from arm_tf.training import run_folder
from arm_tf.training.config import Config
from arm_tf.training.workers import Stop

_Start = Callable[[Config], concurrent.futures.Future[str | None]]


@dataclasses.dataclass(eq=False)
class Job:
    """A run to train.

    Attributes:
      config: `arm_tf.training.config.Config`.
      source: where that comes from, for people.
      failures: reasons, a list of str.
      is_given_up: whether it has failed so often that it is not tried again.
    """

    config: Config
    source: str = ""
    failures: list[str] = dataclasses.field(default_factory=list)
    is_given_up: bool = False

    def is_ready(self) -> bool:
        """Whether it can begin, and its configuration is final; jobs may wait for others."""
        return True

    @property
    def path(self) -> pathlib.Path:
        """Of the run's folder."""
        return run_folder.run_path(self.config)

    @property
    def result(self) -> dict[str, typing.Any] | None:
        """The result of a finished run, a dict, or None, also where it cannot be read."""
        with contextlib.suppress(RunError):  # which its process will say
            return run_folder.read_result(self.path)
        return None

    @property
    def progress(self) -> float:
        """Fraction of the epochs that have been evaluated."""
        with contextlib.suppress(RunError, KeyError):
            rows = run_folder.read_metrics(self.path)
            return rows[-1]["epoch"] / self.config.epochs if rows else 0.0
        return 0.0


def run(
    jobs: Sequence[Job],
    slots: int,
    start: _Start,
    retries: int = 0,
    seconds_between_views: float | None = None,
    left: Callable[[], object] | None = None,
) -> bool:
    """Trains the runs of all jobs, the first that are ready first, until SIGINT or SIGTERM.

    Args:
      jobs: a list of `Job`; failures are added to them.
      slots, start: of workers.
      retries: int, how often a failed run is tried again.
      seconds_between_views: how often to print a line on all runs, besides one on each that ends;
        None for neither.
      left: called without arguments; the end of that line, or None.

    Returns:
      Whether every run came to an end, or waits for one that failed.
    """
    say = print if seconds_between_views else lambda *args, **kwargs: None
    waiting, shown = list(jobs), time.monotonic()
    running: dict[concurrent.futures.Future[str | None], Job] = {}
    done: set[concurrent.futures.Future[str | None]] = set()
    with Stop() as stop:
        while (running or waiting) and not stop.requested:
            if done or not running:  # or else none has become ready
                ready = (job for job in waiting if job.is_ready())
                for job in list(itertools.islice(ready, slots - len(running))):
                    waiting.remove(job)
                    running[start(job.config)] = job
                if not running:
                    break
            done, _ = concurrent.futures.wait(running, 0.2, concurrent.futures.FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                error = future.exception()
                reason = f"the worker died ({type(error).__name__})" if error else future.result()
                if reason or not job.result:
                    job.failures.append(reason or "it was stopped")
                    is_left = len(job.failures) <= retries
                    waiting.extend([job] if is_left else [])
                    job.is_given_up = not is_left
                    again = ", will be tried again" * is_left
                    say(f"{job.config.name} failed{again}: {job.failures[-1]}")
                else:
                    say(f"{job.config.name}: test bound {job.result['test_nll']:.2f}")
            if done or time.monotonic() - shown > (seconds_between_views or math.inf):
                shown = time.monotonic()
                rest = f"; {left()}" if left else ""
                say(_view(jobs, running.values(), waiting) + rest, flush=True)
    return not running and not (waiting and stop.requested)


def _view(jobs: Sequence[Job], running: Collection[Job], waiting: Collection[Job]) -> str:
    """One line on all runs."""
    finished = sum(bool(job.result) for job in jobs)
    failed = sum(job.is_given_up for job in jobs)
    under_way = ", ".join(f"{job.config.name} {job.progress:.0%}" for job in running)
    return (
        f"finished {finished} of {len(jobs)}, failed {failed}, waiting {len(waiting)}, "
        f"running {len(running)}{': ' * bool(under_way)}{under_way}"
    )


@contextlib.contextmanager
def processes(
    slots: int, threads: int, tell: Callable[[Config, str], object]
) -> Iterator[tuple[int, _Start]]:
    """Workers that are processes of this machine, and end at once where this one is killed.

    A GPU is shared without reserving its memory.

    Args:
      slots: int, how many at once.
      threads: int, of each process.
      tell: called with the configuration and each line that its process prints.
    """
    environment = {
        **os.environ,
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "PYTHONIOENCODING": "utf-8",
    }
    running: set[subprocess.Popen[str]] = set()

    def start(config):
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, *config.flag_file().splitlines()],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this process; the next is Windows' word for it
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        running.add(process)
        return pool.submit(follow, process, config)

    def follow(process, config):
        last = ""
        with process:
            for line in process.stdout:
                last = line.strip() or last
                with contextlib.suppress(OSError):  # the process has to get rid of its output
                    tell(config, line)
            process.wait()  # before its input is closed
        running.discard(process)
        if process.returncode < 0:
            return f"the worker died (signal {-process.returncode})"
        return (last.removeprefix("Error: ") or "no output") if process.returncode else None

    with concurrent.futures.ThreadPoolExecutor(slots) as pool:
        try:
            yield slots, start
        finally:
            for process in list(running):
                with contextlib.suppress(OSError, ValueError):  # it has just ended
                    assert process.stdin
                    process.stdin.write("\n")
                    process.stdin.flush()


@contextlib.contextmanager
def ray_tasks(address: str) -> Iterator[tuple[int, _Start]]:
    """Workers that are tasks on a Ray cluster, a processor for each; output goes to output.txt.

    Args:
      address: of the cluster; "local" starts one on this machine.

    Raises:
      ConfigError: there is no Ray.
      RunError: there is no such cluster.
    """
    try:
        import ray

        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
        )
    except ImportError:
        raise ConfigError("--address needs Ray; pip install 'arm_tf[sweep]'.") from None
    except ConnectionError as error:
        raise RunError(f"No Ray cluster at --address={address}: {error}") from None
    train = ray.remote(num_cpus=1, max_retries=0)(_train_in_task)
    tasks = []

    def start(config):
        tasks.append(train.remote(dataclasses.asdict(config)))
        return tasks[-1].future()

    try:
        yield int(ray.cluster_resources().get("CPU", 1)), start
    finally:
        for task in tasks:
            ray.cancel(task)  # raises SIGINT in one that goes on
        if tasks:
            ray.wait(tasks, num_returns=len(tasks))
        ray.shutdown()


def _train_in_task(settings: dict[str, typing.Any]) -> str | None:
    job = Job(Config.from_dict(settings))
    with processes(1, 1, append_to_file) as (slots, start):
        run([job], slots, start)
    return job.failures[0] if job.failures else None


def append_to_file(config: Config, line: str) -> None:
    """Adds a line that a run's process has printed to output.txt in its folder."""
    path = run_folder.run_path(config)
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "output.txt", "a", encoding="utf-8") as output:
        output.write(line)


def _obey() -> None:
    """Stops this process where it can go on when it is told to, and ends it with who started it."""
    if os.read(0, 1):
        signal.raise_signal(signal.SIGTERM)
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":  # one of `processes`
    threading.Thread(target=_obey, daemon=True).start()
    runpy.run_module("arm_tf.train", run_name="__main__", alter_sys=True)

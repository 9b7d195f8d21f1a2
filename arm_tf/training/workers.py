"""The machines that share one training, as the environment variable TF_CONFIG describes them.

Also the cores of this one, and its stop.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import re
import select
import signal
import socket
import threading
import time
import typing
from collections.abc import Iterator

import psutil

from arm_tf import files
from arm_tf.errors import ConfigError, RunError

STOP_SIGNALS = tuple(  # SIGBREAK, Ctrl-Break, is what one process can send another on Windows
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
)
_JOBS = ("chief", "worker")  # as TensorFlow orders them
_PAUSE = 1.0  # seconds between attempts, and between the chief's messages


class Stopped(Exception):
    """The user or the system asked the run to stop."""


class Stop:
    """Notes SIGINT and SIGTERM while it is entered, for the run to stop where it is safe to."""

    def __enter__(self) -> "Stop":
        self.requested = False
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True

    def check(self, *_: object) -> None:
        """Raises Stopped once a stop was requested."""
        if self.requested:
            raise Stopped


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Workers of one training.

    Attributes:
      addresses: HOST:PORT of each worker, the chief first; () for a training of one process.
      index: int, which of them this process is.
      chiefs: int, how many of them TF_CONFIG has under "chief", 0 or 1.
    """

    addresses: tuple[str, ...] = ()
    index: int = 0
    chiefs: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that evaluates and writes."""
        return self.index == 0

    def __str__(self) -> str:
        return f"worker {self.index} of {len(self.addresses)}, {self.addresses[self.index]}"

    def name(self, index: int) -> str:
        """A worker's number and address; for people."""
        return f"worker {index} ({self.addresses[index]})"

    def lost(self, error: Exception) -> str:
        """The worker that an error of TensorFlow's names first, which is its cause; for people."""
        for job, task in re.findall(r"/job:(chief|worker)/(?:replica:0/)?task:(\d+)", str(error)):
            index = int(task) + self.chiefs * (job == "worker")
            if index != self.index:
                return self.name(index)
        return "a worker"

    @contextlib.contextmanager
    def starting(self, seconds: int, stderr: typing.IO | int) -> Iterator[None]:
        """A context to start TensorFlow in, which is entered once all workers have come to it.

        TensorFlow waits for the others without a limit, and deaf to signals. What is left for it
        to wait for, that those who were there start, ends the process after `seconds` more.

        Args:
          seconds: int, how long to wait for the others.
          stderr: file, or its descriptor, for the stack of a process that is ended.

        Raises:
          RunError: some have not come, or this worker's port is taken.
        """
        if len(self.addresses) < 2:
            yield
            return
        self._meet(seconds)
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a handler in Python would have to wait
        faulthandler.dump_traceback_later(seconds, exit=True, file=stderr)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            for number, handler in handlers.items():  # TensorFlow has put its own for SIGTERM
                signal.signal(number, handler)

    def _meet(self, seconds: int) -> None:
        """Waits until all workers are here; all but the chief report to that."""
        deadline = time.monotonic() + seconds
        try:
            server = _listen(_split(self.addresses[self.index])[1])
        except OSError as error:
            raise RunError(
                f"This is {self}, which cannot listen there: {error.strerror}."
            ) from None
        with server:
            missing = self._gather(server, deadline) if self.is_chief else self._report(deadline)
        if missing:
            raise RunError(
                f"Waited {seconds} seconds for {', '.join(map(self.name, missing))}; start all "
                "workers, or have them wait longer with --wait_for_workers. Where the run is "
                "finished the chief, worker 0, ends without waiting."
            )

    def _gather(self, server: socket.socket, deadline: float) -> list[int]:
        """Tells those who report who is missing, until nobody is; who is in the end, a list."""
        here: dict[int, socket.socket] = {}
        with contextlib.ExitStack() as connections:
            while True:
                missing = [i for i in range(1, len(self.addresses)) if i not in here]
                for index, connection in list(here.items()):
                    try:
                        connection.sendall(f"{json.dumps(missing)}\n".encode())
                    except OSError:
                        del here[index]
                if not missing or time.monotonic() > deadline:
                    return missing
                readable = select.select([server, *here.values()], [], [], _PAUSE)[0]
                # All that a worker says is its number; another word is that it is gone.
                here = {
                    i: connection for i, connection in here.items() if connection not in readable
                }
                if server in readable:
                    with contextlib.suppress(OSError, ValueError):
                        connection = connections.enter_context(server.accept()[0])
                        connection.settimeout(_PAUSE)
                        word = connection.recv(16)
                        if word.endswith(b"\n") and 0 < int(word) < len(self.addresses):
                            here[int(word)] = connection

    def _report(self, deadline: float) -> list[int]:
        """Reports to the chief until nobody is missing; who is in the end, a list."""
        missing = {0}
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, TypeError):
                patience = max(_PAUSE, min(10 * _PAUSE, deadline - time.monotonic()))
                with socket.create_connection(_split(self.addresses[0]), patience) as chief:
                    chief.sendall(b"%d\n" % self.index)
                    for line in chief.makefile(encoding="ascii"):
                        told = set(json.loads(line))
                        if not told <= set(range(1, len(self.addresses))):
                            break  # not by a chief
                        missing = told
                        if not missing or time.monotonic() > deadline:
                            return sorted(missing)
            missing = {0, *missing}
            time.sleep(_PAUSE)
        return sorted(missing)


ALONE = Cluster()


def find(distribute: str) -> Cluster:
    """The `Cluster` of this process for a choice of `Config.distribute`.

    Raises:
      ConfigError: TF_CONFIG is needed and does not describe one, or has parts that are not for it.
    """
    if distribute != "multi_worker":
        return ALONE
    text = os.environ.get("TF_CONFIG", "")
    reason = ""
    try:
        described = json.loads(text)
        jobs, task = described["cluster"], described["task"]
        if not all(isinstance(hosts, list) for hosts in jobs.values()):
            raise TypeError
        addresses = tuple(address for job in _JOBS for address in jobs.get(job, ()))
        others = sorted(set(jobs) - {*_JOBS, "evaluator"})  # TensorFlow passes over an evaluator
        if others:
            reason = f", without the job {others[0]!r}"
        elif task["type"] == "evaluator":
            reason = ", and no process for an evaluator, since the first worker evaluates"
        several = any(len(jobs.get(job, ())) > 1 for job in ("chief", "evaluator"))
        if reason or several or not all(map(_split, addresses)):
            raise ValueError
        index = [(job, i) for job in _JOBS for i in range(len(jobs.get(job, ())))].index(
            (task["type"], int(task["index"]))
        )
    except (*files.UNREADABLE, RecursionError):
        raise ConfigError(
            "--distribute=multi_worker needs the environment variable TF_CONFIG on every host, "
            'such as {"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
            f'"task": {{"type": "worker", "index": 0}}}}{reason}, received {text!r}.'
        ) from None
    return Cluster(addresses, index, len(jobs.get("chief", ())))


def usable_cores() -> int:
    """How many of this machine's cores this process may use; int."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # macOS has none
        return len(process.cpu_affinity())
    return psutil.cpu_count() or 1


def threads() -> int:
    """How many threads this process may use: its share, or else a thread a core; int."""
    return int(os.environ.get("TF_NUM_INTRAOP_THREADS", 0)) or usable_cores()


def _split(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; raises ValueError where it is not that."""
    host, colon, port = address.rpartition(":")
    if not host or not 0 < int(port) < 2**16:
        raise ValueError
    return host.strip("[]"), int(port)


def _listen(port: int) -> socket.socket:
    """A socket that takes connections at a port, from IPv6, too, where there is that."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=both)

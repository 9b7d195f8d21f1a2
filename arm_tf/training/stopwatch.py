"""Time in which the process has run, without pauses in which it was stopped."""

import threading
import time

_BETWEEN_LOOKS = 0.25  # seconds
_PAUSE = 2.0  # seconds without a look


class Stopwatch:
    """Seconds in which the process has run, while it is entered.

    Where a process is stopped (SIGSTOP, a debugger, Ctrl-Z) the system's clocks go on. A thread
    looks at the clock four times a second; two seconds without a look are a pause, and left out.
    """

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._looked, self._paused = time.monotonic(), 0.0

    def __enter__(self) -> "Stopwatch":
        threading.Thread(target=self._look_on, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _look_on(self) -> None:
        while not self._ended.wait(_BETWEEN_LOOKS):
            self.seconds()

    def seconds(self) -> float:
        """Seconds since some moment, without those of pauses."""
        with self._lock:
            now = time.monotonic()
            since = now - self._looked
            if since > _PAUSE:
                self._paused += since
            self._looked = now
            return now - self._paused

"""Takes away, in every process with this folder on its path, what macOS or Windows lack.

Libraries that use those systems' own means there keep the Unix ones here.
"""

import asyncio  # noqa: F401
import os
import signal
import subprocess
import sys

import filelock  # noqa: F401
import psutil

for module, names in {
    os: "fork forkpty getloadavg getpgid killpg sched_getaffinity sched_setaffinity setsid wait4",
    signal: "SIGALRM SIGHUP SIGKILL SIGPIPE SIGUSR1 alarm pthread_sigmask setitimer sigwait",
    psutil.Process: "cpu_affinity",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None  # cannot be imported

_init = subprocess.Popen.__init__


def _popen(self, *args, start_new_session=False, **kwargs):
    """Without sessions: as on Windows, the argument is taken and does nothing."""
    _init(self, *args, **kwargs)


subprocess.Popen.__init__ = _popen

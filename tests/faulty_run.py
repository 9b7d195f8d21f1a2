"""A small run that kills itself: `python faulty_run.py LOGDIR K HOW` at its K-th file operation.

HOW is "before" or "after" the operation, "during" it, or "torn", which is after the data of a
checkpoint are in place and half of its index is written. K = 0 is a run that is left alone.
"""

import faulthandler
import itertools
import os
import pathlib
import random
import signal
import sys
import threading
import time

from small_runs import configure, run, small_dataset
from tensorflow.python.lib.io import file_io
from tensorflow.python.ops import gen_io_ops

OPERATIONS = [
    (os, "fsync"),
    (os, "replace"),
    (gen_io_ops, "save_v2"),
    (gen_io_ops, "merge_v2_checkpoints"),
    (file_io, "atomic_write_string_to_file"),
    (file_io, "delete_file"),
]
SETTINGS = dict(epochs=6, jit=False)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def tear_newest_index(logdir):
    newest = max(pathlib.Path(logdir).rglob("*.index"), key=lambda path: path.stat().st_mtime_ns)
    os.truncate(newest, newest.stat().st_size // 2)


def die_at(k, how, logdir):
    """Makes the k-th file operation from here on the last."""
    count = itertools.count(1)

    def fatal(operation, name):
        def wrapper(*args, **kwargs):
            if next(count) != k:
                return operation(*args, **kwargs)
            if how == "before":
                die()
            if how == "during":
                delay = random.uniform(0, 2e-3)
                threading.Thread(target=lambda: (time.sleep(delay), die())).start()
            operation(*args, **kwargs)
            if how == "torn" and name == "merge_v2_checkpoints":
                tear_newest_index(logdir)
            die()

        return wrapper

    for module, name in OPERATIONS:
        setattr(module, name, fatal(getattr(module, name), name))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(100, exit=True)  # rather than to hang
    logdir, k, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if k:
        die_at(k, how, logdir)
    run(configure(logdir, **SETTINGS), small_dataset())

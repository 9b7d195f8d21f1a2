"""The machines that share one training, as the environment variable TF_CONFIG describes them."""

import dataclasses
import json
import os
import re

from arm_tf.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Workers of one training.

    Attributes:
      addresses: HOST:PORT of each worker, the chief first; () for a training of one process.
      index: int, which of them this process is.
      chiefs: int, how many of them TF_CONFIG has under "chief", 0 or 1.
    """

    addresses: tuple = ()
    index: int = 0
    chiefs: int = 0

    @property
    def is_chief(self):
        """Whether this process is the one that evaluates and writes."""
        return self.index == 0

    def __str__(self):
        return f"worker {self.index} of {len(self.addresses)}, {self.addresses[self.index]}"

    def lost(self, error):
        """The worker that an error of TensorFlow's names first, which is its cause; for people."""
        for job, task in re.findall(r"/job:(chief|worker)/(?:replica:0/)?task:(\d+)", str(error)):
            index = int(task) + self.chiefs * (job == "worker")
            if index != self.index:
                return f"worker {index} ({self.addresses[index]})"
        return "a worker"


ALONE = Cluster()


def find(distribute):
    """The `Cluster` of this process for a choice of `Config.distribute`.

    Raises:
      ConfigError: TF_CONFIG is needed and does not describe one.
    """
    if distribute != "multi_worker":
        return ALONE
    text = os.environ.get("TF_CONFIG", "")
    try:
        described = json.loads(text)
        jobs, task = described["cluster"], described["task"]
        names = [job for job in ("chief", "worker") if job in jobs]  # as TensorFlow orders them
        addresses = tuple(address for job in names for address in jobs[job])
        if set(jobs) - set(names) or not all(":" in address for address in addresses):
            raise ValueError
        index = [(job, i) for job in names for i in range(len(jobs[job]))].index(
            (task["type"], int(task["index"]))
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(
            "--distribute=multi_worker needs the environment variable TF_CONFIG on every host, "
            'such as {"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
            f'"task": {{"type": "worker", "index": 0}}}}, received {text!r}.'
        ) from None
    return Cluster(addresses, index, len(jobs.get("chief", ())))

"""One training on several replicas: the gradient of one, one writer, and workers that are lost."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from small_runs import assert_same_run, configure, run, run_stopped_at, small_dataset

from arm_tf import distribution, estimators, run_folder, training
from arm_tf.cluster import Cluster, find
from arm_tf.config import ConfigError

UNITS, BATCH = 5, 20


@pytest.fixture(scope="module")
def dataset():
    return small_dataset()


@pytest.fixture
def replicas(monkeypatch):
    """Lets --distribute=mirrored take the first so many of the tests' devices."""

    def replicas(count):
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(count)],
            tf.distribute.ReductionToOneDevice(),  # which can do without tracing
        )
        choices = {"mirrored": strategy, "none": tf.distribute.get_strategy()}
        monkeypatch.setattr(distribution, "strategy", choices.get)

    return replicas


@pytest.fixture
def eagerly():
    """TensorFlow's functions run without being traced, which takes longer than a few steps."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def two_steps(dataset, logdir, **settings):
    """What two steps make of a run: losses, gradients by part, and the tensors of the averages."""
    config = configure(
        logdir, units=UNITS, batch_size=BATCH, jit=False, steps_per_loop=1, max_steps=2, **settings
    )
    folder = run_folder.RunFolder(config)
    trainer = training.Trainer(config, dataset, folder)
    losses = [trainer.run_steps()[0]]
    gradients = {  # Adam's first moments after one step
        part: np.concatenate([np.ravel(m) for m in optimizer._momentums])
        for part, optimizer in trainer.optimizers.items()
        if part != "prior"
    }
    averages = [np.array(v) for layer in trainer.estimators for v in layer.non_trainable_variables]
    averages += [np.array(v) for v in trainer.tracker.averages.get("disarm", [[]])[0]]
    losses.append(trainer.run_steps()[0])
    folder.close()
    return losses, gradients, averages


def largest_differences(one, several):
    """Of losses (relative), gradients (relative to their length) and averages (relative)."""
    losses = np.max(np.abs(np.subtract(one[0], several[0])) / np.abs(one[0]))
    gradients = max(
        np.linalg.norm(one[1][part] - several[1][part]) / np.linalg.norm(one[1][part])
        for part in one[1]
    )
    averages = [
        np.linalg.norm(a - b) / (np.linalg.norm(a) + 1e-9)
        for a, b in zip(one[2], several[2], strict=True)
    ]
    return losses, gradients, max(averages, default=0.0)


def assert_same_gradients(one, several):
    differences = largest_differences(one, several)
    print(
        "largest differences of losses, gradients and averages:", *map("{:.0e}".format, differences)
    )
    assert max(differences) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(estimators.TABLE))
def test_two_replicas_compute_the_gradient_of_one(name, dataset, tmp_path, replicas, eagerly):
    replicas(2)
    settings = {"estimator": name, "track_variance": ("disarm",)}
    one = two_steps(dataset, tmp_path / "one", **settings)
    two = two_steps(dataset, tmp_path / "two", distribute="mirrored", **settings)
    assert_same_gradients(one, two)


@pytest.mark.parametrize("name", ["arm", "nvil", "relax"])
def test_four_replicas_compute_the_gradient_of_one(name, dataset, tmp_path, replicas, eagerly):
    replicas(4)
    one = two_steps(dataset, tmp_path / "one", estimator=name, layers=2)
    four = two_steps(dataset, tmp_path / "four", estimator=name, layers=2, distribute="mirrored")
    assert_same_gradients(one, four)


def losses(folder):
    return [row["train_neg_elbo"] for row in run_folder.read_metrics(folder.path)]


def test_run_on_all_devices_is_that_on_one_and_resumes(dataset, tmp_path, monkeypatch):
    """Bit for bit where it stopped; and also on other devices than it was started on."""
    settings = dict(jit=False, epochs=2)
    alone = run(configure(tmp_path / "alone", **settings), dataset)
    config = configure(tmp_path / "whole", distribute="mirrored", **settings)
    assert distribution.strategy("mirrored").num_replicas_in_sync == 4
    whole = run(config, dataset)
    np.testing.assert_allclose(losses(whole), losses(alone), rtol=1e-6)

    stopped = configure(tmp_path / "stopped", distribute="mirrored", **settings)
    run_stopped_at(8, stopped, dataset, monkeypatch)
    assert_same_run(run(stopped, dataset), whole)

    moved = configure(tmp_path / "moved", **settings)
    run_stopped_at(8, moved, dataset, monkeypatch)
    moved = run(configure(tmp_path / "moved", distribute="mirrored", **settings), dataset)
    np.testing.assert_allclose(losses(moved), losses(alone), rtol=1e-6)


def test_batch_that_cannot_be_shared_equally(dataset, tmp_path):
    config = configure(tmp_path, distribute="mirrored", batch_size=18)
    with pytest.raises(run_folder.RunError, match="--batch_size=18 .* 4 replicas"):
        run(config, dataset)


# Several processes.

no_windows = pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGKILL nor SIGTERM")

ADDRESSES = ["host0:1", "host1:2", "host2:3"]


def describe(monkeypatch, cluster, task):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    return find("multi_worker")


def test_workers_are_numbered_with_the_chief_first(monkeypatch):
    worker = describe(monkeypatch, {"worker": ADDRESSES}, {"type": "worker", "index": 1})
    assert worker == Cluster(tuple(ADDRESSES), 1) and not worker.is_chief
    with_chief = {"worker": ADDRESSES[1:], "chief": ADDRESSES[:1]}
    worker = describe(monkeypatch, with_chief, {"type": "worker", "index": 1})
    assert worker.addresses == tuple(ADDRESSES) and worker.index == 2
    assert (
        worker.lost("… /job:worker/replica:0/task:1 … /job:worker/task:0") == "worker 1 (host1:2)"
    )
    assert worker.lost("… /job:chief/replica:0/task:0") == "worker 0 (host0:1)"
    assert worker.lost("…") == "a worker"
    assert describe(monkeypatch, with_chief, {"type": "chief", "index": 0}).is_chief
    assert find("none") == find("mirrored") == Cluster()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"cluster": {"worker": ["a:1"]}}']
    + [json.dumps({"cluster": {"worker": ["a:1"]}, "task": task}) for task in
       [{}, {"type": "worker", "index": 1}, {"type": "ps", "index": 0}, [1]]]
    + [json.dumps({"cluster": c, "task": {"type": "worker", "index": 0}}) for c in
       [{"worker": ["a"]}, {"worker": "a:1"}, {"worker": ["a:1"], "ps": ["b:1"]}, {"worker": [1]}]],
)  # fmt: skip
def test_cluster_that_is_not_described(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigError, match="TF_CONFIG on every host"):
        find("multi_worker")


class Workers:
    """Two processes that train together, each with a log folder of its own."""

    def __init__(self, folder, *flags, others=()):
        with contextlib.ExitStack() as stack:  # two free ports
            sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
            for s in sockets:
                s.bind(("localhost", 0))
            addresses = [f"localhost:{s.getsockname()[1]}" for s in sockets]
        self.logs = [folder / f"log{i}" for i in range(2)]
        self.processes = []
        for i, log in enumerate(self.logs):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
            with open(log, "w", encoding="utf-8") as output:
                self.processes.append(
                    subprocess.Popen(
                        [*COMMAND, "--distribute=multi_worker", f"--logdir={folder / str(i)}"]
                        + [*flags, *(others if i else ())],
                        env={
                            **os.environ,
                            "TF_CONFIG": json.dumps(task),
                            "PYTHONIOENCODING": "utf-8",
                        },
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait_for(self, text):
        """Until the first worker has printed a text."""
        deadline = time.monotonic() + 120
        while text not in self.logs[0].read_text(encoding="utf-8"):
            assert time.monotonic() < deadline and self.processes[0].poll() is None, self.said(0)
            time.sleep(0.05)

    def end(self, seconds=120):
        """Waits for both; their exit statuses."""
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def said(self, worker):
        return self.logs[worker].read_text(encoding="utf-8")


COMMAND = [
    sys.executable, "-m", "arm_tf.train", "--name=run", "--units=8", "--valid_images=20",
    "--test_images=20", "--test_samples=10", "--steps_per_loop=20", "--nojit", "--max_steps=840",
]  # fmt: skip


@pytest.fixture(scope="module")
def train_losses_of_one(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("one")
    subprocess.run([*COMMAND, f"--logdir={logdir}"], check=True, stdout=subprocess.DEVNULL)
    return [row["train_neg_elbo"] for row in run_folder.read_metrics(logdir / "run")]


@no_windows
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_workers_do_the_run_of_one_process_also_if_one_dies(victim, tmp_path, train_losses_of_one):
    """The other says which and ends; the same commands go on; the chief alone writes."""
    workers = Workers(tmp_path)
    workers.wait_for("epoch 1 ")
    workers.processes[victim].kill()
    begin = time.monotonic()
    statuses = workers.end(60)
    assert time.monotonic() - begin < 60
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 1
    last = workers.said(1 - victim).splitlines()[-1]
    assert last.startswith(f"Error: Lost worker {victim} (localhost:") and "go on" in last

    workers = Workers(tmp_path)
    assert workers.end() == [0, 0], workers.said(0) + workers.said(1)
    for worker in (0, 1):
        assert "from step 420 on 2 replicas" in workers.said(worker)
    assert not (tmp_path / "1").exists()
    metrics = run_folder.read_metrics(tmp_path / "0" / "run")
    np.testing.assert_allclose(
        [row["train_neg_elbo"] for row in metrics], train_losses_of_one, rtol=1e-5
    )


def test_stop_while_workers_agree_waits_for_the_next_time(monkeypatch):
    """One that took effect at once would leave the others waiting for this worker."""
    worker = types.SimpleNamespace(cluster=Cluster(("a:1", "b:2"), 1), strategy=None)

    def meanwhile(strategy, flag):
        signal.raise_signal(signal.SIGTERM)
        return flag

    with training.Stop() as stop:
        monkeypatch.setattr(distribution, "any_worker", meanwhile)
        assert not training.Trainer.agrees(worker, stop)
        monkeypatch.setattr(distribution, "any_worker", lambda strategy, flag: flag)
        assert training.Trainer.agrees(worker, stop)


@no_windows
@pytest.mark.slow
def test_workers_stop_together(tmp_path):
    workers = Workers(tmp_path, "--max_steps=100000", "--epochs=100000")
    workers.wait_for("epoch 1 ")
    workers.processes[1].terminate()
    assert workers.end() == [0, 0]
    stopped = [workers.said(worker).splitlines()[-1] for worker in (0, 1)]
    assert stopped[0] == stopped[1] and stopped[0].startswith("Stopped at step ")


@pytest.mark.slow
def test_worker_with_other_settings(tmp_path):
    workers = Workers(tmp_path, others=["--layers=2"])
    assert workers.end() == [1, 1]
    assert "settings or data are not those of worker 0" in workers.said(1).splitlines()[-1]
    assert workers.said(0).splitlines()[-1].startswith("Error: Lost worker 1 ")

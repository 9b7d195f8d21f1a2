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
from kinds import KINDS
from small_runs import (
    assert_same_run,
    configure,
    mirrored,
    run,
    run_stopped_at,
    small_dataset,
)

from arm_tf.errors import ConfigError, RunError
from arm_tf.training import replicas, run_folder, session
from arm_tf.training.workers import Cluster, find

UNITS, BATCH = 5, 20


@pytest.fixture(scope="module")
def dataset():
    return small_dataset()


@pytest.fixture
def devices(monkeypatch):
    """Lets --distribute=mirrored take the first so many of the tests' devices."""

    def take(count):
        choices = {"mirrored": mirrored(count), "none": tf.distribute.get_strategy()}
        monkeypatch.setattr(replicas, "strategy", choices.get)

    return take


def two_steps(dataset, logdir, **settings):
    """What two steps make of a run: losses, gradients by part, and the tensors of the averages."""
    config = configure(
        logdir, units=UNITS, batch_size=BATCH, jit=False, steps_per_loop=1, max_steps=2, **settings
    )
    folder = run_folder.RunFolder(config)
    run = session.Run(config, dataset, folder)
    losses = [run.run_steps()[0]]
    gradients = {  # Adam's first moments after one step
        part: np.concatenate([np.ravel(m) for m in optimizer._momentums])
        for part, optimizer in run.learner.optimizers.items()
        if part != "prior"
    }
    averages = [
        np.array(v) for layer in run.learner.estimators for v in layer.non_trainable_variables
    ]
    averages += [np.array(v) for v in run.learner.tracker.averages.get("disarm", [[]])[0]]
    losses.append(run.run_steps()[0])
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
    """Another batch is multiplied in another order, so that float32 rounds otherwise.

    f is some 550 nats here, and its last place (6e-5) times the norm of an image (10) is what an
    encoder's gradient of norm 4 cannot resolve: weights that are changed in their last place
    change the gradients of `rebar` by up to 6e-4 of their length. A gradient of other noise is
    off by a fifth of it, and one that is added up by all of it.
    """
    losses, gradients, averages = largest_differences(one, several)
    print("largest differences of losses, gradients and averages:")
    print(f"{losses:.0e} {gradients:.0e} {averages:.0e}")
    assert max(losses, averages) < 1e-5
    assert gradients < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_two_replicas_compute_the_gradient_of_one(name, dataset, tmp_path, devices, eagerly):
    devices(2)
    settings = {"estimator": name, "track_variance": ("disarm",)}
    one = two_steps(dataset, tmp_path / "one", **settings)
    two = two_steps(dataset, tmp_path / "two", distribute="mirrored", **settings)
    assert_same_gradients(one, two)


@pytest.mark.parametrize("name", ["arm", "nvil", "relax"])
def test_four_replicas_compute_the_gradient_of_one(name, dataset, tmp_path, devices, eagerly):
    devices(4)
    one = two_steps(dataset, tmp_path / "one", estimator=name, layers=2)
    four = two_steps(dataset, tmp_path / "four", estimator=name, layers=2, distribute="mirrored")
    assert_same_gradients(one, four)


def losses(folder):
    return [row["train_neg_elbo"] for row in run_folder.read_metrics(folder.path)]


def test_run_on_all_devices_is_that_on_one_and_resumes(dataset, tmp_path, monkeypatch, eagerly):
    """Bit for bit where it stopped; and also on other devices than it was started on."""
    settings = dict(jit=False, epochs=1)
    alone = run(configure(tmp_path / "alone", **settings), dataset)
    config = configure(tmp_path / "whole", distribute="mirrored", **settings)
    assert replicas.strategy("mirrored").num_replicas_in_sync == 4
    whole = run(config, dataset)
    np.testing.assert_allclose(losses(whole), losses(alone), rtol=1e-6)

    stopped = configure(tmp_path / "stopped", distribute="mirrored", **settings)
    run_stopped_at(4, stopped, dataset, monkeypatch)
    assert_same_run(run(stopped, dataset), whole)

    moved = configure(tmp_path / "moved", **settings)
    run_stopped_at(4, moved, dataset, monkeypatch)
    moved = run(configure(tmp_path / "moved", distribute="mirrored", **settings), dataset)
    np.testing.assert_allclose(losses(moved), losses(alone), rtol=1e-6)


def test_batch_that_cannot_be_shared_equally(dataset, tmp_path):
    config = configure(tmp_path, distribute="mirrored", batch_size=18)
    with pytest.raises(RunError, match="--batch_size=18 .* 4 replicas"):
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
    assert describe(monkeypatch, with_chief, {"type": "chief", "index": "0"}).is_chief
    assert find("none") == find("mirrored") == Cluster()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"cluster": {"worker": ["a:1"]}}']
    + [json.dumps({"cluster": {"worker": ["a:1"]}, "task": task}) for task in
       [{}, {"type": "worker", "index": 1}, {"type": "ps", "index": 0}, [1]]]
    + [json.dumps({"cluster": c, "task": {"type": "worker", "index": 0}}) for c in
       [{"worker": ["a"]}, {"worker": "a:1"}, {"worker": ["a:1"], "ps": ["b:1"]}, {"worker": [1]},
        {"worker": ["a:port"]}, {"worker": ["a:1"], "chief": ["b:1", "c:1"]}]],
)  # fmt: skip
def test_cluster_that_is_not_described(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigError, match="TF_CONFIG on every host"):
        find("multi_worker")


def test_what_cluster_managers_add_is_served_or_named(monkeypatch):
    jobs = {"chief": ADDRESSES[:1], "worker": ADDRESSES[1:], "evaluator": ["host3:4"]}
    task = {"type": "worker", "index": "1", "cloud": "x", "trial": "1"}
    text = json.dumps({"cluster": jobs, "task": task, "environment": "cloud", "job": "{}"})
    monkeypatch.setenv("TF_CONFIG", text)
    assert find("multi_worker") == Cluster(tuple(ADDRESSES), 2, chiefs=1)
    with pytest.raises(ConfigError, match="the first worker evaluates"):
        describe(monkeypatch, jobs, {"type": "evaluator", "index": 0})
    with pytest.raises(ConfigError, match="without the job 'ps'"):
        describe(monkeypatch, {**jobs, "ps": ["host4:5"]}, {"type": "chief", "index": 0})


def free_addresses(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for s in sockets:
            s.bind(("localhost", 0))
        return [f"localhost:{s.getsockname()[1]}" for s in sockets]


@pytest.fixture
def come():
    """Starts a process that comes to the start of a cluster, where it does something."""
    processes = []

    def come(addresses, index, seconds, action="print('met')"):
        code = f"""
import sys, time
sys.argv, sys.orig_argv = ["-m"], ["python", "-m", "arm_tf.train"]  # as a program: no TensorFlow
from arm_tf.errors import RunError
from arm_tf.training import workers
try:
    with workers.Cluster({tuple(addresses)}, {index}).starting({seconds}, 2):
        {action}
except RunError as error:
    print(error)
"""
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            )
        )  # fmt: skip
        return processes[-1]

    yield come
    for process in processes:
        process.kill()
        process.communicate()


def wait_until_listening(address):
    host, port = address.split(":")
    deadline = time.monotonic() + 300
    while True:
        try:
            return socket.create_connection((host, int(port))).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_workers_meet_also_if_one_dies_and_comes_again(come):
    addresses = free_addresses(4)
    dying, *waiting = [come(addresses, index, 60) for index in (2, 0, 1)]
    for address in addresses[:3]:
        wait_until_listening(address)
    time.sleep(3)  # in which they report to the chief
    dying.kill()
    third = come(addresses, 3, 60)
    wait_until_listening(addresses[3])
    time.sleep(3)
    assert [process.poll() for process in (*waiting, third)] == [None] * 3
    again = come(addresses, 2, 60)
    for process in (*waiting, third, again):
        assert process.communicate() == ("met\n", "")


def test_those_who_wait_name_who_does_not_come(come):
    addresses = free_addresses(3)
    chief = come(addresses, 0, 2)
    said = f"for worker 1 ({addresses[1]}), worker 2 ({addresses[2]}); start all workers"
    assert chief.communicate()[0].startswith(f"Waited 2 seconds {said}")
    come(addresses, 0, 120)
    wait_until_listening(addresses[0])
    said = f"Waited 5 seconds for worker 2 ({addresses[2]}); start all workers"
    assert come(addresses, 1, 5).communicate()[0].startswith(said)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\n", b"[7]\n", b"7\n", b""])
def test_another_service_at_the_chiefs_address_is_no_chief(answer, come):
    with socket.create_server(("localhost", 0)) as server:
        addresses = [f"localhost:{server.getsockname()[1]}", *free_addresses(1)]
        worker = come(addresses, 1, 2)
        with server.accept()[0] as connection:
            connection.sendall(answer)
            assert worker.communicate()[0].startswith("Waited 2 seconds for worker 0 (localhost:")


def test_port_that_is_taken(come):
    with socket.create_server(("", 0)) as server:
        addresses = [*free_addresses(1), f"localhost:{server.getsockname()[1]}"]
        said = come(addresses, 1, 2).communicate()[0]
    assert said.startswith("This is worker 1 of 2") and "cannot listen there: Address" in said


def test_start_that_hangs_is_ended(come):
    """TensorFlow holds the interpreter up meanwhile, so that no signal is handled."""
    addresses = free_addresses(2)
    processes = [come(addresses, i, 2, "time.sleep(120)") for i in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1 and errors.startswith("Timeout")


class Workers:
    """Two processes that train together, each with a log folder of its own.

    With `managed`, TF_CONFIG is as managers of clusters write it.
    """

    def __init__(self, folder, *flags, others=(), managed=False):
        addresses = free_addresses(2)
        self.logs = [folder / f"log{i}" for i in range(2)]
        self.processes = []
        for i, log in enumerate(self.logs):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
            if managed:
                jobs = {"chief": addresses[:1], "worker": addresses[1:], "evaluator": ["host:1"]}
                task = {"type": ("chief", "worker")[i], "index": "0", "cloud": "x"}
                task = {"cluster": jobs, "task": task, "environment": "cloud"}
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


@no_windows
@pytest.mark.parametrize("index, number", [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_worker_that_waits_stops_at_once(index, number, tmp_path):
    addresses = free_addresses(2)
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    process = subprocess.Popen(
        [*COMMAND, "--distribute=multi_worker", f"--logdir={tmp_path}"],
        env={**environment, "TF_CONFIG": json.dumps(task)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, Ctrl-C may be ignored, which a child inherits.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_until_listening(addresses[index])
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)  # a busy machine takes seconds to exit
    finally:
        process.kill()
    if number == signal.SIGINT:
        assert (process.returncode, errors) == (130, "Error: interrupted.\n")
    else:
        assert process.returncode == -signal.SIGTERM


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

    with session.Stop() as stop:
        monkeypatch.setattr(replicas, "any_worker", meanwhile)
        assert not session.Run.agrees(worker, stop)
        monkeypatch.setattr(replicas, "any_worker", lambda strategy, flag: flag)
        assert session.Run.agrees(worker, stop)


@no_windows
@pytest.mark.slow
def test_workers_stop_together(tmp_path):
    workers = Workers(tmp_path, "--max_steps=100000", "--epochs=100000", managed=True)
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

"""Faults: whatever happens to a run, the user reads one line and the run can go on bit for bit."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import gc
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import faulty_run
import numpy as np
import pytest
import tensorflow as tf
from small_runs import assert_same_run, configure, run, run_stopped_at, small_dataset

from arm_tf import cli, data, files, train
from arm_tf.errors import RunError
from arm_tf.training import checkpoints, run_folder, session

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dataset():
    return small_dataset()


def plain(logdir, **settings):
    """A configuration that is not compiled by XLA, which takes longer than such runs."""
    return configure(logdir, jit=False, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dataset):
    """The run as it is without faults."""
    return run(plain(tmp_path_factory.mktemp("finished")), dataset)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, dataset):
    """The log folder of a run that was stopped at step 30, with checkpoints of steps 22 and 30."""
    logdir = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        run_stopped_at(26, plain(logdir), dataset, patch)
    return logdir


@pytest.fixture
def half_done(stopped, tmp_path):
    """The configuration of a copy of that run."""
    shutil.copytree(stopped, tmp_path / "runs")
    return plain(tmp_path / "runs")


@pytest.fixture
def command(dataset, monkeypatch, capfd):
    """What `python -m arm_tf.train` does: config -> exit status, stdout, lines on stderr."""

    def command(config):
        monkeypatch.setattr(data, "load", lambda *_: dataset)
        monkeypatch.setattr(sys, "argv", ["train"])
        tf.get_logger().setLevel("ERROR")  # as the command has it
        capfd.readouterr()
        status = 0
        try:
            cli.run(lambda: train.train(config))
        except SystemExit as exit:
            status = exit.code or 0
        gc.collect()  # closes the folder, as the end of a process would
        output = capfd.readouterr()
        return status, output.out, output.err.splitlines()

    return command


@pytest.fixture
def before(monkeypatch):
    """Lets something happen before a method of the running is called, once or at a step."""

    def before(method, action, step=None):
        original = getattr(session.Run, method)

        def wrapper(running, *args):
            if step in (None, running.step):
                monkeypatch.setattr(session.Run, method, original)
                action()
            return original(running, *args)

        monkeypatch.setattr(session.Run, method, wrapper)

    return before


def mounted(folder, *arguments):
    """Mounts something on a folder, or skips the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if not shutil.which("mount"):
        pytest.skip("needs mounts")
    if subprocess.run(["mount", *arguments, str(folder)], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    return contextlib.closing(Mount(folder))


class Mount:
    def __init__(self, folder):
        self.folder = folder

    def close(self):
        gc.collect()
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def fill(folder):
    """Leaves no free block on the disk of a folder."""
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def assert_one_line(outcome, *parts):
    status, _, lines = outcome
    assert status == 1 and len(lines) == 1 and lines[0].startswith("Error: "), lines
    assert all(part in lines[0] for part in parts), lines


def assert_goes_on(outcome, config, finished, said=()):
    status, out, lines = outcome
    assert status == 0 and len(lines) == len(said), lines
    assert all(part in line for part, line in zip(said, lines, strict=True)), lines
    folder = run_folder.RunFolder(config)
    assert_same_run(finished, folder)
    folder.close()


# Death.


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_at_random_moments(dataset, tmp_path):
    """Eight times kill -9 at, or in the midst of, the writing of files."""

    def start(logdir, k=0, how="before"):
        process = subprocess.run(
            [sys.executable, faulty_run.__file__, logdir, str(k), how],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert process.returncode in (0, -signal.SIGKILL), (logdir, k, how, process.stderr)
        return process.returncode

    def kill_four_times(seed):
        rng, kills, folders = random.Random(seed), 0, []
        while kills < 4:
            folders.append(tmp_path / f"{seed}-{len(folders)}")
            while kills < 4 and not (folders[-1] / "run" / "result.json").exists():
                how = rng.choice(["before", "after", "during", "torn"])
                kills += start(folders[-1], rng.randint(1, 20), how) != 0
        assert start(folders[-1]) == 0
        return folders

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        chains = list(pool.map(kill_four_times, (1, 2)))
    whole = run(configure(tmp_path / "whole", **faulty_run.SETTINGS), dataset)
    for logdir in sum(chains, []):
        folder = run_folder.RunFolder(configure(logdir, **faulty_run.SETTINGS))
        assert_same_run(whole, folder)
        folder.close()


def test_death_between_the_metrics_and_the_checkpoint_after_an_evaluation(
    finished, dataset, tmp_path, before, command, monkeypatch
):
    """The checkpoint is of the same step, but from before its evaluation."""
    config = plain(tmp_path)

    class Death(BaseException):
        pass

    def die():
        raise Death

    before("evaluate", lambda: signal.raise_signal(signal.SIGTERM), step=11)
    assert "Stopped at step 11" in command(config)[1]
    before("save", die, step=11)
    with pytest.raises(Death):
        command(config)
    gc.collect()
    assert [row["step"] for row in run_folder.read_metrics(tmp_path / "run")] == [11]
    assert_goes_on(command(config), config, finished)


# Full, vanished and read-only disks.


@pytest.mark.parametrize("kept", ["0", "20k", "100k"])
def test_disk_that_is_full_from_the_start(kept, finished, tmp_path, command):
    """With no space at all, or with some for the settings but not for a checkpoint."""
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=10m", "tmpfs"):
        config = plain(disk)
        fill(disk)
        os.truncate(
            disk / "filler", (disk / "filler").stat().st_size - int(kept.rstrip("k")) * 1024
        )
        assert_one_line(command(config), f"Cannot write the folder {disk}/run", "No space left")
        (disk / "filler").unlink()
        assert_goes_on(command(config), config, finished)


@pytest.mark.parametrize("method, step", [("evaluate", 22), ("save", 22), ("finish", 33)], ids=str)
def test_disk_that_gets_full(method, step, finished, tmp_path, command, before):
    """Before the best weights, a checkpoint or the results are written."""
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=10m", "tmpfs"):
        config = plain(disk)
        before(method, lambda: fill(disk), step)
        outcome = command(config)
        assert_one_line(
            outcome, f"Cannot write the folder {disk}/run", "No space left on device",
            "once that is mended, the same command goes on",
        )  # fmt: skip
        assert not (disk / "run" / "result.json").exists()
        (disk / "filler").unlink()
        outcome = command(config)
        assert f" from step {11 if step == 22 else 33}" in outcome[1]
        assert_goes_on(outcome, config, finished)


def test_disk_of_the_events_gets_full(finished, tmp_path, command, before):
    config = plain(tmp_path)
    with mounted(tmp_path / "run" / "train", "-t", "tmpfs", "-o", "size=4k", "tmpfs"):
        before("run_steps", lambda: fill(tmp_path / "run" / "train"), step=22)
        assert_one_line(command(config), f"Cannot write the folder {tmp_path}/run", "No space left")
    assert not tf.summary.scalar("x", 1.0, step=0)  # to no writer, and so without its disk
    assert_goes_on(command(config), config, finished)


@pytest.mark.parametrize("file", ["config.json", "metrics.csv", "result.json"])
def test_file_that_cannot_be_written(file, finished, tmp_path, command, monkeypatch):
    """The same without a disk of the test's own."""
    replace = os.replace

    def full(source, target):
        if pathlib.Path(target).name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    config = plain(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert_one_line(command(config), f"Cannot write the folder {tmp_path}/run", "No space left")
    assert_goes_on(command(config), config, finished)


def test_file_that_somebody_reads_is_replaced_when_windows_lets_it_be(tmp_path, monkeypatch):
    replace, refusals = os.replace, iter([PermissionError(), PermissionError()])

    def refusing(source, target):
        for refusal in refusals:
            raise refusal
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    files.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "new"
    monkeypatch.setattr(files, "_SECONDS_BETWEEN_TRIES", 0.001)
    refusals = iter(PermissionError, None)  # for ever
    with pytest.raises(PermissionError):
        files.write_text(tmp_path / "file", "newer")


def test_folder_that_vanishes(finished, tmp_path, command, before):
    """The run ends at once, rather than to leave half a folder in place of the one that is gone."""
    config = plain(tmp_path)
    before("run_steps", lambda: shutil.rmtree(tmp_path / "run"), step=15)
    assert_one_line(command(config), f"Cannot write the folder {tmp_path}/run: No such file")
    assert not (tmp_path / "run").exists()
    assert_goes_on(command(config), config, finished)


def test_folder_that_becomes_read_only(finished, tmp_path, command, before):
    config, folder = plain(tmp_path), tmp_path / "run"

    def protect():
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

    with mounted(tmp_path / "probe", "-t", "tmpfs", "tmpfs"):
        before("run_steps", protect, step=15)
        outcome = command(config)
    assert_one_line(outcome, f"Cannot write the folder {folder}", "Read-only file system")
    assert_one_line(command(config), f"Cannot write the folder {folder}: Read-only file system")
    subprocess.run(["umount", "--lazy", folder], check=True)
    outcome = command(config)
    assert " from step 11" in outcome[1]
    assert_goes_on(outcome, config, finished)


# Damaged files.


def flip(path):
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 0x10
    path.write_bytes(contents)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def newest(config, folder="checkpoints"):
    return pathlib.Path(tf.train.latest_checkpoint(f"{config.logdir}/run/{folder}"))


DATA, INDEX = ".data-00000-of-00001", ".index"


@pytest.mark.parametrize("damage", [flip, cut, empty, os.unlink])
@pytest.mark.parametrize("suffix", [DATA, INDEX])
def test_damaged_checkpoint(suffix, damage, half_done, finished, command):
    """The run goes on from the one before it."""
    damage(pathlib.Path(f"{newest(half_done)}{suffix}"))
    outcome = command(half_done)
    assert " from step 22" in outcome[1]
    assert_goes_on(outcome, half_done, finished, ["going on from the checkpoint before it"])


@pytest.mark.parametrize("damage", [flip, cut, empty, lambda path: path.write_bytes(b"\xff" * 9)])
def test_damaged_list_of_checkpoints(damage, half_done, finished, command):
    """The files themselves tell which checkpoints there are."""
    damage(newest(half_done).with_name("checkpoint"))
    damage(newest(half_done, "checkpoints/best").with_name("checkpoint"))
    outcome = command(half_done)
    assert " from step 30" in outcome[1]
    assert_goes_on(outcome, half_done, finished)


def test_no_checkpoint_left(half_done, command):
    for path in newest(half_done).parent.glob(f"*{DATA}"):
        flip(path)
    status, _, lines = command(half_done)
    assert status == 1 and len(lines) == 2  # of the newest, of the one before it
    assert lines[1].startswith("Error: Cannot restore") and "--name" in lines[1]
    assert len(list(newest(half_done).parent.glob(f"*{DATA}"))) == 2


@pytest.mark.parametrize("damage", [flip, cut, os.unlink])
def test_damaged_best_weights(damage, half_done, dataset, command, before):
    """A run whose last validation is not the best needs them in the end."""
    before("evaluate", lambda: None)
    damage(pathlib.Path(f"{newest(half_done, 'checkpoints/best')}{DATA}"))
    with pytest.raises(RunError, match="Cannot restore .*/best/"):
        session.evaluate_run(pathlib.Path(half_done.logdir) / "run", half_done, dataset, "test", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.Run, "evaluate", worse(session.Run.evaluate))
        assert_one_line(command(half_done), "/best/", "best validation are lost", "--name")


def worse(evaluate):
    """An evaluation that is never the best."""

    def wrapper(running, stop):
        running.position["best_valid_nll"].assign(-np.inf)
        return evaluate(running, stop)

    return wrapper


def test_every_flipped_bit_of_a_checkpoint_is_noticed(half_done, dataset):
    """TensorFlow's checksums suffice: what it restores without complaint is what was saved."""
    folder = run_folder.RunFolder(half_done)
    running = session.Run(half_done, dataset, folder)
    checkpoint, path = running.checkpoints._latest.checkpoint, str(newest(half_done))

    def state():
        optimizers = [
            checkpoints.tensors(optimizer) for optimizer in running.learner.optimizers.values()
        ]
        return [
            variable.numpy()
            for variable in tf.nest.flatten(
                [checkpoints.tensors(running.learner.model), optimizers]
            )
            + list(running.position.values())
        ]

    saved, rng, noticed = state(), random.Random(0), 0
    for suffix in (DATA, INDEX):
        file = pathlib.Path(path + suffix)
        contents = file.read_bytes()
        for _ in range(100):
            damaged = bytearray(contents)
            damaged[rng.randrange(len(contents))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            try:
                checkpoints.restore(checkpoint, path)
            except RunError:
                noticed += 1
            else:
                for variable, value in zip(state(), saved, strict=True):
                    np.testing.assert_array_equal(variable, value)
        file.write_bytes(contents)
    folder.close()
    assert noticed > 180  # the rest are bytes without a meaning


DEEP = b"[" * 100_000
NOT_RESULTS = [b'{"test_nll": 1}', b'{"test_nll": "1", "valid_nll": 1}', b"null", b'"x"']


@pytest.mark.parametrize(
    "contents", [b"", b"\xff\xfe", b"[1]", b'{"config": 1}', DEEP, *NOT_RESULTS]
)
@pytest.mark.parametrize("file", ["config.json", "result.json"])
def test_damaged_file_of_a_run(file, contents, half_done, command):
    path = pathlib.Path(half_done.logdir) / "run" / file
    path.write_bytes(contents)
    assert_one_line(command(half_done), f"Cannot read {path}")


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes")
@pytest.mark.parametrize("file", ["config.json", "result.json", "checkpoints/checkpoint"])
def test_pipe_in_place_of_a_file(file, half_done, command):
    """Nobody writes into it, and nobody waits for that."""
    path = pathlib.Path(half_done.logdir) / "run" / file
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert_one_line(command(half_done), str(path), "not a regular file")


def fewer_rows(path):
    path.write_text("".join(path.read_text().splitlines(True)[:-1]))


def another_seed(path):
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 4'))


@pytest.mark.parametrize("damage", [os.unlink, fewer_rows])
def test_metrics_are_those_of_the_checkpoint(damage, half_done, finished, command):
    """Also where all that is left to do is the final test."""

    def stop(*_):
        raise session.Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.Run, "finish", stop)
        command(half_done)
    damage(pathlib.Path(half_done.logdir) / "run" / "metrics.csv")
    outcome = command(half_done)
    assert " from step 33" in outcome[1]
    assert_goes_on(outcome, half_done, finished)


@pytest.mark.parametrize("damage", [os.unlink, another_seed])
def test_checkpoints_of_other_settings_are_refused(damage, half_done, finished, command):
    """Whether their config.json is gone, or tells of another run."""
    path = pathlib.Path(half_done.logdir) / "run" / "config.json"
    kept = path.read_text()
    damage(path)
    other = dataclasses.replace(half_done, seed=4)
    assert_one_line(command(other), "choose another --name")
    assert damage is another_seed or not path.exists()
    path.write_text(kept)
    assert_goes_on(command(half_done), half_done, finished)


# Folders of others.


@pytest.mark.parametrize("logdir", ["exp[1]", "exp?", "*", "a*/b"])
def test_path_that_is_a_pattern_of_others(logdir, tmp_path, command):
    assert_one_line(command(plain(tmp_path / logdir)), "in its path", "--logdir")
    assert not list(tmp_path.iterdir())


def test_weights_in_a_path_that_is_a_pattern_are_not_read(half_done, dataset):
    path = pathlib.Path(half_done.logdir).rename(pathlib.Path(half_done.logdir).with_name("[1]"))
    with pytest.raises(RunError, match="in its path.*rename"):
        session.evaluate_run(path / "run", half_done, dataset, "test", 2)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove an open file")
@pytest.mark.parametrize("method, step", [("save", 22), ("finish", 33)], ids=str)
def test_folder_that_another_run_has_made_anew(method, step, tmp_path, command, before):
    """Nothing of the first run comes into it."""
    other = dataclasses.replace(plain(tmp_path), seed=4)
    seen = {}

    def make_anew():
        shutil.rmtree(tmp_path / "run")
        seen["folder"] = run_folder.RunFolder(other)
        seen["folder"].start(other, small_dataset())
        seen["files"] = sorted((tmp_path / "run").rglob("*"))

    before(method, make_anew, step)
    assert_one_line(command(plain(tmp_path)), "deleted", "made it anew", "another --name")
    assert sorted((tmp_path / "run").rglob("*")) == seen["files"]
    assert run_folder.read_config(tmp_path / "run").seed == 4


def test_new_folder_that_another_run_has_made_anew_is_not_discarded(tmp_path):
    config = plain(tmp_path)
    folder = run_folder.RunFolder(config)
    shutil.rmtree(tmp_path / "run")
    other = run_folder.RunFolder(config)
    folder.discard_if_new()
    assert (tmp_path / "run" / ".lock").exists()
    other.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows has another kind of lock")
def test_file_system_without_locks(finished, tmp_path, command, monkeypatch):
    """The run goes on with a weaker kind, of which one line tells."""
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    outcome = command(plain(tmp_path))
    monkeypatch.undo()
    assert_goes_on(outcome, plain(tmp_path), finished, [f"{tmp_path / 'run'}: flock not supported"])


# What the system refuses.


@pytest.mark.parametrize("method, step", [("restore_latest", 0), ("restore_best", 33)])
def test_too_many_open_files(method, step, half_done, finished, command, monkeypatch):
    """The weights are there: nothing is said of damage, and the same command goes on."""
    resource = pytest.importorskip("resource")
    original, limit = getattr(checkpoints.Checkpoints, method), resource.getrlimit(7)
    opened = []

    def starved(these):
        soft = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limit[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    opened.append(open(os.devnull, "rb"))
            return original(these)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            for file in opened:
                file.close()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, method, starved)
        assert_one_line(
            command(half_done), "Cannot read", "Too many open files", "the same command goes on"
        )
    assert_goes_on(command(half_done), half_done, finished)


def test_foreign_file_among_the_checkpoints(half_done, finished, dataset, command):
    folder = newest(half_done).parent
    for path in (folder, folder / "best"):
        (path / "ckpt-final.index").write_bytes(b"")
        empty(path / "checkpoint")
    assert session.evaluate_run(folder.parent, half_done, dataset, "test", 2).images == 60
    assert_goes_on(command(half_done), half_done, finished)


# Numbers and clocks.


@pytest.mark.parametrize("poison", ["image", "learning rate"])
def test_number_that_is_not_finite(poison, finished, tmp_path, command, monkeypatch):
    config = plain(tmp_path, steps_per_loop=1)
    run_steps = session.Run.run_steps

    def poisoned(running):
        feed = running.feed

        def poisoned_feed(step, count):
            images, *others = feed(step, count)
            return tf.cast(images, tf.float32) * np.nan, *others

        if running.step == 16 and poison == "image":
            running.feed = poisoned_feed
        if running.step == 16 and poison == "learning rate":
            for optimizer in running.learner.optimizers.values():
                optimizer.learning_rate.assign(np.inf)
        return run_steps(running)

    with monkeypatch.context() as patch:
        patch.setattr(session.Run, "run_steps", poisoned)
        assert_one_line(
            command(config), f"not finite at step {17 + (poison != 'image')}", "is kept"
        )
    outcome = command(config)
    assert " from step 11" in outcome[1]
    assert_goes_on(outcome, config, finished)


def test_too_little_memory(finished, tmp_path, command):
    """Noise of terabytes."""
    config = plain(tmp_path, estimator="loo", steps_per_loop=100_000, num_samples=100_000)
    assert_one_line(command(config), "too little memory", "--steps_per_loop")


def test_clock_that_goes_backwards(finished, tmp_path, command, monkeypatch, dataset):
    """Also over a stop, and with a progress bar."""
    now = time.time()
    ticks = iter(range(1_000_000))
    monkeypatch.setattr(time, "time", lambda: now - next(ticks))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    config = plain(tmp_path)
    run_stopped_at(15, config, dataset, monkeypatch)
    status, _, lines = command(config)
    assert status == 0 and not any("Traceback" in line for line in lines)
    folder = run_folder.RunFolder(config)
    assert_same_run(finished, folder)
    seconds = [row["seconds"] for row in run_folder.read_metrics(folder.path)]
    assert 0 < seconds[0] and seconds == sorted(seconds)
    assert folder.result["steps_per_second"] > 0 and folder.result["seconds"] >= seconds[-1]

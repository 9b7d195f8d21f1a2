"""Commands as a user types them: help, errors in one line, refusals."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import filelock
import numpy as np
import pytest
from small_runs import asked_to_stop_at, assert_one_line, assert_same_run

from arm_tf import data, estimators
from arm_tf.errors import RunError
from arm_tf.training import run_folder
from arm_tf.training.config import KINDS, Config

ROOT = pathlib.Path(__file__).parents[1]
FAST = ("--units=8", "--eval_samples=2", "--test_samples=5", "--test_images=40",
        "--valid_images=40", "--max_steps=4", "--steps_per_loop=2")  # fmt: skip


def start(module, *arguments, **environment):
    """The command in a process of its own, where that is what is tested."""
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-m", f"arm_tf.{module}", *arguments],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.mark.parametrize("module", ["train", "train_conditional"])
def test_help_lists_the_flags(module):
    process = start(module, "--help")
    assert process.returncode == 0 and not process.stderr
    assert "--data_dir" in process.stdout and "Folder" in process.stdout
    heads = re.findall(r"^(\w[\w ]*):", process.stdout.partition("\n\nsettings")[2], re.MULTILINE)
    assert heads == ["flags of this program", *KINDS]
    assert process.stdout.index("--estimator:") < process.stdout.index("--units:")
    assert max(map(len, process.stdout.splitlines())) <= 100


@pytest.mark.skipif(os.name == "nt", reason="needs the pipes of a Unix shell")
def test_output_that_nobody_reads_is_no_error(tmp_path):
    (tmp_path / "run").mkdir()
    command = f"{sys.executable} -m arm_tf.report {tmp_path} | exec true; echo ${{PIPESTATUS[0]}}"
    process = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (process.stdout, process.stderr) == (f"{128 + signal.SIGPIPE}\n", "")
    assert (tmp_path / "report.md").exists()


PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_what_a_terminal_cannot_show_is_printed_as_an_escape(tmp_path):
    """As under some schedulers; the report has a minus sign and a relation in its header."""
    for name in ("runs.json", "metrics.csv"):
        shutil.copy(ROOT / "results" / "disarm_in_full" / name, tmp_path)
    process = start("report", str(tmp_path), **PLAIN)
    assert process.returncode == 0 and not process.stderr, process.stderr
    assert r"test \u2212log p \u2264" in process.stdout
    assert "test −log p ≤" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="needs a Unix shell")
@pytest.mark.parametrize("redirection", [">/dev/full", "<&- >&- 2>&-"])
def test_output_that_cannot_be_written_is_no_error(redirection, tmp_path):
    (tmp_path / "run").mkdir()
    command = f"{sys.executable} -m arm_tf.report {tmp_path} {redirection}"
    process = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0 and not process.stderr, process.stderr
    assert (tmp_path / "report.md").exists()


def test_commands_are_listed_without_tensorflow():
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "arm_tf"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "| arm_tf.training.config" in process.stderr.replace("  ", "")
    assert "tensorflow" not in process.stderr and "keras" not in process.stderr
    listed = dict(re.findall(r"python -m (\S+) +(\S.*)\n", process.stdout))
    assert listed["arm_tf.train"] == "Trains a binary VAE"
    folder = ROOT / "arm_tf"
    programs = {
        path.stem if path.parent == folder else path.parent.name
        for path in [*folder.glob("[!_]*.py"), *folder.glob("*/__main__.py")]
        if "cli.run(" in path.read_text(encoding="utf-8")
    }
    assert {name.removeprefix("arm_tf.") for name in listed} == programs - {"cli"}


def test_flag_files_are_in_utf_8_wherever_they_are_read(call, tmp_path):
    """Up to a folder that cannot be made: there is a file, and the locale lacks its letters."""
    (tmp_path / "inner").write_text("--name=größe\n", encoding="utf-8")
    text = f"# größer\n\n--logdir=setup.py\n--flagfile={tmp_path / 'inner'}\n"
    (tmp_path / "flags.txt").write_text(text, encoding="utf-8")
    flags = f"--flagfile={tmp_path / 'flags.txt'}"
    environment = {**PLAIN, "PYTHONIOENCODING": "utf-8"}
    assert_one_line(start("train", flags, **environment), f"{pathlib.Path('setup.py', 'größe')}")
    (tmp_path / "inner").write_text(flags, encoding="utf-8")
    assert_one_line(call("train", flags), "includes itself")
    (tmp_path / "inner").write_bytes(b"--name=gr\xf6\xdfe")
    assert_one_line(call("train", flags), "Unable to read the flag file")


def test_nothing_imports_tensorflow_before_flags_are_parsed():
    """Of all programs, imported in one process as each is in its own."""
    names = "train train_conditional evaluate variance.__main__ toy.__main__"
    names = f"{names} report.__main__ benchmark.__main__ sweep.__main__".split()
    program = "import importlib, sys\nsys.orig_argv[1:], sys.argv = ['-m', 'arm_tf.x'], ['-m']\n"
    program += f"for name in {names}: importlib.import_module(f'arm_tf.{{name}}')\n"
    program += "print({'tensorflow', 'keras', 'scipy', 'matplotlib'} & set(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert (process.stdout, process.stderr) == ("set()\n", "")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--units=abc"], "--units=abc"),
        (["--units=-1"], "--units must be an integer from 1 to 100,000, received -1"),
        (["--help_me"], "Unknown command line flag 'help_me'"),
        (["omniglot"], "Unexpected argument 'omniglot'"),
        (["--flagfile=nowhere.flags"], "nowhere.flags"),
        (["--estimator=amr"], "one of ar, arm"),
        (["--experiment=yin_zhou_2019/mnist"], "named 'yin_zhou_2019/mnist'; most like it: yin"),
        (["--dataset=mnits"], "one of glyphs, mnist_static"),
        (["--dataset=/nowhere/x.npz"], "/nowhere/x.npz: expected a file, found nothing"),
        (["--dataset=setup.npy", "--image_shape=5x6"], "--image_shape must be numbers"),
        (["--image_shape=14,56"], "expected (28, 28), found (14, 56)"),
        (["--dataset=arrays"], "given from Python"),
        (["--encoder_betas=0.9,x"], "numbers separated by commas"),
        (["--dataset=mnist_static", "--data_dir=/nowhere"], "/nowhere"),
        (["--logdir=setup.py"], "choose another with --logdir"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message, call, tmp_path):
    logdir = [] if any("logdir" in a for a in arguments) else [f"--logdir={tmp_path / 'runs'}"]
    assert_one_line(call("train", *arguments, *logdir), message)
    assert not list(tmp_path.glob("runs/*"))


def test_train_then_refuse_then_evaluate(call, tmp_path, eagerly):
    arguments = (*FAST, f"--logdir={tmp_path}", "--name=run")
    first = call("train", *arguments)
    assert first.returncode == 0 and not first.stderr, first.stderr
    assert "Test bound on -log p(x): " in first.stdout

    again = call("train", *arguments)
    assert again.returncode == 0 and "is finished" in again.stdout

    record = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    checksum, record["data"]["checksum"] = record["data"]["checksum"], "of other data"
    (tmp_path / "run" / "config.json").write_text(json.dumps(record), encoding="utf-8")
    assert_one_line(call("train", *arguments), "was started with other data")
    record["data"]["checksum"] = checksum
    (tmp_path / "run" / "config.json").write_text(json.dumps(record), encoding="utf-8")

    other = call("train", *arguments, "--units=9", "--seed=4")
    assert_one_line(other, "--units=8, --seed=0; received --units=9, --seed=4.")

    evaluated = call("evaluate", str(tmp_path / "run"), "--samples=5")
    bound = first.stdout.split("Test bound on -log p(x): ")[1].split(" nats")[0]
    assert evaluated.returncode == 0 and bound in evaluated.stdout, evaluated.stderr

    assert_one_line(call("evaluate", "--run=nowhere"), "not the folder of a run")
    assert_one_line(call("evaluate", f"--run={tmp_path / 'run'}", "--split=dev"), "'dev'")


def test_conditional_network_is_trained_resumed_and_evaluated(call, tmp_path, eagerly):
    arguments = (*FAST, f"--logdir={tmp_path}", "--name=run", "--epochs=1")
    first = call("train_conditional", *arguments)
    assert first.returncode == 0 and not first.stderr, first.stderr
    assert (tmp_path / "run" / "completions.png").stat().st_size > 2000
    flags = (tmp_path / "run" / "flags.txt").read_text(encoding="utf-8")
    assert "--model=conditional" in flags and "--layers=2" in flags
    again = call("train_conditional", *arguments)
    assert "is finished" in again.stdout
    assert_one_line(
        call("train", *arguments),
        "started with --model=conditional, --layers=2; received --model=vae",
    )
    evaluated = call("evaluate", f"--run={tmp_path / 'run'}", "--samples=5")
    bound = first.stdout.split("Test bound on -log p(x_l|x_u): ")[1].split(" nats")[0]
    assert f"test bound on -log p(x_l|x_u): {bound}" in evaluated.stdout, evaluated.stderr
    assert "log p(x)" not in first.stdout + evaluated.stdout
    assert_one_line(call("train_conditional", "--estimator=vimco"), "received 'vimco'")


def test_replaced_data_are_refused(call, tmp_path, eagerly):
    """A data file that changes between two starts of a run is noticed."""
    archive = tmp_path / "mnist.npz"
    images = {name: np.zeros([n, 28, 28], np.uint8) for name, n in
              (("x_train", 60_000), ("x_test", 10_000))}  # fmt: skip
    np.savez_compressed(archive, **images)
    arguments = ("--dataset=mnist_threshold", f"--data_dir={tmp_path}", *FAST,
                 f"--logdir={tmp_path / 'runs'}", "--name=run", "--eval_every=1")  # fmt: skip
    assert call("train", *arguments).returncode == 0
    (tmp_path / "runs" / "run" / "result.json").unlink()
    images["x_train"][7] = 255
    np.savez_compressed(archive, **images)
    process = call("train", *arguments)
    assert process.returncode == 1 and "started with other data" in process.stderr


@pytest.mark.parametrize("kind", ["grey", pytest.param("bits", marks=pytest.mark.slow)])
def test_ones_own_images_are_trained_on_resumed_and_guarded(
    kind, call, tmp_path, monkeypatch, eagerly
):
    rng = np.random.default_rng(0)
    patterns = rng.random((4, 6, 5))[rng.integers(4, size=350)]
    grey = (patterns * 255).astype(np.uint8)
    images = {
        "grey": {"x_train": grey[:300], "x_test": grey[300:], "y_train": np.zeros(300)},
        "bits": {"images": patterns > 0.5},
    }[kind]
    file = tmp_path / "own.npz"
    np.savez(file, **images)
    arguments = (f"--dataset={file}", "--units=8", "--epochs=4", "--eval_every=2",
                 "--eval_samples=2", "--test_samples=5", "--steps_per_loop=7")  # fmt: skip
    whole = call("train", *arguments, f"--logdir={tmp_path / 'whole'}")
    assert whole.returncode == 0 and not whole.stderr, whole.stderr
    (path,) = (tmp_path / "whole").iterdir()
    assert path.name.startswith("own-linear-1-arm-seed0-")
    config = run_folder.read_config(path)
    dataset = data.load(config.dataset, config.data_dir)
    assert dataset.dynamic == (kind == "grey") and dataset.image_shape == (6, 5)

    with asked_to_stop_at(15, monkeypatch):
        first = call("train", *arguments, f"--logdir={tmp_path / 'stopped'}")
    assert "Stopped at step" in first.stdout
    last = call("train", *arguments, f"--logdir={tmp_path / 'stopped'}")
    assert last.returncode == 0 and "from step" in last.stdout, last.stderr
    configs = config, run_folder.read_config(tmp_path / "stopped" / path.name)
    assert_same_run(*map(run_folder.RunFolder, configs))

    evaluated = call("evaluate", f"--run={path}", "--samples=5")
    bound = whole.stdout.split("Test bound on -log p(x): ")[1].split(" nats")[0]
    assert evaluated.returncode == 0 and bound in evaluated.stdout, evaluated.stderr
    moved = tmp_path / "elsewhere" / "own.npz"
    moved.parent.mkdir()
    file.rename(moved)
    assert_one_line(call("evaluate", f"--run={path}"), f"{file}: expected a file, found nothing")
    arguments = (f"--dataset={moved}", *arguments[1:], f"--logdir={tmp_path / 'whole'}")
    assert "is finished" in call("train", *arguments).stdout

    next(iter(images.values()))[7] = 0
    np.savez(moved, **images)
    assert_one_line(call("train", *arguments), "was started with other data")
    process = call("evaluate", f"--run={path}", f"--data_dir={moved.parent}")
    assert_one_line(process, "was started with other data")


def test_folder_in_use_is_refused(call, tmp_path):
    (tmp_path / "run").mkdir()
    with filelock.FileLock(tmp_path / "run" / ".lock"):
        process = call("train", *FAST, f"--logdir={tmp_path}", "--name=run")
    assert_one_line(process, "Another process is training the run")


def test_folder_that_holds_another_run_is_let_go_of(tmp_path):
    config = Config(logdir=str(tmp_path), name="run")
    (tmp_path / "run").mkdir()
    record = {"config": dataclasses.asdict(config), "data": {}, "versions": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(RunError, match="with --units=200; received --units=9") as caught:
        run_folder.RunFolder(dataclasses.replace(config, units=9))
    run_folder.RunFolder(config).close()
    del caught


def test_variance_of_a_fresh_model_and_of_a_run(call, tmp_path, few_draws):
    arguments = ("--estimators=arm,loo,legrad", "--draws=2", "--images=4", "--rounds=1")
    fresh = call("variance", *arguments, "--units=4", f"--out={tmp_path}")
    assert fresh.returncode == 0 and not fresh.stderr, fresh.stderr
    assert (tmp_path / "variance.png").stat().st_size > 5000
    table = (tmp_path / "variance.csv").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("estimator,samples,evaluations,variance_logits")
    assert [line.split(",")[:3] for line in table[1:]] == [
        ["arm", "2", "4"], ["loo", "4", "4"], ["legrad", "1", "5"],
    ]  # fmt: skip
    assert call("train", *FAST, f"--logdir={tmp_path}", "--name=run").returncode == 0
    run = (*arguments[1:], f"--run={tmp_path / 'run'}")
    settings = ("--estimators=st,mve", "--mve_t=0")  # with which they are one estimator
    measured = call("variance", *run, *settings)
    assert measured.returncode == 0, measured.stderr
    with open(tmp_path / "run" / "variance.csv", encoding="utf-8") as lines:
        st, mve = csv.DictReader(lines)
    assert float(st["variance_logits"]) == pytest.approx(float(mve["variance_logits"]), rel=1e-5)
    assert_one_line(call("variance", *run, "--units=9"), "--units is a setting of the run")
    settings = run_folder.read_config(tmp_path / "run")
    other = {"checksum": "0", "published": True, "images": {}}
    record = {"config": dataclasses.asdict(settings), "data": other, "versions": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record), encoding="utf-8")
    assert_one_line(call("variance", *run), "was started with other data")
    assert_one_line(
        call("variance", "--estimators=exact"), "at most 12 units a layer, received 200"
    )
    assert_one_line(call("variance", "--estimators=amr"), "Unknown estimator 'amr'")


def test_variance_along_a_run_that_keeps_weights(call, tmp_path, few_draws):
    folder = tmp_path / "run"
    kept = (f"--logdir={tmp_path}", "--name=run", "--keep_epochs=0,1", "--batch_size=10000")
    assert call("train", *FAST, *kept).returncode == 0
    arguments = (f"--trajectory={folder}", "--draws=2", "--images=4", "--rounds=1")
    along = call("variance", *arguments, "--estimators=rws,arm,vimco", "--num_samples=3")
    assert along.returncode == 0 and not along.stderr, along.stderr
    assert "no bias, since it ascends log q(b)" in along.stdout
    lines = (folder / "variance.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines))
    end = next(row for row in rows if row["step"] != "0")["step"]
    assert [(row["estimator"], row["samples"], row["objective"], row["step"]) for row in rows] == [
        (*row, step) for step in ("0", end) for row in [
            ("rws", "3", "multisample"), ("arm", "2", "elbo"), ("vimco", "3", "multisample")
        ]
    ]  # fmt: skip
    assert rows[0]["bias_logits"] == "" != rows[2]["bias_logits"]
    assert (folder / "trajectory.png").stat().st_size > 5000
    both = (f"--run={folder}", f"--trajectory={folder}")
    assert_one_line(call("variance", *both), "--run and --trajectory both name a run")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--estimators=loo,vimco", "--num_samples=1"], "--estimators=vimco: num_samples must be"),
        (["--estimators=vimco", "--model=conditional"], "conditional takes in --estimators what"),
        (["--rounds=0"], "--rounds must be an integer of at least 1, received 0"),
        (["--adapt_steps=-1"], "--adapt_steps must be an integer of at least 0, received -1"),
        (["--images=21001"], "--images must be at most 21000, the training images, received 21001"),
    ],
)
def test_variance_refuses_what_a_model_cannot_have(arguments, message, call):
    assert_one_line(call("variance", *arguments), message)


def test_estimators_are_listed_with_a_line_each(call):
    lines = call("train", "--estimator=help").stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(estimators.TABLE)


def test_too_few_samples_and_too_many_units_are_refused(call):
    assert_one_line(call("train", "--estimator=loo", "--num_samples=1"), "at least 2 for 'loo'")
    assert_one_line(call("train", "--estimator=exact"), "it would evaluate f")
    assert_one_line(call("train", "--track_variance=arm,amr"), "any of ar, arm")

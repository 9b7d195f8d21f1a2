"""Errors of the commands, each by its `main` in this process: one line, and the rest goes on."""

import collections
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from arm_tf import cli, figures, files, report, sweep
from arm_tf.data import readers
from arm_tf.errors import ConfigError, DataError, RunError
from arm_tf.sweep import estimate
from arm_tf.training import run_folder, scheduler, workers
from arm_tf.training.config import Config

DEEP = "[" * 100_000
BAD = ["[1]", "null", '"x"', "{}", '{"test_nll": 1}', '{"test_nll": [], "valid_nll": 1}', DEEP,
       '{"test_nll": 1, "valid_nll": ' + "9" * 4000 + "}"]  # fmt: skip
RESULT = {
    "test_nll": 107.25, "test_neg_elbo": 112.0, "best_epoch": 9.0, "epochs": 1200.0,
    "steps_per_second": 512.3, "evaluations_per_step": 3, "steps": 1_200_000, "valid_nll": 109.5,
}  # fmt: skip


@pytest.fixture
def command(monkeypatch, capsys):
    """What `cli.run` makes of a program's main; comes back as from `call`."""

    def command(main):
        monkeypatch.setattr(cli.app, "run", lambda main, flags_parser: main(flags_parser(["x"])))
        status = 0
        try:
            cli.run(main)
        except SystemExit as exit:
            status = exit.code
        return subprocess.CompletedProcess([], status, *capsys.readouterr())

    return command


def write_run(path, seed=0, result=RESULT, checksum="c", metrics=""):
    path.mkdir(parents=True)
    config = {"dataset": "glyphs", "seed": seed, "logdir": str(path.parent), "name": path.name}
    record = {"config": config, "data": {"checksum": checksum}}
    (path / "config.json").write_text(json.dumps(record), encoding="utf-8")
    text = result if isinstance(result, str) else json.dumps(result)
    (path / "result.json").write_text(text, encoding="utf-8")
    (path / "metrics.csv").write_text(metrics, encoding="utf-8")


@pytest.fixture
def swept(tmp_path):
    """A folder with the two finished runs of a sweep."""
    checksum = Config().load_data().checksum
    for seed in (0, 1):
        write_run(tmp_path / f"glyphs-linear-1-arm-seed{seed}", seed, checksum=checksum)
    return tmp_path


def assert_one_line(outcome, *parts, status=1):
    assert outcome.returncode == status, outcome
    assert outcome.stderr.startswith("Error: ") and outcome.stderr.count("\n") == 1, outcome
    assert all(part in outcome.stderr for part in parts), outcome


# Disks.


@pytest.mark.parametrize("name", ["report.md", "report.csv"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_report_that_cannot_be_written(name, number, tmp_path, call, monkeypatch):
    """It has been printed before that, and no half of it stays."""
    write_run(tmp_path / "a")
    replace = os.replace

    def refuse(source, target):
        if pathlib.Path(target).name == name:
            raise OSError(number, os.strerror(number))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    outcome = call("report", tmp_path)
    assert_one_line(outcome, f"Cannot write the folder {tmp_path}: {os.strerror(number)}")
    assert "| a | 107.25 |" in outcome.stdout and not list(tmp_path.glob(".*"))


def test_report_where_there_is_a_folder_of_its_name(tmp_path, call):
    (tmp_path / "report.md").mkdir()
    outcome = call("report", tmp_path)
    assert_one_line(outcome, f"Cannot write the folder {tmp_path}: Is a directory")


@pytest.mark.parametrize("file", ["traces.csv", "toy.json", "losses.png"])
def test_toy_that_cannot_be_written(file, tmp_path, call, monkeypatch):
    """It has printed its table before that."""
    (tmp_path / file).mkdir()
    monkeypatch.setattr(cli, "load_tensorflow", lambda: None)
    outcome = call("toy", "--estimators=reinforce", "--iterations=2", f"--out={tmp_path}")
    assert_one_line(outcome, f"Cannot write the folder {tmp_path}: Is a directory", "--out")
    assert "reinforce" in outcome.stdout


@pytest.mark.parametrize("file", ["variance.csv", "variance.png"])
def test_variances_that_cannot_be_written(file, tmp_path, call, monkeypatch):
    from arm_tf.variance import figures as variance_figures
    from arm_tf.variance import moments

    (tmp_path / file).mkdir()
    monkeypatch.setattr(cli, "load_tensorflow", lambda: None)
    monkeypatch.setattr(moments, "compare", lambda *_: [collections.defaultdict(int)])
    monkeypatch.setattr(variance_figures, "variances", lambda *_: Figure())
    outcome = call("variance", f"--out={tmp_path}", "--units=4")
    assert_one_line(outcome, f"Cannot write the folder {tmp_path}: Is a directory", "--out")
    outcome = call("variance", "--estimators=")
    assert_one_line(outcome, "--estimators must name at least one estimator", status=2)


def test_sweep_that_cannot_be_written(swept, call):
    (swept / "sweep.md").mkdir()
    outcome = call("sweep", f"--logdir={swept}", "--seeds=0,1", "--learning_rates=1e-4")
    assert_one_line(outcome, f"Cannot write the folder {swept}: Is a directory", "--logdir")
    assert "| defaults | arm | 0.0001 | 109.50 |" in outcome.stdout


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left", "/tmp/x"), OSError("odd")]
)
def test_errors_of_the_system_are_one_line(error, command):
    def main():
        raise error

    outcome = command(main)
    assert_one_line(outcome, error.strerror or "odd", "try again")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_data_that_the_system_does_not_let_be_read_are_not_called_damaged(
    number, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "x.npy").touch()
    monkeypatch.setattr(readers, "open", refuse, raising=False)
    with pytest.raises(DataError, match=rf"\({os.strerror(number)}\); mend that$"):
        readers.own(tmp_path / "x.npy")


# Folders of runs.


@pytest.mark.parametrize("result", BAD, ids=range(len(BAD)))
def test_bad_result_is_named_and_the_rest_goes_on(result, tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "deep" / "bad", result=result)
    text, runs, notes = report.summary(tmp_path)
    assert [run.name for run in runs] == ["a"] and "| a | 107.25 |" in text
    assert len(notes) == 1 and notes[0].startswith("deep/bad: cannot be read (")
    job = scheduler.Job(Config(logdir=str(tmp_path / "deep"), name="bad"))
    assert job.result is None
    with pytest.raises(RunError, match="Cannot read .*/bad/result.json"):
        run_folder.read_result(job.path)
    cells = [job, scheduler.Job(Config(logdir=str(tmp_path), name="a"))]
    sweep.find_finished(cells, sweep.runs_in(tmp_path / "deep"))
    (row,) = sweep.summarise(cells)
    assert row["test_nll"] == [107.25]


@pytest.mark.parametrize("name", ["toy.json", "benchmark.json", "below/sweep.json", "speeds.json"])
@pytest.mark.parametrize("text", [DEEP, '{"throughput": {"workers": 1, "steps": 1, "seconds": 0}}'])
def test_bad_measurement_is_named_and_the_rest_goes_on(name, text, tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    _, runs, notes = report.summary(tmp_path)
    assert [run.name for run in runs] == ["a"]
    is_other = name == "benchmark.json" and text != DEEP  # which holds none of its parts
    assert [note.split(":")[0] for note in notes] == [name] * (not is_other)


BAD_METRICS = [
    "step,epoch,seconds\n" + "1" * 200_000 + ",1,1\n",
    "step,epoch\n1\n",
    "epoch,seconds\n1,1\n",
    "step,epoch,seconds\n5,1,1\n5,1,2\n",
    "step,epoch,seconds\n5,0,1\n",
    "step,epoch,seconds,valid_nll\n5,1,1,2\n10,2,2,\n",
    "step,epoch,seconds\nnan,1,1\n",
]


@pytest.mark.parametrize("metrics", BAD_METRICS, ids=range(len(BAD_METRICS)))
def test_bad_metrics_are_named_and_the_rest_goes_on(metrics, tmp_path):
    write_run(tmp_path / "bad", metrics=metrics)
    write_run(tmp_path / "good", metrics="step,epoch,seconds\n5,1,1\n10,2,2\n")
    with pytest.raises(RunError, match="Cannot read .*metrics.csv"):
        run_folder.read_metrics(tmp_path / "bad")
    assert estimate.pace(tmp_path / "bad") is None and estimate.pace(tmp_path / "good")
    assert scheduler.Job(Config(logdir=str(tmp_path), name="bad")).progress == 0
    runs, notes = report.gather(tmp_path)
    assert [run.name for run in runs] == ["good"] and notes[0].startswith("bad: cannot be read")


def test_curves_of_runs_with_a_gap_are_left_out(tmp_path):
    """A column that one run lacks, or a number that is none."""
    row = {f"{part}_neg_elbo": 2.0 for part in ("train", "valid", "test")}
    row |= {"step": 5, "epoch": 1, "seconds": 1, "training_seconds": 1}
    lacking = {name: value for name, value in row.items() if name != "test_neg_elbo"}
    figure = figures.elbo_curves({"arm": [[row], [{**lacking, "valid_neg_elbo": np.inf}]]}, "title")
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_bound_that_is_not_finite_is_shown(bound, tmp_path):
    cells = [scheduler.Job(Config(logdir=str(tmp_path), seed=seed)) for seed in (0, 1)]
    for cell in cells:
        write_run(cell.path, cell.config.seed, {**RESULT, "test_nll": cell.config.seed or bound})
    (row,) = sweep.summarise(cells)
    assert not np.isfinite([row["mean"], row["deviation"]]).any()
    assert f"| {bound} ± nan | 2 |" in sweep.markdown([row])


def test_metrics_without_seconds_are_of_unknown_pace(tmp_path):
    write_run(tmp_path / "a", metrics="step,epoch\n5,1\n")
    assert estimate.pace(tmp_path / "a") is None


@pytest.mark.parametrize("text", ["", "[]", '{"throughput": {"steps": 1}}', DEEP])
def test_damaged_record_of_a_sweep_is_written_anew(text, swept, call):
    (swept / "sweep.json").write_text(text, encoding="utf-8")
    outcome = call("sweep", f"--logdir={swept}", "--seeds=0,1", "--learning_rates=1e-4")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert "| defaults | arm | 0.0001 | 109.50 | 107.25 ± 0.00" in outcome.stdout
    assert files.read_json(swept / "sweep.json")["throughput"]["steps"] == 0


def test_finished_run_without_the_checksum_of_its_data_is_named(swept, call):
    file = swept / "glyphs-linear-1-arm-seed1" / "config.json"
    record = files.read_json(file)
    record["data"]["checksum"] = 7
    files.write_json(file, record)
    outcome = call("sweep", f"--logdir={swept}", "--seeds=0,1", "--learning_rates=1e-4")
    assert_one_line(outcome, "config.json cannot be read: glyphs-linear-1-arm-seed1.")
    assert "| defaults | arm | 0.0001 | 109.50 | 107.25 | 1 |" in outcome.stdout
    with pytest.raises(RunError, match="Cannot read .*config.json"):
        run_folder.check_data(file.parent, Config().load_data())


# Flags.


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--nojit=1", "--nojit=1 does not take an argument"),
        ("--trials=100000000", "--trials must be an integer of at most 10,000, received 100000000"),
        ("--trials=0", "--trials must be an integer of at least 1, received 0"),
        ("--wait_for_workers=99999999999", "at most 1,000,000, received 99999999999"),
        (f"--seed={'9' * 5000}", " … "),
        (f"--name={'9' * 5000}/", "(not first), received '99"),
    ],
)
def test_bad_flags_are_one_line(argument, message, call):
    outcome = call("train", argument)
    assert_one_line(outcome, message, status=2)
    assert len(outcome.stderr) < 1200


def test_negated_flag_with_a_value_in_a_flag_file_of_a_sweep(tmp_path, call):
    (tmp_path / "x.flags").write_text("--nojit=1\n", encoding="utf-8")
    outcome = call("sweep", f"--flagfile={tmp_path / 'x.flags'}")
    assert_one_line(outcome, "--nojit=1 does not take an argument", status=2)


WORKER = '{"cluster": {"worker": ["h:1", "g:2"]}, "task": {"type": "worker", "index": 0}}'


@pytest.mark.parametrize(
    "old, new",
    [("0}", "1e999}"), ("0}", "[]}"), ('["h:1", "g:2"]', '{"h:1": 0, "g:2": 0}'),
     ('["h:1", "g:2"]', '"h:1"'), ("{", "[" * 100_000)],
)  # fmt: skip
def test_bad_descriptions_of_workers_are_refused(old, new, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", WORKER)
    assert workers.find("multi_worker").addresses == ("h:1", "g:2")
    monkeypatch.setenv("TF_CONFIG", WORKER.replace(old, new, 1))
    with pytest.raises(ConfigError, match="--distribute=multi_worker needs"):
        workers.find("multi_worker")


# Ctrl-C.


def test_interrupt_of_a_program_is_one_line(command, monkeypatch):
    """Also while its flags are read."""

    def interrupted(*_):
        raise KeyboardInterrupt

    assert_one_line(command(interrupted), "interrupted", status=130)
    monkeypatch.setattr(cli, "_parse_flags", interrupted)
    assert_one_line(command(print), "interrupted", status=130)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends it in another way")
def test_interrupt_while_a_program_is_loaded_is_one_line():
    """The process is the point: nothing of the program has run yet."""
    program = (
        "import sys; sys.argv = ['-m']; sys.orig_argv = ['python', '-m', 'arm_tf.train']\n"
        "import arm_tf\nraise KeyboardInterrupt"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode in (-signal.SIGINT, 130)
    assert process.stderr == "Error: interrupted.\n"

"""The tables and curves of finished runs."""

import csv
import dataclasses
import io
import json

import pytest

from arm_tf import figures, paper, report
from arm_tf.training.config import Config

RESULT = {
    "test_nll": 107.25, "test_neg_elbo": 112.0, "best_epoch": 9.0, "epochs": 1200.0,
    "steps_per_second": 512.3, "evaluations_per_step": 3, "steps": 1_200_000,
    "test_samples": 1000, "data_published": True,
}  # fmt: skip
LINEAR = paper.SETTINGS["mnist_static-linear"]
SHORT = {**LINEAR, "epochs": 10}


def write_run(path, settings, result=None, metrics=""):
    path.mkdir(parents=True)
    config = dataclasses.asdict(Config(**settings))
    (path / "config.json").write_text(json.dumps({"config": config}), encoding="utf-8")
    if result is not None:
        (path / "result.json").write_text(json.dumps({**RESULT, **result}), encoding="utf-8")
    (path / "metrics.csv").write_text(metrics, encoding="utf-8")


def test_runs_are_sorted_and_what_is_broken_unfinished_or_foreign_is_named(tmp_path):
    write_run(tmp_path / "a", SHORT, {"test_nll": 108.0, "epochs": 10.0})
    write_run(tmp_path / "deep" / "b", SHORT, {"epochs": 10.0})
    write_run(tmp_path / "unfinished", SHORT, metrics="step,epoch\n5000,5\n")
    write_run(tmp_path / "broken", SHORT, {})
    (tmp_path / "broken" / "result.json").write_text("{", encoding="utf-8")
    write_run(tmp_path / "lacking", SHORT, {})
    (tmp_path / "lacking" / "result.json").write_text('{"test_nll": 1.0}', encoding="utf-8")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"colour": "red"}', encoding="utf-8")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "config.json").write_bytes(b"\xff\x00\x81")
    header = "estimator,variance_weights\n"
    (tmp_path / "a" / "variance.csv").write_text(
        header + "loo,1.0\narm,0.00125\n", encoding="utf-8"
    )
    runs, notes = report.gather(tmp_path)
    assert [run.name for run in runs] == ["deep/b", "a"]
    assert [run.gradient_variance for run in runs] == [None, 0.00125]
    assert [note.split(":")[0] for note in notes] == [
        "binary", "broken", "foreign", "lacking", "unfinished",
    ]  # fmt: skip
    assert notes[-1].endswith("not finished (epoch 5 of 10)")
    lines = report.markdown(runs).splitlines()
    assert lines[2] == "| deep/b | 107.25 | 112.00 | 9 | 10 | 512.3 | 3 | – |"
    assert lines[3].endswith("| 1.25e-03 |")


def test_full_runs_on_published_data_stand_beside_the_published_figures(tmp_path):
    for seed, bound in [(0, 107.0), (1, 107.4)]:
        write_run(tmp_path / f"arm{seed}", {**LINEAR, "seed": seed}, {"test_nll": bound})
    write_run(tmp_path / "legrad", {**LINEAR, "estimator": "legrad"}, {"test_nll": 117.0})
    faster = {**LINEAR, "learning_rate": 5e-4, "eval_every": 20}
    write_run(tmp_path / "faster", faster, {"test_nll": 106.0})
    write_run(tmp_path / "slower", {**LINEAR, "learning_rate": 5e-5}, {"test_nll": 109.0})
    more = {**LINEAR, "num_samples": 2, "test_samples": 10}
    write_run(tmp_path / "more", more, {"test_nll": 105.0})
    write_run(tmp_path / "short", SHORT, {"epochs": 10.0, "test_nll": 120.0})
    omniglot = paper.SETTINGS["omniglot-linear"]
    write_run(tmp_path / "stand_in", omniglot, {"data_published": False, "test_nll": 110.0})
    write_run(tmp_path / "glyphs", {"epochs": 1200}, {"data_published": None, "test_nll": 90.0})
    runs, _ = report.gather(tmp_path)

    more, faster, arm, slower, legrad = report.compared(runs)
    assert (arm["published"], arm["seeds"]) == ("107.2 ± 0.1", [0, 1])
    assert arm["ours"] == pytest.approx((107.2, 0.4 / 2**0.5))
    assert arm["difference"] == pytest.approx(0) and arm["estimator"] == "`arm`"
    assert (legrad["published"], legrad["difference"]) == ("≤ 117.5", None)
    assert [row["learning_rate"] for row in (faster, arm, slower)] == [5e-4, 1e-4, 5e-5]
    assert more["estimator"] == "`arm`, num_samples=2, test_samples=10"
    assert more["ours"].deviation is None

    text = report.markdown(runs)
    beside, others, stand_ins = text.split("\n\n| ")[1:]
    arm = "| MNIST-static, linear | `arm` | 1e-4 | 107.2 ± 0.1 | 107.20 ± 0.28 | +0.00 | 1,200 |"
    assert f"{arm} 0, 1 |" in beside
    assert "| 5e-4 | 107.2 ± 0.1 | 106.00 | −1.20 | 1,200 | 0 |" in beside
    assert "short" in others and "glyphs" in others and "stand_in" not in beside + others
    assert "stand_in" in stand_ins

    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(report.table_csv(runs)))}
    assert len(rows) == 9
    assert (rows["arm0"]["comparable"], rows["short"]["comparable"]) == ("True", "False")


def test_curves_take_the_longest_runs_of_each_experiment(tmp_path):
    metrics = "step,seconds,train_neg_elbo,valid_neg_elbo\n5,1,200,190\n10,2,150,155\n"
    for seed in (0, 1):
        write_run(tmp_path / f"arm{seed}", {**LINEAR, "seed": seed}, {}, metrics)
    more_often = metrics + "7,1.5,170,170\n"
    write_run(tmp_path / "arm2", {**LINEAR, "seed": 2, "eval_every": 2}, {}, more_often)
    write_run(tmp_path / "faster", {**LINEAR, "learning_rate": 5e-4}, {"test_nll": 110.0}, metrics)
    bound = metrics.replace("train_neg_elbo", "train_neg_bound")
    write_run(tmp_path / "vimco", {**LINEAR, "estimator": "vimco"}, {}, bound)
    write_run(tmp_path / "short", {**SHORT, "estimator": "loo"}, {"steps": 9}, metrics)
    runs, _ = report.gather(tmp_path)
    curves = report.curves(runs)
    assert {k: {e: len(v) for e, v in c.items()} for k, c in curves.items()} == {
        "mnist_static-linear": {"arm": 3, "vimco": 1, "arm, learning_rate=0.0005": 1}
    }
    training, _, validation, _ = figures.elbo_curves(curves["mnist_static-linear"], "x").axes
    labels = ["arm", "arm, learning_rate=0.0005"]
    assert [line.get_label() for line in training.lines] == labels
    assert {line.get_label() for line in validation.lines} == {*labels, "vimco"}
    assert len({line.get_color() for line in training.lines}) == 1
    assert training.lines[0].get_alpha() > training.lines[1].get_alpha()
    assert list(validation.lines[0].get_ydata()) == [190, 155]


DISARM = paper.OTHERS["disarm"].settings["mnist_dynamic-linear"]
TRAINED = "step,epoch,seconds,train_neg_elbo,valid_neg_elbo\n5,5,1,200,190\n10,10,2,{},155\n"


def write_benchmark(path, settings, result=None, train=110.0):
    whole = {"steps": 1_000_000, "epochs": 1000.0, "test_samples": 100, **(result or {})}
    write_run(path, settings, whole, TRAINED.format(train))


def test_runs_of_other_papers_experiments_have_a_table_that_says_how_long_they_are(
    tmp_path, monkeypatch
):
    planted = {"loo": {"train_neg_elbo": (111.5, 0.25), "test_nll": 103.5}}
    monkeypatch.setitem(paper.OTHERS["disarm"].published, "mnist_dynamic-linear", planted)
    loo = {**DISARM, "estimator": "loo", "eval_every": 10}
    k = {"test_k_nll": 106.5, "test_k_samples": 2}
    write_benchmark(tmp_path / "loo0", loo, {"test_nll": 103.0, **k})
    write_benchmark(tmp_path / "loo1", {**loo, "seed": 1}, {"test_nll": 104.0, **k}, 112.0)
    short = {**DISARM, "estimator": "double_cv", "max_steps": 200_000}
    write_benchmark(tmp_path / "short", short, {"test_nll": 101.0, "steps": 200_000})
    arms = {**DISARM, "estimator": "arms", "num_samples": 4, "learning_rate": 5e-4}
    write_benchmark(tmp_path / "arms", arms, {"test_nll": 102.0})
    stand_in = {**DISARM, "estimator": "arm"}
    write_benchmark(tmp_path / "stand_in", stand_in, {"data_published": False, "test_nll": 90.0})
    other_batch = {**DISARM, "estimator": "arm", "batch_size": 25}
    write_benchmark(tmp_path / "other_batch", other_batch, {"test_nll": 99.0})
    write_run(tmp_path / "paper", LINEAR, {})
    runs, notes = report.gather(tmp_path)
    assert not notes and len(report.compared(runs)) == 1

    first, second, third = report.other_papers(runs)
    assert [row["estimator"] for row in (first, second, third)] == [
        "`loo`", "`double_cv`", "`arms`, learning_rate=0.0005",
    ]  # fmt: skip
    assert [row["paper"] for row in (second, third)] == [
        "Dong et al. 2020",
        "Dimitriev & Zhou 2021",
    ]
    assert [row["evaluations"] for row in (first, second, third)] == [2, 2, 4]
    text = report.markdown(runs)
    table, others, stand_ins = text.split("\n\n| ")[2:]
    assert (
        "| Dong et al. 2020 | MNIST-dynamic, linear | `loo` | 2 | 111.5 ± 0.25 | 111.00 ± 1.41 | "
        "103.5 | 103.50 ± 0.71 | 106.50 ± 0.00 (K = 2) | 1,000,000 | 0, 1 |"
    ) in table
    assert "| `double_cv` | 2 | – | 110.00 | – | 101.00 | – | 200,000 of 1,000,000 | 0 |" in table
    assert "other_batch" in others and "stand_in" in stand_ins
    assert "90.00" not in table + others and "99.00" not in table

    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(report.table_csv(runs)))}
    assert (rows["loo0"]["published"], rows["loo0"]["paper"]) == ("103.5", "Dong et al. 2020")
    assert (rows["paper"]["published"], rows["other_batch"]["experiment"]) == ("107.2 ± 0.1", "")
    curves = report.curves(runs)
    assert set(curves) == {"disarm-mnist_dynamic-linear", "arms-mnist_dynamic-linear"}
    assert set(curves["disarm-mnist_dynamic-linear"]) == {"loo", "arm"}  # not the short one


@pytest.mark.parametrize("folder", paper.OTHERS)
def test_a_run_of_a_flag_file_departs_from_nothing(tmp_path, folder):
    its = paper.OTHERS[folder]
    for experiment, cells in its.cells.items():
        for cell, settings in cells.items():
            path = tmp_path / f"{experiment}-{cell}"
            write_benchmark(path, {**its.settings[experiment], **settings})
    runs, _ = report.gather(tmp_path)
    assert len(runs) == sum(map(len, its.cells.values()))
    for run in runs:
        assert set(run.departures) <= {"num_samples"}, run.name
        # Shi et al. repeat cells of Titsias & Shi at the same settings, which stand there.
        others = {"rodeo": {"rodeo", "double_cv"}}.get(folder, {folder})
        assert run.source in others and run.name.startswith(run.experiment)
        if {run.config.estimator, run.config.dataset} & {"rodeo", "fashion_dynamic"}:
            assert run.source == folder


def test_every_published_figure_is_of_an_experiment_and_estimator_that_exist():
    for its in paper.PAPERS.values():
        for experiment, published in its.published.items():
            for cell, known in published.items():
                Config(**{**its.settings[experiment], **its.cells[experiment][cell]})
                assert set(known) <= {"test_nll", "train_neg_elbo"}

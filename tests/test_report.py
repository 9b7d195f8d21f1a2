"""The tables and curves of finished runs."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from arm_tf import experiments, figures, report
from arm_tf.training.config import Config

RESULT = {
    "test_nll": 107.25, "test_neg_elbo": 112.0, "best_epoch": 9.0, "epochs": 1200.0,
    "steps_per_second": 512.3, "evaluations_per_step": 3, "steps": 1_200_000,
    "test_samples": 1000, "data_published": True, "valid_nll": 109.5,
}  # fmt: skip


def settings_of(name):
    return {"experiment": name, **experiments.find(name).settings}


LINEAR = settings_of("yin_zhou_2019/mnist_static-linear")
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
    header = "estimator,samples,variance_weights\n"
    (tmp_path / "a" / "variance.csv").write_text(header + "arm,2,0.5\n", encoding="utf-8")
    lines = report.markdown(report.gather(tmp_path)[0]).splitlines()
    assert lines[3].endswith("| 5.00e-01 (K = 2) |")


@pytest.mark.parametrize("name", ["toy.json", "benchmark.json", "deep/sweep.json", "variance.csv"])
@pytest.mark.parametrize("text", ["", "[1, 2]", '{"steps": 3}', "estimator,objective\nx,elbo"])
def test_measurements_that_cannot_be_read_are_passed_over(name, text, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    tables, runs, notes = report.summary(tmp_path)
    assert not tables and not runs
    is_empty = name == "variance.csv" and "objective" not in text  # or of an earlier version
    holds_nothing = is_empty or (name, text) == ("benchmark.json", "[1, 2]")
    assert [note.split(":")[0] for note in notes] == [name] * (not holds_nothing)


def test_full_runs_on_published_data_stand_beside_the_published_figures(tmp_path):
    for seed, bound in [(0, 107.0), (1, 107.6)]:
        result = {"test_nll": bound, "test_neg_elbo": bound + 8}
        write_run(tmp_path / f"arm{seed}", {**LINEAR, "seed": seed}, result)
    write_run(tmp_path / "legrad", {**LINEAR, "estimator": "legrad"}, {"test_nll": 117.0})
    faster = {**LINEAR, "learning_rate": 5e-4, "eval_every": 20}
    write_run(tmp_path / "faster", faster, {"test_nll": 106.0, "valid_nll": 110.0})
    slower = {**LINEAR, "learning_rate": 5e-5}
    write_run(tmp_path / "slower", slower, {"test_nll": 109.0, "valid_nll": 111.0})
    write_run(
        tmp_path / "worse", {**slower, "eval_every": 2}, {"test_nll": 1.0, "valid_nll": 112.0}
    )
    more = {**LINEAR, "num_samples": 2, "test_samples": 10}
    write_run(tmp_path / "more", more, {"test_nll": 105.0})
    write_run(tmp_path / "short", SHORT, {"epochs": 10.0, "test_nll": 120.0})
    omniglot = settings_of("yin_zhou_2019/omniglot-linear")
    write_run(tmp_path / "stand_in", omniglot, {"data_published": False, "test_nll": 110.0})
    write_run(tmp_path / "glyphs", {"epochs": 1200}, {"data_published": None, "test_nll": 90.0})
    runs, _ = report.gather(tmp_path)

    more, arm, legrad = report.compared(runs)
    assert (arm["published"], arm["seeds"]) == ("107.2 ± 0.1", [0, 1])
    assert arm["ours"] == pytest.approx((107.3, 0.6 / 2**0.5))
    assert arm["difference"] == pytest.approx(0.1) and arm["estimator"] == "`arm`"
    assert (legrad["published"], legrad["difference"]) == ("≤ 117.5", None)
    assert (arm["learning_rate"], arm["missing"]) == (1e-4, [])
    assert {rate: tried["test"].mean for rate, tried in arm["rates"].items()} == {
        5e-4: 106.0, 1e-4: pytest.approx(107.3), 5e-5: 109.0,
    }  # fmt: skip
    assert [tried["seeds"] for tried in arm["rates"].values()] == [[0], [0, 1], [0]]
    assert legrad["missing"] == [5e-4, 5e-5]
    assert more["estimator"] == "`arm`, num_samples=2, test_samples=10"
    assert more["ours"].deviation is None

    text = report.markdown(runs)
    beside, rates, others, stand_ins = text.split("\n\n| ")[1:]
    arm = (
        "| MNIST-static, linear | `arm` | 107.2 ± 0.1 | 107.30 ± 0.42 | +0.10 "
        "| 115.30 ± 0.42 | 1e-4 | – | 1,200 | 2 of 5 |"
    )
    assert arm in beside
    assert (
        "| `legrad` | ≤ 117.5 | 117.00 | – | 112.00 | 1e-4 | 5e-4, 5e-5 | 1,200 | 1 of 5 |"
        in beside
    )
    assert [line.partition("`arm` ")[2] for line in rates.splitlines()[2:5]] == [
        "| 5e-4 | 110.00 | 106.00 | 0 |",
        "| 1e-4 | 109.50 ± 0.00 | 107.30 ± 0.42 | 0, 1 |",
        "| 5e-5 | 111.00 | 109.00 | 0 |",
    ]
    assert "legrad" not in rates and "num_samples" not in rates
    assert "short" in others and "glyphs" in others and "stand_in" not in beside + others
    assert "stand_in" in stand_ins

    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(report.table_csv(runs)))}
    assert len(rows) == 10
    assert (rows["arm0"]["comparable"], rows["short"]["comparable"]) == ("True", "False")


METRICS = """step,epoch,training_seconds,train_neg_elbo,valid_neg_elbo,test_neg_elbo
5,1,1,200,190,180
10,2,2,150,155,145
"""


def test_variances_of_a_trajectory_are_a_table_for_each_objective(tmp_path):
    """The last step sorts it, of which bias and time are; a run's own variance is the last, too."""
    folder = tmp_path / "run"
    write_run(folder, SHORT, {"epochs": 10.0})
    (folder / "variance.csv").write_text(
        "estimator,evaluations,variance_logits,variance_stderr_logits,variance_seconds_logits,"
        "bias_logits,bias_noise_logits,variance_weights,objective,step,microseconds\n"
        "arm,4,6.912,0.0123,0.002,0.1,0.2,1.5,elbo,0,1234.5\n"
        "st,4,5.0,0.01,0.002,0.3,0.1,0.5,elbo,0,99\n"
        "rws,5,3.0,0.01,0.001,,,1,multisample,0,300\n"
        "arm,4,4.321,0.0123,0.0015,0.1,0.2,0.25,elbo,2000,1234.5\n"
        "st,4,0.5,0.01,0.00005,0.3456,0.1,0.5,elbo,2000,99\n"
        "rws,5,1.0,0.01,0.0001,,,1,multisample,2000,300\n",
        encoding="utf-8",
    )
    text, (run,), _ = report.summary(folder)
    assert run.gradient_variance == 0.25
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert rows == [
        "| `st` | 4 | yes | 0.35 | 5 ± 0.01 | 0.5 ± 0.01 | 99 | 0.05 |",
        "| `arm` | 4 | no | < 0.4 | 6.91 ± 0.01 | 4.32 ± 0.01 | 1,234 | 1.5 |",
        "| `rws` | 5 | no | – | 3 ± 0.01 | 1 ± 0.01 | 300 | 0.1 |",
    ]
    assert any("variance at step 2,000" in line and "ELBO" in line for line in lines)
    old = "estimator,variance_weights\narm,1\n"
    (folder / "variance.csv").write_text(old, encoding="utf-8")
    assert "`arm`" not in report.summary(folder)[0]


def test_curves_take_the_longest_runs_of_each_experiment(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"arm{seed}", {**LINEAR, "seed": seed}, {}, METRICS)
    more_often = METRICS + "7,1.4,1.5,170,170,160\n"
    write_run(tmp_path / "arm2", {**LINEAR, "seed": 2, "eval_every": 2}, {}, more_often)
    fewer = {**LINEAR, "seed": 3, "test_samples": 100}
    write_run(tmp_path / "arm3", fewer, {}, METRICS.replace("10,2,2,150,155", "10,2,6,150,195"))
    write_run(tmp_path / "faster", {**LINEAR, "learning_rate": 5e-4}, {"test_nll": 110.0}, METRICS)
    bound = METRICS.replace("train_neg_elbo", "train_neg_bound")
    write_run(tmp_path / "vimco", {**LINEAR, "estimator": "vimco"}, {}, bound)
    write_run(tmp_path / "short", {**SHORT, "estimator": "loo"}, {"steps": 9}, METRICS)
    other = {"data_published": False}
    write_run(tmp_path / "other", {**LINEAR, "estimator": "rebar"}, other, METRICS)
    runs, _ = report.gather(tmp_path)
    curves = report.curves(runs)
    name = LINEAR["experiment"]
    assert {k: {e: len(v) for e, v in c.items()} for k, c in curves.items()} == {
        name: {"arm": 4, "vimco": 1, "arm, learning_rate=5e-4": 1},
        f"{name}-stand_in": {"rebar": 1},
    }
    panels = figures.elbo_curves(curves[name], "x").axes
    training, _, validation, against_time, test, _ = panels
    labels = ["arm (4 seeds)", "arm, learning_rate=5e-4"]
    assert [line.get_label() for line in training.lines] == labels
    assert {line.get_label() for line in validation.lines} == {*labels, "vimco"}
    assert len({line.get_color() for line in training.lines}) == 1
    assert training.lines[0].get_alpha() > training.lines[1].get_alpha()
    assert list(validation.lines[0].get_ydata()) == [190, 165]
    assert list(test.lines[0].get_ydata()) == [180, 145]
    assert list(test.lines[0].get_xdata()) == [5, 10]
    assert list(against_time.lines[0].get_xdata()) == [1, 3]
    [band] = validation.collections[0].get_paths()
    np.testing.assert_allclose(band.get_extents().intervaly, (145, 190))  # 165 ± 20


def test_a_curve_far_above_the_others_is_cut_off_but_its_end_is_seen():
    def rows(first, last):
        values = np.linspace(first, last, 41)
        return [
            {"step": i, "training_seconds": i, "valid_neg_elbo": v} for i, v in enumerate(values)
        ]

    trials = {"arm": [rows(300, 100)], "disarm": [rows(290, 99)], "reinforce": [rows(500, 160)]}
    validation = figures.elbo_curves(trials, "x").axes[2]
    assert validation.get_ylim() == (98, 291)  # arm after a twentieth
    trials["reinforce"] = [rows(500, 400)]
    assert figures.elbo_curves(trials, "x").axes[2].get_ylim() == (98, 401)


def test_time_is_the_mean_of_the_trials_that_measured_it():
    def trial(value, *seconds):
        return [
            {"step": 10 * i, "training_seconds": s, "valid_neg_elbo": value}
            for i, s in enumerate(seconds)
        ]

    unknown = trial(90, np.nan, np.nan)
    trials = {"arm": [trial(100, 2, 4), unknown, trial(110, 4, 8)], "relax": [unknown]}
    against_steps, against_time = figures.elbo_curves(trials, "x").axes[2:4]
    assert list(against_steps.lines[0].get_ydata()) == [100, 100]
    assert list(against_time.lines[0].get_xdata()) == [3, 6]
    assert list(against_time.lines[0].get_ydata()) == [100, 100]
    assert len(against_steps.lines) == 2 and len(against_time.lines) == 1


def test_time_is_steps_over_the_speeds_of_the_folder_where_it_has_some(tmp_path):
    faster = {**LINEAR, "learning_rate": 5e-4, "seed": 1}
    write_run(tmp_path / "arm", LINEAR, {}, METRICS)
    write_run(tmp_path / "faster", faster, {"steps_per_second": None}, METRICS)
    write_run(tmp_path / "four", {**LINEAR, "estimator": "arms", "num_samples": 8}, {}, METRICS)
    write_run(tmp_path / "loo", {**LINEAR, "estimator": "loo"}, {}, METRICS)
    speeds = tmp_path / "speeds.json"
    rates = {
        LINEAR["experiment"]: {"arm": {"median": 20.0}, "arms, num_samples=8": {"median": 4.0}},
        "yin_zhou_2019/mnist_static-two_layers": {"loo": {"median": 2.0}},
    }
    speeds.write_text(json.dumps({"speeds": rates}), encoding="utf-8")
    runs, notes = report.gather(tmp_path)
    times = {run.name: [row["training_seconds"] for row in run.metrics] for run in runs}
    assert not notes and np.isnan(times.pop("loo")).all()
    assert times == {"arm": [0.25, 0.5], "faster": [0.25, 0.5], "four": [1.25, 2.5]}
    for bad, message in {
        '{"speeds": {"x/linear": {"arm": 20.0}}}': "'float' object is not subscriptable",
        '{"speeds": {"x/linear": {"arm": {"median": 0}}}}': "a speed is not above 0",
        "[]": "list indices must be integers",
    }.items():
        speeds.write_text(bad, encoding="utf-8")
        runs, (note,) = report.gather(tmp_path)
        assert note.startswith(f"speeds.json: cannot be read ({message}")
        assert [row["training_seconds"] for row in runs[0].metrics] == [1, 2]


def test_time_is_that_of_training_and_a_constant_speed_where_it_was_not_written(tmp_path):
    header, *rows = "step,epoch,seconds,train_neg_elbo\n1024,1,9,200\n2048,2,99,150".split("\n")
    write_run(tmp_path / "old", SHORT, {"steps_per_second": 512.0}, "\n".join([header, *rows]))
    both = "\n".join([f"{header},training_seconds", f"{rows[0]},", f"{rows[1]},77"])
    write_run(tmp_path / "resumed", SHORT, {"steps_per_second": 1024.0}, both)
    write_run(tmp_path / "new", SHORT, {"steps_per_second": 512.0}, both.replace("200,", "200,5"))
    times = {
        run.name: [row["training_seconds"] for row in run.metrics]
        for run in report.gather(tmp_path)[0]
    }
    assert times == {"old": [2, 4], "resumed": [1, 2], "new": [5, 77]}


def test_pictures_say_how_long_the_runs_are_and_whether_the_data_are_the_published(tmp_path):
    write_run(
        tmp_path / "full", LINEAR, {"test_nll": 120.0}, METRICS.replace("10,2,2", "10,1200,2")
    )
    name = "mnist_static-linear-1-arm-seed0-short"
    tracked = METRICS.replace("seconds", "seconds,variance_arm,variance_loo")
    tracked = tracked.replace("5,1,1,", "5,1,1,0.5,2,").replace("10,2,2,", "10,2,2,0.25,1,")
    omniglot = {**settings_of("yin_zhou_2019/omniglot-two_layers"), "name": name}
    write_run(tmp_path / name, omniglot, {"data_published": False}, tracked)
    pictures = report.pictures(report.gather(tmp_path)[0])
    titles = {
        key: figure.get_suptitle() or figure.axes[0].get_title() for key, figure in pictures.items()
    }
    shortened = "OMNIGLOT, two layers, 2 epochs (shortened; the paper has 1,200)"
    assert list(titles) == sorted(titles, key=lambda key: (key[0], "omniglot" in key))
    assert titles == {
        "curves-yin_zhou_2019-mnist_static-linear": "MNIST-static, linear, 1,200 epochs",
        "curves-yin_zhou_2019-omniglot-two_layers-stand_in": f"{shortened}, not the published data",
        f"variance-{name}": f"{shortened}, not the published data",
    }
    [axes] = pictures[f"variance-{name}"].axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn == {"arm": [0.5, 0.25], "loo": [2, 1]} and axes.get_yscale() == "log"


DISARM = settings_of("dong_2020/mnist_dynamic-linear")
ARMS = settings_of("dimitriev_zhou_2021/mnist_dynamic-linear")
TRAINED = "step,epoch,seconds,train_neg_elbo,valid_neg_elbo\n5,5,1,200,190\n10,10,2,{},155\n"


def write_benchmark(path, settings, result=None, train=110.0):
    whole = {"steps": 1_000_000, "epochs": 1000.0, "test_samples": 100, **(result or {})}
    write_run(path, settings, whole, TRAINED.format(train))


def test_runs_of_other_papers_experiments_have_a_table_that_says_how_long_they_are(
    tmp_path, monkeypatch
):
    planted = {"train_neg_elbo": (111.5, 0.25), "test_nll": 103.5}
    cells = (experiments.Cell("loo", 2, published=planted),)
    its = dataclasses.replace(experiments.find(DISARM["experiment"]), cells=cells)
    monkeypatch.setitem(experiments.TABLE, its.name, its)
    loo = {**DISARM, "estimator": "loo", "eval_every": 10}
    k = {"test_k_nll": 106.5, "test_k_samples": 2}
    write_benchmark(tmp_path / "loo0", loo, {"test_nll": 103.0, **k})
    write_benchmark(tmp_path / "loo1", {**loo, "seed": 1}, {"test_nll": 104.0, **k}, 112.0)
    again = {**loo, "eval_every": 20}  # of the same seed, and worse
    write_benchmark(tmp_path / "again", again, {"test_nll": 90.0, "valid_nll": 110.0, **k})
    short = {**DISARM, "estimator": "double_cv", "max_steps": 200_000}
    write_benchmark(tmp_path / "short", short, {"test_nll": 101.0, "steps": 200_000})
    arms = {**ARMS, "estimator": "arms", "num_samples": 4, "learning_rate": 5e-4}
    write_benchmark(tmp_path / "arms", arms, {"test_nll": 102.0})
    stand_in = {**DISARM, "estimator": "arm"}
    write_benchmark(tmp_path / "stand_in", stand_in, {"data_published": False, "test_nll": 90.0})
    unnamed = {**DISARM, "experiment": None}
    write_benchmark(tmp_path / "unnamed", unnamed, {"test_nll": 99.0})
    write_run(tmp_path / "paper", LINEAR, {})
    runs, notes = report.gather(tmp_path)
    assert not notes and len(report.compared(runs)) == 1

    first, second, third = report.other_papers(runs)
    assert [row["estimator"] for row in (first, second, third)] == [
        "`loo`", "`double_cv`", "`arms`, learning_rate=5e-4",
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
    assert "unnamed" in others and "stand_in" in stand_ins
    assert "90.00" not in table + others and "99.00" not in table

    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(report.table_csv(runs)))}
    assert (rows["loo0"]["published"], rows["loo0"]["paper"]) == ("103.5", "Dong et al. 2020")
    assert (rows["paper"]["published"], rows["unnamed"]["experiment"]) == ("107.2 ± 0.1", "")
    curves = report.curves(runs)
    assert list(curves) == [
        "dong_2020/mnist_dynamic-linear",
        "dong_2020/mnist_dynamic-linear-stand_in",
        "dimitriev_zhou_2021/mnist_dynamic-linear",
    ]
    assert set(curves["dong_2020/mnist_dynamic-linear"]) == {"loo"}  # not the short one


def test_a_table_holds_all_that_the_folders_of_its_runs_do(tmp_path):
    """Also with columns that not every run has, and it keeps what was there."""
    folders, table = tmp_path / "runs", tmp_path / "table"
    table.mkdir()
    write_run(folders / "deep" / "arm", LINEAR, {"test_nll": float("nan")}, METRICS)
    tracked = METRICS.replace("seconds", "seconds,variance_arm").replace("5,1,1,", "5,1,1,nan,")
    write_run(
        folders / "loo", {**LINEAR, "estimator": "loo"}, {}, tracked.replace("2,2,", "2,2,0.5,")
    )
    (folders / "loo" / "variance.csv").write_text(
        "estimator,samples,variance_weights\nloo,3,0.5\n", encoding="utf-8"
    )
    write_run(folders / "unfinished", LINEAR)
    runs, _ = report.gather(folders)
    report.save(runs, table)
    as_text = lambda runs: [(run.name, json.dumps(run.record, sort_keys=True)) for run in runs]
    assert as_text(report.gather(table)[0]) == as_text(runs) and len(runs) == 2
    assert len((table / "runs.json").read_text(encoding="utf-8").splitlines()) == 2 + 2
    assert len((table / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 1 + 4
    assert [run.name for run in report.gather(tmp_path)[0]].count("table/loo") == 1

    write_run(tmp_path / "more" / "loo", {**LINEAR, "seed": 1}, {}, METRICS)
    both = {run.name: run for run in [*runs, *report.gather(tmp_path / "more")[0]]}.values()
    report.save(both, table)
    seeds = {run.name: run.config.seed for run in report.gather(table)[0]}
    assert seeds == {"deep/arm": 0, "loo": 1}
    (table / "metrics.csv").write_text("run,step\nother,1\n", encoding="utf-8")
    assert report.gather(table) == ([], ["runs.json: cannot be read ('other')"])


def test_what_a_run_was_started_as_is_what_it_is_reported_as(tmp_path):
    """Whatever else its settings are like; and what was changed stands beside it."""
    write_run(tmp_path / "a", {**DISARM, "seed": 3, "max_steps": 9, "batch_size": 25}, {})
    write_run(tmp_path / "b", {**ARMS, "estimator": "arms", "num_samples": 6}, {})
    write_run(tmp_path / "c", {**ARMS, "experiment": None}, {})
    found = {run.name: run for run in report.gather(tmp_path)[0]}
    assert found["a"].departures == {"batch_size": 25}
    assert found["b"].departures == {"num_samples": 6}
    assert (found["b"].experiment.name, found["c"].experiment) == (ARMS["experiment"], None)

"""The table of finished runs."""

import json

from arm_tf import report

RESULT = {
    "estimator": "arm", "test_nll": 107.2, "test_neg_elbo": 112.0, "best_epoch": 9.0,
    "epochs": 10.0, "steps_per_second": 512.3, "evaluations_per_step": 3,
}  # fmt: skip


def write_run(path, result):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    if result is not None:
        (path / "result.json").write_text(result)


def test_runs_are_sorted_and_broken_ones_named(tmp_path):
    write_run(tmp_path / "a", json.dumps({**RESULT, "test_nll": 108.0}))
    write_run(tmp_path / "deep" / "b", json.dumps(RESULT))
    write_run(tmp_path / "unfinished", None)
    write_run(tmp_path / "broken", "{")
    write_run(tmp_path / "foreign", '{"estimator": "arm"}')
    header = "estimator,variance_weights\n"
    (tmp_path / "a" / "variance.csv").write_text(header + "loo,1.0\narm,0.00125\n")
    rows, notes = report.gather(tmp_path)
    assert [row["run"] for row in rows] == ["deep/b", "a"]
    assert [row["gradient_variance"] for row in rows] == [None, 0.00125]
    assert [note.split(":")[0] for note in notes] == ["broken", "foreign", "unfinished"]
    lines = report.markdown(rows).splitlines()
    assert lines[2] == "| deep/b | 107.20 | 112.00 | 9 | 10 | 512.3 | 3 | – |"
    assert lines[3].endswith("| 1.25e-03 |")

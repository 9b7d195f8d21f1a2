"""A new estimator is one module with a row beside its function; everything else follows from it."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MODULE = '''"""Estimators of one's own."""

from arm_tf.estimators import Estimate, Option, estimator, lazy

tf, bernoulli = lazy("tensorflow"), lazy("arm_tf.bernoulli")


@estimator(
    "constant_baseline",
    summary="score function with a constant baseline",
    source="Williams 1992",
    link="https://doi.org/10.1007/BF00992696",
    equation=r"\\frac{1}{K} \\sum_k (f(b_k) - c) (b_k - \\sigma(\\phi))",
    options=(Option("baseline", -5.0, "Of constant_baseline: what f is compared with.", low=-1e6),),
)
def constant_baseline(f, logits, u, baseline=-5.0):
    """REINFORCE with a constant baseline (Williams 1992).

    grad_logits = (1/K) sum_k (f(b_k) - baseline) (b_k - sigmoid(logits)).
    """
    b = bernoulli.sample(logits, u)
    f_b = f(b)
    signal = (f_b - baseline)[..., tf.newaxis]
    grad_logits = tf.reduce_mean(signal * bernoulli.score(b, logits), axis=0)
    return Estimate(tf.reduce_mean(f_b, axis=0), grad_logits)


for _number in range(30):  # more than there are patterns of lines
    estimator(
        f"own_{_number}",
        summary="the same",
        source="Williams 1992",
        link="https://doi.org/10.1007/BF00992696",
        equation=r"\\phi",
    )(constant_baseline)
'''
PROGRAM = """
import json, sys
from arm_tf import estimators
assert "tensorflow" not in sys.modules
from arm_tf import figures
names = list(estimators.TABLE)
styles = {name: figures.estimator_style(name) for name in names}
print(json.dumps({
    "names": names,
    "styles": len({str(style) for style in styles.values()}),
    "colour": styles["constant_baseline"][0] in {styles[n][0] for n in names[:-31]},
    "table": "| `constant_baseline` | score function with a constant" in estimators.markdown(),
}))
"""
FIGURES = """
import pathlib, sys
from arm_tf import figures
from arm_tf.training import run_folder
path = pathlib.Path(sys.argv[1])
metrics = run_folder.read_metrics(path)
figures.variance_curves(metrics, "variance").savefig(path / "variance.png")
trials = {"constant_baseline": [metrics, metrics], "arm": [metrics]}
figures.elbo_curves(trials, "bound").savefig(path / "elbo.png")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the package with a module more in `estimators/`."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "arm_tf", folder / "arm_tf", ignore=ignored)
    (folder / "arm_tf" / "estimators" / "own.py").write_text(MODULE, encoding="utf-8")
    return folder


def call(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def test_table_and_styles_have_it(folder):
    program = "import sys\nsys.orig_argv[1:] = ['-m', 'arm_tf.x']\nsys.argv = ['-m']\n" + PROGRAM
    process = call(folder, "-c", program)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["names"][-31] == "constant_baseline" and found["names"][0] == "ar"
    assert found["styles"] == len(found["names"]) and not found["colour"]
    assert found["table"]


def test_help_has_it_and_its_option(folder):
    process = call(folder, "-m", "arm_tf.train", "--estimator=help")
    assert "constant_baseline" in process.stdout and "constant baseline (Will" in process.stdout
    process = call(folder, "-m", "arm_tf.train", "--help")
    assert "--baseline: Of constant_baseline: what f is compared with." in process.stdout
    process = call(folder, "-m", "arm_tf.train", "--baseline=-1e7")
    assert process.returncode == 2 and "--baseline must be" in process.stderr


@pytest.mark.slow
def test_it_trains_with_its_option_and_is_reported_and_plotted(folder):
    fast = ("--units=8", "--eval_samples=2", "--test_samples=5", "--test_images=100",
            "--valid_images=100", "--max_steps=2", "--steps_per_loop=2", "--jit=false")  # fmt: skip
    own = ("--estimator=constant_baseline", "--track_variance=arm,own_7")
    for baseline in ("-100.0", "-5.0"):
        command = ("-m", "arm_tf.train", *fast, *own, f"--baseline={baseline}")
        process = call(folder, *command, "--logdir=runs")
        assert process.returncode == 0, process.stderr
    runs = sorted((folder / "runs").glob("glyphs-linear-1-constant_baseline-seed0*"))
    assert len(runs) == 2  # the option changes what is computed, so it changes the name
    configs = [json.loads((run / "config.json").read_text())["config"] for run in runs]
    assert sorted(config["baseline"] for config in configs) == [-100.0, -5.0]
    bounds = [json.loads((run / "result.json").read_text())["valid_nll"] for run in runs]
    assert bounds[0] != bounds[1]
    process = call(folder, "-m", "arm_tf.report", "runs")
    assert process.returncode == 0, process.stderr
    with open(folder / "runs" / "report.csv", encoding="utf-8") as file:
        assert [row["estimator"] for row in csv.DictReader(file)] == ["constant_baseline"] * 2
    process = call(folder, "-c", FIGURES, str(runs[0]))
    assert process.returncode == 0, process.stderr
    assert (runs[0] / "variance.png").stat().st_size > 5000
    assert (runs[0] / "elbo.png").stat().st_size > 5000


def test_option_of_another_meaning_is_refused(folder, tmp_path):
    shutil.copytree(folder / "arm_tf", tmp_path / "arm_tf")
    file = tmp_path / "arm_tf" / "estimators" / "own.py"
    file.write_text(MODULE.replace('Option("baseline"', 'Option("temperature"'), encoding="utf-8")
    process = call(tmp_path, "-m", "arm_tf.train", "--help")
    assert "The option temperature of 'constant_baseline' is not that of other" in process.stderr
    file.write_text(MODULE.replace('Option("baseline"', 'Option("seed"'), encoding="utf-8")
    process = call(tmp_path, "-m", "arm_tf.train", "--help")
    assert "the name of another setting" in process.stderr

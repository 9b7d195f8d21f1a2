"""Experiments of papers: names, settings, published figures."""

import pytest

from arm_tf import estimators, experiments
from arm_tf.errors import ConfigError
from arm_tf.training.config import Config


@pytest.mark.parametrize("experiment", experiments.TABLE.values(), ids=lambda its: its.name)
def test_every_cell_can_be_trained_and_departs_from_nothing(experiment):
    source, _, rest = experiment.name.partition("/")
    assert source and rest.startswith(experiment.settings["dataset"]) and experiment.title
    cells = [(cell.estimator, cell.num_samples) for cell in experiment.cells]
    assert len(set(cells)) == len(cells)
    for cell in experiment.cells:
        config = Config.of(experiment.name, estimator=cell.estimator, num_samples=cell.num_samples)
        assert set(config.changed) <= {"num_samples"}
        assert experiment.cell(cell.estimator, config.num_samples) is cell
        assert set(cell.published) <= {"test_nll", "train_neg_elbo"}
    assert experiment.cell("exact", 1) is None


def test_names_are_found_by_patterns_in_the_order_of_the_table():
    names = lambda *patterns: [its.name for its in experiments.matching(patterns)]
    assert names("*") == list(experiments.TABLE)
    assert names("shi_2022/mnist*", "yin_*/*-linear") == [
        "yin_zhou_2019/mnist_static-linear",
        "yin_zhou_2019/omniglot-linear",
        "yin_zhou_2019/mnist_threshold-linear",
        "shi_2022/mnist_dynamic-nonlinear",
    ]
    assert names() == []
    for find in (experiments.find, lambda name: experiments.matching(["*", name])):
        with pytest.raises(ConfigError, match="named 'shi_2022/mnist.*-linear'; most like it: shi"):
            find("shi_2022/mnist*-linear")


def test_help_has_a_line_each_with_what_is_published():
    lines = {line.split()[0]: line for line in experiments.describe().splitlines()[1:]}
    assert list(lines) == list(experiments.TABLE)
    assert "; relax ≤ 113.6; arm 107.2 ± 0.1" in lines["yin_zhou_2019/mnist_static-linear"]
    assert "; rodeo K = 2, K = 3; arms K = 3; relax" in lines["shi_2022/fashion_dynamic-nonlinear"]


def test_settings_differ_as_the_authors_scripts_do():
    linear, nonlinear = (
        Config.of(f"yin_zhou_2019/mnist_static-{name}") for name in ("linear", "nonlinear")
    )
    assert (linear.input_scaling, linear.code_scaling) == ("symmetric", "symmetric")
    assert (nonlinear.prior, nonlinear.leaky_slope, nonlinear.code_scaling) == (
        "uniform",
        0.1,
        "none",
    )
    omniglot = Config.of("yin_zhou_2019/omniglot-nonlinear")
    assert (omniglot.encoder_betas, omniglot.decoder_betas) == ((0.5, 0.99999), (0.9, 0.999))
    assert (omniglot.leaky_slope, omniglot.batch_size, omniglot.epochs) == (0.3, 20, 800)
    assert (omniglot.valid_images, omniglot.test_images) == (1300, 8000)
    conditional = experiments.find("yin_zhou_2019/mnist_threshold-conditional")
    assert conditional.rates == (1e-4,) and conditional.settings["model"] == "conditional"
    assert experiments.find("yin_zhou_2019/omniglot-nonlinear").rates == (5e-4, 1e-4, 5e-5)


def test_settings_of_the_dynamic_benchmark_differ_as_its_papers_code_does():
    loo = Config.of("dong_2020/mnist_dynamic-linear", estimator="loo")
    assert (loo.input_scaling, loo.code_scaling) == ("centered", "symmetric")
    assert (loo.output_bias, loo.prior, loo.prior_learning_rate) == ("data_mean", "learned", 0.01)
    assert (loo.batch_size, loo.learning_rate, loo.decoder_samples) == (50, 1e-4, "independent")
    relax = Config.of("dong_2020/mnist_dynamic-nonlinear", estimator="relax")
    assert (relax.decoder_samples, relax.estimator_learning_rate) == ("shared", 1e-4)
    assert (relax.leaky_slope, relax.network, relax.units) == (0.3, "nonlinear", 200)
    rodeo = Config.of("shi_2022/fashion_dynamic-nonlinear", estimator="rodeo")
    assert (rodeo.input_scaling, rodeo.code_scaling) == ("none", "none")
    assert (rodeo.output_bias, rodeo.prior, rodeo.decoder_samples) == ("zeros", "uniform", "shared")
    assert (rodeo.batch_size, rodeo.learning_rate) == (100, 3e-4)
    double_cv = Config.of("titsias_shi_2022/fashion_dynamic-nonlinear", estimator="double_cv")
    assert double_cv.learning_rate == 1e-3
    for experiment in experiments.TABLE.values():
        if experiment.paper != experiments.PAPER:
            given = Config.of(experiment.name)
            images = {"omniglot_dynamic": 23_000}.get(given.dataset, 50_000)
            steps = images // given.batch_size * given.epochs
            assert given.max_steps == 1_000_000 <= steps < 1_000_500


def test_papers_compare_at_equal_numbers_of_evaluations():
    """Of f, as their code counts them; RELAX has three."""
    expected = {"dong": {2}, "dimitriev": {4, 6, 8}, "titsias": {2, 4}, "shi": {2, 3}}
    for name, experiment in experiments.TABLE.items():
        if experiment.paper != experiments.PAPER:
            found = {
                estimators.get(cell.estimator).evaluations(cell.num_samples, 200)
                for cell in experiment.cells
                if cell.estimator != "relax"
            }
            assert found == expected[name.partition("_")[0]], name

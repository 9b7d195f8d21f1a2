"""Settings: limits, names, those of experiments."""

import contextlib
import dataclasses
import json
import pathlib

import pytest
from absl import flags

from arm_tf import cli, estimators, report
from arm_tf.errors import ConfigError
from arm_tf.training import config as config_module
from arm_tf.training import run_folder
from arm_tf.training.config import KINDS, Config, names_of

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    "setting, value, message",
    [
        ("dataset", "mnits", "--dataset must be one of glyphs, mnist_static, .* received 'mnits'"),
        ("dataset", "", "received ''"),
        ("dataset", ".npz", "or a file, .npz or .npy, received"),
        ("dataset", 3, "received 3"),
        ("dataset", "a\nb.npz", "in one line of Unicode"),
        ("data_dir", "a\u2028b", "in one line of Unicode"),  # where str.splitlines cuts
        ("image_shape", (5,), "a height and a width, such as 28,28, received"),
        ("image_shape", (5, 0), "a height and a width"),
        ("image_shape", (5, 6.0), "a height and a width"),
        ("image_shape", "5x6", "a height and a width"),
        ("keep_epochs", (1, -1), r"of at least 0, such as 0,1,10, received \(1, -1\)"),
        ("keep_epochs", (0.5,), "whole numbers"),
        ("estimator", "amr", "--estimator must be one of .*arm.* received 'amr'"),
        ("units", 0, "--units must be an integer from 1 to 100,000, received 0"),
        ("units", 2**70, "from 1 to 100,000, received 1180591620717411303424"),
        ("layers", 2**40, "from 1 to 1,000, received"),
        ("num_samples", 2**62, "from 1 to 100,000, received"),
        ("batch_size", -5, "received -5"),
        ("layers", True, "received True"),
        ("seed", -1, "--seed must be an integer from 0 to 2,147,483,647"),
        ("learning_rate", float("nan"), "--learning_rate must be a finite number"),
        ("learning_rate", float("inf"), "received inf"),
        ("encoder_betas", (0.9, 1.0), r"below 1.*received \(0.9, 1.0\)"),
        ("encoder_betas", (0.9,), "two numbers"),
        ("name", "../elsewhere", "a folder name"),
        ("logdir", "", "a text that is not empty"),
        ("jit", 1, "true or false"),
    ],
)
def test_values_outside_their_limits_are_refused(setting, value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Config(**{setting: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("estimator", estimators.TABLE)
def test_greatest_settings_cost_nothing_themselves(estimator):
    greatest = {
        field.name: field.metadata["high"]
        for field in dataclasses.fields(Config)
        if field.type in (int, int | None)
    }
    with contextlib.suppress(ConfigError):
        Config(estimator=estimator, track_variance=("arm",), **greatest)
    for name in ("exact", "legrad"):
        with pytest.raises(ConfigError, match="units a layer, received 100000") as caught:
            Config(estimator=estimator, track_variance=(name,), **greatest)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["vimco", "disarm_local", "wake_sleep"])
def test_conditional_network_refuses_what_it_cannot_compute(name):
    for setting, value in (("estimator", name), ("track_variance", ("arm", name))):
        with pytest.raises(ConfigError, match=f"--{setting} .*received '{name}'"):
            Config(model="conditional", **{setting: value})
    with pytest.raises(ConfigError, match="has no prior, received --prior=uniform"):
        Config(model="conditional", prior="uniform")


def test_batch_size_is_the_papers_unless_given():
    assert Config(dataset="omniglot").batch_size == 25
    assert Config(dataset="mnist_static").batch_size == 50
    assert Config(dataset="omniglot", batch_size=7).batch_size == 7


def test_batch_size_of_ones_own_data_does_not_follow_from_their_name():
    assert Config(dataset="omniglot.npz").batch_size == 50


@pytest.mark.parametrize(
    "dataset, data_dir, file, folder",
    [
        ("digits.npz", None, "digits.npz", None),
        ("./digits.npy", None, "digits.npy", None),
        ("a/b/digits.npz", None, "digits.npz", "a/b"),
        ("/a/digits.npz", None, "digits.npz", "/a"),
        ("~/digits.npz", None, "digits.npz", "~"),
        ("digits.npz", "c", "digits.npz", "c"),
        ("a/digits.npz", "/c", "digits.npz", "/c/a"),
        ("../digits.NPZ", "c", "digits.NPZ", "c/.."),
    ],
)
def test_path_of_ones_own_data_is_split(dataset, data_dir, file, folder):
    config = Config(dataset=dataset, data_dir=data_dir, image_shape=(5, 6))
    assert (config.dataset, config.data_dir) == (file, folder)
    assert dataclasses.replace(config, seed=1).data_dir == folder
    assert Config.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert not config.differences(Config(dataset=file, data_dir="x", image_shape=(5, 6)))
    assert "--image_shape=5,6\n" in config.flag_file()


@pytest.mark.parametrize(
    "dataset, start",
    [
        ("a/digits.npz", "digits-linear-1-arm-seed0"),
        ("my data (1).npz", "my_data__1_-linear-1-arm-seed0"),
        ("..x.y.npz", "__x_y-linear-1-arm-seed0"),
        ("a\\b.npz", "a_b-linear-1-arm-seed0"),
        (
            "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 80 + ".npy",
            "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 40 + "-linear",
        ),
        ("arrays", "arrays-linear-1-arm-seed0"),
    ],
)
def test_name_of_a_run_on_ones_own_data(dataset, start):
    config = Config(dataset=dataset)
    assert config.name.startswith(start) and len(config.name.encode()) < 200
    assert config.name == Config(dataset=dataset, data_dir="elsewhere").name


def test_name_follows_from_what_is_computed():
    assert Config().name == "glyphs-linear-1-arm-seed0"
    assert Config(batch_size=50, logdir="elsewhere", data_dir="x").name == Config().name
    others = [Config(learning_rate=1e-3), Config(epochs=7), Config(batch_size=49), Config(seed=1)]
    assert len({c.name for c in [Config(), *others]}) == 5


def test_differences_are_named():
    assert Config().differences(Config(units=3, seed=2, logdir="x")) == ["units", "seed"]


def test_round_trip_through_json():
    config = Config(encoder_betas=(0.5, 0.99999), max_steps=3)
    assert Config.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(ConfigError, match="Unknown settings: colour"):
        Config.from_dict({"colour": 1})


def test_what_was_left_unset_is_resolved_anew():
    replace = dataclasses.replace
    omniglot = replace(Config(), dataset="omniglot")
    assert omniglot == Config(dataset="omniglot")
    assert (omniglot.batch_size, omniglot.name) == (25, "omniglot-linear-1-arm-seed0")
    assert replace(Config(batch_size=50), dataset="omniglot").batch_size == 50
    vimco = replace(Config(), estimator="vimco")
    assert (vimco.num_samples, vimco.decoder_samples) == (5, "shared")
    assert replace(vimco, estimator="loo") == Config(estimator="loo")
    assert replace(replace(vimco, seed=3), seed=0) == vimco
    assert replace(Config(name="mine"), seed=3).name == "mine"
    own = replace(Config(dataset="a/digits.npz", data_dir="c"), seed=1)
    assert (own.dataset, own.data_dir) == ("digits.npz", "c/a")
    assert replace(own, dataset="glyphs").data_dir == "c"


def test_what_was_asked_for_is_kept_apart():
    config = Config(dataset="a/digits.npz", num_samples=3)
    names = ("dataset", "data_dir", "num_samples", "batch_size", "decoder_samples", "name")
    assert [config.asked(name) for name in names] == ["a/digits.npz", None, 3, None, None, None]
    assert Config(name="mine").asked("name") == "mine"


@pytest.mark.parametrize("table", sorted(ROOT.glob("results/**/runs.json")), ids=str)
def test_runs_keep_their_settings_and_names(table):
    runs, _ = report.gather(table.parent)
    for run in runs:
        written = run.record["config"]
        expected = {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()}
        assert {name: getattr(run.config, name) for name in expected} == expected
        assert json.loads(json.dumps(run.config.changed)) == run.record["changed"]
        if f"-{run.config.estimator}-seed{run.config.seed}" in run.config.name:
            assert dataclasses.replace(run.config, name=None).name == run.config.name
    assert len(runs) == len(json.loads(table.read_text(encoding="utf-8"))) > 0


@pytest.mark.parametrize(
    "settings, name",
    [  # as the version before words and settings changed has built them
        (dict(decoder_samples="shared"), "glyphs-linear-1-arm-seed0-cf5849cd"),
        (
            dict(estimator="vimco", decoder_samples="independent"),
            "glyphs-linear-1-vimco-seed0-f7a81f05",
        ),
        (dict(estimator="concrete", temperature=0.7), "glyphs-linear-1-concrete-seed0-f42063f2"),
        (dict(estimator="ovis", gamma=0.0, epochs=3), "glyphs-linear-1-ovis-seed0-c3fba952"),
    ],
)
def test_names_of_runs_stay_what_they_were(settings, name):
    assert Config(**settings).name == name
    if settings.get("decoder_samples") == "shared":
        assert Config(**{**settings, "decoder_samples": "antithetic"}).name == name


def test_earlier_settings_are_read():
    """They hold the objective, and another word for shared samples."""
    config = run_folder.read_config(pathlib.Path(__file__).parent / "earlier_run")
    assert (config.objective, config.decoder_samples) == ("elbo", "shared")
    with pytest.raises(ConfigError, match="--objective=elbo is not that of --estimator=vimco"):
        Config.from_dict({"estimator": "vimco", "objective": "elbo"})
    assert Config.from_dict({"estimator": "vimco", "objective": "multisample"}).num_samples == 5


def test_estimators_that_can_be_chosen_are_those_of_the_table():
    (field,) = [f for f in dataclasses.fields(Config) if f.name == "estimator"]
    assert set(field.metadata["choices"]) == set(estimators.TABLE)


LINEAR = "yin_zhou_2019/mnist_static-linear"


def parsed(*arguments):
    values = flags.FlagValues()
    cli.define_flags(values)
    values(["train", *arguments])
    return cli.config_from_flags(values)


def test_an_experiment_gives_its_settings_and_other_flags_change_them():
    config = parsed(f"--experiment={LINEAR}", "--estimator=loo", "--epochs=3", "--nojit")
    assert (config.dataset, config.code_scaling) == ("mnist_static", "symmetric")
    assert config == Config.of(LINEAR, estimator="loo", epochs=3, jit=False)
    assert config.changed == {"epochs": 3, "jit": False}
    assert parsed("--epochs=3", f"--experiment={LINEAR}").epochs == 3  # in any order
    assert parsed(*config.flag_file().splitlines()) == config
    assert Config().changed == {} and parsed() == Config()
    dong = "dong_2020/fashion_dynamic-linear"
    relax = parsed(f"--experiment={dong}", "--estimator=relax")
    assert (relax.decoder_samples, relax.estimator_learning_rate) == ("shared", 1e-4)
    assert relax.changed == {}
    few = Config.of(dong, estimator="exact", units=8)  # of which the experiment has too many
    assert few.changed == {"units": 8}


def test_the_name_of_an_experiment_changes_nothing_that_is_computed():
    config = Config.of(LINEAR)
    without = dataclasses.replace(config, experiment=None)
    assert config.name == without.name and not config.differences(without)
    assert Config.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_an_unknown_experiment_is_one_line_with_a_guess():
    for build in (
        lambda name: Config(experiment=name),
        Config.of,
        lambda n: parsed(f"--experiment={n}"),
    ):
        with pytest.raises(ConfigError, match=f"'{LINEAR}s'; most like it: {LINEAR}, .*=help"):
            build(f"{LINEAR}s")


def test_every_setting_has_a_kind():
    kinds = {field.name: field.metadata["of"] for field in dataclasses.fields(Config)}
    assert set(kinds.values()) == set(KINDS)
    assert all(kinds[option] == "estimator" for option in estimators.OPTIONS)
    names = [name for kind in KINDS for name in names_of(kind)]
    assert sorted(names) == sorted(kinds)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'of'"):
        config_module._setting(3, "Of no kind.")


ANOTHER = {
    "experiment": LINEAR, "data_dir": "x", "logdir": "x", "name": "x", "keep_epochs": (3,),
    "image_shape": (14, 56), "valid_images": 3, "test_images": 3, "max_steps": 3, "seed": 3,
    "track_variance": ("arm",),
}  # fmt: skip


def another(field):
    """A value of a setting that is not its default."""
    value = getattr(Config(), field.name)
    if field.name in ANOTHER:
        return ANOTHER[field.name]
    if field.metadata["choices"]:
        return next(name for name in field.metadata["choices"] if name != value)
    if isinstance(value, tuple):
        return (0.25, 0.5)
    return not value if isinstance(value, bool) else 2 * value


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_what_is_computed_and_the_name_follow_from_all_settings_but_those_of_a_place(field):
    changed = Config(**{field.name: another(field)})
    is_place = field.metadata["of"] == "place"
    assert changed.differences(Config()) == ([] if is_place else [field.name]) or (
        field.name == "estimator"  # whose number of samples is another, too
    )
    assert (dataclasses.replace(changed, name=None).name == Config().name) == is_place

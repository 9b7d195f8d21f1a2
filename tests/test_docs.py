"""The documentation says what the package and its results say."""

import importlib
import importlib.util
import inspect
import pathlib
import re

import pytest

import arm_tf

ROOT = pathlib.Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)
SHOWN = {
    "docs/benchmarks.md": ["disarm", "disarm_in_full"],
    "docs/choose.md": [
        f"choose/{name}"
        for name in ("linear", "few", "many", "two_layers", "conditional", "multisample")
    ],
    "docs/machines.md": ["sweep", "benchmark/cost"],
    "docs/omniglot.md": ["omniglot_stand_in"],
    "docs/paper.md": ["paper", "toy"],
    "docs/results.md": ["estimators/linear", "estimators/two_layers"],
    "docs/speed.md": ["benchmark/steps_and_fit", "benchmark/one_core"],
    "README.md": ["paper"],
}


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", generate.pages(), ids=lambda path: path.name)
def test_tables_are_those_of_the_results(path):
    text = path.read_text(encoding="utf-8")
    assert text == generate.refreshed(text), "python docs/generate.py makes them anew"


def test_every_table_of_results_is_made_from_a_folder_and_another_figure_is_seen():
    for page in generate.pages():
        name = page.relative_to(ROOT).as_posix()
        folders = [folder for _, folder, *_ in generate.BLOCK.findall(read(name)) if folder]
        assert folders == [f"results/{folder}" for folder in SHOWN.get(name, [])]
        typed = generate.BLOCK.sub("", read(name))
        assert not re.search(r"^\|.* \d+\.\d+ .*\|$", typed, re.MULTILINE), name
    for page in ("README.md", "docs/estimators.md"):
        assert "<!-- arm_tf.estimators.markdown() -->" in read(page)
    changed = re.sub(r"(107\.2 ± 0\.1 \| \d+)\.\d", r"\1.x", read("README.md"))
    assert generate.refreshed(changed) == read("README.md") != changed


def test_figures_of_the_site_are_those_of_the_results():
    shown = generate.FIGURES.findall(read("docs/figures.md"))
    assert ("curves", "results/paper") in shown
    folder = "results/variance_along_training"
    assert ("variance", folder) in shown
    [(name, (title, content))] = generate.pictures("variance", folder).items()
    assert content.startswith(b"\x89PNG") and "25 epochs (shortened" in title
    page = f"Before.\n<!-- variance of {folder} -->\nAfter."
    made = generate.on_page_markdown(page, page=None, config=None, files=None)
    assert made == f"Before.\n![{title}]({name})\nAfter."
    stand_in = "results/omniglot_stand_in"
    titles = [title for title, _ in generate.pictures("curves", stand_in).values()]
    assert len(titles) == 3 and all("not the published data" in title for title in titles)
    with pytest.raises(ValueError, match="no variance"):
        generate.pictures("variance", stand_in)
    gradients = generate.pictures("gradients", "results/choose/linear")
    assert [name.rpartition("-")[2] for name in gradients] == ["variance.png", "trajectory.png"]


def undocumented(module):
    """Public functions, classes and methods of a module that have no docstring; names.

    Left out are what overrides another class's method, and `main`, which the module's speaks of.
    """
    found = [] if module.__doc__ else [module.__name__]
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) and name != "main" and not value.__doc__:
            found.append(f"{module.__name__}.{name}")
        if inspect.isclass(value):
            found += [] if value.__doc__ else [f"{module.__name__}.{name}"]
            for method, member in vars(value).items():
                function = getattr(member, "fget", getattr(member, "__func__", member))
                inherited = any(hasattr(base, method) for base in value.__mro__[1:])
                own = inspect.isfunction(function) and function.__name__ == method
                if own and not (method.startswith("_") or inherited or function.__doc__):
                    found.append(f"{module.__name__}.{name}.{method}")
    return found


@pytest.mark.parametrize("name", generate.modules())
def test_every_public_name_has_a_docstring(name):
    assert undocumented(importlib.import_module(name)) == []


def test_a_missing_docstring_is_seen():
    module = type(generate)("planted", "A module.")
    exec("class A:\n  'A.'\n  @property\n  def b(self): pass\ndef c(): pass", module.__dict__)
    assert undocumented(module) == ["planted.A.b", "planted.c"]


def test_there_is_one_version():
    assert (
        re.search(r"^## \[(\d.*?)\]", read("CHANGELOG.md"), re.MULTILINE)[1] == arm_tf.__version__
    )
    assert f"\nversion: {arm_tf.__version__}\n" in read("CITATION.cff")


def test_links_lead_to_files():
    for page in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "results/README.md",
        "runs/README.md",
    ):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(page)):
            assert (ROOT / page).parent.joinpath(link).exists(), (page, link)

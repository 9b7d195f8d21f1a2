"""What the documentation takes from the package and its results; a hook of MkDocs.

Tables between `<!-- python -m arm_tf.report FOLDER -->`, with `, ARM's rows` after FOLDER if only
those of the first table are wanted, or `<!-- arm_tf.estimators.markdown() -->` and `<!-- end -->`
are made anew by `python docs/generate.py`, in README.md and docs/; tests compare them. Built into
the site alone are figures of the results, at `<!-- curves of FOLDER -->` and the like, the
estimators one by one, the commands' flags, the pages of the API, a module each, and copies of files
elsewhere in the repository that pages link to.
"""

import ast
import csv
import functools
import io
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "arm_tf"
BLOCK = re.compile(
    r"<!-- (python -m arm_tf\.report ([^\s,]+)(, ARM's rows)?|arm_tf\.estimators\.markdown\(\))"
    r" -->\n(.*?)\n<!-- end -->\n",
    re.DOTALL,
)
FIGURES = re.compile(r"<!-- (curves|variance|gradients) of (\S+) -->\n")
_OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)\)")
_ROOT_PAGES = {"contribute.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def pages():
    """The files that have tables, a list of paths."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def refreshed(text):
    """The text of a page with its tables made anew.

    Raises:
      ValueError: results that cannot be read are passed over.
    """
    return BLOCK.sub(lambda m: f"<!-- {m[1]} -->\n\n{_table(m[2], m[3])}\n<!-- end -->\n", text)


def _table(folder, only_arm):
    if folder is None:
        from arm_tf import estimators

        return estimators.markdown()
    from arm_tf import report

    text, _, notes = report.summary(ROOT / folder)
    if notes or not text:
        raise ValueError(f"{folder}: {'; '.join(notes) or 'no results'}.")
    if only_arm:  # what the first table shows, its head and these rows
        shows, rows, *_ = text.split("\n\n")
        head, line, *rows = rows.splitlines()
        return "\n".join([shows, "", head, line, *(row for row in rows if "`arm`" in row), ""])
    return text


@functools.cache
def pictures(kind, folder):
    """Figures of a folder of results: by file name, (title, content of a PNG); a dict.

    Args:
      kind: "curves" or "variance", of finished runs; or "gradients", of variance.csv.
      folder: path below the root, a text.

    Raises:
      ValueError: results that cannot be read are passed over, or there is nothing to draw.
    """
    figures, notes = _gradients(folder) if kind == "gradients" else _of_runs(folder, kind)
    if notes or not figures:
        raise ValueError(f"{folder}: {'; '.join(notes) or f'no {kind}'}.")
    found = {}
    for name, figure in figures.items():
        file = io.BytesIO()
        figure.savefig(file)
        title = figure.get_suptitle() or figure.axes[0].get_title()
        found[f"{folder.replace('/', '-')}-{name}.png"] = (title, file.getvalue())
    return found


def _of_runs(folder, kind):
    from arm_tf import report

    runs, notes = report.gather(ROOT / folder)
    drawn = report.pictures(runs)
    return {name: drawn[name] for name in drawn if name.startswith(f"{kind}-")}, notes


def _gradients(folder):
    from arm_tf.variance import figures

    with open(ROOT / folder / "variance.csv", newline="", encoding="utf-8") as lines:
        texts = ("estimator", "objective")
        number = lambda text: json.loads(text) if text else None
        rows = [
            {name: value if name in texts else number(value) for name, value in row.items()}
            for row in csv.DictReader(lines)
        ]
    return figures.pictures(rows, pathlib.PurePath(folder).name), []


def _shown(kind, folder):
    shown = [f"![{title}]({name})" for name, (title, _) in pictures(kind, folder).items()]
    return "\n\n".join(shown) + "\n"


def estimators_one_by_one():
    """A section for each estimator: equation, cost, bias, needs, source and proof; Markdown."""
    from arm_tf import estimators

    return "\n".join(_section(name, row) for name, row in estimators.TABLE.items())


def _section(name, row):
    samples = f"K ≥ {row.min_samples}, {row.default_samples or row.min_samples} unless given"
    needs = ["the derivative of f"] if row.derivative else []
    needs += ["parameters that it keeps or learns"] if row.initial else []
    needs += ["a generative model that dreams: it is a rule to train by"] if row.rule else []
    function = row.function.__name__
    options = [f"`{o.name}` ({o.default}): {o.help}" for o in row.options]
    objective = {"elbo": "E[f(b)]", "multisample": "E[log (1/K) Σ exp f(b_k)]"}[row.objective]
    facts = {
        "gradient of": row.ascends or objective,
        "evaluations of f": row.cost,
        "bias": row.bias,
        "samples": samples,
        "units a layer": "any" if row.max_units is None else f"at most {row.max_units:,}",
        "needs": ", ".join(needs) or "f alone",
        "options": "<br>".join(options) or "none",
        "source": row.cited,
        "function": f"[`{function}`][{row.function.__module__}.{function}]",
        "proof": f"[{_proof(name, row)}](../{_proof(name, row)})",
    }
    table = "| | |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in facts.items())
    summary = f"{row.summary[0].upper()}{row.summary[1:]}."
    return f"## `{name}`\n\n{summary}\n\n$$\n\\hat g = {row.equation}\n$$\n\n{table}\n"


def _proof(name, row):
    """The file of an estimator's proof.

    Raises:
      ValueError: there is no proof.
    """
    files = [ROOT / "tests" / "proofs" / f"{row.family}.py"]
    files += sorted((ROOT / "tests" / "proofs").glob("*.py"))
    for file in files:
        if file.exists() and f'"{name}"' in file.read_text(encoding="utf-8"):
            return file.relative_to(ROOT).as_posix()
    raise ValueError(f"{name!r} has no proof in tests/proofs/.")


def modules():
    """Dotted names of the package's modules that are not private, with their files; a dict."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if not any(part.startswith("_") for part in name.replace("__main__", "main").split(".")):
            found[name] = path
    return found


def _first_line(path):
    line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    return line.partition(": `python")[0].rstrip(".")


def api_pages():
    """The pages of the API, text by name."""
    found = modules()
    rows = [f"| [`{name}`]({name}.md) | {_first_line(path)} |" for name, path in found.items()]
    homes = re.search(r"_HOMES = (\{.*?\})", found["arm_tf"].read_text(encoding="utf-8"), re.DOTALL)
    most = [
        f"[`arm_tf.{name}`][arm_tf.{module}.{name}]"
        for name, module in ast.literal_eval(homes[1]).items()
    ]
    index = (
        f"# API\n\nWhat most uses take: {', '.join(most)}.\n\n"
        "| module | what |\n|---|---|\n" + "\n".join(rows) + "\n"
    )
    texts = {f"{name}.md": f"# `{name}`\n\n::: {name}\n" for name in found}
    return {"index.md": index, **texts}


def commands():
    """The commands of the package with their flags, as they say themselves; Markdown."""
    listing = subprocess.run(
        [sys.executable, "-m", "arm_tf"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return f"```text\n{listing}```\n"


def on_config(config):
    """Adds the pages of the API to the navigation."""
    sys.path.insert(0, str(ROOT))
    for entry in config["nav"]:
        if entry.get("API") == "api/index.md":
            entry["API"] = [f"api/{name}" for name in api_pages()]
    return config


def on_files(files, config):
    """Adds what is not in docs/: the API, pages at the root, and files that pages link to."""
    from mkdocs.structure.files import File, InclusionLevel

    for name, text in api_pages().items():
        files.append(File.generated(config, f"api/{name}", content=text))
    for name, path in _ROOT_PAGES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/", "](", text)
        files.append(
            File.generated(config, name, content=re.sub(r"\]\((?=[a-z_]+/)", "](../", text))
        )
    texts = [file.content_string for file in files.documentation_pages()]
    for kind, folder in sorted({shown for text in texts for shown in FIGURES.findall(text)}):
        for name, (_, content) in pictures(kind, folder).items():
            files.append(File.generated(config, name, content=content))
    texts.append(estimators_one_by_one())
    outside = {path for text in texts for path in _OUTSIDE.findall(text)}
    for path in sorted(outside - set(_ROOT_PAGES.values())):
        if not (ROOT / path).is_file():
            raise ValueError(f"A page links to {path}, which is not there.")
        copy = File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path),
                              inclusion=InclusionLevel.NOT_IN_NAV)  # fmt: skip
        files.append(copy)
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills in what is made at the time of the build, and points links at the copies."""
    for mark, make in (
        ("<!-- estimators one by one -->\n", estimators_one_by_one),
        ("<!-- python -m arm_tf -->\n", commands),
    ):
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    markdown = FIGURES.sub(lambda m: _shown(m[1], m[2]), markdown)
    for name, path in _ROOT_PAGES.items():
        markdown = markdown.replace(f"](../{path})", f"]({name})")
    return _OUTSIDE.sub(r"](repository/\1)", markdown)


def main():
    """Makes the tables of all pages anew."""
    sys.path.insert(0, str(ROOT))
    for path in pages():
        text = path.read_text(encoding="utf-8")
        path.write_text(refreshed(text), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()

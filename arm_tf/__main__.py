"""Lists the commands of this package, a line each: `python -m arm_tf`."""

import ast
import pathlib

from arm_tf import cli


def commands() -> dict[str, str]:
    """The first line of the docstring of each program, which takes flags, by the module's name."""
    found = {}
    folder = pathlib.Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        source = path.read_text(encoding="utf-8")
        if "\n    cli.run(" in source and path != pathlib.Path(__file__):
            text = ast.get_docstring(ast.parse(source)) or ""
            found[name.removesuffix(".__main__")] = text.partition("\n")[0]
    return found


def main() -> None:
    print("Commands, each with --help:")
    for name, line in commands().items():
        what = line.partition(": `")[0]
        print(f"  python -m {name:25} {what}")


if __name__ == "__main__":
    cli.run(main)

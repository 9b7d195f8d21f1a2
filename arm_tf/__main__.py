"""Lists the commands of this package, a line each: `python -m arm_tf`."""

import ast
import pathlib

from arm_tf import cli


def commands():
    """The first line of the docstring of each program, which takes flags, by the module's name."""
    found = {}
    folder = pathlib.Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        source = path.read_text(encoding="utf-8")
        if "\n    cli.run(" in source and path != pathlib.Path(__file__):
            line = ast.get_docstring(ast.parse(source)).partition("\n")[0]
            found[name.removesuffix(".__main__")] = line
    return found


def main():
    print("Commands, each with --help:")
    for name, line in commands().items():
        what = line.partition(": `")[0]
        print(f"  python -m {name:25} {what}")


if __name__ == "__main__":
    cli.run(main)

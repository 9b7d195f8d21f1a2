"""The package can be installed where TensorFlow can: its dependencies have wheels there."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LOW, HIGH = map(
    int,
    re.search(
        r'python_requires=">=3\.(\d+),<3\.(\d+)"', (ROOT / "setup.py").read_text(encoding="utf-8")
    ).groups(),
)
PLATFORMS = {
    "macos": ["macosx_11_0_arm64", "macosx_12_0_arm64", "macosx_14_0_arm64"],
    "windows": ["win_amd64"],
}  # fmt: skip


def pip(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def index():
    """Skips where no packages can be had."""
    process = pip("--no-deps", "filelock")
    if process.returncode:
        pytest.skip(f"the package index cannot be reached: {process.stderr.splitlines()[-1]}")


def test_workflow_has_the_oldest_and_the_newest_python():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"python: (\[.*\])", text) == [f'["3.{LOW}", "3.{HIGH - 1}"]'] * 2


@pytest.mark.slow
@pytest.mark.parametrize("platform, minor", [("macos", HIGH - 1), ("windows", LOW)])
def test_dependencies_have_wheels(platform, minor, index, tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "arm_tf").mkdir()
    shutil.copy(ROOT / "arm_tf" / "__init__.py", tmp_path / "arm_tf")
    process = pip(
        "--only-binary=:all:",
        f"--python-version=3.{minor}",
        *(f"--platform={tag}" for tag in PLATFORMS[platform]),
        f"--target={tmp_path / 'target'}",
        f"{tmp_path}[test]",
    )
    assert process.returncode == 0, process.stderr
    assert " tensorflow-2." in process.stdout.splitlines()[-1]

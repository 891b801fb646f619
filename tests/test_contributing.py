"""The recipes of CONTRIBUTING.md, made in a copy of the package as they stand there, and their own tests run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

FENCED = re.compile(r"^```(python|diff)\n# (\S+?)(, at its end)?\n(.*?)^```", re.M | re.S)
LAYERS = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"


@pytest.fixture(scope="module")
def recipes(repository) -> dict[str, str]:
    text = (repository / "CONTRIBUTING.md").read_text().split("## Recipes")[1]
    return {part.split("\n", 1)[0]: part for part in text.split("\n### ")[1:]}


@pytest.fixture
def copy(repository, tmp_path) -> Path:
    package = repository / "bluesky_ptychonn"

    def left_out(folder: str, names: list[str]) -> set[str]:
        if Path(folder).name == "__pycache__":  # what is compiled goes along: it is the same source, of the same time
            return {name for name in names if not name.endswith(".pyc")}
        return {"models"} if Path(folder) == package else set()

    shutil.copytree(package, tmp_path / package.name, ignore=left_out)
    shutil.copy(repository / "setup.cfg", tmp_path)
    return tmp_path


def _changed(text: str, diff: str) -> str:
    """Put each line with a plus behind the line above it, which has to be there once."""
    above = ""
    for line in diff.splitlines():
        if line.startswith("+"):
            assert text.count(f"{above}\n") == 1, above
            text = text.replace(f"{above}\n", f"{above}\n{line[1:]}\n")
        above = line[1:]
    return text


@pytest.mark.parametrize("name", ["A network family", "An export format", "A detector"])
def test_a_recipe_works_as_it_stands(name, recipes, copy) -> None:
    tests = []
    for kind, place, at_end, content in FENCED.findall(recipes[name]):
        path = copy / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "diff":
            content = _changed(path.read_text(), content)
        elif at_end:
            content = f"{path.read_text()}\n\n{content}"
        else:
            assert not path.exists(), f"{place} is there already"
        path.write_text(content)
        tests += [place] if place.startswith("tests/") else []
    assert len(tests) == 1
    for command in (
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests],
        ["-c", LAYERS],
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout

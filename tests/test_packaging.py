"""What is shipped, and what importing costs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import bluesky_ptychonn


@pytest.fixture(scope="module")
def project(repository) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def tracked(repository) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [repository / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_every_name_the_package_offers_is_there() -> None:
    for name in bluesky_ptychonn.__all__:
        assert getattr(bluesky_ptychonn, name) is not None
    assert set(bluesky_ptychonn.__all__) == set(dir(bluesky_ptychonn))


def test_type_checkers_are_told_the_same_names(repository) -> None:
    tree = ast.parse((repository / "bluesky_ptychonn/__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.asname: node.module for node in checked.body for alias in node.names}
    homes = {name: f"bluesky_ptychonn.{home}" for name, home in bluesky_ptychonn._HOME_OF.items()}
    assert told == homes
    assert all(getattr(bluesky_ptychonn, name) is getattr(import_module(home), name) for name, home in homes.items())


def test_pages_and_start_up_files_name_nothing_deeper_than_the_package(repository) -> None:
    docs = [page for page in (repository / "docs").rglob("*") if not {"reference", "_build"} & {*page.parts}]
    pages = [repository / "README.md", *docs, *(repository / "profile_startup").iterdir()]
    readers = [page for page in pages if page.suffix in {".md", ".py", ".toml"} and page.name != "conf.py"]
    assert len(readers) > 25
    deep = {
        f"{page.name}: {found}"
        for page in readers
        for found in re.findall(r"bluesky_ptychonn\.\w[\w.]*", page.read_text())
        if not page.is_relative_to(repository / "docs/decisions")
    }
    assert deep == set()


def test_every_name_a_page_imports_is_there(repository) -> None:
    pages = [repository / "README.md", *repository.glob("docs/**/*.md"), *repository.glob("profile_startup/*.py")]
    imports = re.compile(r"from bluesky_ptychonn import ([\w, ]+)")
    lines = [line for page in pages for line in imports.findall(page.read_text())]
    names = {name for line in lines for name in line.replace(",", " ").split()}
    assert len(names) > 15
    assert names - set(bluesky_ptychonn.__all__) == set()


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sparse_scan'; it offers .*sparse_ptycho_scan"):
        _ = bluesky_ptychonn.sparse_scan


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("bluesky_ptychonn", "torch tiled bluesky ophyd matplotlib h5py scipy pandas"),
        ("bluesky_ptychonn.cli", "torch tiled bluesky ophyd matplotlib h5py scipy pandas"),
        ("bluesky_ptychonn.card", "torch tiled bluesky ophyd matplotlib h5py"),
        ("bluesky_ptychonn.optics.simulate", "torch tiled bluesky ophyd matplotlib h5py"),
        ("bluesky_ptychonn.beamline.plans", "torch tiled matplotlib h5py"),
        ("bluesky_ptychonn.beamline.sim", "torch tiled matplotlib"),
        ("bluesky_ptychonn.live.callback", "torch matplotlib ophyd"),
        ("bluesky_ptychonn.viewer", "torch tiled matplotlib"),
    ],
)
def test_importing_costs_no_more_than_it_must(module, heavy) -> None:
    code = f"import sys, {module}; print(*[name for name in {heavy.split()!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


def test_version_is_said_once_everywhere(project) -> None:
    assert project["version"] == bluesky_ptychonn.__version__


def test_tiled_finds_our_client() -> None:
    (entry,) = entry_points(group="tiled.special_client", name="PtychoReconstruction")
    from bluesky_ptychonn.catalog.results.client import PtychoReconstruction

    assert entry.load() is PtychoReconstruction


def test_wheel_holds_models_and_nothing_foreign(repository, tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    shutil.copytree(
        repository / "bluesky_ptychonn", source / "bluesky_ptychonn", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        timeout=200,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "bluesky_ptychonn/py.typed" in names
    assert any(re.fullmatch(r"bluesky_ptychonn/models/simulated-zp64/card\.json", name) for name in names)
    assert any(name.endswith("simulated-zp64/model.safetensors") for name in names)
    assert {name.split("/")[0] for name in names} == {
        "bluesky_ptychonn",
        f"bluesky_ptychonn-{bluesky_ptychonn.__version__}.dist-info",
    }
    assert wheel.stat().st_size < 40e6


def test_constraints_pin_every_dependency(repository, project) -> None:
    pinned = {line.split("==")[0].lower() for line in (repository / "constraints.txt").read_text().splitlines()}
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *optional["test"], *optional["docs"], *optional["ioc"]]
    names = {re.match(r"[A-Za-z0-9_.-]+", one).group().lower() for one in wanted} - {"bluesky-ptychonn"}
    assert names - pinned == set()


def test_no_tracked_file_knows_this_machine(repository, tracked) -> None:
    here = str(repository.parent) + "/"
    if len(here) < 4:
        pytest.skip("the checkout lies at the root")
    guilty = [path.name for path in tracked if here.encode() in path.read_bytes()]
    assert guilty == []


def test_every_make_target_has_a_line_of_help(repository) -> None:
    done = subprocess.run(["make"], cwd=repository, capture_output=True, text=True, check=True)
    helped = set(re.findall(r"^ +make ([\w-]+) ", done.stdout, re.M))
    assert helped >= {"demo", "test", "check", "docs", "bench", "session", "clean"}
    makefile = (repository / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split()
    assert helped == set(phony)


def test_make_says_in_words_that_there_is_no_python(repository, tmp_path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "env"):
        (tools / tool).symlink_to(shutil.which(tool))
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")  # what 'sys.version_info < (3, 11)' makes of an old one
    old.chmod(0o755)
    done = subprocess.run(
        [shutil.which("make"), "check"],
        cwd=tmp_path,
        env={"PATH": str(tools), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no Python >= 3.11 found" in done.stdout
    assert "make check PYTHON=" in done.stdout


def test_readme_opens_with_the_two_commands(repository) -> None:
    opening = (repository / "README.md").read_text().splitlines()[:25]
    assert any("make demo" in line for line in opening)
    assert any("make test" in line for line in opening)

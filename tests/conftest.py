"""What every test may rely on: no window, no user's files touched, measured data where there is some."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported that looks: pictures without windows, one core each, and a home of the tests' own."""
    os.environ["MPLBACKEND"] = "Agg"
    # The tests' processes share the cores; trainings whose threads wait for one another take ten times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    home = tempfile.TemporaryDirectory(prefix="ptychonn-tests-")
    config.add_cleanup(home.cleanup)
    for name in ("STATE", "CONFIG", "DATA", "CACHE"):
        os.environ[f"XDG_{name}_HOME"] = str(Path(home.name) / name.lower())
    for name in ("PTYCHONN_MODELS", "PTYCHONN_CONFIG", "PTYCHONN_CATALOG", "PTYCHONN_TRACEBACK", "TILED_API_KEY"):
        os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests of whole processes first: they take longest, and none is to be left alone at the end."""
    first = {item.path for item in items if item.get_closest_marker("system")}
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def star() -> Path:
    """The measured Siemens star."""
    path = Path(os.environ.get("PTYCHONN_DATA", "../shared/data")) / "velociprobe-siemens-star.cxi"
    if not path.is_file():
        pytest.skip(f"no measured star: {path} is not there; set PTYCHONN_DATA to its folder")
    return path

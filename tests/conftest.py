"""What every test may rely on: no window, no user's files touched, measured data where there is some."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported that looks: pictures without windows, and a home of the tests' own."""
    os.environ["MPLBACKEND"] = "Agg"
    home = tempfile.TemporaryDirectory(prefix="ptychonn-tests-")
    config.add_cleanup(home.cleanup)
    for name in ("STATE", "CONFIG", "DATA", "CACHE"):
        os.environ[f"XDG_{name}_HOME"] = str(Path(home.name) / name.lower())
    for name in ("PTYCHONN_MODELS", "PTYCHONN_CONFIG", "PTYCHONN_CATALOG", "PTYCHONN_TRACEBACK", "TILED_API_KEY"):
        os.environ.pop(name, None)


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

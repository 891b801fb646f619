from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky.utils import DuringTask
from event_model import DocumentNames, schema_validators

Documents = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def RE() -> Iterator[RunEngine]:
    engine = RunEngine({}, call_returns_result=False, during_task=DuringTask(), context_managers=[])
    yield engine
    if engine.state not in ("idle", "panicked"):
        engine.halt()
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join(timeout=5)
    engine.loop.close()


@pytest.fixture
def documents(RE: RunEngine) -> Documents:
    """Every document of the session, each checked against its schema."""
    seen: Documents = []

    def keep(name: str, doc: dict[str, Any]) -> None:
        schema_validators[DocumentNames[name]].validate(doc)
        seen.append((name, doc))

    RE.subscribe(keep)
    return seen


@pytest.fixture
def of(documents: Documents) -> Callable[[str], list[dict[str, Any]]]:
    """Documents of one kind."""
    return lambda name: [doc for kind, doc in documents if kind == name]


@pytest.fixture(scope="session")
def measured() -> Path:
    """The folder of measured data."""
    folder = Path(os.environ.get("PTYCHONN_DATA", "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no measured data: PTYCHONN_DATA={folder} is not a folder")
    return folder

"""What databroker gives of our catalog, of version 1 (BITS) and 2: ``make test-bits`` runs this file with the first."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from bluesky_ptychonn.catalog.connection.connect import Address
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.results.client import PtychoReconstruction, reconstructions
from tests.support.results import make_sink, start_document

OLD = version("databroker").startswith("1.")
# Version 1 and what it is built on warn of themselves as soon as they are imported.
pytestmark = [pytest.mark.filterwarnings("ignore")] if OLD else []


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalog_server: CatalogServer) -> Iterator[str]:
    """A Tiled profile of the served catalog."""
    import tiled.profiles

    monkeypatch.setattr(tiled.profiles, "paths", [tmp_path / "profiles"])
    catalog_server.write_profile("ptychonn")
    yield "ptychonn"
    tiled.profiles.load_profiles.cache_clear()


@pytest.fixture(scope="module")
def made(catalog_server: CatalogServer) -> dict[str, dict[str, Any]]:
    """Three results, of three runs: key to start document."""
    words = uuid.uuid4().hex
    first = 10**6 + int(words[:5], 16)
    starts = [start_document(scan_id=first + i, time=1e9 + 100 * i, sample_name=f"star-{words}-{i}") for i in range(3)]
    return {make_sink(catalog_server, start).key: start for start in starts}


def test_databrokers_queries_are_true_of_results(catalog_server: CatalogServer, made: dict[str, Any]) -> None:
    from bluesky_tiled_plugins.queries import FullText, Key, PartialUID, ScanID, ScanIDRange, TimeRange

    keys, starts = list(made), list(made.values())

    def found(query: Any) -> list[str]:
        return [key for key in catalog_server.processed.search(query) if key in made]

    assert found(ScanID(starts[1]["scan_id"])) == [keys[1]]
    assert list(catalog_server.processed.search(ScanID(5_000_001))) == []
    assert found(ScanIDRange(starts[0]["scan_id"], starts[2]["scan_id"])) == keys[:2]
    assert found(PartialUID(starts[2]["uid"][:8])) == [keys[2]]
    assert found(TimeRange(since=1e9 + 50, until=1e9 + 150)) == [keys[1]]
    assert found(TimeRange(until=1e9 + 50)) == [keys[0]]
    assert found(FullText(starts[0]["sample_name"])) == [keys[0]]
    assert found(FullText(starts[0]["uid"])) == [keys[0]]
    assert found(Key("raw.scan_id") == starts[0]["scan_id"]) == [keys[0]]
    after = catalog_server.processed.search(TimeRange(since=1e9 + 50)).search(PartialUID(starts[0]["uid"]))
    assert list(after) == []
    plain = catalog_server.client.create_container(f"plain-{uuid.uuid4().hex[:6]}")
    plain.update_metadata(specs=["PtychoResults"])  # what the documentation says for containers of others
    assert list(catalog_server.client[plain.path_parts[-1]].search(ScanID(1))) == []
    with pytest.raises(ValueError, match="ScanID: one at a time, got 1, 2"):
        found(ScanID(1, 2))


def test_a_profile_leads_to_it_through_databroker(profiles: str, made: dict[str, Any]) -> None:
    import databroker
    from tiled.client import from_profile

    # databroker 1.2.5 has no way of its own to a Tiled profile; Tiled's, which BITS takes, leads to the same.
    catalog = (from_profile if OLD else databroker.from_profile)(profiles)
    try:
        key = next(iter(made))
        assert isinstance(catalog["processed"][key], PtychoReconstruction)
        assert [one.path_parts[-1] for one in reconstructions(catalog, raw=made[key]["uid"])] == [key]
    finally:
        catalog.context.close()


@pytest.mark.skipif(not OLD, reason="BITS is installed beside databroker 1.2.5 alone: make test-bits")
def test_what_bits_calls_the_catalog_is_taken(profiles: str, catalog_server: CatalogServer) -> None:
    import databroker
    from apsbits.core.catalog_init import init_catalog

    runs = init_catalog({"TILED_PROFILE_NAME": profiles, "TILED_PATH_NAME": "raw"})
    assert runs.path_parts[-1] == "raw"
    assert Address.from_catalog(runs).uri == catalog_server.uri
    runs.context.close()
    with pytest.raises(ValueError, match="BlueskyMsgpackCatalog is not a catalog; allowed: a server handle"):
        Address.from_catalog(databroker.temp().v2)

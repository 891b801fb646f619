"""How commands find what a user names."""

from __future__ import annotations

import uuid

import pytest

from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.cli.common.catalogs import find_reconstruction, run_key
from tests.support.results import make_sink

pytestmark = pytest.mark.system


def test_a_run_is_what_was_typed_but_for_the_latest() -> None:
    assert [run_key(which) for which in ("latest", "7", "123456", "12ab")] == [-1, "7", "123456", "12ab"]


def test_a_reconstruction_is_found_by_its_runs_scan_id(catalog_server: CatalogServer) -> None:
    def made(uid: str, scan_id: int) -> str:
        return str(make_sink(catalog_server, start={"uid": uid, "scan_id": scan_id, "time": 1.0}).key)

    def find(which: str) -> str:
        return str(find_reconstruction(catalog_server.client, which).path_parts[-1])

    digits = str(uuid.uuid4().int)
    first, second = digits[:9], digits[9:18]
    key, uid = made(f"x{uuid.uuid4()}", int(first)), f"{second}-{uuid.uuid4()}"
    by_uid = made(uid, 5)
    assert (find(first), find(second)) == (key, by_uid)
    run = f"y{uuid.uuid4()}"
    made(run, int(second))
    with pytest.raises(LookupError, match=f"'{second}' is the scan id of run {run} and the beginning of {uid}"):
        find(second)

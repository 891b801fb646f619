"""Catalogs that are laid out otherwise than ours: below the server's root, or on a server as it comes."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from bluesky_tiled_plugins import TiledWriter
from typer.testing import CliRunner

from bluesky_ptychonn.beamline.plans import ptycho_scan
from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.catalog.connection.connect import Address, connect, disconnect
from bluesky_ptychonn.catalog.connection.errors import CatalogRefusedError
from bluesky_ptychonn.catalog.connection.requests import why_silent
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.raw.writer import raw_writer
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.catalog.results.client import reconstructions
from bluesky_ptychonn.catalog.runs.run_list import RunList
from bluesky_ptychonn.catalog.runs.stored_documents import find_run
from bluesky_ptychonn.cli.app import app
from bluesky_ptychonn.live.batch.backfill import unfinished
from bluesky_ptychonn.live.batch.reconstruct import reconstruct
from bluesky_ptychonn.live.callback import LiveReconstruction
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.session import left_behind, new_session
from tests.support.results import make_sink, start_document

pytestmark = pytest.mark.system

PACE = Timing(flush_s=0.1, patience_s=2.0)


def scan(folder: Path) -> Any:
    beamline = SimulatedBeamline.demo(folder)
    return ptycho_scan([beamline.camera], beamline.stage.x, beamline.stage.y, 0.3, 0.3, 0.3, pattern="raster")


@pytest.fixture
def hxn(catalog_server: CatalogServer) -> Any:
    """A catalog below the root, as a facility's server has one for each beamline."""
    made = catalog_server.client.create_container(f"hxn-{uuid.uuid4().hex[:6]}")
    for name in ("raw", "processed"):
        made.create_container(name)
    return made


def address_of(client: Any, server: CatalogServer) -> str:
    return f"{client.uri}?api_key={server.api_key}"


# -- below the root


def test_all_that_is_made_stays_below_the_roots_container(
    hxn: Any, catalog_server: CatalogServer, RE: Any, detector_folder: Path, tmp_path: Path, small_model: Path
) -> None:
    keys, address = [hxn.path_parts[-1]], address_of(hxn, catalog_server)
    writer = raw_writer(hxn, tmp_path / "backup")
    with LiveReconstruction(small_model, hxn["raw"], worker="thread", journal_dir=tmp_path, pace=PACE) as live:
        RE.subscribe(writer)
        RE.subscribe(live)
        (uid,) = RE(scan(detector_folder))
        (ended,) = live.wait(uid)
        assert (ended.state, ended.done) == ("complete", 4), ended
        result = live.result(uid)
        assert live.settings.catalog == f"{catalog_server.uri}/metadata/{hxn.path_parts[-1]}"
    assert list(result.path_parts[:-1]) == [*keys, "processed"]
    assert result.raw.metadata["start"]["uid"] == uid
    assert result.path_parts[-1] not in catalog_server.processed
    assert writer.close()
    assert list(hxn["raw"]) == [uid]

    assert list(unfinished(address)) == []
    again = reconstruct(uid, small_model, address)
    assert again.path_parts[:-1] == [*keys, "processed"]
    assert len(reconstructions(address, raw=uid)) == 2
    Registry(address).publish(small_model)
    assert list(hxn["models"]) == ["tiny"]
    hxn["processed"].delete_contents(recursive=True, external_only=False)
    said = CliRunner().invoke(app, ["backfill", "--list", "--model", str(small_model), "--catalog", address]).output
    assert "has no reconstruction\n1 runs" in said, said
    disconnect(address)


def test_a_session_is_known_by_its_catalog_however_that_is_written(tmp_path: Path, small_model: Path) -> None:
    from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings

    folder = new_session(tmp_path)
    address = "http://localhost:1/api/v1/metadata/hxn/"
    ReconstructionSettings(model=str(small_model), catalog=address).save(folder)
    (folder / "run.jsonl").write_text("{}\n")
    for same in ("http://127.0.0.1:1/api/v1/metadata/hxn", "http://127.0.0.1:1/ui/browse/hxn/raw"):
        assert left_behind(tmp_path, Address.from_catalog(same).uri) == [folder]
    for other in ("http://127.0.0.1:1/api/v1", "http://127.0.0.1:1/api/v1/metadata/csx"):
        assert left_behind(tmp_path, Address.from_catalog(other).uri) == []


# -- what is no catalog


@pytest.fixture
def web_page() -> Iterator[str]:
    """A server of something else."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_no_catalog_is_refused_at_once(
    web_page: str, hxn: Any, catalog_server: CatalogServer, small_model: Path, tmp_path: Path
) -> None:
    key = f"?api_key={catalog_server.api_key}"
    for address, why in (
        (web_page, r"is no Tiled API \(it answered 200\); an address is http://HOST:PORT, or"),
        (f"{catalog_server.uri}/hxn{key}", r"is no Tiled API \(it answered 404\)"),
        (f"{catalog_server.uri}/metadata/nowhere{key}", "there is no container 'nowhere', or this key does not show"),
    ):
        with pytest.raises(ValueError, match=why):
            LiveReconstruction(small_model, address, journal_dir=tmp_path)
        with pytest.raises(ValueError, match=why):
            connect(address)
        with pytest.raises(ValueError, match=why):
            raw_writer(address, tmp_path / "backup")
    above = hxn.create_container("above")
    above.create_container("csx")
    pasted = f"{catalog_server.uri}/metadata/{hxn.path_parts[-1]}/above/NAME"
    cure = f"it has csx. Name the .* as in {pasted}, or"
    for given in (above, address_of(above, catalog_server)):
        with pytest.raises(ValueError, match=rf"above has neither raw/ nor runs of its own; {cure}"):
            LiveReconstruction(small_model, given, journal_dir=tmp_path)
    with pytest.raises(ValueError, match=r"no container 'rwa' for runs \(raw=\); it has raw, processed, above"):
        LiveReconstruction(small_model, hxn, journal_dir=tmp_path, raw="rwa")
    with pytest.raises(ValueError, match="no container 'rwa' for runs"):
        raw_writer(hxn, tmp_path / "backup", raw="rwa")
    assert list(tmp_path.glob("2*")) == []  # no session was begun


def test_a_catalog_without_runs_has_no_latest(hxn: Any) -> None:
    with pytest.raises(ValueError, match=r"no run -1: http.*/raw has 0 runs"):
        find_run(hxn, -1)


# -- a server as it comes


def test_two_lines_on_a_server_as_it_comes(
    catalog_server: CatalogServer, RE: Any, detector_folder: Path, tmp_path: Path, small_model: Path
) -> None:
    """Nobody made a container, so runs lie where TiledWriter puts them, and results beside them."""
    plain = catalog_server.client.create_container(f"plain-{uuid.uuid4().hex[:6]}")
    RE.subscribe(TiledWriter(plain, batch_size=1))
    with LiveReconstruction(small_model, plain, worker="thread", journal_dir=tmp_path, pace=PACE) as live:
        assert live.results == []
        (first,) = RE(scan(detector_folder))
        assert [(run.uid, run.reason) for run in unfinished(plain)] == [(first, "has no reconstruction")]
        assert reconstructions(plain) == []
        RE.subscribe(live)
        (uid,) = RE(scan(detector_folder))
        (ended,) = live.wait(uid)
        assert (ended.state, ended.done) == ("complete", 4), ended
        result = live.result(uid)
    assert list(result.path_parts[-2:-1]) == ["processed"]
    assert result.metadata["raw"]["container"] == ""
    assert result.raw.metadata["start"]["uid"] == uid
    made = reconstruct(-1, small_model, plain)  # processed/ lies beside the runs, and is none
    assert made.raw.metadata["start"]["uid"] == uid
    assert find_run(plain, uid[:8]).metadata["start"]["uid"] == uid
    assert [run.uid for run in unfinished(plain)] == [first]
    assert [run.uid for run in RunList(plain, "").page(most=2)] == [uid, first]


def test_the_place_of_results_is_made_or_who_may_make_it_is_said(catalog_server: CatalogServer, hxn: Any) -> None:
    hxn.delete_contents("processed")
    made = make_sink(catalog_server, root=hxn)
    assert list(hxn["processed"]) == [made.key]

    def answer(request: httpx.Request) -> httpx.Response:
        inside = request.url.path.endswith("/metadata/hxn/processed")
        words = "Requires scopes ['write:metadata', 'create:node']. Request had scopes ['write:metadata']"
        return httpx.Response(404 if inside else 403, json={"detail": words})

    context = SimpleNamespace(
        http_client=httpx.Client(transport=httpx.MockTransport(answer)), api_uri="http://x/api/v1/"
    )
    with pytest.raises(CatalogRefusedError, match=r"makes it once.*from_uri\('http://x/api/v1/metadata/hxn'\)") as said:
        make_sink(catalog_server, start_document(), root=SimpleNamespace(context=context, path_parts=["hxn"]))
    assert said.value.lacks == "this key lacks the scope 'create:node'"


SIMPLE = """
import sys
from tiled.server import SimpleTiledServer
server = SimpleTiledServer(port=int(sys.argv[1]), api_key="secret", readable_storage=[sys.argv[2]])
sys.stdin.read()
"""
SERVE = ["-m", "tiled", "serve", "catalog", "--temp", "--api-key", "secret"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiled serve catalog --temp", "SimpleTiledServer"])
def test_two_lines_on_tileds_own_servers(
    kind: str, RE: Any, detector_folder: Path, tmp_path: Path, small_model: Path
) -> None:
    """The same with the servers of Tiled's own documentation, a worker process, and the command line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, readable = str(free.getsockname()[1]), str(detector_folder)
    command = (
        ["-c", SIMPLE, port, readable] if kind == "SimpleTiledServer" else [*SERVE, "--port", port, "-r", readable]
    )
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}?api_key=secret"
    try:
        deadline = time.monotonic() + 120
        while why_silent(address, 1.0):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        writer = raw_writer(address, tmp_path / "backup")
        live = LiveReconstruction(small_model, address, journal_dir=tmp_path, pace=PACE)
        RE.subscribe(writer)
        RE.subscribe(live)
        (uid,) = RE(scan(detector_folder))
        (ended,) = live.wait(uid)
        assert (ended.state, ended.done) == ("complete", 4), ended
        assert live.result().raw.metadata["start"]["uid"] == uid
        live.close()
        assert writer.close()
        said = CliRunner().invoke(app, ["backfill", "--list", "--model", str(small_model), "--catalog", address]).output
        assert said == "every finished ptychography run has its reconstruction\n"
        disconnect(address)
    finally:
        server.terminate()
        server.communicate()

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.catalog.connection.server import CatalogServer, connect, serve_catalog


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A profile directory of the test's own."""
    import tiled.profiles

    folder = tmp_path / "profiles"
    monkeypatch.setattr(tiled.profiles, "paths", [tmp_path / "site", folder])
    tiled.profiles.load_profiles.cache_clear()
    yield folder
    tiled.profiles.load_profiles.cache_clear()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_containers_and_their_specs(catalog_server: CatalogServer) -> None:
    from bluesky_tiled_plugins.clients.catalog_of_bluesky_runs import CatalogOfBlueskyRuns

    assert list(catalog_server.client)[:3] == ["raw", "processed", "models"]
    assert [(spec.name, spec.version) for spec in catalog_server.raw.specs] == [("CatalogOfBlueskyRuns", "3.0")]
    assert isinstance(catalog_server.raw, CatalogOfBlueskyRuns)
    assert catalog_server.processed.path_parts[-1] == "processed"
    assert catalog_server.models.path_parts[-1] == "models"


def test_the_key_opens_and_shows_nowhere(catalog_server: CatalogServer) -> None:
    import httpx

    key = catalog_server.api_key
    assert len(key) == 64
    assert mode(catalog_server.folder / "api_key") == 0o600
    assert mode(catalog_server.folder / "server.json") == 0o600
    for shown in (repr(catalog_server), str(catalog_server), catalog_server.uri, repr(catalog_server.client)):
        assert key not in shown
    assert key not in (catalog_server.folder / "server.log").read_text()
    command = Path(f"/proc/{catalog_server.pid}/cmdline").read_bytes() if Path("/proc").is_dir() else b""
    assert key.encode() not in command
    search = f"{catalog_server.uri}/search/"
    assert httpx.get(search).status_code == 401
    assert httpx.get(search, headers={"Authorization": f"Apikey {'0' * 64}"}).status_code == 401
    assert httpx.get(search, headers={"Authorization": f"Apikey {key}"}).status_code == 200


def test_it_listens_on_loopback_only(catalog_server: CatalogServer) -> None:
    assert catalog_server.uri.startswith("http://127.0.0.1:")
    port = int(catalog_server.uri.split(":")[2].split("/")[0])
    with socket.socket() as other:
        other.settimeout(2)
        assert other.connect_ex((_address_of_this_machine(), port)) != 0


def _address_of_this_machine() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def test_a_folder_is_served_once(catalog_server: CatalogServer) -> None:
    with pytest.raises(RuntimeError, match=f"already served, at {catalog_server.uri}") as caught:
        serve_catalog(catalog_server.folder)
    assert catalog_server.api_key not in str(caught.value)
    assert catalog_server.running


def test_connect_takes_what_users_have(catalog_server: CatalogServer, profiles: Path) -> None:
    client = connect(catalog_server)
    assert connect(catalog_server) is client
    assert connect(catalog_server.folder) is client
    assert connect(catalog_server.uri, api_key=catalog_server.api_key) is client
    assert connect(f"{catalog_server.uri}?api_key={catalog_server.api_key}") is client
    assert connect(client) is client
    catalog_server.write_profile("here")
    by_name = connect("here")
    assert "processed" in by_name
    assert connect("here") is by_name
    by_name.context.close()


def test_connect_says_what_it_takes(tmp_path: Path, profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="no Tiled profile 'elsewhere'; there are: none; nor is there a folder of that n"
    ):
        connect("elsewhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beamtime").mkdir()
    with pytest.raises(ValueError, match=r"beamtime is a folder: give Path\('beamtime'\)"):
        connect("beamtime")
    with pytest.raises(ValueError, match="int is not a catalog; allowed: a server handle"):
        connect(3)
    with pytest.raises(ValueError, match="no catalog is served from here"):
        connect(tmp_path)


def test_profiles_are_written_when_asked_and_are_private(catalog_server: CatalogServer, profiles: Path) -> None:
    assert not profiles.exists()
    path = catalog_server.write_profile("ptychonn")
    assert path == profiles / "ptychonn.yml"
    assert mode(path) == 0o600
    assert catalog_server.write_profile("ptychonn") == path
    with pytest.raises(ValueError, match="'no good' is not usable; allowed: letters"):
        catalog_server.write_profile("no good")
    (profiles / "mine.yml").write_text("shared: {uri: 'http://localhost:1'}\n")
    with pytest.raises(ValueError, match=r"mine.yml already defines 'shared'"):
        catalog_server.write_profile("shared")


def test_databroker_finds_it_by_profile(catalog_server: CatalogServer, profiles: Path) -> None:
    import databroker

    catalog_server.write_profile("ptychonn")
    by_profile = databroker.from_profile("ptychonn")
    assert list(by_profile)[:3] == ["raw", "processed", "models"]
    by_profile.context.close()
    # `databroker.catalog` looks for profiles when it is first imported; this process may have done that long ago.
    code = "import databroker; c = databroker.catalog['ptychonn']; print(list(c)[:3]); c.context.close()"
    found = _python(code, TILED_PROFILES=str(profiles))
    assert found == "['raw', 'processed', 'models']"


def _python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return done.stdout.strip()


def test_runs_are_written_and_read_by_detector_files_too(
    catalog_server: CatalogServer, detector_folder: Path, RE: Any, tiled_writer: Any
) -> None:
    from bluesky.plans import count
    from ophyd.sim import SynSignal

    det = SynSignal(func=lambda: 1.0, name="det")
    (uid,) = RE(count([det], 3))
    run = catalog_server.raw[uid]
    assert run.stop["exit_status"] == "success"
    np.testing.assert_array_equal(run["primary"].read()["det"], [1.0, 1.0, 1.0])
    assert catalog_server.raw[-1].start["uid"] == uid
    assert _register(catalog_server, detector_folder / "frame.npy", "readable").read().tolist() == [1, 2, 3]


def test_files_elsewhere_are_not_served(
    catalog_server: CatalogServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx
    import tiled.client.utils

    monkeypatch.setattr(tiled.client.utils, "TILED_RETRY_ATTEMPTS", 1)

    with pytest.raises(httpx.HTTPError):
        _register(catalog_server, tmp_path / "frame.npy", "elsewhere").read()


def _register(server: CatalogServer, path: Path, key: str) -> Any:
    """Register an HDF5-like external file, as a detector's writer does."""
    from tiled.structures.array import ArrayStructure
    from tiled.structures.core import StructureFamily
    from tiled.structures.data_source import Asset, DataSource, Management

    data = np.array([1, 2, 3])
    np.save(path, data)
    source = DataSource(
        structure_family=StructureFamily.array,
        structure=ArrayStructure.from_array(data),
        mimetype="application/x-npy",
        management=Management.external,
        assets=[Asset(data_uri=path.as_uri(), is_directory=False, parameter="data_uri")],
    )
    return server.client.new(StructureFamily.array, [source], key=key)


def test_it_ends_with_its_owner(tmp_path: Path) -> None:
    """A session that is killed leaves no server behind; a Ctrl-C at its prompt does not reach the server."""
    code = f"""
        import os, signal
        from bluesky_ptychonn.catalog.connection.server import serve_catalog
        server = serve_catalog({str(tmp_path / "catalog")!r})
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.killpg(os.getpgrp(), signal.SIGINT)
        assert list(server.client) == ["raw", "processed", "models"]
        print(server.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    owner = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        start_new_session=True,
    )
    assert owner.returncode == -9, owner.stderr
    server = Path("/proc") / owner.stdout.strip()
    deadline = time.monotonic() + 30
    while server.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not server.exists()


@pytest.mark.slow
def test_a_server_that_was_killed_is_served_again_where_it_was(tmp_path: Path) -> None:
    """Where workers still look for it, with the key they have, that key private again, and with all that it took."""
    before = serve_catalog(tmp_path / "catalog")
    before.processed.create_container("kept", metadata={"status": "live"})
    before._process.kill()
    before._process.wait()
    assert "stopped" in repr(before)
    before.close()
    before.close()
    (tmp_path / "catalog" / "api_key").chmod(0o644)
    with serve_catalog(tmp_path / "catalog") as again:
        assert (again.uri, again.api_key) == (before.uri, before.api_key)
        assert mode(tmp_path / "catalog" / "api_key") == 0o600
        assert again.processed["kept"].metadata["status"] == "live"


def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="port 70000 is not a TCP port"):
        serve_catalog(tmp_path, port=70000)
    with pytest.raises(ValueError, match="letters and digits only"):
        serve_catalog(tmp_path, api_key="no-good")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"port {port} cannot be used: .*; give another, or 0"):
            serve_catalog(tmp_path, port=port)


def test_a_server_that_does_not_come_up_shows_its_log(tmp_path: Path) -> None:
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "data").write_text("in the way")
    with pytest.raises(RuntimeError, match=r"stopped. End of .*server.log:[\s\S]*File exists"):
        serve_catalog(folder)


def test_state_file_names_address_and_process(catalog_server: CatalogServer) -> None:
    state = json.loads((catalog_server.folder / "server.json").read_text())
    assert state == {"uri": catalog_server.uri, "pid": catalog_server.pid}


def test_documents_of_a_run_come_back(catalog_server: CatalogServer, RE: Any, tiled_writer: Any) -> None:
    from bluesky.plans import count
    from ophyd.sim import SynSignal

    sent: list[str] = []
    RE.subscribe(lambda name, doc: sent.append(name))
    (uid,) = RE(count([SynSignal(func=lambda: 2.0, name="det")], 3))
    documents = list(catalog_server.raw[uid].documents())
    assert [name for name, _ in documents] == sent == ["start", "descriptor", "event", "event", "event", "stop"]
    assert [doc["data"]["det"] for name, doc in documents if name == "event"] == [2.0] * 3
    assert documents[0][1]["uid"] == uid

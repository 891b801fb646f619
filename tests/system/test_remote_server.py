"""A remote server as docs/how-to/remote.md sets it up: TLS, users, and what one user has is no other's business."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from tiled.client.container import Container

from bluesky_ptychonn.catalog.connection.connect import connect, disconnect
from bluesky_ptychonn.catalog.connection.errors import CatalogRefusedError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.catalog.results.client import reconstructions
from bluesky_ptychonn.live.batch.reconstruct import reconstruct
from bluesky_ptychonn.live.callback import LiveReconstruction
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.testing import RunMaker
from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from tests.support.results import block_of, counts_of, make_sink, picture, start_document

pytestmark = [pytest.mark.system, pytest.mark.slow]

MODEL = "simulated-zp64"
READ = ("read:metadata", "read:data")
WRITE = (*READ, "create:node", "write:metadata", "write:data", "delete:node", "delete:revision")
PASSWORDS = {name: secrets.token_hex(8) for name in ("alice", "bob", "staff")}


class Remote:
    """The server, and keys of its users."""

    def __init__(self, uri: str, certificate: Path) -> None:
        self.uri = uri
        self.http = httpx.Client(verify=ssl.create_default_context(cafile=str(certificate)))

    def key(self, user: str, scopes: tuple[str, ...] = WRITE) -> str:
        """Log in and make a key with these scopes and no others."""
        said = {"username": user, "password": PASSWORDS[user]}
        token = self.http.post(f"{self.uri}/auth/provider/beamline/token", data=said).raise_for_status().json()
        bearer = {"Authorization": f"Bearer {token['access_token']}"}
        wanted = {"expires_in": 600, "scopes": list(scopes)}
        made = self.http.post(f"{self.uri}/auth/apikey", headers=bearer, json=wanted).raise_for_status()
        return str(made.json()["secret"])

    def wait(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + 120
        while True:
            try:
                self.http.get(f"{self.uri}/").raise_for_status()
            except httpx.HTTPError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
            else:
                return


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Remote]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    folder, examples = tmp_path_factory.mktemp("remote"), repository / "docs" / "how-to"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.pem")]
    subprocess.run(["openssl", "req", "-x509", "-days", "2", *curve, *names, *files], check=True, capture_output=True)
    prepare = [sys.executable, str(examples / "prepare_tiled.py"), str(folder), str(examples / "tags.yml")]
    subprocess.run(prepare, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **{f"{name.upper()}_PASSWORD": password for name, password in PASSWORDS.items()},
        "TILED_SERVER_SECRET": secrets.token_hex(32),
        "TILED_FOLDER": str(folder),
        "TILED_HOST": "127.0.0.1",
    }
    serve = ["-m", "tiled", "serve", "config", str(examples / "tiled.yml"), "--port", str(port)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([sys.executable, *serve], env=environment, stdout=log, stderr=log)
    made = Remote(f"https://localhost:{port}/api/v1", folder / "server.pem")
    try:
        made.wait()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(folder / "server.pem"))
            staff = TiledNode(connect(made.uri, made.key("staff", ("inherit",))))
            for name in ("raw", "processed", "models"):
                body = {"id": name, "structure_family": "container", "metadata": {}, "data_sources": [], "specs": []}
                staff._send("POST", "metadata", "", json={**body, "access_tags": ["everybody"]})
            disconnect(made.uri)  # another key would take its place without closing it
            yield made
        disconnect(made.uri)
    finally:
        made.http.close()
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def root(remote: Remote) -> Iterator[Callable[..., Any]]:
    """Client of a user's, with a key of the scopes given."""
    from tiled.client import from_uri

    opened: dict[Any, Any] = {}

    def client(user: str, scopes: tuple[str, ...] = WRITE) -> Any:
        if (user, scopes) not in opened:
            opened[user, scopes] = from_uri(remote.uri, api_key=remote.key(user, scopes))
        return opened[user, scopes]

    yield client
    for one in opened.values():
        one.context.close()


@pytest.fixture(scope="module")
def result(root: Any) -> tuple[str, dict[str, Any]]:
    """Key of a reconstruction of alice's, and the start document of its run."""
    start = start_document()
    sink = make_sink(None, start, root=root("alice"))  # type: ignore[arg-type]
    sink.write_block(block_of([1, 2]))
    sink.write_mosaic(picture(4, 4))
    sink.write_mosaic(picture(40, 40))  # outgrown: nodes are made and removed
    assert sink.finish("success", counts_of(2)) == "complete"
    return sink.key, start


def test_tls_is_verified(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiled.client.utils

    monkeypatch.setattr(tiled.client.utils, "TILED_RETRY_ATTEMPTS", 1)
    key = remote.key("alice")
    assert list(connect(remote.uri, key)) == ["raw", "processed", "models"]
    disconnect(remote.uri)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ConnectionError, match="certificate of https://localhost.* is not trusted here") as caught:
        connect(remote.uri, key)
    assert "SSL_CERT_FILE" in str(caught.value)
    assert key not in str(caught.value)


def test_a_second_user_neither_sees_nor_writes_a_reconstruction(root: Any, result: Any) -> None:
    alice, bob, staff = root("alice"), root("bob"), root("staff", ("inherit",))
    key, start = result
    assert [one.metadata["raw"]["uid"] for one in reconstructions(alice, raw=start["uid"])] == [start["uid"]]
    assert key in list(staff["processed"])
    assert list(bob["processed"]) == []
    assert reconstructions(bob) == []
    with pytest.raises(KeyError):
        bob["processed"][key]
    theirs = TiledNode(bob, ["processed", key])
    assert theirs.attributes() is None
    for write in (
        lambda: theirs.update({"status": "mine"}),
        lambda: theirs.put_array("phase", np.zeros((4, 4), np.float32)),
        lambda: theirs.create("more"),
    ):
        with pytest.raises(CatalogRefusedError, match=rf"{key}.* answered 404"):
            write()
    theirs.delete("")
    with pytest.raises(CatalogRefusedError, match="this key does not show it: another user's"):
        make_sink(None, start, root=bob, key=key)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no run '.*' in https://localhost"):
        reconstruct(start["uid"], MODEL, bob)
    assert TiledNode(alice, ["processed", key]).attributes()["metadata"]["status"] == "complete"  # type: ignore[index]


def test_a_result_stays_with_whom_it_is_shared(root: Any) -> None:
    """Tiled takes a merge of metadata that names no tags for one that removes them."""
    alice, staff = root("alice"), root("staff", ("inherit",))
    key = secrets.token_hex(8)
    assert TiledNode(staff, ["processed"]).create(key)
    staff["processed"][key].update_metadata(access_tags=["everybody"])
    TiledNode(staff, ["processed", key]).update({"note": "kept"})
    assert dict(alice["processed"][key].metadata)["note"] == "kept"


def test_a_second_user_neither_sees_nor_writes_a_model(root: Any) -> None:
    alice, bob = Registry(root("alice")), Registry(root("bob"))
    version = alice.publish(MODEL)
    alice.promote(MODEL, version, "the first")
    assert bob.list() == ()
    assert bob.decided(MODEL) is None
    for look in (
        lambda: bob.card(MODEL, version),
        lambda: bob.promote(MODEL, version, "mine"),
        lambda: bob.fetch(MODEL),
    ):
        with pytest.raises(ValueError, match="model 'simulated-zp64' is not in this catalog"):
            look()
    with pytest.raises(ValueError, match="that this key does not show, another's. Publish it under another name"):
        bob.publish(MODEL)
    assert alice.champion(MODEL) == version


def test_a_key_to_read_with_writes_nothing(root: Any, result: Any) -> None:
    reader, key = root("alice", READ), result[0]
    assert reader["processed"][key].metadata["status"] == "complete"
    with pytest.raises(CatalogRefusedError, match=r"answered 401.*Requires scopes \['write:metadata', 'create:node'\]"):
        make_sink(None, root=reader)  # type: ignore[arg-type]


def documents_of_a_scan(points: int = 4) -> tuple[RunMaker, list[tuple[str, dict[str, Any]]]]:
    """A run whose frames are in its events: to write one takes no more than a user may."""
    geometry = SimulatedExperiment.demo().geometry
    said = {"geometry": geometry.model_dump(mode="json"), "frame_key": "img", "x_key": "sx", "y_key": "sy"}
    run, rng = RunMaker("event", md={"ptychography": said}), np.random.default_rng(1)
    documents = [*run.open(points)]
    documents[1][1]["data_keys"]["img"]["shape"] = list(geometry.frame_shape)
    for seq_num in range(1, points + 1):
        frame = rng.poisson(20.0, geometry.frame_shape).astype(np.uint16)
        documents += run.point(seq_num, 0.0, 0.1 * seq_num, image=frame)
    return run, [*documents, *run.close()]


def test_a_second_user_neither_sees_nor_writes_a_live_reconstruction(
    remote: Remote, root: Any, small_model: Path, tmp_path: Path
) -> None:
    """The whole road with an ordinary user's key of the documented scopes: a worker process, over TLS."""
    alice, bob = root("alice"), root("bob")
    version = Registry(alice).publish(small_model)
    Registry(alice).promote("tiny", version, "the first")
    run, documents = documents_of_a_scan()
    writer = TiledWriter(alice["raw"], batch_size=1)
    with LiveReconstruction("tiny", alice, journal_dir=tmp_path, pace=Timing(flush_s=0.1)) as live:
        for name, doc in documents:
            writer(name, dict(doc))
            live(name, doc)
        (ended,) = live.wait(run.uid, 120)
        assert (ended.state, ended.done) == ("complete", 4), live.status
        result = live.result(run.uid)
    assert result.raw.metadata["start"]["uid"] == run.uid
    assert len(result.frames) == 4
    assert [name for name, _ in alice["raw"][run.uid].documents()][::6] == ["start", "stop"]
    key = result.path_parts[-1]
    for path in (("raw", run.uid), ("raw", run.uid, "primary"), ("processed", key), ("models", "tiny")):
        with pytest.raises(KeyError):
            Container.__getitem__(bob, path)
        assert TiledNode(bob, path).attributes() is None
        with pytest.raises(CatalogRefusedError, match="answered 404"):
            TiledNode(bob, path).update({"mine": True})
        assert TiledNode(alice, path).attributes() is not None
    for node in ("phase", "phase_patches"):
        with pytest.raises(CatalogRefusedError, match="answered 404"):
            TiledNode(bob, ("processed", key)).put_array(node, np.zeros((4, 4), np.float32))
    assert not {run.uid, key, "tiny"} & {*bob["raw"], *bob["processed"], *bob["models"]}
    with LiveReconstruction(
        small_model, bob, journal_dir=tmp_path, pace=Timing(patience_s=0.5, outage_s=1.0)
    ) as theirs:
        for name, doc in documents:  # of a run that bob may not see: no frame of it reaches what he makes
            theirs(name, doc)
        theirs.close()
        (ended,) = theirs.status.runs.values()
    assert ended.done == 0, ended
    assert ended.key is None or not TiledNode(bob, ("processed", ended.key)).attributes()["metadata"]["counts"].get(  # type: ignore[index]
        "reconstructed"
    )


@pytest.mark.parametrize(
    ("scopes", "words"),
    [
        (("read:metadata", "read:data"), "this key lacks the scopes 'write:metadata', 'create:node'"),
        (("read:metadata", "create:node", "write:metadata", "write:data"), "this key lacks the scope 'read:data'"),
    ],
)
def test_a_live_reconstruction_says_which_scope_its_key_lacks(
    root: Any, small_model: Path, tmp_path: Path, scopes: tuple[str, ...], words: str
) -> None:
    _, documents = documents_of_a_scan(1)
    writer = TiledWriter(root("alice")["raw"], batch_size=1)
    pace = Timing(flush_s=0.1, patience_s=0.5, outage_s=0.5)
    key = root("alice", scopes)
    with LiveReconstruction(small_model, key, worker="thread", journal_dir=tmp_path, pace=pace) as live:
        live.wait_ready(60)
        for name, doc in documents:
            writer(name, dict(doc))
            live(name, doc)
        end = time.monotonic() + 30
        while words not in repr(live) and time.monotonic() < end:
            time.sleep(0.1)
        assert words in repr(live)

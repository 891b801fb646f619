"""What runs in the server's process: Tiled on the loopback interface, until the owner is gone."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bluesky_ptychonn.catalog.connection import tiled_patches
from bluesky_ptychonn.catalog.connection.connect import (
    LOCK_FILE,
    STATE_FILE,
    read_key,
    running_uri,
)
from bluesky_ptychonn.catalog.connection.layout import SPECS
from bluesky_ptychonn.files import lock, write_json


def main() -> None:
    """Serve until the input ends: what `serve_catalog` runs in its child."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints goes to the log; the pipe carries one line
    line = os.fdopen(0, "rb", 0, closefd=False).readline()
    if not line.endswith(b"\n"):
        return
    settings = json.loads(line)

    def answer(**values: Any) -> None:
        report.write(json.dumps(values) + "\n")
        report.close()

    os.umask(0o077)  # databases and arrays are the owner's too, wherever the folder is
    folder = Path(settings["folder"])
    if lock(folder / LOCK_FILE) is None:  # two servers on one database would not see each other's streams
        answer(error=f"{folder} is already served, at {running_uri(folder)}: connect(Path({str(folder)!r})) reaches it")
        return
    try:
        listener = _listen(settings["port"], folder)
    except OSError as error:
        answer(error=f"port {settings['port']} cannot be used: {error.strerror}; give another, or 0 for any free one")
        return
    _serve(folder, settings, listener, answer)


def _listen(port: int, folder: Path) -> socket.socket:
    if port == 0:
        with contextlib.suppress(ValueError, KeyError, OSError):
            # Profiles and running workers know the old address: keep it where possible.
            return _bind(urlsplit(running_uri(folder)).port or 0)
    return _bind(port)


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        raise
    return listener


def _serve(folder: Path, settings: Mapping[str, Any], listener: socket.socket, answer: Any) -> None:
    (folder / "data").mkdir(exist_ok=True)  # before the imports: a folder that cannot be used is known at once
    import uvicorn

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    key = read_key(folder)
    app = _build_app(folder, settings, key)
    host, port = listener.getsockname()[:2]
    uri = f"http://{host}:{port}/api/v1"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                await _make_containers(app, key)
                # What the imports left, 340,000 objects, is not looked through again: 0.16 s each time.
                gc.collect()
                gc.freeze()
                write_json(folder / STATE_FILE, {"uri": uri, "pid": os.getpid()}, private=True)
                answer(uri=uri)

    server = Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=3))

    def stop_with_owner() -> None:
        while os.read(0, 4096):
            pass
        server.should_exit = True

    threading.Thread(target=stop_with_owner, daemon=True).start()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal may go while the owner lives on
    server.run(sockets=[listener])


def _build_app(folder: Path, settings: Mapping[str, Any], key: str) -> Any:
    # What Tiled imports at the first table and the first array: here no scan waits for it.
    import adbc_driver_sqlite.dbapi  # noqa: F401
    import tiled.adapters.sql
    import tiled.adapters.zarr  # noqa: F401
    from bluesky_tiled_plugins.exporters import json_seq_exporter
    from tiled.catalog import from_uri
    from tiled.commandline._catalog import init
    from tiled.config import Authentication, StreamingCacheConfig
    from tiled.media_type_registration import default_serialization_registry
    from tiled.server.app import build_app

    tiled_patches.check_where_paths_lead()
    tiled_patches.serve_frames_known()
    tiled_patches.make_arrays_anew()
    tiled_patches.draw_what_is_finite()
    tiled_patches.search_words_as_they_are()
    database = folder / "catalog.db"
    # In this process, before its event loop starts: Tiled's own `init_if_not_exists` starts a second interpreter for
    # it and pays the imports twice (11 s).
    init(f"sqlite+aiosqlite:///{database}", if_not_exists=True)
    catalog = from_uri(
        str(database),
        # SQLite: a second process may look into the tables; a DuckDB file is locked to the one that opened it.
        writable_storage=[str(folder / "data"), f"sqlite:///{folder / 'storage.db'}"],
        readable_storage=list(settings["readable"]),
        # One connection for all tables: Tiled sets no busy timeout, so of two requests that write at once one would
        # fail with "database is locked", and that one may be the scan's own TiledWriter.
        storage_pool_size=1,
        storage_max_overflow=0,
        cache_config=StreamingCacheConfig(uri="memory").model_dump() if settings["subscriptions"] else None,
    )
    # For `run.documents()`.
    default_serialization_registry.register("BlueskyRun", "application/json-seq", json_seq_exporter)
    app = build_app(catalog, authentication=Authentication(single_user_api_key=key), server_settings={})
    tiled_patches.analyse_dependencies_once(app)
    return app


async def _make_containers(app: Any, api_key: str) -> None:
    """Make the three containers where they are missing, through the app itself: no second client, no network."""
    import httpx

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://catalog",
        headers={"Authorization": f"Apikey {api_key}"},
    ) as client:
        for key, specs in SPECS.items():
            node = {"id": key, "structure_family": "container", "metadata": {}, "data_sources": [], "specs": specs}
            made = await client.post("/api/v1/metadata/", json=node)
            if made.status_code == httpx.codes.CONFLICT:  # it is there, and has no spec where an older version made it
                made = await client.get(f"/api/v1/metadata/{key}")
                if made.is_success and specs and not made.json()["data"]["attributes"]["specs"]:
                    now = {"content-type": "application/merge-patch+json", "metadata": {}, "specs": specs}
                    made = await client.patch(f"/api/v1/metadata/{key}", params={"drop_revision": "true"}, json=now)
            made.raise_for_status()

"""What runs in the server's process: Tiled on the loopback interface, until the owner is gone."""

from __future__ import annotations

import contextlib
import functools
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

from bluesky_ptychonn.catalog.connection.connect import (
    LOCK_FILE,
    MODELS,
    PROCESSED,
    RAW,
    STATE_FILE,
    read_key,
    running_uri,
)
from bluesky_ptychonn.files import lock, write_json


def main() -> None:
    """Serve until the input ends: what `serve_catalog` runs in its child."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints goes to the log; the pipe carries one line
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 4096)
        if not piece:
            return
        line += piece
    order = json.loads(line)

    def answer(**words: Any) -> None:
        report.write(json.dumps(words) + "\n")
        report.close()

    os.umask(0o077)  # databases and arrays are the owner's too, wherever the folder is
    folder = Path(order["folder"])
    if lock(folder / LOCK_FILE) is None:  # two servers on one database would not see each other's streams
        answer(error=f"{folder} is already served, at {running_uri(folder)}: connect(Path({str(folder)!r})) reaches it")
        return
    try:
        listener = _listen(order["port"], folder)
    except OSError as error:
        answer(error=f"port {order['port']} cannot be used: {error.strerror}; give another, or 0 for any free one")
        return
    _serve(folder, order, listener, answer)


def _listen(port: int, folder: Path) -> socket.socket:
    wanted = [port]
    if port == 0:
        with contextlib.suppress(ValueError, KeyError, OSError):
            # Profiles and running workers know the old address: keep it where possible.
            wanted.insert(0, urlsplit(running_uri(folder)).port or 0)
    for last, candidate in enumerate(wanted, start=1):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
        except OSError:
            listener.close()
            if last == len(wanted):
                raise
        else:
            return listener
    raise OSError(f"no port of {wanted} is free")


class _Settled(dict[Any, Any]):
    """Dependency overrides that FastAPI does not apply.

    Tiled overrides one dependency, `get_settings`, by a function that returns the very object `get_settings` returns
    after filling it in. While there are overrides FastAPI analyses the signature of every dependency again on every
    request, which is half of the time of a small request (measured: 34 to 19 ms). Tiled itself still looks its function
    up here.
    """

    def __bool__(self) -> bool:
        return False


def _keep_to_storage() -> None:
    """Have Tiled look at where a path leads, not at how it begins.

    Its own check (0.2.20) lets ``/readable/../secret`` pass, and links that lead out.
    """
    from tiled.catalog.adapter import CatalogNodeAdapter
    from tiled.utils import path_from_uri

    check = CatalogNodeAdapter._ensure_uri_within_readable_storage

    def check_where_it_leads(self: Any, data_uri: str) -> None:
        if urlsplit(data_uri).scheme == "file":
            data_uri = Path(os.path.realpath(path_from_uri(data_uri))).as_uri()
        check(self, data_uri)

    CatalogNodeAdapter._ensure_uri_within_readable_storage = check_where_it_leads


def _serve_what_is_known() -> None:
    """Have Tiled serve the frames it knows of a file that holds more of them already.

    Its own way (0.2.20) does so only where file and catalog have as many axes. areaDetector writes (frames, rows,
    columns), and what stock ophyd says of it is (events, 1, rows, columns): such a run cannot be read while the file is
    a frame ahead of the documents, and never again when it was aborted so.
    """
    from tiled.adapters import array
    from tiled.adapters.utils import DataNotReadyError

    reshape = array.force_reshape

    def reshape_what_is_known(data: Any, shape: tuple[int, ...]) -> Any:
        shape = tuple(shape)
        frame = [length for length in shape[1:] if length != 1]
        if data.ndim and shape and frame == [length for length in data.shape[1:] if length != 1]:
            if len(data) < shape[0]:
                raise DataNotReadyError(f"{shape[0]} frames are known and {len(data)} are in the file yet")
            data = data[: shape[0]]
        return reshape(data, shape)

    array.force_reshape = reshape_what_is_known


def _start_arrays_anew() -> None:
    """Have Tiled make a new array where an old one lies that its catalog knows nothing of.

    Its own way (0.2.20) is to fail, for ever: a server that was killed after it made an array and before the catalog
    had it, or after the catalog forgot one and before its files were gone, will never take data under that name again.
    When it makes the files the name is the new array's already, so whatever is there is nobody's.
    """
    from tiled.adapters import zarr

    zarr.create_array = functools.partial(zarr.create_array, overwrite=True)


def _serve(folder: Path, order: Mapping[str, Any], listener: socket.socket, answer: Any) -> None:
    (folder / "data").mkdir(exist_ok=True)  # before the imports: a folder that cannot be used is known at once

    # What Tiled imports at the first table and the first array: here no scan waits for it.
    import adbc_driver_sqlite.dbapi  # noqa: F401
    import tiled.adapters.sql
    import tiled.adapters.zarr  # noqa: F401
    import uvicorn
    from tiled.catalog import from_uri
    from tiled.commandline._catalog import init
    from tiled.config import Authentication, StreamingCacheConfig
    from tiled.server.app import build_app
    from tiled.server.settings import get_settings

    _keep_to_storage()
    _serve_what_is_known()
    _start_arrays_anew()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    database = folder / "catalog.db"
    # In this process, before its event loop starts: Tiled's own `init_if_not_exists` starts a second interpreter for
    # it and pays the imports twice (11 s).
    init(f"sqlite+aiosqlite:///{database}", if_not_exists=True)
    catalog = from_uri(
        str(database),
        # SQLite: a second process may look into the tables; a DuckDB file is locked to the one that opened it.
        writable_storage=[str(folder / "data"), f"sqlite:///{folder / 'storage.db'}"],
        readable_storage=list(order["readable"]),
        # One connection for all tables: Tiled sets no busy timeout, so of two requests that write at once one would
        # fail with "database is locked", and that one may be the scan's own TiledWriter.
        storage_pool_size=1,
        storage_max_overflow=0,
        cache_config=StreamingCacheConfig(uri="memory").model_dump() if order["subscriptions"] else None,
    )
    app = build_app(catalog, authentication=Authentication(single_user_api_key=read_key(folder)), server_settings={})
    app.dependency_overrides[get_settings]()
    app.dependency_overrides = _Settled(app.dependency_overrides)
    host, port = listener.getsockname()[:2]
    uri = f"http://{host}:{port}/api/v1"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                await _make_containers(app, read_key(folder))
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


async def _make_containers(app: Any, api_key: str) -> None:
    """Make the three containers where they are missing, through the app itself: no second client, no network."""
    import httpx

    specs = {RAW: [{"name": "CatalogOfBlueskyRuns", "version": "3.0"}], PROCESSED: [], MODELS: []}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://catalog",
        headers={"Authorization": f"Apikey {api_key}"},
    ) as client:
        for key, spec in specs.items():
            found = await client.get(f"/api/v1/metadata/{key}")
            if found.status_code == httpx.codes.NOT_FOUND:
                node = {"id": key, "structure_family": "container", "metadata": {}, "data_sources": [], "specs": spec}
                (await client.post("/api/v1/metadata/", json=node)).raise_for_status()
            else:
                found.raise_for_status()

"""The catalog of one machine: a durable Tiled server, started in one call, and the way to connect to any.

The server is a child process: it shares no interpreter with the scan, so its requests never hold up the
RunEngine, and Ctrl-C at the prompt does not reach it. It ends when its owner closes it or dies.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

RAW, PROCESSED, MODELS = "raw", "processed", "models"
START_TIMEOUT_S = 180.0  # importing Tiled takes 8 s of CPU; on a busy two-core machine it was seen to take 60 s
STOP_TIMEOUT_S = 10.0

_KEY_FILE = "api_key"
_STATE_FILE = "server.json"
_LOG_FILE = "server.log"
_LOCK_FILE = "server.lock"


class CatalogServer:
    """A running catalog. Made by `serve_catalog`, a context manager, closed by `close`.

    Attributes
    ----------
    folder : Path
        Where everything lies: databases, arrays, key, log.
    uri : str
        Address without the key, for `connect`.
    """

    def __init__(self, folder: Path, uri: str, process: subprocess.Popen[bytes], start_s: float) -> None:
        self.folder = folder
        self.uri = uri
        self.start_s = start_s
        self._process = process
        self._closed = False

    @property
    def api_key(self) -> str:
        """The key that opens this catalog; kept out of every repr and log."""
        return _read_key(self.folder)

    @property
    def client(self) -> Any:
        """Tiled client of the catalog's root."""
        return connect(self)

    @property
    def raw(self) -> Any:
        """Tiled client of the raw runs; hand it to ``TiledWriter``."""
        return self.client[RAW]

    @property
    def processed(self) -> Any:
        """Tiled client of the reconstructions."""
        return self.client[PROCESSED]

    @property
    def models(self) -> Any:
        """Tiled client of the stored models."""
        return self.client[MODELS]

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's process is alive."""
        return self._process.poll() is None

    def write_profile(self, name: str) -> Path:
        """Make this catalog known as ``databroker.from_profile(name)`` and ``databroker.catalog[name]``.

        The file holds the key and is readable by its owner only.

        Parameters
        ----------
        name : str
            Profile name, letters, digits, ``-`` and ``_``.

        Returns
        -------
        Path
            The file written, in the user's Tiled profile directory.

        Raises
        ------
        ValueError
            When the name is not usable, or another file already defines it.
        """
        return _write_profile(name, self.uri, self.api_key)

    def close(self) -> None:
        """Stop the server; what was written stays in the folder. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        _, client = _connections.pop(self.uri, (None, None))
        if client is not None:
            client.context.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()  # the child takes the end of its input as the word to stop
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> CatalogServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<CatalogServer {self.uri} {state}, folder {str(self.folder)!r}>"


def serve_catalog(
    folder: str | Path,
    *,
    port: int = 0,
    readable: Sequence[str | Path] = (),
    api_key: str | None = None,
    profile: str | None = None,
    subscriptions: bool = False,
) -> CatalogServer:
    """Serve the catalog in `folder` on this machine, making it where it does not exist.

    Holds ``raw/`` (Bluesky runs), ``processed/`` (reconstructions) and ``models/``. A second call after
    `CatalogServer.close`, or after a crash, serves the old data again, at the old address where it is still free.

    Parameters
    ----------
    folder : path
        Where the databases and arrays lie.
    port : int
        TCP port on the loopback interface; 0 takes the port used last time where it is free, else any.
    readable : sequence of path
        Folders the server may read external files from: where the detector writes its HDF5 files.
    api_key : str, optional
        Key to use; by default the one stored in the folder, made at random the first time.
    profile : str, optional
        Also `CatalogServer.write_profile` under this name.
    subscriptions : bool
        Keep the last hour of writes in the server's memory for Tiled subscriptions. Costs that memory.

    Raises
    ------
    ValueError
        When a parameter cannot be used.
    RuntimeError
        When the folder is already served, or the server does not come up: with the end of its log.

    Examples
    --------
    >>> with serve_catalog("/tmp/beamtime", readable=["/tmp/frames"]) as server:  # doctest: +SKIP
    ...     RE.subscribe(TiledWriter(server.raw, batch_size=1))
    """
    started = time.perf_counter()
    if not 0 <= port <= 65535:
        raise ValueError(f"serve_catalog: port {port} is not a TCP port; allowed: 0 (any) to 65535")
    folder = Path(folder).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _store_key(folder, api_key)
    order = {
        "folder": str(folder),
        "port": port,
        "readable": [str(Path(path).expanduser().resolve()) for path in readable],
        "subscriptions": subscriptions,
    }
    with (folder / _LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from bluesky_ptychonn.stream.server import _main; _main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=_child_environment(),
            start_new_session=True,  # Ctrl-C at the prompt pauses the plan and must not stop the catalog
        )
    try:
        answer = _ask(process, order, folder)
    except BaseException:
        process.kill()
        process.communicate()  # waits, and closes the pipes
        raise
    server = CatalogServer(folder, answer["uri"], process, time.perf_counter() - started)
    try:
        if profile is not None:
            server.write_profile(profile)
    except BaseException:
        server.close()
        raise
    return server


def connect(catalog: Any, api_key: str | None = None) -> Any:
    """Tiled client of a catalog's root, however it is named; the same client for the same name.

    Parameters
    ----------
    catalog : CatalogServer, path, str, or Tiled client
        A server handle, the folder of a running one, an ``http(s)://`` address, a Tiled profile name, or a client,
        which is returned as it is.
    api_key : str, optional
        Key for an address; by default the one in the address, else what Tiled finds in ``TILED_API_KEY``.

    Raises
    ------
    ValueError
        When the name is neither of these: with the profiles there are.
    """
    if isinstance(catalog, CatalogServer):
        return _connection(catalog.uri, api_key or catalog.api_key)
    if isinstance(catalog, Path):
        return _connection(_running_uri(catalog), api_key or _read_key(catalog))
    if not isinstance(catalog, str):
        if hasattr(catalog, "context") and hasattr(catalog, "metadata"):
            return catalog
        raise ValueError(
            f"connect: {type(catalog).__name__} is not a catalog; allowed: a server handle, its folder as a Path, "
            "an http(s):// address, a Tiled profile name, a Tiled client"
        )
    if catalog.startswith(("http://", "https://")):
        parts = urlsplit(catalog)
        found = parse_qs(parts.query).get("api_key", [None])[0]
        return _connection(urlunsplit(parts._replace(query="")), api_key or found)
    return _profile_connection(catalog)


_connections: dict[str, tuple[str | None, Any]] = {}


def _connection(uri: str, api_key: str | None) -> Any:
    known = _connections.get(uri)
    if known is None or known[0] != api_key:
        from tiled.client import from_uri

        known = _connections[uri] = (api_key, from_uri(uri, api_key=api_key))
    return known[1]


@functools.lru_cache(maxsize=8)
def _profile_client(name: str, uri: str) -> Any:
    from tiled.client import from_profile

    return from_profile(name)


def _profile_connection(name: str) -> Any:
    from tiled.profiles import list_profiles, load_profiles

    load_profiles.cache_clear()  # Tiled reads the files once a process; ours may have been written since
    known = load_profiles()
    if name not in known:
        raise ValueError(
            f"connect: no Tiled profile {name!r}; there are: {', '.join(sorted(list_profiles())) or 'none'}. "
            "Give an http(s):// address, or make one with serve_catalog(..., profile=...)"
        )
    return _profile_client(name, str(known[name][1].get("uri")))


def _write_profile(name: str, uri: str, api_key: str) -> Path:
    import yaml
    from tiled.profiles import list_profiles, load_profiles, paths

    if not name or not all(c.isalnum() or c in "-_" for c in name):
        raise ValueError(f"write_profile: {name!r} is not usable; allowed: letters, digits, '-' and '_'")
    target = Path(paths[-1]) / f"{name}.yml"
    holder = list_profiles().get(name)
    if holder is not None and Path(holder).parent == target.parent and Path(holder) != target:
        raise ValueError(f"write_profile: {holder} already defines {name!r}; choose another name or remove it there")
    target.parent.mkdir(parents=True, exist_ok=True)
    # The one way a profile can carry a key; Tiled's client takes it off the address and sends it as a header.
    _write_private(target, yaml.safe_dump({name: {"uri": f"{uri}?api_key={api_key}"}}))
    load_profiles.cache_clear()
    return target


def _write_private(path: Path, text: str) -> None:
    """Replace a file by one that its owner alone can read, in one step."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def _read_key(folder: Path) -> str:
    try:
        return (Path(folder) / _KEY_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise ValueError(f"{folder}: no catalog is here (no {_KEY_FILE} file); make one with serve_catalog") from None


def _store_key(folder: Path, api_key: str | None) -> None:
    path = folder / _KEY_FILE
    if api_key is None and path.exists():
        path.chmod(0o600)
        return
    key = api_key or secrets.token_hex(32)
    if not key.isalnum():
        # Tiled refuses other characters when the server starts, in a long traceback.
        raise ValueError("serve_catalog: api_key may hold letters and digits only")
    _write_private(path, key)


def _running_uri(folder: Path) -> str:
    try:
        state = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
        return str(state["uri"])
    except FileNotFoundError:
        raise ValueError(f"{folder}: no catalog is served from here; start one with serve_catalog") from None


def _child_environment() -> dict[str, str]:
    """Environment of the server: no credentials meant for another one, and one thread for its arithmetic."""
    dropped = ("TILED_API_KEY", "TILED_SINGLE_USER_API_KEY")
    return {k: v for k, v in os.environ.items() if k not in dropped} | {"OMP_NUM_THREADS": "1"}


def _ask(process: subprocess.Popen[bytes], order: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Send the order down the child's input and wait for the one line it answers with."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("serve_catalog: the server's process has no pipes")
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()
    ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
    line = process.stdout.readline() if ready else b""
    if not line:
        why = "stopped" if ready else f"did not answer within {START_TIMEOUT_S:g} s"
        tail = (folder / _LOG_FILE).read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"serve_catalog: the server of {folder} {why}. End of {folder / _LOG_FILE}:\n{tail}")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise RuntimeError(f"serve_catalog: {answer['error']}")
    process.stdout.close()
    return answer


# --- in the child ---------------------------------------------------------------------------------------------------


def _main() -> None:
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

    folder = Path(order["folder"])
    lock = _lock(folder)
    if lock is None:
        answer(
            error=f"{folder} is already served, at {_running_uri(folder)}: connect(Path({str(folder)!r})) reaches it"
        )
        return
    try:
        listener = _listen(order["port"], folder)
    except OSError as error:
        answer(error=f"port {order['port']} cannot be used: {error.strerror}; give another, or 0 for any free one")
        return
    _serve(folder, order, listener, answer)


def _lock(folder: Path) -> Any:
    """Hold the folder for this process, or None: two servers on one database would not see each other's streams."""
    import fcntl

    lock = (folder / _LOCK_FILE).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _listen(port: int, folder: Path) -> socket.socket:
    wanted = [port]
    if port == 0:
        with contextlib.suppress(ValueError, KeyError, OSError):
            # Profiles and running workers know the old address: keep it where possible.
            wanted.insert(0, urlsplit(_running_uri(folder)).port or 0)
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


def _serve(folder: Path, order: Mapping[str, Any], listener: socket.socket, answer: Any) -> None:
    (folder / "data").mkdir(exist_ok=True)  # before the imports: a folder that cannot be used is known at once

    import uvicorn
    from tiled.catalog import from_uri
    from tiled.commandline._catalog import init
    from tiled.config import Authentication, StreamingCacheConfig
    from tiled.server.app import build_app
    from tiled.server.settings import get_settings

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
    app = build_app(catalog, authentication=Authentication(single_user_api_key=_read_key(folder)), server_settings={})
    app.dependency_overrides[get_settings]()
    app.dependency_overrides = _Settled(app.dependency_overrides)
    host, port = listener.getsockname()[:2]
    uri = f"http://{host}:{port}/api/v1"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                await _make_containers(app, _read_key(folder))
                _write_private(folder / _STATE_FILE, json.dumps({"uri": uri, "pid": os.getpid()}))
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

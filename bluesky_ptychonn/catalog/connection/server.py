"""The catalog of one machine: a durable Tiled server, started in one call.

The server is a child process: it shares no interpreter with the scan, so its requests never hold up the
RunEngine, and Ctrl-C at the prompt does not reach it. It ends when its owner closes it or dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bluesky_ptychonn.catalog.connection.connect import (
    KEY_FILE,
    MODELS,
    PROCESSED,
    RAW,
    connect,
    disconnect,
    read_key,
    write_profile,
)
from bluesky_ptychonn.files import write_whole

__all__ = ["MODELS", "PROCESSED", "RAW", "CatalogServer", "connect", "serve_catalog"]

START_TIMEOUT_S = 180.0  # importing Tiled takes 8 s of CPU; on a busy two-core machine it was seen to take 60 s
STOP_TIMEOUT_S = 10.0

_LOG_FILE = "server.log"


class CatalogServer:
    """A running catalog. Made by `serve_catalog`, a context manager, closed by `close`.

    Attributes
    ----------
    folder : Path
        Where everything lies: databases, arrays, key, log.
    uri : str
        Address without the key, for `connect`.
    """

    def __init__(self, folder: Path, uri: str, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.uri = uri
        self._process = process
        self._closed = False

    @property
    def api_key(self) -> str:
        """The key that opens this catalog; kept out of every repr and log."""
        return read_key(self.folder)

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
        """Make this catalog known as ``tiled.client.from_profile(name)``, and to databroker 2 under the same name.

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
        return write_profile(name, self.uri, self.api_key)

    def close(self) -> None:
        """Stop the server; what was written stays in the folder. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        disconnect(self.uri)
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

    def __exit__(self, *_: object) -> None:
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
    >>> with serve_catalog("beamtime", readable=["frames"]) as server:  # doctest: +SKIP
    ...     RE.subscribe(TiledWriter(server.raw, batch_size=1))
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"serve_catalog: port {port} is not a TCP port; allowed: 0 (any) to 65535")
    folder = Path(folder).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _store_key(folder, api_key)
    settings = {
        "folder": str(folder),
        "port": port,
        "readable": [str(Path(path).expanduser().resolve()) for path in readable],
        "subscriptions": subscriptions,
    }
    # No credentials meant for another server.
    dropped = ("TILED_API_KEY", "TILED_SINGLE_USER_API_KEY")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    log_file = os.open(folder / _LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(log_file, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from bluesky_ptychonn.catalog.connection.server_process import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=environment | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C at the prompt pauses the plan and must not stop the catalog
        )
    try:
        answer = _ask(process, settings, folder)
    except BaseException:
        process.kill()
        process.communicate()  # waits, and closes the pipes
        raise
    server = CatalogServer(folder, answer["uri"], process)
    try:
        if profile is not None:
            server.write_profile(profile)
    except BaseException:
        server.close()
        raise
    return server


def _store_key(folder: Path, api_key: str | None) -> None:
    path = folder / KEY_FILE
    if api_key is None and path.exists():
        path.chmod(0o600)
        return
    key = api_key or secrets.token_hex(32)
    if not key.isalnum():
        # Tiled refuses other characters when the server starts, in a long traceback.
        raise ValueError("serve_catalog: api_key may hold letters and digits only")
    write_whole(path, key.encode(), private=True)


def _ask(process: subprocess.Popen[bytes], settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Send the settings down the child's input and wait for the one line it answers with."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("serve_catalog: the server's process has no pipes")
    process.stdin.write(json.dumps(settings).encode() + b"\n")
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

"""The way to a catalog, however a user names it; and where a served folder keeps its address and key."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluesky_ptychonn.catalog.connection.address import (
    MODELS,
    PROCESSED,
    RAW,
    catalog_keys,
    is_address,
    join_address,
    split_address,
    split_key,
)
from bluesky_ptychonn.catalog.connection.errors import is_untrusted
from bluesky_ptychonn.catalog.connection.layout import check_address, uri_of
from bluesky_ptychonn.catalog.connection.requests import IN_PROCESS, reason
from bluesky_ptychonn.files import read_json, write_whole

__all__ = ["MODELS", "PROCESSED", "RAW", "Address", "connect", "connect_catalog"]

_INSIDE = ("BlueskyRun", "PtychoReconstruction", "PtychoLabel", "PtychoModel")  # specs of what lies in a container
KEY_FILE = "api_key"
STATE_FILE = "server.json"
LOCK_FILE = "server.lock"


def connect(catalog: Any, api_key: str | None = None) -> Any:
    """Tiled client of a catalog, however it is named; the same client for the same name.

    Parameters
    ----------
    catalog : CatalogServer, path, str, or Tiled client
        A server handle, the folder of a running one, an ``http(s)://`` address, a Tiled profile name, or a client,
        which is returned as it is. An address may be of a container: ``http://HOST:PORT/api/v1/metadata/NAME``.
    api_key : str, optional
        Key for an address; by default the one in the address, else what Tiled finds in ``TILED_API_KEY``.

    Raises
    ------
    ValueError
        When the name is neither of these: with the profiles there are. When the address is no Tiled API, or there is no
        such container.
    ConnectionError
        When the server's certificate is not trusted here.
    """
    if hasattr(catalog, "uri") and hasattr(catalog, "api_key"):
        return _connection(catalog.uri, api_key or catalog.api_key)
    if isinstance(catalog, Path):
        return _connection(running_uri(catalog), api_key or read_key(catalog))
    if not isinstance(catalog, str):
        if hasattr(catalog, "context") and hasattr(catalog, "metadata"):
            return catalog
        raise ValueError(
            f"connect: {type(catalog).__name__} is not a catalog; allowed: a server handle, its folder as a Path, "
            "an http(s):// address, a Tiled profile name, a Tiled client"
        )
    return _connection(catalog, api_key) if is_address(catalog) else _profile_connection(catalog)


def connect_catalog(catalog: Any, api_key: str | None = None) -> Any:
    """As `connect`, and always of the container in which ``raw``, ``processed`` and ``models`` are.

    Each of these, and a run or a result, stands for the catalog it is in.
    """
    client = connect(catalog, api_key)
    given = [key for key in client.path_parts if key]
    inside = any(spec.name in _INSIDE for spec in getattr(client, "specs", None) or ())
    keys = catalog_keys(given[:-1] if inside else given)
    return client if keys == given else _client_of(client.context, keys)


def _client_of(context: Any, keys: list[str]) -> Any:
    from tiled.client import from_context

    return from_context(context, node_path_parts=keys)


_connections: dict[str, tuple[str | None, Any]] = {}


def _connection(address: str, api_key: str | None) -> Any:
    uri, found = split_key(address)
    uri, api_key = join_address(*split_address(uri)), api_key or found
    known = _connections.get(uri)
    if known is None or known[0] != api_key:
        import httpx
        from tiled.client import from_uri

        check_address(uri, api_key or os.environ.get("TILED_API_KEY"), raw="")
        try:
            known = _connections[uri] = (api_key, from_uri(uri, api_key=api_key))
        except httpx.ConnectError as error:
            if not is_untrusted(error):
                raise
            raise ConnectionError(f"connect: {reason(uri, error)}") from None
    return known[1]


def disconnect(uri: str) -> None:
    """Close the connection that `connect` keeps to an address, if any."""
    _, client = _connections.pop(join_address(*split_address(uri)), (None, None))
    if client is not None:
        client.context.close()


@functools.lru_cache(maxsize=8)
def _profile_client(name: str, uri: str) -> Any:
    from tiled.client import from_profile

    return from_profile(name)


def _profile_connection(name: str) -> Any:
    from tiled.profiles import list_profiles, load_profiles

    load_profiles.cache_clear()  # Tiled reads the files once a process; ours may have been written since
    known = load_profiles()
    if name not in known:
        here = (
            f"{name} is a folder: give Path({name!r})" if Path(name).is_dir() else "nor is there a folder of that name"
        )
        raise ValueError(
            f"connect: no Tiled profile {name!r}; there are: {', '.join(sorted(list_profiles())) or 'none'}; {here}. "
            "Give an http(s):// address, or make a profile with serve_catalog(..., profile=...)"
        )
    uri = str(known[name][1].get("uri"))
    check_address(uri, known[name][1].get("api_key") or split_key(uri)[1] or os.environ.get("TILED_API_KEY"), raw="")
    return _profile_client(name, uri)


@dataclass(frozen=True, repr=False)
class Address:
    """Where a catalog is, so that another process can reach it too; the key is kept out of every repr."""

    uri: str  # of the container in which raw, processed and models are
    api_key: str | None
    given: Any  # what it was made of

    @classmethod
    def from_catalog(cls, catalog: Any) -> Address:
        """Address of whatever `connect` takes; ValueError when it does not."""
        # Not connected to here: a catalog that is away now may be back when the first scan begins.
        if hasattr(catalog, "uri") and hasattr(catalog, "api_key"):
            return cls(_catalog_address(catalog.uri), catalog.api_key, catalog)
        if is_address(catalog):
            return cls(_catalog_address(catalog), split_key(catalog)[1] or os.environ.get("TILED_API_KEY"), catalog)
        client = connect_catalog(catalog)
        return cls(uri_of(client), client.context.api_key, client)

    def check(self, raw: str | None = None) -> None:
        """Refuse what answers and is no catalog with a place for runs, see `check_address`."""
        check_address(self.uri, self.api_key, raw)

    @property
    def client(self) -> Any:
        """Tiled client of the catalog's container."""
        client = connect(self.uri, self.api_key) if isinstance(self.given, str) else connect(self.given)
        keys = split_address(self.uri)[1]
        if client is not self.given and keys == [key for key in client.path_parts if key]:
            return client
        return _client_of(client.context, keys)  # a user's own may be searched already, or of another kind

    @property
    def in_process(self) -> bool:
        """Whether the server is an app inside this process."""
        return IN_PROCESS in self.uri


def _catalog_address(address: str) -> str:
    api, keys = split_address(address)
    return join_address(api, catalog_keys(keys))


def write_profile(name: str, uri: str, api_key: str) -> Path:
    """Write a Tiled profile that its owner alone can read; see `CatalogServer.write_profile`."""
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
    write_whole(target, yaml.safe_dump({name: {"uri": f"{uri}?api_key={api_key}"}}).encode(), private=True)
    load_profiles.cache_clear()
    return target


def read_key(folder: Path) -> str:
    """Key of the catalog in a folder; ValueError when there is none."""
    try:
        return (Path(folder) / KEY_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise ValueError(f"{folder}: no catalog is here (no {KEY_FILE} file); make one with serve_catalog") from None


def running_uri(folder: Path) -> str:
    """Address that the folder is served at, or was last; ValueError when it never was."""
    state = read_json(folder / STATE_FILE)
    if state is None:
        raise ValueError(f"{folder}: no catalog is served from here; start one with serve_catalog")
    return str(state["uri"])

"""What addresses of catalogs say: the server, the container on it, the key; nothing here connects."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit, urlunsplit

RAW, PROCESSED, MODELS = "raw", "processed", "models"

_API, _METADATA, _PAGE = "/api/v1", "/metadata", "/ui/browse"
_PORTS = {"http": 80, "https": 443}
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def is_address(catalog: object) -> bool:
    """Whether a catalog is named by its address."""
    return isinstance(catalog, str) and catalog.startswith(("http://", "https://"))


def split_key(address: str) -> tuple[str, str | None]:
    """Take the key off an address that has one."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(query="", fragment="")), parse_qs(parts.query).get("api_key", [None])[0]


def split_address(address: str) -> tuple[str, list[str]]:
    """Split an address into that of the server's Tiled API and the keys of the container from there.

    Taken are the forms that Tiled's client takes, and that of a page in Tiled's own browser.

    Examples
    --------
    >>> split_address("http://127.0.0.1:8000")
    ('http://127.0.0.1:8000/api/v1', [])
    >>> split_address("https://tiled.example.org/api/v1/metadata/hxn/raw/")
    ('https://tiled.example.org/api/v1', ['hxn', 'raw'])
    >>> split_address("https://tiled.example.org/ui/browse/hxn")
    ('https://tiled.example.org/api/v1', ['hxn'])
    """
    parts = urlsplit(split_key(address)[0])
    path, keys = parts.path, ""
    for mark in (_METADATA, _PAGE):
        path, found, rest = path.partition(mark)
        keys = rest if found else keys
    api = path.rstrip("/").removesuffix(_API).removesuffix("/api") + _API
    return urlunsplit(parts._replace(path=api)), [key for key in keys.split("/") if key]


def join_address(api: str, keys: Sequence[str]) -> str:
    """Address of a container, from those that `split_address` gives.

    Examples
    --------
    >>> join_address("http://127.0.0.1:8000/api/v1/", ["hxn"])
    'http://127.0.0.1:8000/api/v1/metadata/hxn'
    >>> join_address("http://127.0.0.1:8000/api/v1/", [])
    'http://127.0.0.1:8000/api/v1'
    """
    return "/".join([api.rstrip("/") + (_METADATA if keys else ""), *keys])


def catalog_keys(keys: Sequence[str]) -> list[str]:
    """Keys of the catalog that a container belongs to: the one above, where runs, results or models were named.

    Examples
    --------
    >>> catalog_keys(["hxn", "raw"]), catalog_keys(["hxn"]), catalog_keys([""])
    (['hxn'], ['hxn'], [])
    """
    found = [key for key in keys if key]
    return found[:-1] if found and found[-1] in (RAW, PROCESSED, MODELS) else found


def is_same_catalog(one: str, other: str) -> bool:
    """Whether two addresses are of one catalog, however each is written.

    Examples
    --------
    >>> is_same_catalog("http://127.0.0.1:8000/api/v1/", "http://localhost:8000")
    True
    >>> is_same_catalog("http://127.0.0.1:8000/api/v1", "http://127.0.0.1:8001/api/v1")
    False
    >>> is_same_catalog("https://a.org/api/v1/metadata/hxn/", "https://A.org:443/api/v1/metadata/hxn/raw?api_key=1")
    True
    >>> is_same_catalog("https://a.org/api/v1/metadata/hxn", "https://a.org")
    False
    """
    return _identity(one) == _identity(other)


def _identity(address: str) -> tuple[object, ...]:
    api, keys = split_address(address)
    parts = urlsplit(api)
    host = parts.hostname or ""
    port = parts.port or _PORTS.get(parts.scheme)
    return parts.scheme, "this machine" if host in _THIS_MACHINE else host, port, parts.path, *catalog_keys(keys)

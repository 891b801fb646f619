"""Where a catalog is, however a user names it, so that another process can reach it too."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

from bluesky_ptychonn.catalog.connection.connect import connect
from bluesky_ptychonn.catalog.connection.requests import IN_PROCESS


@dataclass(frozen=True, repr=False)
class Address:
    """Where a catalog is; the key is kept out of every repr.

    Parameters
    ----------
    uri : str
        Of the root.
    api_key : str or None
        Its key.
    given : object
        What it was made of.
    """

    uri: str
    api_key: str | None
    given: Any

    @classmethod
    def from_catalog(cls, catalog: Any) -> Address:
        """Address of a server handle, Tiled client, URI, folder or profile name.

        Raises
        ------
        ValueError
            When it is none of these.
        """
        if hasattr(catalog, "uri") and hasattr(catalog, "api_key"):
            return cls(catalog.uri, catalog.api_key, catalog)
        if isinstance(catalog, str) and catalog.startswith(("http://", "https://")):
            # Not connected to here: a catalog that is away now may be back when the first scan begins.
            parts = urlsplit(catalog)
            api_key = parse_qs(parts.query).get("api_key", [os.environ.get("TILED_API_KEY")])[0]
            return cls(urlunsplit(parts._replace(query="")), api_key, catalog)
        client = connect(catalog)
        return cls(str(client.context.api_uri), client.context.api_key, client)

    @property
    def client(self) -> Any:
        """Tiled client of the root."""
        client = connect(self.uri, self.api_key) if isinstance(self.given, str) else connect(self.given)
        if not client.path_parts:
            return client
        from tiled.client import from_context

        return from_context(client.context)  # a client of some container was given: go to its root

    @property
    def in_process(self) -> bool:
        """Whether the server is an app inside this process."""
        return IN_PROCESS in self.uri


def is_same_catalog(uri: str, other: str) -> bool:
    """Whether two addresses are of one catalog: clients say ``…/api/v1/``, servers ``…/api/v1``, people neither.

    Examples
    --------
    >>> is_same_catalog("http://127.0.0.1:8000/api/v1/", "http://127.0.0.1:8000")
    True
    >>> is_same_catalog("http://127.0.0.1:8000/api/v1", "http://127.0.0.1:8001/api/v1")
    False
    """
    return _without_api(uri) == _without_api(other)


def _without_api(uri: str) -> str:
    return uri.rstrip("/").removesuffix("/api/v1")

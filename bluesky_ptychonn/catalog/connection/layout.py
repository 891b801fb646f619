"""Where things lie in a catalog: the runs, which others put there, and what is made for results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from bluesky_ptychonn.catalog.connection.address import MODELS, PROCESSED, RAW, join_address, split_address
from bluesky_ptychonn.catalog.connection.errors import CatalogRefusedError, CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.requests import IN_PROCESS, send_once

#: Where the decisions of learners are.
LEARNING = "learning"
#: What the containers are, for clients that know.
SPECS = {
    RAW: [{"name": "CatalogOfBlueskyRuns", "version": "3.0"}],
    PROCESSED: [{"name": "PtychoResults", "version": "1.0"}],
    MODELS: [],
}
#: Query for runs among other nodes of a container.
RUNS_ONLY = {"filter[specs][condition][include]": '["BlueskyRun"]', "filter[specs][condition][exclude]": "[]"}

_ANSWER_S = 3.0
_NAMED = 8  # containers that an error names


def uri_of(root: Any, *below: str) -> str:
    """Address of a container of which there is a client, or of one `below` it."""
    return join_address(str(root.context.api_uri), [*(key for key in root.path_parts if key), *below])


def runs_path(root: Any, raw: str | None = None, before_request: Callable[[], None] | None = None) -> str:
    """Find the container of the runs below that of a catalog: one request, three where they lie in the catalog's own.

    Parameters
    ----------
    root : Tiled client
        Of the catalog's container.
    raw : str, optional
        As a user named it; empty for the catalog's container itself. By default ``raw``, where there is one.
    before_request : callable, optional
        See `TiledNode`.

    Returns
    -------
    str
        Path below `root`, empty where runs lie in `root` itself, or nothing lies there yet.

    Raises
    ------
    ValueError
        In words, where there is no such container, or this is no place of runs.
    CatalogUnavailableError, CatalogRefusedError
        See `TiledNode`.
    """
    if raw == "":
        return ""
    node = TiledNode(root, (), before_request)
    path = "/".join(key for key in (raw or RAW).split("/") if key)
    if node.attributes(path) is not None:
        return path
    if raw is None and node.search(0, 1, fields="", **RUNS_ONLY):
        return ""
    there = [str(found["id"]) for found in node.search(0, _NAMED + 1, fields="")]
    if raw is None and not set(there) - {PROCESSED, MODELS, LEARNING}:
        return ""
    names = ", ".join(there[:_NAMED]) + ", …" * (len(there) > _NAMED) or "nothing"
    if raw is not None:
        raise ValueError(f"catalog {uri_of(root)}: there is no container {raw!r} for runs (raw=); it has {names}")
    raise ValueError(
        f"catalog {uri_of(root)} has neither {RAW}/ nor runs of its own; it has {names}. Name the container that the "
        f"runs are below, as in {uri_of(root, 'NAME')}, or say where they are: raw='NAME', or raw='' "
        "where they will lie beside these"
    )


def check_address(address: str, api_key: str | None = None, raw: str | None = None) -> None:
    """Refuse an address that answers and is no catalog, before anybody waits for a run there.

    One that does not answer, or not with this key, is not refused: who asks it for something hears of that.

    Parameters
    ----------
    address : str
        See `split_address`.
    api_key : str, optional
        For it.
    raw : str, optional
        See `runs_path`.

    Raises
    ------
    ValueError
        In words: no Tiled API, no such container, no runs and no place for them.
    """
    if IN_PROCESS in address:
        return
    with contextlib.suppress(CatalogUnavailableError, CatalogRefusedError), _plain_client(address, api_key) as root:
        _check_api(root)
        if root.path_parts and TiledNode(root).attributes() is None:
            path, whole = "/".join(root.path_parts), root.context.api_uri
            raise ValueError(f"catalog {whole}: there is no container {path!r}, or this key does not show it")
        runs_path(root, raw)


@contextlib.contextmanager
def _plain_client(address: str, api_key: str | None) -> Iterator[Any]:
    """As much of a Tiled client as `TiledNode` needs: the real one asks again for 45 s, and users for passwords."""
    import httpx

    api, keys = split_address(address)
    headers = {"Authorization": f"Apikey {api_key}"} if api_key else {}
    with httpx.Client(headers=headers, timeout=_ANSWER_S, follow_redirects=True) as http:
        yield SimpleNamespace(context=SimpleNamespace(http_client=http, api_uri=api), path_parts=keys)


def _check_api(root: Any) -> None:
    api, http = root.context.api_uri, root.context.http_client
    answer = send_once(lambda: http.get(f"{api}/"), api)
    if answer.status_code in (401, 403):
        return
    with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
        about = answer.json()
        if answer.is_success and isinstance(about, dict) and "api_version" in about:
            return
    example = "http://HOST:PORT, or http://HOST:PORT/api/v1/metadata/NAME for a container there"
    raise ValueError(f"{api} is no Tiled API (it answered {answer.status_code}); an address is {example}")


def create_in(parent: TiledNode, root: Any, name: str, key: str, **node: Any) -> bool:
    """Make a node in the container `name` of a catalog, see `TiledNode.create`, and that first where it is not there.

    Parameters
    ----------
    parent : TiledNode
        That container.
    root : Tiled client
        Of the catalog's container.
    name, key : str
        Of the container, and of the node in it.
    **node
        Of `TiledNode.create`.

    Raises
    ------
    CatalogRefusedError
        Where this key may not: with the line by which somebody else makes the container.
    """
    try:
        return parent.create(key, **node)
    except CatalogRefusedError as error:
        if error.status != 404:
            raise
        refused = error
    try:
        if TiledNode(root, (), parent.before_request).create(name, specs=SPECS[name]):
            return parent.create(key, **node)
        why = "it is there, and this key does not show it"
    except CatalogRefusedError as error:
        if error.status not in (401, 403, 404):
            raise
        refused, why = error, error.lacks or f"the answer is {error.status}"
    raise CatalogRefusedError(
        f"catalog {uri_of(root)} takes nothing into {name}/ from this key, and does not make it ({why}). Who may makes "
        f"it once, open to who writes here: tiled.client.from_uri({uri_of(root)!r}).create_container({name!r})",
        refused.status,
        refused.lacks,
    )

"""The few requests that are made of Tiled, one round trip each.

Tiled's own client serves people; it is not used for writing because it repeats a failed request for 45 s on its own,
and because touching a table through it imports dask.dataframe (4 s). What is counted in a catalog is requests, so each
method says how many it makes: one, where nothing else is said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.errors import CatalogRefusedError, CatalogUnavailableError, lacking
from bluesky_ptychonn.catalog.connection.requests import request_at_most, send_once

if TYPE_CHECKING:
    import httpx
    import pyarrow as pa

_ARROW = "application/vnd.apache.arrow.file"
_BYTES = "application/octet-stream"
_JSON = "application/json"
_PAGE = 100  # nodes a request
_MOST_BYTES = 1 << 30  # of an answer where it is not known how many there are
_CHUNK = 1 << 22  # bytes of a blob in a request


class TiledNode:
    """One container of a Tiled catalog, over plain HTTP.

    Parameters
    ----------
    root : Tiled container client
        Lends its connection and its credentials.
    path : sequence of str
        Container below `root`; paths given to the methods are below that.
    before_request : callable, optional
        Called before every request: the moment to wait for a better one.

    Attributes
    ----------
    path : str
        Of the container in the catalog.
    requests : int
        How many were sent.
    seconds : float
        How long the answers took in all, without what `before_request` took.

    Raises
    ------
    CatalogUnavailableError
        By every method, when the catalog does not answer.
    CatalogRefusedError
        By every method, when it answers no; a key that lacks a scope is told which.
    """

    def __init__(self, root: Any, path: Sequence[str] = (), before_request: Callable[[], None] | None = None) -> None:
        self._http: httpx.Client = root.context.http_client
        self._api = str(root.context.api_uri).rstrip("/")
        self.path = "/".join(part for part in (*root.path_parts, *path) if part)
        self.before_request = before_request
        self._users = _has_users(root)
        self.requests = 0
        self.seconds = 0.0

    def _send(
        self,
        method: str,
        route: str,
        path: str,
        *,
        accept: str = _JSON,
        content_type: str = "",
        most_bytes: int = _MOST_BYTES,
        **options: Any,
    ) -> httpx.Response:
        url = f"{self._api}/{route}/{self.path}" + (f"/{path}" if path else "")
        if self._http.is_closed:
            raise CatalogUnavailableError(f"catalog {self._api}: this connection was closed; connect again")
        if self.before_request is not None:
            self.before_request()
        headers = {"Accept": accept} | ({"Content-Type": content_type} if content_type else {})
        self.requests += 1
        began = time.monotonic()
        try:
            # Every request here may be repeated.
            response = send_once(
                lambda: request_at_most(self._http, most_bytes, method, url, headers=headers, **options), self._api
            )
        finally:
            self.seconds += time.monotonic() - began
        if response.is_success:
            return response
        status = response.status_code
        message = f"catalog {self._api}: {method} {route} of {self.path}/{path} answered {status}"
        lacks = lacking(response.text) if status in (401, 403) else ""
        raise CatalogRefusedError(f"{message}: {lacks and f'{lacks}. '}{response.text[:500]}", status, lacks)

    def _send_if_there(self, method: str, route: str, path: str, **params: Any) -> httpx.Response | None:
        """Return None where there is no such node."""
        try:
            return self._send(method, route, path, params=params)
        except CatalogRefusedError as error:
            if error.status == 404:
                return None
            raise

    def _send_json(self, method: str, path: str, body: Mapping[str, Any], **params: str) -> None:
        from tiled.utils import safe_json_dump

        self._send(method, "metadata", path, content=safe_json_dump(body), params=params, content_type=_JSON)

    def attributes(self, path: str = "", *, sources: bool = False) -> dict[str, Any] | None:
        """Metadata, structure and specs of a node; None where there is none."""
        answer = self._send_if_there("GET", "metadata", path, **({"include_data_sources": "true"} if sources else {}))
        return None if answer is None else dict(answer.json()["data"]["attributes"])

    def search(self, first: int, most: int, **params: str) -> list[dict[str, Any]]:
        """Nodes in this container, from the `first` on, at most `most`: their ``id`` and ``attributes``."""
        response = self._send("GET", "search", "", params={"page[offset]": first, "page[limit]": most, **params})
        return list(response.json()["data"])

    def _search_all(self, fields: str) -> Iterator[dict[str, Any]]:
        first, page = 0, list[dict[str, Any]]()
        while not first or len(page) == _PAGE:
            page = self.search(first, _PAGE, fields=fields)
            yield from page
            first += _PAGE

    def children(self) -> list[str]:
        """Keys of the nodes in this container. One request a hundred."""
        return [str(node["id"]) for node in self._search_all("")]

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Metadata of the nodes in this container by key, in the order they were made. One request a hundred.

        A container that is not there has none.
        """
        try:
            found = list(self._search_all("metadata"))
        except CatalogRefusedError as error:
            if error.status == 404:
                return {}
            raise
        return {str(node["id"]): dict(node["attributes"].get("metadata") or {}) for node in found}

    def create(
        self,
        key: str,
        family: str = "container",
        *,
        metadata: Mapping[str, Any] | None = None,
        specs: Sequence[Mapping[str, str]] = (),
        source: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> bool:
        """Make a node in this container.

        False where it was there already: ours, when the answer to an earlier try was lost. It is left alone, or made
        anew to `replace` what a process that died left there: three requests.
        """
        body = {
            "id": key,
            "structure_family": family,
            "metadata": dict(metadata or {}),
            "data_sources": [] if source is None else [{"structure_family": family, **source}],
            "specs": [dict(spec) for spec in specs],
        }
        try:
            self._send_json("POST", "", body)
        except CatalogRefusedError as error:
            if error.status != 409:
                raise
            if replace:
                self.delete(key)
                self._send_json("POST", "", body)
            return False
        return True

    def update(self, metadata: Mapping[str, Any], path: str = "") -> None:
        """Merge into a node's metadata (RFC 7396: None removes a key), keeping no revision of the old.

        Two requests on a server with users: Tiled (0.2.20) takes a merge that names no access tags for one that
        removes them all, which would take the node from whoever it is shared with, so they are looked up and repeated.
        """
        body = {"content-type": "application/merge-patch+json", "metadata": dict(metadata), "specs": None}
        if self._users and (found := self.attributes(path)) is not None:
            body["access_tags"] = found.get("access_tags") or None
        self._send_json("PATCH", path, body, drop_revision="true")

    def amend(self, changes: Sequence[Mapping[str, Any]]) -> None:
        """Change this container's metadata by JSON patch (RFC 6902), whole or not at all; no revision is kept."""
        body = {"content-type": "application/json-patch+json", "metadata": [dict(c) for c in changes], "specs": None}
        self._send_json("PATCH", "", body, drop_revision="true")

    def delete(self, path: str) -> None:
        """Remove a node and what the server stored for it, if it is there."""
        self._send_if_there("DELETE", "metadata", path, recursive="true", external_only="false")

    # -- arrays, float32 where nothing else is said

    def create_array(
        self,
        key: str,
        shape: tuple[int, ...],
        chunk: tuple[int, ...],
        dims: Sequence[str],
        dtype: type[np.generic] = np.float32,
        *,
        replace: bool = False,
    ) -> bool:
        """Make an array of zeros, in chunks of one size; see `create`."""
        from tiled.structures.array import ArrayStructure, BuiltinDtype

        chunks = tuple(_pieces(n, size) for n, size in zip(shape, chunk, strict=True))
        kind = BuiltinDtype.from_numpy_dtype(np.dtype(dtype))
        structure = ArrayStructure(data_type=kind, shape=shape, chunks=chunks, dims=tuple(dims))
        return self.create(key, "array", source={"structure": asdict(structure)}, replace=replace)

    def _put_block(self, path: str, block: str, content: bytes) -> None:
        self._send("PUT", "array/block", path, params={"block": block}, content=content, content_type=_BYTES)

    def put_array(self, path: str, data: NDArray[Any]) -> None:
        """Replace an array of one chunk, float32 or uint8; a reader sees the old one or the new one."""
        self._put_block(path, ",".join("0" * data.ndim), data.tobytes() if data.dtype == np.uint8 else _f4(data))

    def patch_array(self, path: str, data: NDArray[np.float32], first: int) -> None:
        """Write rows ``first : first + len(data)``; the array grows to hold them."""
        offset = ",".join(map(str, (first, *(0,) * (data.ndim - 1))))
        params = {"offset": offset, "shape": ",".join(map(str, data.shape)), "extend": "true"}
        self._send("PATCH", "array/full", path, params=params, content=_f4(data), content_type=_BYTES)

    def read_array(self, path: str, shape: tuple[int, ...], rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Read an array whose shape is known, or some of its rows."""
        params = {}
        if rows is not None:
            shape = (rows[1] - rows[0], *shape[1:])
            params["slice"] = f"{rows[0]}:{rows[1]}"
        if 0 in shape:
            return np.zeros(shape, np.float32)
        params["expected_shape"] = ",".join(map(str, shape))
        return np.frombuffer(self._array_bytes(path, 4 * math.prod(shape), **params), np.float32).reshape(shape)

    def read_slice(self, path: str, first: int, stop: int, item_bytes: int = 1) -> bytes:
        """Read the items ``first : stop`` along an array's first axis, each of `item_bytes`; fewer at its end.

        TooLargeError when more are sent.
        """
        return self._array_bytes(path, (stop - first) * item_bytes, slice=f"{first}:{stop}")

    def _array_bytes(self, path: str, most_bytes: int, **params: str) -> bytes:
        return self._send("GET", "array/full", path, accept=_BYTES, most_bytes=most_bytes, params=params).content

    def trim_array(self, path: str, rows: int) -> None:
        """Cut the array to its first `rows`: stored chunks are whole, and the last one may be padded. Two requests.

        Where that is not allowed (Tiled wants the scope ``register``, which users do not have) it stays padded.
        """
        found = self.attributes(path, sources=True)
        if found is None or found["structure"]["shape"][0] <= rows:
            return
        source = found["data_sources"][0]
        structure = source["structure"]
        structure["shape"][0] = rows
        structure["chunks"][0] = list(_pieces(rows, structure["chunks"][0][0]))
        try:
            self._send("PUT", "data_source", path, json={"data_source": source})
        except CatalogRefusedError as error:
            if error.status not in (401, 403):
                raise

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write bytes as a uint8 array, over what an earlier try left. One request for 4 MiB, and one or three more."""
        self.create_array(key, (len(data),), (_CHUNK,), ("byte",), np.uint8, replace=True)
        for number, first in enumerate(range(0, len(data), _CHUNK)):
            self._put_block(key, str(number), data[first : first + _CHUNK])

    def get_bytes(self, key: str, size: int) -> bytes:
        """Read an array of `size` bytes; what is missing at its end is missing in the answer. One request for 4 MiB."""
        starts = range(0, size, _CHUNK)
        return b"".join(self.read_slice(key, first, min(first + _CHUNK, size)) for first in starts)

    # -- tables

    def create_table(self, key: str, schema: pa.Schema, primary: str, *, replace: bool = False) -> bool:
        """Make an empty table that grows; the server keeps `primary` unique and in order. See `create`."""
        from tiled.structures.table import TableStructure

        order = [{"column": primary, "direction": "asc"}]
        source = {
            "structure": asdict(TableStructure.from_schema(schema)),
            "mimetype": "application/x-tiled-sql-table",
            "parameters": {"primary_key": [primary], "order_by_args": order},
        }
        return self.create(key, "table", source=source, replace=replace)

    def append_rows(self, path: str, rows: pa.Table) -> None:
        """Append rows, all or none; a row whose primary key is there is answered by `CatalogUnavailableError`."""
        import pyarrow as pa

        buffer = pa.BufferOutputStream()
        with pa.ipc.new_file(buffer, rows.schema) as writer:
            writer.write_table(rows)
        content = buffer.getvalue().to_pybytes()
        self._send("PATCH", "table/partition", path, params={"partition": 0}, content=content, content_type=_ARROW)

    def read_rows(self, path: str, schema: pa.Schema) -> pa.Table:
        """Read a whole table, in the columns and types of `schema`; Tiled sends them in any order and adds an index."""
        return self._partition(path).select(schema.names).cast(schema)

    def read_column(self, path: str, column: str) -> NDArray[Any]:
        """Read one column of a table: (rows,)."""
        return np.asarray(self._partition(path, column=column).column(column).to_numpy())

    def _partition(self, path: str, **params: str) -> pa.Table:
        import pyarrow as pa

        response = self._send("GET", "table/partition", path, accept=_ARROW, params={"partition": "0", **params})
        return pa.ipc.open_file(response.content).read_all()


def _has_users(root: Any) -> bool:
    """Whether the server knows users, rather than one key."""
    authentication = getattr(getattr(root.context, "server_info", None), "authentication", None)
    return bool(getattr(authentication, "providers", None))


def _f4(data: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(data, dtype="<f4").tobytes()


def _pieces(length: int, size: int) -> tuple[int, ...]:
    """Chunk lengths along one axis."""
    whole, rest = divmod(length, size)
    return (size,) * whole + ((rest,) if rest else ())

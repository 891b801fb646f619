"""The few requests that results need of Tiled, one round trip each.

Tiled's own client serves people; it is not used for writing because it repeats a failed request for 45 s on its own,
and because touching a table through it imports dask.dataframe (4 s). What is counted in a catalog is requests, so each
method says how many it makes: one, where nothing else is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.scopes import lacking

if TYPE_CHECKING:
    import httpx
    import pyarrow as pa

_ARROW = "application/vnd.apache.arrow.file"
_BYTES = "application/octet-stream"
_MERGE = "application/merge-patch+json"


class CatalogUnavailableError(ConnectionError):
    """The catalog does not answer, or not now; the same request may work later.

    Attributes
    ----------
    status : int or None
        HTTP status code, 500 or above; None where there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class CatalogRefusedError(RuntimeError):
    """The catalog answers no, and would again.

    Attributes
    ----------
    status : int
        HTTP status code.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class TiledNode:
    """One container of a Tiled catalog, over plain HTTP.

    Parameters
    ----------
    root : Tiled container client
        Lends its connection and its credentials.
    path : sequence of str
        Container below `root`; paths given to the methods are below that.
    before : callable, optional
        Called before every request: the moment to wait for a better one.

    Attributes
    ----------
    requests : int
        How many were sent.
    seconds : float
        How long the answers took in all, without what `before` took.
    """

    def __init__(self, root: Any, path: Sequence[str] = (), before: Callable[[], None] | None = None) -> None:
        self._http: httpx.Client = root.context.http_client
        self._api = str(root.context.api_uri).rstrip("/")
        self._path = "/".join(part for part in (*root.path_parts, *path) if part)
        self._before = before
        self._users = _has_users(root)
        self.requests = 0
        self.seconds = 0.0

    @property
    def path(self) -> str:
        """Path of the container in the catalog."""
        return self._path

    def _send(self, method: str, route: str, path: str, **options: Any) -> httpx.Response:
        import httpx

        url = f"{self._api}/{route}/{self._path}" + (f"/{path}" if path else "")
        if self._http.is_closed:
            raise CatalogUnavailableError(f"catalog {self._api}: this connection was closed; connect again")
        if self._before is not None:
            self._before()
        self.requests += 1
        began = time.monotonic()
        try:
            try:
                response = self._http.request(method, url, **options)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                # A kept connection that the server closed, as it does after an error of its own. Every request here
                # may be repeated.
                response = self._http.request(method, url, **options)
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise CatalogUnavailableError(f"catalog {self._api} does not answer: {why}") from error
        finally:
            self.seconds += time.monotonic() - began
        if response.is_success:
            return response
        words = f"catalog {self._api}: {method} {route} of {self._path}/{path} answered {response.status_code}"
        if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise CatalogUnavailableError(f"{words}; its log says why", response.status_code)
        lacks = lacking(response.text) if response.status_code in (401, 403) else ""
        raise CatalogRefusedError(f"{words}: {lacks and f'{lacks}. '}{response.text[:500]}", response.status_code)

    def attributes(self, path: str = "", *, sources: bool = False) -> dict[str, Any] | None:
        """Metadata, structure and specs of a node; None where there is none."""
        try:
            params = {"include_data_sources": "true"} if sources else {}
            response = self._send("GET", "metadata", path, params=params, headers={"Accept": "application/json"})
        except CatalogRefusedError as error:
            if error.status == 404:
                return None
            raise
        found: dict[str, Any] = response.json()["data"]["attributes"]
        return found

    def children(self) -> list[str]:
        """Keys of the nodes in this container."""
        params: dict[str, str | int] = {"page[limit]": 100, "fields": ""}
        found = self._send("GET", "search", "", params=params, headers={"Accept": "application/json"}).json()
        return [str(node["id"]) for node in found["data"]]

    def create(
        self,
        key: str,
        family: str = "container",
        *,
        metadata: Mapping[str, Any] | None = None,
        specs: Sequence[Mapping[str, str]] = (),
        source: Mapping[str, Any] | None = None,
    ) -> bool:
        """Make a node in this container; False where it is there already."""
        from tiled.utils import safe_json_dump

        body = {
            "id": key,
            "structure_family": family,
            "metadata": dict(metadata or {}),
            "data_sources": [] if source is None else [{"structure_family": family, **source}],
            "specs": [dict(spec) for spec in specs],
        }
        try:
            self._send("POST", "metadata", "", content=safe_json_dump(body), headers=_json())
        except CatalogRefusedError as error:
            if error.status == 409:  # ours: the answer to an earlier try was lost
                return False
            raise
        return True

    def update(self, metadata: Mapping[str, Any], path: str = "") -> None:
        """Merge into a node's metadata (RFC 7396: None removes a key), keeping no revision of the old.

        Two requests on a server with users: Tiled (0.2.20) takes a merge that names no access tags for one that
        removes them all, which would take the node from whoever it is shared with, so they are looked up and repeated.
        """
        from tiled.utils import safe_json_dump

        body = {"content-type": _MERGE, "metadata": dict(metadata), "specs": None}
        if self._users and (found := self.attributes(path)) is not None:
            body["access_tags"] = found.get("access_tags") or None
        params = {"drop_revision": "true"}
        self._send("PATCH", "metadata", path, content=safe_json_dump(body), headers=_json(), params=params)

    def delete(self, path: str) -> None:
        """Remove a node and what the server stored for it, if it is there."""
        try:
            self._send("DELETE", "metadata", path, params={"recursive": "true", "external_only": "false"})
        except CatalogRefusedError as error:
            if error.status != 404:
                raise

    # -- arrays, float32

    def create_array(self, key: str, shape: tuple[int, ...], chunk: tuple[int, ...], dims: Sequence[str]) -> bool:
        """Make a float32 array of zeros, in chunks of one size."""
        from tiled.structures.array import ArrayStructure, BuiltinDtype

        chunks = tuple(_pieces(n, size) for n, size in zip(shape, chunk, strict=True))
        kind = BuiltinDtype.from_numpy_dtype(np.dtype(np.float32))
        structure = ArrayStructure(data_type=kind, shape=shape, chunks=chunks, dims=tuple(dims))
        return self.create(key, "array", source={"structure": asdict(structure)})

    def put_array(self, path: str, data: NDArray[np.float32]) -> None:
        """Replace an array of one chunk; a reader sees the old one or the new one."""
        block = ",".join("0" * data.ndim)
        self._send("PUT", "array/block", path, params={"block": block}, content=_f4(data), headers=_octets())

    def patch_array(self, path: str, data: NDArray[np.float32], first: int) -> None:
        """Write rows ``first : first + len(data)``; the array grows to hold them."""
        offset = ",".join(map(str, (first, *(0,) * (data.ndim - 1))))
        params = {"offset": offset, "shape": ",".join(map(str, data.shape)), "extend": "true"}
        self._send("PATCH", "array/full", path, params=params, content=_f4(data), headers=_octets())

    def read_array(self, path: str, shape: tuple[int, ...], rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Read a float32 array whose shape is known, or some of its rows."""
        params = {}
        if rows is not None:
            shape = (rows[1] - rows[0], *shape[1:])
            params["slice"] = f"{rows[0]}:{rows[1]}"
        if 0 in shape:
            return np.zeros(shape, np.float32)
        params["expected_shape"] = ",".join(map(str, shape))
        content = self._send("GET", "array/full", path, params=params, headers={"Accept": _BYTES}).read()
        return np.frombuffer(content, np.float32).reshape(shape)

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

    # -- tables

    def create_table(self, key: str, schema: pa.Schema, primary: str) -> bool:
        """Make an empty table that grows; the server keeps `primary` unique and in order."""
        from tiled.structures.table import TableStructure

        order = [{"column": primary, "direction": "asc"}]
        source = {
            "structure": asdict(TableStructure.from_schema(schema)),
            "mimetype": "application/x-tiled-sql-table",
            "parameters": {"primary_key": [primary], "order_by_args": order},
        }
        return self.create(key, "table", source=source)

    def append_rows(self, path: str, rows: pa.Table) -> None:
        """Append rows, all or none; a row whose primary key is there is answered by `CatalogUnavailableError`."""
        import pyarrow as pa

        buffer = pa.BufferOutputStream()
        with pa.ipc.new_file(buffer, rows.schema) as writer:
            writer.write_table(rows)
        content = buffer.getvalue().to_pybytes()
        self._send(
            "PATCH", "table/partition", path, params={"partition": 0}, content=content, headers={"Content-Type": _ARROW}
        )

    def read_rows(self, path: str, schema: pa.Schema) -> pa.Table:
        """Read a whole table, in the columns and types of `schema`; Tiled sends them in any order and adds an index."""
        import pyarrow as pa

        response = self._send("GET", "table/partition", path, params={"partition": 0}, headers={"Accept": _ARROW})
        return pa.ipc.open_file(response.read()).read_all().select(schema.names).cast(schema)


def _has_users(root: Any) -> bool:
    """Whether the server knows users, rather than one key."""
    said = getattr(getattr(root.context, "server_info", None), "authentication", None)
    return bool(getattr(said, "providers", None))


def _json() -> dict[str, str]:
    return {"Accept": "application/json", "Content-Type": "application/json"}


def _octets() -> dict[str, str]:
    return {"Content-Type": _BYTES}


def _f4(data: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(data, dtype="<f4").tobytes()


def _pieces(length: int, size: int) -> tuple[int, ...]:
    """Chunk lengths along one axis."""
    whole, rest = divmod(length, size)
    return (size,) * whole + ((rest,) if rest else ())

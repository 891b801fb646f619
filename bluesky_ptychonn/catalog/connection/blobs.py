"""Bytes, lists and guarded changes in a Tiled catalog: what the registry of models needs of the wire beyond results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bluesky_ptychonn.catalog.connection.http import CatalogRefusedError, TiledNode

_CHUNK = 1 << 22  # bytes a request
_PAGE = 100


class BlobNode(TiledNode):
    """A container whose arrays are bytes."""

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Metadata of the nodes in this container by key, in the order they were made. One request a hundred.

        A container that is not there has none.
        """
        found: dict[str, dict[str, Any]] = {}
        while True:
            params: dict[str, Any] = {"page[limit]": _PAGE, "page[offset]": len(found), "fields": "metadata"}
            try:
                answer = self._send("GET", "search", "", params=params, headers={"Accept": "application/json"}).json()
            except CatalogRefusedError as error:
                if error.status == 404:
                    return {}
                raise
            page = {str(node["id"]): dict(node["attributes"].get("metadata") or {}) for node in answer["data"]}
            found |= page
            if len(answer["data"]) < _PAGE or not page:
                return found

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write bytes as a uint8 array, over what an earlier try left. One request for 4 MiB, and one or three more."""
        from tiled.structures.array import ArrayStructure, BuiltinDtype

        size = len(data)
        chunks = (*([_CHUNK] * (size // _CHUNK)), *([size % _CHUNK] if size % _CHUNK else []))
        kind = BuiltinDtype.from_numpy_dtype(np.dtype(np.uint8))
        structure = asdict(ArrayStructure(data_type=kind, shape=(size,), chunks=(chunks,), dims=("byte",)))
        if not self.create(key, "array", source={"structure": structure}):
            there = self.attributes(key)
            if there is None or list(there["structure"]["shape"]) != [size]:
                self.delete(key)
                self.create(key, "array", source={"structure": structure})
        for block in range(len(chunks)):
            self._send(
                "PUT",
                "array/block",
                key,
                params={"block": str(block)},
                content=data[block * _CHUNK : (block + 1) * _CHUNK],
                headers={"Content-Type": "application/octet-stream"},
            )

    def get_bytes(self, key: str, size: int) -> bytes:
        """Read an array of `size` bytes; what is missing at its end is missing in the answer. One request for 4 MiB."""
        pieces = []
        for first in range(0, size, _CHUNK):
            params = {"slice": f"{first}:{min(first + _CHUNK, size)}"}
            answer = self._send("GET", "array/full", key, params=params, headers={"Accept": "application/octet-stream"})
            pieces.append(answer.read())
        return b"".join(pieces)

    def amend(self, changes: Sequence[Mapping[str, Any]]) -> None:
        """Change this container's metadata by JSON patch (RFC 6902), whole or not at all; no revision is kept."""
        from tiled.utils import safe_json_dump

        body = {"content-type": "application/json-patch+json", "metadata": [dict(c) for c in changes], "specs": None}
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        params = {"drop_revision": "true"}
        self._send("PATCH", "metadata", "", content=safe_json_dump(body), headers=headers, params=params)

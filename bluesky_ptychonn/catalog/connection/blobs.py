"""Arrays of bytes in a Tiled catalog: what the registry of models keeps beyond what results do."""

from __future__ import annotations

import numpy as np

from bluesky_ptychonn.catalog.connection.http import TiledNode

_CHUNK = 1 << 22  # bytes a request


class BlobNode(TiledNode):
    """A container whose arrays are bytes."""

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write bytes as a uint8 array, over what an earlier try left. One request for 4 MiB, and one or three more."""
        self.create_array(key, (len(data),), (_CHUNK,), ("byte",), np.uint8, replace=True)
        for number, first in enumerate(range(0, len(data), _CHUNK)):
            self._put_block(key, str(number), data[first : first + _CHUNK])

    def get_bytes(self, key: str, size: int) -> bytes:
        """Read an array of `size` bytes; what is missing at its end is missing in the answer. One request for 4 MiB."""
        starts = range(0, size, _CHUNK)
        return b"".join(self.read_slice(key, first, min(first + _CHUNK, size)) for first in starts)

"""Read ``.npy`` and ``.npz`` of strangers: no pickle, sizes before data, and in words what is wrong."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

#: Largest array that is read, bytes.
MOST_BYTES = 1 << 32
#: What `zipfile` raises for a damaged archive, or one that is packed or locked in a way it does not know.
ZIP_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError, EOFError, UnicodeDecodeError, OSError,
)  # fmt: skip
_HEADER_DAMAGE = (ValueError, TypeError, LookupError, SyntaxError, tokenize.TokenError, RecursionError, OverflowError)


def read_npy(path: Path) -> NDArray[Any]:
    """Read a ``.npy``; ValueError when it is not one, cut short, or holds Python objects."""
    with path.open("rb") as stream:
        return _read(stream, path.stat().st_size, path.name)


def read_npz(path: Path, names: Sequence[str], what: str) -> dict[str, NDArray[Any]]:
    """Read named arrays of a ``.npz``; others are left alone.

    ValueError, which says that it is no `what`, when the file is damaged or lacks an array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos, packed = archive.infolist(), path.stat().st_size
            if any(info.compress_size > packed for info in infos):
                raise zipfile.BadZipFile("its directory names more bytes than there are")
            sizes = {info.filename: info.file_size for info in infos}
            missing = [name for name in names if f"{name}.npy" not in sizes]
            if missing:
                raise ValueError(
                    f"{path.name}: no {what}, it lacks {', '.join(missing)}; "
                    f"it holds {', '.join(name.removesuffix('.npy') for name in sizes) or 'nothing'}"
                )
            arrays = {}
            for name in names:
                with archive.open(f"{name}.npy") as stream:
                    arrays[name] = _read(stream, sizes[f"{name}.npy"], f"{path.name}, array {name!r}")
            return arrays
    except ZIP_DAMAGE as error:
        raise ValueError(f"{path.name}: cannot be read as a {what}: {str(error) or type(error).__name__}") from None


def _read(stream: IO[bytes], size: int, who: str) -> NDArray[Any]:
    """Read one array from a stream of `size` bytes, which may be a lie."""
    try:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format {version} is unknown; known are (1, 0) and (2, 0)")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_column, dtype = read_header(stream)
        length = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never read")
        if min(shape, default=0) < 0 or length > min(size, MOST_BYTES):
            raise ValueError(f"shape {shape} of {dtype} needs {length} bytes, {size} are there; allowed: {MOST_BYTES}")
        data = stream.read(length)
        if len(data) < length:
            raise ValueError(f"cut short: {len(data)} of {length} bytes")
        # A copy: what comes from a buffer cannot be written to.
        return np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C").copy()
    except _HEADER_DAMAGE as error:
        raise ValueError(f"{who}: not a readable NumPy array: {error}") from None

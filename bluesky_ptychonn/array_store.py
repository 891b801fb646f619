"""Many arrays of one shape, in memory while they are few and in a file without a name when they are many."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray


class ArrayStore:
    """Arrays of one shape and dtype by number; memory is bounded, the disk is the limit.

    The file lies in ``TMPDIR``, else in ``/var/tmp`` (``/tmp`` may be memory), and goes with the process.

    Parameters
    ----------
    limit_bytes : int
        Most to keep in memory; beyond, all are in the file.

    Examples
    --------
    >>> store = ArrayStore(limit_bytes=20)
    >>> for value in range(4):
    ...     store.append(np.full(2, value, np.float32))
    >>> len(store), store.on_disk, store[3].tolist(), store.whole()[:, 0].tolist()
    (4, True, [3.0, 3.0], [0.0, 1.0, 2.0, 3.0])
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._arrays: list[NDArray[Any]] = []
        self._file: IO[bytes] | None = None
        self._shape: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def on_disk(self) -> bool:
        """Whether they are in the file."""
        return self._file is not None

    @property
    def nbytes(self) -> int:
        """What they take in all."""
        return self._count * self._each

    @property
    def _each(self) -> int:
        return int(np.prod(self._shape)) * self._dtype.itemsize

    def append(self, array: NDArray[Any]) -> None:
        """Take one more; ValueError for another shape or dtype, OSError when it must go to a disk that is full."""
        if not self._count:
            self._shape, self._dtype = array.shape, array.dtype
        elif (array.shape, array.dtype) != (self._shape, self._dtype):
            raise ValueError(f"array {array.shape} {array.dtype} among those of {self._shape} {self._dtype}")
        if self._file is None and self.nbytes + self._each > self._limit_bytes:
            self._file = self._moved()
        if self._file is None:
            self._arrays.append(array.copy())
        else:
            self._put(self._file, self._count, array)
        self._count += 1

    def _moved(self) -> IO[bytes]:
        file = tempfile.TemporaryFile(dir=_folder(), prefix="ptychonn-", buffering=0)  # noqa: SIM115  kept
        try:
            for number, array in enumerate(self._arrays):
                self._put(file, number, array)
        except OSError:
            file.close()
            raise
        self._arrays.clear()
        return file

    def _put(self, file: IO[bytes], number: int, array: NDArray[Any]) -> None:
        left, at = memoryview(np.ascontiguousarray(array).tobytes()), number * self._each
        while left:
            written = os.pwrite(file.fileno(), left, at)
            left, at = left[written:], at + written

    def __getitem__(self, number: int) -> NDArray[Any]:
        if self._file is None:
            return self._arrays[number]
        data = os.pread(self._file.fileno(), self._each, number * self._each)
        return np.frombuffer(data, self._dtype).reshape(self._shape)

    def whole(self) -> NDArray[Any]:
        """All, (n, ...): a copy, or what lies in the file, of which only what is looked at comes into memory."""
        shape = (self._count, *self._shape)
        if self._file is None:
            return np.stack(self._arrays) if self._count else np.zeros(shape, self._dtype)
        return np.memmap(self._file, self._dtype, mode="c", shape=shape)  # torch takes none that is read only

    def __del__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all, and give memory and disk back."""
        self._arrays.clear()
        self._count = 0
        if self._file is not None:
            self._file.close()
            self._file = None


def _folder() -> str | None:
    """Where a large file may lie; None for where the system says."""
    large = Path("/var/tmp")
    return str(large) if not os.environ.get("TMPDIR") and os.access(large, os.W_OK) else None

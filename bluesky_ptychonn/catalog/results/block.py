"""Results of some frames, checked and in order, on their way into the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_ptychonn.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_BYTES = 2**20
_COLUMNS: dict[str, Any] = {
    "x_m": np.float64, "y_m": np.float64, "trust": np.float32, "valid": np.bool_, "flag": np.str_,
    "time_raw": np.float64, "time_done": np.float64,
}  # fmt: skip


def frames_schema() -> pa.Schema:
    """Columns of a reconstruction's table of frames."""
    import pyarrow as pa

    columns = {"seq_num": np.int64, **_COLUMNS}
    return pa.schema([(name, pa.from_numpy_dtype(dtype)) for name, dtype in columns.items()])


@dataclass(frozen=True)
class Block:
    """Results of some frames of one run, rows in ascending order of `seq_num` and each but once.

    Attributes
    ----------
    seq_num : (n,) int64 ndarray
        Counts from 1.
    amplitude, phase : (n, h, w) float32 ndarray
        Phase in rad.
    y_m, x_m : (n,) float64 ndarray
        Positions, m.
    trust : (n,) float32 ndarray
        0 to 1.
    valid : (n,) bool ndarray
        Whether the frame could be used.
    flag : (n,) str ndarray
        What is wrong with it, empty when nothing is.
    time_raw, time_done : (n,) float64 ndarray
        POSIX seconds; a `time_done` of NaN leaves a frame that is made again the one it had.
    """

    seq_num: NDArray[np.int64]
    amplitude: NDArray[np.float32]
    phase: NDArray[np.float32]
    y_m: NDArray[np.float64]
    x_m: NDArray[np.float64]
    trust: NDArray[np.float32]
    valid: NDArray[np.bool_]
    flag: NDArray[np.str_]
    time_raw: NDArray[np.float64]
    time_done: NDArray[np.float64]

    @classmethod
    def from_patches(cls, seq_nums: ArrayLike, patches: ArrayLike, **columns: ArrayLike | Sequence[str]) -> Block:
        """Check, take the last of each sequence number, and put them in order.

        Parameters
        ----------
        seq_nums : (n,) int
            Count from 1.
        patches : (n, h, w) complex64
            Split into amplitude and phase; NaN where a frame has none.
        **columns : (n,)
            All other attributes. `time_done` is filled in when the frames are in the catalog, where it is not NaN.

        Raises
        ------
        ValueError
            When shapes disagree or a sequence number is below 1.
        """
        seq = np.asarray(seq_nums, dtype=np.int64)
        wave = np.asarray(patches, dtype=np.complex64)
        if wave.ndim != 3 or len(wave) != len(seq):
            raise ValueError(f"Block: {len(seq)} sequence numbers, patches {wave.shape}")
        given = {"time_done": np.zeros(len(seq)), **columns}
        values = {name: np.array(column, dtype=_COLUMNS[name]) for name, column in given.items()}
        for name, value in values.items():
            if value.shape != seq.shape:
                raise ValueError(f"Block: {name} has shape {value.shape}, expected {seq.shape}, one for each frame")
        if len(seq) and seq.min() < 1:
            raise ValueError(f"Block: sequence number {seq.min()} is below 1")
        last = last_of_each(seq)
        amplitude, phase = np.abs(wave[last]).astype(np.float32), np.angle(wave[last]).astype(np.float32)
        return cls(seq[last], amplitude, phase, **{name: value[last] for name, value in values.items()})

    @classmethod
    def joined(cls, blocks: Sequence[Block]) -> Block:
        """Make one of several, in the order they came: of two with one sequence number the last wins."""
        values = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in vars(blocks[0])}
        last = last_of_each(values["seq_num"])
        return cls(**{name: value[last] for name, value in values.items()})

    def __len__(self) -> int:
        return len(self.seq_num)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Rows and columns of a patch, px."""
        return self.amplitude.shape[1], self.amplitude.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(value.nbytes for value in vars(self).values())

    def table(self) -> pa.Table:
        """Make the rows of the table of frames."""
        import pyarrow as pa

        schema = frames_schema()
        columns = {name: getattr(self, name) for name in schema.names}
        return pa.table({**columns, "flag": self.flag.tolist()}, schema=schema)

    def save(self, path: Path) -> None:
        """Write to one file, whole or not at all; OSError when the disk will not take it."""
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Block:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            values: dict[str, Any] = {name: stored[name] for name in stored.files}
        return cls(**values)


def last_of_each(numbers: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return where each number (n,) stands last, in the order of the numbers."""
    _, back = np.unique(numbers[::-1], return_index=True)
    return np.asarray(len(numbers) - 1 - back)


def chunk_frames(patch_shape: tuple[int, int] | None, expected: int | None) -> int:
    """Frames of a stored chunk: about a megabyte, and no more than a short run has."""
    if patch_shape is None:
        return 1
    frames = int(np.clip(_CHUNK_BYTES // (4 * patch_shape[0] * patch_shape[1]), 8, 256))
    return frames if expected is None or expected < 1 else min(frames, expected)


def stretches(seq: NDArray[np.int64], written: set[int], reach: int) -> list[tuple[int, int]]:
    """Rows to send together, first and last: small gaps without a frame in them are sent along as zeros."""
    parts = [(int(seq[0]), int(seq[0]))]
    for number in seq[1:].tolist():
        first, last = parts[-1]
        if number - last <= reach and written.isdisjoint(range(last + 1, number)):
            parts[-1] = (first, number)
        else:
            parts.append((number, number))
    return parts

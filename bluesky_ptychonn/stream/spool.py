"""Blocks that the catalog could not take yet, kept in a local folder in the order they came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pyarrow as pa


def frames_schema() -> pa.Schema:
    """Columns of a reconstruction's table of frames."""
    import pyarrow as pa

    return pa.schema(
        [
            ("seq_num", pa.int64()), ("x_m", pa.float64()), ("y_m", pa.float64()), ("trust", pa.float32()),
            ("valid", pa.bool_()), ("flag", pa.string()), ("time_raw", pa.float64()), ("time_done", pa.float64()),
        ]
    )  # fmt: skip


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
        POSIX seconds.
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

    def __len__(self) -> int:
        return len(self.seq_num)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(value.nbytes for value in vars(self).values())

    def select(self, rows: ArrayLike) -> Block:
        """Take some frames, by index or mask, in ascending order."""
        return Block(**{name: value[np.asarray(rows)] for name, value in vars(self).items()})

    def table(self) -> pa.Table:
        """Make the rows of the table of frames."""
        import pyarrow as pa

        schema = frames_schema()
        columns = {name: getattr(self, name) for name in schema.names}
        return pa.table({**columns, "flag": self.flag.tolist()}, schema=schema)

    def save(self, path: Path) -> None:
        """Write to one file, whole or not at all."""
        draft = path.with_suffix(".draft")
        with draft.open("wb") as file:
            np.savez(file, **vars(self))
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Block:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            values: dict[str, Any] = {name: stored[name] for name in stored.files}
        return cls(**values)


class Spool:
    """A first-in, first-out folder of blocks, bounded, that outlives the process.

    Parameters
    ----------
    folder : Path
        Of one reconstruction; made when the first block comes.
    limit_bytes : int
        Most to keep.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        if limit_bytes <= 0:
            raise ValueError(f"Spool: limit_bytes {limit_bytes} must be above 0")
        self.folder = folder
        self.limit_bytes = limit_bytes
        for draft in folder.glob("*.draft"):
            draft.unlink()  # of a process that died while it wrote
        files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
        self._waiting: list[tuple[Path, int, int]] = []  # file, frames, bytes
        for path in files:
            block = Block.load(path)
            self._waiting.append((path, len(block), block.nbytes))
        self._next = int(files[-1].stem) + 1 if files else 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def frames(self) -> int:
        """Frames that wait."""
        return sum(frames for _, frames, _ in self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes that wait."""
        return sum(size for _, _, size in self._waiting)

    def fits(self, block: Block) -> bool:
        """Whether there is room for one more; an empty spool takes any."""
        return not self._waiting or self.nbytes + block.nbytes <= self.limit_bytes

    def put(self, block: Block) -> None:
        """Keep a block until `drop`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self._next:08d}.npz"
        block.save(path)
        self._next += 1
        self._waiting.append((path, len(block), block.nbytes))

    def first(self) -> Block:
        """Return the block that waits longest."""
        return Block.load(self._waiting[0][0])

    def drop(self) -> None:
        """Forget the block that waited longest: it is in the catalog."""
        path, _, _ = self._waiting.pop(0)
        path.unlink()
        if not self._waiting:
            self.folder.rmdir()

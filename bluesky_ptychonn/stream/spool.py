"""Blocks that the catalog could not take yet, kept in a local folder in the order they came."""

from __future__ import annotations

from pathlib import Path

from bluesky_ptychonn.stream.block import Block


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

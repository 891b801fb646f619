"""Blocks that the catalog could not take yet, kept in a local folder in the order they came."""

from __future__ import annotations

import contextlib
import logging
import os
import zipfile
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bluesky_ptychonn.catalog.results.block import Block

log = logging.getLogger(__name__)

_JOINED = 64  # frames sent together, at least one block of them


@dataclass(frozen=True)
class _File:
    path: Path
    seq_nums: tuple[int, ...]
    nbytes: int
    written: float  # POSIX seconds


class Spool:
    """A first-in, first-out folder of blocks, bounded, that outlives the process.

    The bound holds for all reconstructions that spool beside each other, in folders of one parent.

    Parameters
    ----------
    folder : Path
        Of one reconstruction; made when the first block comes.
    limit_bytes : int
        Most to keep.

    Raises
    ------
    ValueError
        For a limit that is not above 0.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        if limit_bytes <= 0:
            raise ValueError(f"Spool: limit_bytes {limit_bytes} must be above 0")
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._files: list[_File] = []
        self._largest = 0
        for draft in (*folder.glob("*.draft"), *folder.glob(".*.part*")):  # the first: by version 0.1.0
            draft.unlink()  # of a process that died while it wrote
        files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
        for path in files:
            self._recover(path)
        self._next = int(files[-1].stem) + 1 if files else 0

    def _recover(self, path: Path) -> None:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                numbers = stored["seq_num"].tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            # A power cut. Its frames come again: whoever opens a spool begins the run anew.
            log.warning("%s cannot be read and is left out: %s", path, error)
            path.unlink(missing_ok=True)
            return
        self._register(path, numbers)

    def _register(self, path: Path, seq_nums: list[int]) -> None:
        status = path.stat()
        file = _File(path, tuple(seq_nums), status.st_size, status.st_mtime)
        self._files.append(file)
        self._largest = max(self._largest, file.nbytes)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def frames(self) -> int:
        """Frames that wait, each as often as it was put in."""
        return sum(len(file.seq_nums) for file in self._files)

    @property
    def seq_nums(self) -> Set[int]:
        """Sequence numbers that wait, each once."""
        return {number for file in self._files for number in file.seq_nums}

    @property
    def nbytes(self) -> int:
        """Bytes that wait on disk, of this reconstruction."""
        return sum(file.nbytes for file in self._files)

    @property
    def since(self) -> float | None:
        """Since when the first block waits, POSIX seconds."""
        return self._files[0].written if self._files else None

    @property
    def full(self) -> bool:
        """Whether another block like the largest so far would not fit."""
        return bool(self._files) and self._used() + self._largest > self.limit_bytes

    def fits(self, block: Block) -> bool:
        """Whether there is room for one more; where nothing waits any fits."""
        used = self._used()
        return not used or used + block.nbytes <= self.limit_bytes

    def _used(self) -> int:
        total = self.nbytes
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder.parent) as siblings:
            for sibling in siblings:
                if sibling.name != self.folder.name and sibling.is_dir():
                    with contextlib.suppress(FileNotFoundError), os.scandir(sibling) as files:
                        total += sum(file.stat().st_size for file in files)
        return total

    def put(self, block: Block) -> None:
        """Keep a block until `drop`; OSError when the disk will not take it, and then nothing of it is left there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self._next:08d}.npz"
        block.save(path)
        self._next += 1
        self._register(path, block.seq_num.tolist())

    def first(self) -> Block:
        """Return the block that waits longest, joined with what came after where they are small.

        A catalog counts requests, not bytes, and after an outage there may be hundreds of a few frames each.
        """
        return Block.joined([Block.load(file.path) for file in self._first()])

    def _first(self) -> list[_File]:
        taken, frames = self._files[:1], 0
        for file in self._files[1:]:
            frames += len(file.seq_nums)
            if frames + len(taken[0].seq_nums) > _JOINED:
                break
            taken.append(file)
        return taken

    def drop(self) -> None:
        """Forget what `first` returns: it is in the catalog."""
        for file in self._first():
            self._files.remove(file)
            file.path.unlink(missing_ok=True)
        if not self._files:
            with contextlib.suppress(OSError):  # something of somebody else's lies in it
                self.folder.rmdir()

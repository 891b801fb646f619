"""Files that appear whole or not at all, and locks that end with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False, durable: bool = False) -> Iterator[Path]:
    """Give a draft to write to, which takes the place of `path` in one step; after an error nothing is left of it.

    Parameters
    ----------
    path : Path
        File to write, or to replace; the draft lies beside it, under a hidden name that ends as this one does.
    private : bool
        Whether the owner alone may read it.
    durable : bool
        Whether it is to be on the disk, rather than in the system's memory, before it takes its place.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
    >>> with replacing(path) as draft:
    ...     _ = draft.write_text("1 2 3")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('1 2 3', 1)
    """
    draft = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        if private:
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        yield draft
        if durable:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()  # half of it, on a disk that is full
        raise


def write_whole(path: Path, data: bytes, *, private: bool = False, durable: bool = False) -> None:
    """Write or replace a file in one step, see `replacing`."""
    with replacing(path, private=private, durable=durable) as draft:
        draft.write_bytes(data)


def write_json(path: Path, values: Any, *, private: bool = False, durable: bool = False, indent: bool = False) -> None:
    """Write or replace a JSON file in one step; NaN and infinity become null, numpy values plain ones."""
    options = orjson.OPT_SERIALIZE_NUMPY | (orjson.OPT_INDENT_2 if indent else 0)
    write_whole(path, orjson.dumps(values, option=options), private=private, durable=durable)


def as_json(value: Any) -> Any:
    """Make of any value what JSON can say: NaN and infinity become None, numpy values plain ones, all else its `str`.

    Examples
    --------
    >>> import numpy as np
    >>> as_json({"error_rad": float("nan"), "frames": (3, np.arange(2)), 4: 2**70, "file": Path("a")})
    {'error_rad': None, 'frames': [3, [0, 1]], '4': 1.1805916207174113e+21, 'file': 'a'}
    """
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(item) for item in value]
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no such file, or something else in it."""
    try:
        values = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return None
    return values if isinstance(values, dict) else None


def lock(path: Path) -> int | None:
    """Hold a file, made where it is not there, until the descriptor is closed or this process ends.

    Returns
    -------
    int or None
        The descriptor; None when another one has it.

    Raises
    ------
    OSError
        When the file cannot be opened, or its file system has no locks.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    held = False
    try:
        held = lock_descriptor(fd)
    finally:
        if not held:
            os.close(fd)
    return fd if held else None


def lock_descriptor(fd: int) -> bool:
    """Hold an open file until its descriptor is closed; False when another one has it, OSError without locks there."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether somebody holds a file; False where there is none."""
    if not path.exists():
        return False
    fd = lock(path)
    if fd is None:
        return True
    os.close(fd)
    return False

"""A disk that is full for a while."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from bluesky_ptychonn.journal import append_file


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A disk that is full while ``full`` is set; ``torn``: it takes half a line before it says so, and keeps it."""
    state: dict[str, Any] = {"full": False, "torn": False}
    write, truncate = os.write, os.ftruncate

    def full(fd: int, data: Any) -> int:
        if not state["full"]:
            return write(fd, data)
        if state["torn"] and len(data) > 10:
            return write(fd, bytes(data)[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    def stuck(fd: int, length: int) -> None:
        if state["torn"]:
            raise OSError(errno.EIO, "Input/output error")
        truncate(fd, length)

    monkeypatch.setattr(append_file.os, "write", full)
    monkeypatch.setattr(append_file.os, "ftruncate", stuck)
    return state

"""When to ask things of a catalog that a scan writes to at the same time.

Right after an event the scan moves and exposes and leaves the catalog alone. A request sent then meets nobody; sent at
any other moment it stands before the scan's own in the server, and the RunEngine waits for both.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from bluesky_ptychonn.journal.append_file import run_files
from bluesky_ptychonn.live.session import WorkerStatus

_LULL_S = 0.03  # after an event: shorter than most exposures, long enough to begin a request in
_LONGEST_WAIT_S = 0.2
_OVER_S = 1.0  # a journal silent for so long belongs to no scan that makes requests all the time
_POLL_S = 0.002
_LOOK_AGAIN_S = 0.5
_TAIL = 16_384


def before_request(folder: Path) -> Callable[[], None]:
    """Make what waits for the moment to ask, and shows that the worker lives: with a slow catalog a step takes long."""
    pacer = RequestPacer(folder)

    def wait() -> None:
        WorkerStatus.touch(folder)
        pacer.wait()

    return wait


class RequestPacer:
    """Waits until a scan that writes to the catalog leaves it alone; never for long.

    The journals of the session tell: the callback's line for an event is appended when the writer before it is done.
    `clock` gives POSIX seconds, as file times are.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._sleep = sleep
        self._journals: list[Path] = []
        self._look_again = float("-inf")
        self._read_at: tuple[Path, float, int] | None = None
        self._name = ""

    def wait(self) -> None:
        """Return in a lull, after 0.2 s at the latest, and at once when no scan is under way."""
        waited = 0.0  # counted, not read off the clock, which somebody may set back
        while waited < _LONGEST_WAIT_S and not self._quiet():
            self._sleep(_POLL_S)
            waited += _POLL_S

    def _quiet(self) -> bool:
        newest, when, size = self._newest()
        age = self._clock() - when
        if newest is None or age > _OVER_S:
            return True
        if (newest, when, size) != self._read_at:  # with images inside of events the last line may be long
            self._read_at, self._name = (newest, when, size), _last_document(newest)
        name = self._name
        return name == "stop" or (name in ("event", "event_page") and age <= _LULL_S)

    def _newest(self) -> tuple[Path | None, float, int]:
        if time.monotonic() >= self._look_again:
            self._journals = run_files(self._folder)
            self._look_again = time.monotonic() + _LOOK_AGAIN_S
        newest: Path | None = None
        when, size = 0.0, 0
        for path in self._journals:
            with contextlib.suppress(OSError):  # tidied away
                stat = path.stat()
                if stat.st_mtime > when:
                    newest, when, size = path, stat.st_mtime, stat.st_size
        return newest, when, size


def _last_document(path: Path) -> str:
    """Kind of the last document of a journal; empty where it cannot be told."""
    tail, lines = _TAIL, [b""]
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            while len(lines) < 2 and tail < 4 * max(size, _TAIL):  # until the last line is whole
                file.seek(max(0, size - tail))
                lines = file.read(tail).splitlines()
                tail *= 4
    except OSError:
        return ""
    line = lines[-1] if lines else b""
    head = b'{"name":"'  # a line's beginning, as `journal.encode` writes it
    return line[len(head) : line.find(b'"', len(head))].decode(errors="replace") if line.startswith(head) else ""

"""Frames of a run, read through Tiled by row: slices over HTTP, or the local file that the catalog names.

Both ways may be asked for frames that are not there yet; they then give what there is and say why the rest is missing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.circuit_breaker import CircuitBreaker
from bluesky_ptychonn.catalog.runs.data_keys import RunError
from bluesky_ptychonn.catalog.runs.frame_readers import (
    DiffersError,
    HTTPFrames,
    LocalFrames,
    UnprovenError,
    files_of,
    why_not_given,
)

log = logging.getLogger(__name__)

# Rows apart that are still read in one slice: a frame too many costs less than another request.
_BRIDGE = 8
_REQUEST_BYTES = 32 << 20
_TRIES = 3
#: Largest frame; 8192 px square of 32 bit.
MOST_FRAME_BYTES = 256 << 20


@dataclass(frozen=True)
class Fetched:
    """What a source could give of the rows it was asked for."""

    frames: NDArray[Any]  # (n, H, W) counts of the rows found, in the order asked, in the detector's dtype
    found: NDArray[np.bool_]  # (rows,) which of the rows asked for are in `frames`
    broken: NDArray[np.bool_]  # (rows,) which of them are there and cannot be decoded
    problem: str = ""  # why the others are not given; empty when all are
    unreachable: bool = False  # whether that is because the catalog does not answer
    withheld: bool = False  # whether the server gave none of the run's frames so far


class FrameReader(Protocol):
    """Gives frames by their row."""

    def read(self, rows: Sequence[int]) -> Fetched:
        """Read the frames of `rows`, ascending. Rows not there (yet) are no error."""

    def close(self) -> None:
        """Let go of files."""


def slices(rows: Sequence[int], longest: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges that cover ascending `rows` in few pieces of at most `longest`.

    >>> list(slices([0, 1, 2, 5, 40, 41], longest=100))
    [(0, 6), (40, 42)]
    """
    first = last = rows[0]
    for row in rows[1:]:
        if row - last > _BRIDGE or row - first >= longest:
            yield first, last + 1
            first = row
        last = row
    yield first, last + 1


class TiledFrames:
    """Frames of one data key of one run in Tiled: a `FrameReader`.

    Parameters
    ----------
    root, path : Tiled client, sequence of str
        Root of the catalog, and keys from there to the array, such as ``("raw", uid, "primary", "camera_image")``.
    frame_shape : tuple of int
        Rows and columns the descriptor promises.
    local : bool
        Whether to read an HDF5 file directly where the catalog names one that is readable from here.
    breaker : CircuitBreaker, optional
        Asked before the catalog is, and told where that does not answer.
    """

    def __init__(
        self,
        root: Any,
        path: Sequence[str],
        frame_shape: tuple[int, int],
        *,
        local: bool = True,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._root = root
        self._path = tuple(path)
        self._frame_shape = frame_shape
        self._local_tries = _TRIES if local else 0
        self._unproven = 0
        self._breaker = breaker
        self._http: HTTPFrames | None = None
        self._frame_bytes = 0
        self._files: LocalFrames | None = None
        self._given = self._differs = self._readable_here = False  # what is known of the frames
        self._why = ""

    def __repr__(self) -> str:
        return f"<TiledFrames {'/'.join(self._path)} {self.how}>"

    @property
    def how(self) -> str:
        """``file`` or ``http``."""
        return "file" if self._files is not None and self._files.proven else "http"

    def read(self, rows: Sequence[int]) -> Fetched:
        """See `FrameReader.read`; RunError when the array in Tiled does not hold frames of the promised shape."""
        if self.how == "http" and self._breaker is not None:
            self._breaker.wait()
        try:
            got = self._read(rows)
            self._given |= bool(got.found.any())
            if got.broken.any() and not self._given:
                got = replace(got, problem=f"{got.problem}: {self._why_not_given()}", withheld=True)
            return got
        except (KeyError, ConnectionError) as error:
            unreachable = isinstance(error, ConnectionError)
            if not unreachable:
                self._forget()
            message = str(error) if unreachable else "frames are not in the catalog"
            nothing = np.zeros(len(rows), bool)
            return Fetched(np.zeros((0, *self._frame_shape)), nothing, nothing, message, unreachable)

    def _read(self, rows: Sequence[int]) -> Fetched:
        http = self._http = self._http or self._look_up()
        if self._files is None and self._local_tries:
            self._files = self._open_local(http)
        longest = max(1, _REQUEST_BYTES // self._frame_bytes)
        if self._files is not None:
            try:
                return _assemble(self._files, rows, longest)
            except UnprovenError:
                self._unproven += 1
                if self._unproven >= _TRIES and not self._files.proven:
                    self._give_up("it cannot be compared with what the server gives")
                self.close()  # a server inside this process cannot open what is open here without a lock
            except ValueError as error:
                self._give_up(str(error))
        return _assemble(http, rows, longest)

    def _why_not_given(self) -> str:
        """Say why the server gives none of the frames: one request, once."""
        if not self._why and self._http is not None:
            promised = f"{list(self._frame_shape)} px of {self._http.dtype} per point"
            known = {"differs": self._differs, "readable_here": self._readable_here}
            self._why = why_not_given(self._http.data_sources(), promised, **known)
        return self._why

    def _forget(self) -> None:
        """Look the array up once more: a raw writer whose catalog was away writes its run anew, from the beginning."""
        self.close()
        self._http = None
        if self._local_tries:
            self._local_tries = _TRIES

    def _give_up(self, why: str) -> None:
        log.warning("%s: the local file is not used: %s; frames come over HTTP", "/".join(self._path), why)
        self._local_tries = 0
        self.close()

    def close(self) -> None:
        """See `FrameReader.close`."""
        if self._files is not None:
            self._files.close()
            self._files = None

    def _look_up(self) -> HTTPFrames:
        """Find the array; KeyError where there is none (yet)."""
        http, shape = HTTPFrames(self._root, self._path, self._frame_shape, self._breaker), list(self._frame_shape)
        name, rest = "/".join(self._path), http.shape[1:]
        if http.dtype.kind not in "biuf":
            raise RunError(f"{name}: the array in Tiled holds {http.dtype}; counts, one number a pixel, are needed")
        self._frame_bytes = math.prod(self._frame_shape) * http.dtype.itemsize
        if self._frame_bytes > MOST_FRAME_BYTES:
            raise RunError(
                f"{name}: a frame of {shape} px takes {self._frame_bytes / 2**20:.0f} MiB; at most "
                f"{MOST_FRAME_BYTES >> 20} MiB are read"
            )
        if rest not in (self._frame_shape, (1, *self._frame_shape)):
            raise RunError(
                f"{name}: the array in Tiled has {list(rest)} px per point, the descriptor promises {shape}; one frame "
                "per point is needed"
            )
        return http

    def _open_local(self, http: HTTPFrames) -> LocalFrames | None:
        self._local_tries -= 1
        try:
            (source,) = http.data_sources()
            files = LocalFrames(*files_of(source), self._frame_shape, http.dtype, lambda row: http.get(row, row + 1))
        except (OSError, KeyError, ValueError) as error:
            if isinstance(error, ValueError):
                self._local_tries = 0  # not a matter of time
            self._differs = isinstance(error, DiffersError)
            log.info("%s: no local file (%s); frames come over HTTP", self._path, error)
            return None
        self._local_tries = _TRIES
        self._readable_here = True
        return files


def _assemble(reader: HTTPFrames | LocalFrames, rows: Sequence[int], longest: int) -> Fetched:
    """Read `rows` in slices; a slice with a frame that cannot be decoded is read frame by frame."""
    asked = np.asarray(rows)
    found, broken = np.zeros(len(asked), bool), np.zeros(len(asked), bool)
    problem, unreachable = "", False
    parts: list[NDArray[Any]] = []
    todo = [*slices(rows, longest)][::-1]
    while todo:
        first, stop = todo.pop()
        wanted = np.flatnonzero((asked >= first) & (asked < stop))
        try:
            frames = reader.get(first, stop)
        except ConnectionError as error:
            problem, unreachable = str(error), True
            break
        except OSError as error:
            if stop - first > 1:
                middle = (first + stop) // 2
                todo += [(middle, stop), (first, middle)]
            elif len(wanted):
                problem = str(error)
                broken[wanted] = reader.has(first)
            continue
        there = wanted[asked[wanted] < first + len(frames)]
        parts.append(frames[asked[there] - first])
        found[there] = True
    if not problem and not found.all():
        problem = "frames are not in the catalog"
    frames = np.concatenate(parts) if parts else np.zeros((0, 1, 1))
    return Fetched(frames, found, broken, problem, unreachable)

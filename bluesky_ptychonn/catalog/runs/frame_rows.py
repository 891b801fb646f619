"""Which row of the one array of frames, as Tiled shows it, belongs to which event.

While a run goes on its documents name the rows. Tiled keeps the number of rows, not whose they are: for a run that lies
there the naming is found again, or it is said that it cannot be. Both lead to the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.runs.data_keys import RunError

_MOST_ROWS = 1 << 40


@dataclass
class NamedRows:
    """Rows as the documents of a run that goes on name them.

    Tiled joins the files of a data key end to end; indices that begin anew with a new file are moved behind it.
    """

    total: int = 0
    base: dict[str, int] = field(default_factory=dict)
    counted: tuple[int, int] = (0, 0)  # datums that count frames: frames of earlier files, frames of this one

    def row(self, resource: str, index: int) -> int:
        """Row of a streamed frame, by its index in its file."""
        if not 0 <= index < _MOST_ROWS:
            raise ValueError(f"index {index} of a frame in its file; allowed: 0 to {_MOST_ROWS - 1}")
        if resource not in self.base:
            self.base[resource] = self.total if index < self.total else 0
        row = self.base[resource] + index
        self.total = max(self.total, row + 1)
        return row

    def row_of_datum(self, resource: str, kwargs: Mapping[str, Any], seq_num: int) -> int:
        """Row of a classic datum, by the rules with which bluesky-tiled-plugins lays its frames out."""
        if isinstance(kwargs.get("indices"), Mapping):
            return self.row(resource, int(kwargs["indices"]["start"]))
        if kwargs.get("point_number") is not None:
            return self.row(resource, int(kwargs["point_number"]))
        if kwargs.get("frame") is None:
            return self.row(resource, seq_num - 1)
        behind, within = self.counted
        index, within = behind + within, int(kwargs["frame"]) + 1
        if behind + within < index:
            behind = index
        self.counted = (behind, within)
        return self.row(resource, index)


def find_rows(
    seq_nums: NDArray[np.int64], captured: NDArray[np.int64] | None, frames: int, *, ended: bool
) -> NDArray[np.int64]:
    """Find the row of each event's frame in a run that lies in the catalog.

    As many frames as events: each event has its own, in order, whatever a counter says, for it may be read before the
    frame is counted. Only where it counts more frames than there were events by then, frames without an event (a pause
    during the exposure) lie between them; then, and where frames are missing, the counter tells which is whose, if it
    goes with the number of frames.

    Parameters
    ----------
    seq_nums : (n,) int64 ndarray
        Of the events, in the order in which they were written; a point that was measured again is there twice.
    captured : (n,) int64 ndarray or None
        Frames in the file by the file plugin's own counter, as read with each event.
    frames : int
        Rows of the array in Tiled: frames that the documents named.
    ended : bool
        Whether the run has its stop document. Without one its writer may have died between an event and its frame.

    Returns
    -------
    (n,) int64 ndarray
        Rows, -1 where the detector gave no frame.

    Raises
    ------
    RunError
        When nothing tells whose the frames are: another frame at each position would look like an image.

    Examples
    --------
    >>> find_rows(np.array([1, 2, 3]), np.array([0, 1, 2]), 3, ended=True)  # the counter lags behind
    array([0, 1, 2])
    >>> find_rows(np.array([1, 2, 3]), np.array([1, 1, 2]), 2, ended=True)  # the second frame was dropped
    array([ 0, -1,  1])
    """
    events = len(seq_nums)
    in_order = np.arange(events)
    more = captured is not None and bool((captured > in_order + 1).any())
    if frames == events and not more:
        return in_order
    if captured is not None and _is_consistent(captured, frames):
        return np.where(np.diff(captured, prepend=0) > 0, captured - 1, -1)
    if frames == events:  # a counter that does not begin with the run
        return in_order
    unique = len(np.unique(seq_nums)) == events
    if frames > events and unique and (not ended or seq_nums.max(initial=0) == frames):
        return seq_nums - 1  # events are missing, not frames
    if not ended or not frames:
        return np.where(in_order < frames, in_order, -1)
    counter = "no counter was read with the events" if captured is None else "the counter read with them does not fit"
    raise RunError(
        f"the run has {events} events and {frames} frames, and nothing tells which belong together: {counter} "
        "(num_captured of the detector's HDF5 plugin)"
    )


def _is_consistent(captured: NDArray[np.int64], frames: int) -> bool:
    """Whether a counter can be what it says: not read before the frame was counted, and of these frames."""
    steps = np.diff(captured, prepend=0)
    if not len(steps) or (steps < 0).any() or (0 in steps and (steps > 1).any()):  # the last: it caught up
        return False
    # Frames without an event are in the file, and in Tiled's array only where that was made from the file.
    of_events, last = int((steps > 0).sum()), int(captured[-1])
    return frames in (of_events, last) or (of_events == len(steps) and last <= frames)

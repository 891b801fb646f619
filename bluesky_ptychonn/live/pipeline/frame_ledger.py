"""What became of each frame of a run: under way, committed, or rejected with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum

from bluesky_ptychonn.catalog.runs.pairing import FrameRef


class FrameState(Enum):
    """What became of a frame that is no longer under way."""

    COMMITTED = "it has a reconstruction, in the catalog or on its way there"
    REJECTED = "it has none, and its line in the result's table says why"
    UNRECORDED = "it has none, which the result's table has yet to say"


@dataclass(slots=True)
class Attempt:
    """A frame under way, and how often it was there and could not be used: it may be half written."""

    ref: FrameRef
    looks: int = 0


@dataclass(frozen=True, slots=True)
class _Outcome:
    state: FrameState
    ref: FrameRef | None = None
    reason: str = ""


class FrameLedger:
    """Keeps account of a run's frames, by sequence number.

    What was taken is under way until it is committed or rejected; then it takes the place of an earlier measurement of
    the same point, whatever became of that.

    Attributes
    ----------
    outdated : bool
        Whether a committed frame was replaced since `reopen`: what sums over all frames has it twice.
    """

    def __init__(self) -> None:
        self.outdated = False
        self._under_way: dict[int, Attempt] = {}
        self._outcomes: dict[int, _Outcome] = {}
        self._counts = Counter[str]()  # outcomes by reason, empty for committed ones

    def take(self, refs: Iterable[FrameRef]) -> None:
        """Let frames be under way."""
        self._under_way.update((ref.seq_num, Attempt(ref)) for ref in refs)

    def attempts(self, is_current: Callable[[FrameRef], bool]) -> list[Attempt]:
        """Frames under way in the order of their rows; those that are measured again are dropped before."""
        self._under_way = {number: item for number, item in self._under_way.items() if is_current(item.ref)}
        return sorted(self._under_way.values(), key=lambda item: item.ref.row)

    def commit(self, ref: FrameRef) -> None:
        """Note that a frame has a reconstruction."""
        self._close(ref.seq_num, _Outcome(FrameState.COMMITTED, ref))

    def reject(self, seq_num: int, reason: str, state: FrameState = FrameState.UNRECORDED) -> None:
        """Note that a frame has none, and why; nothing new where it is known to have none for this reason."""
        before = self._outcomes.get(seq_num)
        if before is None or before.reason != reason or seq_num in self._under_way:
            self._close(seq_num, _Outcome(state, reason=str(reason)))

    def withdraw(self, seq_num: int, reason: str) -> None:
        """Note that a frame has none after all: its line says so, and nothing sums over it any more."""
        outdated = self.outdated
        self.reject(seq_num, reason, FrameState.REJECTED)
        self.outdated = outdated

    def _close(self, seq_num: int, outcome: _Outcome) -> None:
        self._under_way.pop(seq_num, None)
        before = self._outcomes.get(seq_num)
        if before is not None:
            self._counts[before.reason] -= 1
            self.outdated |= before.state is FrameState.COMMITTED
        self._outcomes[seq_num] = outcome
        self._counts[outcome.reason] += 1

    @property
    def under_way(self) -> int:
        """Frames taken that are neither committed nor rejected."""
        return len(self._under_way)

    @property
    def committed(self) -> int:
        """Frames with a reconstruction."""
        return self._counts[""]

    @property
    def rejected(self) -> dict[str, int]:
        """Frames without one, by reason, the commonest first."""
        return {reason: number for reason, number in self._counts.most_common() if reason and number}

    @property
    def unrecorded(self) -> dict[int, str]:
        """Reasons of rejected frames that have no line in the result's table, by sequence number in ascending order."""
        found = {number: item.reason for number, item in self._outcomes.items() if item.state is FrameState.UNRECORDED}
        return dict(sorted(found.items()))

    def state(self, seq_num: int) -> FrameState | None:
        """Say what became of a frame; None where nothing is known yet."""
        outcome = self._outcomes.get(seq_num)
        return None if outcome is None else outcome.state

    def record(self, seq_nums: Iterable[int]) -> None:
        """Note that rejected frames have their line in the table."""
        for number in seq_nums:
            self._outcomes[number] = replace(self._outcomes[number], state=FrameState.REJECTED)

    def reopen(self) -> list[FrameRef]:
        """Forget the committed frames, and return them to be done once more."""
        refs = [outcome.ref for outcome in self._outcomes.values() if outcome.ref is not None]
        for ref in refs:
            del self._outcomes[ref.seq_num]
        self._counts[""], self.outdated = 0, False
        return refs

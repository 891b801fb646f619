"""Each frame is in one place of the ledger, by its latest measurement, and the numbers add up."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bluesky_ptychonn.catalog.runs.pairing import FrameRef
from bluesky_ptychonn.live.pipeline.frame_ledger import FrameLedger, FrameState

POINTS, REASONS = st.integers(1, 3), st.sampled_from(["not there", "broken"])


class Ledger(RuleBasedStateMachine):
    """What a ledger was told, beside what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.rows = FrameLedger(), 0
        self.current: dict[int, FrameRef] = {}  # the latest measurement of each point
        self.under_way: dict[int, FrameRef] = {}
        self.outcomes: dict[int, FrameRef | str] = {}
        self.recorded: set[int] = set()
        self.replaced = False

    def attempts(self) -> list[FrameRef]:
        return [item.ref for item in self.ledger.attempts(lambda ref: self.current[ref.seq_num] is ref)]

    def close(self, seq_num: int, outcome: FrameRef | str) -> None:
        self.replaced |= isinstance(self.outcomes.get(seq_num), FrameRef)
        self.outcomes[seq_num] = outcome
        self.under_way.pop(seq_num, None)
        self.recorded.discard(seq_num)

    @rule(seq_num=POINTS, taken=st.booleans())
    def measure(self, seq_num: int, taken: bool) -> None:
        """Again or for the first time; `taken` at once, or not before the next look at the attempts."""
        self.rows += 1
        ref = self.current[seq_num] = FrameRef(seq_num, self.rows, 0.0, 0.0, 0.0)
        self.under_way.pop(seq_num, None)
        if taken:
            self.ledger.take([ref])
            self.under_way[seq_num] = ref
        self.attempts()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        ref = self.under_way[data.draw(st.sampled_from(sorted(self.under_way)))]
        self.ledger.commit(ref)
        self.close(ref.seq_num, ref)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), reason=REASONS, recorded=st.booleans())
    def reject(self, data: st.DataObject, reason: str, recorded: bool) -> None:
        seq_num = data.draw(st.sampled_from(sorted(self.under_way)))
        self.ledger.reject(seq_num, reason, FrameState.REJECTED if recorded else FrameState.UNRECORDED)
        self.close(seq_num, reason)
        self.recorded |= {seq_num} if recorded else set()

    @rule(seq_num=POINTS)
    def never_paired(self, seq_num: int) -> None:
        """Said at each attempt to finish the run, and counted once."""
        if seq_num not in self.under_way:
            self.ledger.reject(seq_num, "no event")
            if self.outcomes.get(seq_num) != "no event":
                self.close(seq_num, "no event")

    @rule()
    def record(self) -> None:
        found = self.ledger.unrecorded
        assert list(found) == sorted(found)
        self.ledger.record(found)
        self.recorded |= set(found)

    @rule()
    def reopen(self) -> None:
        committed = {seq_num: ref for seq_num, ref in self.outcomes.items() if isinstance(ref, FrameRef)}
        assert {ref.seq_num: ref for ref in self.ledger.reopen()} == committed
        for seq_num in committed:
            del self.outcomes[seq_num]
        self.replaced = False

    @invariant()
    def each_frame_is_in_one_place(self) -> None:
        ledger, rejected = self.ledger, {n: why for n, why in self.outcomes.items() if isinstance(why, str)}
        assert self.attempts() == sorted(self.under_way.values(), key=lambda ref: ref.row)
        assert ledger.under_way == len(self.under_way)
        assert ledger.committed == len(self.outcomes) - len(rejected)
        assert ledger.rejected == Counter(rejected.values())
        assert ledger.unrecorded == {n: why for n, why in rejected.items() if n not in self.recorded}
        assert ledger.outdated == self.replaced
        for seq_num in range(1, 4):
            state = FrameState.REJECTED if seq_num in self.recorded else FrameState.UNRECORDED
            due = FrameState.COMMITTED if isinstance(self.outcomes.get(seq_num), FrameRef) else state
            assert ledger.state(seq_num) is (due if seq_num in self.outcomes else None)


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)

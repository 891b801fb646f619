"""When a failed run is tried again, and when no more."""

from __future__ import annotations

import pytest

from bluesky_ptychonn.live.pipeline.waiting import Retry


@pytest.mark.parametrize(
    ("failures", "waits", "exhausted"),
    [
        ("oooo", [0.5, 1.0, 2.0, 2.0], False),
        ("mmm", [0.5, 1.0, 2.0], True),
        ("ooooomo", [0.5, 1.0, 2.0, 2.0, 2.0, 10.0, 2.0], False),
        ("oom", [0.5, 1.0, 2.0], True),
    ],
)
def test_an_outage_is_waited_out_and_a_mistake_is_not(failures: str, waits: list[float], exhausted: bool) -> None:
    retry = Retry(lambda: 100.0)
    found = []
    for kind in failures:
        retry.fail(outage=kind == "o")
        found.append(retry.due_at - 100.0)
    assert (found, retry.exhausted, retry.since) == (waits, exhausted, 100.0)
    retry.succeed()
    retry.fail(outage=False)
    assert (retry.due_at, retry.exhausted) == (100.5, False)


def test_an_outage_may_last_for_days() -> None:
    retry = Retry(lambda: 0.0)
    for _ in range(2000):
        retry.fail(outage=True)
    assert retry.due_at == 2.0

"""Spoilt input, a little of it for every parser; ``python -m benchmarks.fuzz`` has the 100,000."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_targets import TARGETS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_spoilt_input_is_taken_or_refused_in_words(name: str, tmp_path: Path) -> None:
    logging.disable(logging.CRITICAL)
    try:
        target = TARGETS[name](tmp_path)
        tried = [(number, *fuzz.attempt(target, fuzz.dice(7, name, number))) for number in range(40)]
    finally:
        logging.disable(logging.NOTSET)
    assert [(number, words) for number, outcome, words in tried if outcome == "finding"] == []
    assert {outcome for _, outcome, _ in tried} == {"accepted", "refused"}  # else the dice do not reach the parser


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("a.npy: cut short"), "refused"),
        (OSError(28, "No space left on device"), "refused"),
        (ValueError(""), "finding"),
        (KeyError("data"), "finding"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "invalid"), "finding"),
        (MemoryError("96 TiB"), "finding"),
    ],
)
def test_what_nobody_put_into_words_is_a_finding(error: Exception, outcome: str) -> None:
    def target(rng: object) -> bool:
        raise error

    assert fuzz.attempt(target, fuzz.dice(0, "x", 0))[0] == outcome


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("while number == 3: pass", "more than 1 s of CPU"),
        ("bytearray((4 << 30) * (number == 3))", "MemoryError"),
        ("import os; number == 3 and os.abort()", "the interpreter ended with -6"),
    ],
)
def test_a_child_that_dies_is_a_finding_and_the_rest_is_tried(
    spoil: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in for the module that the child runs, with one parser that needs no imports.
    code = f"""
import sys, types
targets = types.ModuleType("benchmarks.fuzz_targets")
numbers = iter([-1, *range(int(sys.argv[3]), 9)])
def attempt(rng):
    number = next(numbers)
    {spoil}
    return True
targets.TARGETS, targets.Target = {{"fake": lambda folder: attempt}}, object
sys.modules["benchmarks.fuzz_targets"] = targets
from benchmarks import fuzz
fuzz.CPU_S = 1
fuzz.child("fake", 1, int(sys.argv[3]), int(sys.argv[4]), fuzz.Path(sys.argv[5]))
"""
    script = tmp_path / "child.py"
    script.write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(Path(fuzz.__file__).parents[1]))
    monkeypatch.setattr(fuzz, "CPU_S", 1)
    monkeypatch.setattr(fuzz, "CHILD", [str(script)])
    found = fuzz.fuzz("fake", 1, 6)
    assert (found["accepted"], found["findings_in_all"]) == (5, 1)
    assert found["findings"][0]["input"] == 3
    assert words in found["findings"][0]["what"]
    json.dumps(found)

"""What is fuzzed: every parser of what others wrote.

A target is made once in a child process and then tried with dice: it spoils a seed, writes it down, reads it. It
returns whether what came out was taken whole; what it raises is for `benchmarks.fuzz` to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz_documents import documents, journal
from benchmarks.fuzz_files import Target, archive, card, config, cxi, labelled, model, probe, state_dict

__all__ = ["TARGETS", "Target"]

TARGETS: dict[str, Callable[[Path], Target]] = {
    target.__name__: target
    for target in (cxi, probe, model, card, archive, state_dict, config, labelled, documents, journal)
}

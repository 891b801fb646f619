"""Documents and journals of runs, spoilt, on their way to a result; fakes for network and catalog."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.fuzz_files import Target
from benchmarks.mutations import spoil_bytes, spoil_json, spoil_tree


def _work(folder: Path, factory: Any) -> bool:
    """Let a worker finish the journals of a folder; whether every run is whole. Each frame must be there once."""
    from bluesky_ptychonn.live.pipeline.progress import FINISHED, Timing
    from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings
    from bluesky_ptychonn.live.worker import Worker

    pace = Timing(block=4, flush_s=0, mosaic_s=0, share=1, patience_s=0, outage_s=0)
    settings = ReconstructionSettings(model="fake", catalog="http://nowhere", pace=pace)
    closing = threading.Event()
    closing.set()
    worker = Worker(folder, settings, lambda: factory, silence_s=0)
    worker.run(closing)
    for uid, run in worker.status.runs.items():
        if run.state not in FINISHED:
            raise AssertionError(f"run {uid!r} was left {run.state}")
        sink = factory.sinks.get(uid)
        if run.state in ("complete", "partial") and sink is not None:
            named = sum(run.rejected.values())
            if run.seen != run.done + named or len(sink.table) != run.seen:
                raise AssertionError(f"{run.seen} seen, {run.done} done, {named} named, {len(sink.table)} in the table")
    return bool(worker.status.runs) and all(run.state == "complete" for run in worker.status.runs.values())


def _runs(rng: random.Random) -> tuple[list[tuple[str, dict[str, Any]]], Any]:
    """Documents of one to three interleaved runs, and a factory with their frames."""
    from bluesky_ptychonn.live.pipeline.testing import FakeComponentFactory, FakeSource, RunMaker, frame_of

    factory, parts = FakeComponentFactory(), []
    for number in range(rng.choice((1, 1, 1, 2, 3))):
        uid, points = f"run-{number}", rng.randint(0, 6)
        run = RunMaker(rng.choice(("event", "datum", "stream")), uid)
        run.descriptor, run.file = f"descriptor-{number}", f"file-{number}"
        documents = [*run.open(points)]
        for seq_num in range(1, points + 1):
            documents += run.point(seq_num, 0.0, seq_num / 100)
        parts.append([*documents, *run.close()])
        factory.sources[uid] = FakeSource({row: frame_of(row + 1) for row in range(8)})
    documents = []
    while any(parts):
        part = rng.choice([part for part in parts if part])
        documents.append(part.pop(0))
    return [(name, _plain(doc)) for name, doc in documents], factory


def _plain(doc: dict[str, Any]) -> dict[str, Any]:
    """Take the arrays out of an event, so that it can be spoilt as a tree, and say where they were."""
    if "img" in doc.get("data", {}) and not isinstance(doc["data"]["img"], str):
        return {**doc, "data": {**doc["data"], "img": [[1, 2], [3, 4]]}}
    return doc


def documents(folder: Path) -> Target:
    """Documents from RunEngine to result: journal, follower, pairing, assembly; fakes for network and catalog."""
    from bluesky_ptychonn.journal.router import Journal

    def attempt(rng: random.Random) -> bool:
        documents, factory = _runs(rng)
        for _ in range(rng.randint(0, 3)):
            at, to = rng.randrange(len(documents)), rng.randrange(len(documents))
            match rng.randrange(6):
                case 0:
                    del documents[at]
                case 1:
                    documents.insert(to, documents[at])
                case 2:
                    documents.insert(to, documents.pop(at))
                case 3:
                    documents[at] = (documents[to][0], documents[at][1])
                case _:
                    documents[at] = (documents[at][0], spoil_tree(documents[at][1], rng, 1))
            if not documents:
                break
        home = Path(tempfile.mkdtemp(dir=folder))
        journal, errors = Journal(home, slimmed=True), 0
        try:
            for name, doc in documents:
                try:
                    journal.append(name, doc)
                except (LookupError, TypeError, ValueError, AttributeError):
                    errors += 1  # as `LiveReconstruction` counts them
            journal.close()
            return _work(home, factory) and not errors
        finally:
            journal.close()
            shutil.rmtree(home)

    return attempt


def journal(folder: Path) -> Target:
    """`live.worker.Worker` on a journal that a disk, or somebody, spoilt."""
    from bluesky_ptychonn.journal.append_file import journal_path
    from bluesky_ptychonn.journal.encoding import encode, slim

    def attempt(rng: random.Random) -> bool:
        documents, factory = _runs(rng)
        lines = [encode(name, slim(name, doc) or doc, 0.0) for name, doc in documents]
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(len(lines))
            if rng.random() < 0.5:
                lines[at] = spoil_json(json.loads(encode(*documents[at], 0.0)), rng) + b"\n"
            else:
                lines[at] = spoil_bytes(lines[at], rng, lines[0])
        home = Path(tempfile.mkdtemp(dir=folder))
        try:
            journal_path(home, "run-0").write_bytes(b"".join(lines))
            return _work(home, factory)
        finally:
            shutil.rmtree(home)

    return attempt

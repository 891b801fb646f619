"""A run's verdict reaches the catalog while the run can still be mended, and the user in one line."""

from __future__ import annotations

from typing import Any

import pytest

from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.results.client import PtychoReconstruction
from bluesky_ptychonn.live.pipeline.testing import RunMaker
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from bluesky_ptychonn.recon.quality.run_statistics import RunFigures
from bluesky_ptychonn.recon.quality.verdict import Level, Reason, Verdict
from tests.live.pipeline.test_run import Bench
from tests.support.results import block_of, counts_of, make_sink, picture, start_document


def verdict_of(level: Level, *reasons: str) -> Verdict:
    figures = RunFigures(3, 3, 0.5, 0.1, 9e4, 0.0, 0.0, 0.0, (0.0, 0.0), 0.0, 1.0, 0.1, 0.4)
    return Verdict(level, tuple(Reason.from_text(text) for text in reasons), figures)


def test_the_catalog_hears_when_a_run_turns_bad_and_not_at_every_mosaic(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(RunMaker(), points=6)
    told: list[dict[str, Any]] = []
    keep = bench.sink.write_mosaic

    def write_mosaic(image: MosaicImage, **metadata: Any) -> None:
        told.extend([metadata["verdict"]] if "verdict" in metadata else [])
        keep(image, **metadata)

    monkeypatch.setattr(bench.sink, "write_mosaic", write_mosaic)
    for seq_num, verdict in enumerate(
        (
            verdict_of("ok"),
            verdict_of("ok"),
            verdict_of("wrong", "beam lost: in 3 of 12 frames"),
            verdict_of("wrong", "beam lost: in 4 of 15 frames"),
            verdict_of("doubtful", "beam lost: in 4 of 40 frames"),
        ),
        start=1,
    ):
        bench.factory.fake.judgement = verdict
        bench.point(seq_num)
        bench.work(seconds=30)
    assert [verdict["level"] for verdict in told] == ["ok", "wrong", "doubtful"]
    assert bench.factory.fake.heard == pytest.approx([1e-8 * n for n in (1, 2, 3, 4, 5)])


def test_the_last_verdict_stands_in_the_result() -> None:
    bench = Bench(RunMaker(), points=1)
    bench.point(1)
    bench.work(seconds=30)
    assert "verdict" not in bench.sink.metadata
    bench.factory.fake.judgement = verdict_of("doubtful", "low trust: mean trust 0.2")
    bench.feed(bench.run.close())
    bench.work(seconds=30)
    assert bench.sink.metadata["verdict"]["level"] == "doubtful"


def test_the_client_tells_it_in_one_line(catalog_server: CatalogServer) -> None:
    sink = make_sink(catalog_server, start_document(scan_id=18), frames_expected=1)
    sink.write_block(block_of([1]))
    sink.write_mosaic(picture(30, 20, (3, 4)))
    why = "detector shifted: the mean pattern lies 3.0 px from the model's (rows +3.0, columns +0.0)"
    sink.update(verdict=verdict_of("wrong", why, "low trust: mean trust 0.1").document())
    sink.update(verdict=verdict_of("wrong", why).document())
    sink.finish("success", counts_of(1, expected=1))
    found: PtychoReconstruction = catalog_server.processed[sink.key]
    assert found.verdict == verdict_of("wrong", why).document()
    assert "verdict wrong (detector shifted: the mean pattern lies 3.0 px from the model's)" in repr(found)
    assert "\n" not in repr(found)

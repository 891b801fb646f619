"""Finding the runs without a whole reconstruction, and making it; on a real server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import pytest
from bluesky.preprocessors import run_decorator

from bluesky_ptychonn.beamline.plans import ptycho_scan
from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.results.client import reconstructions
from bluesky_ptychonn.live.batch.backfill import backfill, unfinished
from bluesky_ptychonn.live.batch.reconstruct import reconstruct
from tests.support.results import make_sink

pytestmark = pytest.mark.system


def test_what_lacks_a_reconstruction_gets_it_and_nothing_else(
    RE: Any, tiled_writer: Any, catalog_server: CatalogServer, small_model: Path, detector_folder: Path
) -> None:
    began = time.time()
    beamline = SimulatedBeamline.demo(detector_folder)
    stage = beamline.stage

    def scan(**md: Any) -> Any:
        return ptycho_scan([beamline.camera], stage.x, stage.y, 0.6, 0.6, 0.6, md=md)

    (never,) = RE(scan())
    (done,) = RE(scan())
    (interrupted,) = RE(scan())
    (unusable,) = RE(scan())
    (longer,) = RE(scan(num_points=2))  # as a plan does that measures what it finds on its way
    beamline.camera.inject(drop_frames={2})
    (with_a_gap,) = RE(scan())
    beamline.camera.inject()
    (mistaken,) = RE(scan(ptychography={"x_key": "stage_z"}))
    RE(bp.count([beamline.camera], 1))  # no ptychography

    @run_decorator(md={"ptychography": {"geometry": {}}})
    def stops_at_once() -> Any:
        raise RuntimeError("the shutter is closed")
        yield

    with pytest.raises(RuntimeError, match="shutter"):
        RE(stops_at_once())
    reconstruct(done, small_model, catalog_server)
    make_sink(catalog_server, start=catalog_server.raw[interrupted].metadata["start"])  # and then killed
    failed = make_sink(catalog_server, start=catalog_server.raw[unusable].metadata["start"])
    failed.finish("success", {"expected": 4, "seen": 4, "reconstructed": 0, "rejected": {}})

    found = {run.uid: run.reason for run in unfinished(catalog_server, since=began)}
    for uid in (longer, with_a_gap, mistaken):
        assert found.pop(uid) == "has no reconstruction"
    assert found.pop(never) == "has no reconstruction"
    assert found.pop(interrupted) == "its reconstruction was interrupted"
    assert found.pop(unusable) == "its reconstruction is failed"
    assert [*found.values()] == ["has no reconstruction"]  # the one whose plan failed before its first frame

    made = {run.uid: result for run, result in backfill(catalog_server, small_model, since=began)}
    assert all(made[uid].metadata["status"] == "complete" for uid in (never, interrupted, unusable, longer))
    assert made[with_a_gap].metadata["status"] == "partial"
    assert "has no x_key 'stage_z'" in str(made[mistaken])
    assert isinstance(made[next(iter(found))], ValueError)  # said, and the others were made all the same
    assert len(reconstructions(catalog_server, raw=done, limit=500)) == 1
    left = {run.uid: run.reason for run in unfinished(catalog_server, since=began)}
    assert left == {with_a_gap: "its reconstruction is partial", mistaken: "its reconstruction is failed"}
    assert list(unfinished(catalog_server, small_model, since=began)) == []
    assert list(backfill(catalog_server, small_model, since=began)) == []  # it would end the same way
    again = [run.uid for run in unfinished(catalog_server, small_model, since=began, x_key="stage_x")]
    assert again == [mistaken, with_a_gap]  # other options may help

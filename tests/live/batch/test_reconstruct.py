"""Runs that lie in the catalog already, on a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bluesky.plans as bp
import numpy as np
import pytest

from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.results.client import reconstructions
from bluesky_ptychonn.cli.common.catalogs import find_reconstruction, refused_later
from bluesky_ptychonn.live.batch.reconstruct import reconstruct
from bluesky_ptychonn.live.pipeline.progress import Progress
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.recon.mosaic.probe_tuning import ABERRATIONS
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement

pytestmark = pytest.mark.system


def grid(beamline: Any, **md: Any) -> Any:
    """A plain Bluesky scan, which says nothing of ptychography."""
    stage = beamline.stage
    return bp.grid_scan([beamline.camera], stage.y, -3e-4, 3e-4, 3, stage.x, -3e-4, 3e-4, 3, False, md=md)


def test_run_that_says_nothing_of_ptychography(
    RE: Any, tiled_writer: Any, catalog_server: CatalogServer, small_model: Path, detector_folder: Path
) -> None:
    beamline = SimulatedBeamline.demo(detector_folder, drop_frames={4})
    (uid,) = RE(grid(beamline))
    with pytest.raises(ValueError, match="cannot be reconstructed: start document: no geometry. Needed: energy_ev"):
        reconstruct(uid, small_model, catalog_server)

    seen: list[int] = []

    def note(progress: Progress) -> None:
        seen.append(progress.done)

    result = reconstruct(uid[:8], small_model, catalog_server, geometry=beamline.geometry, progress=note)
    assert seen[-1] == 8
    counts = result.metadata["counts"]
    assert (counts["reconstructed"], counts["rejected"]) == (8, {"detector gave no frame": 1})
    frames = result.frames.set_index("seq_num")
    good = [1, 2, 3, 5, 6, 7, 8, 9]
    x_m = np.asarray(tiled_writer.client[uid]["primary"]["stage_x"].read()) * 1e-3
    np.testing.assert_allclose(frames.x_m[good], x_m[[n - 1 for n in good]], atol=1e-12)
    again = reconstruct(uid, small_model, catalog_server, geometry=beamline.geometry, device="cpu", threads=1)
    assert again.path_parts != result.path_parts
    np.testing.assert_allclose(again.phase.read(), result.phase.read(), atol=1e-5)
    tuned = reconstruct(
        uid, small_model, catalog_server, geometry=beamline.geometry, refine=Refinement(sweeps=1, tune_probe=True)
    )
    refinement = tuned.metadata["refinement"]
    assert refinement["settings"]["tune_probe"]
    assert set(refinement["probe"]["aberrations_rad"]) == set(ABERRATIONS)
    assert refinement["probe"]["frames"] == 8


def test_the_error_names_the_folder_that_the_server_may_not_read(
    RE: Any, tiled_writer: Any, catalog_server: CatalogServer, small_model: Path, tmp_path: Path
) -> None:
    beamline = SimulatedBeamline.demo(tmp_path)
    (uid,) = RE(grid(beamline, ptychography={"geometry": beamline.geometry.model_dump(mode="json")}))
    words = rf"no frame was reconstructed: 9 \(catalog's server gives .*\): .* {tmp_path}.* readable_storage"
    with pytest.raises(ValueError, match=words):
        reconstruct(uid, small_model, catalog_server)


def test_a_run_that_gives_no_image_says_why_and_hides_none(
    RE: Any, tiled_writer: Any, catalog_server: CatalogServer, small_model: Path, detector_folder: Path
) -> None:
    beamline = SimulatedBeamline.demo(detector_folder)
    geometry = beamline.geometry.model_dump(mode="json")
    (uid,) = RE(grid(beamline, ptychography={"geometry": geometry}))
    image = reconstruct(uid, small_model, catalog_server)
    blinding = PreprocessConfig(saturation=1.0)
    words = r"cannot be reconstructed: no frame was reconstructed: 9 \(saturated\); see processed/"
    with pytest.raises(ValueError, match=words):
        reconstruct(uid, small_model, catalog_server, preprocess=blinding)
    with pytest.raises(ValueError, match="has no stream 'fly'; it has primary"):
        reconstruct(uid, small_model, catalog_server, stream="fly")
    other, blind = reconstructions(catalog_server, raw=uid, status="failed")
    assert other.problems == [other.metadata["problem"]]
    assert "has no stream 'fly'; it has primary" in other.problems[0]
    assert other.metadata["exit_status"] == "success"
    assert "seen" not in other.counts
    assert blind.problems == ["9 frames have no reconstruction: 9 (saturated)"]
    for which in ("latest", uid, uid[:8]):
        assert find_reconstruction(catalog_server.client, which).path_parts == image.path_parts
    later = refused_later(catalog_server.client, image)
    assert len(later) == 2
    assert "has no stream 'fly'" in later[0]
    (only,) = RE(grid(beamline, ptychography={"geometry": geometry}))
    with pytest.raises(ValueError, match="9 \\(saturated\\)"):
        reconstruct(only, small_model, catalog_server, preprocess=blinding)
    with pytest.raises(LookupError, match="has no phase: 9 frames have no reconstruction"):
        find_reconstruction(catalog_server.client, only[:8]).phase.read()


def test_words_for_what_is_wrong(
    RE: Any, tiled_writer: Any, catalog_server: CatalogServer, small_model: Path, detector_folder: Path
) -> None:
    beamline = SimulatedBeamline.demo(detector_folder)
    (uid,) = RE(bp.count([beamline.camera], 2))
    with pytest.raises(ValueError, match="positions: the hints name no motor"):
        reconstruct(uid, small_model, catalog_server, geometry=beamline.geometry)
    with pytest.raises(ValueError, match="has no stream 'fly'; it has primary"):
        reconstruct(uid, small_model, catalog_server, geometry=beamline.geometry, stream="fly")
    with pytest.raises(ValueError, match="no run 'nothing' in"):
        reconstruct("nothing", small_model, catalog_server)
    with pytest.raises(ValueError, match="model 'nothing' is unknown"):
        reconstruct(uid, "nothing", catalog_server)

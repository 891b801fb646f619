"""Recorded scans played through the simulated camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky import plans as bp
from bluesky.utils import FailedStatus

from bluesky_ptychonn.beamline.frames import DATASET
from bluesky_ptychonn.beamline.replay import ReplayBeamline, replay_scan
from bluesky_ptychonn.optics.cxi import CxiScan, LazyFrames
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from bluesky_ptychonn.recon.evaluation.metrics import phase_correlation
from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
from bluesky_ptychonn.recon.models.checkpoint import load_model
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic


@pytest.fixture
def recorded(tmp_path) -> CxiScan:
    """Nine frames 8×8, the k-th full of k; the last two at one place; float32 counts with a NaN."""
    frames = np.arange(9, dtype=np.float32)[:, None, None] * np.ones((8, 8), np.float32)
    frames[5, 0, 0] = np.nan
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["data"] = frames
    x = np.array([0, 1, 2, 3, 4, 5, 6, 7, 7]) * 1e-7
    geometry = Geometry(energy_ev=1e4, distance_m=1.0, pixel_pitch_m=75e-6, frame_shape=(8, 8))
    lazy = LazyFrames(tmp_path / "r.h5", "data", (9, 8, 8), np.dtype(np.float32))
    return CxiScan(tmp_path / "r.h5", lazy, y_m=-x, x_m=x, geometry=geometry, probe=None, bad_pixels=None)


def written(beamline: ReplayBeamline) -> np.ndarray:
    (path,) = beamline.camera.folder.glob("*.h5")
    with h5py.File(path) as file:
        frames: np.ndarray = file[DATASET][:]
    return frames


@pytest.mark.parametrize("kind", ["stream", "classic"])
def test_every_frame_is_played_at_its_position_in_its_own_type(RE, of, tmp_path, recorded, kind) -> None:
    beamline = ReplayBeamline.from_scan(recorded, tmp_path / "frames", documents=kind, egu="um")
    RE(replay_scan(beamline))
    np.testing.assert_array_equal(written(beamline), recorded.frames[:])
    assert written(beamline).dtype == np.float32
    assert of("descriptor")[0]["data_keys"]["camera_image"]["dtype_numpy"] == "<f4"
    x_um = [e["data"]["stage_x"] for e in of("event")]
    np.testing.assert_allclose(x_um, recorded.x_m * 1e6)
    about = of("start")[0]["ptychography"]
    assert (about["dense_equivalent_frames"], about["dose_saved_fraction"]) == (9, 0.0)
    assert about["geometry"]["frame_shape"] == [8, 8]


def test_every_nth_frame(RE, of, tmp_path, recorded) -> None:
    beamline = ReplayBeamline.from_scan(recorded, tmp_path / "frames")
    RE(replay_scan(beamline, every=3, first=1, md={"sample": "ramp"}))
    assert written(beamline)[:, 1, 1].tolist() == [1, 4, 7]
    start = of("start")[0]
    assert start["sample"] == "ramp"
    assert start["num_points"] == 3
    assert start["ptychography"]["dose_saved_fraction"] == pytest.approx(2 / 3)
    about = start["ptychography"]
    assert about["step_m"] == pytest.approx(3 * 2**0.5 * 1e-7)
    assert about["recorded_index"] == {"every": 3, "first": 1}
    with pytest.raises(ValueError, match="every 0 and first 0 leave no frame of 9"):
        RE(replay_scan(beamline, every=0))
    with pytest.raises(ValueError, match="frames must name some of 0 to 8; got \\[9\\]"):
        RE(replay_scan(beamline, frames=[9]))
    RE(replay_scan(beamline, first=8))
    assert of("start")[-1]["ptychography"]["step_m"] is None


def test_a_raster_is_thinned_in_both_directions_and_says_its_true_sampling(RE, of, tmp_path) -> None:
    rows, columns = np.indices((63, 63)).reshape(2, -1) * 2e-7
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["data"] = np.ones((len(rows), 8, 8), np.uint16)
    geometry = Geometry(energy_ev=1e4, distance_m=1.0, pixel_pitch_m=75e-6, frame_shape=(8, 8))
    lazy = LazyFrames(tmp_path / "r.h5", "data", (len(rows), 8, 8), np.dtype(np.uint16))
    probe = np.zeros((8, 8), np.complex64)
    probe[3:6, 3:6] = 1
    scan = CxiScan(tmp_path / "r.h5", lazy, y_m=rows, x_m=columns, geometry=geometry, probe=probe, bad_pixels=None)
    beamline = ReplayBeamline.from_scan(scan, tmp_path / "frames", egu="um")
    RE(replay_scan(beamline, every=64))
    played = np.array([[e["data"][f"stage_{axis}"] for axis in "yx"] for e in of("event")])  # µm
    assert len(played) == 63
    between = np.hypot(*np.moveaxis(played[:, None] - played[None], -1, 0)) + 1e9 * np.eye(len(played))
    far = np.hypot(*np.moveaxis(1e6 * np.stack([rows, columns], 1)[:, None] - played[None], -1, 0)).min(axis=1).max()
    # 64 times the area of a frame each: 8 steps of 0.2 µm apart on a square lattice.
    assert between.min() > 0.7 * 1.6
    assert far < 0.9 * 1.6
    about = of("start")[0]["ptychography"]
    assert about["step_m"] == pytest.approx(np.median(between.min(axis=1)) * 1e-6)
    assert about["sampling"] == pytest.approx(about["step_m"] / beamline.camera.probe_diameter_m)


def test_a_file_is_cut_and_its_mask_applied_before_it_is_played(RE, of, tmp_path) -> None:
    counts = np.arange(9 * 10 * 12, dtype=np.uint16).reshape(9, 10, 12)
    mask = np.zeros((10, 12), np.uint32)
    mask[4, 5] = 2
    with h5py.File(tmp_path / "a.cxi", "w") as file:
        for place, value in {
            "data_1/data": counts,
            "data_1/translation": np.arange(27.0).reshape(9, 3) * 1e-7,
            "instrument_1/source_1/energy": 1e4 * 1.602176634e-19,
            "instrument_1/detector_1/distance": 1.0,
            "instrument_1/detector_1/x_pixel_size": 75e-6,
            "instrument_1/detector_1/mask": mask,
        }.items():
            file[f"entry_1/{place}"] = value
    with pytest.raises(ValueError, match="frames of 10 x 12 px .* give crop="):
        ReplayBeamline.from_scan(tmp_path / "a.cxi", tmp_path / "frames")
    beamline = ReplayBeamline.from_scan(tmp_path / "a.cxi", tmp_path / "frames", crop=8, centre=(5, 6), egu="um")
    RE(replay_scan(beamline))
    wanted = counts[:, 1:9, 2:10].astype(np.float32)
    wanted[:, 3, 3] = np.nan
    np.testing.assert_array_equal(written(beamline), wanted)
    about = of("start")[0]["ptychography"]
    assert about["geometry"]["frame_shape"] == [8, 8]
    assert about["recorded_corrections"] == ["mask: 1.56% of the pixels are NaN"]
    with pytest.raises(ValueError, match="crop: this scan is read already; give them to read_cxi"):
        ReplayBeamline.from_scan(beamline.scan, tmp_path / "frames", crop=8)


def test_what_a_file_says_of_its_detector_reaches_the_image(RE, tmp_path) -> None:
    experiment, rng = SimulatedExperiment.demo(), np.random.default_rng(7)
    y, x = (np.indices((5, 5)).reshape(2, -1) - 2) * 0.35e-6
    frames = np.stack([experiment.frame_at(*at, rng) for at in zip(y, x, strict=True)])
    dark = np.round(20 + 5 * np.sin(np.arange(64) / 5)) * np.ones((64, 1))
    recorded = (frames + dark).astype(np.uint16)
    mask = np.full((64, 64), 0x1000)
    for pixel in rng.integers(20, 44, (8, 2)):
        recorded[(slice(None), *pixel)], mask[tuple(pixel)] = 30000, 1
    geometry = experiment.geometry
    with h5py.File(tmp_path / "a.cxi", "w") as file:
        for place, value in {
            "data_1/data": recorded[:, :, ::-1],
            "data_1/translation": 1e3 * np.stack([x, y, 0 * x], axis=1),
            "instrument_1/source_1/energy": geometry.energy_ev * 1.602176634e-19,
            "instrument_1/detector_1/distance": geometry.distance_m,
            "instrument_1/detector_1/basis_vectors": geometry.pixel_pitch_m * np.array([(0.0, -1, 0), (1, 0, 0)]),
            "instrument_1/detector_1/mask": mask[:, ::-1],
            "instrument_1/detector_1/data_dark": dark[:, ::-1],
        }.items():
            file[f"entry_1/{place}"] = value
        file["entry_1/data_1/translation"].attrs["units"] = "mm"
    beamline = ReplayBeamline.from_scan(tmp_path / "a.cxi", tmp_path / "frames")
    RE(replay_scan(beamline))
    engine = Reconstructor(load_model("simulated-zp64"), beamline.geometry, device="cpu")

    def correlation(frames: np.ndarray) -> float:
        batch = engine.for_run().reconstruct(frames)
        mosaic = Mosaic(engine.pixel_m, engine.weight, anchor=engine.anchor)
        mosaic.add(batch.patches, beamline.scan.y_m, beamline.scan.x_m, batch.trust)
        mosaic.synchronise()
        image = mosaic.snapshot()
        seen = (image.coverage > 0.1 * image.coverage.max()).astype(float)
        return phase_correlation(image.complex, experiment.truth_on(image.origin_m, image.phase.shape), seen)

    assert correlation(written(beamline)) > correlation(frames) - 0.005 > 0.96
    assert correlation(recorded) < 0.5


def test_other_plans_must_keep_to_measured_positions(RE, tmp_path, recorded) -> None:
    beamline = ReplayBeamline.from_scan(recorded, tmp_path / "frames")
    with pytest.raises(FailedStatus) as failed:
        RE(bp.scan([beamline.camera], beamline.stage.x, 0.0, 5e-5, num=2))
    assert "nothing was measured at y 0.0000, x 0.0500 µm; the nearest frame is number" in str(failed.value.__cause__)


def test_the_star_is_replayed_frame_by_frame(RE, of, tmp_path, measured: Path) -> None:
    beamline = ReplayBeamline.from_scan(measured / "velociprobe-siemens-star.cxi", tmp_path / "frames")
    chosen = list(range(0, 516, 100))
    RE(replay_scan(beamline, frames=chosen))
    np.testing.assert_array_equal(written(beamline), beamline.scan.frames[chosen])
    assert of("start")[0]["ptychography"]["recorded_index"] == {"frames": chosen}
    about: dict[str, Any] = of("start")[0]["ptychography"]
    assert about["dense_equivalent_frames"] == 516
    assert about["probe_diameter_m"] == pytest.approx(1.6e-6, rel=0.05)
    positions = [(e["data"]["stage_y"] * 1e-3, e["data"]["stage_x"] * 1e-3) for e in of("event")]
    np.testing.assert_allclose(positions, np.column_stack([beamline.scan.y_m, beamline.scan.x_m])[::100], atol=1e-15)

"""The simulated beamline: documents, files, faults."""

from __future__ import annotations

from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import h5py
import numpy as np
import pytest
from bluesky.utils import FailedStatus, RunEngineInterrupted
from ophyd.utils.errors import LimitError

from bluesky_ptychonn.beamline.axis import SimAxis, SimStage
from bluesky_ptychonn.beamline.frames import DATASET, FrameFile
from bluesky_ptychonn.beamline.sim import SimulatedBeamline

UM = 1e-3  # in mm, the unit of the stage


def scan(beamline: SimulatedBeamline, num: int = 5, **md: Any) -> Any:
    return bp.scan([beamline.camera], beamline.stage.x, -UM, UM, beamline.stage.y, 0.0, UM, num=num, md=md)


def frames_of(beamline: SimulatedBeamline) -> np.ndarray:
    (path,) = beamline.camera.folder.glob("*.h5")
    with h5py.File(path, "r") as file:
        return file[DATASET][:]


@pytest.mark.parametrize("kind", ["stream", "classic"])
def test_frames_show_the_sample_at_the_readback(RE, of, tmp_path, kind) -> None:
    beamline = SimulatedBeamline.demo(tmp_path, documents=kind)
    RE(scan(beamline))
    frames = frames_of(beamline)
    assert frames.dtype == np.uint16
    events = of("event")
    assert len(events) == len(frames) == 5
    for exposure, (event, frame) in enumerate(zip(events, frames, strict=True)):
        y_m, x_m = event["data"]["stage_y"] * 1e-3, event["data"]["stage_x"] * 1e-3
        rng = np.random.default_rng([beamline.experiment.seed, exposure])
        np.testing.assert_array_equal(frame, beamline.experiment.frame_at(y_m, x_m, rng))


def test_stream_documents_pair_frames_with_events(RE, of, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path)
    RE(scan(beamline))
    (resource,) = of("stream_resource")
    assert resource["mimetype"] == "application/x-hdf5"
    assert resource["parameters"] == {"dataset": DATASET, "swmr": True, "chunk_shape": [1, 64, 64]}
    assert [(d["indices"]["start"], d["seq_nums"]["start"]) for d in of("stream_datum")] == [
        (i, i + 1) for i in range(5)
    ]
    key = of("descriptor")[0]["data_keys"]["camera_image"]
    assert (key["shape"], key["dtype_numpy"], key["units"], key["external"]) == ([64, 64], "<u2", "counts", "STREAM:")


def test_classic_documents_are_those_of_areadetector(RE, of, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path, documents="classic")
    RE(scan(beamline))
    (resource,) = of("resource")
    assert resource["spec"] == "AD_HDF5_SWMR"
    assert resource["resource_kwargs"] == {"frame_per_point": 1}
    assert (tmp_path / resource["resource_path"]).is_file()
    datums = {d["datum_id"]: d["datum_kwargs"]["point_number"] for d in of("datum")}
    assert [datums[e["data"]["camera_image"]] for e in of("event")] == list(range(5))
    assert all(e["filled"] == {"camera_image": False} for e in of("event"))
    assert of("descriptor")[0]["data_keys"]["camera_image"]["shape"] == [1, 64, 64]


def test_positions_say_their_unit_and_the_dimensions_their_motors(RE, of, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path, egu="um")
    RE(scan(beamline))
    keys = of("descriptor")[0]["data_keys"]
    assert keys["stage_x"]["units"] == keys["stage_y"]["units"] == "um"
    assert keys["stage_x"]["dtype_numpy"] == "<f8"
    assert of("start")[0]["hints"]["dimensions"] == [(["stage_x", "stage_y"], "primary")]


def test_frames_are_readable_while_the_file_is_open(tmp_path) -> None:
    file = FrameFile(tmp_path / "a.h5", (8, 8))
    file.write(0, np.full((8, 8), 3, np.uint16), unique_id=1, timestamp=1.0)
    with h5py.File(tmp_path / "a.h5", "r", swmr=True) as reader:
        assert reader[DATASET][0].sum() == 3 * 64
        file.write(1, np.full((8, 8), 4, np.uint16), unique_id=2, timestamp=2.0)
        reader[DATASET].refresh()
        assert reader[DATASET][1].sum() == 4 * 64
    file.close()
    file.close()
    assert file.closed


def test_a_frame_file_refuses_what_would_spoil_it(tmp_path) -> None:
    file = FrameFile(tmp_path / "a.h5", (8, 8))
    with pytest.raises(FileExistsError, match="never overwritten"):
        FrameFile(tmp_path / "a.h5", (8, 8))
    with pytest.raises(ValueError, match=r"got a frame \(4, 4\) uint16; this file holds \(8, 8\)"):
        file.write(0, np.zeros((4, 4), np.uint16), unique_id=1, timestamp=0.0)
    with pytest.raises(ValueError, match="opens a gap; allowed 0 to 0"):
        file.write(3, np.zeros((8, 8), np.uint16), unique_id=1, timestamp=0.0)
    with pytest.raises(ValueError, match="needs compression='zlib'"):
        file.write(0, np.zeros((8, 8), np.uint16), unique_id=1, timestamp=0.0, readable=False)
    file.close()


def test_a_dropped_frame_leaves_a_gap_that_the_documents_show(RE, of, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path, drop_frames={2, 4})
    RE(scan(beamline, 5))
    assert len(of("event")) == 5
    pairs = [(d["indices"]["start"], d["seq_nums"]["start"]) for d in of("stream_datum")]
    assert pairs == [(0, 1), (1, 3), (2, 5)]
    assert [e["data"]["camera_hdf1_num_captured"] for e in of("event")] == [1, 1, 2, 2, 3]
    (path,) = tmp_path.glob("*.h5")
    with h5py.File(path) as file:
        assert file["/entry/instrument/NDAttributes/NDArrayUniqueId"][:].tolist() == [1, 3, 5]


@pytest.mark.parametrize("kind", ["stream", "classic"])
def test_a_blank_frame_stands_for_a_missed_one(RE, of, tmp_path, kind) -> None:
    beamline = SimulatedBeamline.demo(tmp_path, documents=kind, drop_frames={2}, missed="blank")
    RE(scan(beamline, 3))
    assert [bool(frame.any()) for frame in frames_of(beamline)] == [True, False, True]


def test_an_unreadable_frame_fails_the_reader_and_only_there(RE, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path, corrupt_frames={2})
    RE(scan(beamline, 3))
    (path,) = tmp_path.glob("*.h5")
    with h5py.File(path) as file:
        assert file[DATASET][0].any()
        with pytest.raises(OSError, match="filter returned failure"):
            file[DATASET][1]
        assert file[DATASET][2].any()


def test_classic_events_cannot_leave_a_frame_out(tmp_path) -> None:
    with pytest.raises(ValueError, match="missed='absent' needs documents='stream'"):
        SimulatedBeamline.demo(tmp_path, documents="classic", drop_frames={1}, missed="absent")
    with pytest.raises(ValueError, match="allowed: 'stream', 'classic'"):
        SimulatedBeamline.demo(tmp_path, documents="modern")


def test_injected_faults_hold_for_later_runs(RE, of, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path)
    RE(scan(beamline, 3))
    beamline.camera.inject(drop_frames={1})
    RE(scan(beamline, 3))
    assert len(of("stream_datum")) == 3 + 2
    assert len(list(tmp_path.glob("*.h5"))) == 2


def test_a_pause_repeats_a_point_and_leaves_no_orphan_in_the_file(RE, of, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path, exposure_s=0.02)

    def interrupted() -> Any:
        first = True

        def one(detectors: Any, step: Any, pos_cache: Any) -> Any:
            nonlocal first
            yield from bps.checkpoint()
            yield from bps.move_per_step(step, pos_cache)
            if first and len(of("event")) == 2:
                first = False
                yield from bps.trigger(beamline.camera, wait=True)  # its event never comes
                yield from bps.pause()
            yield from bps.trigger_and_read([*detectors, *step])

        yield from bp.scan([beamline.camera], beamline.stage.x, -UM, UM, num=4, per_step=one)

    with pytest.raises(RunEngineInterrupted):
        RE(interrupted())
    RE.resume()
    assert [e["seq_num"] for e in of("event")] == [1, 2, 3, 4]
    assert [(d["indices"]["start"], d["seq_nums"]["start"]) for d in of("stream_datum")] == [
        (i, i + 1) for i in range(4)
    ]
    assert len(frames_of(beamline)) == 4


def test_orphans_stay_where_asked(RE, of, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path, keep_orphans=True)

    def plan() -> Any:
        yield from bps.stage(beamline.camera)
        yield from bps.open_run()
        yield from bps.trigger(beamline.camera, wait=True)
        yield from bps.trigger_and_read([beamline.camera])
        yield from bps.close_run()
        yield from bps.unstage(beamline.camera)

    RE(plan())
    assert len(frames_of(beamline)) == 2
    assert [d["indices"]["start"] for d in of("stream_datum")] == [1]


def test_an_aborted_run_closes_its_file_and_says_so(RE, of, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path)

    def stopping(detectors: Any, step: Any, pos_cache: Any) -> Any:
        yield from bps.one_nd_step(detectors, step, pos_cache)
        if len(of("event")) == 2:
            yield from bps.pause()

    with pytest.raises(RunEngineInterrupted):
        RE(bp.scan([beamline.camera], beamline.stage.x, -UM, UM, num=4, per_step=stopping))
    RE.abort("enough")
    assert of("stop")[0]["exit_status"] == "abort"
    assert len(frames_of(beamline)) == 2  # opens without SWMR: nobody holds it


def test_a_source_that_fails_fails_the_plan(RE, of, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path)

    class Broken:
        geometry = beamline.geometry
        dtype = np.dtype(np.uint16)
        probe_diameter_m = None

        def frame_at(self, y_m: float, x_m: float, exposure: int) -> Any:
            raise RuntimeError("the shutter is stuck")

    beamline.camera.source = Broken()
    with pytest.raises(FailedStatus):
        RE(scan(beamline))
    assert of("stop")[0]["exit_status"] == "fail"


def test_trigger_without_stage_is_refused(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="not staged"):
        SimulatedBeamline.demo(tmp_path).camera.trigger()


def test_soft_limits_name_axis_value_and_unit() -> None:
    axis = SimAxis(name="x", egu="um", limits=(-5, 5))
    with pytest.raises(LimitError, match="x: position 7 um is outside the soft limits -5 to 5 um"):
        axis.set(7)
    assert axis.position == 0


def test_an_axis_with_a_unit_that_is_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="unit 'deg' is not a length"):
        SimAxis(name="x", egu="deg")


def test_a_slow_axis_travels_and_stops_where_it_is() -> None:
    axis = SimAxis(name="x", egu="um", velocity=10.0)
    status = axis.set(100.0)
    assert not status.done
    axis.stop(success=True)
    status.wait(2)
    assert 0 <= axis.position < 100
    here = axis.position
    axis.velocity.put(1e4)
    axis.set(here + 5).wait(2)
    assert axis.position == here + 5
    assert not axis.moving


def test_a_new_target_replaces_the_old() -> None:
    axis = SimAxis(name="x", egu="um", velocity=10.0)
    first = axis.set(100.0)
    axis.velocity.put(1e5)
    axis.set(-1.0).wait(2)
    assert axis.position == -1.0
    assert first.done
    assert not first.success


def test_settling_leaves_readback_off_setpoint_reproducibly() -> None:
    def go() -> tuple[float, float]:
        stage = SimStage(name="s", egu="um", settle_error=0.01, seed=4)
        stage.x.set(1.0).wait()
        stage.y.set(1.0).wait()
        assert stage.x.user_setpoint.get() == 1.0
        return stage.x.position, stage.y.position

    assert go() == go()
    assert 0 < abs(go()[0] - 1) < 0.1
    assert go()[0] != go()[1]

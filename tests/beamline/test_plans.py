"""Plans through a real RunEngine: points, metadata, refusals."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from ophyd import Signal
from ophyd.status import Status

from bluesky_ptychonn.beamline.axis import SimAxis
from bluesky_ptychonn.beamline.plans import (
    ptycho_scan,
    rel_ptycho_scan,
    rel_sparse_ptycho_scan,
    sparse_ptycho_scan,
)
from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.card import InputContract, ModelCard, ProbeReference, SamplingPoint
from bluesky_ptychonn.optics.geometry import Geometry


@pytest.fixture
def beamline(tmp_path) -> SimulatedBeamline:
    return SimulatedBeamline.demo(tmp_path / "frames")


@pytest.fixture
def model(tmp_path, beamline) -> Path:
    """A card measured at 0.2, 0.4 and 0.6 µm: 0.05, 0.08 and 0.12 rad."""
    geometry = beamline.geometry
    diameter = 0.8e-6
    card = ModelCard(
        name="tested",
        version="1",
        family="lifted",
        network={},
        input=InputContract(
            frame_shape=geometry.frame_shape,
            patch_shape=(32, 32),
            object_pixel_m=geometry.object_pixel_m,
            counts_per_frame=(1e4, 1e6),
        ),
        probe=ProbeReference(
            diameter_m=diameter, diameter_px=diameter / geometry.object_pixel_m, sha256="0" * 64, source="test"
        ),
        sampling=tuple(
            SamplingPoint(
                sampling=step / diameter,
                step_m=step,
                phase_mae_rad=error,
                phase_correlation=0.9,
                covered_fraction=1.0,
                frames=10,
            )
            for step, error in ((0.2e-6, 0.05), (0.4e-6, 0.08), (0.6e-6, 0.12))
        ),
        weights_sha256="1" * 64,
    )
    card.save(tmp_path / "model")
    return tmp_path / "model"


def xy_um(of: Any) -> np.ndarray:
    return np.array([(e["data"]["stage_x"] * 1e3, e["data"]["stage_y"] * 1e3) for e in of("event")])


def test_a_scan_visits_its_field_and_says_what_it_did(RE, of, beamline) -> None:
    stage = beamline.stage
    (uid,) = RE(
        ptycho_scan(
            [beamline.camera], stage.x, stage.y, 2.0, 1.0, 0.5, center_x_um=3.0, center_y_um=-1.0, pattern="snake"
        )
    )
    start = of("start")[0]
    assert start["uid"] == uid
    xy = xy_um(of)
    assert len(xy) == start["num_points"] == 15
    np.testing.assert_allclose([xy.min(0), xy.max(0)], [[2.0, -1.5], [4.0, -0.5]])
    assert start["plan_name"] == "ptycho_scan"
    assert start["plan_args"]["detectors"] == ["camera"]
    assert (start["plan_args"]["x_motor"], start["plan_args"]["y_motor"]) == ("stage_x", "stage_y")
    assert start["plan_args"]["step_um"] == 0.5
    assert [*start["plan_args"], "md"] == list(inspect.signature(ptycho_scan).parameters)
    assert start["motors"] == ["stage_y", "stage_x"]
    assert start["hints"]["dimensions"] == [(["stage_y"], "primary"), (["stage_x"], "primary")]
    assert (start["shape"], start["snaking"]) == ([3, 5], [False, True])
    about = start["ptychography"]
    assert Geometry.from_document(about["geometry"]).object_pixel_m == beamline.geometry.object_pixel_m
    assert (about["frame_key"], about["x_key"], about["y_key"]) == ("camera_image", "stage_x", "stage_y")
    assert about["step_m"] == pytest.approx(0.5e-6)
    assert about["probe_diameter_m"] == pytest.approx(beamline.experiment.probe_diameter_m)
    assert about["sampling"] == pytest.approx(0.5e-6 / beamline.experiment.probe_diameter_m)
    assert about["model"] is None
    json.dumps(start)


def test_dense_equivalent_is_what_a_dense_raster_of_the_field_takes(RE, of, beamline) -> None:
    stage = beamline.stage
    RE(ptycho_scan([beamline.camera], stage.x, stage.y, 1.5, 1.5, 0.75, pattern="raster", probe_diameter_um=1.0))
    about = of("start")[0]["ptychography"]
    assert about["dense_equivalent_frames"] == 11 * 11  # 1.5 µm in steps of 0.15 µm
    assert about["dose_saved_fraction"] == pytest.approx(1 - 9 / 121)


def test_units_of_each_motor_are_its_own(RE, of, tmp_path) -> None:
    beamline = SimulatedBeamline.demo(tmp_path)
    x = SimAxis(name="piezo", egu="nm", limits=(-5e4, 5e4))
    RE(ptycho_scan([beamline.camera], x, beamline.stage.y, 1.0, 1.0, 1.0, pattern="raster"))
    data = [(e["data"]["piezo"], e["data"]["stage_y"]) for e in of("event")]
    np.testing.assert_allclose(data, [(-500, -5e-4), (500, -5e-4), (-500, 5e-4), (500, 5e-4)])
    assert of("start")[0]["ptychography"]["x_key"] == "piezo"


@pytest.mark.parametrize("sparse", [False, True])
def test_relative_scans_go_round_the_present_position_and_back(RE, of, beamline, sparse) -> None:
    stage = beamline.stage
    stage.x.set(5e-3).wait()
    stage.y.set(-2e-3).wait()
    scan = rel_sparse_ptycho_scan if sparse else rel_ptycho_scan
    RE(scan([beamline.camera], stage.x, stage.y, 1.0, 1.0, step_um=0.5, pattern="raster"))
    xy = xy_um(of)
    np.testing.assert_allclose([xy.min(0), xy.max(0)], [[4.5, -2.5], [5.5, -1.5]])
    assert (stage.x.position, stage.y.position) == (5e-3, -2e-3)


def test_a_relative_scan_that_fails_goes_back_too(RE, beamline) -> None:
    stage = beamline.stage
    stage.x.set(5e-3).wait()
    beamline.camera.trigger = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        RE(rel_ptycho_scan([beamline.camera], stage.x, stage.y, 1.0, 1.0, 0.5))
    assert stage.x.position == 5e-3


def beamline_geometry() -> dict[str, Any]:
    return {"energy_ev": 1e4, "distance_m": 1.0, "pixel_pitch_m": 75e-6, "frame_shape": [64, 64]}


def test_three_frames_make_a_whole_run(RE, of, beamline) -> None:
    RE(ptycho_scan([beamline.camera], beamline.stage.x, beamline.stage.y, 1.0, 0.0, 0.5, pattern="snake"))
    assert of("stop")[0]["num_events"] == {"primary": 3}
    assert len(of("stream_datum")) == 3


def test_sparse_takes_its_spacing_from_the_card(RE, of, beamline, model) -> None:
    stage = beamline.stage
    RE(
        sparse_ptycho_scan(
            [beamline.camera], stage.x, stage.y, 2.0, 2.0, model=str(model), tolerated_error_rad=0.10, pattern="raster"
        )
    )
    about = of("start")[0]["ptychography"]
    assert about["step_m"] == pytest.approx(0.5e-6)  # half way between 0.08 and 0.12 rad
    assert about["expected_error_rad"] == pytest.approx(0.10)
    assert about["tolerated_error_rad"] == 0.10
    assert about["model"] == {"name": "tested", "version": "1", "weights_sha256": "1" * 64}
    assert about["probe_diameter_m"] == 0.8e-6
    assert about["sampling"] == pytest.approx(0.625)
    assert about["dense_equivalent_frames"] == 18**2  # 2 µm in steps of 0.12 µm
    assert about["dose_saved_fraction"] == pytest.approx(1 - 25 / 324)
    assert of("start")[0]["num_points"] == 25


def test_sparse_takes_no_spacing_that_left_holes(RE, of, beamline, model) -> None:
    card = ModelCard.load(model)
    *dense, wide = card.sampling
    holes = wide.model_copy(update={"covered_fraction": 0.6})
    card.model_copy(update={"sampling": (*dense, holes)}).save(model)
    stage = beamline.stage
    RE(sparse_ptycho_scan([beamline.camera], stage.x, stage.y, 2.0, 2.0, model=str(model), tolerated_error_rad=0.2))
    assert of("start")[0]["ptychography"]["step_m"] == pytest.approx(0.4e-6)


def test_sparse_refuses_a_spacing_that_was_never_measured(RE, of, beamline, model) -> None:
    stage = beamline.stage
    with pytest.raises(ValueError, match=r"step of 0.9 µm was never measured.*0.2 to 0.6 µm.*allow_unmeasured=True"):
        RE(sparse_ptycho_scan([beamline.camera], stage.x, stage.y, 2.0, 2.0, model=str(model), step_um=0.9))
    assert not of("start")
    RE(
        sparse_ptycho_scan(
            [beamline.camera], stage.x, stage.y, 1.8, 0.0, model=str(model), step_um=0.9, allow_unmeasured=True
        )
    )
    about = of("start")[0]["ptychography"]
    assert about["step_m"] == pytest.approx(0.9e-6)
    assert about["expected_error_rad"] is None
    assert about["tolerated_error_rad"] is None


def test_sparse_says_when_no_spacing_is_good_enough(RE, of, beamline, model) -> None:
    stage = beamline.stage
    with pytest.raises(ValueError, match=r"within 0.01 rad; the smallest is 0.05 rad"):
        RE(sparse_ptycho_scan([beamline.camera], stage.x, stage.y, 2, 2, model=str(model), tolerated_error_rad=0.01))
    with pytest.raises(ValueError, match=r"give model=.*or step_um="):
        RE(sparse_ptycho_scan([beamline.camera], stage.x, stage.y, 2, 2))
    with pytest.raises(ValueError, match=r"model 'no_such_model' is unknown"):
        RE(sparse_ptycho_scan([beamline.camera], stage.x, stage.y, 2, 2, model="no_such_model"))
    assert not of("start")


def test_sparse_refuses_a_model_that_does_not_fit_the_detector(RE, of, beamline, model) -> None:
    stage = beamline.stage
    other = {**beamline_geometry(), "energy_ev": 8000}
    with pytest.raises(ValueError, match=r"trained at an object pixel of 25.83 nm; this scan has 32.29 nm"):
        RE(sparse_ptycho_scan([beamline.camera], stage.x, stage.y, 2, 2, model=str(model), geometry=other))
    assert not of("start")


def test_sparse_refuses_a_model_for_any_probe_without_one(RE, of, beamline) -> None:
    stage = beamline.stage
    words = r"model 'zone-plates' is for any probe and has none yet. Give it yours: for_probe\('zone-plates', probe"
    for options in ({"tolerated_error_rad": 0.1}, {"step_um": 0.3, "allow_unmeasured": True}):
        with pytest.raises(ValueError, match=words):
            RE(sparse_ptycho_scan([beamline.camera], stage.x, stage.y, 2, 2, model="zone-plates", **options))
    assert not of("start")


def test_a_field_outside_the_limits_is_refused_before_anything_moves(RE, of, beamline) -> None:
    stage = beamline.stage
    words = (
        r"^ptycho_scan: x_motor stage_x would move from 95 to 105 µm, outside its soft limits -100 to 100 µm\. "
        r"Change center_x_um, or make width_um smaller$"
    )
    with pytest.raises(ValueError, match=words):
        RE(ptycho_scan([beamline.camera], stage.x, stage.y, 10, 1, 0.5, center_x_um=100, pattern="snake"))
    assert not of("start")
    assert stage.x.position == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step_um": 0}, "^step_um 0 µm must be above 0$"),
        ({"width_um": -2}, "^width_um -2 µm must be 0 or more$"),
        ({"height_um": float("nan")}, "^height_um nan must be a finite number, in µm$"),
        ({"width_um": "2"}, "^width_um '2' must be a finite number, in µm$"),
        ({"center_x_um": None}, "^center_x_um None must be a finite number, in µm$"),
        ({"probe_diameter_um": "1"}, "^probe_diameter_um '1' must be a finite number, in µm$"),
        ({"jitter": "0.1"}, "^jitter '0.1' must be a finite number, in steps$"),
        (
            {"width_um": 1e4, "height_um": 1e4},
            "^width_um 10000, height_um 10000 and step_um 0.5 make 400040001 points, more than 1000000; lengths are in",
        ),
        ({"preflight": "ask"}, "^preflight 'ask' is unknown; allowed: refuse, warn, strict$"),
        ({"pattern": "zigzag"}, "pattern 'zigzag' is unknown"),
        ({"x_sign": 2}, "x_sign 2 must be 1 or -1"),
        ({"probe_diameter_um": -1}, "probe_diameter_um -1 µm must be above 0"),
        ({"geometry": {"energy_ev": 9000}}, "plan argument geometry: geometry lacks distance_m, pixel_pitch_m"),
        ({"detectors": []}, "detectors: give the camera in a list"),
        ({"detectors": ["camera"]}, "^detectors: 'camera' cannot be read; give devices, the camera first$"),
        ({"detectors": "camera"}, r"^detectors: 'camera' is not a list; give the camera in one, \['camera'\]$"),
        ({"x_motor": "stage_x"}, "^x_motor: 'stage_x' cannot be moved; give a motor$"),
    ],
)
def test_wrong_arguments_are_refused_in_words(RE, of, beamline, arguments, words) -> None:
    stage = beamline.stage
    values = {"detectors": [beamline.camera], "x_motor": stage.x, "y_motor": stage.y, "width_um": 1, "height_um": 1}
    with pytest.raises(ValueError, match=words):
        RE(ptycho_scan(**{**values, "step_um": 0.5, **arguments}))
    assert not of("start")


def test_devices_in_the_wrong_place_are_named(beamline) -> None:
    stage, camera = beamline.stage, beamline.camera
    with pytest.raises(ValueError, match=r"^detectors: camera is not a list; give the camera in one, \[camera\]$"):
        ptycho_scan(camera, stage.x, stage.y, 1, 1, 0.5)
    with pytest.raises(ValueError, match="^x_motor and y_motor are both stage_x; a scan needs two motors"):
        ptycho_scan([camera], stage.x, stage.x, 1, 1, 0.5)


def test_a_missing_argument_is_named(beamline) -> None:
    with pytest.raises(TypeError, match=r"ptycho_scan\(\): missing a required argument: 'height_um'"):
        ptycho_scan([beamline.camera], beamline.stage.x, beamline.stage.y, 1.0)


def test_a_motor_without_a_unit_is_refused(RE, of, beamline) -> None:
    from ophyd.sim import SynAxis

    with pytest.raises(ValueError, match="theta: says no engineering unit"):
        RE(ptycho_scan([beamline.camera], SynAxis(name="theta", egu=""), beamline.stage.y, 1, 1, 0.5))
    with pytest.raises(ValueError, match="theta: unit 'deg' is not a length"):
        RE(ptycho_scan([beamline.camera], SynAxis(name="theta", egu="deg"), beamline.stage.y, 1, 1, 0.5))
    assert not of("start")


def test_md_joins_what_the_plan_knows_and_wins(RE, of, beamline) -> None:
    stage = beamline.stage
    md = {"sample": "star", "ptychography": {"x_sign": -1, "note": "mirror in"}}
    RE(ptycho_scan([beamline.camera], stage.x, stage.y, 0, 0, 1, md=md))
    start = of("start")[0]
    assert start["sample"] == "star"
    assert (start["ptychography"]["x_sign"], start["ptychography"]["note"]) == (-1, "mirror in")
    assert start["ptychography"]["frame_key"] == "camera_image"


def test_pause_and_resume_repeat_no_frame_of_a_finished_event(RE, of, beamline) -> None:
    def pause_at_three(name: str, doc: dict[str, Any]) -> None:
        if name == "event" and doc["seq_num"] == 3:
            threading.Thread(target=RE.request_pause, daemon=True).start()  # as Ctrl-C does, from elsewhere

    RE.subscribe(pause_at_three)
    stage = beamline.stage
    beamline.camera.cam.acquire_time.put(0.02)
    with pytest.raises(RunEngineInterrupted):
        RE(ptycho_scan([beamline.camera], stage.x, stage.y, 1, 1, 0.5, pattern="snake"))
    RE.resume()
    last = {e["seq_num"]: e for e in of("event")}
    assert sorted(last) == list(range(1, 10))
    assert of("stop")[0]["exit_status"] == "success"


def test_plans_and_devices_import_no_torch() -> None:
    code = (
        "import sys, bluesky_ptychonn.beamline.plans, bluesky_ptychonn.beamline.sim, bluesky_ptychonn.beamline.replay;"
        "print([m for m in ('torch', 'tiled', 'matplotlib', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("scan", [ptycho_scan, rel_ptycho_scan, sparse_ptycho_scan, rel_sparse_ptycho_scan])
def test_the_queue_server_can_read_the_plans(scan) -> None:
    """It takes annotations as they are (strings would fail), and defaults must be JSON."""
    parameters = inspect.signature(scan).parameters.values()
    assert not [p.name for p in parameters if isinstance(p.annotation, str) or p.annotation is p.empty]
    assert next(iter(parameters)).name == "detectors"
    assert list(parameters)[-1].name == "md"
    json.dumps([p.default for p in parameters if p.default is not p.empty])


class LocatableMotor:
    """What a plan sees of an ophyd-async motor: no `egu`, no `position`, but `motor_egu` and `locate`."""

    parent = None
    hints: ClassVar[dict[str, list[str]]] = {"fields": ["mover"]}
    name = "mover"

    def __init__(self) -> None:
        self.motor_egu = Signal(name="mover_motor_egu", value="um")
        self.at = 2.0

    def set(self, value: float) -> Status:
        self.at = value
        status = Status()
        status.set_finished()
        return status

    def locate(self) -> dict[str, float]:
        return {"setpoint": self.at, "readback": self.at}

    def read(self) -> dict[str, Any]:
        return {"mover": {"value": self.at, "timestamp": 0.0}}

    def describe(self) -> dict[str, Any]:
        return {"mover": {"source": "test", "dtype": "number", "shape": [], "units": "um"}}


class DescribedMotor(LocatableMotor):
    """A mover whose unit stands in its description alone, as that of a soft signal of ophyd-async."""

    limits = (-5.0, 5.0)

    def __init__(self) -> None:
        super().__init__()
        del self.motor_egu


class AsyncDescribedMotor(DescribedMotor):
    async def describe(self) -> dict[str, Any]:  # type: ignore[override]
        return super().describe()


@pytest.mark.parametrize("kind", [DescribedMotor, AsyncDescribedMotor])
def test_a_unit_that_stands_in_the_description_is_found(RE, of, beamline, kind) -> None:
    motor = kind()
    RE(rel_ptycho_scan([beamline.camera], motor, beamline.stage.y, 1.0, 0.0, 0.5, pattern="raster"))
    assert [e["data"]["mover"] for e in of("event")] == pytest.approx([1.5, 2.0, 2.5])
    with pytest.raises(ValueError, match="move from -4 to 8 µm, outside its soft limits -5 to 5 µm"):
        RE(rel_ptycho_scan([beamline.camera], motor, beamline.stage.y, 12.0, 0.0, 6.0, pattern="raster"))


def test_motors_of_the_other_ophyd_work_too(RE, of, beamline) -> None:
    motor = LocatableMotor()
    RE(rel_ptycho_scan([beamline.camera], motor, beamline.stage.y, 1.0, 0.0, 0.5, pattern="raster"))
    assert [e["data"]["mover"] for e in of("event")] == pytest.approx([1.5, 2.0, 2.5])
    assert of("start")[0]["ptychography"]["x_key"] == "mover"
    assert motor.at == 2.0


def test_limits_of_motors_of_the_other_ophyd_hold_too(RE, of, beamline) -> None:
    motor = LocatableMotor()
    motor.low_limit_travel = Signal(name="mover_low", value=0.0)
    motor.high_limit_travel = Signal(name="mover_high", value=2.2)
    with pytest.raises(ValueError, match=r"x_motor mover would move from 1.5 to 2.5 µm, .* limits 0 to 2.2 µm\. Go to"):
        RE(rel_ptycho_scan([beamline.camera], motor, beamline.stage.y, 1.0, 0.0, 0.5, pattern="raster"))
    assert not of("start")
    assert motor.at == 2.0

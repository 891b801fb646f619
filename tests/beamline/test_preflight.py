"""What would keep a scan from becoming an image is said before anything moves."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from bluesky_ptychonn.beamline import preflight
from bluesky_ptychonn.beamline.plans import ptycho_scan, rel_sparse_ptycho_scan, sparse_ptycho_scan
from bluesky_ptychonn.beamline.preflight import ReconstructionAtWork, ScanToCheck
from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.card import load_card
from bluesky_ptychonn.live.callback import LiveReconstruction
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry

MODEL = "simulated-zp64"
FIELD = {"width_um": 0.7, "height_um": 0.35}


@pytest.fixture
def beamline(tmp_path) -> SimulatedBeamline:
    return SimulatedBeamline.demo(tmp_path / "frames")


class UnknownGeometry:
    """A camera of the simulated beamline that says nothing of geometry."""

    def __init__(self, camera: Any) -> None:
        self._camera, self.geometry = camera, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._camera, name)


@pytest.fixture
def at_work(monkeypatch) -> list[ReconstructionAtWork]:
    """The live reconstructions that plans know of."""
    known: list[ReconstructionAtWork] = []
    monkeypatch.setattr(preflight, "_at_work", known)
    return known


def session(
    geometry: Geometry | None = None, model: str = MODEL, trouble: str = "", **more: Any
) -> ReconstructionAtWork:
    return ReconstructionAtWork(lambda: model, geometry, more.get("preprocess"), lambda _: trouble)


def test_a_session_that_cannot_be_asked_stops_no_scan(RE, of, beamline, at_work, caplog) -> None:
    def broken(*_: Any) -> str:
        raise KeyError("status")

    at_work.append(ReconstructionAtWork(broken, None, None, broken))
    RE(sparse_ptycho_scan([beamline.camera], beamline.stage.x, beamline.stage.y, **FIELD, model=MODEL, step_um=0.35))
    assert of("stop")[0]["exit_status"] == "success"
    assert "live reconstruction cannot say how it stands: KeyError: 'status'" in caplog.text


@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize("plan", [sparse_ptycho_scan, rel_sparse_ptycho_scan])
def test_a_sparse_plan_without_geometry_is_refused_and_nothing_moves(RE, of, beamline, plan) -> None:
    stage, camera = beamline.stage, UnknownGeometry(beamline.camera)
    words = r"sparse_ptycho_scan: this scan would not become an image: the geometry is not known.*set camera\.geometry"
    with pytest.raises(ValueError, match=words):
        RE(plan([camera], stage.x, stage.y, **FIELD, model=MODEL, step_um=0.35))
    assert not of("start")
    assert stage.x.position == 0


@pytest.mark.usefixtures("at_work")
def test_told_so_it_warns_and_so_does_a_dense_plan(RE, of, beamline, caplog) -> None:
    stage, camera = beamline.stage, UnknownGeometry(beamline.camera)
    RE(sparse_ptycho_scan([camera], stage.x, stage.y, **FIELD, step_um=0.35, preflight="warn"))
    RE(ptycho_scan([camera], stage.x, stage.y, 0.35, 0, 0.35))
    said = [record.message for record in caplog.records if "geometry is not known" in record.message]
    assert [words.partition(":")[0] for words in said] == ["sparse_ptycho_scan", "ptycho_scan"]
    assert len(of("stop")) == 2


def test_a_geometry_may_come_from_the_plan_its_metadata_or_the_session(RE, of, beamline, at_work, caplog) -> None:
    stage, camera = beamline.stage, UnknownGeometry(beamline.camera)
    told = beamline.geometry.model_dump(mode="json")
    arguments = ([camera], stage.x, stage.y)
    RE(sparse_ptycho_scan(*arguments, **FIELD, model=MODEL, geometry=told))
    RE(sparse_ptycho_scan(*arguments, **FIELD, model=MODEL, md={"ptychography": {"geometry": told}}))
    with pytest.raises(ValueError, match=r"md\['ptychography'\]\['geometry'\]: geometry lacks distance_m"):
        RE(sparse_ptycho_scan(*arguments, **FIELD, model=MODEL, md={"ptychography": {"geometry": {"energy_ev": 9e3}}}))
    at_work.append(session(beamline.geometry))
    RE(sparse_ptycho_scan(*arguments, **FIELD, model=MODEL))
    assert len(of("stop")) == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and "scan" in record.message]


def test_the_model_at_work_has_to_take_these_frames_too(beamline, at_work) -> None:
    camera, geometry = beamline.camera, beamline.geometry
    near = Geometry.model_validate({**geometry.model_dump(), "distance_m": 2 * geometry.distance_m})
    scan = ScanToCheck(camera, near, None, None)
    scan.check("plan", "refuse")
    at_work.append(session())
    with pytest.raises(ValueError, match=r"plan: .*'simulated-zp64' was trained at an object pixel of 25.83 nm"):
        scan.check("plan", "refuse")
    ScanToCheck(camera, geometry, None, None).check("plan", "refuse")
    at_work[:] = [session(model="zone-plates")]
    with pytest.raises(ValueError, match=r"'zone-plates' is for any probe and has none yet\. Give it yours"):
        ScanToCheck(camera, geometry, None, None).check("plan", "refuse")
    at_work[:] = [session(model="known-to-the-catalog-alone")]
    scan.check("plan", "refuse")


def test_a_step_that_the_model_at_work_was_never_measured_at_is_refused(RE, of, beamline, at_work) -> None:
    at_work.append(session())
    stage = beamline.stage
    largest_um = load_card(MODEL).measured_range_m[1] * 1e6
    with pytest.raises(ValueError, match=r"step of .* µm was never measured.*Choose a measured step_um="):
        RE(sparse_ptycho_scan([beamline.camera], stage.x, stage.y, 4, 0, step_um=2 * largest_um))
    RE(sparse_ptycho_scan([beamline.camera], stage.x, stage.y, 4, 0, step_um=2 * largest_um, allow_unmeasured=True))
    assert len(of("start")) == 1


def test_what_the_camera_gives_has_to_become_what_the_model_takes(beamline, at_work) -> None:
    camera = UnknownGeometry(beamline.camera)
    camera.make_data_key = lambda: {"shape": (1, 256, 256)}
    scan = ScanToCheck(camera, beamline.geometry, load_card(MODEL), None)
    with pytest.raises(ValueError, match="takes frames of 64 x 64 px; frames of 256 x 256 px come out .* as 256 x 256"):
        scan.check("plan", "refuse")
    at_work.append(session(preprocess=PreprocessConfig(crop=128, bin=2)))
    scan.check("plan", "refuse")
    camera.make_data_key = lambda: {"shape": (1, 0, 0)}  # an areaDetector that has not had a frame yet
    scan.check("plan", "refuse")


def test_a_catalog_that_does_not_answer_is_a_warning_unless_strict(RE, of, beamline, at_work, caplog) -> None:
    at_work.append(
        session(trouble="catalog X does not answer (refused); frames and results wait on disk until it does")
    )
    arguments = ([beamline.camera], beamline.stage.x, beamline.stage.y)
    with pytest.raises(ValueError, match="would not become an image: catalog X does not answer"):
        RE(sparse_ptycho_scan(*arguments, **FIELD, model=MODEL, preflight="strict"))
    assert not of("start")
    RE(sparse_ptycho_scan(*arguments, **FIELD, model=MODEL))
    assert "sparse_ptycho_scan: catalog X does not answer" in caplog.text
    assert len(of("stop")) == 1


def test_a_live_reconstruction_tells_plans_within_two_seconds_that_its_catalog_hangs(
    beamline, at_work, tmp_path, catalog_server, small_model: Path
) -> None:
    with LiveReconstruction(
        small_model, catalog_server, worker="thread", geometry=beamline.geometry, journal_dir=tmp_path
    ) as live:
        live.wait_ready()
        (known,) = at_work
        assert (known.geometry, known.trouble(preflight.ANSWER_S)) == (beamline.geometry, "")
        assert known.card is not None
        assert known.card.name == load_card(small_model).name
        with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, and never says a word
            object.__setattr__(live._address, "uri", f"http://127.0.0.1:{mute.getsockname()[1]}/api/v1")
            began = time.monotonic()
            assert "does not answer" in known.trouble(0.3)
            assert time.monotonic() - began < 2
            object.__setattr__(live._address, "uri", catalog_server.uri)
    assert at_work == []

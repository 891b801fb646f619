"""Stock ophyd devices over real Channel Access, on the loopback interface, against the simulated IOC."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ophyd.device import Staged
from ophyd.sim import make_fake_device
from ophyd.status import DeviceStatus

from bluesky_ptychonn.beamline.frames import DATASET
from bluesky_ptychonn.optics.simulate import SimulatedExperiment

pytest.importorskip("caproto", reason="the simulated IOC needs caproto (extra 'ioc')")


@pytest.mark.system
def test_a_scan_over_channel_access_gives_frames_positions_and_documents(tmp_path) -> None:
    from bluesky_ptychonn.beamline.ioc import IocProcess

    frames, report = tmp_path / "frames", tmp_path / "report.json"
    with IocProcess("TEST:") as ioc:
        client = Path(__file__).with_name("ca_client.py")
        done = subprocess.run(
            [sys.executable, str(client), str(frames), str(report)],
            env=os.environ | ioc.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\nIOC: {ioc.log}"
        assert "failed" not in ioc.log
    said = json.loads(report.read_text())
    documents: list[tuple[str, dict[str, Any]]] = said["documents"]

    def of(kind: str) -> list[dict[str, Any]]:
        return [doc for name, doc in documents if name == kind]

    events, (resource,), (descriptor,) = of("event"), of("resource"), of("descriptor")
    assert len(events) == 6
    assert of("stop")[0]["exit_status"] == "success"
    assert resource["spec"] == "AD_HDF5_SWMR"
    image = descriptor["data_keys"]["camera_image"]
    assert (image["shape"], image["dtype_numpy"], image["external"]) == ([64, 64], "<u2", "FILESTORE:")
    assert descriptor["data_keys"]["stage_x"]["units"] == "mm"
    assert [e["data"]["camera_hdf1_num_captured"] for e in events] == [1, 2, 3, 4, 5, 6]
    about = of("start")[0]["ptychography"]
    assert (about["frame_key"], about["x_key"], about["y_key"]) == ("camera_image", "stage_x", "stage_y")
    with h5py.File(Path(resource["root"]) / resource["resource_path"]) as file:
        written = file[DATASET][:]
    experiment = SimulatedExperiment.demo()
    for exposure, (event, frame) in enumerate(zip(events, written, strict=True)):
        y_m, x_m = event["data"]["stage_y"] * 1e-3, event["data"]["stage_x"] * 1e-3
        assert 1.5e-6 - 1e-12 <= x_m <= 2.5e-6 + 1e-12
        expected = experiment.frame_at(y_m, x_m, np.random.default_rng([experiment.seed, exposure]))
        np.testing.assert_array_equal(frame, expected)
    assert said["back"] == pytest.approx([0.0, 2e-6], abs=1e-12)
    assert "x_motor stage_x would move from -248 to 252 µm, outside its soft limits -100 to 100 µm" in said["refused"]
    assert not said["torch"]
    assert said["capture"] == 0


@pytest.mark.system
def test_an_ioc_that_cannot_start_says_why() -> None:
    from bluesky_ptychonn.beamline.ioc import IocProcess

    with pytest.raises(RuntimeError, match=r"(?s)did not start.*kind 'granite' is unknown"):
        IocProcess(sample="granite")


def test_trigger_returns_its_status_even_when_the_exposure_is_over_at_once() -> None:
    """ophyd 1.11 returns an attribute that the end of the exposure sets to None."""
    from bluesky_ptychonn.beamline.devices import PtychoCamera

    camera = make_fake_device(PtychoCamera)("X:", name="camera", write_path="/tmp")

    class AtOnce:
        def put(self, value: int, wait: bool) -> None:
            camera._acquire_changed(value=0, old_value=1)

    camera._acquisition_signal = AtOnce()
    camera._status_type = DeviceStatus
    camera.generate_datum = lambda *_: None
    with pytest.raises(RuntimeError, match="camera: not staged"):
        camera.trigger()
    camera._staged = Staged.yes
    status = camera.trigger()
    status.wait(2)
    assert status.success


def test_the_camera_keeps_paths_apart_for_writer_and_reader() -> None:
    from bluesky_ptychonn.beamline.devices import PtychoCamera

    camera = make_fake_device(PtychoCamera)(
        "X:", name="cam", write_path="/ioc/data", read_path="/mnt/data/%Y", root="/mnt"
    )
    assert camera.hdf1.write_path_template == "/ioc/data"
    assert camera.hdf1.read_path_template == "/mnt/data/%Y/"
    assert camera.image_key == "cam_image"
    assert camera.hdf1.filestore_spec == "AD_HDF5_SWMR"
    assert list(camera.hdf1.stage_sigs)[-1] == "capture"

"""The camera's documents through TiledWriter into a real Tiled server and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bluesky.plans as bp
import h5py
import numpy as np
import pytest

from bluesky_ptychonn.beamline.frames import DATASET
from bluesky_ptychonn.beamline.sim import SimulatedBeamline

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def frames_folder(detector_folder) -> Path:
    return detector_folder / "camera"


@pytest.fixture(scope="module")
def client(catalog_server) -> Any:
    return catalog_server.raw


@pytest.mark.parametrize(("kind", "shape"), [("stream", (3, 64, 64)), ("classic", (3, 1, 64, 64))])
def test_frames_and_positions_come_back_while_the_run_goes_on(RE, client, frames_folder, kind, shape) -> None:
    from bluesky_tiled_plugins import TiledWriter

    beamline = SimulatedBeamline.demo(frames_folder / kind, documents=kind)
    RE.subscribe(TiledWriter(client, batch_size=1))
    live = []

    def look(name: str, doc: dict[str, Any]) -> None:
        if name == "event":
            live.append(client[client.keys().last()]["primary"]["camera_image"].shape[0])

    RE.subscribe(look)
    (uid,) = RE(bp.scan([beamline.camera], beamline.stage.x, -1e-3, 1e-3, num=3))
    assert live == [1, 2, 3]
    stream = client[uid]["primary"]
    (path,) = beamline.camera.folder.glob("*.h5")
    with h5py.File(path) as file:
        written = file[DATASET][:]
    image = stream["camera_image"]
    assert image.shape == shape
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image.read().reshape(written.shape), written)
    np.testing.assert_array_equal(image[1:3].reshape(2, 64, 64), written[1:3])
    np.testing.assert_allclose(stream["stage_x"].read(), [-1e-3, 0, 1e-3])
    assert client[uid].metadata["stop"]["exit_status"] == "success"

"""The probe that goes with a run's frames."""

from __future__ import annotations

import numpy as np
import pytest

from bluesky_ptychonn.catalog.runs.measured import ProbeSetup
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import zone_plate_probe

RECORDED = Geometry(energy_ev=1e4, distance_m=1.0, pixel_pitch_m=75e-6, frame_shape=(128, 128))


def test_a_probe_of_recorded_frames_is_brought_to_what_is_cut_of_them() -> None:
    whole = zone_plate_probe((128, 128), 60, pupil_fraction=0.5)
    probe, geometry = ProbeSetup.from_source(probe=whole, preprocess=PreprocessConfig(crop=96)).fitted(RECORDED)
    wanted = zone_plate_probe((96, 96), 45, pupil_fraction=2 / 3)  # the same beam at a pixel 4/3 as large
    np.testing.assert_allclose(probe, wanted, atol=1e-6 * np.abs(wanted).max())
    assert geometry.object_pixel_m == pytest.approx(RECORDED.object_pixel_m * 4 / 3)


def test_a_probe_of_other_frames_is_refused_in_words() -> None:
    setup = ProbeSetup.from_source(probe=np.ones((64, 64), complex))
    with pytest.raises(ValueError, match=r"64 x 64 px, the run's frames come out of preprocessing as 128 x 128 px"):
        setup.fitted(RECORDED)

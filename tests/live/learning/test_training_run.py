"""A finished run as a learner takes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bluesky_ptychonn.catalog.runs.measured import RunFrames
from bluesky_ptychonn.live.learning import training_run as module
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from tests.support.scans import labelled_scan


def test_trust_that_nobody_judged_keeps_no_frame_from_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of a model without a probe count as those of a run without a reconstruction; rejected ones do not."""
    scan = labelled_scan(1, frames=4)
    measured = MeasuredScan(scan.counts, scan.y_m, scan.x_m, scan.probe, scan.geometry, "run u")
    read = RunFrames(measured, np.array([1, 2, 3, 5]), {}, {})
    nan = np.float32("nan")
    frames = pd.DataFrame({"seq_num": [1, 2, 3], "trust": [nan, 0.0, 0.25], "valid": [True, False, True]})
    result = SimpleNamespace(frames=frames, metadata={"model": {"name": "m", "version": "1"}})
    run = SimpleNamespace(metadata={"start": {"num_points": 4}})
    model: Any = SimpleNamespace(card=SimpleNamespace(name="m", input=SimpleNamespace(frame_shape=(32, 32))))
    monkeypatch.setattr(module, "find_run", lambda *_: run)
    monkeypatch.setattr(module, "newest_reconstruction", lambda *_: result)
    monkeypatch.setattr(module, "measured_run", lambda *_, **__: read)
    monkeypatch.setattr(module.ProbeSetup, "from_source", lambda **_: None)
    taken = module.training_run(None, "u", model)
    assert taken.trust.tolist() == [1.0, 0.0, 0.25, 0.0]

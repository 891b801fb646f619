"""``ptychonn train`` with measured scans: what a user gives, what lies in the folder afterwards, what is refused."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.card import load_card
from bluesky_ptychonn.cli import main
from bluesky_ptychonn.cli.train import read_scans
from bluesky_ptychonn.optics.simulate import zone_plate_probe
from bluesky_ptychonn.recon.data.batches import Mix
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.networks.lifted import LiftedConfig
from bluesky_ptychonn.recon.training.metrics_table import read_rows
from bluesky_ptychonn.recon.training.model import ModelInfo
from bluesky_ptychonn.recon.training.request import TrainRequest, read_mix
from tests.support.scans import PROBE, labelled_scan


def test_a_model_is_trained_on_scans_and_tells_how_it_went(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bluesky_ptychonn.recon.evaluation.simulated_scans import ScanSeries, measure_sampling
    from bluesky_ptychonn.recon.training import model as produce

    few = ScanSeries((0.4, 0.6), ("etched",), 2.0)
    monkeypatch.setattr(produce, "measure_sampling", lambda *given: measure_sampling(*given[:3], few))
    monkeypatch.setattr(produce, "calibrated", functools.partial(produce.calibrated, frames=64, scans=2))
    scan = labelled_scan(seed=5, frames=36)
    scan.save(tmp_path / "label.npz")
    MeasuredScan(scan.counts, scan.y_m, scan.x_m, scan.probe, scan.geometry, "run").save(tmp_path / "run.npz")
    np.save(tmp_path / "probe.npy", PROBE * 300)
    geometry = ("--energy-ev", 10000, "--distance-m", 1, "--pixel-pitch-m", 75e-6)
    arguments: tuple[Any, ...] = ("--probe", tmp_path / "probe.npy", "--out", tmp_path / "mine", *geometry)
    arguments += ("--frames", 192, "--width", 4, "--schedule", "cyclic", "--precision", "bfloat16")
    arguments += ("--labels", tmp_path / "label.npz", "--measured", tmp_path / "run.npz", "--threads", 1)
    monkeypatch.setattr(sys, "argv", ["ptychonn", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "held-out scans" in capsys.readouterr().out
    card = load_card(tmp_path / "mine")
    assert card.training["scans"] == ["sample 5", "run"]
    assert card.training["config"]["mix"] == {"simulated": 1.0, "labelled": 1.0, "label_free": 0.5}
    rows = read_rows(tmp_path / "mine" / "metrics.csv")
    assert {"loss_simulated", "loss_labelled", "loss_label_free"} < rows[-1].keys()
    assert [row["frames"] for row in rows] == list(range(16, 193, 16))
    assert (tmp_path / "mine" / "training.png").is_file()
    assert not (tmp_path / "mine" / "training.pt").exists()


def test_shares_are_read_and_refused_in_words() -> None:
    assert read_mix("simulated=1, label-free=0.3", labelled=True, label_free=True) == Mix(label_free=0.3)
    assert read_mix(None, labelled=True, label_free=False) == Mix(labelled=1)
    for words in ("simulated", "guessed=1", "labelled=-1", "labelled=nan", "labelled=much"):
        with pytest.raises(ValueError, match=f"--mix has '{words}'; allowed are simulated=NUMBER, labelled=NUMBER"):
            read_mix(words, labelled=True, label_free=True)
    with pytest.raises(ValueError, match="gives everything a share of 0"):
        read_mix("simulated=0", labelled=True, label_free=True)


def test_a_request_refuses_at_once_what_it_cannot_do(tmp_path: Path) -> None:
    info = ModelInfo("mine")
    with pytest.raises(ValueError, match="family: got 'oracle'; allowed are direct, lifted"):
        TrainRequest("simulated", tmp_path, info, {}, {}, family="oracle")
    with pytest.raises(ValueError, match="--frames 0 trains nothing"):
        TrainRequest("simulated", tmp_path, info, {"frames": 0}, {})
    np.save(tmp_path / "probe.npy", PROBE)
    with pytest.raises(ValueError, match="give --distance-m, --pixel-pitch-m"):
        TrainRequest(str(tmp_path / "probe.npy"), tmp_path, info, {}, {"energy_ev": 1e4})


@pytest.mark.parametrize("size", [104, 105])
def test_a_probe_of_any_size_has_a_network(tmp_path: Path, size: int) -> None:
    np.save(tmp_path / "probe.npy", zone_plate_probe((size, size), 40, pupil_fraction=0.5))
    given = {"wavelength_m": 1.97e-12, "distance_m": 0.1, "pixel_pitch_m": 75e-6}
    request = TrainRequest(str(tmp_path / "probe.npy"), tmp_path, ModelInfo("mine"), {}, given)
    assert request.geometry.frame_shape == (104, 104)
    np.testing.assert_allclose(
        request.probe_wave, zone_plate_probe((104, 104), 40 * 104 / size, pupil_fraction=0.5 * size / 104), atol=2e-3
    )
    assert LiftedConfig().resized(104).patch_size == 48


def test_scans_need_a_catalog_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ab12, cd34 would be in a catalog; say which with --catalog, or give .npz"):
        read_scans(["ab12"], ["cd34"], None, PROBE)
    with pytest.raises(ValueError, match=r"none.npz: cannot be read as a LabelledScan"):
        read_scans([str(tmp_path / "none.npz")], [], None, PROBE)


def test_the_package_runs_as_a_module_for_launchers() -> None:
    done = subprocess.run([sys.executable, "-m", "bluesky_ptychonn", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout[:9]) == (0, "ptychonn ")

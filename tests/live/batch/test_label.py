"""Labels on a real server: a run that was scanned, solved, kept beside it, and joined with its frames again."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import numpy as np
import pytest

from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.card import load_card
from bluesky_ptychonn.catalog.connection.connect import PROCESSED
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.results.client import reconstructions
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.cli import main
from bluesky_ptychonn.live.batch.label import LabelSettings, PtychoLabel, label, labels, read_label
from bluesky_ptychonn.live.pipeline.testing import GEOMETRY
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from bluesky_ptychonn.recon.evaluation.metrics import phase_correlation, phase_mae
from bluesky_ptychonn.recon.solver.ptychi import PYTHON_VARIABLE, solver_version

pytestmark = pytest.mark.system

EXPERIMENT = SimulatedExperiment.demo()
# Knows the answer is 1 everywhere, and says how often it was asked.
STAND_IN = """
import pathlib
count = pathlib.Path(__file__).with_name("asked")
count.write_text(count.read_text() + "." if count.exists() else ".")
with np.load(asked) as given:
    shape, probe = tuple(given["shape"]), given["probe"]
np.savez(answered, snapshots=np.full((1, *shape), np.exp(0.5j), np.complex64), probe=probe, epochs=[5], seconds=[1.0],
    cpu_seconds=[1.0], loss=[0.2, 0.1], software="stand-in 1", device="cpu")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A solver of no time; returns the file in which it counts its calls."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\nimport sys, numpy as np\n_, worker, asked, answered = sys.argv\n{STAND_IN}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(PYTHON_VARIABLE, str(path))
    return tmp_path / "asked"


def scanned(RE: Any, folder: Path, side: int = 6, step_px: float = 8.0, **options: Any) -> tuple[str, Any]:
    """A raster; returns its uid and the beamline."""
    beamline = SimulatedBeamline.demo(folder, **options)
    reach_mm = (side - 1) / 2 * step_px * EXPERIMENT.pixel_m * 1e3
    stage, md = beamline.stage, {"ptychography": {"geometry": beamline.geometry.model_dump(mode="json")}}
    plan = bp.grid_scan(
        [beamline.camera], stage.y, -reach_mm, reach_mm, side, stage.x, -reach_mm, reach_mm, side, False, md=md
    )
    (uid,) = RE(plan)
    return uid, beamline


def test_a_label_is_kept_found_and_joined_with_its_frames(
    RE: Any,
    tiled_writer: Any,
    catalog_server: CatalogServer,
    small_model: Path,
    detector_folder: Path,
    stand_in: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uid, _ = scanned(RE, detector_folder, drop_frames={4})
    made = label(uid[:8], catalog_server, model=small_model)
    assert isinstance(made, PtychoLabel)
    about = made.metadata
    assert (about["status"], about["raw"]["uid"], about["solver"]["name"]) == ("complete", uid, "stand-in 1")
    assert about["counts"] == {"used": 35, "rejected": {"detector gave no frame": 1}}
    assert 4 not in made.frames["seq_num"]
    assert f"raw {uid[:8]}" in repr(made)
    assert "35 frames, sampling 0.2" in repr(made)
    assert made["overview"].shape == tuple(2 * side + 4 for side in made.light.shape)

    scan = read_label(catalog_server, uid)
    assert len(scan) == 35
    assert scan.counts.sum(axis=(1, 2)).min() > 1e4
    np.testing.assert_allclose(scan.truth(np.arange(14, 16), 16), np.exp(0.5j), atol=1e-5)
    # As many photons in the probe as the run's brightest frames say.
    power = float((np.abs(scan.probe) ** 2).sum())
    assert power == pytest.approx(float(np.quantile(scan.counts.sum(axis=(1, 2)), 0.9)), rel=0.1)
    np.testing.assert_array_equal(scan.probe, made.probe)
    table = tiled_writer.client[uid]["primary"]
    x_m = np.delete(np.asarray(table["stage_x"].read()), 3) * 1e-3
    np.testing.assert_allclose(scan.x_m, x_m, atol=1e-12)
    again = read_label(catalog_server, made.path_parts[-1])
    np.testing.assert_array_equal(again.object, scan.object)

    # The same again is the same; other settings are another label; neither is taken for a reconstruction.
    assert label(uid, catalog_server, model=small_model).path_parts == made.path_parts
    assert stand_in.read_text() == "."
    other = label(uid, catalog_server, model=small_model, epochs=7)
    assert sorted(one.path_parts for one in labels(catalog_server, raw=uid)) == sorted(
        [made.path_parts, other.path_parts]
    )
    assert reconstructions(catalog_server, raw=uid) == []

    # An interrupted one is found out and made anew.
    root, key = catalog_server.client, other.path_parts[-1]
    TiledNode(root, [PROCESSED, key]).update({"status": "live"})
    with pytest.raises(ValueError, match="was interrupted while it was written; label its run again"):
        read_label(catalog_server, key)
    assert [one.path_parts for one in labels(catalog_server, raw=uid)] == [made.path_parts]
    assert label(uid, catalog_server, model=small_model, epochs=7).status == "complete"

    probe = tmp_path / "probe.npz"
    np.savez(probe, probe=EXPERIMENT.probe)
    address = f"{catalog_server.uri}?api_key={catalog_server.api_key}"
    monkeypatch.setattr(sys, "argv", ["ptychonn", "label", uid, "--catalog", address, "--probe", str(probe)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "stand-in 1, 5 epochs" in said
    assert "1 frames left out: detector gave no frame" in said
    assert "in the catalog as processed/" in said

    out = tmp_path / "measured"
    words = ["models", "measure", str(small_model), "--labels", made.path_parts[-1], "--catalog", address]
    monkeypatch.setattr(sys, "argv", ["ptychonn", *words, "--starts", "1", "--device", "cpu", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    card = load_card(out)
    (curve,) = card.labelled
    assert curve.source == f"label {made.path_parts[-1]} of run {uid}, stand-in 1"
    assert curve.points[0].frames == 35
    assert len(curve.points) > 2
    # A sparse plan may now take what was measured on the run, and no more.
    tolerant = max(point.phase_mae_rad for point in curve.points)
    assert card.spacing_for(tolerant) == pytest.approx(curve.points[-1].step_m)
    assert f"to {curve.points[-1].step_m * 1e6:.3f} µm" in capsys.readouterr().out


def test_labels_of_the_first_version_are_found_under_their_keys() -> None:
    class Run:
        metadata = {"start": {"uid": "u"}, "stop": {"uid": "s"}}  # noqa: RUF012

    settings = LabelSettings(
        epochs=None,
        refine_probe=False,
        seed=1,
        preprocess=PreprocessConfig(crop=192, bin=3),
        geometry=GEOMETRY,
        keys=DataKeys("a", x_sign=-1),
        raw="raw",
        probe_sha256="abc",
    )
    assert settings.key_for(Run()) == "c7965c55a8d350569f0d3f1b4a7fc44f"
    stored = {**settings.model_dump(mode="json"), "probe_from": "model tiny 1"}
    assert LabelSettings.model_validate(stored) == settings


def test_words_for_what_gives_no_label(
    RE: Any,
    tiled_writer: Any,
    catalog_server: CatalogServer,
    small_model: Path,
    detector_folder: Path,
    stand_in: Path,
    tmp_path: Path,
) -> None:
    uid, _ = scanned(RE, detector_folder, side=3, step_px=16)
    with pytest.raises(ValueError, match=r"too sparse for a label: its step of 0\.4\d* µm is 0\.5\d of the probe's"):
        label(uid, catalog_server, model=small_model)
    assert labels(catalog_server, raw=uid) == []
    assert label(uid, catalog_server, model=small_model, most_sampling=0.8).metadata["sampling"] > 0.5
    with pytest.raises(ValueError, match="give the model whose probe it is, or a probe, one of them"):
        label(uid, catalog_server)
    with pytest.raises(ValueError, match="device 'tpu'; allowed: cpu, cuda"):
        label(uid, catalog_server, model=small_model, device="tpu")
    with pytest.raises(ValueError, match=r"probe \(an array\) is 32 x 32 px, the run's frames .* 64 x 64 px"):
        label(uid, catalog_server, probe=np.ones((32, 32), np.complex64))
    with pytest.raises(ValueError, match="no run 'nothing' in"):
        read_label(catalog_server, "nothing")


def test_pty_chi_labels_a_run(
    RE: Any, tiled_writer: Any, catalog_server: CatalogServer, small_model: Path, detector_folder: Path
) -> None:
    if solver_version() is None:
        pytest.skip(f"no pty-chi: set {PYTHON_VARIABLE} to an interpreter that has it (benchmarks/README.md)")
    uid, _ = scanned(RE, detector_folder)
    made = label(uid, catalog_server, model=small_model, epochs=15, threads=1)
    scan = read_label(catalog_server, uid)
    truth = EXPERIMENT.truth_on(scan.origin_m, scan.object.shape)
    weight = scan.light > 5
    assert weight.sum() > 500
    assert phase_correlation(scan.object, truth, weight) > 0.97
    assert phase_mae(scan.object, truth, weight) < 0.08
    solver = made.metadata["solver"]
    assert solver["name"].startswith("pty-chi ")
    assert solver["loss"] < 0.3 * solver["first_loss"]

"""The command line: what a user sees, above all when something is wrong."""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bluesky_ptychonn import __version__
from bluesky_ptychonn.card import find_model, load_card
from bluesky_ptychonn.cli.app import sentence
from bluesky_ptychonn.cli.common.local_session import _without_traceback
from bluesky_ptychonn.cli.common.progress import PlainLines, show_progress
from bluesky_ptychonn.cli.export import writer_for
from bluesky_ptychonn.files import lock
from bluesky_ptychonn.journal.router import Journal
from bluesky_ptychonn.live.pipeline.progress import Progress
from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings
from bluesky_ptychonn.live.session import WORKER_LOCK, WorkerStatus, new_session
from bluesky_ptychonn.recon.models.checkpoint import load_model
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from tests.support.commands import run_command

MODEL = "simulated-zp64"


@pytest.fixture
def ptychonn(monkeypatch, capsys):
    """Run the command; returns exit code, stdout, stderr."""

    return partial(run_command, monkeypatch, capsys)


@pytest.fixture
def refused(ptychonn):
    """Run the command; it must end with exit code 2 and one sentence, which is returned."""

    def run(*arguments: object) -> str:
        code, _, err = ptychonn(*arguments)
        assert code == 2
        assert err.startswith("ptychonn: ")
        assert err.count("\n") == 1
        return err

    return run


def write_cxi(path: Path, *, shape: int = 64, energy: bool = True, pitch_m: float = 75e-6) -> Path:
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry_1")
        entry["data_1/data"] = np.random.default_rng(0).poisson(20, (9, shape, shape)).astype(np.uint16)
        grid = np.stack(np.meshgrid([-1e-6, 0, 1e-6], [-1e-6, 0, 1e-6]), -1).reshape(-1, 2)
        entry["data_1/translation"] = np.concatenate([grid, np.zeros((9, 1))], axis=1)
        if energy:
            entry["instrument_1/source_1/energy"] = 10_000 * 1.602176634e-19
        entry["instrument_1/detector_1/distance"] = 1.0
        entry["instrument_1/detector_1/x_pixel_size"] = pitch_m
        entry["instrument_1/detector_1/y_pixel_size"] = pitch_m
    return path


def test_the_commands_of_the_design_are_there(ptychonn) -> None:
    code, out, _ = ptychonn("--help")
    assert code == 0
    for command in (
        "demo",
        "reconstruct",
        "replay",
        "train",
        "models",
        "serve",
        "export",
        "view",
        "recover",
        "backfill",
        "status",
    ):
        assert f" {command} " in out


def test_version(ptychonn) -> None:
    assert ptychonn("--version") == (0, f"ptychonn {__version__}\n", "")


def test_models_are_listed_with_what_they_take(ptychonn) -> None:
    code, out, _ = ptychonn("models")
    assert code == 0
    assert f"{MODEL}" in out
    assert "frames 64×64" in out
    assert ptychonn("models", "list")[1] == out


def test_a_model_shows_its_error_against_spacing(ptychonn) -> None:
    code, out, _ = ptychonn("models", "show", MODEL)
    assert code == 0
    table = out.split("correlation")[1].splitlines()[1:]
    steps = [float(line.split()[0]) for line in table if line.strip()]
    assert len(steps) > 3
    assert steps == sorted(steps)


def test_a_card_that_cannot_be_read_does_not_hide_the_others(ptychonn, tmp_path, monkeypatch) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{}")
    monkeypatch.setenv("PTYCHONN_MODELS", str(tmp_path))
    code, out, _ = ptychonn("models")
    assert code == 0
    assert "broken" in out
    assert "cannot be used" in out
    assert MODEL in out


def test_unknown_model(refused, tmp_path) -> None:
    words = refused("replay", write_cxi(tmp_path / "scan.cxi"), "--model", "simulated-zp46")
    assert "model 'simulated-zp46' is unknown (did you mean 'simulated-zp64'?)" in words
    assert "Searched:" in words


def test_a_file_that_is_not_hdf5(refused, tmp_path) -> None:
    (tmp_path / "scan.cxi").write_text("once upon a time")
    words = refused("replay", tmp_path / "scan.cxi", "--model", MODEL)
    assert words == "ptychonn: scan.cxi is not a CXI file: it is not HDF5\n"


def test_an_hdf5_file_that_is_not_cxi(refused, tmp_path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["exchange/data"] = 1
    words = refused("replay", tmp_path / "scan.h5", "--model", MODEL)
    assert "scan.h5 is not a CXI file with a group 'entry_1'; it holds: exchange" in words


def test_no_such_file(refused, tmp_path) -> None:
    assert "nothing.cxi: no such file" in refused("replay", tmp_path / "nothing.cxi", "--model", MODEL)


def test_missing_geometry(refused, tmp_path) -> None:
    words = refused("replay", write_cxi(tmp_path / "scan.cxi", energy=False), "--model", MODEL)
    assert "geometry lacks energy_ev" in words
    assert "eV" in words


def test_model_for_another_detector(refused, tmp_path) -> None:
    words = refused("replay", write_cxi(tmp_path / "scan.cxi", shape=128), "--model", MODEL)
    assert "takes frames of 64 x 64 px; the detector's 128 x 128 px" in words


def test_a_model_for_any_probe_needs_one(refused, tmp_path) -> None:
    folder = str(find_model("zone-plates"))
    words = "is for any probe and has none yet. Give it yours: for_probe"
    for command in (("reconstruct", "latest"), ("backfill",)):
        assert words in refused(*command, "--catalog", tmp_path, "--model", folder)
    assert "no catalog is here" in refused(
        "reconstruct", "latest", "--catalog", tmp_path, "--model", folder, "--probe", "probe.npy"
    )
    assert words in refused("models", "measure", "zone-plates", "--out", tmp_path / "out")


def test_model_for_another_pixel(refused, tmp_path) -> None:
    words = refused("replay", write_cxi(tmp_path / "scan.cxi", pitch_m=55e-6), "--model", "zone-plates")
    assert "is for any probe and has none yet. Give it yours: for_probe" in words
    words = refused("replay", write_cxi(tmp_path / "scan.cxi", pitch_m=55e-6), "--model", MODEL)
    assert "was trained at an object pixel of 25.83 nm; this scan has 35.22 nm" in words


def test_a_mask_that_leaves_no_frame_to_be_used(refused, tmp_path) -> None:
    path = write_cxi(tmp_path / "scan.cxi")
    with h5py.File(path, "a") as file:
        mask = np.zeros((64, 64), np.uint32)
        mask[30:32] = 1
        file["entry_1/instrument_1/detector_1/mask"] = mask
    words = refused("replay", path, "--model", MODEL)
    assert "mask condemns 3.1% of the pixels; of a frame at most 2.0% are mended, so all would be rejected" in words


def test_near_field_data(refused, star) -> None:
    words = refused("replay", star.with_name("PETRAIII_P25_Near_Field_Ptycho.cxi"), "--model", MODEL)
    assert "near-field data, which far-field ptychography cannot use" in words


def test_nothing_is_started_for_what_is_refused(refused, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused("replay", write_cxi(tmp_path / "scan.cxi", shape=128), "--model", MODEL)
    assert not (tmp_path / "replay-output").exists()


@pytest.mark.parametrize(
    "command", [("view",), ("export", "--to", "x.npz"), ("reconstruct", "latest", "--model", MODEL)]
)
def test_no_catalog_there(refused, tmp_path, command) -> None:
    assert "no catalog is here" in refused(*command, "--catalog", tmp_path)
    assert "no such folder" in refused(*command, "--catalog", tmp_path / "nowhere")
    assert "no Tiled profile 'no-such-profile'" in refused(*command, "--catalog", "no-such-profile")


def test_export_to_what_nobody_writes(refused, tmp_path) -> None:
    words = refused("export", "--to", "picture.docx", "--catalog", tmp_path)
    assert "'picture.docx' has no suffix of a format written here; allowed: .cxi, .h5" in words


def test_files_that_cannot_be_written_are_refused_before_any_work(refused, tmp_path) -> None:
    nowhere = tmp_path / "none" / "image.npz"
    words = f"there is no folder {nowhere.parent}; make it, or name a file elsewhere"
    assert words in refused("export", "--to", nowhere, "--catalog", tmp_path)
    assert words in refused("view", "--out", nowhere.with_suffix(".png"), "--catalog", tmp_path)
    (tmp_path / "dir.npz").mkdir()
    assert "dir.npz is a folder; name a file in it" in refused("export", "--to", tmp_path / "dir.npz", "--catalog", "c")
    words = refused("view", "--out", tmp_path / "v.xyz", "--catalog", tmp_path)
    assert "view: 'v.xyz' has no suffix of a picture; allowed: " in words
    assert ".png" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--step-um", 5), "a step of 5 µm was never measured"),
        (("--step-um", -1), "step_um -1.0 µm must be above 0"),
        (("--field-um", -2), "width_um -2.0 µm must be 0 or more"),
        (("--tolerated-error", 1e-4), "no measured spacing keeps the phase error within 0.0001 rad"),
    ],
)
def test_a_demo_that_cannot_be_is_refused_before_anything_is_started(
    refused, tmp_path, monkeypatch, arguments, words
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused("demo", *arguments)
    assert not (tmp_path / "demo-output").exists()


def test_a_plan_that_fails_is_said_once_and_without_its_traceback(capfd) -> None:
    with _without_traceback():
        logging.getLogger("bluesky").error("Run aborted", exc_info=ValueError("of the plan"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", [("status",), ("learn", MODEL, "--catalog", "c"), ("models", "list")])
def test_a_configuration_that_is_not_there_is_said(refused, monkeypatch, tmp_path, command) -> None:
    monkeypatch.setenv("PTYCHONN_CONFIG", str(tmp_path / "none.toml"))
    assert f"PTYCHONN_CONFIG names {tmp_path / 'none.toml'}, which is no file; mend it" in refused(*command)


def test_learn_reads_the_configuration_of_the_session(refused, monkeypatch, tmp_path) -> None:
    file = tmp_path / "ptychonn.toml"
    file.write_text('[catalog]\nfolder = "c"\n[reconstruction]\nmodel = "m"\n[learning]\nshare = 7\n')
    monkeypatch.setenv("PTYCHONN_CONFIG", str(file))
    assert "learning.share: Input should be less than or equal to 1, got 7" in refused("learn", MODEL, "--catalog", "c")


def test_the_help_of_label_says_how_to_get_the_solver(ptychonn) -> None:
    said = " ".join(ptychonn("label", "--help")[1].split())
    assert "pip install ptychi==2.2.0" in said
    assert "PTYCHONN_PEER_PYTHON" in said


def test_without_a_terminal_progress_is_a_plain_line_now_and_then(capsys) -> None:
    now = [0.0]
    lines = PlainLines("training", lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        lines(second * 10, 1000, "loss 0.1234")
    assert capsys.readouterr().out.splitlines() == [
        f"training: {10 * second} of 1000 ({second}%) frames, loss 0.1234" for second in (10, 40, 70)
    ]
    with show_progress("training") as show:
        assert isinstance(show, PlainLines)  # the tests have no terminal


def test_training_needs_geometry(refused, tmp_path) -> None:
    np.save(tmp_path / "probe.npy", np.ones((64, 64), np.complex64))
    words = refused("train", "--probe", tmp_path / "probe.npy", "--out", tmp_path / "model")
    assert "give --energy-ev, --distance-m, --pixel-pitch-m" in words


GEOMETRY = ("--energy-ev", 9000, "--distance-m", 1, "--pixel-pitch-m", 75e-6)


@pytest.mark.slow
def test_a_model_is_measured_for_another_probe_without_training(ptychonn, refused, tmp_path, monkeypatch) -> None:
    from bluesky_ptychonn.optics.simulate import zone_plate_probe
    from bluesky_ptychonn.recon.evaluation.simulated_scans import ScanSeries, measure_sampling
    from bluesky_ptychonn.recon.training import model as produce

    few = ScanSeries((0.4, 0.6), ("etched",), 2.0)
    monkeypatch.setattr(
        produce, "measure_sampling", lambda *given: measure_sampling(*given[:3], few)
    )  # the whole curve takes half a minute
    monkeypatch.setattr(produce, "calibrated", functools.partial(produce.calibrated, frames=64, scans=2))
    np.save(tmp_path / "probe.npy", zone_plate_probe((48, 48), 16))
    made = ("train", "--probe", tmp_path / "probe.npy", "--out", tmp_path / "mine", *GEOMETRY, "--frames", 0)
    assert "--frames 0 trains nothing" in refused(*made)
    code, said, _ = ptychonn(*made, "--start", MODEL)
    assert code == 0
    assert "held-out scans" in said
    mine, theirs = load_card(tmp_path / "mine"), load_card(MODEL)
    assert mine.input.frame_shape == (48, 48)
    assert theirs.weights_sha256 in mine.training["started_from"]
    assert mine.sampling
    assert mine.probe.sha256 != theirs.probe.sha256
    ours = load_model(tmp_path / "mine", "cpu").network.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in load_model(MODEL, "cpu").network.state_dict().items())


def test_a_model_for_any_probe_is_trained_and_then_given_one(ptychonn, refused, tmp_path, monkeypatch) -> None:
    made = ("train", "--probe", "any", "--out", tmp_path / "any", "--frame-size", 32, "--frames", 16, "--batch", 8)
    assert "not told its probe" in refused(*made, "--family", "direct")
    code, said, _ = ptychonn(*made, "--width", 4, "--threads", 1)
    assert code == 0
    assert "for any probe" in said
    card = load_card(tmp_path / "any")
    assert card.probe is None
    assert card.training["config"]["synthetic"]["probes"]["roughness"] == [0.0, 0.35]
    monkeypatch.setenv("PTYCHONN_MODELS", str(tmp_path))
    code, said, _ = ptychonn("models", "list")
    assert "lifted, for any probe: give it yours" in said


def test_status_says_what_sessions_do(ptychonn, tmp_path) -> None:
    root = tmp_path / "journal"
    assert ptychonn("status", "--journal", root)[1] == f"no session of live reconstruction in {root}\n"
    backup = tmp_path / "raw-backup"
    backup.mkdir()
    (backup / "a-raw-run.jsonl").touch()
    said = ptychonn("status", "--journal", root, "--backup", backup)[1]
    assert f"1 raw runs not whole in the catalog yet, in {backup}:\n  a-raw-run\n" in said
    old, new = new_session(root), new_session(root)
    for folder in (old, new):
        ReconstructionSettings(model="model", catalog="http://127.0.0.1:9/api/v1").save(folder)
    run = Progress("abcdefgh-1", 7, state="live", expected=9, seen=5, done=3, waiting=2, rejected={"beam lost": 1})
    run.spooled, run.spool_bytes = 2, 5 << 19
    WorkerStatus("ready", 4242, "a processor", "the catalog is away", runs={run.uid: run}).save(new)
    journal = Journal(new, slimmed=True)
    journal.append("start", {"uid": run.uid, "time": 0.0})
    owned = lock(new / WORKER_LOCK)
    try:
        said = ptychonn("status", "--journal", root)[1]
    finally:
        os.close(owned)
        journal.close()
    assert "worker ready, process 4242, on a processor" in said
    assert "  scan 7: run abcdefgh, live, 3/9 frames reconstructed, 2 waiting, 2 on disk until" in said
    assert "1 rejected (beam lost)" in said
    assert f"2 frames on disk until the catalog takes them, 2.5 MiB in {new / 'spool'}" in said
    assert "last problem: the catalog is away" in said
    assert "1 runs not finished" in said
    assert said.count("no worker") == 1
    assert "1 runs not finished, taken up by the next" in ptychonn("status", "--journal", root, "--sessions", 9)[1]


def test_the_traceback_can_be_had(ptychonn, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PTYCHONN_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        ptychonn("replay", tmp_path / "nothing.cxi", "--model", MODEL)


def test_the_real_command_ends_with_code_2_and_words(tmp_path) -> None:
    command = [sys.executable, "-c", "from bluesky_ptychonn.cli import main; main()"]
    done = subprocess.run(
        [*command, "models", "show", "none-such"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "model 'none-such' is unknown" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_error_is_said_without_its_quotes() -> None:
    assert sentence(KeyError("no run 'abc' is in this catalog")) == "no run 'abc' is in this catalog"
    assert sentence(ValueError("one\n  two")) == "one two"
    assert sentence(TimeoutError()) == "TimeoutError"


@pytest.fixture
def image() -> MosaicImage:
    rng = np.random.default_rng(1)
    phase = rng.normal(size=(12, 20)).astype(np.float32)
    phase[0, :5] = np.nan
    ones = np.ones_like(phase)
    return MosaicImage(ones, phase, ones, ones * 0.5, origin_m=(-3e-7, -5e-7), pixel_m=2.5e-8)


@pytest.fixture
def frames():
    pd = pytest.importorskip("pandas")
    return pd.DataFrame({"x_m": [0.0, 1e-7], "y_m": [0.0, 2e-7], "trust": [0.9, 0.8], "valid": [True, True]})


def test_cxi_export_holds_the_object_and_its_place(image, frames, tmp_path) -> None:
    writer_for(tmp_path / "out.cxi")(tmp_path / "out.cxi", image, frames, {"status": "complete"})
    with h5py.File(tmp_path / "out.cxi") as file:
        picture = file["entry_1/image_1"]
        np.testing.assert_array_equal(picture["data"][()], image.complex)
        assert picture["x_pixel_size"][()] == 2.5e-8
        np.testing.assert_array_equal(picture["origin"][()], [-5e-7, -3e-7, 0])
        assert picture["mask"][0, 0] == 1
        assert picture["mask"][5, 5] == 0
        assert json.loads(picture["metadata"][()])["status"] == "complete"
        np.testing.assert_array_equal(file["entry_1/sample_1/geometry_1/translation"][:, 1], [0.0, 2e-7])
        assert "data" in file["entry_1/data_1"]


def test_npz_export_can_be_read_without_pickle(image, frames, tmp_path) -> None:
    writer_for(tmp_path / "out.npz")(tmp_path / "out.npz", image, frames, {"status": "complete"})
    with np.load(tmp_path / "out.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["phase"], image.phase)
        assert stored["pixel_m"] == 2.5e-8
        assert json.loads(str(stored["metadata"]))["status"] == "complete"


def test_tiff_export_keeps_values_and_pixel_size(image, frames, tmp_path) -> None:
    import tifffile

    writer_for(tmp_path / "out.tif")(tmp_path / "out.tif", image, frames, {"status": "complete"})
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        pages = file.asarray()
        np.testing.assert_array_equal(pages[1], image.phase)
        assert file.imagej_metadata["Labels"] == ["amplitude", "phase (rad)", "coverage", "trust"]
        numerator, denominator = file.pages[0].tags["XResolution"].value
        assert numerator / denominator == pytest.approx(40, rel=1e-4)

"""Options of a reconstruction as flags: none is missing, and each arrives where it belongs."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from functools import partial
from pathlib import Path
from typing import Any, get_args

import bluesky.plans as bp
import h5py
import numpy as np
import pytest
import typer

from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.card import load_card
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.cli import app
from bluesky_ptychonn.cli.common import local_session
from bluesky_ptychonn.cli.common.options import GivenOptions, flags_of
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.settings import LiveOptions, ReconstructionOptions
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from tests.support.commands import run_command

MODEL = "simulated-zp64"
# What each command decides on itself: `reconstruct` has a timing of its own and no session; others a catalog of theirs.
BATCH = {"pace", "spool_mib"}
LABEL = {"geometry", "keys", "preprocess", "raw"}
LEFT_OUT = {
    "replay": (LiveOptions, {"raw", "journal_dir"}),
    "demo": (LiveOptions, {"geometry", "keys", "raw", "journal_dir"}),
    "reconstruct": (ReconstructionOptions, BATCH),
    "backfill": (ReconstructionOptions, BATCH),
    "label": (ReconstructionOptions, set(ReconstructionOptions.model_fields) - LABEL),
}


@pytest.fixture
def run(monkeypatch, capsys) -> Any:
    """Run the command; exit code, stdout, stderr."""

    return partial(run_command, monkeypatch, capsys)


def leaves(options: type, name: str) -> int:
    """How many flags an option needs: one, or one for each field of its section, and one more for ``--refine``."""
    annotation = options.model_fields[name].annotation
    for kind in (annotation, *get_args(annotation)):
        if inner := getattr(kind, "model_fields", None):
            return len(set(inner) - {"sources"}) + (name == "refine")
        if dataclasses.is_dataclass(kind):
            return len(dataclasses.fields(kind))
    return 1


@pytest.mark.parametrize("command", LEFT_OUT)
def test_every_option_is_a_flag_of_the_command_and_explained(command) -> None:
    options, left_out = LEFT_OUT[command]
    taken = {param.name: param for param in typer.main.get_command(app).commands[command].params}
    flags = flags_of(options)
    for name in set(options.model_fields) - left_out:
        mine = [flag for flag in flags if flag.place[0] == name]
        assert len(mine) == leaves(options, name), name
        for flag in mine:
            assert taken[flag.name].opts == [flag.spelled]
            assert len(taken[flag.name].help) > 8
    assert not {flag.name for flag in flags if flag.place[0] in left_out - {"device"}} & set(taken)
    assert len({flag.name for flag in flags}) == len(flags)


@pytest.mark.parametrize("command", ["replay", "reconstruct"])
def test_both_roads_take_what_was_asked_of_them(command) -> None:
    taken = {option for param in typer.main.get_command(app).commands[command].params for option in param.opts}
    asked = "--probe --crop --bin --centre --refine --tune-probe --mask --x-key --precision --device --energy-ev"
    assert set(asked.split()) < taken


def test_flags_become_keywords_and_change_nothing_else() -> None:
    card = load_card(MODEL)
    published = card.prepared_by(PreprocessConfig(crop=192, resize=64, count_threshold=3))
    given = GivenOptions(
        LiveOptions,
        {
            "crop": 128,
            "centre": (100, 120),
            "bad_pixels": "[[1, 2], [3, 4]]",
            "x_key": "px",
            "flush_s": 0.1,
            "tune_probe": True,
            "precision": "bf16",
            "mask": Path("m.npy"),
        },
    )
    assert given.keywords(published, LiveOptions(pace=Timing(share=0.5))) == {
        "preprocess": PreprocessConfig(
            crop=128, resize=64, count_threshold=3, centre=(100, 120), bad_pixels=((1, 2), (3, 4))
        ),
        "keys": DataKeys(x="px"),
        "pace": Timing(share=0.5, flush_s=0.1),
        "refine": Refinement(tune_probe=True),
        "precision": "bf16",
        "mask": Path("m.npy"),
    }
    assert GivenOptions(LiveOptions, {"refine": True}).keywords(card) == {"refine": Refinement()}
    assert GivenOptions(LiveOptions, {"refine": False}).keywords(card) == {"refine": None}
    assert GivenOptions(LiveOptions, {}).keywords(card) == {}


def test_a_geometry_is_of_the_recorded_frames_or_changes_what_the_run_says() -> None:
    card, geometry = load_card(MODEL), SimulatedExperiment.demo().geometry
    light = {"energy_ev": geometry.energy_ev, "distance_m": geometry.distance_m}
    # Pixels of half the pitch, two by two.
    binned = GivenOptions(LiveOptions, {**light, "pixel_pitch_m": geometry.pixel_pitch_m / 2, "bin": 2})
    found = binned.keywords(card)["geometry"]
    assert found.object_pixel_m == pytest.approx(geometry.object_pixel_m, rel=1e-12)
    assert found.frame_shape == geometry.frame_shape
    changed = GivenOptions(LiveOptions, {"energy_ev": 9000.0}).keywords(card, recorded=geometry.model_dump())
    assert changed["geometry"].energy_ev == 9000
    assert changed["geometry"].distance_m == geometry.distance_m
    with pytest.raises(ValueError, match="command line: geometry lacks distance_m, pixel_pitch_m"):
        GivenOptions(LiveOptions, {"energy_ev": 9000.0}).keywords(card)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"crop": 63}, r"^--crop: Input should be a multiple of 2, got 63$"),
        ({"bin": 2, "resize": 64}, "bin=2 and resize=64 px: give one of them"),
        ({"batch_size": 0}, r"^--batch-size: .*greater than or equal to 1, got 0$"),
        ({"x_sign": 3}, "x_sign=3: a sign is 1 or -1"),
        ({"refine_sweeps": 0}, r"^--refine-sweeps: .*got 0"),
        ({"refine": False, "refine_sweeps": 3}, "--no-refine contradicts --refine-sweeps"),
        ({"bad_pixels": "1,2"}, "--bad-pixels 1,2: write it as in the configuration file"),
    ],
)
def test_what_is_wrong_is_said_by_the_flags_name(values, words) -> None:
    with pytest.raises(ValueError, match=words):
        GivenOptions(LiveOptions, values).keywords(load_card(MODEL))


def probe_file(folder: Path, side: int = 64) -> Path:
    edge = (64 - side) // 2
    np.save(folder / "probe.npy", SimulatedExperiment.demo().probe[edge : edge + side, edge : edge + side])
    return folder / "probe.npy"


def write_scan(path: Path, shape: tuple[int, int] = (64, 64), pitch: float = 1.0) -> Path:
    """Four frames of the simulated beamline's geometry, with pixels of so much of its pitch."""
    geometry = SimulatedExperiment.demo().geometry
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry_1")
        entry["data_1/data"] = np.ones((4, *shape), np.uint16)
        entry["data_1/translation"] = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]) * 5e-7
        entry["instrument_1/source_1/energy"] = geometry.energy_ev * 1.602176634e-19
        entry["instrument_1/detector_1/distance"] = geometry.distance_m
        for axis in "xy":
            entry[f"instrument_1/detector_1/{axis}_pixel_size"] = geometry.pixel_pitch_m * pitch
    return path


@pytest.fixture
def handed(monkeypatch) -> list[tuple[Any, dict[str, Any]]]:
    """Model and keywords that `replay` hands to the live reconstruction, which then does not begin."""
    given: list[tuple[Any, dict[str, Any]]] = []

    def refuse(folder: Path, model: Any, **keywords: Any) -> Any:
        given.append((model, keywords))
        raise RuntimeError("that is all")

    monkeypatch.setattr(local_session, "open_local_session", refuse)
    return given


def test_replay_hands_all_of_it_to_the_live_reconstruction(run, tmp_path, handed) -> None:
    experiment = SimulatedExperiment.demo()
    command = ("replay", write_scan(tmp_path / "scan.cxi"), "--model", MODEL, "--out", tmp_path / "out")
    assert "that is all" in run(*command, "--refine", "--precision", "bf16", "--probe", probe_file(tmp_path))[2]
    model, keywords = handed.pop()
    assert keywords == {"refine": Refinement(), "precision": "bf16"}
    assert model.card.name == MODEL
    assert model.card.version.startswith(f"{load_card(MODEL).version}+")
    assert "that is all" in run(*command, "--energy-ev", experiment.geometry.energy_ev * 1.001)[2]
    assert handed[0][0] == MODEL
    assert handed[0][1]["geometry"].energy_ev == pytest.approx(experiment.geometry.energy_ev * 1.001)
    assert "was trained at an object pixel of" in run(*command, "--energy-ev", 9000)[2]
    np.save(tmp_path / "mask.npy", np.zeros((32, 32), bool))
    assert "mask.npy: a mask of (32, 32) px" in run(*command, "--mask", tmp_path / "mask.npy")[2]


@pytest.mark.parametrize(
    ("shape", "pitch", "flags"),
    [
        ((96, 81), 1.0, ("--crop", 64, "--centre", 50, 40)),
        ((128, 128), 0.5, ("--bin", 2)),
        ((50, 50), 1, ("--crop", 64)),
    ],
)
def test_replay_cuts_pads_and_bins_what_it_reads(run, tmp_path, handed, shape, pitch, flags) -> None:
    command = ("replay", write_scan(tmp_path / "scan.cxi", shape, pitch), "--model", MODEL, "--out", tmp_path / "out")
    assert "px" in run(*command)[2]  # as it is, the model does not take it
    assert not handed
    assert "that is all" in run(*command, *flags, "--probe", probe_file(tmp_path))[2]
    model, keywords = handed.pop()
    assert keywords["preprocess"] == PreprocessConfig()  # not once more in the reconstruction
    np.testing.assert_allclose(model.card.input.object_pixel_m, load_card(MODEL).input.object_pixel_m, rtol=1e-6)


@pytest.mark.system
@pytest.mark.usefixtures("tiled_writer")
def test_reconstruct_hands_all_of_it_to_the_reconstruction(
    run, RE, catalog_server, detector_folder, tmp_path, monkeypatch
) -> None:
    command = importlib.import_module("bluesky_ptychonn.cli.reconstruct")
    beamline = SimulatedBeamline.demo(detector_folder)
    stage = beamline.stage
    md = {"ptychography": {"geometry": beamline.geometry.model_dump(mode="json")}}
    (uid,) = RE(bp.grid_scan([beamline.camera], stage.y, -3e-4, 3e-4, 2, stage.x, -3e-4, 3e-4, 2, False, md=md))
    np.save(tmp_path / "mask.npy", np.eye(64, dtype=bool))
    monkeypatch.setattr(command, "open_catalog", lambda _: contextlib.nullcontext(catalog_server.client))
    code, said, err = run(
        "reconstruct", uid, "--catalog", "that one", "--model", MODEL, "--mask", tmp_path / "mask.npy", "--crop", 48,
        "--probe", probe_file(tmp_path, 48), "--refine-sweeps", 1, "--batch-size", 2,
    )  # fmt: skip
    assert (code, err) == (0, "")
    key = said.strip().rpartition("/")[2]
    metadata = catalog_server.client["processed"][key].metadata
    assert metadata["preprocess"]["crop"] == 48
    assert metadata["masked_pixels"] == 64
    assert metadata["batch_size"] == 2
    assert metadata["refinement"]["settings"]["sweeps"] == 1
    assert "+" in metadata["model"]["version"]

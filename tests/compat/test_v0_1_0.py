"""What version 0.1.0 left on disk is read, and gone on with, by the version of today.

The files are made by ``make_fixtures.py``; nothing here may be mended by making them anew.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bluesky_ptychonn import load_model, reconstructions, serve_catalog
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.raw.writer import raw_writer, recover
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.catalog.results.label_client import labels
from bluesky_ptychonn.live.batch.label import read_label
from bluesky_ptychonn.live.session import left_behind
from bluesky_ptychonn.live.supervisor import resume
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import zone_plate_probe
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.learning.learner import Learner
from bluesky_ptychonn.recon.training.config import TrainingConfig
from bluesky_ptychonn.recon.training.fit import fit

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

KEPT = Path(__file__).with_name("v0.1.0")
PLACE = "/place-of-the-fixtures"
NAME = "compat-lifted"
WAIT_S = 120.0
EXPECTED = json.loads((KEPT / "expected.json").read_text())
FINISHED, UNFINISHED = EXPECTED["session"]["finished"], EXPECTED["session"]["unfinished"]


@pytest.fixture(scope="module")
def arrays() -> Any:
    """What the old version read and computed."""
    with np.load(KEPT / "expected.npz", allow_pickle=False) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, as if they had been left here."""
    root = Path(shutil.copytree(KEPT, tmp_path_factory.mktemp("compat") / "left"))
    for path in root.rglob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    for path in root.rglob("*.json*"):
        path.write_bytes(path.read_bytes().replace(PLACE.encode(), str(root).encode()))
    with sqlite3.connect(root / "catalog" / "catalog.db") as database:
        database.execute("UPDATE assets SET data_uri = replace(data_uri, ?, ?)", (PLACE, str(root)))
    database.close()
    return root


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[CatalogServer]:
    """The old catalog, served."""
    before = json.loads((place / "catalog" / "server.json").read_text())["uri"]
    with serve_catalog(place / "catalog", readable=[place / "frames"]) as server:
        for path in place.glob("journal/*/order.json"):  # its port may be taken on this machine
            path.write_bytes(path.read_bytes().replace(before.encode(), server.uri.encode()))
        yield server


@pytest.fixture(scope="module")
def session(place: Path) -> Path:
    """Folder of the session that was killed."""
    return place / "journal" / EXPECTED["session"]["folder"]


@pytest.fixture(scope="module")
def taking_up(server: CatalogServer, place: Path, session: Path) -> Iterator[threading.Thread]:
    """What the next session has done with the one that was killed; it takes some seconds, in which other tests run."""
    (result,) = reconstructions(server, raw=UNFINISHED)
    assert (result.status, len(result.frames)) == ("live", 4)
    assert len(list(session.glob("spool/*/*.npz"))) == 1
    assert left_behind(place / "journal", server.uri) == [session]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTYCHONN_MODELS", str(place / "models"))
        thread = resume([session], server.api_key)
        yield thread
        thread.join(WAIT_S)


def test_databrokers_queries_are_known_to_old_results_too(server: CatalogServer) -> None:
    from bluesky_tiled_plugins.queries import PartialUID, ScanID

    every = list(server.processed)
    found = list(server.processed.search(PartialUID(UNFINISHED[:8])))
    assert found == [key for key in every if server.processed[key].metadata["raw"]["uid"] == UNFINISHED]
    assert list(server.processed.search(ScanID(987654))) == []


def same_result(result: Any, name: str, arrays: dict[str, Any], *, made_anew: bool) -> None:
    """What a reader gets is what the old version got; `made_anew` by another processor, but for the times."""
    told = EXPECTED[name]
    for key in ("status", "counts", "problems"):
        assert getattr(result, key) == told[key], key
    assert result.metadata["model"] == told["model"]
    assert result.pixel_m == pytest.approx(told["pixel_m"], rel=1e-12)
    assert result.verdict["level"] == told["verdict"]["level"]
    assert list(result.frames.columns) == told["columns"]
    tolerance = 1e-3 if made_anew else 0.0
    for column in told["columns"]:
        now, then = result.frames[column].to_numpy(), arrays[f"{name}/frames/{column}"]
        if column == "flag":
            assert now.tolist() == then.tolist()
        elif column != "time_done" or not made_anew:
            np.testing.assert_allclose(now, then, rtol=0, atol=tolerance if column == "trust" else 0, err_msg=column)
    for picture in ("amplitude", "phase", "coverage", "trust"):
        now = getattr(result, picture).read()
        np.testing.assert_allclose(now, arrays[f"{name}/{picture}"], rtol=0, atol=tolerance, err_msg=picture)
    np.testing.assert_allclose(result.patches(), arrays[f"{name}/patches"], rtol=0, atol=tolerance)


def test_a_reconstruction_is_found_and_read(taking_up: Any, server: CatalogServer, arrays: dict[str, Any]) -> None:
    (result,) = reconstructions(server, raw=FINISHED, model=NAME, version="1", status="complete", sample="etched")
    same_result(result, "finished", arrays, made_anew=False)
    assert result.verdict == EXPECTED["finished"]["verdict"]
    raw = result.raw
    assert raw.metadata["stop"]["exit_status"] == "success"
    np.testing.assert_array_equal(np.squeeze(raw["primary"]["camera_image"].read()), arrays["raw/camera"])
    np.testing.assert_allclose(raw["primary"]["stage_x"].read() * 1e-3, result.frames.x_m, atol=1e-12)
    assert result.mosaic().phase.shape == arrays["finished/phase"].shape


def test_the_champion_is_found_and_loaded(taking_up: Any, server: CatalogServer, tmp_path: Path) -> None:
    registry = Registry(server)
    (published,) = registry.list()
    assert (published.name, published.version, published.state, published.champion) == (NAME, "1", "complete", True)
    (decision,) = registry.history(NAME)
    assert (decision.version, decision.reason, decision.by) == ("1", "what we begin with", "fixture")
    assert len(registry.metrics(NAME)) == EXPECTED["lifted"]["metrics"]
    (lesson,) = registry.learning(NAME)
    assert (lesson.kind, lesson.reason, lesson.numbers) == ("passed over", "too dark", {"x": None})
    model = load_model(registry.fetch(NAME, to=tmp_path), "cpu")
    assert model.card.weights_sha256 == EXPECTED["lifted"]["weights_sha256"]


def test_a_label_is_found_and_joined_with_its_frames(
    taking_up: Any, server: CatalogServer, arrays: dict[str, Any]
) -> None:
    (label,) = labels(server, raw=FINISHED)
    np.testing.assert_array_equal(label.amplitude, arrays["label/amplitude"])
    np.testing.assert_array_equal(label.phase, arrays["label/phase"])
    np.testing.assert_array_equal(read_label(server, FINISHED).counts, arrays["raw/camera"].astype(np.float32))


@pytest.mark.parametrize("family", ["lifted", "direct"])
def test_models_predict_what_they_predicted(place: Path, arrays: dict[str, Any], family: str) -> None:
    model = load_model(place / "models" / f"compat-{family}", "cpu")
    assert model.card.weights_sha256 == EXPECTED[family]["weights_sha256"]
    assert model.weight is not None
    with torch.inference_mode():
        patches = model.network(torch.from_numpy(arrays["counts"]), model.probe).numpy()
    np.testing.assert_allclose(patches, arrays[f"{family}/patches"], rtol=0, atol=1e-5)


def same_events(server: CatalogServer, uid: str, points: int) -> Any:
    """The catalog has every event of a run that waited, as ``make_fixtures.py`` made them; returns the run."""
    run = server.raw[uid]
    primary = run["primary"]
    x = {2: np.nan, 3: np.inf}
    np.testing.assert_array_equal(primary["seq_num"].read(), np.arange(1, points + 1))
    np.testing.assert_array_equal(primary["sx"].read(), [x.get(n, 0.1 * n) for n in range(1, points + 1)])
    np.testing.assert_array_equal(primary["sy"].read(), np.full(points, 0.25))
    images = np.arange(256).reshape(16, 16) + np.arange(1, points + 1)[:, None, None]
    np.testing.assert_array_equal(primary["img"].read(), images)
    return run


def test_a_raw_run_that_waited_is_delivered(taking_up: Any, server: CatalogServer, place: Path, tmp_path: Path) -> None:
    uid = EXPECTED["backup"]["whole"]
    shutil.copy(place / "backup" / f"{uid}.jsonl", tmp_path)
    writer = raw_writer(server, tmp_path)
    assert writer.close(), writer
    run = same_events(server, uid, 4)
    assert run.metadata["start"]["scan_id"] == 7
    assert run.metadata["stop"]["exit_status"] == "success"
    assert not list(tmp_path.iterdir())


def test_a_raw_run_that_was_cut_off_is_recovered(
    taking_up: Any, server: CatalogServer, place: Path, tmp_path: Path
) -> None:
    uid = EXPECTED["backup"]["cut"]
    shutil.copy(place / "backup" / f"{uid}.jsonl", tmp_path)
    (one,) = recover(server, tmp_path)
    assert (one.uid, one.outcome) == (uid, "recovered")
    assert same_events(server, uid, 2).metadata["stop"]["exit_status"] == "abort"


def test_a_killed_training_goes_on(place: Path, arrays: dict[str, Any]) -> None:
    config = TrainingConfig.model_validate_json((place / "training" / "config.json").read_text())
    steps: list[int] = []
    network, record = fit(
        zone_plate_probe((32, 32), 14),
        config,
        checkpoint=place / "training" / "killed.pt",
        progress=lambda done, total, loss: steps.append(done),
    )
    assert steps[0] == EXPECTED["training"]["begins_after"] + config.batch_size
    assert steps[-1] == config.frames
    np.testing.assert_allclose(record["loss"], EXPECTED["training"]["loss"], rtol=1e-3)
    for name, tensor in network.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), arrays[f"trained/{name}"], rtol=1e-2, atol=1e-3, err_msg=name)


def test_a_killed_learner_goes_on(place: Path) -> None:
    told = EXPECTED["learner"]
    config = LearningConfig.model_validate_json((place / "learning" / "config.json").read_text())
    champion = load_model(place / "models" / "compat-direct", "cpu")
    learner = Learner(place / "learning" / "learner", champion, config)
    assert (list(learner.pending), learner.rounds) == (told["pending"], 0)
    assert champion.probe is not None
    geometry = Geometry.model_validate(EXPECTED["geometry"])
    nothing = MeasuredScan(np.zeros((0, 32, 32)), [], [], champion.probe.numpy(), geometry, told["pending"][0])
    known = learner.consider(nothing, trust=[])  # answered from memory
    assert (known.taken, known.reason, known.frames, known.held_out) == (
        True,
        told["reason"].removeprefix("taken: "),  # which is what `taken` says
        told["frames"],
        told["held_out"],
    )
    steps: list[int] = []
    candidate = learner.propose(lambda: bool(steps.append(1)))
    assert candidate is not None
    assert candidate.model.card.version == told["version"]
    assert len(steps) < config.frames // config.batch_size - 2  # it did not begin anew
    assert learner.judge(candidate).reason


def test_the_unfinished_run_of_a_killed_session_ends_in_the_catalog(
    taking_up: Any, server: CatalogServer, session: Path, arrays: dict[str, Any]
) -> None:
    done = session / f"{UNFINISHED}.done"
    end = time.monotonic() + WAIT_S
    while not done.exists():
        assert time.monotonic() < end, taking_up
        time.sleep(0.1)
    ended = json.loads(done.read_text())
    assert (ended["state"], ended["key"], ended["model"]) == ("complete", EXPECTED["session"]["key"], f"{NAME}/1")
    (result,) = reconstructions(server, raw=UNFINISHED)
    assert result.path_parts[-1] == EXPECTED["session"]["key"]
    same_result(result, "unfinished", arrays, made_anew=True)
    assert not (session / "spool" / EXPECTED["session"]["key"]).exists()  # what waited there was sent
    (result,) = reconstructions(server, raw=FINISHED)  # a finished run is not begun again
    np.testing.assert_array_equal(result.frames.time_done, arrays["finished/frames/time_done"])

"""A bare name means the catalog's champion: looked up when a run begins, kept until it ends."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.beamline.plans import ptycho_scan
from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.card import find_model, load_card
from bluesky_ptychonn.catalog.connection.connect import Address
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.registry.champion import Champion, bare_name, local_or_champion, resolve_model
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.live.batch.backfill import backfill
from bluesky_ptychonn.live.batch.reconstruct import reconstruct
from bluesky_ptychonn.live.callback import LiveReconstruction
from bluesky_ptychonn.live.pipeline.factory import TiledComponentFactory
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings
from bluesky_ptychonn.recon.models.checkpoint import load_model
from bluesky_ptychonn.recon.models.library import place, read_folder

WAIT_S = 120.0


@pytest.fixture
def registry(catalog_server: CatalogServer) -> Registry:
    return Registry(catalog_server)


def spoil(catalog_server: CatalogServer, name: str, version: str) -> None:
    """Change a byte of a published model's weights."""
    weights = catalog_server.models[name][version]["weights"]
    data = weights.read()
    data[-1] ^= 1
    weights.write_block(data, (0,))


@pytest.mark.slow
@pytest.mark.system
def test_a_session_follows_the_champion_from_run_to_run(
    RE: Any,
    tiled_writer: Any,
    catalog_server: CatalogServer,
    registry: Registry,
    make_model: Any,
    detector_folder: Path,
    tmp_path: Path,
) -> None:
    name = load_card(make_model()).name
    for seed in range(3):
        registry.publish(make_model(str(seed + 1), seed))
    registry.promote(name, "1", "the first")
    beamline = SimulatedBeamline.demo(detector_folder, exposure_s=0.02)

    def scan() -> Any:
        return ptycho_scan([beamline.camera], beamline.stage.x, beamline.stage.y, 0.3, 0.3, 0.3, pattern="raster")

    midway: list[Any] = []

    def promote_midway(name_: str, doc: Any) -> None:
        if midway and doc["seq_num"] == 2:
            midway.pop()()

    pace = Timing(flush_s=0.05, patience_s=2.0)
    options: Any = {"worker": "thread", "threads": 1, "pace": pace}
    with LiveReconstruction(name, catalog_server, journal_dir=tmp_path / "j", **options) as live:
        live.wait_ready(WAIT_S)
        assert live.status.model == f"{name}/1"  # though nobody has it on this machine
        assert f"model {name}/1" in repr(live)
        RE.subscribe(live)
        RE.subscribe(promote_midway, "event")

        def run(ended_by: str) -> dict[str, Any]:
            (uid,) = RE(scan())
            (ended,) = live.wait(uid, WAIT_S)
            assert (ended.state, ended.done, ended.model) == ("complete", 4, f"{name}/{ended_by}"), ended
            made_by = dict(live.result(uid).metadata["model"])
            assert (made_by["name"], made_by["version"]) == (name, ended_by)
            return made_by

        first = run("1")
        midway.append(lambda: registry.promote(name, "2", "better"))
        during = run("1")  # a run under way stays with its model
        second = run("2")
        assert first["weights_sha256"] == during["weights_sha256"] != second["weights_sha256"]
        assert load_card(live.model).version == "2"
        assert not midway

        registry.promote(name, "3", "better still")
        spoil(catalog_server, name, "3")
        run("2")  # what cannot be had leaves the present one at work, and says so
        assert "version '3' in the catalog is not what its card describes" in live.status.problem
        assert f"{name}/2 is at work instead" in live.status.problem

        registry.rollback(name)
        registry.rollback(name)
        run("1")
        assert live.status.problem == ""
    result = reconstruct(live.results[0].metadata["raw"]["uid"], name, catalog_server, threads=1)
    assert result.metadata["model"]["version"] == "1"


def test_a_run_that_is_taken_up_again_keeps_the_model_it_began_with(
    catalog_server: CatalogServer, registry: Registry, make_model: Any, tmp_path: Path
) -> None:
    name = load_card(make_model()).name
    for seed in range(2):
        registry.publish(make_model(str(seed + 1), seed))
        registry.promote(name, str(seed + 1), "better")
    local = place(*_as_version(make_model("1", 2), "local"), tmp_path / "mine")
    order = ReconstructionSettings(model=str(local), catalog=catalog_server.uri, threads=1, champion=name, device="cpu")
    factory = TiledComponentFactory(order, "s", root=catalog_server.client, folder=tmp_path / "session")
    assert factory.model == f"{name}/2"
    runs = [factory.for_run(made_by) for made_by in ("", f"{name}/1", f"{name}/local", f"{name}/gone")]
    assert [run.model.partition("/")[2] for run in runs] == ["2", "1", "local", "2"]
    registry.rollback(name)
    assert factory.for_run().model == f"{name}/1"
    assert factory.for_run(f"{name}/2").model == f"{name}/2"
    assert runs[0].model == f"{name}/2"


def _as_version(folder: Path, version: str) -> Any:
    card, data = read_folder(folder)
    return card.model_copy(update={"version": version}), data


def test_only_a_bare_name_follows(
    catalog_server: CatalogServer, registry: Registry, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTYCHONN_MODELS", str(tmp_path / "made-0"))
    folder = make_model("7")
    name = load_card(folder).name
    assert resolve_model(name, catalog_server) == folder  # the catalog has none
    registry.publish(folder)
    registry.publish(make_model("8", 1))
    assert resolve_model(name, catalog_server) == folder  # none is decided
    registry.promote(name, "8", "better")
    found = resolve_model(name, catalog_server)
    assert load_card(found).version == "8"
    assert not str(found).startswith(str(tmp_path / "made-0"))
    for exact in (f"{name}/7", folder, str(folder), load_card(folder)):
        assert resolve_model(exact, catalog_server) is exact
    monkeypatch.chdir(folder.parent)
    assert bare_name("7") == ""  # a model's folder of that name is here
    with pytest.raises(ValueError, match="is unknown"):
        resolve_model("no-such-model", catalog_server)


def test_names_nobody_knows_are_refused_at_once(catalog_server: CatalogServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model 'm-nobody' is unknown.*Nor has the catalog http.* a champion"):
        LiveReconstruction("m-nobody", catalog_server, journal_dir=tmp_path)
    with pytest.raises(ValueError, match=r"is unknown.*The catalog http.*, which might know it, does not answer"):
        LiveReconstruction("m-nobody", "http://127.0.0.1:9", journal_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_champions_are_downloaded_once_checked_and_few_are_kept(
    catalog_server: CatalogServer, registry: Registry, make_model: Any, tmp_path: Path
) -> None:
    name = load_card(make_model()).name
    registry.publish(make_model("1"))
    registry.promote(name, "1", "the first")
    shelf = tmp_path / "shelf"
    for i in range(9):
        old = shelf / f"old-{i}" / uuid.uuid4().hex
        old.mkdir(parents=True)
        os.utime(old.parent, (i, i))
    champion = Champion(catalog_server, name, shelf)
    folder = champion.current()
    assert folder is not None
    assert len(list(shelf.iterdir())) == 8
    asked: list[int] = []
    again = Champion(catalog_server, name, shelf, before_request=lambda: asked.append(1))
    assert again.current() == folder
    asked.clear()
    assert again.current() == folder
    assert len(asked) == 1
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # cut short on this machine
    assert np.array_equal(Champion(catalog_server, name, shelf).current(), folder)
    assert read_folder(folder)[0].name == name
    shutil.rmtree(folder)
    assert again.current() == folder


@pytest.mark.system
def test_a_model_for_any_probe_is_refused_at_once(
    catalog_server: CatalogServer, registry: Registry, make_model: Any, tmp_path: Path
) -> None:
    words = "'zone-plates' is for any probe and has none yet. Give it yours: for_probe"
    loaded = load_model("zone-plates", "cpu")
    for model in ("zone-plates", find_model("zone-plates"), loaded):
        with pytest.raises(ValueError, match=words):
            LiveReconstruction(model, catalog_server, journal_dir=tmp_path)
    for model in ("zone-plates", loaded):
        with pytest.raises(ValueError, match=words):
            reconstruct(-1, model, catalog_server)
    with pytest.raises(ValueError, match=words):
        list(backfill(catalog_server, "zone-plates"))
    assert not [*tmp_path.rglob("order.json")]
    # A champion of that name with a probe is what the name means.
    card, data = read_folder(find_model(make_model()))
    registry.publish(place(card.model_copy(update={"name": "zone-plates"}), data, tmp_path / "own"))
    registry.promote("zone-plates", card.version, "it has a probe")
    assert local_or_champion("zone-plates", Address.from_catalog(catalog_server)) == ""

"""Models in a real catalog: what comes back is what went in, decisions are kept, interruptions are mended."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_ptychonn.card import ModelCard, load_card
from bluesky_ptychonn.catalog.connection import http
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.registry.decisions import Decision, champion_before
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.recon.models.checkpoint import load_model
from bluesky_ptychonn.recon.models.library import WEIGHTS_FILE
from tests.support.commands import run_command


@pytest.fixture
def registry(catalog_server: CatalogServer) -> Registry:
    return Registry(catalog_server)


def test_what_is_published_is_fetched(registry: Registry, make_model: Any, tmp_path: Path) -> None:
    folder = make_model("1.2")
    card = load_card(folder)
    assert registry.publish(folder, by="ada") == "1.2"
    got = registry.fetch(card.name, "1.2", to=tmp_path / "here")
    assert got == tmp_path / "here" / card.name / "1.2"
    assert load_card(got) == card
    assert (got / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()
    assert load_model(got, "cpu").card.name == card.name
    (one,) = [one for one in registry.list() if one.name == card.name]
    assert (one.version, one.state, one.champion, one.card, one.by) == ("1.2", "complete", False, card, "ada")
    assert one.size == (folder / WEIGHTS_FILE).stat().st_size
    assert repr(registry).startswith("<Registry http")
    assert registry._root.context.api_key not in repr(registry)


def test_models_are_plain_nodes_for_anyone_who_looks(
    registry: Registry, catalog_server: CatalogServer, make_model: Any
) -> None:
    from tiled.queries import Key

    folder = make_model()
    card = load_card(folder)
    registry.publish(folder)
    registry.promote(card.name, "1", "the first")
    family = catalog_server.models[card.name]
    assert family.metadata["champion"] == "1"
    assert family.metadata["history"][0]["version"] == "1"
    node = family["1"]
    assert [spec.name for spec in node.specs] == ["PtychoModel"]
    assert ModelCard.from_values(json.loads(json.dumps(dict(node.metadata["card"]))), "catalog") == card
    stored = node["weights"].read()
    assert stored.dtype == np.uint8
    assert stored.tobytes() == (folder / WEIGHTS_FILE).read_bytes()
    assert list(family.search(Key("card.weights_sha256") == card.weights_sha256)) == ["1"]


def test_a_catalog_without_a_place_for_models_gets_one(
    catalog_server: CatalogServer, make_model: Any, tmp_path: Path
) -> None:
    elsewhere = catalog_server.client.create_container(f"elsewhere-{uuid.uuid4().hex[:8]}")
    registry = Registry(elsewhere)
    folder = make_model()
    name = load_card(folder).name
    assert registry.list() == ()
    with pytest.raises(ValueError, match="is not in this catalog; there are: none"):
        registry.fetch(name, to=tmp_path)
    assert registry.publish(folder) == "1"
    assert [one.name for one in registry.list()] == [name]


def test_versions_count_up_and_the_same_model_keeps_its_own(registry: Registry, make_model: Any) -> None:
    first, second, third = make_model("1", 0), make_model("1", 1), make_model("1", 2)
    assert [registry.publish(folder) for folder in (first, second, third, second, first)] == ["1", "2", "3", "2", "1"]
    card = load_card(second)
    assert registry.card(card.name, "2") == card.model_copy(update={"version": "2"})


def test_large_weights_travel_in_pieces(
    registry: Registry, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model()
    card = load_card(folder)
    monkeypatch.setattr(http, "_CHUNK", (folder / WEIGHTS_FILE).stat().st_size // 3)  # and a rest
    registry.publish(folder)
    assert (registry.fetch(card.name, "1", to=tmp_path / "here") / WEIGHTS_FILE).read_bytes() == (
        folder / WEIGHTS_FILE
    ).read_bytes()


def test_decisions_are_kept_with_their_reasons_and_numbers(registry: Registry, make_model: Any, tmp_path: Path) -> None:
    name = load_card(make_model()).name
    for seed in range(3):
        registry.publish(make_model(str(seed + 1), seed))
    assert registry.champion(name) is None
    with pytest.raises(ValueError, match=r"has no champion yet: name a version \(there are: 1, 2, 3\) or promote one"):
        registry.fetch(name, to=tmp_path / "here")
    with pytest.raises(ValueError, match="no champion to go back to; the champion is not decided"):
        registry.rollback(name)
    first = registry.promote(name, "1", "it is the only one", by="ada")
    second = registry.promote(name, "2", "half the error", by="bob")
    assert registry.promote(name, "2", "said twice") == second
    third = registry.promote(name, "3", "judged on the star", {"phase_mae_rad": 0.07, "frames": 176})
    assert registry.history(name) == (first, second, third)
    assert (first.before, second.before, third.before) == (None, "1", "2")
    assert first.numbers == {"candidate": {"patch_phase_mae_rad": 0.1}}
    assert second.numbers == {
        "candidate": {"patch_phase_mae_rad": 0.05},
        "champion": {"patch_phase_mae_rad": 0.1},
    }
    assert third.numbers == {"phase_mae_rad": 0.07, "frames": 176}
    assert (first.by, second.by, second.reason) == ("ada", "bob", "half the error")
    assert registry.fetch(name, to=tmp_path / "here").name == "3"
    back = registry.rollback(name, "streaks in the sky", by="cy")
    assert (back.kind, back.version, back.before, back.reason) == ("rollback", "2", "3", "streaks in the sky")
    assert registry.card(name).version == "2"
    assert registry.rollback(name).version == "1"
    with pytest.raises(ValueError, match="the champion is 1, and none was before it"):
        registry.rollback(name)
    assert [decision.kind for decision in registry.history(name)] == ["promote"] * 3 + ["rollback"] * 2
    assert [one.version for one in registry.list() if one.name == name and one.champion] == ["1"]


@pytest.mark.parametrize(
    ("reason", "numbers", "words"),
    [
        ("  ", {}, "promote needs a reason"),
        ("why", {"error": float("nan")}, "must be finite JSON values"),
        ("why", {"error": object()}, "must be finite JSON values"),
    ],
)
def test_a_decision_without_grounds_is_refused(
    registry: Registry, make_model: Any, reason: str, numbers: Any, words: str
) -> None:
    folder = make_model()
    registry.publish(folder)
    with pytest.raises(ValueError, match=words):
        registry.promote(load_card(folder).name, "1", reason, numbers)
    assert registry.champion(load_card(folder).name) is None


def test_a_champion_that_changed_meanwhile_is_not_overwritten(
    registry: Registry, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = load_card(make_model()).name
    for seed in range(3):
        registry.publish(make_model(str(seed + 1), seed))
    registry.promote(name, "1", "first")
    decide = Registry._decide

    def late(self: Registry, name: str, decision: Decision) -> Decision:
        monkeypatch.undo()
        registry.promote(name, "2", "somebody was faster")
        return decide(self, name, decision)

    monkeypatch.setattr(Registry, "_decide", late)
    with pytest.raises(ValueError, match="its champion became '2' meanwhile; look at its history and decide again"):
        registry.promote(name, "3", "mine")
    assert [decision.version for decision in registry.history(name)] == ["1", "2"]


def test_a_decision_whose_answer_was_lost_is_found(
    registry: Registry, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError

    folder = make_model()
    name = load_card(folder).name
    registry.publish(folder)
    amend = TiledNode.amend

    def lost(self: TiledNode, changes: Any) -> None:
        amend(self, changes)
        raise CatalogUnavailableError("the answer was lost")

    monkeypatch.setattr(TiledNode, "amend", lost)
    assert registry.promote(name, "1", "first") == registry.history(name)[-1]
    assert len(registry.history(name)) == 1

    def dead(self: TiledNode, changes: Any) -> None:
        raise CatalogUnavailableError("catalog does not answer")

    registry.publish(make_model("2", 1))
    monkeypatch.setattr(TiledNode, "amend", dead)
    with pytest.raises(CatalogUnavailableError, match="does not answer"):
        registry.promote(name, "2", "second")
    assert registry.champion(name) == "1"


@pytest.mark.parametrize("at", ["before the array", "between blocks", "before the end"])
def test_an_interrupted_upload_is_seen_and_finished_by_repeating(
    registry: Registry, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    folder = make_model()
    name = load_card(folder).name
    monkeypatch.setattr(http, "_CHUNK", (folder / WEIGHTS_FILE).stat().st_size // 2 + 1)

    class Killed(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        if at == "before the array":
            patch.setattr(TiledNode, "put_bytes", kill)
        elif at == "before the end":
            patch.setattr(TiledNode, "get_bytes", kill)
        else:
            send = TiledNode._send

            def stop_at_second_block(self: TiledNode, method: str, route: str, path: str, **options: Any) -> Any:
                if route == "array/block" and options["params"]["block"] == "1":
                    raise Killed
                return send(self, method, route, path, **options)

            patch.setattr(TiledNode, "_send", stop_at_second_block)
        with pytest.raises(Killed):
            registry.publish(folder)
    (one,) = [one for one in registry.list() if one.name == name]
    assert (one.state, one.champion) == ("unfinished", False)
    for attempt in (
        lambda: registry.fetch(name, "1", to=tmp_path / "here"),
        lambda: registry.promote(name, "1", "early"),
        lambda: registry.card(name, "1"),
    ):
        with pytest.raises(ValueError, match="its upload was not finished; publish it again"):
            attempt()
    assert registry.publish(make_model("1", 5)) == "2"  # another model does not take the place of an unfinished one
    assert registry.publish(folder) == "1"
    registry.promote(name, "1", "whole now")
    got = registry.fetch(name, to=tmp_path / "here")
    assert (got / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()


def test_two_who_publish_at_once_get_two_versions(
    registry: Registry, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = make_model("1", 0), make_model("1", 1)
    create = TiledNode.create

    def late(self: TiledNode, key: str, *args: Any, **options: Any) -> bool:
        if key == "1":
            monkeypatch.undo()
            assert registry.publish(theirs) == "1"
        return create(self, key, *args, **options)

    monkeypatch.setattr(TiledNode, "create", late)
    assert registry.publish(mine) == "2"


def test_what_was_changed_in_the_catalog_is_refused(registry: Registry, make_model: Any, tmp_path: Path) -> None:
    folder = make_model()
    card = load_card(folder)
    registry.publish(folder)
    node = registry._at(card.name, "1")
    data = (folder / WEIGHTS_FILE).read_bytes()
    for changed in (data[:-1] + b"!", data[: len(data) // 2]):
        node.delete("weights")
        node.put_bytes("weights", changed)
        with pytest.raises(ValueError, match="version '1' in the catalog is not what its card describes|answered 4"):
            registry.fetch(card.name, "1", to=tmp_path / "here")
    assert not (tmp_path / "here").exists()
    node.update({"bytes": 10**12})
    with pytest.raises(ValueError, match="1000000000000 bytes; it was changed there"):
        registry.fetch(card.name, "1", to=tmp_path / "here")
    node.update({"card": {"name": "other"}})
    with pytest.raises(ValueError, match="in the catalog: not a usable model card: card: .*differ|other"):
        registry.fetch(card.name, "1", to=tmp_path / "here")
    node.update({"card": None})
    with pytest.raises(ValueError, match="in the catalog: not a usable model card"):
        registry.card(card.name, "1")
    assert [one.card for one in registry.list() if one.name == card.name] == [None]


def test_a_damaged_model_is_not_published(registry: Registry, make_model: Any) -> None:
    folder = make_model()
    with (folder / WEIGHTS_FILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="is not what its card describes"):
        registry.publish(folder)
    with pytest.raises(ValueError, match="is not in this catalog"):
        registry.card(load_card(folder).name)


def test_names_and_versions_that_are_not_there(registry: Registry, make_model: Any, tmp_path: Path) -> None:
    folder = make_model()
    name = load_card(folder).name
    registry.publish(folder)
    with pytest.raises(ValueError, match=rf"model 'none-such' is not in this catalog; there are: .*{name}.*Publish it"):
        registry.fetch("none-such")
    with pytest.raises(ValueError, match="model 'none-such' is not in this catalog"):
        registry.fetch("none-such", "1")
    with pytest.raises(ValueError, match=f"model '{name}' has no version '7' in this catalog; there are: 1"):
        registry.promote(name, "7", "why")
    for bad in ("../raw", "a/b", "", ".."):
        for attempt in (
            lambda bad=bad: registry.fetch(bad, to=tmp_path / "here"),
            lambda bad=bad: registry.fetch(name, bad, to=tmp_path / "here"),
            lambda bad=bad: registry.promote(bad, "1", "why"),
            lambda bad=bad: registry.rollback(bad),
            lambda bad=bad: registry.history(bad),
        ):
            with pytest.raises(ValueError, match="is not usable; allowed: a letter or digit"):
                attempt()
    assert not (tmp_path / "here").exists()


def test_another_model_here_is_never_overwritten(registry: Registry, make_model: Any, tmp_path: Path) -> None:
    folder = make_model("1", 0)
    registry.publish(folder)
    mine = make_model("1", 1)
    before = (mine / WEIGHTS_FILE).read_bytes()
    with pytest.raises(ValueError, match="another model of this name is in .*Move it away, or give another folder"):
        registry.fetch(load_card(folder).name, "1", to=mine.parents[1])
    assert (mine / WEIGHTS_FILE).read_bytes() == before


# -- decisions alone


def _decision(kind: str, version: str) -> Decision:
    return Decision.make(kind, version, None, "why", {}, "me")


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc-"), max_size=12))
def test_rollbacks_undo_promotions_one_by_one(steps: list[str]) -> None:
    """Against a stack: what was champion before each promotion that still stands."""
    history: list[Decision] = []
    stack: list[str] = []
    for step in steps:
        if step != "-":
            history.append(_decision("promote", step))
            stack.append(step)
            continue
        back = champion_before(history)
        assert back == (stack[-2] if len(stack) > 1 else None)
        if back is not None:
            stack.pop()
            history.append(_decision("rollback", back))


def test_a_decision_in_the_catalog_that_cannot_be_read() -> None:
    decision = _decision("promote", "1")
    assert Decision.from_metadata(decision.as_metadata()) == decision
    with pytest.raises(ValueError, match="a decision in the catalog cannot be read .KeyError..by"):
        Decision.from_metadata({k: v for k, v in decision.as_metadata().items() if k != "by"})


# -- the command


@pytest.fixture
def ptychonn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command; returns exit code, stdout, stderr."""

    return partial(run_command, monkeypatch, capsys, "models")


def test_the_command_takes_a_model_from_one_machine_to_another(
    ptychonn: Any, catalog_server: CatalogServer, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTYCHONN_MODELS", str(tmp_path / "user"))
    catalog = ("--catalog", catalog_server.folder)
    one, two = make_model("1", 0), make_model("2", 1)
    name = load_card(one).name
    assert ptychonn("publish", one, *catalog)[1].startswith(f"{name}/1 in the catalog")
    assert ptychonn("publish", two, *catalog)[0] == 0
    code, out, _ = ptychonn("promote", name, "1", "--reason", "the only one", *catalog)
    assert (code, out) == (0, f"champion of {name}: 1, before none: the only one\n")
    out = ptychonn("promote", name, "2", "--reason", "better", "--number", "mae=0.05", *catalog)[1]
    assert out == f"champion of {name}: 2, before 1: better\n"
    out = ptychonn("list", *catalog)[1]
    assert f"{name}/1 " in out
    address = f"{catalog_server.uri}?api_key={catalog_server.api_key}"
    for command in (["list"], ["show", name], ["publish", two]):
        said = ptychonn(*command, "--catalog", address)[1]
        assert f"catalog {catalog_server.uri}" in said
        assert catalog_server.api_key not in said
    assert f"{name}/2 " in out
    assert "champion, lifted, frames 64×64" in out
    assert ptychonn("rollback", name, *catalog)[1] == f"champion of {name}: 1, before 2: rolled back\n"
    out = ptychonn("show", name, *catalog)[1]
    assert out.startswith(f"{name} 1, lifted, in catalog")
    assert "promote 1 -> 2 by " in out
    assert "rollback 2 -> 1 by " in out
    out = ptychonn("compare", f"{name}/1", f"{name}/2", *catalog)[1]
    assert [line.split()[-2:] for line in out.splitlines() if "patch_phase" in line] == [["0.1000", "0.0500"]]
    assert ptychonn("fetch", name, *catalog)[1] == f"{name}/1 in {tmp_path / 'user' / name / '1'}\n"
    assert ptychonn("show", f"{name}/1")[0] == 0
    assert ptychonn("export", f"{name}/2", "--to", tmp_path / "two.zip", *catalog)[0] == 0
    assert ptychonn("import", tmp_path / "two.zip")[1].startswith(f"{name}/2 in {tmp_path / 'user'}")
    for arguments, words in (
        (("fetch", "none-such"), "model 'none-such' is not in this catalog"),
        (("fetch", f"{name}/9"), f"model '{name}' has no version '9'"),
        (("fetch", "../x"), "is not usable; allowed"),
        (("show", "none-such"), "model 'none-such' is not in this catalog"),
        (("promote", name, "2", "--reason", "", "--number", "a=1"), "promote needs a reason"),
        (("promote", name, "2", "--reason", "x", "--number", "much"), "give NAME=VALUE with a number"),
    ):
        code, _, err = ptychonn(*arguments, *catalog)
        assert code == 2
        assert words in err
        assert err.count("\n") == 1

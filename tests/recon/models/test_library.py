"""Model folders and zips: whole or not there, checked, and nothing outside their place is ever touched."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bluesky_ptychonn.card import CARD_FILE, InputContract, ModelCard, available_models, load_card
from bluesky_ptychonn.recon.models import library
from bluesky_ptychonn.recon.models.archive import pack, unpack
from bluesky_ptychonn.recon.models.checkpoint import WEIGHTS_FILE
from bluesky_ptychonn.recon.models.library import check_name, next_version, place, read_folder

DATA = b"weights of no network"


def card_for(data: bytes = DATA, **changes: Any) -> ModelCard:
    contract = InputContract(
        frame_shape=(16, 16), patch_shape=(16, 16), object_pixel_m=1e-8, counts_per_frame=(0.0, 1e9)
    )
    values = {
        "name": "tiny",
        "version": "1",
        "family": "direct",
        "network": {"family": "direct"},
        "input": contract,
        "probe": None,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
    }
    return ModelCard(**{**values, **changes})


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_weights_file_is_called_as_the_checkpoint_calls_it() -> None:
    assert library.WEIGHTS_FILE == WEIGHTS_FILE


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "/etc/passwd", "a/b", "a\\b", "", " x", "x\n", ".hidden", "ü", "x" * 81]
)
def test_names_that_are_paths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not usable; allowed: a letter or digit, then"):
        check_name(name)


@settings(deadline=None)
@given(st.text(max_size=90))
def test_names_are_those_a_card_takes_and_stay_in_their_folder(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        with pytest.raises(ValidationError):
            card_for(name=name)
    else:
        assert card_for(name=name, version=name).name == name
        assert Path("/models", name).resolve().parent == Path("/models").resolve()


VERSIONS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,20}", fullmatch=True)


@settings(deadline=None)
@given(st.sets(st.one_of(VERSIONS, st.integers(0, 99).map(str)), max_size=12), VERSIONS)
def test_the_next_version_is_free_and_the_wanted_one_where_that_is_free(taken: set[str], wanted: str) -> None:
    version = next_version(taken, wanted)
    assert version not in taken
    assert check_name(version) == version
    if wanted not in taken:
        assert version == wanted


def test_a_model_is_placed_once_and_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTYCHONN_MODELS", str(tmp_path))
    folder = place(card_for(), DATA, tmp_path)
    assert folder == tmp_path / "tiny" / "1"
    before = (folder / WEIGHTS_FILE).stat().st_mtime_ns
    assert place(card_for(), DATA, tmp_path) == folder
    assert (folder / WEIGHTS_FILE).stat().st_mtime_ns == before
    assert load_card("tiny/1") == card_for()
    assert read_folder(folder) == (card_for(), DATA)
    assert files(tmp_path) == {"tiny/1/card.json", "tiny/1/model.safetensors"}


def test_another_model_of_the_same_version_is_refused_or_gets_the_next(tmp_path: Path) -> None:
    place(card_for(), DATA, tmp_path)
    other = card_for(b"other")
    with pytest.raises(ValueError, match=r"model 'tiny', version '1': another model of this name is in"):
        place(other, b"other", tmp_path)
    assert place(other, b"other", tmp_path, when_taken="next").name == "2"
    assert place(other, b"other", tmp_path, when_taken="next").name == "2"
    assert place(card_for(), DATA, tmp_path, when_taken="next").name == "1"
    assert load_card(tmp_path / "tiny" / "2").version == "2"


def test_a_damaged_copy_is_replaced_and_half_a_copy_too(tmp_path: Path) -> None:
    folder = place(card_for(), DATA, tmp_path)
    (folder / WEIGHTS_FILE).write_bytes(DATA[:-3])
    with pytest.raises(ValueError, match="not what its card describes .* changed or cut short"):
        read_folder(folder)
    assert read_folder(place(card_for(), DATA, tmp_path))[1] == DATA
    (folder / CARD_FILE).unlink()
    assert read_folder(place(card_for(), DATA, tmp_path))[1] == DATA
    assert files(tmp_path) == {"tiny/1/card.json", "tiny/1/model.safetensors"}


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTYCHONN_MODELS", str(tmp_path))

    def fail(self: Path, target: Path) -> None:
        seen.append(available_models())
        raise OSError("no space left")

    seen: list[dict[str, Path]] = []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="no space left"):
            place(card_for(), DATA, tmp_path)
    assert not any("tiny" in str(folder) for folder in seen[0].values())  # nor is a half-written one found meanwhile
    assert files(tmp_path) == set()
    assert not (tmp_path / ".incoming").exists()


def test_two_processes_may_place_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = library._swap_in

    def slow(card: ModelCard, data: bytes, target: Path, root: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(library, "_swap_in", swap)
            place(card_for(), DATA, tmp_path)
        raise OSError("Directory not empty")

    monkeypatch.setattr(library, "_swap_in", slow)
    assert read_folder(place(card_for(), DATA, tmp_path)) == (card_for(), DATA)


def test_weights_must_be_there_and_be_the_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="its weights is not what its card describes"):
        place(card_for(), b"others", tmp_path)
    card_for().save(tmp_path)
    with pytest.raises(ValueError, match="its weights cannot be read, .*: No such file"):
        read_folder(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(DATA)
    monkeypatch.setattr(library, "MOST_WEIGHTS", 3)
    with pytest.raises(ValueError, match="has 21 bytes; at most 3 are taken"):
        read_folder(tmp_path)


# -- zips


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=3000), VERSIONS)
def test_a_zip_gives_back_what_went_in(tmp_path_factory: pytest.TempPathFactory, data: bytes, version: str) -> None:
    card = card_for(data, version=version)
    path = tmp_path_factory.getbasetemp() / "model.zip"
    assert unpack(pack(card, data, path)) == (card, data)
    first = path.read_bytes()
    assert pack(card, data, path).read_bytes() == first


def test_a_zip_must_be_called_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in .zip"):
        pack(card_for(), DATA, tmp_path / "model.tar")


def make_zip(path: Path, entries: dict[str, bytes], *, link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name == link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content)
    return path


CARD = card_for().model_dump_json().encode()
GOOD = {"tiny-1/card.json": CARD, "tiny-1/model.safetensors": DATA}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({**GOOD, "../../evil": b"x"}, "entry '../../evil' lies outside its folder"),
        ({**GOOD, "/etc/evil": b"x"}, "entry '/etc/evil' lies outside its folder"),
        ({"../card.json": CARD, "../model.safetensors": DATA}, "lies outside its folder"),
        ({**GOOD, "a\\..\\evil": b"x"}, "lies outside its folder"),
        ({**GOOD, "C:evil": b"x"}, "lies outside its folder"),
        ({**GOOD, "tiny-1/setup.py": b"x"}, "'tiny-1/setup.py' does not belong to a model"),
        ({**GOOD, "a/b/card.json": CARD}, "does not belong to a model"),
        ({"a/card.json": CARD, "b/model.safetensors": DATA}, "no model is in it, one folder missing"),
        ({"a/card.json": CARD}, "no model is in it, model.safetensors missing"),
        ({}, "no model is in it, card.json and model.safetensors missing"),
        ({f"{n}/": b"" for n in range(17)}, "17 entries; a model has two"),
        ({**GOOD, "tiny-1/card.json": b"{"}, "its card.json cannot be read"),
        ({**GOOD, "tiny-1/card.json": b"\xff\xfe{"}, "its card.json cannot be read"),
        ({**GOOD, "tiny-1/card.json": b"[" * 100_000}, "its card.json cannot be read"),
        ({**GOOD, "tiny-1/card.json": b"9" * 5000}, "its card.json cannot be read"),
        ({**GOOD, "tiny-1/card.json": b"[]"}, "card.json: not a usable model card"),
        ({**GOOD, "tiny-1/card.json": CARD.replace(b'"tiny"', b'"../x"')}, "name: String should match pattern"),
        ({**GOOD, "tiny-1/model.safetensors": b"tampered"}, "is not what its card describes"),
    ],
)
def test_a_zip_that_is_no_model_is_refused_and_writes_nothing(
    tmp_path: Path, entries: dict[str, bytes], words: str
) -> None:
    path = make_zip(tmp_path / "model.zip", entries)
    with pytest.raises(ValueError, match=re.escape(words)):
        unpack(path)
    assert files(tmp_path) == {"model.zip"}


def test_links_and_doubled_and_locked_entries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a link"):
        unpack(make_zip(tmp_path / "link.zip", GOOD, link="tiny-1/card.json"))
    with zipfile.ZipFile(tmp_path / "double.zip", "w") as archive:
        archive.writestr("card.json", CARD)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("card.json", CARD)
    with pytest.raises(ValueError, match="does not belong to a model"):
        unpack(tmp_path / "double.zip")
    named = make_zip(tmp_path / "named.zip", {**GOOD, "?": b""}).read_bytes()
    (tmp_path / "named.zip").write_bytes(named.replace(b"?", b"\x00"))  # which is the end of a name
    with pytest.raises(ValueError, match="entry '' does not belong to a model"):
        unpack(tmp_path / "named.zip")
    foreign = bytearray(make_zip(tmp_path / "foreign.zip", GOOD).read_bytes())
    foreign[foreign.index(b"PK\x01\x02") + 6] = 99  # a later version of the format
    (tmp_path / "foreign.zip").write_bytes(foreign)
    with pytest.raises(ValueError, match="not a zip, or cut short .zip file version 9.9"):
        unpack(tmp_path / "foreign.zip")
    locked = bytearray(make_zip(tmp_path / "locked.zip", GOOD).read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(ValueError, match="is encrypted"):
        unpack(tmp_path / "locked.zip")


@pytest.mark.parametrize("name", ["tiny-1/card.json", "tiny-1/model.safetensors"])
def test_a_zip_bomb_is_seen_before_it_is_unpacked(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, content in GOOD.items():
            if other != name:
                archive.writestr(other, content)
        with archive.open(name, "w") as entry:
            for _ in range((library.MOST_WEIGHTS >> 24) + 1 if name.endswith("tensors") else 1):
                entry.write(bytes(1 << 24))
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=r"unpacks to \d+ bytes; at most \d+ are read"):
        unpack(path)


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    data = make_zip(tmp_path / "lie.zip", {"card.json": CARD, "model.safetensors": bytes(100_000)}).read_bytes()
    size = (100_000).to_bytes(4, "little")
    (tmp_path / "lie.zip").write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="lie.zip"):
        unpack(tmp_path / "lie.zip")


def test_a_zip_that_was_cut_short(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "whole.zip", GOOD).read_bytes()
    path = tmp_path / "cut.zip"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a zip, or cut short"):
            unpack(path)
    words: list[str] = []
    for place_ in range(30, len(whole) - 22, 53):
        path.write_bytes(whole[:place_] + bytes([whole[place_] ^ 0xFF]) + whole[place_ + 1 :])
        try:
            got = unpack(path)
        except ValueError as error:
            words.append(str(error))
        else:
            assert got == (card_for(), DATA)  # a byte that means nothing, a date for one
    assert words
    assert all("cut.zip" in said for said in words)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        unpack(tmp_path / "none.zip")


def test_a_card_of_a_later_schema_says_so(tmp_path: Path) -> None:
    values = {**json.loads(CARD), "schema_version": 9}
    path = make_zip(tmp_path / "m.zip", {**GOOD, "tiny-1/card.json": json.dumps(values).encode()})
    with pytest.raises(ValueError, match="card of schema 9, this version reads 1"):
        unpack(path)

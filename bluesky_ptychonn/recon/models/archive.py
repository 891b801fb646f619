"""A model as one ``.zip`` to send to somebody, and back; the zip of a stranger is believed nothing."""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path, PurePosixPath

from bluesky_ptychonn.card import CARD_FILE, MOST_CARD, ModelCard
from bluesky_ptychonn.files import replacing
from bluesky_ptychonn.optics.numpy_files import ZIP_DAMAGE
from bluesky_ptychonn.recon.models.library import MOST_WEIGHTS, WEIGHTS_FILE, check_digest

_MOST_ENTRIES = 16
_LIMITS = {CARD_FILE: MOST_CARD, WEIGHTS_FILE: MOST_WEIGHTS}
_A_DAY = (2000, 1, 1, 0, 0, 0)  # the same model makes the same file


def pack(card: ModelCard, data: bytes, path: Path) -> Path:
    """Write a model into a ``.zip`` with one folder, ``<name>-<version>/``; the file appears whole or not at all.

    Raises
    ------
    ValueError
        For another suffix, or weights that are not the card's.
    """
    if path.suffix.lower() != ".zip":
        raise ValueError(f"export: {path.name!r} must end in .zip")
    check_digest(card, data, "its weights")
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = f"{card.name}-{card.version}"
    with replacing(path) as draft, zipfile.ZipFile(draft, "w") as archive:
        for name, content in ((CARD_FILE, card.model_dump_json(indent=2).encode() + b"\n"), (WEIGHTS_FILE, data)):
            archive.writestr(zipfile.ZipInfo(f"{inside}/{name}", _A_DAY), content)
    return path


def unpack(path: Path) -> tuple[ModelCard, bytes]:
    """Read card and weights from a ``.zip`` made by `pack`; nothing is written, and no name in it is used as a path.

    Raises
    ------
    ValueError
        In words: not a zip or cut short, entries that do not belong or lie outside its folder, sizes beyond the
        limits (looked at before reading), weights that are not the card's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _checked_entries(path, archive.infolist())
            content = {name: _read(path, archive, entry) for name, entry in entries.items()}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ZIP_DAMAGE as error:
        raise ValueError(f"{path}: not a zip, or cut short ({error}); copy it again") from None
    try:
        values = json.loads(content[CARD_FILE])
    except (ValueError, RecursionError) as error:  # no JSON, no text, endless numbers, endless nesting
        raise ValueError(f"{path}: its {CARD_FILE} cannot be read: {error}") from None
    card = ModelCard.from_values(values, f"{path}, {CARD_FILE}")
    check_digest(card, content[WEIGHTS_FILE], f"{WEIGHTS_FILE} in {path}")
    return card, content[WEIGHTS_FILE]


def _checked_entries(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Entries by file name; every other kind of entry is refused."""
    if len(infos) > _MOST_ENTRIES:
        raise ValueError(f"{path}: {len(infos)} entries; a model has two, {CARD_FILE} and {WEIGHTS_FILE}")
    found: dict[str, zipfile.ZipInfo] = {}
    folders: set[tuple[str, ...]] = set()
    for info in infos:
        place = PurePosixPath(info.filename)
        if place.is_absolute() or ".." in place.parts or "\\" in info.filename or ":" in info.filename:
            raise ValueError(
                f"{path}: entry {info.filename!r} lies outside its folder; this zip was not made by export"
            )
        if info.filename.endswith("/"):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"{path}: entry {info.filename!r} is a link; this zip was not made by export")
        if info.flag_bits & 1:
            raise ValueError(f"{path}: entry {info.filename!r} is encrypted; export the model again without a password")
        if place.name not in _LIMITS or place.name in found or len(place.parts) > 2:
            raise ValueError(
                f"{path}: entry {info.filename!r} does not belong to a model; one folder with {CARD_FILE} and "
                f"{WEIGHTS_FILE} is expected"
            )
        if info.file_size > _LIMITS[place.name]:
            raise ValueError(
                f"{path}: {info.filename!r} unpacks to {info.file_size} bytes; at most {_LIMITS[place.name]} are read"
            )
        found[place.name] = info
        folders.add(place.parts[:-1])
    missing = [name for name in _LIMITS if name not in found]
    if missing or len(folders) > 1:
        raise ValueError(f"{path}: no model is in it, {' and '.join(missing) or 'one folder'} missing")
    return found


def _read(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)  # what the directory says may be a lie
    except (NotImplementedError, RuntimeError, EOFError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise ValueError(f"{path}: {info.filename!r} cannot be unpacked: {error or 'cut short'}") from None
    if len(data) != info.file_size:
        raise ValueError(f"{path}: {info.filename!r} has not the size the zip says; it was cut short or made up")
    return data

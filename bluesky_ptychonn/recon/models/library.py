"""The user's folder of models: names, versions, and model folders that appear there whole or not at all."""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from bluesky_ptychonn.card import CARD_FILE, ModelCard, model_folders
from bluesky_ptychonn.files import write_whole

WEIGHTS_FILE = "model.safetensors"
#: Largest weights that are copied, sent or unpacked, bytes; the shipped models take 2 to 5 MB.
MOST_WEIGHTS = 1 << 28
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
_MOST_COUNTED = 9  # digits of a version that is counted on


def check_name(name: str, what: str = "name") -> str:
    """Return a model's name or version as it is.

    ValueError when it could not be a folder's name or a catalog key everywhere: a path, for one.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"model {what} {name!r} is not usable; allowed: a letter or digit, then letters, digits, '.', '_', '+' and "
            "'-', at most 80"
        )
    return name


def next_version(taken: Iterable[str], wanted: str) -> str:
    """Return the version wanted where it is free, else the number after the largest.

    Examples
    --------
    >>> next_version(["1", "2"], "3"), next_version(["1", "9", "rc"], "1")
    ('3', '10')
    """
    taken = set(taken)
    if wanted not in taken:
        return wanted
    numbers = [int(version) for version in taken if re.fullmatch(rf"[0-9]{{1,{_MOST_COUNTED}}}", version)]
    return str(max(numbers, default=0) + 1)


def users_folder() -> Path:
    """Folder that models of this user go to: the first of ``$PTYCHONN_MODELS``, or the user's data folder."""
    return model_folders()[0]


def read_folder(folder: Path) -> tuple[ModelCard, bytes]:
    """Read a model's card and weights, and check the weights against the card's digest.

    ValueError in words: no card, no weights, weights too large, changed or cut short.
    """
    card = ModelCard.load(folder)
    path = folder / WEIGHTS_FILE
    try:
        size = path.stat().st_size
        if size > MOST_WEIGHTS:
            raise ValueError(f"model {card.name!r}: {path} has {size} bytes; at most {MOST_WEIGHTS} are taken")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"model {card.name!r}: its weights cannot be read, {path}: {error.strerror}") from None
    check_digest(card, data, str(path))
    return card, data


def check_digest(card: ModelCard, data: bytes, where: str) -> None:
    """Refuse weights that are not the ones the card describes (ValueError)."""
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.weights_sha256:
        raise ValueError(
            f"model {card.name!r}: {where} is not what its card describes ({len(data)} bytes, sha256 {digest[:12]}…, "
            f"card {card.weights_sha256[:12]}…); it was changed or cut short. Copy the model again"
        )


def same_model(card: ModelCard, other: ModelCard) -> bool:
    """Whether two cards promise the same about the same weights, whatever their versions."""
    return card.model_copy(update={"version": other.version}) == other


def place(card: ModelCard, data: bytes, root: Path, *, when_taken: Literal["refuse", "next"] = "refuse") -> Path:
    """Write a model into ``root/<name>/<version>/``; the folder appears whole or not at all. Safe to repeat.

    `data` is its weights file, checked. Where another model has this name and version it is refused, or gets the next
    number, as `when_taken` says. A copy that was there is kept, a damaged one replaced. ValueError when weights and
    card differ, or another model is there.
    """
    check_digest(card, data, "its weights")
    home = root / check_name(card.name)
    versions = {path.name: path for path in home.glob("*") if path.is_dir() and _NAME.fullmatch(path.name)}
    wanted = check_name(card.version, "version")
    known = {version: _card_or_none(path) for version, path in versions.items()}
    if when_taken == "next":
        equal = [v for v, there in known.items() if there is not None and same_model(there, card)]
        version = (wanted if wanted in equal or not equal else equal[0]) if equal else next_version(versions, wanted)
    else:
        version = wanted
    there, target = known.get(version), home / version
    if there is not None and not same_model(there, card):
        raise ValueError(
            f"model {card.name!r}, version {version!r}: another model of this name is in {target} (sha256 "
            f"{there.weights_sha256[:12]}…, this one {card.weights_sha256[:12]}…). Move it away, or give another folder"
        )
    if there is not None and _intact(target):
        return target
    try:
        _swap_in(card.model_copy(update={"version": version}), data, target, root)
    except OSError:
        there = _card_or_none(target)
        if there is None or not same_model(there, card) or not _intact(target):
            raise
        # else another process was faster with the same model
    return target


def kept(card: ModelCard, root: Path) -> Path | None:
    """Folder of an intact copy of this very model under `root`, which `place` would keep; None without one."""
    target = root / check_name(card.name) / check_name(card.version, "version")
    there = _card_or_none(target)
    return target if there is not None and same_model(there, card) and _intact(target) else None


def _card_or_none(folder: Path) -> ModelCard | None:
    try:
        return ModelCard.load(folder)
    except ValueError:
        return None


def _intact(folder: Path) -> bool:
    try:
        read_folder(folder)
    except ValueError:
        return False
    return True


def _swap_in(card: ModelCard, data: bytes, target: Path, root: Path) -> None:
    # Three levels down, where no search for models looks.
    draft = root / ".incoming" / card.name / uuid.uuid4().hex
    draft.mkdir(parents=True)
    try:
        write_whole(draft / WEIGHTS_FILE, data, durable=True)
        card.save(draft / CARD_FILE)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # damaged, or half of one: out of the way first
            target.rename(draft.with_name(draft.name + ".old"))
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(draft.with_name(draft.name + ".old"), ignore_errors=True)
        for folder in (draft.parent, draft.parent.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

"""Where models lie, and which folder a name means."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from bluesky_ptychonn.paths import users_models

CARD_FILE = "card.json"


def model_folders() -> tuple[Path, ...]:
    """Folders searched for models: ``$PTYCHONN_MODELS`` or else the user's data folder, then the package's."""
    return (*users_models(), Path(__file__).parent / "models")


def _natural(version: str) -> list[tuple[int, str]]:
    """Sort key by which 1.10 comes after 1.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[^\d.]+", version)]


def available_models() -> dict[str, Path]:
    """Models that can be loaded by name: ``name`` (its newest version) and ``name/version``, with their folders."""
    models: dict[str, Path] = {}
    for root in reversed(model_folders()):  # the preferred of a name last
        models |= {card.parent.name: card.parent for card in sorted(root.glob(f"*/{CARD_FILE}"))}
        versioned = [card.parent for card in root.glob(f"*/*/{CARD_FILE}")]
        for folder in sorted(versioned, key=lambda folder: (folder.parent.name, _natural(folder.name))):
            models |= {folder.parent.name: folder, f"{folder.parent.name}/{folder.name}": folder}
    return dict(sorted(models.items()))


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """Folder of a model, from its name, ``name/version``, or a path.

    Raises
    ------
    ValueError
        For an unknown name, naming what is available and the folders searched.
    """
    path = Path(name_or_path).expanduser()
    if path.name == CARD_FILE and path.is_file():
        return path.parent
    if (path / CARD_FILE).is_file():
        return path
    models = available_models()
    name = str(name_or_path)
    if name in models:
        return models[name]
    close = difflib.get_close_matches(name, models, n=1)
    raise ValueError(
        f"model {name!r} is unknown{f' (did you mean {close[0]!r}?)' if close else ''}. "
        f"Available: {', '.join(models) or 'none'}. Searched: {', '.join(map(str, model_folders()))}. "
        f"Give one of these names, or a folder with {CARD_FILE}; set PTYCHONN_MODELS to search elsewhere"
    )

"""What a bare model name means: the champion of that name in the catalog, where it has one; else this machine's newest.

A name with a version, a folder and a loaded model mean exactly that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bluesky_ptychonn.card import CARD_FILE, ModelCard, find_model
from bluesky_ptychonn.catalog.connection.requests import why_silent
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.paths import journal_root
from bluesky_ptychonn.recon.models.library import check_name, kept

_CACHE = "champions"
_KEPT = 8  # champions in the cache, a few megabytes each
_ANSWER_S = 3.0


def bare_name(model: Any) -> str:
    """Return the name where a model is given by its name alone; empty for a version, a folder, a loaded model.

    Examples
    --------
    >>> bare_name("my-probe"), bare_name("my-probe/2"), bare_name("./my-probe")
    ('my-probe', '', '')
    """
    if not isinstance(model, str) or (Path(model) / CARD_FILE).is_file():
        return ""
    try:
        return check_name(model)
    except ValueError:
        return ""


def cache_folder(journals: Path | None = None) -> Path:
    """Folder of downloaded champions, beside the sessions' journals; not where models are found by name.

    There a champion that was rolled back would stay the newest of its name.
    """
    return (journals or journal_root()) / _CACHE


class Champion:
    """Looks after the champion of a name; `folder` gets the downloaded models, the last eight."""

    def __init__(self, catalog: Any, name: str, folder: Path, before_request: Callable[[], None] | None = None) -> None:
        self.name = name
        self._registry = Registry(catalog, before_request=before_request)
        self._folder = folder
        self._last: tuple[str, Path] | None = None

    def current(self) -> Path | None:
        """Folder of the champion, downloaded and checked; None where the catalog has decided on none.

        One request where it is the same as last time.

        Raises
        ------
        ValueError
            In words: the catalog's copy is damaged, or was not finished.
        ConnectionError
            When the catalog does not answer.
        """
        version = self._registry.decided(self.name)
        if version is None:
            return None
        if self._last is None or self._last[0] != version or not self._last[1].is_dir():
            self._last = version, self.version(version)
        return self._last[1]

    def version(self, version: str) -> Path:
        """Folder of a version, downloaded and checked; see `current` for the errors."""
        card = self._registry.card(self.name, version)
        # Two catalogs may call different models the same.
        home = self._folder / hashlib.sha256(card.model_dump_json().encode()).hexdigest()[:16]
        found = kept(card, home) or self._registry.fetch(self.name, version, to=home)
        os.utime(home)
        self._tidy()
        return found

    def _tidy(self) -> None:
        homes = []
        for home in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another session tidies too
                homes.append((home.stat().st_mtime_ns, home))
        for _, home in sorted(homes)[:-_KEPT]:
            shutil.rmtree(home, ignore_errors=True)


def resolve_model(model: Any, catalog: Any) -> Any:
    """Return what a model means in a catalog: the champion's folder for a bare name that has one, else what was given.

    Raises
    ------
    ValueError
        In words: unknown here and there, or damaged in the catalog.
    ConnectionError
        When the catalog does not answer.
    """
    name = bare_name(model)
    if not name:
        return model
    folder = Champion(catalog, name, cache_folder()).current()
    return find_model(model) if folder is None else folder


def local_or_champion(model: Any, address: Any) -> str:
    """Folder of a model of this machine; empty for a name that only the catalog knows, which is asked only then.

    A model for any probe reconstructs nothing, so that the catalog is asked for one of its name that has a probe.

    Raises
    ------
    ValueError
        In words: unknown here, or without its probe; and in the catalog too, or the catalog does not answer.
    """
    try:
        folder = find_model(model)
    except ValueError as unknown:
        why = unknown
    else:
        card = ModelCard.load(folder)  # a card that cannot be read is said now, not in a log file later
        try:
            card.check_probe()
        except ValueError as no_probe:
            why = no_probe
        else:
            return str(folder)
    name = bare_name(model)
    if not name:
        raise why
    if why_silent(address.uri, _ANSWER_S):
        raise ValueError(f"{why}. The catalog {address.uri}, which might know it, does not answer")
    registry = Registry(address.client)
    version = registry.decided(name)
    if version is None:
        raise ValueError(f"{why}. Nor has the catalog {address.uri} a champion of this name")
    registry.card(name, version).check_probe()
    return ""


def usable_model(model: Any, catalog: Any) -> Path:
    """Folder of a model in a catalog, see `resolve_model`; ValueError also for one that lacks its probe."""
    folder = find_model(resolve_model(model, catalog))
    ModelCard.load(folder).check_probe()
    return folder

"""How commands name a catalog, a run, a reconstruction and a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_ptychonn.files import is_locked

if TYPE_CHECKING:
    from bluesky_ptychonn.catalog.registry.registry import Registry
    from bluesky_ptychonn.catalog.results.client import PtychoReconstruction

#: Where a catalog is looked for when ``--catalog`` is left out.
CATALOG_VARIABLE = "PTYCHONN_CATALOG"

CatalogOption = Annotated[
    str,
    typer.Option(
        envvar=CATALOG_VARIABLE,
        help="folder of a catalog, http(s) address (…/api/v1/metadata/NAME of a container), or Tiled profile",
        show_default=False,
    ),
]
ReconstructionArgument = Annotated[
    str,
    typer.Argument(help="uid of a reconstruction or of a run, first letters of either, a run's scan id, or 'latest'"),
]
RunArgument = Annotated[str, typer.Argument(help="uid of the run, its first letters, its scan id, or 'latest'")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda")]
AlsoCatalogOption = Annotated[
    str | None,
    typer.Option("--catalog", help="also this catalog's: its folder, http(s) address, or Tiled profile"),
]
ModelArgument = Annotated[str, typer.Argument(help="name, name/version, or folder of a model")]
MODEL_HELP = "name of the model (the catalog's champion, where it has one), name/version, or folder"
_SCAN_ID_DIGITS = 18  # that any database can be asked for
_LOOK_BACK = 300  # newest entries among which a shortened uid is looked for: the most Tiled gives at once


@contextlib.contextmanager
def open_catalog(catalog: str) -> Iterator[Any]:
    """Tiled client of a catalog; a folder that nobody serves is served meanwhile. ValueError for none at all."""
    from bluesky_ptychonn.catalog.connection.connect import LOCK_FILE, connect_catalog
    from bluesky_ptychonn.catalog.connection.server import serve_catalog
    from bluesky_ptychonn.cli.common.local_session import FRAMES

    folder = Path(catalog).expanduser()
    if catalog.startswith(("http://", "https://")) or not folder.is_dir():
        if os.sep in catalog and "://" not in catalog:
            raise ValueError(f"{catalog}: no such folder; give a catalog's folder, http(s) address or Tiled profile")
        yield connect_catalog(catalog)
        return
    if not (folder / "catalog.db").is_file():
        raise ValueError(f"{folder}: no catalog is here (no catalog.db); 'ptychonn serve {folder}' would make one")
    if is_locked(folder / LOCK_FILE):  # a server has it
        yield connect_catalog(folder)
        return
    with serve_catalog(folder, readable=[folder / FRAMES]) as server:
        yield server.client


@contextlib.contextmanager
def open_registry(catalog: str) -> Iterator[Registry]:
    """Registry of models of a catalog, see `open_catalog`."""
    with open_catalog(catalog) as root:
        from bluesky_ptychonn.catalog.registry.registry import Registry

        yield Registry(root)


def without_key(catalog: str) -> str:
    """Say a catalog as it was given, without the key that an address may have: terminals are seen and kept."""
    from bluesky_ptychonn.catalog.connection.address import is_address, split_key

    return split_key(catalog)[0] if is_address(catalog) else catalog


def split_name(name: str) -> tuple[str, str | None]:
    """Split what a user types for a model in a catalog into its name and, where there is one, its version."""
    model, slash, version = name.partition("/")
    return model, version if slash else None


def check_model(model: str, probe: str | None = None) -> None:
    """Refuse an unknown version or folder, or one that is given no `probe` and has none, before a server is started.

    A bare name only the catalog may know.
    """
    from bluesky_ptychonn.card import load_card
    from bluesky_ptychonn.catalog.registry.champion import bare_name

    if not bare_name(model):
        card = load_card(model)
        if probe is None:
            card.check_probe()


def find_reconstruction(root: Any, which: str) -> Any:
    """Find the newest reconstruction with an image that `which` names, or else a refused attempt, which says why.

    LookupError for none, or where it fits several runs.
    """
    from bluesky_ptychonn.catalog.results.client import newest_with_image, reconstructions

    latest = which == "latest"
    with contextlib.suppress(KeyError):
        return root["processed"][which]
    found = newest_with_image(root, raw=None if latest else which)
    if found is not None:
        return found
    scan = _of_scan(root, int(which)) if which.isdecimal() and len(which) <= _SCAN_ID_DIGITS else None
    fits = [
        result
        for status in (None, "failed")
        for result in reconstructions(root, status=status, limit=_LOOK_BACK)
        if latest or result.path_parts[-1].startswith(which) or result.metadata["raw"]["uid"].startswith(which)
    ]
    runs = {result.metadata["raw"]["uid"] for result in fits}
    if scan is not None and runs - {scan.metadata["raw"]["uid"]}:
        both = f"the scan id of run {scan.metadata['raw']['uid']} and the beginning of {min(runs)}"
        raise LookupError(f"{which!r} is {both}; give more of the uid")
    if scan is not None:
        return scan
    if not latest and len(runs) > 1:
        raise LookupError(f"{which!r} fits {len(runs)} runs; give more of the uid")
    if not fits:
        named = "" if latest else f" {which!r}, nor one of a run {which!r},"
        raise LookupError(f"no reconstruction{named} is in this catalog{' yet' if latest else ''}")
    return next((result for result in fits if result.metadata.get("mosaic")), fits[0])


def _of_scan(root: Any, scan_id: int) -> Any:
    """Find the newest reconstruction of a scan id with an image, else one without, else a refused attempt; or None."""
    from bluesky_ptychonn.catalog.results.client import newest_with_image, reconstructions

    image = newest_with_image(root, raw=scan_id)
    if image is not None:
        return image
    others = (reconstructions(root, raw=scan_id, status=status, limit=1) for status in (None, "failed"))
    return next((found[0] for found in others if found), None)


def refused_later(root: Any, result: PtychoReconstruction) -> list[str]:
    """Say which attempts that were refused are newer than a reconstruction."""
    from bluesky_ptychonn.catalog.results.client import reconstructions

    newer = [
        one
        for one in reconstructions(root, status="failed", limit=5)
        if one.metadata["time_created"] > result.metadata["time_created"]
    ]
    return [f"later, scan {one.metadata['raw'].get('scan_id')} was refused: {'; '.join(one.problems)}" for one in newer]


def echo_result(result: PtychoReconstruction, *notes: str) -> None:
    """Say what a reconstruction is, and below it notes and its problems."""
    typer.echo("\n  ".join([repr(result), *notes, *map(str, result.problems)]))


def run_key(which: str) -> str | int:
    """Turn what a user types for a run into what `find_run` looks up: -1 for the latest, else what was typed."""
    return -1 if which == "latest" else which

"""Scans as a user names them for a training."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from bluesky_ptychonn.cli.catalogs import open_catalog, run_key


def read_scans(
    labels: list[str] | None, measured: list[str] | None, catalog: str | None, probe: Any, model: Any = None
) -> tuple[list[Any], list[Any]]:
    """Read labelled and measured scans, each an .npz file or something in the catalog.

    Parameters
    ----------
    labels, measured : list of str or None
    catalog : str or None
        Where those that are no files are looked up.
    probe : (N, N) complex64 ndarray
        Of measured runs.
    model : Model, optional
        Whose preprocessing turns recorded frames into the network's.

    Raises
    ------
    ValueError
        In words: no such file, label or run, or no catalog to look it up in.
    """
    from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan

    labels, measured = labels or [], measured or []
    stored = [name for name in (*labels, *measured) if not _is_file(name)]
    if stored and catalog is None:
        raise ValueError(
            f"train: {', '.join(stored)} would be in a catalog; say which with --catalog, or give .npz files"
        )
    with contextlib.ExitStack() as stack:
        root: Any = None
        if stored and catalog is not None:
            root = stack.enter_context(open_catalog(catalog))
        return (
            [LabelledScan.load(name) if _is_file(name) else _label(root, name) for name in labels],
            [MeasuredScan.load(name) if _is_file(name) else _run(root, name, probe, model) for name in measured],
        )


def _is_file(name: str) -> bool:
    return name.endswith(".npz") or Path(name).is_file()


def _label(root: Any, which: str) -> Any:
    from bluesky_ptychonn.live.batch.label import read_label

    return read_label(root, run_key(which))


def _run(root: Any, which: str, probe: Any, model: Any) -> Any:
    from bluesky_ptychonn.catalog.runs.measured import ProbeSetup, measured_run
    from bluesky_ptychonn.catalog.runs.stored_documents import find_run

    preprocess = None if model is None else model.card.input.preprocess
    return measured_run(
        root, find_run(root, run_key(which)), ProbeSetup.from_source(probe=probe, preprocess=preprocess)
    ).scan

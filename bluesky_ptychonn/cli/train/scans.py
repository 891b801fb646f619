"""Scans and shares as a user names them for a training."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from bluesky_ptychonn.cli.catalogs import open_catalog, run_key

_SHARES = ("simulated", "labelled", "label-free")


def read_scans(
    labels: list[str], measured: list[str], catalog: str | None, probe: Any, model: Any = None
) -> tuple[list[Any], list[Any]]:
    """Read labelled and measured scans, each an .npz file or something in the catalog.

    Parameters
    ----------
    labels, measured : list of str
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


def mix_of(words: str | None, *, labelled: bool, label_free: bool) -> Any:
    """Read shares such as ``simulated=1,labelled=1,label-free=0.5``; by default of what there is.

    Raises
    ------
    ValueError
        In words, for anything else.
    """
    from bluesky_ptychonn.recon.data.batches import Mix

    if words is None:
        return Mix.usual(simulated=True, labelled=labelled, label_free=label_free)
    shares = dict.fromkeys(_SHARES, 0.0)
    for part in words.split(","):
        name, _, value = part.strip().partition("=")
        try:
            if name not in shares or not 0 <= float(value) < float("inf"):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"train: --mix has {part.strip()!r}; allowed are {', '.join(f'{s}=NUMBER' for s in _SHARES)}, with "
                "commas between them, and no number negative"
            ) from None
        shares[name] = float(value)
    if not sum(shares.values()) > 0:
        raise ValueError("train: --mix gives everything a share of 0; give something more")
    return Mix(**{name.replace("-", "_"): share for name, share in shares.items()})


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

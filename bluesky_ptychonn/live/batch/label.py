"""Labels: what an iterative solver makes of an overlapped run, kept in the catalog beside it.

::

    processed/<key>   spec PtychoLabel 1.0; metadata: raw, solver, settings, geometry, sampling, counts, origin, pixel
        amplitude, phase, light   (H, W) float32     NaN where unknown; light in peaks of the probe
        probe_real, probe_imag    (N, N) float32     square-root photons
        frames                    table: seq_num, y_m, x_m
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.address import Address
from bluesky_ptychonn.catalog.connection.connect import PROCESSED, RAW
from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.results.label_client import (
    FRAMES,
    PICTURES,
    PROBE,
    SPEC,
    UNITS,
    PtychoLabel,
    frames_schema,
    labels,
)
from bluesky_ptychonn.catalog.results.provenance import raw_of, software
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.catalog.runs.measured import ProbeSetup, RunFrames, measured_run
from bluesky_ptychonn.catalog.runs.stored_documents import find_run
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.data.scans import LabelledScan
from bluesky_ptychonn.recon.solver.labelling import MOST_SAMPLING, check_overlap, solve

__all__ = ["PtychoLabel", "label", "labels", "read_label"]

_DEVICES = {"cpu": "cpu", "cuda": "gpu"}


def label(
    run: Any,
    catalog: Any,
    *,
    model: Any = None,
    probe: Any = None,
    epochs: int | None = None,
    refine_probe: bool = False,
    most_sampling: float = MOST_SAMPLING,
    device: str = "cpu",
    threads: int = 0,
    seed: int = 1,
    again: bool = False,
    geometry: Geometry | None = None,
    keys: DataKeys | None = None,
    preprocess: PreprocessConfig | None = None,
    raw: str = RAW,
) -> PtychoLabel:
    """Let an iterative solver reconstruct an overlapped run, and keep what it finds as derived data of its own.

    The same run with the same settings has one label: it is given back, not made again. An interrupted one is made
    anew.

    Parameters
    ----------
    run : str, int or BlueskyRun client
        Uid, the beginning of one, scan_id, or the run itself.
    catalog : CatalogServer, Tiled client, address or profile name
        Where the run is, and the label goes.
    model : str, Path or Model, optional
        Whose probe and preprocessing to use; this or `probe`.
    probe : path or (N, N) complex ndarray, optional
        See `read_probe`.
    epochs : int, optional
        How long to solve; by default `settled_epochs`.
    refine_probe : bool
        Let the solver find the probe too, from the one given.
    most_sampling : float
        Step over probe diameter up to which the run is dense enough for a label.
    device : {"cpu", "cuda"}
        What the solver runs on.
    threads : int
        Of the solver on a CPU; 0 leaves them to torch.
    seed : int
        Of the order in which the solver takes the frames.
    again : bool
        Make it anew where it is there.
    geometry, keys, preprocess
        As in `reconstruct`, where the run or the model does not say.
    raw : str
        Container of the runs.

    Returns
    -------
    PtychoLabel
        Client of the label; ``complete`` was read back.

    Raises
    ------
    ValueError
        In words: unknown run or model, a probe that does not fit, a run too sparse, settings out of range.
    SolverMissingError, SolverError
        Where there is no solver, or it fails.
    ConnectionError
        When the catalog does not answer.

    Examples
    --------
    >>> label("a1b2c3", catalog, model="my-probe").phase.shape  # doctest: +SKIP
    (312, 296)
    """
    if device not in _DEVICES:
        raise ValueError(f"label: device {device!r}; allowed: {', '.join(_DEVICES)}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"label: {epochs} epochs; 1 or more are needed, or none for as many as the run wants")
    optic = ProbeSetup.from_source(model, probe, preprocess)
    root = Address.from_catalog(catalog).client
    stored = find_run(root, run, raw)
    keys = keys or DataKeys()
    settings = {
        "epochs": epochs,
        "refine_probe": refine_probe,
        "seed": seed,
        "preprocess": optic.preprocess.model_dump(mode="json"),
        "geometry": None if geometry is None else geometry.model_dump(mode="json"),
        "keys": asdict(keys),
        "raw": raw,
        "probe_sha256": hashlib.sha256(np.ascontiguousarray(optic.probe).tobytes()).hexdigest(),
    }
    start, stop = stored.metadata["start"], stored.metadata.get("stop") or {}
    about_run = json.dumps([start["uid"], stop.get("uid"), settings], sort_keys=True)
    key = uuid.uuid5(uuid.NAMESPACE_URL, f"ptychonn:label:{about_run}").hex
    processed = TiledNode(root, [PROCESSED])
    there = processed.attributes(key)
    if there is not None and there["metadata"].get("status") == "complete" and not again:
        return _client(root, key)
    frames = measured_run(root, stored, optic, geometry=geometry, keys=keys, raw=raw)
    sampling = check_overlap(frames.scan, most_sampling)
    scan, found = solve(
        frames.scan, epochs=epochs, refine_probe=refine_probe, device=_DEVICES[device], threads=threads, seed=seed
    )
    metadata = {
        "raw": raw_of(frames.start),
        "status": "live",
        "solver": {
            "name": found.software,
            "epochs": int(found.epochs[-1]),
            "seconds": float(found.seconds[-1]),
            "loss": float(found.loss[-1]),
            "first_loss": float(found.loss[0]),
            "device": found.device,
        },
        "settings": {**settings, "probe_from": optic.source},
        "sampling": sampling,
        "counts": {"used": len(scan), "rejected": frames.rejected},
        "geometry": scan.geometry.model_dump(mode="json"),
        "pixel_m": scan.pixel_m,
        "origin_m": list(scan.origin_m),
        "units": UNITS,
        "software": software(),
        "time_created": time.time(),
    }
    if there is not None:
        processed.delete(key)
    _write(processed, TiledNode(root, [PROCESSED, key]), key, scan, frames, metadata)
    return _client(root, key)


def read_label(catalog: Any, which: str | int) -> LabelledScan:
    """Read a label and join it with the frames of its run.

    Parameters
    ----------
    catalog : anything `connect` takes
        The catalog.
    which : str or int
        Key of a label, or a run's uid, its first letters, or its scan id; the newest label of the run is then taken.

    Raises
    ------
    ValueError
        In words: no such label, one that is not complete, frames that are no longer there.
    """
    root = Address.from_catalog(catalog).client
    found = _find(root, which)
    about = found.metadata
    settings = about["settings"]
    said = settings["geometry"]
    probe = found.probe
    optic = ProbeSetup(
        probe, PreprocessConfig.model_validate(settings["preprocess"]), f"label {found.path_parts[-1][:8]}"
    )
    run = find_run(root, about["raw"]["uid"], settings["raw"])
    frames = measured_run(
        root,
        run,
        optic,
        geometry=None if said is None else Geometry.model_validate(said),
        keys=DataKeys(**settings["keys"]),
        raw=settings["raw"],
    )
    table = found.frames
    here = np.isin(frames.seq_num, table["seq_num"])
    if here.sum() != len(table["seq_num"]):
        raise ValueError(
            f"label {found.path_parts[-1][:8]}: made of {len(table['seq_num'])} frames, of which the catalog now gives "
            f"{int(here.sum())}; label the run again"
        )
    chosen = frames.scan.select(here)
    return LabelledScan(
        chosen.counts,
        table["y_m"],
        table["x_m"],
        probe,
        Geometry.model_validate(about["geometry"]),
        f"label {found.path_parts[-1]} of run {about['raw']['uid']}",
        found.object,
        (about["origin_m"][0], about["origin_m"][1]),
        about["pixel_m"],
        found.light,
        about["solver"]["name"],
    )


def _find(root: Any, which: str | int) -> PtychoLabel:
    about = TiledNode(root, [PROCESSED]).attributes(str(which))
    if about is not None and any(spec["name"] == SPEC for spec in about["specs"]):
        if about["metadata"].get("status") != "complete":
            raise ValueError(f"label {str(which)[:8]} was interrupted while it was written; label its run again")
        return _client(root, str(which))
    found = labels(root, raw=find_run(root, which), limit=1)
    if not found:
        raise ValueError(f"run {which!r} has no label in this catalog; 'ptychonn label' makes one")
    return found[0]


def _client(root: Any, key: str) -> PtychoLabel:
    made: PtychoLabel = root[PROCESSED][key]
    return made


def _write(
    processed: TiledNode, wire: TiledNode, key: str, scan: LabelledScan, frames: RunFrames, metadata: Mapping[str, Any]
) -> None:
    """Write a label, read it back, and only then call it complete."""
    import pyarrow as pa

    arrays: dict[str, NDArray[np.float32]] = {
        "amplitude": np.abs(scan.object),
        "phase": np.angle(scan.object).astype(np.float32),
        "light": scan.light,
        "probe_real": np.ascontiguousarray(scan.probe.real),
        "probe_imag": np.ascontiguousarray(scan.probe.imag),
    }
    shapes = {name: list(arrays[name].shape) for name in (*PICTURES, *PROBE)}
    processed.create(key, metadata={**metadata, "shapes": shapes}, specs=[{"name": SPEC, "version": "1.0"}])
    for name, data in arrays.items():
        wire.create_array(name, data.shape, data.shape, ("y", "x"))
        wire.put_array(name, data)
    rows = pa.table({"seq_num": frames.seq_num, "y_m": scan.y_m, "x_m": scan.x_m}, schema=frames_schema())
    wire.create_table(FRAMES, frames_schema(), "seq_num")
    wire.append_rows(FRAMES, rows)
    for name, data in arrays.items():
        if not np.array_equal(wire.read_array(name, data.shape), data, equal_nan=True):
            raise CatalogUnavailableError(f"{wire.path}: {name} that is read back is not what was written")
    if not wire.read_rows(FRAMES, frames_schema()).equals(rows):
        raise CatalogUnavailableError(f"{wire.path}: the table that is read back is not what was written")
    wire.update({"status": "complete", "time_finished": time.time()})

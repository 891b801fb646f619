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
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from bluesky_ptychonn.catalog.connection.connect import PROCESSED, Address
from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.layout import create_in
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
from bluesky_ptychonn.catalog.results.overview import OVERVIEW, draw_overview
from bluesky_ptychonn.catalog.results.provenance import raw_of, software
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.catalog.runs.measured import ProbeSetup, RunFrames, measured_run
from bluesky_ptychonn.catalog.runs.stored_documents import container_of, find_run
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.data.scans import LabelledScan
from bluesky_ptychonn.recon.solver.labelling import MOST_SAMPLING, check_overlap, solve
from bluesky_ptychonn.recon.solver.ptychi import Solution

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
    raw: str | None = None,
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
        Of the solver on a CPU; 0 takes as many as processors are free.
    seed : int
        Of the order in which the solver takes the frames.
    again : bool
        Make it anew where it is there.
    geometry, keys, preprocess
        As in `reconstruct`, where the run or the model does not say.
    raw : str, optional
        Container of the runs, as in `reconstruct`.

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
    setup = ProbeSetup.from_source(model, probe, preprocess)
    root = Address.from_catalog(catalog).client
    stored = find_run(root, run, raw)
    settings = LabelSettings(
        epochs=epochs,
        refine_probe=refine_probe,
        seed=seed,
        preprocess=setup.preprocess,
        geometry=geometry,
        keys=keys or DataKeys(),
        raw=container_of(root, stored),
        probe_sha256=hashlib.sha256(np.ascontiguousarray(setup.probe).tobytes()).hexdigest(),
    )
    key = settings.key_for(stored)
    there = TiledNode(root, [PROCESSED]).attributes(key)
    if there is not None and there["metadata"].get("status") == "complete" and not again:
        return _client(root, key)
    frames = settings.read_frames(stored, setup)
    sampling = check_overlap(frames.scan, most_sampling)
    scan, solution = solve(
        frames.scan, epochs=epochs, refine_probe=refine_probe, device=_DEVICES[device], threads=threads, seed=seed
    )
    about = {"settings": {**settings.model_dump(mode="json"), "probe_from": setup.source}, "sampling": sampling}
    _write(root, key, scan, frames, about | _describe(scan, frames, solution, settings.raw), replace=there is not None)
    return _client(root, key)


class LabelSettings(BaseModel):
    """What a label was asked to be, as it stands in its metadata; the same run with the same settings has one label."""

    model_config = ConfigDict(frozen=True)

    epochs: int | None
    refine_probe: bool
    seed: int
    preprocess: PreprocessConfig
    geometry: Geometry | None
    keys: DataKeys
    raw: str
    probe_sha256: str

    def key_for(self, run: Any) -> str:
        """Key of the label of a run (BlueskyRun client)."""
        start, stop = run.metadata["start"], run.metadata.get("stop") or {}
        identity = json.dumps([start["uid"], stop.get("uid"), self.model_dump(mode="json")], sort_keys=True)
        return uuid.uuid5(uuid.NAMESPACE_URL, f"ptychonn:label:{identity}").hex

    def read_frames(self, run: Any, setup: ProbeSetup) -> RunFrames:
        """Read the frames of a run; see `measured_run`."""
        return measured_run(run, setup, geometry=self.geometry, keys=self.keys)


def _describe(scan: LabelledScan, frames: RunFrames, solution: Solution, container: str) -> dict[str, Any]:
    """Make the metadata of a label that is about to be written."""
    return {
        "raw": raw_of(frames.start, container),
        "status": "live",
        "solver": {
            "name": solution.software,
            "epochs": int(solution.epochs[-1]),
            "seconds": float(solution.seconds[-1]),
            "loss": float(solution.loss[-1]),
            "first_loss": float(solution.loss[0]),
            "device": solution.device,
        },
        "counts": {"used": len(scan), "rejected": frames.rejected},
        "geometry": scan.geometry.model_dump(mode="json"),
        "pixel_m": scan.pixel_m,
        "origin_m": list(scan.origin_m),
        "units": UNITS,
        "software": software(),
        "time_created": time.time(),
    }


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
    label = _find(root, which)
    name, metadata, table, probe = label.path_parts[-1], label.metadata, label.frames, label.probe
    settings = LabelSettings.model_validate(metadata["settings"])
    run = find_run(root, metadata["raw"]["uid"], settings.raw)
    frames = settings.read_frames(run, ProbeSetup(probe, settings.preprocess, f"label {name[:8]}"))
    here = np.isin(frames.seq_num, table["seq_num"])
    if here.sum() != len(table["seq_num"]):
        raise ValueError(
            f"label {name[:8]}: made of {len(table['seq_num'])} frames, of which the catalog now gives "
            f"{int(here.sum())}; label the run again"
        )
    return LabelledScan(
        frames.scan.select(here).counts,
        table["y_m"],
        table["x_m"],
        probe,
        Geometry.model_validate(metadata["geometry"]),
        f"label {name} of run {metadata['raw']['uid']}",
        label.object,
        (metadata["origin_m"][0], metadata["origin_m"][1]),
        metadata["pixel_m"],
        label.light,
        metadata["solver"]["name"],
    )


def _find(root: Any, which: str | int) -> PtychoLabel:
    there = TiledNode(root, [PROCESSED]).attributes(str(which))
    if there is not None and any(spec["name"] == SPEC for spec in there["specs"]):
        if there["metadata"].get("status") != "complete":
            raise ValueError(f"label {str(which)[:8]} was interrupted while it was written; label its run again")
        return _client(root, str(which))
    found = labels(root, raw=find_run(root, which), limit=1)
    if not found:
        raise ValueError(f"run {which!r} has no label in this catalog; 'ptychonn label' makes one")
    return found[0]


def _client(root: Any, key: str) -> PtychoLabel:
    client: PtychoLabel = root[PROCESSED][key]
    return client


def _write(
    root: Any, key: str, scan: LabelledScan, frames: RunFrames, metadata: Mapping[str, Any], *, replace: bool
) -> None:
    """Write a label, read it back, and only then call it complete."""
    import pyarrow as pa

    processed, node = TiledNode(root, [PROCESSED]), TiledNode(root, [PROCESSED, key])
    arrays: dict[str, NDArray[np.float32]] = {
        "amplitude": np.abs(scan.object),
        "phase": np.angle(scan.object).astype(np.float32),
        "light": scan.light,
        "probe_real": np.ascontiguousarray(scan.probe.real),
        "probe_imag": np.ascontiguousarray(scan.probe.imag),
    }
    shapes = {name: list(arrays[name].shape) for name in (*PICTURES, *PROBE)}
    if replace:
        processed.delete(key)
    about, specs = {**metadata, "shapes": shapes}, [{"name": SPEC, "version": "1.0"}]
    create_in(processed, root, PROCESSED, key, metadata=about, specs=specs)
    for name, data in arrays.items():
        node.create_array(name, data.shape, data.shape, ("y", "x"))
        node.put_array(name, data)
    overview = draw_overview({name: arrays[name] for name in PICTURES})
    node.create_array(OVERVIEW, overview.shape, overview.shape, ("y", "x"), np.uint8)
    node.put_array(OVERVIEW, overview)
    rows = pa.table({"seq_num": frames.seq_num, "y_m": scan.y_m, "x_m": scan.x_m}, schema=frames_schema())
    node.create_table(FRAMES, frames_schema(), "seq_num")
    node.append_rows(FRAMES, rows)
    for name, data in arrays.items():
        if not np.array_equal(node.read_array(name, data.shape), data, equal_nan=True):
            raise CatalogUnavailableError(f"{node.path}: {name} that is read back is not what was written")
    if not node.read_rows(FRAMES, frames_schema()).equals(rows):
        raise CatalogUnavailableError(f"{node.path}: the table that is read back is not what was written")
    node.update({"status": "complete", "time_finished": time.time()})

"""A run of the catalog → its frames as a network takes them, all at once: for labels, training and measurement.

The road is that of a reconstruction (documents, pairing, frames through Tiled, preprocessing), without a network.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.card import PIXEL_TOLERANCE
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys, RunError, geometry_of
from bluesky_ptychonn.catalog.runs.frame_source import TiledFrames
from bluesky_ptychonn.catalog.runs.pairing import FrameRef, NoFrame, RunPairing, count_reasons
from bluesky_ptychonn.catalog.runs.stored_documents import documents_of
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.probe_file import open_probe
from bluesky_ptychonn.optics.probe_grid import probe_on
from bluesky_ptychonn.optics.probe_modes import strongest_mode
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.inference.flux import LOST, Flux

_BLOCK = 256  # frames as recorded in memory at once


@dataclass(frozen=True)
class ProbeSetup:
    """What a run's frames were taken with, as far as the run does not say itself.

    Attributes
    ----------
    probe : (N, N) complex64 ndarray
        Any scale; the run's flux scales it.
    preprocess : PreprocessConfig
        From recorded frames to the probe's.
    source : str
        Where the probe is from.
    geometry : Geometry or None
        That the probe belongs to, where it is known.
    measured : bool
        Whether it is nobody's but the beamline's: then it may be on the grid of frames as recorded.
    """

    probe: NDArray[np.complex64]
    preprocess: PreprocessConfig
    source: str
    geometry: Geometry | None = None
    measured: bool = False

    @classmethod
    def from_source(
        cls, model: Any = None, probe: Any = None, preprocess: PreprocessConfig | None = None
    ) -> ProbeSetup:
        """Take the probe of a model (name, folder, loaded one), of a file, or an array (N, N) or (modes, N, N).

        Raises
        ------
        ValueError
            In words: both or none given, no such model or file, a model without a probe.
        """
        if (model is None) == (probe is None):
            raise ValueError("probe: give the model whose probe it is, or a probe, one of them")
        if probe is not None:
            given = preprocess or PreprocessConfig()
            if isinstance(probe, np.ndarray):
                mode = strongest_mode(probe.astype(np.complex64), "probe")
                return cls(mode.wave, given, ", ".join(filter(None, ["an array", mode.note])), measured=True)
            found = open_probe(probe)
            return cls(found.wave, given, found.source, found.geometry, measured=True)
        from bluesky_ptychonn.recon.models.checkpoint import load_model

        loaded = model if hasattr(model, "network") else load_model(model, "cpu")
        card = loaded.card
        if loaded.probe is None:
            raise ValueError(f"model {card.name!r} has no probe; give one with probe= (--probe)")
        array = loaded.probe.detach().cpu().numpy().astype(np.complex64)
        return cls(array, preprocess or card.input.preprocess, f"model {card.name} {card.version}")

    def fitted(self, recorded: Geometry) -> tuple[NDArray[np.complex64], Geometry]:
        """Probe (N, N) and geometry of the frames that come out of preprocessing.

        A measured probe as large as a recorded frame is brought to the grid of what preprocessing makes of it.

        Raises
        ------
        ValueError
            When frames and probe do not go together.
        """
        size = self.probe.shape
        whole = recorded.frame_shape == size
        ours = recorded if whole else self.preprocess.geometry_after(recorded)
        if ours.frame_shape != size:
            raise ValueError(
                f"the probe ({self.source}) is {size[0]} x {size[1]} px, the run's frames come out of preprocessing as "
                f"{ours.frame_shape[0]} x {ours.frame_shape[1]} px; give the probe of this detector, or preprocess="
            )
        if self.geometry is not None:
            pixel, wanted = ours.object_pixel_m, self.geometry.object_pixel_m
            if abs(pixel / wanted - 1) > PIXEL_TOLERANCE:
                raise ValueError(
                    f"the probe ({self.source}) has an object pixel of {1e9 * wanted:.4g} nm, this run "
                    f"{1e9 * pixel:.4g} nm; more than {PIXEL_TOLERANCE:.0%} apart they are of different beamlines"
                )
        if whole and self.measured and self.preprocess.output_shape(size) != size:
            return probe_on(self.probe, recorded, self.preprocess)
        return self.probe, ours


@dataclass(frozen=True)
class RunFrames:
    """Usable frames of a run.

    Attributes
    ----------
    scan : MeasuredScan
        In the order of their sequence numbers.
    seq_num : (n,) int64 ndarray
        Which frames they are.
    rejected : dict of str to int
        Frames that are not among them, by reason.
    start : dict
        The run's start document.
    """

    scan: MeasuredScan
    seq_num: NDArray[np.int64]
    rejected: dict[str, int]
    start: dict[str, Any]


def measured_run(
    run: Any,
    setup: ProbeSetup,
    *,
    geometry: Geometry | None = None,
    keys: DataKeys | None = None,
) -> RunFrames:
    """Read the usable frames of a run.

    Parameters
    ----------
    run : BlueskyRun client
        See `find_run`.
    setup : ProbeSetup
        Probe and preprocessing.
    geometry : Geometry, optional
        Of the recorded frames; overrides the start document's.
    keys : DataKeys, optional
        Which data are frames and positions.

    Raises
    ------
    ValueError
        In words: no geometry, no frames or positions, a probe that does not fit, no usable frame.
    ConnectionError
        When the catalog does not answer.
    """
    keys = keys or DataKeys()
    documents = documents_of(run, keys)
    start = next(documents)[1]
    who = f"run {start['uid'][:8]}"
    probe, ours = setup.fitted(geometry_of(start, geometry))
    pairing = RunPairing(start, keys)
    for name, doc in documents:
        pairing.feed(name, doc)
    if pairing.layout is None:
        raise RunError(f"{who} has no descriptor of stream {keys.stream!r}")
    rejected = Counter[str](pairing.unpaired().values())
    source = TiledFrames(run, (pairing.keys.stream, pairing.layout.frame_key), pairing.layout.frame_shape)
    try:
        kept, counts = _fetched(source, sorted(pairing.take(), key=lambda ref: ref.row), setup.preprocess, rejected)
    finally:
        source.close()
    if not kept:
        raise RunError(f"{who} has no usable frame: {count_reasons(rejected.elements()) or 'it is empty'}")
    order = np.argsort([ref.seq_num for ref in kept])
    kept, counts = [kept[i] for i in order], counts[order]
    flux = Flux(float((np.abs(probe) ** 2).sum()))
    flux.add(counts.sum(axis=(1, 2), dtype=np.float64))
    scan = MeasuredScan(
        counts,
        np.array([ref.y_m for ref in kept]),
        np.array([ref.x_m for ref in kept]),
        probe * np.complex64(flux.probe_factor),
        ours,
        f"run {start['uid']}",
    )
    return RunFrames(scan, np.array([ref.seq_num for ref in kept]), count_reasons(rejected.elements()), start)


def _fetched(
    source: TiledFrames, refs: list[FrameRef], preprocess: PreprocessConfig, rejected: Counter[str]
) -> tuple[list[FrameRef], NDArray[np.float32]]:
    """Frames that can be used, prepared, and why the others cannot."""
    from bluesky_ptychonn.recon.inference.preprocess import Preprocess

    prepare = Preprocess(preprocess)
    kept: list[FrameRef] = []
    parts: list[NDArray[np.float32]] = []
    for block in (refs[i : i + _BLOCK] for i in range(0, len(refs), _BLOCK)):
        got = source.read([ref.row for ref in block])
        if got.unreachable:
            raise ConnectionError(got.problem)
        there = [ref for ref, found in zip(block, got.found, strict=True) if found]
        broken = int(got.broken.sum())
        if got.withheld:
            raise RunError(got.problem)
        rejected.update({NoFrame.UNREADABLE: broken, NoFrame.NOT_THERE: len(block) - len(there) - broken})
        if not there:
            continue
        prepared = prepare(got.frames)
        rejected.update(flag for flag, valid in zip(prepared.flag, prepared.valid, strict=True) if not valid)
        kept += [ref for ref, valid in zip(there, prepared.valid, strict=True) if valid]
        parts.append(prepared.counts.numpy()[prepared.valid])
    if not kept:
        return [], np.zeros((0, 0, 0), np.float32)
    counts = np.concatenate(parts)
    totals = counts.sum(axis=(1, 2), dtype=np.float64)
    lit = totals > LOST * np.median(totals)
    if not lit.all():
        rejected[NoFrame.BEAM_LOST] += int((~lit).sum())
    return [ref for ref, good in zip(kept, lit, strict=True) if good], counts[lit]

"""Frames to patches in fixed batches on the device: each frame exactly once, with its trust and its faults."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_ptychonn.array_store import ArrayStore
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.device import Device, Fault, exact_convolutions
from bluesky_ptychonn.recon.inference.flux import LOST, Flux
from bluesky_ptychonn.recon.inference.forward_pass import BatchedForward, ForwardOptions, ForwardSettings, filled_up
from bluesky_ptychonn.recon.inference.patch_batch import (
    BEAM_LOST,
    NO_MEMORY,
    NOT_FINITE,
    OUT_OF_RANGE,
    PatchBatch,
    summable,
)
from bluesky_ptychonn.recon.inference.placement import Placement
from bluesky_ptychonn.recon.inference.preprocess import EMPTY, PreprocessConfig, join_flags
from bluesky_ptychonn.recon.models.checkpoint import Model
from bluesky_ptychonn.recon.mosaic.refine import refine
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from bluesky_ptychonn.recon.mosaic.sweeps import ScanTensors
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.quality.run_statistics import RunFigures, RunStatistics
from bluesky_ptychonn.recon.quality.trust import frame_score, frame_trust, unexplained_fraction
from bluesky_ptychonn.recon.quality.verdict import Verdict, judge

_BLOCK = 256  # frames on the device at once, and for which one flux holds
_COUNTS_BYTES = 256 * 2**20  # of frames to refine with, in memory at once; more lie in a file
_PAUSE_S = 0.5  # for memory that somebody else has for a moment


class Reconstructor:
    """Make object patches of frames with a model.

    The model's probe is scaled to the flux of the run (`bluesky_ptychonn.recon.inference.flux`), one factor for all
    frames: a factor for each frame would take the sample's absorption for a weaker beam. A new run needs a new flux:
    `for_run`.

    A device that fails costs no frame. Memory that runs out halves the batch, with a warning; where it does not hold
    one frame, or the device is lost, the failed block is done again on the CPU, with a warning, and `describe` says so
    under ``device_events``. The next run tries a device without memory again, one that was lost never.

    Parameters
    ----------
    model : Model
        See `bluesky_ptychonn.recon.models.checkpoint.load_model`.
    geometry : Geometry, optional
        Of the scan; checked against the card. The card's object pixel holds when not given.
    device : str, torch.device or Device
        ``auto`` takes a CUDA device when there is one.
    preprocess : PreprocessConfig, optional
        Instead of the card's.
    mask : (H, W) bool ndarray, optional
        True at bad pixels of the recorded frame, beside the configuration's.
    photons : float, optional
        Photons a frame without sample. Found from the frames when not given.
    refinement : Refinement, optional
        What `refine` does; kept for whoever asks whether to.
    batch_size, precision, cuda_graph
        See `bluesky_ptychonn.recon.inference.forward_pass.ForwardSettings`.

    Attributes
    ----------
    weight : (h, w) float32 ndarray
        Of a patch's pixels in a mosaic, peak 1: as measured in training, or the probe's intensity.
    anchor : float
        How strongly a mosaic pulls each patch's mean phase to zero; see `ObjectNetwork`.

    Raises
    ------
    ValueError
        In words: a geometry the model was not trained for, a device this machine lacks, a setting out of range.
    """

    def __init__(
        self,
        model: Model,
        geometry: Geometry | None = None,
        *,
        device: str | torch.device | Device = "auto",
        preprocess: PreprocessConfig | None = None,
        mask: NDArray[np.bool_] | None = None,
        photons: float | None = None,
        refinement: Refinement | None = None,
        **options: Unpack[ForwardOptions],
    ) -> None:
        settings = ForwardSettings(**options)
        self.card, self.refinement = model.card, refinement
        self.anchor = float(getattr(model.network, "anchor", ObjectNetwork.anchor))
        self._card_in_use = model.card.prepared_by(preprocess)
        config = self._card_in_use.input.preprocess
        self.geometry: Geometry | None = None
        model.card.check_probe()
        if geometry is not None:
            self._card_in_use.check_geometry(geometry)
            self.geometry = self._card_in_use.network_geometry(geometry)
        self._place = Placement(model, config, mask, Device.from_name(device), settings)
        self._events_noted, self._events = len(self._place.events), list(self._place.events)
        probe = None if model.probe is None else model.probe.cpu().to(torch.complex64)
        self._probe_waves = None if probe is None else probe.numpy()
        power = None if probe is None else float(probe.abs().square().sum())
        self._flux = Flux(power, photons)
        self.weight = _stitching_weight(model)
        self._statistics = self._new_statistics()

    def __repr__(self) -> str:
        name = f"{self.card.name} {self.card.version}"
        return f"<Reconstructor {name} on {self.device_name}, {self._passes.batch_size} a batch>"

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Rows and columns of a patch, px."""
        return self.card.input.patch_shape

    @property
    def pixel_m(self) -> float:
        """Object pixel of the patches, m."""
        return self.card.input.object_pixel_m if self.geometry is None else self.geometry.object_pixel_m

    @property
    def device_name(self) -> str:
        """What the network runs on, as its maker calls it."""
        return self._place.device.name

    @property
    def device_events(self) -> list[str]:
        """What befell the device in this run, in words."""
        return list(self._events)

    @property
    def _passes(self) -> BatchedForward:
        return self._place.passes

    @property
    def _probe(self) -> Tensor | None:
        return self._place.probe

    def for_run(self, photons: float | None = None) -> Reconstructor:
        """Return the same reconstructor with a flux of its own, for another run; network and memory are shared."""
        other = copy.copy(self)
        other._flux = Flux(self._flux.probe_photons, photons)
        other._statistics = other._new_statistics()
        why = self._place.renew()
        other._events_noted, other._events = len(self._place.events), [why] if why else []
        return other

    def _new_statistics(self) -> RunStatistics:
        return RunStatistics(self._probe_waves, self.weight, self.pixel_m)

    @property
    def probe_factor(self) -> float:
        """Factor that brings the probe to the run's flux: of the latest frames, and of the next until more is known."""
        return self._flux.probe_factor

    def settle(self) -> None:
        """Hold flux and figures as they are: what comes now are frames of the run that are done again."""
        self._flux.settled = True

    def placed(self, patches: NDArray[np.complex64], y_m: NDArray[np.floating], x_m: NDArray[np.floating]) -> None:
        """Tell where patches (n, h, w) of this run lie, m: the verdict compares them where they overlap."""
        if not self._flux.settled:
            self._statistics.add_patches(patches, y_m, x_m)

    def figures(self) -> RunFigures:
        """Figures of the run so far."""
        return self._statistics.figures()

    def verdict(self) -> Verdict | None:
        """Judge the run so far, see `bluesky_ptychonn.recon.quality.verdict`.

        None before its first frame, and where there is neither a probe to judge by nor anything wrong.
        """
        found = judge(self.figures(), self.card, self.geometry)
        return None if found is None or (self._probe is None and found.level == "ok") else found

    def warm_up(self) -> None:
        """Run the network once on empty frames, so that the first real ones do not wait for libraries and memory."""
        while True:
            try:
                counts = torch.ones(
                    self._passes.batch_size, *self.card.input.frame_shape, device=self._place.device.where
                )
                patches, moved = self._passes(counts, self._probe)
                if self._probe is not None:
                    self._scores(patches, moved, counts[: len(patches)], self._probe)
            except (RuntimeError, MemoryError) as error:
                fault = self._place.device.fault(error)
                if fault is None:
                    raise
                message = str(error)
            else:
                return
            if not self._leave(fault, message):
                return  # there may be memory when the first frame comes

    def describe(self) -> dict[str, Any]:
        """Tell settings and surroundings as JSON values, for a result's metadata."""
        verdict, table, check = self.verdict(), self.card.trust, self._place.precision_check
        return {
            "model": {
                "name": self.card.name,
                "version": self.card.version,
                "family": self.card.family,
                "weights_sha256": self.card.weights_sha256,
            },
            "probe": None if self.card.probe is None else self.card.probe.model_dump(mode="json"),
            "device": self._place.device.where.type,
            "device_name": self.device_name,
            "device_events": self.device_events,
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda if self._place.device.where.type == "cuda" else None,
            "threads": torch.get_num_threads(),
            "batch_size": self._passes.batch_size,
            "precision": self._passes.precision,
            **({"precision_check": check.as_record()} if check else {}),
            "cuda_graph": self._passes.graph_state,
            "photons_per_frame": self._flux.photons,
            "photons_from": self._flux.source,
            "trust_judged": self._probe is not None,
            "trust": "not judged" if self._probe is None else "uncalibrated" if table is None else "calibrated",
            "trust_tolerance_rad": None if self._probe is None or table is None else table.tolerance_rad,
            "preprocess": self._card_in_use.input.preprocess.model_dump(mode="json"),
            "masked_pixels": self._place.masked_pixels,
            "patch_shape": list(self.patch_shape),
            "pixel_m": self.pixel_m,
            **({} if verdict is None else {"verdict": verdict.document()}),
        }

    def reconstruct(self, frames: NDArray[Any] | Tensor) -> PatchBatch:
        """Make a patch of every frame.

        Parameters
        ----------
        frames : (n, H, W) ndarray or Tensor of any real type
            Counts as recorded; n may be 0.

        Returns
        -------
        PatchBatch
            As many entries as frames, in their order; frames that cannot be used are flagged there.

        Raises
        ------
        ValueError
            For frames of another shape than the model takes, or not real.
        """
        self._check_shape(np.shape(frames))
        patient = _Patience()
        parts = [self._with_fallback(frames[k : k + _BLOCK], patient) for k in range(0, len(frames), _BLOCK)]
        return PatchBatch.joined(parts) if parts else PatchBatch.unusable(0, self.patch_shape, "")

    def refine(
        self,
        image: MosaicImage,
        frames: NDArray[Any],
        y_m: NDArray[np.floating],
        x_m: NDArray[np.floating],
        within_s: float = math.inf,
    ) -> tuple[MosaicImage, dict[str, Any]]:
        """Refine a mosaic of this run by sweeps of the physics through the probe: see `recon.mosaic.refine.refine`.

        `frames` (n, H, W) are the counts as recorded of those it was made of, `y_m` and `x_m` (n,) their positions.
        Raises ValueError without a probe, or for frames of another shape than the model takes.
        """
        if self._probe is None:
            raise ValueError(f"model {self.card.name!r} has no probe, and without one there is nothing to refine with")
        self._check_shape(np.shape(frames))
        settings = self.refinement or Refinement()
        if settings.rounds is None:
            settings = settings.model_copy(update={"rounds": self.card.refine_rounds})
        while True:
            self._note_events()
            try:
                counts, positions = self._counts(frames), np.stack([y_m, x_m], axis=-1)
                with exact_convolutions(self._place.device.where):
                    return refine(
                        image,
                        ScanTensors(counts, positions, self._probe * self._flux.probe_factor),
                        self.weight,
                        settings,
                        network=self._passes.network,
                        anchor=self.anchor,
                        within_s=within_s,
                    )
            except RuntimeError as error:
                fault = self._place.device.fault(error)
                if fault != "lost":  # without memory for all frames at once there may still be some for the next few
                    self._place.device.release_memory()
                    raise
                message = str(error)
            self._leave(fault, message)

    def _counts(self, frames: NDArray[Any]) -> Tensor:
        """Prepare frames as recorded to counts (n, N, N); on the device, or in a file where they are many."""
        height, width = self.card.input.frame_shape
        if len(frames) * height * width * 4 <= _COUNTS_BYTES:
            return self._place.preprocess(frames).counts
        store = ArrayStore(_COUNTS_BYTES)
        for start in range(0, len(frames), _BLOCK):
            for counts in self._place.preprocess(frames[start : start + _BLOCK]).counts.cpu().numpy():
                store.append(counts)
        return torch.from_numpy(store.whole())

    def _check_shape(self, shape: Sequence[int]) -> None:
        if len(shape) != 3:
            raise ValueError(f"frames: got shape {tuple(shape)}; (frames, rows, columns) is needed")
        self._card_in_use.check_frames((int(shape[1]), int(shape[2])))

    def _with_fallback(self, frames: NDArray[Any] | Tensor, patience: _Patience) -> PatchBatch:
        """Patches of a block whatever befalls the device: in halves where memory is short, then on the CPU."""
        self._note_events()
        try:
            return self._block(frames)
        except (RuntimeError, MemoryError) as error:
            fault = self._place.device.fault(error)
            if fault is None:
                raise
            message = str(error)
        # Behind the handler: until there the failed pass's tensors are held by its traceback.
        if fault == "memory" and len(frames) > 1:
            half = len(frames) // 2
            return PatchBatch.joined(
                [self._with_fallback(frames[:half], patience), self._with_fallback(frames[half:], patience)]
            )
        if self._leave(fault, message) or patience.wait():
            return self._with_fallback(frames, patience)
        return PatchBatch.unusable(len(frames), self.patch_shape, NO_MEMORY)

    def _leave(self, fault: Fault, message: str) -> bool:
        moved = self._place.leave(fault, message)
        self._note_events()
        return moved

    def _note_events(self) -> None:
        """Note what befell the device since this run's last block: other runs share it."""
        self._place.check()
        news = self._place.events[self._events_noted :]
        self._events_noted += len(news)
        self._events += [f"{event} from frame {self._statistics.frames + 1} on" for event in news]

    def _block(self, frames: NDArray[Any] | Tensor) -> PatchBatch:
        """Make patches on the device; what is known of the run changes at the end only, when nothing can fail."""
        place, flux = self._place, copy.copy(self._flux)
        prepared = place.preprocess(frames)
        counts, valid, flag = prepared.counts, prepared.valid, list(prepared.flag)
        totals = counts.sum(dim=(-2, -1), dtype=torch.float64).cpu().numpy()
        low, high = self.card.input.counts_per_frame
        flux.add(totals[valid & (totals >= LOST * low)])
        lost, outside, usable = [EMPTY in words for words in flag], [False] * len(flag), valid.copy()
        for i in np.flatnonzero(valid):
            if totals[i] < max(flux.least, LOST * low):
                usable[i] = False
                flag[i], lost[i] = join_flags(flag[i], BEAM_LOST), True
            elif not low <= totals[i] <= high:
                outside[i] = True
                flag[i] = join_flags(flag[i], OUT_OF_RANGE)
        valid = usable.copy()
        probe = None if place.probe is None else place.probe * flux.probe_factor
        patches, judged = self._patches(counts, probe)
        for i in np.flatnonzero(valid & ~summable(patches)):
            valid[i] = False
            flag[i] = join_flags(flag[i], NOT_FINITE)
        table = None if probe is None else self.card.trust
        unknown = ~np.isfinite(judged)  # a patch of zeros, say: it explains nothing, and its trust must not be NaN
        judged[unknown] = np.inf
        trust = np.where(unknown, 0, judged if table is None else table.trust(judged)).astype(np.float32)
        if probe is None:
            trust[:] = np.nan  # not judged is not trusted
        patches[~valid] = np.nan
        trust[~valid] = 0
        if not flux.settled:
            self._statistics.add_frames(counts, totals, usable, lost, outside)
        self._flux = flux
        if probe is not None and not flux.settled:
            self._statistics.add_trust(trust[valid], None if table is None else table.error(judged[valid]))
        return PatchBatch(patches, trust, valid, flag)

    def _patches(self, counts: Tensor, probe: Tensor | None) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        """Patches (n, h, w) of counts (n, N, N), and their scores (n,), which mean nothing without a probe.

        Every pass has the same shape, whatever came together: kernels are chosen by it, and round as they are chosen.
        """
        passes, device = self._passes, counts.device
        judged = torch.ones(len(counts), device=device)
        patches = torch.empty(len(counts), *self.patch_shape, dtype=torch.complex64, device=device)
        start = 0
        while start < len(counts):
            batch = filled_up(counts[start : start + passes.batch_size], passes.batch_size)
            result, moved = passes(batch, probe)  # fewer than asked when memory ran out
            stop = min(start + len(result), len(counts))
            patches[start:stop] = result[: stop - start]
            if probe is not None:
                judged[start:stop] = self._scores(result, moved, batch[: len(result)], probe)[: stop - start]
            start = stop
        return patches.cpu().numpy(), judged.cpu().numpy()

    @torch.inference_mode()
    def _scores(self, patches: Tensor, moved: Tensor, counts: Tensor, probe: Tensor) -> Tensor:
        """Scores (n,) where the card has a table for them, trust itself where it has none."""
        if self.card.trust is None:
            return frame_trust(patches, counts, probe)
        return frame_score(unexplained_fraction(patches, counts, probe), moved)


class _Patience:
    """One pause in all, for memory that somebody else has for a moment."""

    def __init__(self) -> None:
        self._left = True

    def wait(self) -> bool:
        """Pause, the first time it is asked."""
        left, self._left = self._left, False
        if left:
            gc.collect()
            time.sleep(_PAUSE_S)
        return left


def _stitching_weight(model: Model) -> NDArray[np.float32]:
    """Measured weight, or the probe's intensity (or 1) falling to the patch's rim; peak 1."""
    h, w = model.card.input.patch_shape
    if model.weight is not None:
        weight = model.weight.detach().cpu().numpy().astype(np.float32)
    else:
        rim = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) for n in (h, w)))
        weight = rim.astype(np.float32)
        if model.probe is not None:
            top, left = (model.probe.shape[0] - h) // 2, (model.probe.shape[1] - w) // 2
            beam = model.probe[top : top + h, left : left + w].abs().square().cpu().numpy()
            weight = (weight * beam).astype(np.float32)
    return np.asarray(weight / weight.max(), dtype=np.float32)

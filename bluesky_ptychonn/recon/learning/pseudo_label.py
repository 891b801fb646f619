"""A label for a run nobody solved: probe tuned to it, object from sweeps of the physics, and whether to believe both.

A network that learns from its own answers learns its own mistakes. So the label comes from the physics of all frames
together, and what decides whether it is believed is neither the network nor how well the label explains the frames it
was made of: every eighth frame is left out of all sweeps, and the object that the others make, under the tuned probe,
has to foresee it. `foreseen` is the part of what the sample does to those frames that it gets right; 1 is all. On
simulated scans (100 frames, sampling 0.4, probe 0.6 rad off) it is above 0.95 where all is well, and below 0.8 with
positions scrambled (three in ten are enough), mirrored, or a detector shifted by two pixels.

What this cannot see is what the frames cannot tell: a scale of the positions, which another defocus makes good for (a
probe tuned to positions 10 % too far apart foresees as well as the right one); shift, mirror image through the probe's
own symmetry, and phase ramp of probe and object; and an error common to all runs, such as a wrong detector distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan, light_on
from bluesky_ptychonn.recon.evaluation.simulated_scans import stitched
from bluesky_ptychonn.recon.mosaic.probe_tuning import TunedProbe, tune_probe
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic, MosaicImage
from bluesky_ptychonn.recon.mosaic.sweeps import ScanTensors
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.quality.trust import frame_trust, unexplained_fraction

#: Every so many frames one is left out of the sweeps, to be foreseen.
LEFT_OUT_EVERY = 8
_LIT = 0.9  # of a frame's light has to fall on what is known, or the frame is not asked for
#: Part of the photons that a sample has to move before foreseeing means anything.
LEAST_SCATTERED = 1e-3
SOLVER = "sweeps of the physics through the tuned probe"


@dataclass(frozen=True)
class PseudoLabel:
    """A label and what speaks for it.

    Attributes
    ----------
    scan : LabelledScan
        All frames given, told the tuned probe.
    tuned : TunedProbe
    trust : (n,) float32 ndarray
        Of each frame, from how well the label explains it: 1 to the photon noise, 0.5 with 1 % unexplained.
    foreseen : float or None
        Part of what the sample does that the label foresees in frames it was not made of, up to 1 and below 0 where a
        bare field would do better; None where too few frames can be asked, or the sample does too little.
    """

    scan: LabelledScan
    tuned: TunedProbe
    trust: NDArray[np.float32]
    foreseen: float | None


def scaled_like(probe: Tensor, other: Tensor) -> Tensor:
    """Probe with the photons of another."""
    scaled: Tensor = probe * (other.abs().square().sum() / probe.abs().square().sum()).sqrt()
    return scaled


def views(image: MosaicImage, y_m: Any, x_m: Any, size: int) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """Object (n, size, size) around positions (n,) in m, sub-pixel, and where it is known; else it is the mean."""
    wave, half = image.complex, size // 2
    known = np.isfinite(wave)
    mean = wave[known].mean()
    wave, known = np.pad(np.where(known, wave, mean), size, constant_values=mean), np.pad(known, size)
    pixels = (np.stack([y_m, x_m], axis=-1) - np.array(image.origin_m)) / image.pixel_m + size  # (n, 2)
    whole = np.clip(np.rint(pixels).astype(int), half, np.array(wave.shape) - half)
    rows, columns = (whole[:, axis, None] - half + np.arange(size) for axis in (0, 1))
    place = (rows[:, :, None], columns[:, None, :])
    ramps = [np.exp(2j * np.pi * (pixels - whole)[:, axis, None] * np.fft.fftfreq(size)) for axis in (0, 1)]
    far = np.fft.fft2(wave[place]) * ramps[0][:, :, None] * ramps[1][:, None, :]
    return np.fft.ifft2(far).astype(np.complex64), known[place]


def unforeseen(image: MosaicImage, scan: MeasuredScan, probe: Tensor) -> tuple[float, float] | None:
    """Part of the photons of frames that an object made of other frames leaves unexplained, and that a bare field does.

    Returns
    -------
    (float, float) or None
        Means over the frames whose light falls on what is known; None where none does.
    """
    if not len(scan):
        return None
    patch, known = views(image, scan.y_m, scan.x_m, probe.shape[-1])
    beam = probe.detach().cpu()
    light = beam.abs().square().numpy()
    lit = (known * light).sum(axis=(1, 2)) >= _LIT * light.sum()
    if not lit.any():
        return None
    counts = torch.as_tensor(scan.counts[lit])
    left = unexplained_fraction(torch.as_tensor(patch[lit]), counts, beam)
    bare = unexplained_fraction(torch.ones(int(lit.sum()), *beam.shape, dtype=torch.complex64), counts, beam)
    return float(left.mean()), float(bare.mean())


def label(
    network: ObjectNetwork | None, scan: MeasuredScan, probe: Tensor, device: torch.device | str = "cpu"
) -> PseudoLabel:
    """Tune a probe to a run and make its label.

    Parameters
    ----------
    network : ObjectNetwork or None
        On `device`; makes the mosaic that the sweeps start from. Without one they start from a bare field.
    scan : MeasuredScan
    probe : (N, N) complex64 Tensor
        To start from, square-root photons.

    Raises
    ------
    ValueError
        When the frames and the probe do not go together.
    """
    out = np.zeros(len(scan), dtype=bool)
    out[LEFT_OUT_EVERY // 2 :: LEFT_OUT_EVERY] = True
    swept, left_out = scan.select(~out), scan.select(out)
    pixel = scan.geometry.object_pixel_m
    start = probe.to(device)
    image = _bare(swept, pixel) if network is None else stitched(network, swept, start)
    tuned = tune_probe(image, ScanTensors.from_scan(swept, start))
    return _with_trust(scan, tuned, left_out)


def _with_trust(scan: MeasuredScan, tuned: TunedProbe, left_out: MeasuredScan) -> PseudoLabel:
    """Make the label of what tuning found, and say how far it explains the frames, and foresees those left out."""
    beam, pixel = tuned.probe.cpu(), scan.geometry.object_pixel_m
    rows, columns = ((p - o) / pixel for p, o in zip((scan.y_m, scan.x_m), tuned.image.origin_m, strict=True))
    labelled = LabelledScan(
        *(scan.counts, scan.y_m, scan.x_m, beam.numpy(), scan.geometry, scan.source),
        object=tuned.image.complex,
        origin_m=tuned.image.origin_m,
        pixel_m=pixel,
        light=light_on(tuned.image.phase.shape, rows, columns, beam.numpy()),
        solver=SOLVER,
    )
    patch, _ = views(tuned.image, scan.y_m, scan.x_m, beam.shape[-1])
    trust = frame_trust(torch.as_tensor(patch), torch.as_tensor(scan.counts), beam).numpy()
    missed = unforeseen(tuned.image, left_out, beam)
    knows = missed is not None and missed[1] >= LEAST_SCATTERED
    return PseudoLabel(labelled, tuned, trust, 1 - missed[0] / missed[1] if missed and knows else None)


def _bare(scan: MeasuredScan, pixel_m: float) -> MosaicImage:
    """Make a mosaic of nothing, as large as half a frame around each position."""
    size = scan.counts.shape[-1] // 2
    mosaic = Mosaic(pixel_m, np.ones((size, size), np.float32))
    mosaic.add(np.ones((len(scan), size, size), np.complex64), scan.y_m, scan.x_m, np.ones(len(scan)))
    return mosaic.snapshot()

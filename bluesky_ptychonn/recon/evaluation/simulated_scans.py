"""Judge a network on simulated scans it never trained on: error against sampling, and where in a patch it errs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import SampleKind, SimulatedExperiment, illuminated_diameter_px, make_sample
from bluesky_ptychonn.recon.data.simulated import SimulatedFrames, SyntheticConfig
from bluesky_ptychonn.recon.evaluation.metrics import phase_correlation, phase_mae, ssim
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic, MosaicImage
from bluesky_ptychonn.recon.networks.networks import ObjectNetwork

#: Seeds at and above this one are for judging; training draws from pairs (seed, batch) and can never meet them.
HELD_OUT_SEED = 10_000_019


@dataclass(frozen=True)
class ScanScore:
    """Errors of one mosaic against its truth, over the covered part of the scanned field.

    Attributes
    ----------
    phase_mae_rad, phase_correlation, ssim : float
        Global phase removed. SSIM is of the phase.
    covered_fraction : float
        Of the field spanned by the positions, where its truth is known.
    frames : int
    """

    phase_mae_rad: float
    phase_correlation: float
    ssim: float
    covered_fraction: float
    frames: int


def scanned_field(image: MosaicImage, y_m: NDArray[np.floating], x_m: NDArray[np.floating]) -> tuple[slice, slice]:
    """Rows and columns of `image` inside the rectangle that the positions (n,) in m span."""
    slices = []
    for positions, origin, size in zip((y_m, x_m), image.origin_m, image.amplitude.shape, strict=True):
        low = int(np.round((positions.min() - origin) / image.pixel_m))
        high = int(np.round((positions.max() - origin) / image.pixel_m)) + 1
        slices.append(slice(max(0, low), min(size, max(high, low + 1))))
    return slices[0], slices[1]


def score_mosaic(
    image: MosaicImage, truth: NDArray[np.complex64], y_m: NDArray[np.floating], x_m: NDArray[np.floating]
) -> ScanScore:
    """Compare a mosaic with the true object on the same grid, (H, W) complex64; NaN where nobody knows it.

    Raises
    ------
    ValueError
        When shapes differ or nothing in the field is covered.
    """
    if truth.shape != image.amplitude.shape:
        raise ValueError(f"score_mosaic: truth {truth.shape} px and mosaic {image.amplitude.shape} px differ")
    field = scanned_field(image, y_m, x_m)
    ours, theirs = image.complex[field], truth[field]
    known = np.isfinite(theirs)
    covered = np.isfinite(ours) & known
    if not covered.any():
        raise ValueError("score_mosaic: no pixel of the scanned field is covered and known")
    ours, theirs = np.where(known, ours, np.nan), np.where(known, theirs, 1)
    return ScanScore(
        phase_mae_rad=phase_mae(ours, theirs),
        phase_correlation=phase_correlation(ours, theirs),
        ssim=_phase_ssim(ours, theirs),
        covered_fraction=float(covered.sum() / known.sum()),
        frames=len(y_m),
    )


def _phase_ssim(ours: NDArray[np.complex64], theirs: NDArray[np.complex64]) -> float:
    phase = np.angle(theirs)
    if min(ours.shape) < 7 or not np.ptp(phase) > 0:  # SSIM's window is 7 px, and it wants something to see
        return float("nan")
    return float(ssim(_phase_about(ours, theirs), phase))


def _phase_about(ours: NDArray[np.complex64], theirs: NDArray[np.complex64]) -> NDArray[np.float64]:
    """Our phase, turned to the reference's global phase; NaN where not covered."""
    covered = np.isfinite(ours)
    turn = np.angle(np.sum(ours[covered] * theirs[covered].conj()))
    return np.asarray(np.angle(ours * np.exp(-1j * turn)), dtype=np.float64)


def predict(
    network: ObjectNetwork, frames: NDArray[Any], probe: torch.Tensor, batch: int = 16
) -> NDArray[np.complex64]:
    """Run the bare network over counts (n, N, N) → patches (n, h, w) complex64, on the probe's device."""
    out = []
    with torch.inference_mode():
        for start in range(0, len(frames), batch):
            counts = torch.as_tensor(np.asarray(frames[start : start + batch], dtype=np.float32), device=probe.device)
            out.append(network(counts, probe).cpu().numpy())
    return np.concatenate(out)


def raster(
    step_m: float, field_m: float, jitter: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (y, x) in m of a raster over a square field, each displaced by up to `jitter` steps."""
    line = np.arange(-field_m / 2, field_m / 2 + 1e-3 * step_m, step_m)
    y, x = (g.ravel() for g in np.meshgrid(line, line, indexing="ij"))
    moved = rng.uniform(-jitter, jitter, (2, y.size)) * step_m
    return y + moved[0], x + moved[1]


def measure_sampling(
    network: ObjectNetwork,
    probe: NDArray[np.complex64],
    geometry: Geometry,
    weight: NDArray[np.float32],
    *,
    photons: float,
    samplings: Sequence[float] = (0.2, 0.25, 1 / 3, 0.4, 0.5, 0.6, 0.75, 0.9),
    kinds: Sequence[SampleKind] = ("etched", "cells", "star"),
    field_diameters: float = 5.0,
    seed: int = HELD_OUT_SEED,
) -> list[tuple[float, ScanScore]]:
    """Measure error against sampling on held-out simulated scans.

    Parameters
    ----------
    network, probe, weight
        The model: network, its probe (N, N) complex64 of any scale, and its stitching weight (h, w).
    geometry : Geometry
        Sets the object pixel.
    photons : float
        Mean photons a frame without sample.
    samplings : sequence of float
        Step over illuminated diameter.
    kinds : sequence of str
        One unseen sample of each.
    field_diameters : float
        Side of the scanned square in illuminated diameters.
    seed : int
        Of samples, noise and jitter.

    Returns
    -------
    list of (float, ScanScore)
        For each sampling, scores averaged over the samples; `frames` is of one scan.
    """
    pixel = geometry.object_pixel_m
    told = torch.as_tensor(_unit(probe) * np.float32(photons**0.5))
    rows: list[tuple[float, ScanScore]] = []
    for sampling in samplings:
        scores = []
        for k, kind in enumerate(kinds):
            experiment, y, x, frames = held_out_scan(
                probe, geometry, photons, sampling, kind, (seed, k), field_diameters=field_diameters
            )
            mosaic = Mosaic(pixel, weight, anchor=network.anchor)
            mosaic.add(predict(network, frames, told), y, x, np.ones(len(y)))
            mosaic.synchronise()
            image = mosaic.snapshot()
            scores.append(score_mosaic(image, experiment.truth_on(image.origin_m, image.amplitude.shape), y, x))
        mean = {name: float(np.mean([getattr(s, name) for s in scores])) for name in _AVERAGED}
        rows.append((sampling, ScanScore(**mean, frames=scores[0].frames)))
    return rows


def held_out_scan(
    probe: NDArray[np.complex64],
    geometry: Geometry,
    photons: float,
    sampling: float,
    kind: SampleKind,
    seed: tuple[int, int],
    *,
    field_diameters: float = 5.0,
) -> tuple[SimulatedExperiment, NDArray[np.float64], NDArray[np.float64], NDArray[np.uint16]]:
    """Scan an unseen sample: the experiment, positions y and x (n,) in m, frames (n, N, N).

    Of one `seed` the sample is the same at every sampling.
    """
    pixel, unit = geometry.object_pixel_m, _unit(probe)
    diameter_m = illuminated_diameter_px(unit) * pixel
    side = int(np.ceil((field_diameters + 1) * diameter_m / pixel / 2) * 2 + probe.shape[0])
    rng = np.random.default_rng(seed)
    experiment = SimulatedExperiment(geometry, unit, make_sample(kind, (side, side), rng), photons)
    y, x = raster(sampling * diameter_m, field_diameters * diameter_m, 0.1, rng)
    return experiment, y, x, np.stack([experiment.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)])


def _unit(probe: NDArray[np.complex64]) -> NDArray[np.complex64]:
    return np.asarray(probe / np.sqrt((np.abs(probe) ** 2).sum()), dtype=np.complex64)


_AVERAGED = ("phase_mae_rad", "phase_correlation", "ssim", "covered_fraction")


def patch_error(
    network: ObjectNetwork,
    probe: NDArray[np.complex64],
    config: SyntheticConfig,
    *,
    frames: int = 512,
    seed: int = HELD_OUT_SEED,
) -> float:
    """Mean absolute phase error of patches, rad, on held-out simulated frames.

    Weighted by the probe's intensity, global phase removed frame by frame.
    """
    size = network.config.patch_size
    data = SimulatedFrames(probe, size, 16, config, seed)
    weight = torch.as_tensor(stitching_weight(probe, size))
    phase, batches = 0.0, max(1, frames // 16)
    with torch.inference_mode():
        for index in range(batches):
            counts, told, truth = data.batch(index)
            phase += float(phase_error(network(counts, told), truth, weight)) / batches
    return phase


def phase_error(patch: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean absolute phase error, rad, global phase removed frame by frame.

    Parameters
    ----------
    patch, truth : (n, h, w) complex64 Tensor
    weight : (h, w) or (n, h, w) float32 Tensor
        Any scale.

    Returns
    -------
    scalar Tensor
    """
    cross = patch * truth.conj()
    turn = torch.exp(-1j * (cross * weight).sum(dim=(-2, -1), keepdim=True).angle())
    error = (cross * turn).angle().abs() * weight
    return error.sum() / weight.expand_as(error).sum().clamp_min(1e-12)


def stitching_weight(probe: NDArray[np.complex64], patch_size: int) -> NDArray[np.float32]:
    """Weight (h, w) of a patch's pixels in a mosaic, peak 1: the probe's intensity, where the photons are.

    The inverse of the measured error variance was tried and did no better: on the measured Siemens star the two agree
    to 0.002 in phase correlation.
    """
    margin = (probe.shape[0] - patch_size) // 2
    beam = np.abs(probe[margin : margin + patch_size, margin : margin + patch_size]) ** 2
    return np.asarray(beam / beam.max(), dtype=np.float32)

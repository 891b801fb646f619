"""Small measured scans whose truth is known."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, make_sample, zone_plate_probe
from bluesky_ptychonn.recon.data.scans import LabelledScan
from bluesky_ptychonn.recon.evaluation.simulated_scans import raster
from bluesky_ptychonn.recon.mosaic.sweeps import ScanTensors

PROBE = zone_plate_probe((32, 32), 14)
GEOMETRY = Geometry(energy_ev=10_000, distance_m=1, pixel_pitch_m=75e-6, frame_shape=(32, 32))


def labelled_scan(seed: int, frames: int = 144, photons: float = 1e5) -> LabelledScan:
    """Raster of a simulated etched sample at 0.3 of the probe, labelled with the truth."""
    rng = np.random.default_rng(seed)
    e = SimulatedExperiment(GEOMETRY, PROBE, make_sample("etched", (160, 160), seed), photons)
    step, lines = 0.3 * e.probe_diameter_m, round(frames**0.5)
    y, x = raster(step, (lines - 1) * step, 0.2, rng)
    counts = np.stack([e.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)])
    corner = (-80 * e.pixel_m, -80 * e.pixel_m)
    light = np.ones(e.sample.shape, np.float32)
    probe = PROBE * np.float32(photons**0.5)
    return LabelledScan(counts, y, x, probe, GEOMETRY, f"sample {seed}", e.sample, corner, e.pixel_m, light, "truth")


def matching(scan: LabelledScan, counts: torch.Tensor) -> NDArray[np.int64]:
    """Which frames of a scan these are."""
    return np.array([int(np.flatnonzero((scan.counts == c).all(axis=(1, 2)))[0]) for c in counts.numpy()])


def scan_of(counts: torch.Tensor, y: NDArray[np.float64], x: NDArray[np.float64], probe: torch.Tensor) -> ScanTensors:
    """Frames at y and x, m, through a probe, for what works on tensors."""
    return ScanTensors(counts, np.stack([y, x], axis=-1), probe)

"""A measured scan becomes a labelled one: dense enough, solved, and known only where light fell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_ptychonn.recon.data.scans import Complex, LabelledScan, MeasuredScan, light_on
from bluesky_ptychonn.recon.data.spacing import step_of
from bluesky_ptychonn.recon.solver.ptychi import (
    BATCH_SIZE,
    JOINT_BATCH_SIZE,
    Solution,
    SolverSettings,
    reconstruct_probe_and_object,
    reconstruct_with_probe,
    settled_epochs,
)

#: Sampling up to which the solver's image is called a label: on the measured Siemens star every fourth frame (0.39)
#: agrees with all of them (0.19) to a phase correlation of 0.982, every sixth (0.47) to 0.971, every ninth to 0.946.
MOST_SAMPLING = 0.4
#: Light, in peaks of the probe, below which nobody knows the object.
LEAST_LIGHT = 0.05
#: pty-chi's epochs with smaller steps that end a solution in which the probe is found too.
SETTLING_EPOCHS = 20


def sampling_of(scan: MeasuredScan) -> float:
    """Step over the probe's illuminated diameter, from the measured positions; ValueError for a line or a point."""
    try:
        return step_of(scan.y_m, scan.x_m) / scan.probe_diameter_m
    except ValueError as error:
        raise ValueError(f"{scan.source}: its positions give no label: {error}") from None


def check_overlap(scan: MeasuredScan, most_sampling: float = MOST_SAMPLING) -> float:
    """Measure a scan's sampling; ValueError in words where it is too sparse for an iterative solver to be believed."""
    sampling = sampling_of(scan)
    if sampling > most_sampling:
        raise ValueError(
            f"{scan.source}: too sparse for a label: its step of {1e6 * sampling * scan.probe_diameter_m:.3g} µm is "
            f"{sampling:.2f} of the probe's {1e6 * scan.probe_diameter_m:.3g} µm; allowed is {most_sampling:.2f}. "
            "Scan more densely, or allow more with most_sampling= (--most-sampling)"
        )
    return sampling


def solve(
    scan: MeasuredScan,
    *,
    epochs: int | None = None,
    refine_probe: bool = False,
    device: str = "cpu",
    threads: int = 1,
    seed: int = 1,
) -> tuple[LabelledScan, Solution]:
    """Let the iterative solver reconstruct a scan.

    Parameters
    ----------
    scan : MeasuredScan
        Its probe is what the solver is told.
    epochs : int, optional
        How long; `settled_epochs` when not given.
    refine_probe : bool
        Let the solver find the probe too. It keeps the told probe's power and centre, which the frames alone do not
        fix: the object is scaled and moved along.
    device : {"cpu", "gpu"}
    threads : int
        Of the solver on a CPU; 0 leaves them to torch.
    seed : int
        Of the order of frames.

    Returns
    -------
    scan : LabelledScan
        With the solver's probe.
    solution : Solution
        As the solver gave it.

    Raises
    ------
    ValueError
        For settings out of range.
    SolverMissingError, SolverError
        Where there is no solver, or it fails: in words.
    """
    pixel, n = scan.geometry.object_pixel_m, scan.probe.shape[0]
    at = np.stack([scan.y_m, scan.x_m], axis=1) / pixel
    low = np.floor(at.min(axis=0)).astype(int) - n // 2 - 2
    high = np.ceil(at.max(axis=0)).astype(int) + n // 2 + 2
    shape, places = (int(high[0] - low[0]), int(high[1] - low[1])), at - low
    epochs = settled_epochs(len(scan)) if epochs is None else epochs
    settings = SolverSettings(device=device, threads=threads, seed=seed)
    probe, image, shift = scan.probe, None, np.zeros(2)
    if refine_probe:
        settings = replace(settings, batch_size=min(JOINT_BATCH_SIZE, max(BATCH_SIZE, len(scan) // 8)))
        settling = max(1, min(SETTLING_EPOCHS, epochs // 2))
        found = reconstruct_probe_and_object(
            scan.counts, places, probe, shape, epochs=epochs, settling_epochs=settling, settings=settings
        )
        probe, image, shift = _like_given(found, scan.probe)
    else:
        found = reconstruct_with_probe(scan.counts, places, probe, shape, epochs=epochs, settings=settings)
        image = found.object
    light = light_on(shape, places[:, 0] - shift[0], places[:, 1] - shift[1], probe)
    origin = (float(low[0] + shift[0]) * pixel, float(low[1] + shift[1]) * pixel)
    known = np.where(light >= LEAST_LIGHT, image, np.complex64(np.nan))
    about = (scan.counts, scan.y_m, scan.x_m, probe, scan.geometry, scan.source)
    return LabelledScan(*about, known, origin, pixel, light, found.software), found


def _like_given(found: Solution, given: Complex) -> tuple[Complex, Complex, NDArray[np.float64]]:
    """Probe with the power and centre of the one told, the object that goes with it, and how far its pixels moved."""
    factor = np.sqrt((np.abs(given) ** 2).sum() / (np.abs(found.probe) ** 2).sum())
    moved = _centre(found.probe) - _centre(given)
    # P(r + d) o(r + d + x) explains a frame at x as P(r) o(r + x) does.
    probe = np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(found.probe), -moved)) * factor
    return np.asarray(probe, np.complex64), np.asarray(found.object / factor, np.complex64), -moved


def _centre(probe: Complex) -> NDArray[np.float64]:
    intensity = np.abs(probe) ** 2
    return np.asarray(ndimage.center_of_mass(intensity), dtype=np.float64)

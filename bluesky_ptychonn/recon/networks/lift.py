"""Single-frame steps through the known probe: from counts to a first object estimate in real space.

One step replaces the modulus of the far field by the measured one and moves the object by the regularised
least-squares update of ePIE, ``o += P* d / (|P|^2 + r max|P|^2)`` (Maiden & Rodenburg, Ultramicroscopy 109, 1256,
2009), but for every frame by itself: nothing is shared between frames, so no overlap is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_ptychonn.optics.forward import back_propagate, propagate


def lift(modulus: Tensor, probe: Tensor, steps: int, start: Tensor | None = None, damping: float = 0.02) -> Tensor:
    """Run `steps` single-frame updates of the object.

    Parameters
    ----------
    modulus : (B, N, N) float32 Tensor
        Square root of the counts, zero frequency first (`bluesky_ptychonn.optics.forward.to_fft_order`).
    probe : (N, N) or (B, N, N) complex64 Tensor
        Square-root photons.
    steps : int
        Number of updates; 0 returns the start.
    start : (B, N, N) complex64 Tensor, optional
        Object to start from; flat when not given.
    damping : float
        `r` above: where the probe is weaker than this fraction of its peak intensity, the object hardly moves.

    Returns
    -------
    (B, N, N) complex64 Tensor
        Object estimate; where the probe is dark it stays at its start.
    """
    power = probe.real.square() + probe.imag.square()
    peak = power.amax(dim=(-2, -1), keepdim=True)
    gain = probe.conj() / (power + damping * peak)  # ([B,] N, N)
    estimate = torch.ones(modulus.shape, dtype=torch.complex64, device=modulus.device) if start is None else start
    for _ in range(steps):
        exit_wave = probe * estimate
        far = propagate(exit_wave)
        far = far * (modulus / far.abs().clamp_min(1e-6))
        estimate = estimate + gain * (back_propagate(far) - exit_wave)
    return estimate

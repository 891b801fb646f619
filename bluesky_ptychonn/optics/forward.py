"""Exit wave to far field and back, in PyTorch, with a complex probe.

All transforms are orthonormal, so a probe in square-root photons gives intensities in photons. Arrays called ``far``
are in the order of `torch.fft` (zero frequency first); `to_fft_order` brings detector frames there. The exit wave is
not shifted: moving it by half the window only multiplies the far field by a phase of modulus one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_fft_order(frames: Tensor) -> Tensor:
    """Move the beam from pixel (N // 2, N // 2) to (0, 0), where `torch.fft` has the zero frequency. (..., N, N)."""
    shifted: Tensor = torch.fft.ifftshift(frames, dim=(-2, -1))
    return shifted


def to_detector_order(far: Tensor) -> Tensor:
    """Undo `to_fft_order`. (..., N, N)."""
    shifted: Tensor = torch.fft.fftshift(far, dim=(-2, -1))
    return shifted


def propagate(exit_wave: Tensor) -> Tensor:
    """Far field of an exit wave, zero frequency first. (..., N, N) complex64 → same."""
    far: Tensor = torch.fft.fft2(exit_wave, norm="ortho")
    return far


def back_propagate(far: Tensor) -> Tensor:
    """Inverse, and adjoint, of `propagate`. (..., N, N) complex64 → same."""
    exit_wave: Tensor = torch.fft.ifft2(far, norm="ortho")
    return exit_wave


def far_field(patch: Tensor, probe: Tensor) -> Tensor:
    """Linear model from object to far field, ``F(P o)``, zero frequency first.

    Patch (..., N, N) and probe (N, N) or (..., N, N), in square-root photons, are complex64, and so is the result.
    """
    return propagate(probe * patch)


def far_field_adjoint(far: Tensor, probe: Tensor) -> Tensor:
    """Adjoint of `far_field` in the object: ``conj(P) F^-1(y)``, so that ``<A o, y> = <o, A* y>``."""
    return probe.conj() * back_propagate(far)


def intensity(patch: Tensor, probe: Tensor) -> Tensor:
    """Compute the expected frame ``|F(P o)|**2``, photons, beam at (N // 2, N // 2). (..., N, N) complex → float."""
    return to_detector_order(far_field(patch, probe).abs().square())

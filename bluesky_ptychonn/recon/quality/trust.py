"""Trust in a patch without knowing the truth: how well it explains its own frame, and how still the network holds.

Two cues. The patch is put under the probe and carried to the detector, and its amplitude there is compared with the
square root of the counts, up to one factor, because the flux is not the patch's merit; what remains, less what photon
noise alone leaves, is the fraction ``u`` of the frame's photons that the patch leaves unexplained. And a network of
several stages moves its patch between the last two, with physics in between: that movement ``m``, the mean absolute
phase it turns by under the probe, in rad, is large where the frame leaves the network in doubt, also when either patch
would explain the frame. The score of a frame is ``sqrt(m**2 + 0.3 u)``.

A score becomes trust through the table in the model's card (`bluesky_ptychonn.calibration`, measured by
`bluesky_ptychonn.recon.evaluation.trust_calibration`): the probability that the patch's phase error is below 0.1 rad.
Without a table trust is ``1 / (1 + u / u_half)`` with ``u_half = 0.01``, and not calibrated: 1 for a frame explained to
the noise, 0.5 where 1 % of the photons are unexplained, 0.1 where 9 % are.

Trust is necessary, not sufficient: a single frame can be explained by more than one object.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import poisson
from torch import Tensor
from torch.nn import functional

from bluesky_ptychonn.optics.forward import far_field, to_fft_order

HALF_TRUST_UNEXPLAINED = 0.01
#: Rank correlation with the error, held out: 0.83 for both lifted models here; 0.81 and 0.87 with 0, but a shifted
#: detector or another probe then shows less.
UNEXPLAINED_SHARE = 0.3
_TABLE_STEP = 1 / 32  # in square-root photons
_TABLE_END = 8.0


@lru_cache(maxsize=1)
def _noise_table() -> NDArray[np.float32]:
    """``E (sqrt(n) - sqrt(m))**2`` for n ~ Poisson(m), at sqrt(m) = 0, 1/32, …, 8; beyond it is 1/4 within 1 %."""
    root = np.arange(0, _TABLE_END + _TABLE_STEP / 2, _TABLE_STEP)
    mean = root[:, None] ** 2
    n = np.arange(0, 200)
    expected_root = (poisson.pmf(n, mean) * np.sqrt(n)).sum(axis=1)
    return np.asarray(2 * root**2 - 2 * root * expected_root, dtype=np.float32)


@lru_cache(maxsize=8)
def _noise_table_on(device: torch.device) -> Tensor:
    return torch.from_numpy(_noise_table()).to(device)


def noise_floor(amplitude: Tensor) -> Tensor:
    """Squared amplitude residual that photon noise alone leaves at each pixel.

    Parameters
    ----------
    amplitude : (...) float32 Tensor
        Expected amplitude, square-root photons.
    """
    table = _noise_table_on(amplitude.device)
    # A NaN must not become an index.
    place = (amplitude / _TABLE_STEP).nan_to_num(0.0).clamp(0, len(table) - 1.001)
    index = place.to(torch.int32)
    return torch.lerp(table[index], table[index + 1], place - index)


def under_probe(patch: Tensor, probe: Tensor) -> Tensor:
    """Object on the probe's whole field: the patch in its middle, its rim repeated outwards. (n, h, w) → (n, N, N)."""
    size, (h, w) = probe.shape[-1], patch.shape[-2:]
    if (h, w) == tuple(probe.shape[-2:]):
        return patch
    top, left = (probe.shape[-2] - h) // 2, (size - w) // 2
    pads = (left, size - w - left, top, probe.shape[-2] - h - top)
    parts = torch.stack([patch.real, patch.imag], 1)
    padded = functional.pad(parts, pads, mode="replicate")
    return torch.complex(padded[:, 0], padded[:, 1])


def unexplained_fraction(patch: Tensor, counts: Tensor, probe: Tensor) -> Tensor:
    """Fraction of each frame's photons that its patch does not explain beyond photon noise.

    Parameters
    ----------
    patch : (n, h, w) complex64 Tensor
        Object, centred in the probe's field; pixel ``h // 2`` under the probe's ``N // 2``.
    counts : (n, N, N) float32 Tensor
        Photons, beam at ``(N // 2, N // 2)``.
    probe : (N, N) complex64 Tensor
        Any scale.

    Returns
    -------
    (n,) float32 Tensor
        From about 0 (a little below by chance) to about 1; NaN where the frame has no counts or the patch is not
        finite.

    Raises
    ------
    ValueError
        When shapes do not go together.
    """
    if counts.shape[-2:] != probe.shape[-2:] or len(patch) != len(counts):
        raise ValueError(
            f"trust: patches {tuple(patch.shape)}, frames {tuple(counts.shape)} and probe {tuple(probe.shape)} px do "
            "not go together: as many patches as frames, and frames as large as the probe"
        )
    if not len(patch):
        return torch.zeros(0, device=counts.device)
    amplitude = far_field(under_probe(patch, probe), probe).abs()
    measured = to_fft_order(counts).clamp_min(0).sqrt()
    total = counts.clamp_min(0).sum(dim=(-2, -1))
    power = amplitude.square().sum(dim=(-2, -1))
    overlap = (measured * amplitude).sum(dim=(-2, -1))
    scale = overlap / power  # least-squares factor between the amplitudes
    floor = noise_floor(amplitude * scale[:, None, None]).sum(dim=(-2, -1))
    return 1 - overlap * scale / total - floor / total


def frame_trust(patch: Tensor, counts: Tensor, probe: Tensor) -> Tensor:
    """Trust of each patch where nothing is calibrated, 0 to 1; its meaning is at the top of this module.

    Parameters and errors are those of `unexplained_fraction`.

    Returns
    -------
    (n,) float32 Tensor
        0 for a frame without counts or a patch that is not finite.
    """
    unexplained = unexplained_fraction(patch, counts, probe).clamp_min(0)
    return (1 / (1 + unexplained / HALF_TRUST_UNEXPLAINED)).nan_to_num(0.0)


def movement(before: Tensor, after: Tensor, probe: Tensor) -> Tensor:
    """Mean absolute phase between two patches of a frame, weighted by the illumination, global phase removed.

    Parameters
    ----------
    before, after : (n, h, w) complex64 Tensor
        Of the same frames, such as a network's last two stages.
    probe : (N, N) complex64 Tensor
        Any scale; the patches lie in its middle.

    Returns
    -------
    (n,) float32 Tensor
        rad.
    """
    weight = patch_weight(probe, after.shape[-2:])
    cross = after * before.conj()
    mean = (cross * weight).sum(dim=(-2, -1), keepdim=True)
    turned = cross * mean.conj()
    return (torch.atan2(turned.imag, turned.real).abs() * weight).sum(dim=(-2, -1))


def patch_weight(probe: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Part of the light that falls on each pixel of a patch, (h, w) float32, sum 1."""
    h, w = shape
    top, left = (probe.shape[-2] - h) // 2, (probe.shape[-1] - w) // 2
    beam = probe[..., top : top + h, left : left + w].abs().square()
    return beam / beam.sum()


def frame_score(unexplained: Tensor, moved: Tensor | None) -> Tensor:
    """Score of each frame, 0 for a frame explained to the noise that left no doubt.

    Parameters
    ----------
    unexplained : (n,) float32 Tensor
        See `unexplained_fraction`.
    moved : (n,) float32 Tensor or None
        See `movement`, rad; None for a network of one stage.

    Returns
    -------
    (n,) float32 Tensor
    """
    square = UNEXPLAINED_SHARE * unexplained.clamp_min(0)
    return (square if moved is None else square + moved.square()).sqrt()

"""What a training minimises: the error against a truth, or, without one, what the physics says against a patch.

Without a truth two things are known of patches. Under the probe they have to give the frames: the Poisson likelihood of
the counts (Thibault & Guizar-Sicairos, New J. Phys. 14, 063004, 2012; Godard et al., Opt. Express 20, 25914, 2012). And
where the light of neighbouring frames falls on the same place they have to agree, up to the global phase that no single
frame holds: the likelihood is asked of their mean, as in PtychoPINN (Hoidn, Mishra & Mehta, Sci. Rep. 13, 22789, 2023),
and what they differ by is a loss of its own.

The counts of a frame are dealt out in two: the network sees one part and is judged by the other, as their noise is not
the same. A half-trained network's phase error, 0.074 rad on the simulated beamline, rose to 0.080 when it was judged by
what it saw and fell to 0.071 otherwise; asked of the mean of eight neighbours, the likelihood brought it to 0.061.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bluesky_ptychonn.optics.forward import intensity
from bluesky_ptychonn.recon.data.batches import Batch
from bluesky_ptychonn.recon.networks.base import fix_gauge
from bluesky_ptychonn.recon.quality.trust import patch_weight, under_probe

#: Counts a pixel that are expected beside the diffraction, so that stray ones do not weigh without bound.
_STRAY = 0.1
#: Weight of the neighbours' squared disagreement against the likelihood.
AGREEMENT = 0.1
#: Light, of its peak, below which a patch is not merged with others.
_DARK = 1e-3


def probe_weight(probe: Tensor, patch_size: int, power: float = 1.0, floor: float = 0.02) -> Tensor:
    """Weight of the loss, (h, w) float32, sum 1: the probe's modulus to a power, and a small floor.

    The modulus rather than the intensity where a network can see them: sparse scans also need the dimmer parts of the
    field.
    """
    margin = (probe.shape[-1] - patch_size) // 2
    beam = probe[margin : margin + patch_size, margin : margin + patch_size].abs()
    weight = (beam / beam.max()) ** power + floor
    return weight / weight.sum()


def gauge_free_loss(patch: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean modulus of the difference after taking out the global phase of each patch.

    (B, h, w), with a weight (h, w) or (B, h, w) → scalar.
    """
    with torch.no_grad():
        turn = torch.exp(1j * (patch * truth.conj() * weight).sum(dim=(-2, -1), keepdim=True).angle())
    difference = patch - truth * turn
    modulus = (difference.real.square() + difference.imag.square() + 1e-8).sqrt()
    return (modulus * weight).sum(dim=(-2, -1)).mean()


def amplitude_phase_loss(patch: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of the errors of amplitude and phase, as published (L1 on both).

    (B, h, w), with a weight (h, w) or (B, h, w) → scalar. The truth's weighted mean is turned to be real, which gives
    the network one answer to aim at. A direct network, which sees counts only, needs that: after 8,000 frames of one
    training the mosaic of every 6th frame of the measured star had a phase correlation of 0.48 with this loss and 0.43
    with `gauge_free_loss`.
    """
    truth = fix_gauge(truth, weight)
    amplitude = (patch.abs() - truth.abs()).abs()
    phase = (patch * truth.conj()).angle().abs()
    return ((amplitude + phase) * weight).sum(dim=(-2, -1)).mean()


def poisson_deviance(patch: Tensor, counts: Tensor, probe: Tensor) -> Tensor:
    """How unlikely each frame is under its patch: Poisson deviance a photon, 0 for a patch that gives it exactly.

    Minus the logarithm of the likelihood, less its smallest value, over the frame's photons. For many counts that is
    twice the squared difference of the amplitudes over the photons. Outside the patch its rim is repeated, see
    `bluesky_ptychonn.recon.quality.trust.under_probe`.

    Parameters
    ----------
    patch : (n, h, w) complex64 Tensor
        Object, centred in the probe's field.
    counts : (n, N, N) float32 Tensor
        Photons, beam at ``(N // 2, N // 2)``.
    probe : (N, N) complex64 Tensor
        Square-root photons.

    Returns
    -------
    (n,) float32 Tensor
        Photon noise alone leaves about N² over the photons, or less where many pixels are dark.
    """
    counts = counts.clamp_min(0)
    expected, seen = intensity(under_probe(patch, probe), probe) + _STRAY, counts + _STRAY
    deviance = expected - seen - seen * torch.log(expected / seen)
    return deviance.sum(dim=(-2, -1)) / counts.sum(dim=(-2, -1)).clamp_min(1)


@dataclass(frozen=True)
class Overlap:
    """Neighbours' patches brought to the pixels of each other's frames.

    Attributes
    ----------
    moved : (m, h, w) complex64 Tensor
        Patch of the second of each pair, interpolated to the first one's pixels and turned to its global phase.
    light : (h, w) float32 Tensor
        On a frame's own patch, peak 1.
    other : (m, h, w) float32 Tensor
        Of the second frame, at the first one's pixels.
    """

    moved: Tensor
    light: Tensor
    other: Tensor


def overlap(patch: Tensor, offsets: Tensor, pairs: Tensor, probe: Tensor) -> Overlap:
    """Bring neighbours' patches (n, h, w) together: of each pair (m, 2) int64 the second to the first.

    `offsets` (n, 2) is where their centres lie, (y, x) in object pixels; the probe (N, N) may have any scale.
    """
    h, w = patch.shape[-2:]
    light = patch_weight(probe, (h, w))
    light = light / light.max()
    first, second = pairs[:, 0], pairs[:, 1]
    shift = offsets[first] - offsets[second]  # (m, 2): pixel (0, 0) of the first is there in the second
    rows = torch.arange(h, device=patch.device) + shift[:, 0, None]  # (m, h)
    columns = torch.arange(w, device=patch.device) + shift[:, 1, None]  # (m, w)
    across, down = (2 * columns / (w - 1) - 1)[:, None, :], (2 * rows / (h - 1) - 1)[:, :, None]
    grid = torch.stack([across.expand(-1, h, -1), down.expand(-1, -1, w)], dim=-1)  # (m, h, w, 2): x first
    inside = ((rows >= 0) & (rows <= h - 1))[:, :, None] & ((columns >= 0) & (columns <= w - 1))[:, None, :]
    parts = torch.stack([patch.real, patch.imag], 1)[second]  # (m, 2, h, w)
    parts = functional.grid_sample(parts, grid, mode="bicubic", padding_mode="border", align_corners=True)
    moved = torch.complex(parts[:, 0], parts[:, 1])
    beam = light.expand(len(pairs), 1, h, w)
    other = functional.grid_sample(beam, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    other = other.squeeze(1) * inside
    with torch.no_grad():
        cross = (patch[first] * moved.conj() * (light * other)).sum(dim=(-2, -1), keepdim=True)
        turn = torch.exp(1j * cross.angle())
    return Overlap(moved * turn, light, other)


def merged(patch: Tensor, pairs: Tensor, met: Overlap) -> Tensor:
    """Mean of each patch and its neighbours', weighted pixel by pixel by the light that each of them had there.

    (n, h, w) complex64 → same. A patch without neighbours stays as it is.
    """
    total = (patch * met.light).index_add(0, pairs[:, 0], met.moved * met.other)
    light = met.light.expand(patch.shape).index_add(0, pairs[:, 0], met.other)
    return torch.where(light > _DARK, total / light.clamp_min(_DARK), patch)


def disagreement(patch: Tensor, pairs: Tensor, met: Overlap) -> Tensor:
    """Mean squared difference of patches where they overlap, weighted by the product of the light on both; a scalar.

    0 where no pair overlaps.
    """
    weight = met.light * met.other
    difference = patch[pairs[:, 0]] - met.moved
    square = difference.real.square() + difference.imag.square()
    return (square * weight).sum() / weight.sum().clamp_min(1e-6)


def label_free_loss(patch: Tensor, batch: Batch) -> Tensor:
    """Judge a label-free batch's patches by the physics alone; a scalar.

    Mean `poisson_deviance` of counts the network was not given, under what neighbouring patches say together
    (`merged`), plus `AGREEMENT` times their `disagreement`.

    Raises
    ------
    ValueError
        For a batch of another source.
    """
    if batch.held_counts is None or batch.held_probe is None or batch.offsets is None or batch.pairs is None:
        raise ValueError(f"label_free_loss: a {batch.source} batch has no counts to be judged by; it has a truth")
    met = overlap(patch, batch.offsets, batch.pairs, batch.held_probe)
    together = merged(patch, batch.pairs, met)
    loss = poisson_deviance(together, batch.held_counts, batch.held_probe).mean()
    return loss + AGREEMENT * disagreement(patch, batch.pairs, met)


Kind = Literal["complex", "amplitude_phase"]


def batch_loss(patch: Tensor, batch: Batch, kind: Kind) -> Tensor:
    """Loss of a network's patches (B, h, w) for a batch of any source; a scalar.

    `kind` says how patches are compared with a truth: `gauge_free_loss` weighted by the probe's modulus, or
    `amplitude_phase_loss` weighted by its intensity. A truth counts as far as it is known.
    """
    if batch.truth is None:
        return label_free_loss(patch, batch)
    score, shape = (gauge_free_loss, (1.0, 0.02)) if kind == "complex" else (amplitude_phase_loss, (2.0, 0.01))
    weight = probe_weight(batch.probe, patch.shape[-1], *shape)
    return score(patch, batch.truth, weight if batch.known is None else weight * batch.known)

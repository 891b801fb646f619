"""Random probes of zone plates: what one model for many beamlines is trained on."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import fft, ndimage

from bluesky_ptychonn.optics.simulate import zone_plate_probe

Range = tuple[float, float]
_GRAIN = 0.8  # px of the pupil, which is the detector's: what is finer would lie outside the frame in real space


class ProbeFamily(BaseModel):
    """Ranges that probes are drawn from, evenly.

    Parameters
    ----------
    diameter_fraction : (low, high)
        Diameter of the illuminated ring over the side of the frame.
    pupil_fraction : (low, high)
        Pupil diameter over the side of the frame.
    stop_fraction : (low, high)
        Central stop over pupil diameter.
    astigmatism_rad : (low, high)
        At the pupil's edge.
    aberration_rad : (low, high)
        RMS of a smooth random aberration.
    falloff : (low, high)
        Exponent by which the pupil's amplitude falls from its centre to its edge.
    roughness : (low, high)
        RMS of a fine complex texture over the pupil, relative: flaws of the optics, and the noise of a probe that was
        reconstructed. It puts a speckled halo around the ring.
    frame_sizes : tuple of int
        Sides of frames that batches of a training take in turn, px; empty for the network's own.

    Notes
    -----
    The sign of the defocus is drawn too: of a probe and its conjugate one is before the focus and one behind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    diameter_fraction: Range = (0.25, 0.72)
    pupil_fraction: Range = (0.3, 0.62)
    stop_fraction: Range = (0.0, 0.5)
    astigmatism_rad: Range = (-1.5, 1.5)
    aberration_rad: Range = (0.0, 0.6)
    falloff: Range = (0.0, 1.5)
    roughness: Range = (0.0, 0.0)
    frame_sizes: tuple[Annotated[int, Field(ge=32, le=1024, multiple_of=16)], ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> ProbeFamily:
        for name in set(type(self).model_fields) - {"frame_sizes"}:
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {low} exceeds {high}")
        if self.diameter_fraction[0] <= 0 or self.diameter_fraction[1] > 0.75:
            raise ValueError(f"diameter_fraction {self.diameter_fraction} must be above 0 and at most 0.75")
        if self.pupil_fraction[0] <= 0 or self.pupil_fraction[1] > 1:
            raise ValueError(f"pupil_fraction {self.pupil_fraction} must be above 0 and at most 1")
        if self.roughness[0] < 0 or self.roughness[1] > 1:
            raise ValueError(f"roughness {self.roughness} must be at least 0 and at most 1")
        if self.stop_fraction[0] < 0 or self.stop_fraction[1] >= 1:
            raise ValueError(f"stop_fraction {self.stop_fraction} must be at least 0 and below 1")
        return self

    @classmethod
    def broad(cls) -> ProbeFamily:
        """Give what a model for any zone plate is trained on: larger and smaller rings, with the flaws of real ones."""
        return cls(diameter_fraction=(0.2, 0.72), roughness=(0.0, 0.35), frame_sizes=(64, 96, 128))

    def draw(self, size: int, rng: np.random.Generator) -> NDArray[np.complex64]:
        """Draw a probe (size, size) complex64 of unit total intensity.

        >>> probe = ProbeFamily().draw(64, np.random.default_rng(1))
        >>> probe.shape, round(float((abs(probe) ** 2).sum()), 5)
        ((64, 64), 1.0)
        """
        pupil = rng.uniform(*self.pupil_fraction)
        probe = zone_plate_probe(
            (size, size),
            diameter_px=rng.uniform(*self.diameter_fraction) * size,
            stop_fraction=rng.uniform(*self.stop_fraction),
            pupil_fraction=pupil,
            astigmatism_rad=rng.uniform(*self.astigmatism_rad),
            aberration_rad=rng.uniform(*self.aberration_rad),
            seed=int(rng.integers(2**31)),
        )
        frequency = fft.fftfreq(size) * 2 / pupil  # 1 at the pupil's edge
        r2 = frequency[:, None] ** 2 + frequency[None, :] ** 2
        centred = fft.fft2(fft.ifftshift(probe)) * np.exp(-rng.uniform(*self.falloff) * r2)
        strength = rng.uniform(*self.roughness)
        if strength:
            noise = rng.standard_normal((2, size, size))
            fine = ndimage.gaussian_filter(noise, (0, _GRAIN, _GRAIN), mode="wrap")
            centred = centred * (1 + strength * (fine[0] + 1j * fine[1]) / (fine.std() * 2**0.5))
        wave = fft.fftshift(fft.ifft2(centred))
        if rng.random() < 0.5:
            wave = wave.conj()
        return np.asarray(wave / np.sqrt((np.abs(wave) ** 2).sum()), dtype=np.complex64)

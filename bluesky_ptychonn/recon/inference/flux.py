"""How bright the beam is in a run, from its frames: the probe's scale must fit the frames'."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

#: A tenth of the brightest frames, which see least of the sample, stands for the empty beam.
_QUANTILE = 0.9
#: They see some of it all the same, and a flux told too low costs a network more than one told too high.
_HEADROOM = 1.05
_FRAMES = 256
#: The probe's own flux holds while the brightest frames keep this part of it: samples absorb, beams drift.
_OWN_RANGE = (0.75, 1.1)
#: A frame with less than this part of the usual counts has lost the beam.
LOST = 0.02


class Flux:
    """Photons a frame without sample, for one run.

    A probe that was measured in photons knows its flux, and is left alone while the frames agree with it. Another
    exposure time or attenuator shows as brightest frames outside 0.75 to 1.1 times that; then they, and 5 % more,
    stand for the empty beam. The first 256 usable frames decide, so the scale of a run soon stands still. The
    patch's amplitude goes with its square root; phases bear 10 % and suffer from 20 % (half a demo model's error more).

    `probe_photons` are those in the model's probe, `given` those of a frame without sample, where they are known.
    `settled` holds the flux where it is, for frames that are done again.

    Examples
    --------
    >>> flux = Flux(1e5)
    >>> flux.add(np.full(10, 9e4))
    >>> flux.photons, flux.source
    (100000.0, 'model')
    >>> flux = Flux(1e5)
    >>> flux.add(np.full(10, 4e5))
    >>> flux.photons, round(flux.probe_factor, 2)
    (420000.0, 2.05)
    """

    def __init__(self, probe_photons: float | None, given: float | None = None) -> None:
        if given is not None and not (math.isfinite(given) and given > 0):
            raise ValueError(f"photons: got {given} a frame; a positive number is needed, or leave it out")
        self.probe_photons, self._given = probe_photons, given
        self._seen = np.zeros(0)
        self.settled = False

    def add(self, totals: NDArray[np.floating]) -> None:
        """Take the total counts (n,) of usable frames into account."""
        if len(self._seen) < _FRAMES and not self.settled:
            self._seen = np.concatenate([self._seen, totals])[:_FRAMES]

    @property
    def _brightest(self) -> float | None:
        return float(np.quantile(self._seen, _QUANTILE)) if self._seen.size else None

    @property
    def source(self) -> str:
        """Where the flux comes from: ``given``, ``model``, ``frames`` or ``unknown``."""
        if self._given is not None:
            return "given"
        bright = self._brightest
        if bright is None:
            return "model" if self.probe_photons else "unknown"
        if self.probe_photons and _OWN_RANGE[0] <= bright / self.probe_photons <= _OWN_RANGE[1]:
            return "model"
        return "frames"

    @property
    def photons(self) -> float | None:
        """Photons a frame without sample; None before the first frame when nothing else tells."""
        bright = None if self._brightest is None else _HEADROOM * self._brightest
        return {"given": self._given, "model": self.probe_photons, "frames": bright}.get(self.source)

    @property
    def probe_factor(self) -> float:
        """Factor on the probe's amplitude that brings it to this flux."""
        photons = self.photons
        return math.sqrt(photons / self.probe_photons) if photons and self.probe_photons else 1.0

    @property
    def least(self) -> float:
        """Counts below which a frame has lost the beam."""
        return LOST * float(np.median(self._seen)) if self._seen.size else 0.0

"""Of a probe of several modes the one that is used: modes are not modelled yet, so the others are left out."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

_ALL = 0.9999  # of the light; what is missing beyond it is rounding


@dataclass(frozen=True)
class ProbeMode:
    """The strongest of the orthogonal modes of a partly coherent beam.

    Attributes
    ----------
    wave : (N, M) complex ndarray
        Scale as found.
    light_fraction : float
        Its part of the light of all modes; 1 where nothing is left out by using it alone.
    modes : int
        How many there are.
    """

    wave: NDArray[np.complexfloating]
    light_fraction: float = 1.0
    modes: int = 1

    @property
    def note(self) -> str:
        """Say how much is used; empty where nothing is left out."""
        if self.light_fraction == 1:
            return ""
        return f"strongest of {self.modes} modes, {self.light_fraction:.0%} of the light"


def strongest_mode(modes: NDArray[np.complexfloating], who: str) -> ProbeMode:
    """Take the strongest mode, and warn in the log where it leaves out light of others.

    Frames are the sum over modes of what each makes alone, which no unitary mixing of the modes changes. So modes are
    made orthogonal first, by the eigenvectors of their overlaps (Thibault & Menzel, Nature 494, 68, 2013): those of a
    file need not be, and then the strongest has more light than any of them. Its phase is that of the file's strongest.

    Parameters
    ----------
    modes : (..., N, M) complex ndarray
        All leading axes count modes.
    who : str
        Whose they are, for the log.
    """
    stack = modes.reshape(-1, *modes.shape[-2:])
    flat = stack.reshape(len(stack), -1).astype(np.complex128)
    power = (np.abs(flat) ** 2).sum(axis=1)
    if len(stack) == 1 or not np.isfinite(power).all() or not power.any():
        return ProbeMode(stack[0], modes=len(stack))
    light, mixing = np.linalg.eigh(flat @ flat.conj().T)  # ascending
    chosen = mixing[:, -1].conj()
    first = chosen[power.argmax()]
    turn = first.conj() / abs(first) if abs(first) > 0 else 1.0
    wave = (chosen * turn @ flat).reshape(stack.shape[1:]).astype(modes.dtype)
    fraction = float(light[-1] / power.sum())
    mode = ProbeMode(wave, fraction if fraction < _ALL else 1.0, len(stack))
    if mode.note:
        log.warning("%s: of the probe the %s, is used; modes are not modelled yet", who, mode.note)
    return mode

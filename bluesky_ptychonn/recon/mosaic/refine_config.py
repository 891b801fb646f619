"""How to refine a mosaic; `recon.mosaic.refine` does it. No torch here: sessions and configurations hold this."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Refinement(BaseModel):
    """How to refine. Defaults as measured on the Siemens star, see ``benchmarks/results/star.md``.

    Parameters
    ----------
    sweeps : int
        Over all frames, in each round.
    rounds : int, optional
        Rounds; before every one but the first the network looks again, where it can. By default what the model's card
        says did best on held-out scans, or 1: a second look mends a network that errs much, and mars one that does not.
    batch : int
        Frames that move the object together. Few converge in fewer sweeps, many are faster on a GPU.
    caution : float
        What is added to the probe's summed intensity in the update, over its peak: keeps noise out of dim parts.
    pull : float
        Pull of the object back to where the round began, in the same unit: holds what few photons saw.
    tune_probe : bool
        Whether to tune the probe to the run first, see `recon.mosaic.probe_tuning`: for optics that drift.
    seed : int
        Of the order of the frames.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sweeps: int = Field(default=5, ge=1, le=1000)
    rounds: int | None = Field(default=None, ge=1, le=20)
    batch: int = Field(default=4, ge=1, le=4096)
    caution: float = Field(default=1.0, gt=0, le=100)
    pull: float = Field(default=0.1, ge=0, le=10)
    tune_probe: bool = False
    seed: int = Field(default=0, ge=0)


def asked_for(refine: bool | Refinement) -> Refinement | None:
    """Read what a user gives: False is none, True the defaults."""
    return refine if isinstance(refine, Refinement) else Refinement() if refine else None

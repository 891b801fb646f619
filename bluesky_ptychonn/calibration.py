"""What a frame's score and a run's figures meant on held-out frames whose truth was known; kept in the card."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator


class RunNorm(BaseModel):
    """One figure of a run, on held-out scans of one sample each.

    Parameters
    ----------
    typical : float
        Median of the scans.
    worst : float
        Of the scan that was worst in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    typical: float
    worst: float


class TrustCalibration(BaseModel):
    """Table from a frame's score to the probability that its patch is right, and to the error to expect.

    Trust is the part of held-out frames of the same score whose phase error was below the tolerance. The error is the
    mean absolute phase error under the probe: weighted by the illumination, global phase removed.

    Parameters
    ----------
    tolerance_rad : float
        Below it a frame counts as right, rad.
    quantile : float
        Part of the held-out frames of a score whose error is below `error_rad`.
    score : tuple of float
        Knots, ascending; between them linear, beyond them constant. See
        `bluesky_ptychonn.recon.quality.trust.frame_score`.
    right : tuple of float
        Probability at each knot, never rising.
    error_rad : tuple of float
        Quantile of the error at each knot, rad, never falling.
    frames : int
        Held-out frames.
    rank_correlation : float
        Spearman's, of score and error, over these frames.
    trained_trust : float
        Mean trust of the undisturbed half of these frames, which are as the model was trained on.
    runs : dict of str to RunNorm
        Figures of a run, see `bluesky_ptychonn.recon.quality.run_statistics`.

    Examples
    --------
    >>> table = TrustCalibration(
    ...     score=(0.1, 0.2),
    ...     right=(0.9, 0.1),
    ...     error_rad=(0.08, 0.3),
    ...     frames=512,
    ...     rank_correlation=0.8,
    ...     trained_trust=0.7,
    ... )
    >>> table.trust([0.05, 0.15, 0.5]).astype(float).round(2).tolist()
    [0.9, 0.5, 0.1]
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tolerance_rad: float = Field(default=0.1, gt=0, le=math.pi)
    quantile: float = Field(default=0.9, gt=0, lt=1)
    score: tuple[float, ...] = Field(min_length=2)
    right: tuple[float, ...]
    error_rad: tuple[float, ...]
    frames: int = Field(ge=1)
    rank_correlation: float = Field(ge=-1, le=1)
    trained_trust: float = Field(ge=0, le=1)
    runs: dict[str, RunNorm] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _monotone(self) -> TrustCalibration:
        if not len(self.score) == len(self.right) == len(self.error_rad):
            raise ValueError(
                f"trust: {len(self.score)} scores, {len(self.right)} probabilities and {len(self.error_rad)} errors; "
                "one of each for every knot"
            )
        if any(b <= a for a, b in itertools.pairwise(self.score)):
            raise ValueError(f"trust: scores must ascend, got {self.score}")
        if any(b > a for a, b in itertools.pairwise(self.right)) or not 0 <= self.right[-1] <= self.right[0] <= 1:
            raise ValueError(f"trust: probabilities must lie in 0 to 1 and never rise, got {self.right}")
        if any(b < a for a, b in itertools.pairwise(self.error_rad)) or self.error_rad[0] < 0:
            raise ValueError(f"trust: errors must be 0 rad or more and never fall, got {self.error_rad}")
        return self

    def trust(self, score: ArrayLike) -> NDArray[np.float32]:
        """Probability (n,) that frames of these scores (n,) are right; 0 where the score is not finite."""
        found = np.interp(np.nan_to_num(np.asarray(score), nan=np.inf), self.score, self.right)
        return np.asarray(np.where(np.isfinite(score), found, 0), dtype=np.float32)

    def error(self, score: ArrayLike) -> NDArray[np.float32]:
        """Error (n,) in rad that `quantile` of the held-out frames of these scores (n,) stayed below."""
        return np.asarray(np.interp(np.asarray(score), self.score, self.error_rad), dtype=np.float32)

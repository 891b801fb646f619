"""Learn on from finished runs: take what is worth it, propose a candidate, judge it, keep or crown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from bluesky_ptychonn.recon.checkpoint import Model
from bluesky_ptychonn.recon.labelled import MeasuredScan
from bluesky_ptychonn.recon.learning_config import LearningConfig
from bluesky_ptychonn.recon.probe_tuning import TunedProbe


def never() -> bool:
    """Do not stop."""
    return False


@dataclass(frozen=True)
class Considered:
    """What became of a run.

    Attributes
    ----------
    taken : bool
        Whether it is learned from.
    reason : str
        Why, or why not, in words with numbers.
    source : str
        The run.
    frames, held_out : int
        Frames to learn from, and frames to judge by.
    probe : TunedProbe or None
        What the run's frames say about the probe; None where the run did not get that far.
    numbers : dict
        JSON values: what the gate measured.
    """

    taken: bool
    reason: str
    source: str
    frames: int
    held_out: int
    probe: TunedProbe | None
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A model that may become champion.

    Attributes
    ----------
    model : Model
        As loaded from `folder`; its probe is the one the newest run tuned.
    folder : Path
        ``card.json`` and ``model.safetensors``; gone when the next candidate is made.
    record : dict
        JSON values: ``round``, ``runs`` it learned from, ``started_from``, ``frames``, ``seconds``, ``probe``.
    """

    model: Model
    folder: Path
    record: dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """Whether a candidate is promoted.

    Attributes
    ----------
    promote : bool
    reason : str
        In words with numbers.
    numbers : dict
        JSON values: errors of champion and candidate on the newest held-out scan and on each older one, rad, what was
        asked of them, frames, seconds.
    """

    promote: bool
    reason: str
    numbers: dict[str, Any]


class Learner:
    """Learns from one run after another; all it knows lies in a folder, so it may be killed at any time.

    A round: `consider` each finished run, then `propose` a candidate, `judge` it, and `crown` it where the judgement
    says so (or do nothing, which keeps the champion). A run considered twice is answered from memory. The same runs in
    the same order give the same decisions.

    Parameters
    ----------
    folder : Path
        Its state; one learner's alone. Made when it does not exist.
    champion : Model
        With a probe, in use now. Another one than at the last time (somebody promoted or rolled back) is taken as it
        is: an open round is given up, what was learned from stays.
    config : LearningConfig, optional
    device : torch.device or str

    Raises
    ------
    ValueError
        For a model without a probe, or one this folder's runs do not fit.
    """

    def __init__(
        self,
        folder: Path,
        champion: Model,
        config: LearningConfig | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        raise NotImplementedError

    @property
    def champion(self) -> Model:
        """The model in use."""
        raise NotImplementedError

    @property
    def pending(self) -> tuple[str, ...]:
        """Runs taken since the last judgement: with none there is nothing to propose."""
        raise NotImplementedError

    def consider(self, scan: MeasuredScan, *, trust: ArrayLike, verdict_reasons: Sequence[str] = ()) -> Considered:
        """Take a finished run to learn from, or say why not.

        Parameters
        ----------
        scan : MeasuredScan
            All usable frames of the run; its `probe` is the one it was reconstructed with.
        trust : (n,) float
            Of each frame, 0 to 1.
        verdict_reasons : sequence of str
            Of the run's verdict, see `bluesky_ptychonn.recon.verdict`.

        Raises
        ------
        ValueError
            When shapes disagree, or the frames are not this model's.
        """
        raise NotImplementedError

    def propose(self, stop: Callable[[], bool] = never) -> Candidate | None:
        """Train a candidate; a round that was stopped or killed goes on where it was.

        Parameters
        ----------
        stop : callable
            Asked after every step; True ends the call with what was done saved.

        Returns
        -------
        Candidate or None
            None when stopped, or when no run was taken since the last judgement.
        """
        raise NotImplementedError

    def judge(self, candidate: Candidate) -> Judgement:
        """Compare a candidate with the champion on held-out scans, old and new, and end the round."""
        raise NotImplementedError

    def crown(self, model: Model) -> None:
        """Take a model as champion, after a promotion or a rollback."""
        raise NotImplementedError

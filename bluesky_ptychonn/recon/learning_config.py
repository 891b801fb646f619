"""How a learner learns; what does it is `recon.learning`. No torch here: configurations hold this."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LearningConfig(BaseModel):
    """What a learner may take, how it trains, and what a candidate has to show. Defaults as in ``benchmarks/learning.py``.

    Parameters
    ----------
    frames : int
        Frames of a round of training, simulated and measured together.
    batch_size : int
        Frames a step.
    learning_rate : float
        Peak of a round's schedule.
    mix : float
        Part of a round's frames that are measured ones from the buffer, 0 to 1; the others are simulated.
    probes : int
        The most recently tuned probes that a round simulates through.
    rehearsal : float
        Part of the simulated frames that go through probes of before those, the first one among them, 0 to 1: what is
        not rehearsed is forgotten.
    gain : float
        Part of the champion's error on the newest held-out scan that a candidate has to take away, 0 to 1.
    margin_rad : float
        Most that a candidate may lose on any older held-out scan, phase error, rad.
    fewest_frames : int
        Frames that a run must have left after the gate.
    least_trust : float
        Frames trusted less are not learned from, 0 to 1.
    most_tuning_rad : float
        A probe that would have to move further than this from the champion's in one run, RMS over the pupil, rad, is
        not believed.
    buffer_bytes : int
        Most that frames to learn from may take on disk, bytes.
    held_out_bytes : int
        Most that frames to judge by may take on disk, bytes.
    save_every_s : float
        Seconds between checkpoints of a round; what a kill can cost.
    seed : int
        Of everything random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int = Field(default=2048, ge=16, le=10**8)
    batch_size: int = Field(default=16, ge=1, le=4096)
    learning_rate: float = Field(default=5e-4, gt=0, le=0.1)
    mix: float = Field(default=0.25, ge=0, le=1)
    probes: int = Field(default=3, ge=1, le=1000)
    rehearsal: float = Field(default=0.3, ge=0, lt=1)
    gain: float = Field(default=0.03, ge=0, lt=1)
    margin_rad: float = Field(default=0.01, ge=0, le=1)
    fewest_frames: int = Field(default=24, ge=8, le=10**6)
    least_trust: float = Field(default=0.05, ge=0, lt=1)
    most_tuning_rad: float = Field(default=1.5, gt=0, le=10)
    buffer_bytes: int = Field(default=64 * 2**20, ge=2**16)
    held_out_bytes: int = Field(default=64 * 2**20, ge=2**16)
    save_every_s: float = Field(default=10.0, gt=0)
    seed: int = Field(default=0, ge=0)

"""How a learner learns; what does it is `recon.learning.learner`. No torch here: configurations hold this."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LearningConfig(BaseModel):
    """What a learner may take, how it trains, and what a candidate has to show.

    Parameters
    ----------
    runs_a_round : int
        Runs that have to be taken before a candidate is proposed.
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
        Part of the simulated frames that go through other probes: of older runs in the buffer, and the champion's own,
        0 to 1. What is not rehearsed is forgotten.
    gain : float
        Part of the champion's error on the newest held-out scan that a candidate has to take away, 0 to 1.
    margin_rad : float
        Most that a candidate may lose on any older held-out scan, phase error, rad: against the champion, and against
        the best champion there ever was for that scan, so that small losses do not add up.
    old_scans : int
        Older held-out scans that a candidate is judged on, spread over all of them, the first among them.
    simulated_frames : int
        Simulated held-out frames through each of their probes that it is judged on besides.
    least_foreseen : float
        Part of what the sample does to frames left out that a label has to foresee, below 1; see
        `bluesky_ptychonn.recon.learning.pseudo_label`.
    fewest_frames : int
        Frames that a run must have left after the gate.
    least_trust : float
        Frames that their label explains less well than this are not learned from, 0 to 1; nor is a frame that the run's
        reconstruction gave no trust at all.
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

    runs_a_round: int = Field(default=2, ge=1, le=1000)
    frames: int = Field(default=3072, ge=16, le=10**8)
    batch_size: int = Field(default=16, ge=1, le=4096)
    learning_rate: float = Field(default=5e-4, gt=0, le=0.1)
    mix: float = Field(default=0.25, ge=0, le=1)
    probes: int = Field(default=3, ge=1, le=1000)
    rehearsal: float = Field(default=0.45, ge=0, lt=1)
    gain: float = Field(default=0.02, ge=0, lt=1)
    margin_rad: float = Field(default=0.015, ge=0, le=1)
    old_scans: int = Field(default=6, ge=1, le=1000)
    simulated_frames: int = Field(default=64, ge=16, le=10**5)
    least_foreseen: float = Field(default=0.75, ge=0, lt=1)
    fewest_frames: int = Field(default=24, ge=8, le=10**6)
    least_trust: float = Field(default=0.05, ge=0, lt=1)
    most_tuning_rad: float = Field(default=1.5, gt=0, le=10)
    buffer_bytes: int = Field(default=64 * 2**20, ge=2**16)
    held_out_bytes: int = Field(default=64 * 2**20, ge=2**16)
    save_every_s: float = Field(default=5.0, gt=0)
    seed: int = Field(default=0, ge=0)

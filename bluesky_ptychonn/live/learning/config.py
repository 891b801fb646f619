"""What a learner beside a beamline may use, and how it watches; what it learns is `recon.learning.config`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bluesky_ptychonn.processors import device_name
from bluesky_ptychonn.recon.learning.config import LearningConfig


class LearnerConfig(BaseModel):
    """A learner's share of the machine.

    Parameters
    ----------
    share : float
        Part of the time that it computes, at most, 0 to 1: after every step it rests for as long as it takes.
    nice : int
        Priority that its process gives up, 0 to 19; with 19 it stands still while others want the processors.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    memory_bytes : int
        Most main memory; a run that would need more is passed over.
    gpu_memory : float
        Part of a CUDA device's memory, at most, 0 to 1.
    free_disk_bytes : int
        It pauses while its folder's file system has less left than this.
    poll_s : float
        Between looks into the catalog, one request each, s.
    settle_s : float
        How long after a run's end its reconstruction is waited for, s.
    longest_run_s : float
        A run without a stop document counts as under way for so long after its start, s; then its RunEngine has died.
    round : LearningConfig
        What it takes, how it trains, and what a candidate has to show; its disk is bounded there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(default=0.25, gt=0, le=1)
    nice: int = Field(default=19, ge=0, le=19)
    device: Annotated[str, AfterValidator(device_name)] = "auto"
    memory_bytes: int = Field(default=4 * 2**30, ge=2**28)
    gpu_memory: float = Field(default=0.25, gt=0, le=1)
    free_disk_bytes: int = Field(default=2 * 2**30, ge=0)
    poll_s: float = Field(default=15.0, gt=0)
    settle_s: float = Field(default=120.0, ge=0)
    longest_run_s: float = Field(default=12 * 3600.0, gt=0)
    round: LearningConfig = LearningConfig()

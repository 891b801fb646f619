"""A device to compute on: which there is, what is wrong when it fails, and whether it is lost for good."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from bluesky_ptychonn.processors import free_processors

#: Memory ran out, which smaller batches mend; or the device is gone, which only another process mends.
Fault = Literal["memory", "lost"]

_MEMORY_WORDS = (
    *("out of memory", "not enough memory", "allocate memory", "bad_alloc", "alloc_failed"),
    "valid cudnn algorithm",  # each needs a workspace that is not to be had
)
_LOST_WORDS = (
    *("cuda error", "hip error", "device-side assert", "device lost"),
    # Of libraries only what a kernel that failed gives: that something is not supported is a mistake in the work.
    *("status_execution", "status_internal_error", "status_mapping_error", "cufft_exec_failed"),
)

_lost: dict[str, str] = {}  # kind of device -> why: after an error on it, CUDA is closed to the whole process


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Device by name; ``auto`` is the first CUDA device, or else the CPU.

    ValueError for a name torch does not know, or a device this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and "cuda" not in _lost else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is unknown; allowed: auto, cpu, cuda, cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here; "
            "use auto or cpu, or install a CUDA build of torch"
        )
    return chosen


@dataclass(frozen=True)
class Device:
    """A device, and what its errors mean."""

    where: torch.device
    kind: str  # cpu, cuda, …; on all but cpu work that fails can be done elsewhere
    name: str  # what its maker calls it

    @classmethod
    def from_name(cls, device: str | torch.device | Device) -> Device:
        """Device by name, see `choose_device`; one that was lost to this process may be named all the same."""
        if isinstance(device, Device):
            return device
        chosen = choose_device(device)
        if chosen.type == "cpu":
            return cls(chosen, "cpu", cpu_name())
        try:
            name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else str(chosen)
        except RuntimeError:  # it is named to people only, and may be lost already
            name = str(chosen)
        return cls(chosen, chosen.type, name)

    def __str__(self) -> str:
        """Name for people, with the number torch gives it."""
        return "the CPU" if self.kind == "cpu" else f"{self.where} ({self.name})"

    @property
    def lost(self) -> str:
        """Why this process can use it no more; empty while it can."""
        return _lost.get(self.kind, "")

    def note_lost(self, reason: str) -> None:
        """Use no device of this kind again in this process: its memory there cannot be trusted, or reached."""
        _lost.setdefault(self.kind, reason)

    def fault(self, error: Exception) -> Fault | None:
        """Tell what an error says of the device; None for a mistake in the work itself."""
        message = str(error).lower()
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in message for word in _MEMORY_WORDS):
            return "memory"
        if self.kind == "cpu" or not isinstance(error, RuntimeError):
            return None
        lost = isinstance(error, torch.AcceleratorError) or any(word in message for word in _LOST_WORDS)
        return "lost" if lost or not self.answers() else None

    def answers(self) -> bool:
        """Whether it still adds two numbers."""
        try:
            return float(torch.ones(1, device=self.where).add(1).cpu()) == 2.0
        except RuntimeError:
            return False

    def release_memory(self) -> None:
        """Return memory that torch keeps for later; what cannot be returned is left."""
        if self.where.type == "cuda":
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads on the CPU, or as many as processors are free; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or min(before, free_processors()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def exact_convolutions(device: torch.device, *, tf32: bool = False) -> contextlib.AbstractContextManager[None]:
    """Let convolutions on CUDA be the same each time, and in single precision unless TF32 is asked for.

    Torch allows them TF32 by default, of which ten bits are left.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, deterministic=True, allow_tf32=tf32
    )
    return flags


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """Name of the processor, as its maker calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "CPU"

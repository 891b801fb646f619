"""The network on a device: batches that fit its memory, a precision, and on CUDA one recorded pass."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypedDict, get_args

import torch
from torch import Tensor, nn

from bluesky_ptychonn.recon.device import Device, exact_convolutions
from bluesky_ptychonn.recon.inference.precision import Precision
from bluesky_ptychonn.recon.inference.recorded_pass import RecordedPass
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.quality.trust import movement

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


_CPU_BATCH = 8  # 2.3 ms a frame, 16: 2.2, 32: 2.8; one frame alone 18 ms instead of 7


class ForwardOptions(TypedDict, total=False):
    """Keywords of `ForwardSettings`."""

    batch_size: int
    precision: Precision
    cuda_graph: bool


@dataclass(frozen=True)
class ForwardSettings:
    """How the network is run.

    Parameters
    ----------
    batch_size : int
        Frames a pass, 1 to 4096; at most 8 on a CPU, where larger ones are no faster. Every pass has as many: a shorter
        batch is filled up with empty frames, so that a frame's patch does not depend on the frames it came with.
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Of the convolutions; the physics stays in single precision. ``tf32`` and ``fp16`` need CUDA.
    cuda_graph : bool
        Replay one recorded pass on CUDA instead of launching some 100 kernels; without effect elsewhere.

    Raises
    ------
    ValueError
        For a setting out of range.
    """

    batch_size: int = 16
    precision: Precision = "fp32"
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= 4096:
            raise ValueError(f"batch_size {self.batch_size} frames must be in 1 to 4096")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision {self.precision!r} is unknown; allowed: {', '.join(get_args(Precision))}")


def filled_up(counts: Tensor, size: int) -> Tensor:
    """Fill frames (n, N, N) up with empty ones to (size, N, N)."""
    missing = size - len(counts)
    return torch.cat([counts, counts.new_zeros(missing, *counts.shape[1:])]) if missing > 0 else counts


class BatchedForward:
    """The network on a device, a batch at a time; ValueError for a precision that the device has not."""

    def __init__(self, network: nn.Module, device: Device, settings: ForwardSettings) -> None:
        if settings.precision in ("tf32", "fp16") and device.where.type != "cuda":
            raise ValueError(
                f"precision {settings.precision} needs a CUDA device, the device is {device.where}; use fp32 or bf16"
            )
        self.network = network.eval()
        self._device = device
        self.batch_size = min(settings.batch_size, _CPU_BATCH) if device.kind == "cpu" else settings.batch_size
        self.precision = settings.precision
        self._graphs = settings.cuda_graph and device.where.type == "cuda"
        self._recorded: RecordedPass | None = None
        self.graph_state = "on, not recorded yet" if self._graphs else "off"

    @torch.inference_mode()
    def __call__(self, counts: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        """Patches (m, h, w) complex64 of the first m <= n of counts (n, N, N), n being `batch_size`.

        m is less when memory ran out; batches are smaller from then on. And how far the last stage moved each, (m,)
        float32 rad, see `recon.quality.trust.movement`.
        """
        while True:
            batch = counts[: self.batch_size]
            try:
                return self._forward(batch, probe)
            except (RuntimeError, MemoryError) as error:
                if self.batch_size == 1 or self._device.fault(error) != "memory":
                    raise
                self.batch_size = max(1, min(self.batch_size, len(batch)) // 2)
            # Behind the handler: until there the failed pass's tensors are held by its traceback.
            self._recorded = None
            self._device.release_memory()
            message = f"memory ran out on {self._device}: batches of {self.batch_size} frames now"
            warnings.warn(message, stacklevel=5)

    def _forward(self, batch: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        if not self._graphs:
            return self._eager(batch, probe)
        if self._recorded is None and not self._record(batch, probe):
            return self._eager(batch, probe)
        assert self._recorded is not None  # noqa: S101  _record says so
        return self._recorded(batch, probe)

    def _record(self, batch: Tensor, probe: Tensor | None) -> bool:
        """Record one pass; on a network that cannot be recorded, or replayed, say so and go on without."""
        try:
            self._recorded = RecordedPass(self._eager, batch, probe, self._device.where)
        except RuntimeError as error:
            if self._device.fault(error) == "memory":
                raise
            self._graphs, self.graph_state = False, f"off: {error}"[:200]
            warnings.warn(f"CUDA graph not recorded, going on without: {error}", stacklevel=6)
            return False
        self.graph_state = "on"
        return True

    @torch.inference_mode()
    def eager(self, batch: Tensor, probe: Tensor | None) -> Tensor:
        """Patches (n, h, w) of a batch, without a recording; memory that runs out is the caller's."""
        return self._eager(batch, probe)[0]

    def _eager(self, batch: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        network, half, kind = self.network, self.precision in _DTYPES, self._device.where.type
        # Cached casts would not outlive the recording of a CUDA graph.
        with (
            exact_convolutions(self._device.where, tf32=self.precision == "tf32"),
            torch.autocast(kind, _DTYPES.get(self.precision), enabled=half, cache_enabled=False),
        ):
            stages = network.stages(batch, probe) if isinstance(network, ObjectNetwork) else [network(batch, probe)]
        out = stages[-1].to(torch.complex64)
        if len(stages) < 2 or probe is None:
            return out, torch.zeros(len(out), device=out.device)
        return out, movement(stages[-2].to(torch.complex64), out, probe)

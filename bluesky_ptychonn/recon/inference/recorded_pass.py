"""One pass recorded on CUDA, and replayed for every batch: launches a hundred kernels at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Pass = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
_WARM_UPS = 3  # plans and workspaces must exist before recording
#: Largest difference of a replay from the same pass unrecorded, relative to the largest value: kernels may be others.
_AGREES = 1e-2


class RecordedPass:
    """A pass on batches of one shape, recorded on a device's own stream and tried before it is used.

    Parameters
    ----------
    run : callable
        Counts (n, N, N) and probe to patches (n, h, w) and (n,).
    counts, probe : Tensor, Tensor or None
        Of the shapes to be served.
    device : torch.device
        Where, with its number: CUDA records on the device that is current, which need not be this one.
    cuda : module
        `torch.cuda`, or what stands in for it.

    Raises
    ------
    RuntimeError
        When it cannot be recorded, or a replay on another input does not give what the pass itself gives.
    """

    def __init__(
        self, run: Pass, counts: Tensor, probe: Tensor | None, device: torch.device, cuda: Any = torch.cuda
    ) -> None:
        self._cuda, self._device = cuda, device
        self._counts, self._probe = counts.clone(), None if probe is None else probe.clone()
        with cuda.device(device):
            stream = cuda.Stream(device)
            stream.wait_stream(cuda.current_stream(device))
            with cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run(self._counts, self._probe)
            cuda.current_stream(device).wait_stream(stream)
            self._graph = cuda.CUDAGraph()
            with cuda.graph(self._graph, stream=stream):
                self._out = run(self._counts, self._probe)
        self._check(run, counts, probe)

    def _check(self, run: Pass, counts: Tensor, probe: Tensor | None) -> None:
        """Refuse a recording that does not follow its input: an empty one gives the first batch for ever."""
        ramp = torch.linspace(0, 1, counts.shape[-1], device=counts.device)
        other = (counts.roll(1, 0) + counts.mean() + 1) * (1 + ramp)
        expected, found = run(other, probe)[0], self(other, probe)[0]
        apart = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not apart <= _AGREES:
            raise RuntimeError(f"a replay on other frames differs by {apart:.2g} of the largest value")

    def __call__(self, counts: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        """Replay on a batch of the recorded shape."""
        self._counts.copy_(counts)
        if self._probe is not None and probe is not None:
            self._probe.copy_(probe)
        with self._cuda.device(self._device):
            self._graph.replay()
        return self._out[0].clone(), self._out[1].clone()  # the next replay writes over them

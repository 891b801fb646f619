"""Several processes that train one network: each takes its own batches, and gradients are averaged between them.

`torchrun` tells every process its place by ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE``; without these a training is
alone. All start from equal weights and make equal steps, so their weights stay equal to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class ProcessGroup:
    """Who trains together."""

    rank: int  # of this process
    size: int  # processes in all
    device: torch.device  # where this one works

    @property
    def is_main(self) -> bool:
        """Whether this process writes, reports and judges."""
        return self.rank == 0

    def average(self, network: nn.Module) -> None:
        """Average gradients, and what batch normalisation keeps, over the processes; nothing to do alone."""
        if self.size == 1:
            return
        shared = [p.grad for p in network.parameters() if p.grad is not None]
        shared += [b for b in network.buffers() if b.is_floating_point()]
        flat = torch.cat([tensor.reshape(-1) for tensor in shared])
        distributed.all_reduce(flat)
        flat /= self.size
        first = 0
        for tensor in shared:
            tensor.copy_(flat[first : first + tensor.numel()].reshape(tensor.shape))
            first += tensor.numel()

    def broadcast_weights(self, network: nn.Module) -> None:
        """Give every process the main one's weights."""
        for tensor in network.state_dict().values() if self.size > 1 else ():
            distributed.broadcast(tensor, src=0)

    def broadcast(self, value: bool) -> bool:
        """Return the main process's value."""
        if self.size == 1:
            return value
        shared: Tensor = torch.tensor([int(value)], device=self.device)
        distributed.broadcast(shared, src=0)
        return bool(shared.item())


def rank_here() -> int:
    """Place of this process among those `torchrun` started; 0 without it."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def process_group(device: torch.device | str) -> Iterator[ProcessGroup]:
    """Join the processes that `torchrun` started, over NCCL on CUDA devices and Gloo elsewhere.

    Who trains more than once in a process joins around all of it: a second meeting at the same address is a race.
    A CUDA device without a number becomes that of this process's place on its machine.
    """
    chosen, size, rank = torch.device(device), int(os.environ.get("WORLD_SIZE", "1")), rank_here()
    if size <= 1:
        yield ProcessGroup(0, 1, chosen)
        return
    if chosen.type == "cuda":
        if str(chosen) == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    started_here = not distributed.is_initialized()
    if started_here:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield ProcessGroup(rank, size, chosen)
    finally:
        if started_here:
            distributed.destroy_process_group()

"""A model on a device, and on the CPU once that fails: nothing that a run needs lies on the device alone."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_ptychonn.recon.device import Device, Fault
from bluesky_ptychonn.recon.inference.forward_pass import BatchedForward, ForwardSettings
from bluesky_ptychonn.recon.inference.precision_check import check_precision
from bluesky_ptychonn.recon.inference.preprocess import Preprocess, PreprocessConfig
from bluesky_ptychonn.recon.models.checkpoint import Model


class Placement:
    """Network, probe and preprocessing on one device, made anew on the CPU where the device fails.

    The model stays where it is; a copy is kept on the CPU, where the precision is single whatever was asked for another
    device, and no graph is recorded. `device` is where `passes`, `preprocess` and `probe`, (N, N) complex64 or None,
    are now; `events` tell what befell it, each move once; `precision_check` what a lower precision costs there, None in
    single precision. Raises ValueError, in words, for a setting out of range, a precision that costs too much, and a
    model whose own device is lost.
    """

    def __init__(
        self,
        model: Model,
        config: PreprocessConfig,
        mask: NDArray[np.bool_] | None,
        device: Device,
        settings: ForwardSettings,
    ) -> None:
        self.events: list[str] = []
        self._cpu = Device.from_name("cpu")
        try:
            self._model = model.on_cpu()
        except RuntimeError as error:
            raise ValueError(
                f"model {model.card.name!r} cannot be copied to the CPU: {error}. Where its device was lost, "
                "load it again in a new process"
            ) from None
        self._config, self._mask = config, mask
        self.masked_pixels = 0 if mask is None else int(np.count_nonzero(mask))  # beside the configuration's
        self._settings, self._wanted = settings, device
        self._why = ""  # not on the device that is wanted
        self._abandoned: object = None  # never released: to free what lies on a lost device may end the process
        if not self._to_wanted():
            self._put(self._cpu)

    def leave(self, fault: Fault, error: str) -> bool:
        """Go to the CPU for a fault of the device, in its own words; False when things are there already."""
        if self.device.kind == "cpu":
            return False
        if fault == "lost":
            self._abandoned = (self.passes, self.preprocess, self.probe)
        self._note(self.device, fault, error)
        self._put(self._cpu)
        return True

    def check(self) -> None:
        """Leave a device that this process lost elsewhere."""
        if self.device.lost:
            self.leave("lost", self.device.lost)

    def renew(self) -> str:
        """Try a device again that had no memory, for another run; returns why it is not used, or an empty string."""
        self.check()
        if self.device != self._wanted and not self._wanted.lost and self._to_wanted():
            self.events.append(f"{self._wanted} is used again")
        return self._why

    def _to_wanted(self) -> bool:
        if self._wanted.lost:
            self._note(self._wanted, "lost", self._wanted.lost)
            return False
        try:
            self._put(self._wanted)
        except (RuntimeError, MemoryError) as error:
            fault = self._wanted.fault(error)
            if fault is None or self._wanted.kind == "cpu":
                raise
            self._note(self._wanted, fault, str(error))
            return False
        self._why = ""
        return True

    def _put(self, device: Device) -> None:
        network, probe = self._model.network, self._model.probe
        # The model's own network serves on the CPU, and stays there: it is what is left when a device is lost.
        moved = network if device.kind == "cpu" else copy.deepcopy(network).to(device.where)
        # Half precision is slower on a CPU, and fp16 not to be had.
        fallen = device.kind != self._wanted.kind
        settings = replace(self._settings, precision="fp32") if fallen else self._settings
        # Nothing is assigned before all of it is there.
        probe = None if probe is None else probe.to(device.where, torch.complex64)
        preprocess = Preprocess(self._config, mask=self._mask, device=device.where)
        passes = BatchedForward(moved, device, settings)
        check = None
        if settings.precision != "fp32":
            single = BatchedForward(moved, device, replace(settings, precision="fp32"))
            check = check_precision(
                settings.precision, self._model.card, probe, passes.batch_size, passes.eager, single.eager
            )
        self.passes, self.precision_check = passes, check
        self.device, self.preprocess, self.probe = device, preprocess, probe

    def _note(self, device: Device, fault: Fault, error: str) -> None:
        first = (error.strip() or "no words").splitlines()[0][:200]
        if fault == "lost":
            device.note_lost(first)
            self._why = f"{device} was lost ({first}): CPU"
        else:
            device.release_memory()
            self._why = f"memory ran out on {device} ({first}): CPU"
        self.events.append(self._why)
        warnings.warn(self._why, stacklevel=3)

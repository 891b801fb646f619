"""A device that fails costs no frame: smaller batches, then the CPU, and what happened is said.

A pretended graphics processor stands in for a real one: tensors stay where they are, the copy of the network that was
made for it fails as CUDA does, and the model's own network, which is what is left, does not.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.recon import device as devices
from bluesky_ptychonn.recon.device import Device
from bluesky_ptychonn.recon.inference import reconstructor as engine
from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
from bluesky_ptychonn.recon.models.checkpoint import Model, choose_device
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic
from bluesky_ptychonn.recon.networks.families import build_network
from tests.recon.inference.test_reconstructor import LIFTED, PHOTONS, PROBE, Echo, echo, frames_of, make_card

GPU = Device(torch.device("cpu"), "cuda", "Pretended")
ASSERTION = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"
ECC = "CUDA error: uncorrectable ECC error encountered"
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"
Fault = Callable[[int], Exception | None]


@pytest.fixture(autouse=True)
def nothing_lost(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    lost: dict[str, str] = {}
    monkeypatch.setattr(devices, "_lost", lost)
    return lost


class Failing(torch.nn.Module):
    """A network whose copies for a device fail as `fault` says of the pass's number and size."""

    def __init__(self, inner: torch.nn.Module, fault: Callable[[int, int], Exception | None]) -> None:
        super().__init__()
        self.inner, self.fault, self.on_device, self.passes = inner, fault, False, 0

    def __deepcopy__(self, memo: Any) -> Failing:
        copied = Failing(self.inner, self.fault)
        copied.on_device = True
        return copied.eval()

    def forward(self, counts: torch.Tensor, probe: torch.Tensor | None = None) -> Any:
        self.passes += 1
        error = self.fault(self.passes, len(counts)) if self.on_device else None
        if error is not None:
            raise error
        return self.inner(counts, probe)


def lost_at(number: int, error: type[Exception] = torch.AcceleratorError, words: str = ASSERTION) -> Any:
    """From pass `number` on every one fails: an error on a device is the end of it."""
    return lambda passes, frames: error(words) if passes >= number else None


def lifted() -> tuple[torch.nn.Module, ModelCard, torch.Tensor]:
    torch.manual_seed(0)
    return build_network(LIFTED).eval(), make_card(), torch.from_numpy(PROBE)


@pytest.mark.parametrize(
    ("error", "words"),
    [(torch.AcceleratorError, ASSERTION), (RuntimeError, ECC), (RuntimeError, "cuDNN error: CUDNN_STATUS_EXECUTION")],
)
def test_a_device_lost_in_the_midst_costs_no_frame_and_is_said(error: type[Exception], words: str) -> None:
    network, card, probe = lifted()
    frames = frames_of(30)
    expected = Reconstructor(Model(card, network, probe), device="cpu", batch_size=4).reconstruct(frames)
    failing = Model(card, Failing(network, lost_at(4, error, words)), probe)
    reconstructor = Reconstructor(failing, device=GPU, batch_size=4)
    first = reconstructor.reconstruct(frames[:8])
    assert (reconstructor.device_name, reconstructor.device_events) == ("Pretended", [])
    with pytest.warns(UserWarning, match=r"cpu \(Pretended\) was lost \(.*\): CPU") as said:
        rest = reconstructor.reconstruct(frames[8:])
    assert len(said) == 1
    made = np.concatenate([first.patches, rest.patches])
    assert np.allclose(made, expected.patches, atol=1e-5)
    assert np.allclose(np.concatenate([first.trust, rest.trust]), expected.trust, atol=1e-5)
    told = json.loads(json.dumps(reconstructor.describe()))
    assert told["device_events"] == [f"cpu (Pretended) was lost ({words.splitlines()[0]}): CPU from frame 9 on"]
    assert told["device_name"] == devices.cpu_name()
    assert reconstructor.figures().frames == 30  # the block that was done twice counts once
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert reconstructor.reconstruct(frames).valid.all()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", None),
        ("cuDNN error: CUDNN_STATUS_BAD_PARAM", None),
        ("expected a cudnn tensor", None),
        ("Unable to find a valid cuDNN algorithm to run convolution", "memory"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "memory"),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "lost"),
        ("CUBLAS error: CUBLAS_STATUS_INTERNAL_ERROR", "lost"),
        (ECC, "lost"),
    ],
)
def test_only_what_a_failed_kernel_says_means_a_lost_device(words: str, fault: str | None) -> None:
    assert GPU.fault(RuntimeError(words)) == fault


def test_a_lost_device_is_lost_to_every_run_and_model_of_the_process() -> None:
    network, card, probe = lifted()
    model = Model(card, Failing(network, lost_at(3)), probe)
    other = Reconstructor(Model(card, network, probe), device=GPU)
    running = Reconstructor(model, device=GPU, batch_size=4)
    beside = running.for_run()
    running.reconstruct(frames_of(8))
    beside_first = beside.reconstruct(frames_of(0))
    assert len(beside_first) == 0
    with pytest.warns(UserWarning, match="was lost"):
        running.reconstruct(frames_of(4))
    assert beside.reconstruct(frames_of(4)).valid.all()
    assert beside.device_events == [f"cpu (Pretended) was lost ({ASSERTION.splitlines()[0]}): CPU from frame 1 on"]
    assert running.for_run().device_events == [f"cpu (Pretended) was lost ({ASSERTION.splitlines()[0]}): CPU"]
    with pytest.warns(UserWarning, match="was lost"):
        assert other.reconstruct(frames_of(4)).valid.all()
    assert other.device_name == devices.cpu_name()
    with pytest.warns(UserWarning, match="was lost"):
        assert Reconstructor(model, device=GPU).device_name == devices.cpu_name()


def test_auto_takes_no_lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    GPU.note_lost(ECC)
    assert choose_device("auto").type == "cpu"


def test_memory_that_does_not_hold_one_frame_sends_a_run_to_the_cpu_and_the_next_tries_again() -> None:
    room = [0]
    fake = echo()
    model = Model(
        fake.card, Failing(fake.network, lambda _, n: torch.OutOfMemoryError(FULL) if n > room[0] else None), None
    )
    frames = np.broadcast_to(np.arange(1, 41, dtype=np.float32)[:, None, None], (40, 32, 32))
    reconstructor = Reconstructor(model, device=GPU, batch_size=8)
    with pytest.warns(UserWarning, match="memory ran out") as said:
        made = reconstructor.reconstruct(frames)
    assert np.array_equal(made.patches[:, 0, 0].real, np.arange(1, 41))
    words = [str(one.message) for one in said]
    assert words[:3] == [f"memory ran out on cpu (Pretended): batches of {n} frames now" for n in (4, 2, 1)]
    assert words[3:] == [f"memory ran out on cpu (Pretended) ({FULL}): CPU"]
    assert reconstructor.device_events == [f"{words[3]} from frame 1 on"]
    room[0] = 8
    again = reconstructor.for_run()
    assert (again.device_name, again.device_events) == ("Pretended", [])
    assert again.reconstruct(frames).valid.all()
    assert again.describe()["batch_size"] == 8


def test_memory_short_for_a_block_but_not_for_its_halves_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    reconstructor = Reconstructor(echo(), device=GPU, batch_size=8)
    prepare = reconstructor._place.preprocess
    sizes: list[int] = []

    def short(frames: Any) -> Any:
        sizes.append(len(frames))
        if len(frames) > 10:
            raise torch.OutOfMemoryError(FULL)
        return prepare(frames)

    monkeypatch.setattr(reconstructor._place, "preprocess", short)
    frames = np.broadcast_to(np.arange(1, 41, dtype=np.float32)[:, None, None], (40, 32, 32))
    made = reconstructor.reconstruct(frames)
    assert np.array_equal(made.patches[:, 0, 0].real, np.arange(1, 41))
    assert sizes == [40, 20, 10, 10, 20, 10, 10]
    assert reconstructor.device_events == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_cpu_without_memory_for_a_frame_names_that_frame_alone(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    monkeypatch.setattr(engine, "_PAUSE_S", 0.01)

    class Large(Echo):
        def forward(self, counts: torch.Tensor, probe: torch.Tensor | None = None) -> torch.Tensor:
            if (counts.mean(dim=(-2, -1)) == 7).any():
                raise error("DefaultCPUAllocator: can't allocate memory")
            return super().forward(counts, probe)

    frames = np.broadcast_to(np.arange(1, 21, dtype=np.float32)[:, None, None], (20, 32, 32))
    fake = echo()
    reconstructor = Reconstructor(Model(fake.card, Large(), None), device="cpu", batch_size=4)
    with pytest.warns(UserWarning, match="memory ran out on the CPU: batches of"):
        made = reconstructor.reconstruct(frames)
    assert made.flag == ["memory ran out" if k == 7 else "" for k in range(1, 21)]
    assert made.valid.tolist() == [k != 7 for k in range(1, 21)]
    assert np.isnan(made.patches[6]).all()
    assert np.array_equal(np.delete(made.patches[:, 0, 0].real, 6), np.delete(np.arange(1, 21), 6))


def test_memory_that_somebody_else_had_for_a_moment_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    monkeypatch.setattr(engine, "_PAUSE_S", 0.01)

    class Crowded(Echo):
        def forward(self, counts: torch.Tensor, probe: torch.Tensor | None = None) -> torch.Tensor:
            passes.append(len(counts))
            if len(passes) == 1:
                raise torch.OutOfMemoryError(FULL)
            return super().forward(counts, probe)

    made = Reconstructor(Model(echo().card, Crowded(), None), device="cpu", batch_size=1).reconstruct(
        np.full((1, 32, 32), 5.0)
    )
    assert (made.flag, passes) == ([""], [1, 1])


def test_a_mistake_on_a_device_that_answers_is_no_fault_of_it() -> None:
    fake = echo()
    mistake = Model(fake.card, Failing(fake.network, lost_at(1, RuntimeError, "shapes cannot be multiplied")), None)
    reconstructor = Reconstructor(mistake, device=GPU)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        reconstructor.reconstruct(np.full((2, 32, 32), 5.0))
    assert (reconstructor.device_events, GPU.lost) == ([], "")


def test_an_error_in_other_words_on_a_device_that_answers_no_more_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = echo()
    model = Model(fake.card, Failing(fake.network, lost_at(1, RuntimeError, "unknown internal error")), None)
    reconstructor = Reconstructor(model, device=GPU)
    monkeypatch.setattr(Device, "answers", lambda self: False)
    with pytest.warns(UserWarning, match="was lost"):
        assert reconstructor.reconstruct(np.full((2, 32, 32), 5.0)).valid.all()


@pytest.mark.parametrize(("error", "words"), [(torch.OutOfMemoryError, FULL), (torch.AcceleratorError, ECC)])
def test_a_device_that_fails_before_the_first_frame_is_left(error: type[Exception], words: str) -> None:
    network, card, probe = lifted()
    reconstructor = Reconstructor(
        Model(card, Failing(network, lost_at(1, error, words)), probe), device=GPU, batch_size=1
    )
    with pytest.warns(UserWarning, match="CPU"):
        reconstructor.warm_up()
    assert reconstructor.device_name == devices.cpu_name()
    assert reconstructor.reconstruct(frames_of(3)).valid.all()


def test_half_precision_was_for_the_device_and_the_cpu_takes_single() -> None:
    network, card, probe = lifted()
    reconstructor = Reconstructor(
        Model(card, Failing(network, lost_at(5)), probe), device=GPU, batch_size=4, precision="bf16"
    )
    with pytest.warns(UserWarning, match="was lost"):
        made = reconstructor.reconstruct(frames_of(4))
    expected = Reconstructor(Model(card, network, probe), device="cpu", batch_size=4).reconstruct(frames_of(4))
    assert np.array_equal(made.patches, expected.patches)
    assert reconstructor.describe()["precision"] == "fp32"


def test_refinement_goes_on_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    network, card, probe = lifted()
    frames, at = frames_of(4), np.arange(4) * 4e-8

    def refined(device: Any, fail: bool) -> Any:
        reconstructor = Reconstructor(
            Model(card, network, probe), device=device, photons=PHOTONS, refinement=Refinement(sweeps=1)
        )
        made = reconstructor.reconstruct(frames)
        mosaic = Mosaic(reconstructor.pixel_m, reconstructor.weight)
        mosaic.add(made.patches, at, at, made.trust)
        if fail:
            reconstructor._place.preprocess = lambda frames: (_ for _ in ()).throw(torch.AcceleratorError(ECC))  # type: ignore[assignment]
        return reconstructor, reconstructor.refine(mosaic.snapshot(), frames, at, at)[0]

    _, expected = refined("cpu", False)
    with pytest.warns(UserWarning, match="was lost"):
        reconstructor, image = refined(GPU, True)
    assert np.allclose(image.phase, expected.phase, atol=1e-5, equal_nan=True)
    assert "from frame 5 on" in reconstructor.device_events[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: a real loss is not exercised")
def test_a_model_on_a_device_keeps_a_copy_on_the_cpu() -> None:
    network, card, probe = lifted()
    moved = Model(card, network.cuda(), probe.cuda()).on_cpu()
    assert next(moved.network.parameters()).device.type == "cpu"


def test_errors_name_what_they_mean() -> None:
    cpu = Device.from_name("cpu")
    assert GPU.fault(RuntimeError("CUDA error: out of memory")) == "memory"
    assert GPU.fault(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")) == "memory"
    assert GPU.fault(RuntimeError("CUDA error: unspecified launch failure")) == "lost"
    assert GPU.fault(ValueError("CUDA error")) is None
    assert cpu.fault(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")) == "memory"
    assert cpu.fault(RuntimeError("CUDA error: whatever")) is None

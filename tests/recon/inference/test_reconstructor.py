"""Every frame exactly once, in order, with what is wrong with it; no frame touches another."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bluesky_ptychonn.calibration import TrustCalibration
from bluesky_ptychonn.card import InputContract, ModelCard, ProbeReference
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from bluesky_ptychonn.recon.device import exact_convolutions
from bluesky_ptychonn.recon.evaluation.simulated_scans import score_mosaic
from bluesky_ptychonn.recon.inference import forward_pass
from bluesky_ptychonn.recon.inference.flux import Flux
from bluesky_ptychonn.recon.inference.preprocess import PreprocessConfig
from bluesky_ptychonn.recon.inference.reconstructor import PatchBatch, Reconstructor
from bluesky_ptychonn.recon.inference.recorded_pass import RecordedPass
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic
from bluesky_ptychonn.recon.networks.families import build_network

SIZE, PATCH, PHOTONS = 32, 16, 1e5
LIFTED: dict[str, Any] = {"family": "lifted", "frame_size": SIZE, "patch_size": PATCH, "stages": 2, "width": 4}
GEOMETRY = Geometry(energy_ev=10_000, distance_m=1.0, pixel_pitch_m=75e-6, frame_shape=(SIZE, SIZE))

TABLE = TrustCalibration(
    score=(0.1, 0.2), right=(0.9, 0.1), error_rad=(0.08, 0.3), frames=512, rank_correlation=0.8, trained_trust=0.7
)


def wide_probe() -> NDArray[np.complex64]:
    """A defocused disc, in square-root photons. Its far field is nowhere so dark that rounding decides its phase."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    probe = (np.hypot(y, x) < 5.5) * np.exp(0.04j * (y**2 + x**2))
    return (probe * np.sqrt(PHOTONS / (np.abs(probe) ** 2).sum())).astype(np.complex64)


PROBE = wide_probe()


def make_card(family: str = "lifted", patch: int = PATCH, **contract: Any) -> ModelCard:
    values: dict[str, Any] = {
        "frame_shape": (SIZE, SIZE),
        "patch_shape": (patch, patch),
        "object_pixel_m": GEOMETRY.object_pixel_m,
        "counts_per_frame": (2e4, 3e5),
    }
    return ModelCard(
        name="tiny",
        version="1",
        family=family,  # type: ignore[arg-type]
        network={"family": family},
        input=InputContract(**{**values, **contract}),
        probe=ProbeReference.from_probe(PROBE, GEOMETRY.object_pixel_m, "simulated") if family == "lifted" else None,
        weights_sha256="0" * 64,
    )


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    network = build_network(LIFTED).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # a fresh network corrects nothing; this one must matter
            parameter.add_(0.02 * torch.randn_like(parameter))
    return Model(make_card(), network, torch.from_numpy(PROBE))


def frames_of(n: int, seed: int = 0, photons: float = PHOTONS) -> NDArray[np.uint16]:
    """Poisson frames of weak random phase objects, by numpy alone."""
    rng = np.random.default_rng(seed)
    objects = np.exp(0.3j * rng.normal(size=(n, SIZE, SIZE)))
    far = np.fft.fftshift(np.fft.fft2(objects * PROBE, norm="ortho"), axes=(1, 2))
    return rng.poisson(np.abs(far) ** 2 * photons / PHOTONS).astype(np.uint16)


class Echo(torch.nn.Module):
    """Fake network: the patch holds the frame's mean, and every batch is noted."""

    def __init__(self, most: int = 10**9, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.most, self.error = most, error

    def forward(self, counts: torch.Tensor, probe: torch.Tensor | None = None) -> torch.Tensor:
        self.batches.append(len(counts))
        if len(counts) > self.most:
            raise self.error("out of memory: can't allocate memory")
        value = counts.mean(dim=(-2, -1))
        return value[:, None, None].expand(-1, PATCH, PATCH).to(torch.complex64)


def echo(**kwargs: Any) -> Model:
    return Model(make_card("direct", counts_per_frame=(0, 1e12)), Echo(**kwargs), None)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 600), batch=st.integers(1, 70))
def test_every_frame_exactly_once_and_in_order(n: int, batch: int) -> None:
    frames = np.broadcast_to(np.arange(100, 100 + n, dtype=np.float32)[:, None, None], (n, SIZE, SIZE))
    fake = echo()
    made = Reconstructor(fake, device="cpu", batch_size=batch).reconstruct(frames)
    assert len(made) == n
    assert made.patches.shape == (n, PATCH, PATCH)
    assert np.array_equal(made.patches[:, 3, 3].real, np.arange(100, 100 + n))
    assert made.valid.all()
    assert made.flag == [""] * n
    assert set(fake.network.batches) <= {min(batch, 8)}  # type: ignore[arg-type]


def test_patches_are_the_networks_own(model: Model) -> None:
    frames = frames_of(5)
    assert model.probe is not None
    with torch.no_grad():
        expected = model.network(torch.from_numpy(frames.astype(np.float32)), model.probe).numpy()
    made = Reconstructor(model, GEOMETRY, device="cpu", photons=PHOTONS).reconstruct(frames)
    assert isinstance(made, PatchBatch)
    assert made.patches.dtype == np.complex64
    assert made.trust.dtype == np.float32
    assert np.allclose(made.patches, expected, atol=1e-5)
    assert ((made.trust > 0) & (made.trust <= 1)).all()


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_batch_size_changes_nothing(model: Model, batch: int) -> None:
    frames = frames_of(10)
    expected = Reconstructor(model, device="cpu", batch_size=10).reconstruct(frames)
    made = Reconstructor(model, device="cpu", batch_size=batch).reconstruct(frames)
    assert np.allclose(made.patches, expected.patches, atol=1e-4)
    assert np.allclose(made.trust, expected.trust, atol=1e-4)


def test_bad_frames_are_flagged_and_touch_no_other(model: Model) -> None:
    good = frames_of(9).astype(np.float64)
    frames = good.copy()
    frames[0] = np.nan
    frames[1, 4, 4] = np.inf  # mended
    frames[2] = -good[2]
    frames[3] = 0
    frames[4] = good[4] * 1e-4  # beam lost, not quite empty
    frames[5] *= 10
    frames[6] = 1e38
    reconstructor = Reconstructor(model, device="cpu", photons=PHOTONS, preprocess=PreprocessConfig(saturation=1e6))
    made = reconstructor.reconstruct(frames)
    assert made.flag == [
        "nan",
        "nan",
        "negative",
        "empty",
        "beam lost",
        "intensity out of range",
        "saturated",
        "",
        "",
    ]
    assert made.valid.tolist() == [False, True, False, False, False, True, False, True, True]
    assert np.isnan(made.patches[~made.valid]).all()
    assert np.isfinite(made.patches[made.valid]).all()
    assert (made.trust[~made.valid] == 0).all()
    expected = reconstructor.for_run(PHOTONS).reconstruct(good)
    assert np.allclose(made.patches[7:], expected.patches[7:], atol=1e-6)
    assert np.allclose(made.trust[7:], expected.trust[7:], atol=1e-6)


def test_a_detectors_codes_and_read_noise_cost_no_image() -> None:
    """By the shipped model; NaN in the same row gives 0.98, and taken for zero counts the row left 0.43."""
    experiment, rng = SimulatedExperiment.demo(), np.random.default_rng(2027)
    at = (np.arange(5) - 2) * 0.35e-6
    y_m, x_m = (axis.ravel() for axis in np.meshgrid(at, at, indexing="ij"))
    frames = np.stack([experiment.frame_at(y, x, rng) for y, x in zip(y_m, x_m, strict=True)])
    coded, ended = frames.astype(np.int32), frames.copy()
    coded[:, 20], ended[:, 20] = -1, 65534
    noise = frames + rng.normal(0, 2, frames.shape)
    model = load_model("simulated-zp64", "cpu")

    def correlation(frames: NDArray[Any]) -> float:
        scan = Reconstructor(model, device="cpu")
        made = scan.reconstruct(frames)
        assert made.valid.all()
        mosaic = Mosaic(scan.pixel_m, scan.weight, anchor=scan.anchor)
        mosaic.add(made.patches, y_m, x_m, made.trust)
        mosaic.synchronise()
        image = mosaic.snapshot()
        truth = experiment.truth_on(image.origin_m, (image.phase.shape[0], image.phase.shape[1]))
        return score_mosaic(image, truth, y_m, x_m).phase_correlation

    found = {name: correlation(those) for name, those in (("clean", frames), ("-1", coded), ("2**16-2", ended))}
    assert min(found.values()) > 0.97, found
    assert correlation(noise) > 0.95
    with pytest.raises(AssertionError):
        correlation(noise - 5)


def test_a_network_that_fails_on_a_frame_is_flagged() -> None:
    class Failing(Echo):
        def forward(self, counts: torch.Tensor, probe: torch.Tensor | None = None) -> torch.Tensor:
            patch = super().forward(counts, probe).clone()
            patch[counts.mean(dim=(-2, -1)) == 7] = torch.nan
            return patch

    frames = np.full((4, SIZE, SIZE), 5.0)
    frames[2] = 7
    made = Reconstructor(
        Model(make_card("direct", counts_per_frame=(0, 1e9)), Failing(), None), device="cpu"
    ).reconstruct(frames)
    assert made.flag == ["", "", "patch not finite", ""]
    assert made.valid.tolist() == [True, True, False, True]


def test_patches_that_would_spoil_a_mosaic_are_flagged_and_no_trust_is_nan(model: Model) -> None:
    """Finite, and so large that sums overflow; or zero, which explains nothing of its frame."""

    class Odd(Echo):
        def forward(self, counts: torch.Tensor, probe: torch.Tensor | None = None) -> torch.Tensor:
            patch = super().forward(counts, probe).clone()
            patch[0], patch[1] = 1e25, 0
            return patch

    card = model.card.model_copy(update={"trust": TABLE})
    made = Reconstructor(Model(card, Odd(), model.probe), device="cpu", photons=PHOTONS).reconstruct(frames_of(4))
    assert made.flag == ["patch not finite", "", "", ""]
    assert made.trust[:2].tolist() == [0, 0]
    assert np.isfinite(made.trust).all()
    mosaic = Mosaic(1e-8, np.ones((PATCH, PATCH), np.float32))
    mosaic.add(made.patches[1:], np.zeros(3), np.zeros(3), made.trust[1:])
    assert np.isfinite(mosaic.snapshot().amplitude).all()


def test_absorption_is_not_taken_for_a_weaker_beam(model: Model) -> None:
    """Frames of a sample that absorbs stay darker than frames beside it, because one flux holds for all."""
    torch.manual_seed(0)
    plain = Model(model.card, build_network({**LIFTED, "stages": 1, "lift_steps": 50}).eval(), model.probe)
    rng = np.random.default_rng(0)
    far = np.abs(np.fft.fftshift(np.fft.fft2(PROBE, norm="ortho"))) ** 2
    amplitudes = np.array([1.0] * 8 + [0.7] * 4)
    for exposure in (1.0, 8.0):  # the second is not what the model's probe was measured with
        frames = rng.poisson(far * exposure * amplitudes[:, None, None] ** 2)
        reconstructor = Reconstructor(plain, device="cpu")
        made = reconstructor.reconstruct(frames.astype(np.uint32))
        middle = np.abs(made.patches[:, 6:10, 6:10]).mean(axis=(1, 2))
        beam = np.abs(PROBE[14:18, 14:18]).max() / np.abs(PROBE).max()
        assert beam > 0.1  # there is light to judge by
        assert np.allclose(middle[8:] / middle[:8].mean(), 0.7, atol=0.05)
        assert reconstructor.describe()["photons_from"] == ("model" if exposure == 1 else "frames")
        assert reconstructor.describe()["photons_per_frame"] == pytest.approx(
            PHOTONS * exposure * (1 if exposure == 1 else 1.05), rel=0.02
        )


def test_exposure_changes_no_patch(model: Model) -> None:
    """Ten times the exposure is ten times the flux, found from the frames, and the same object."""
    frames = frames_of(6).astype(np.uint32)
    one, ten = (Reconstructor(model, device="cpu") for _ in range(2))
    one, ten = one.reconstruct(frames), ten.reconstruct(frames * 10)
    # The model's own flux once, the frames' brightest and 5 % once.
    assert np.abs(ten.patches - one.patches).mean() < 0.05


def test_runs_have_their_own_flux(model: Model) -> None:
    first = Reconstructor(model, device="cpu")
    first.reconstruct(frames_of(4, photons=1e6))
    second = first.for_run()
    assert second.describe()["photons_per_frame"] == pytest.approx(PHOTONS, rel=1e-3)
    second.reconstruct(frames_of(4))
    assert second.describe()["photons_from"] == "model"
    assert first.describe()["photons_from"] == "frames"
    assert first.for_run(photons=5e4).describe()["photons_from"] == "given"


def test_flux_counts_the_brightest_tenth_of_the_first_frames() -> None:
    flux = Flux(None)
    assert (flux.photons, flux.source, flux.probe_factor) == (None, "unknown", 1.0)
    totals = np.concatenate([np.full(90, 400.0), np.full(10, 1000.0), np.zeros(0)])
    flux.add(np.full(256, 500.0))
    flux.add(totals * 100)  # too late to matter
    assert flux.photons == pytest.approx(500 * 1.05)
    assert flux.source == "frames"
    assert flux.least == pytest.approx(10)
    for wrong in (0.0, -3.0, float("nan")):
        with pytest.raises(ValueError, match="positive number is needed"):
            Flux(1e5, wrong)


@pytest.mark.parametrize(("part", "source"), [(0.5, "frames"), (0.8, "model"), (1.0, "model"), (1.2, "frames")])
def test_the_models_flux_holds_while_the_frames_agree(part: float, source: str) -> None:
    flux = Flux(1e5)
    flux.add(np.full(20, part * 1e5))
    assert flux.source == source
    assert flux.probe_factor == pytest.approx(1.0 if source == "model" else (1.05 * part) ** 0.5)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
@pytest.mark.parametrize("blocks", [[1] * 11, [2, 9], [10, 1], [3, 3, 5]])
def test_what_came_together_changes_no_bit(model: Model, kind: Any, blocks: list[int]) -> None:
    """Kernels are chosen by the shape of a batch, so every batch has the same; sums over the run are one by one."""
    frames = frames_of(11).astype(kind)
    if kind is np.float32:
        frames += np.random.default_rng(1).normal(0, 0.3, frames.shape).astype(np.float32)
    made = []
    for sizes in ([11], blocks):
        reconstructor, parts, start = Reconstructor(model, device="cpu", photons=PHOTONS), [], 0
        for size in sizes:
            parts.append(reconstructor.reconstruct(frames[start : start + size]))
            at = np.arange(start, start + size) * 3.0 * reconstructor.pixel_m
            reconstructor.placed(parts[-1].patches, at, at)
            start += size
        made.append((PatchBatch.joined(parts), reconstructor.figures()))
    (whole, figures), (split, others) = made
    np.testing.assert_array_equal(whole.patches, split.patches)
    np.testing.assert_array_equal(whole.trust, split.trust)
    assert whole.flag == split.flag
    assert figures.overlap_rad is not None
    assert figures == others


def test_without_a_probe_trust_is_not_judged(model: Model) -> None:
    reconstructor = Reconstructor(echo(), device="cpu")
    made = reconstructor.reconstruct(frames_of(3))
    assert np.isnan(made.trust).all()  # which is no trust
    assert made.valid.all()
    assert reconstructor.verdict() is None
    broken = frames_of(3).astype(float)
    broken[1] = np.nan
    assert reconstructor.reconstruct(broken).trust[1] == 0
    assert reconstructor.describe()["trust_judged"] is False
    mosaic = Mosaic(reconstructor.pixel_m, reconstructor.weight)
    mosaic.add(made.patches, np.zeros(3), np.zeros(3), made.trust)
    image = mosaic.snapshot()
    assert np.isnan(image.trust).all()
    assert image.coverage.max() == pytest.approx(3)  # they count in full
    assert np.isfinite(image.amplitude[image.coverage > 0.1]).all()
    assert Reconstructor(model, device="cpu").describe()["trust_judged"] is True


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_when_memory_runs_out_the_batch_is_halved(error: type[Exception]) -> None:
    frames = np.broadcast_to(np.arange(1, 41, dtype=np.float32)[:, None, None], (40, SIZE, SIZE))
    reconstructor = Reconstructor(echo(most=5, error=error), device="cpu", batch_size=8)
    with pytest.warns(UserWarning, match="memory ran out on the CPU: batches of 4 frames now"):
        made = reconstructor.reconstruct(frames)
    assert np.array_equal(made.patches[:, 0, 0].real, np.arange(1, 41))
    assert reconstructor.describe()["batch_size"] == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # learnt: it does not happen again
        reconstructor.reconstruct(frames)


def test_other_errors_of_the_network_are_raised() -> None:
    class Broken(Echo):
        def forward(self, counts: torch.Tensor, probe: torch.Tensor | None = None) -> torch.Tensor:
            raise RuntimeError("shapes cannot be multiplied")

    broken = Model(make_card("direct"), Broken(), None)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Reconstructor(broken, device="cpu").reconstruct(frames_of(2))


class FakeCuda:
    """`torch.cuda` on the CPU: a recorded pass is played by the pass itself, on the recording's own memory.

    Notes what was current when a recording began, and checks that it is when it is replayed.
    """

    def __init__(self, follows: bool) -> None:
        self.follows, self.current, self.replays = follows, "cuda:0", 0
        self.recorded_on: list[Any] = []
        self.recording: Any = None

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, self.current = self.current, str(device)
        yield
        self.current = before

    def Stream(self, device: Any) -> Any:
        return SimpleNamespace(device=str(device), wait_stream=lambda other: None)

    current_stream = Stream

    def stream(self, stream: Any) -> Any:
        return nullcontext()

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=self.replay)

    def graph(self, graph: Any, stream: Any = None) -> Any:
        self.recorded_on.append((self.current, None if stream is None else stream.device))
        return nullcontext()

    def replay(self) -> None:
        self.replays += 1
        assert self.current == self.recorded_on[0][0]
        if self.follows:  # as CUDA does with the kernels that it has seen on this stream
            passed = self.recording
            for place, new in zip(passed._out, self.run(passed._counts, passed._probe), strict=True):
                place.copy_(new)


class Listening(RecordedPass):
    """Tells the fake what is recorded."""

    def __init__(self, run: Any, counts: Any, probe: Any, device: Any, cuda: Any) -> None:
        cuda.recording, cuda.run = self, run
        super().__init__(run, counts, probe, device, cuda)


def recording(monkeypatch: pytest.MonkeyPatch, follows: bool, where: str = "cpu") -> tuple[FakeCuda, Model, Any]:
    """Give a reconstructor whose passes are recorded by the fake."""
    cuda, fake = FakeCuda(follows), echo()
    monkeypatch.setattr(
        forward_pass,
        "RecordedPass",
        lambda run, counts, probe, device: Listening(run, counts, probe, torch.device(where), cuda),
    )
    reconstructor = Reconstructor(fake, device="cpu", batch_size=8)
    reconstructor._passes._graphs = True
    return cuda, fake, reconstructor


def test_a_recorded_pass_serves_whole_batches_and_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed memory, tail filled up, results kept from the next replay; recorded on the device's own stream."""
    cuda, fake, reconstructor = recording(monkeypatch, follows=True, where="cuda:1")
    frames = np.broadcast_to(np.arange(1, 22, dtype=np.float32)[:, None, None], (21, SIZE, SIZE))
    made = reconstructor.reconstruct(frames)
    assert np.array_equal(made.patches[:, 0, 0].real, np.arange(1, 22))
    assert set(fake.network.batches) == {8}  # type: ignore[arg-type]
    assert cuda.recorded_on == [("cuda:1", "cuda:1")]
    assert cuda.replays == 4  # one on other frames, to see that it follows
    assert reconstructor.describe()["cuda_graph"] == "on"


def test_a_recording_that_gives_the_first_batch_for_ever_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, reconstructor = recording(monkeypatch, follows=False)
    frames = np.broadcast_to(np.arange(1, 12, dtype=np.float32)[:, None, None], (11, SIZE, SIZE))
    with pytest.warns(UserWarning, match="CUDA graph not recorded, going on without: a replay on other frames differs"):
        made = reconstructor.reconstruct(frames)
    assert np.array_equal(made.patches[:, 0, 0].real, np.arange(1, 12))
    assert reconstructor.describe()["cuda_graph"].startswith("off: a replay on other frames differs by 0.")


def test_a_network_that_cannot_be_recorded_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(forward_pass, "RecordedPass", refuse)
    reconstructor = Reconstructor(echo(), device="cpu", batch_size=8)
    reconstructor._passes._graphs = True
    frames = np.broadcast_to(np.arange(1, 12, dtype=np.float32)[:, None, None], (11, SIZE, SIZE))
    with pytest.warns(UserWarning, match="CUDA graph not recorded"):
        made = reconstructor.reconstruct(frames)
    assert np.array_equal(made.patches[:, 0, 0].real, np.arange(1, 12))
    assert "not permitted" in reconstructor.describe()["cuda_graph"]


def test_convolutions_on_cuda_are_exact_unless_asked_for_otherwise() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    for tf32 in (False, True):
        with exact_convolutions(torch.device("cuda"), tf32=tf32):
            assert (cudnn.enabled, cudnn.allow_tf32, cudnn.deterministic) == (True, tf32, True)
    assert (cudnn.allow_tf32, cudnn.deterministic) == before


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_only_a_pass_that_is_asked_for_tf32_has_it(monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    asked = []

    def noted(device: torch.device, *, tf32: bool = False) -> Any:
        asked.append(tf32)
        return contextlib.nullcontext()

    monkeypatch.setattr("bluesky_ptychonn.recon.inference.forward_pass.exact_convolutions", noted)
    reconstructor = Reconstructor(echo(), device="cpu")
    reconstructor._passes.precision = precision
    reconstructor.reconstruct(np.ones((1, SIZE, SIZE), np.float32))
    assert asked == [precision == "tf32"]


def test_what_a_lower_precision_costs_is_recorded(model: Model) -> None:
    told = Reconstructor(model, device="cpu", precision="bf16").describe()["precision_check"]
    assert 0 < told["mean"] <= told["largest"] < 0.05
    assert (told["frames"], told["limit"]) == (16, 0.02)
    assert "precision_check" not in Reconstructor(model, device="cpu").describe()
    with pytest.raises(ValueError, match="precision tf32 needs a CUDA device"):
        Reconstructor(model, device="cpu", precision="tf32")


@pytest.mark.parametrize("error", [0.05, math.nan])
def test_a_precision_that_costs_too_much_is_refused(error: float) -> None:
    class Coarse(Echo):
        def forward(self, counts: torch.Tensor, probe: torch.Tensor | None = None) -> torch.Tensor:
            patches = torch.ones(len(counts), PATCH, PATCH, dtype=torch.complex64)
            if torch.is_autocast_enabled("cpu"):
                patches[:, ::2] += 2 * error
            return patches

    coarse = Model(make_card("direct"), Coarse(), None)
    Reconstructor(coarse, device="cpu")
    with pytest.raises(ValueError, match=r"precision bf16: patches of model .* differ by .*; 0.02 is allowed. Use"):
        Reconstructor(coarse, device="cpu", precision="bf16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the recorded pass is not exercised")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_agrees_with_the_cpu(model: Model, precision: Any) -> None:
    frames = frames_of(21)
    expected = Reconstructor(model, device="cpu").reconstruct(frames)
    reconstructor = Reconstructor(model, device="cuda", batch_size=8, precision=precision)
    reconstructor.warm_up()
    made = reconstructor.reconstruct(frames)
    assert reconstructor.describe()["cuda_graph"] == "on"
    tolerance = 2e-3 if precision == "fp32" else 5e-2
    assert np.abs(made.patches - expected.patches).max() < tolerance
    assert next(model.network.parameters()).device.type == "cpu"


def test_half_precision_stays_close(model: Model) -> None:
    frames = frames_of(4)
    full = Reconstructor(model, device="cpu").reconstruct(frames)
    half = Reconstructor(model, device="cpu", precision="bf16").reconstruct(frames)
    difference = np.abs(full.patches - half.patches)
    assert 0 < difference.max() < 0.05
    assert half.patches.dtype == np.complex64


def test_published_network_takes_its_published_input() -> None:
    torch.manual_seed(3)
    network = build_network({"family": "direct", "frame_size": 64, "patch_size": 64}).eval()
    card = make_card("direct", frame_shape=(64, 64), patch_shape=(64, 64), counts_per_frame=(0, 1e9))
    frames = np.random.default_rng(0).poisson(4, (3, 256, 256)).astype(np.uint16)
    preprocess = PreprocessConfig(crop=192, resize=64, count_threshold=3)
    made = Reconstructor(Model(card, network, None), device="cpu", preprocess=preprocess).reconstruct(frames)
    assert made.patches.shape == (3, 64, 64)
    assert made.valid.all()


def test_settings_are_told_as_json(model: Model) -> None:
    reconstructor = Reconstructor(model, GEOMETRY, device="cpu", batch_size=5)
    told = json.loads(json.dumps(reconstructor.describe()))
    assert told["model"]["name"] == "tiny"
    assert told["device"] == "cpu"
    assert told["device_name"]
    assert told["batch_size"] == 5
    assert told["precision"] == "fp32"
    assert told["cuda_graph"] == "off"
    assert told["pixel_m"] == pytest.approx(GEOMETRY.object_pixel_m)
    assert told["threads"] >= 1
    assert "tiny 1" in repr(reconstructor)


def test_warm_up_leaves_no_trace(model: Model) -> None:
    cold, warm = (Reconstructor(model, device="cpu", batch_size=3) for _ in range(2))
    warm.warm_up()
    assert np.array_equal(cold.reconstruct(frames_of(3)).patches, warm.reconstruct(frames_of(3)).patches)


def test_weight_is_the_measured_one_or_the_probes_intensity(model: Model) -> None:
    found = Reconstructor(model, device="cpu").weight
    assert found.shape == (PATCH, PATCH)
    assert found.max() == 1
    assert found.min() >= 0
    beam = np.abs(PROBE[8:24, 8:24]) ** 2
    assert np.corrcoef(found.ravel(), beam.ravel())[0, 1] > 0.9
    assert found[0].max() < 0.1  # no seam at the rim
    measured = torch.rand(PATCH, PATCH) * 3
    given = Reconstructor(Model(model.card, model.network, model.probe, measured), device="cpu").weight
    assert np.allclose(given, measured / measured.max())


def test_the_pixel_is_the_scans_own_where_it_is_known(model: Model) -> None:
    scan = GEOMETRY.model_copy(update={"distance_m": 1.01})
    assert Reconstructor(model, device="cpu").pixel_m == GEOMETRY.object_pixel_m
    assert Reconstructor(model, scan, device="cpu").pixel_m == pytest.approx(1.01 * GEOMETRY.object_pixel_m)


def test_preprocessing_given_instead_of_the_cards(model: Model) -> None:
    camera = Geometry(energy_ev=10_000, distance_m=1.0, pixel_pitch_m=37.5e-6, frame_shape=(64, 64))
    reconstructor = Reconstructor(model, camera, device="cpu", preprocess=PreprocessConfig(bin=2))
    assert reconstructor.pixel_m == pytest.approx(GEOMETRY.object_pixel_m)
    small = frames_of(2)
    split = np.repeat(np.repeat(small, 2, axis=1), 2, axis=2) / 4
    expected = Reconstructor(model, device="cpu").reconstruct(small).patches
    assert np.allclose(reconstructor.reconstruct(split).patches, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"batch_size": 0}, "batch_size 0 frames must be in 1 to 4096"),
        ({"precision": "fp8"}, "allowed: fp32, tf32, bf16, fp16"),
        ({"precision": "fp16"}, "needs a CUDA device"),
        ({"device": "gpu"}, "allowed: auto, cpu, cuda"),
        ({"photons": -1.0}, "positive number"),
        ({"geometry": GEOMETRY.model_copy(update={"energy_ev": 7000.0})}, "trained at an object pixel"),
        ({"geometry": GEOMETRY.model_copy(update={"frame_shape": (256, 256)})}, "takes frames of 32 x 32 px"),
    ],
)
def test_what_cannot_work_is_refused_in_words(model: Model, settings_: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Reconstructor(model, **{"device": "cpu", **settings_})


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((2, 128, 128), np.uint16), "takes frames of 32 x 32 px; frames of 128 x 128 px"),
        (np.zeros((32, 32), np.uint16), r"got shape \(32, 32\)"),
        (np.zeros((0, 16, 16), np.uint16), "takes frames of 32 x 32 px"),
        (np.zeros((1, 32, 32), np.complex64), "real counts"),
    ],
)
def test_frames_that_do_not_fit_are_refused_in_words(model: Model, frames: NDArray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Reconstructor(model, device="cpu").reconstruct(frames)


def test_a_lifted_model_without_probe_is_refused(model: Model) -> None:
    bare = Model(model.card.model_copy(update={"probe": None}), model.network, None)
    with pytest.raises(ValueError, match="is for any probe and has none yet"):
        Reconstructor(bare, device="cpu")

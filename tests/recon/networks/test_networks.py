"""Both network families: published size, gauge, configuration, and what they refuse."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from bluesky_ptychonn.optics.forward import intensity, to_fft_order
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, crop
from bluesky_ptychonn.recon.networks.base import FamilyConfig, ObjectNetwork, fix_gauge
from bluesky_ptychonn.recon.networks.direct import DirectConfig
from bluesky_ptychonn.recon.networks.families import FAMILIES, build_network, network_config
from bluesky_ptychonn.recon.networks.lifted import LiftedConfig, lift
from bluesky_ptychonn.recon.training.config import TrainingConfig
from bluesky_ptychonn.recon.training.fit import fit

# Layout and size of the published two-head network, from shared/data/README.md.
PUBLISHED_LAYERS = {
    "encoder": ["0", "2", "5", "7", "10", "12"],
    "decoder1": ["0", "2", "5", "7", "10", "12", "15"],
    "decoder2": ["0", "2", "5", "7", "10", "12", "15"],
}


def test_the_default_is_the_published_network() -> None:
    network = build_network(DirectConfig())
    assert sum(p.numel() for p in network.parameters()) == 1_247_074
    layers = [f"{part}.{i}" for part, numbers in PUBLISHED_LAYERS.items() for i in numbers]
    keys = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(network.state_dict()) == keys


def test_the_small_phase_network_has_its_published_size() -> None:
    config = DirectConfig(
        frame_size=128,
        patch_size=128,
        encoder_channels=(16, 32, 64, 128),
        decoder_channels=(128, 64, 32, 16),
        heads=("phase",),
    )
    assert sum(p.numel() for p in build_network(config).parameters()) == 733_921


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("half", [False, True])
def test_direct_family_sizes(size: int, half: bool) -> None:
    config = DirectConfig(frame_size=size, patch_size=size // 2 if half else size, width=0.25, batch_norm=True)
    with torch.inference_mode():
        patch = build_network(config).eval()(torch.rand(2, size, size))
    assert patch.shape == (2, config.patch_size, config.patch_size)
    assert patch.dtype == torch.complex64
    assert float(patch.abs().max()) <= 1.0


@pytest.mark.parametrize(("frame", "patch"), [(64, 32), (64, 64), (128, 64), (256, 128)])
def test_lifted_family_starts_as_its_lift(frame: int, patch: int) -> None:
    """An untrained lifted network corrects nothing, so its first stage is the lift itself."""
    network = build_network(LiftedConfig(frame_size=frame, patch_size=patch, width=8)).eval()
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(frame, frame, dtype=torch.complex64, generator=generator)
    counts = torch.rand(2, frame, frame, generator=generator) * 9
    inner = slice((frame - patch) // 2, (frame + patch) // 2)
    with torch.inference_mode():
        first = network.stages(counts, probe)[0]
        expected = lift(to_fft_order(counts.sqrt()), probe, 6)[:, inner, inner]
    torch.testing.assert_close(first, expected)


def test_lift_brings_the_frame_closer_to_the_counts() -> None:
    experiment = SimulatedExperiment.demo()
    probe = torch.from_numpy(experiment.probe) * experiment.photons**0.5
    counts = torch.from_numpy(experiment.intensity_at(0, 0)).float()[None]
    modulus = to_fft_order(counts.sqrt())
    errors = []
    for steps in (0, 1, 3, 6):
        predicted = to_fft_order(intensity(lift(modulus, probe, steps), probe)).sqrt()
        errors.append(float((predicted - modulus).abs().sum() / modulus.sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_the_true_object_is_a_fixed_point_of_the_lift() -> None:
    experiment = SimulatedExperiment.demo()
    probe = torch.from_numpy(experiment.probe) * experiment.photons**0.5
    truth = torch.from_numpy(crop(experiment.sample, 320, 320, 64))[None]
    modulus = to_fft_order(torch.from_numpy(experiment.intensity_at(0, 0)).float()[None].sqrt())
    torch.testing.assert_close(lift(modulus, probe, 3, truth), truth, atol=2e-3, rtol=0)


def test_every_frame_is_treated_alone() -> None:
    network = build_network(LiftedConfig(frame_size=32, patch_size=16, width=8)).eval()
    probe = torch.randn(32, 32, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    counts = torch.rand(5, 32, 32, generator=torch.Generator().manual_seed(2)) * 9
    with torch.inference_mode():
        together, alone = network(counts, probe), network(counts[3:4], probe)
    torch.testing.assert_close(together[3:4], alone)


def test_gauge_is_fixed_whatever_the_phase_was() -> None:
    patch = torch.randn(3, 8, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(3))
    weight = torch.ones(8, 8)
    torch.testing.assert_close(fix_gauge(patch * torch.exp(torch.tensor(2.1j)), weight), fix_gauge(patch, weight))


def test_a_lifted_network_without_probe_says_so() -> None:
    with pytest.raises(ValueError, match="no probe given"):
        build_network(LiftedConfig(frame_size=32, patch_size=16, width=8))(torch.rand(1, 32, 32))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"family": "oracle"}, "family"),
        ({"family": "direct", "frame_size": 100}, "multiple of 2\\*\\*3"),
        ({"family": "direct", "frame_size": 64, "patch_size": 48}, "or half of it"),
        ({"family": "lifted", "frame_size": 32, "patch_size": 64}, "exceeds frame_size"),
        ({"family": "lifted", "wdith": 3}, "wdith"),
        ({"family": "direct", "encoder_channels": [10**30] * 3}, "less than or equal to 4096"),
        ({"family": "direct", "encoder_channels": [8] * 300, "decoder_channels": [8] * 300}, "at most 8 items"),
    ],
)
def test_a_wrong_configuration_is_named(config: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_network(config)


class MeanConfig(FamilyConfig):
    family: Literal["mean"] = "mean"
    frame_size: int = 32
    patch_size: int = 16
    gain: float = 1.0


class MeanNetwork(ObjectNetwork):
    config_class = MeanConfig

    def __init__(self, config: MeanConfig) -> None:
        super().__init__()
        self.config, self.scale = config, torch.nn.Parameter(torch.ones(1))

    def stages(self, counts: torch.Tensor, probe: torch.Tensor | None) -> list[torch.Tensor]:
        side = self.config.patch_size
        return [torch.polar(self.scale, torch.zeros(1)).expand(len(counts), side, side)]


def test_a_further_family_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="family: got 'mean'; allowed are direct, lifted"):
        network_config({"family": "mean"})
    monkeypatch.setitem(FAMILIES, "mean", MeanNetwork)
    config = TrainingConfig(network=MeanConfig(gain=0.5), frames=16, batch_size=8)
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config
    network, _ = fit(SimulatedExperiment.demo().probe[16:48, 16:48], config)
    assert isinstance(network, MeanNetwork)
    assert isinstance(build_network(config.network.resized(64).model_dump()), MeanNetwork)


@pytest.mark.parametrize("patch_size", [32, 16])
def test_counts_beyond_half_precision_do_not_overflow(patch_size: int) -> None:
    """As published, counts go in as they are: 65,504 is all that half precision holds of them."""
    torch.manual_seed(0)
    network = build_network(DirectConfig(frame_size=32, patch_size=patch_size)).eval()
    brightness = torch.tensor([1.0, 1e3, 1e5, 1e6])[:, None, None]
    counts = torch.poisson(torch.rand(4, 32, 32) * brightness)
    with torch.inference_mode():
        single = network(counts)
        with torch.autocast("cpu", torch.float16):
            half = network(counts)
    assert (single - half).abs().amax(dim=(1, 2)).numpy() == pytest.approx(0, abs=0.05)
    assert (single - half).abs()[:2].max() < 1e-3

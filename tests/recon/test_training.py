"""Training by simulation: it learns, it is deterministic, and it resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.probe_family import ProbeFamily
from bluesky_ptychonn.optics.simulate import zone_plate_probe
from bluesky_ptychonn.recon.evaluate import measure_sampling, patch_error, predict, stitching_weight
from bluesky_ptychonn.recon.losses import amplitude_phase_loss, gauge_free_loss, probe_weight
from bluesky_ptychonn.recon.network import DirectConfig, LiftedConfig, ObjectNetwork, build_network, fix_gauge
from bluesky_ptychonn.recon.synthetic import SimulatedFrames, SyntheticConfig
from bluesky_ptychonn.recon.training import TrainingConfig, fit

PROBE = zone_plate_probe((32, 32), 14)
SMALL = TrainingConfig(
    network=LiftedConfig(frame_size=32, patch_size=16, width=16, stages=2),
    synthetic=SyntheticConfig(photons=3e4, sample="texture"),
    frames=960,
    learning_rate=5e-3,
    ema=0.9,
)


@pytest.fixture(scope="module")
def trained() -> tuple[ObjectNetwork, dict[str, object]]:
    return fit(PROBE, SMALL)


def held_out_loss(network: torch.nn.Module) -> float:
    data = SimulatedFrames(PROBE, 16, 64, SMALL.synthetic, seed=999)
    counts, told, truth = data.batch(0)
    with torch.inference_mode():
        return float(gauge_free_loss(network(counts, told), truth, probe_weight(torch.as_tensor(PROBE), 16)))


def test_a_short_training_beats_the_lift_alone(trained: tuple[ObjectNetwork, dict[str, object]]) -> None:
    network, record = trained
    assert held_out_loss(network) < held_out_loss(build_network(SMALL.network).eval())
    assert record["frames"] == 960


@pytest.mark.parametrize("loss", ["complex", "amplitude_phase"])
def test_the_direct_family_learns_too(loss: str) -> None:
    config = DirectConfig(frame_size=32, patch_size=16, width=0.25, batch_norm=True, input_root=True, input_scale=5.0)
    start, _ = fit(PROBE, SMALL.model_copy(update={"network": config, "loss": loss, "frames": 16}))
    trained, _ = fit(PROBE, SMALL.model_copy(update={"network": config, "loss": loss, "frames": 960}))
    assert held_out_loss(trained) < 0.9 * held_out_loss(start)


def test_published_loss_is_the_error_of_amplitude_and_of_phase() -> None:
    weight = probe_weight(torch.as_tensor(PROBE), 16, 2.0, 0.01)
    truth = torch.polar(torch.full((2, 16, 16), 0.8), 0.5 * torch.randn(2, 16, 16, generator=torch.manual_seed(0)))
    aim = fix_gauge(truth, weight)
    turned = truth * torch.exp(torch.tensor(1.3j))  # what the zero of the truth's phase is must not matter
    assert float(amplitude_phase_loss(aim, turned, weight)) == pytest.approx(0, abs=1e-5)
    wrong = aim * 0.9 * torch.exp(torch.tensor(0.2j))
    assert float(amplitude_phase_loss(wrong, turned, weight)) == pytest.approx(0.08 + 0.2, abs=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    short = SMALL.model_copy(update={"frames": 64})
    first, second = (fit(PROBE, short)[0].state_dict() for _ in range(2))
    other = fit(PROBE, short.model_copy(update={"seed": 1}))[0].state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, total: int, loss: float) -> None:
        if done == 96:
            raise Killed

    short = SMALL.model_copy(update={"frames": 192, "save_every_s": 1e-9})
    with pytest.raises(Killed):
        fit(PROBE, short, checkpoint=tmp_path / "training.pt", progress=kill)
    resumed, _ = fit(PROBE, short, checkpoint=tmp_path / "training.pt")
    whole, _ = fit(PROBE, short)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    short = SMALL.model_copy(update={"frames": 16})
    fit(PROBE, short, checkpoint=tmp_path / "training.pt")
    with pytest.raises(ValueError, match=r"training.pt belongs to another configuration"):
        fit(PROBE, short.model_copy(update={"seed": 3}), checkpoint=tmp_path / "training.pt")


def test_a_probe_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"probe is \(64, 64\) px, the network's frames are \(32, 32\) px"):
        fit(zone_plate_probe((64, 64), 30), SMALL)


def test_batches_hold_photons_and_truth_in_step() -> None:
    config = SyntheticConfig(photons=2e4, dose_spread=1, scale_jitter=0, probe_error_rad=0, blur_px=0, background=0)
    counts, told, truth = SimulatedFrames(PROBE, 16, 32, config, seed=4).batch(7)
    assert counts.shape == (32, 32, 32)
    assert truth.shape == (32, 16, 16)
    assert float(told.abs().square().sum()) == pytest.approx(2e4, rel=1e-4)
    assert 0.3 * 2e4 < float(counts.sum(dim=(1, 2)).mean()) <= 1.05 * 2e4


def test_loss_ignores_the_global_phase_only() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(3, 8, 8, dtype=torch.complex64, generator=generator)
    weight = torch.full((8, 8), 1 / 64)
    turned = truth * torch.exp(1j * torch.tensor([0.3, 2.0, -3.0]))[:, None, None]
    assert float(gauge_free_loss(turned, truth, weight)) < 1e-3
    assert float(gauge_free_loss(1.2 * truth, truth, weight)) > 0.1


def test_held_out_measurement_worsens_with_the_step(trained: tuple[ObjectNetwork, dict[str, object]]) -> None:
    network, _ = trained
    weight = stitching_weight(PROBE, 16)
    assert weight.shape == (16, 16)
    assert weight.max() == pytest.approx(1)
    assert weight[0].max() < weight[8].max()
    assert 0 < patch_error(network, PROBE, SMALL.synthetic, frames=64) < 0.2
    geometry = Geometry(energy_ev=9000, distance_m=1, pixel_pitch_m=75e-6, frame_shape=(32, 32))
    rows = measure_sampling(
        network, PROBE, geometry, weight, photons=3e4, samplings=(0.2, 1.0), kinds=("etched",), field_diameters=4
    )
    assert rows[0][1].phase_correlation > rows[1][1].phase_correlation
    assert rows[0][1].frames > 10 * rows[1][1].frames


def test_prediction_keeps_every_frame() -> None:
    network = build_network(SMALL.network).eval()
    frames = np.random.default_rng(0).poisson(3.0, (19, 32, 32)).astype(np.uint16)
    probe = torch.as_tensor(PROBE)
    np.testing.assert_allclose(predict(network, frames, probe, 4), predict(network, frames, probe, 19), atol=1e-5)


def test_a_family_gives_every_batch_another_probe_and_trains() -> None:
    config = SyntheticConfig(photons=3e4, sample="texture", probes=ProbeFamily())
    data = SimulatedFrames(None, 16, 4, config, seed=1, frame_size=32)
    first, second = (data.batch(k)[1] for k in (0, 1))
    assert float((first - second).abs().max()) > 0.1 * float(first.abs().max())
    assert torch.equal(first, data.batch(0)[1])  # the seed and the number decide
    short = SMALL.model_copy(update={"synthetic": config, "frames": 640})
    _, record = fit(None, short)
    assert np.mean(record["loss"][-5:]) < np.mean(record["loss"][:5])
    with pytest.raises(ValueError, match="either one probe or a family"):
        fit(PROBE, short)

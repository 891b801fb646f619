"""Training in its three ways: it learns, it is deterministic, and it resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bluesky_ptychonn.card import InputContract, ModelCard, ProbeReference
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.probe_family import ProbeFamily
from bluesky_ptychonn.optics.simulate import zone_plate_probe
from bluesky_ptychonn.recon.data.batches import Batch, Mix
from bluesky_ptychonn.recon.data.probes import with_photons
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.data.simulated import SimulatedFrames, SyntheticConfig
from bluesky_ptychonn.recon.evaluation.simulated_scans import (
    ScanSeries,
    measure_sampling,
    patch_error,
    phase_error,
    predict,
    stitching_weight,
)
from bluesky_ptychonn.recon.models.checkpoint import Model
from bluesky_ptychonn.recon.networks.base import ObjectNetwork, fix_gauge
from bluesky_ptychonn.recon.networks.direct import DirectConfig
from bluesky_ptychonn.recon.networks.families import build_network
from bluesky_ptychonn.recon.networks.lifted import LiftedConfig
from bluesky_ptychonn.recon.quality.trust import patch_weight
from bluesky_ptychonn.recon.training.early_stopping import EarlyStopping
from bluesky_ptychonn.recon.training.fit import TrainingConfig, fine_tune, fit
from bluesky_ptychonn.recon.training.losses import amplitude_phase_loss, gauge_free_loss, probe_weight
from bluesky_ptychonn.recon.training.metrics_table import columns_of, plot_rows, read_rows, write_rows
from tests.support.scans import labelled_scan

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


@pytest.mark.slow
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
        network, with_photons(PROBE, 3e4), geometry, ScanSeries((0.2, 1.0), ("etched",), field_diameters=4)
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


ETCHED = TrainingConfig(
    network=LiftedConfig(frame_size=32, patch_size=24, width=16, stages=2),
    synthetic=SyntheticConfig(photons=1e5, sample="texture"),
    frames=640,
    learning_rate=5e-3,
    ema=0.9,
)


def true_error(network: ObjectNetwork, scan: LabelledScan) -> float:
    probe = torch.as_tensor(scan.probe)
    patch, truth = predict(network, scan.counts, probe), scan.truth(np.arange(len(scan)), 24)
    return float(phase_error(torch.as_tensor(patch), torch.as_tensor(truth), patch_weight(probe, (24, 24))))


@pytest.fixture(scope="module")
def half_trained() -> ObjectNetwork:
    """A network that has seen 640 frames of another kind of sample."""
    return fit(PROBE, ETCHED)[0]


def test_without_labels_the_true_error_falls_also_where_nothing_was_trained(half_trained: ObjectNetwork) -> None:
    scan = labelled_scan(seed=5)
    alone = MeasuredScan(scan.counts, scan.y_m, scan.x_m, scan.probe, scan.geometry, "no truth in it")
    config = ETCHED.model_copy(update={"mix": Mix(simulated=0, label_free=1), "learning_rate": 1e-3})
    trained, record = fit(None, config, measured=[alone], start=half_trained.state_dict())
    assert true_error(trained, scan) < 0.93 * true_error(half_trained, scan)
    unseen = labelled_scan(seed=6, frames=64)
    assert true_error(trained, unseen) < 0.9 * true_error(half_trained, unseen)
    assert [row["loss_label_free"] == row["loss"] for row in record["metrics"]] == [True] * len(record["metrics"])


def test_fine_tuning_with_labels_and_simulation_beats_the_model(half_trained: ObjectNetwork) -> None:
    scan, unseen = labelled_scan(seed=5), labelled_scan(seed=6, frames=64)
    card = ModelCard(
        name="half",
        version="1",
        family="lifted",
        network=ETCHED.network.model_dump(mode="json"),
        input=InputContract(
            frame_shape=(32, 32),
            patch_shape=(24, 24),
            object_pixel_m=scan.geometry.object_pixel_m,
            counts_per_frame=(1.0, 1e9),
        ),
        probe=ProbeReference.from_probe(scan.probe, scan.geometry.object_pixel_m, "simulated"),
        weights_sha256="0" * 64,
    )
    before = {name: value.clone() for name, value in half_trained.state_dict().items()}
    model = Model(card, half_trained, torch.as_tensor(scan.probe))
    tuned, record = fine_tune(model, labelled=[scan], frames=480, learning_rate=2e-3)
    assert true_error(tuned, unseen) < 0.8 * true_error(half_trained, unseen)
    assert record["frames"] == 480
    assert {"loss_simulated", "loss_labelled"} <= record["metrics"][-1].keys()
    assert all(torch.equal(before[name], value) for name, value in half_trained.state_dict().items())
    with pytest.raises(ValueError, match="fine_tune: model 'half' has no probe to simulate through; give scans"):
        fine_tune(Model(card.model_copy(update={"probe": None}), half_trained, None))


@pytest.mark.slow
def test_a_killed_mixed_training_resumes_exactly_and_only_with_its_scans(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, total: int, loss: float) -> None:
        if done == 96:
            raise Killed

    scan, file = labelled_scan(seed=5), tmp_path / "training.pt"
    mix = Mix(simulated=1, labelled=1, label_free=1)
    tiny = LiftedConfig(frame_size=32, patch_size=16, width=4, stages=1, lift_steps=2)
    settings = {"evaluate_every": 64, "patience": 9, "save_every_s": 1e-9}
    config = ETCHED.model_copy(update={"network": tiny, "frames": 192, "mix": mix, **settings})
    with pytest.raises(Killed):
        fit(PROBE, config, labelled=[scan], measured=[scan], checkpoint=file, progress=kill)
    with pytest.raises(ValueError, match=r"training.pt belongs to other scans"):
        fit(PROBE, config, labelled=[scan], measured=[labelled_scan(seed=6)], checkpoint=file)
    resumed, first = fit(PROBE, config, labelled=[scan], measured=[scan], checkpoint=file)
    whole, second = fit(PROBE, config, labelled=[scan], measured=[scan])
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor)
    timing = {"seconds", "frames_per_s"}
    for one, other in zip(first["metrics"], second["metrics"], strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == pytest.approx(
            {k: v for k, v in other.items() if k not in timing}, nan_ok=True
        )
    judged = [row for row in second["metrics"] if np.isfinite(row["held_out_simulated"])]
    assert [row["frames"] for row in judged] == [64, 128, 192]
    assert all(np.isfinite(row["held_out_labelled"] + row["held_out_label_free"]) for row in judged)


def test_an_older_checkpoint_keeps_its_name() -> None:
    older = set(SMALL.model_dump()) - {"save_every_s", "mix", "schedule", "precision", "evaluate_every", "patience"}
    assert SMALL.identity == SMALL.model_dump_json(include=older)
    assert SMALL.model_copy(update={"schedule": "cyclic"}).identity != SMALL.identity


def test_patience_ends_a_training_and_gives_the_best_weights() -> None:
    class Falling(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, counts: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
            ramp = torch.linspace(-1, 1, 16) * self.wrong
            return torch.exp(1j * ramp).expand(len(counts), 16, 16)

    batch = Batch("simulated", torch.ones(2, 32, 32), torch.as_tensor(PROBE), torch.ones(2, 16, 16) + 0j)
    judge, network = EarlyStopping({"simulated": [batch]}, Mix(), patience=2), Falling()
    seen = []
    for wrong in (1.0, 0.2, 0.5, 0.4):
        with torch.no_grad():
            network.wrong.fill_(wrong)
        seen.append((judge.evaluate(network)["simulated"], judge.should_stop))  # type: ignore[arg-type]
    assert [over for _, over in seen] == [False, False, False, True]
    assert seen[0][0] == pytest.approx(5 * seen[1][0], rel=1e-3)
    judge.restore(network)  # type: ignore[arg-type]
    assert float(network.wrong.detach()) == pytest.approx(0.2)


def test_half_precision_trains_where_the_device_can() -> None:
    short = ETCHED.model_copy(update={"frames": 64, "precision": "bfloat16"})
    network, record = fit(PROBE, short)
    full, _ = fit(PROBE, short.model_copy(update={"precision": "float32"}))
    assert {v.dtype for v in network.parameters()} == {torch.float32}
    assert np.isfinite(record["loss"]).all()
    name = "nets.0.down1.0.weight"
    assert 0 < float((network.state_dict()[name] - full.state_dict()[name]).abs().max()) < 0.05
    with pytest.raises(ValueError, match="precision float16 needs a CUDA device to scale the loss on, this is cpu"):
        fit(PROBE, short.model_copy(update={"precision": "float16"}))


def test_a_mix_and_the_scans_given_have_to_agree() -> None:
    scan = labelled_scan(seed=5, frames=16)
    with pytest.raises(ValueError, match=r"the mix gives labelled frames a share of 1, and no scan is given"):
        fit(PROBE, SMALL.model_copy(update={"mix": Mix(labelled=1)}))
    with pytest.raises(ValueError, match=r"the mix gives label_free frames a share of 0, and 1 scans are given"):
        fit(PROBE, SMALL, measured=[scan])
    larger = LiftedConfig(frame_size=64, patch_size=32, width=4)
    config = SMALL.model_copy(update={"network": larger, "mix": Mix(simulated=0, labelled=1)})
    with pytest.raises(ValueError, match=r"sample 5 has 16 frames of \(32, 32\) px, the network takes \(64, 64\) px"):
        fit(None, config, labelled=[scan])


def test_metrics_survive_the_file_and_are_drawn(trained: tuple[ObjectNetwork, dict[str, Any]], tmp_path: Path) -> None:
    rows = trained[1]["metrics"]
    assert [row["frames"] for row in rows] == list(range(16, 961, 16))
    assert rows[-1]["loss"] == trained[1]["loss"][-1]
    assert max(row["learning_rate"] for row in rows) == pytest.approx(5e-3)
    write_rows(tmp_path / "metrics.csv", rows)
    columns = columns_of(rows)
    assert "held_out_simulated" not in columns  # nobody judged
    assert read_rows(tmp_path / "metrics.csv") == [{name: row[name] for name in columns} for row in rows]
    plot_rows(tmp_path / "training.png", rows)
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "other.csv").write_text("a,b\n1,x\n")
    with pytest.raises(ValueError, match=r"other.csv: not a table of a training's metrics"):
        read_rows(tmp_path / "other.csv")


def test_frames_of_several_sizes_are_shown_in_turn() -> None:
    family = ProbeFamily(frame_sizes=(32, 48))
    config = SyntheticConfig(photons=3e4, sample="texture", probes=family)
    data = SimulatedFrames(None, 16, 4, config, seed=1, frame_size=32)
    shapes = [(counts.shape, probe.shape, truth.shape) for counts, probe, truth in map(data.batch, range(3))]
    assert shapes[0] == shapes[2] == ((4, 32, 32), (32, 32), (4, 16, 16))
    assert shapes[1] == ((4, 48, 48), (48, 48), (4, 24, 24))
    network = LiftedConfig(frame_size=32, patch_size=16, width=4, stages=2, lift_steps=2)
    trained, _ = fit(None, TrainingConfig(network=network, synthetic=config, frames=8, batch_size=4))
    counts, probe, _ = data.batch(1)
    assert trained(counts, probe).shape == (4, 24, 24)

"""A model for any probe: refused without one, at work with one, whatever the frame size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bluesky_ptychonn import for_probe
from bluesky_ptychonn.card import InputContract, ModelCard
from bluesky_ptychonn.optics.probe_family import ProbeFamily
from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from bluesky_ptychonn.recon.data.batches import TrainingData
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
from bluesky_ptychonn.recon.models.checkpoint import load_model, save_model
from bluesky_ptychonn.recon.networks.direct import DirectConfig
from bluesky_ptychonn.recon.networks.families import build_network
from bluesky_ptychonn.recon.networks.lifted import LiftedConfig
from bluesky_ptychonn.recon.training.fit import TrainingConfig
from bluesky_ptychonn.recon.training.model import ModelInfo, train_model

DEMO = SimulatedExperiment.demo(seed=2)


def saved(folder: Path, config: LiftedConfig | DirectConfig) -> Path:
    """Write a model without a probe."""
    torch.manual_seed(1)
    size, patch = config.frame_size, config.patch_size
    card = ModelCard(
        name="any",
        version="3",
        family=config.family,
        network=config.model_dump(mode="json"),
        input=InputContract(
            frame_shape=(size, size), patch_shape=(patch, patch), object_pixel_m=1e-8, counts_per_frame=(1e4, 1e6)
        ),
        probe=None,
        weights_sha256="0" * 64,
    )
    save_model(folder, build_network(config), card)
    return folder


def test_without_a_probe_it_says_how_to_give_one(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path / "any", LiftedConfig(frame_size=96, patch_size=48, width=4)), "cpu")
    assert model.card.for_any_probe
    with pytest.raises(ValueError, match=r"for any probe and has none yet.*for_probe.*--frames 0 --probe FILE"):
        Reconstructor(model)


def test_with_a_probe_it_reconstructs_frames_of_that_size(tmp_path: Path) -> None:
    folder = saved(tmp_path / "any", LiftedConfig(frame_size=96, patch_size=48, width=4, stages=1))
    model = for_probe(str(folder), DEMO.probe, DEMO.geometry)
    card = model.card
    assert (card.name, card.version[:2], card.input.frame_shape, card.input.patch_shape) == (
        "any",
        "3+",
        (64, 64),
        (32, 32),
    )
    assert card.input.object_pixel_m == DEMO.geometry.object_pixel_m
    assert card.sampling == ()
    rng = np.random.default_rng(0)
    frames = np.stack([DEMO.frame_at(0, k * 1e-7, rng) for k in range(3)])
    made = Reconstructor(model, DEMO.geometry, device="cpu").reconstruct(frames)
    assert made.patches.shape == (3, 32, 32)
    assert made.valid.all()
    # An untrained U-Net corrects nothing, so what comes out is the object as the lift through this probe has it.
    truth = DEMO.truth_on((-16 * DEMO.pixel_m, -16 * DEMO.pixel_m), (32, 32))
    weight = np.abs(DEMO.probe[16:48, 16:48]) ** 2
    alike = abs((made.patches[0] * truth.conj() * weight).sum()) / np.sqrt(
        (np.abs(made.patches[0]) ** 2 * weight).sum() * (np.abs(truth) ** 2 * weight).sum()
    )
    assert alike > 0.9
    written = save_model(tmp_path / "mine", model.network, card, model.probe)
    assert load_model(tmp_path / "mine", "cpu").card == written


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    folder = str(saved(tmp_path / "any", LiftedConfig(frame_size=64, patch_size=32, width=4, stages=1)))
    with pytest.raises(ValueError, match=r"probe \(60, 60\) px and frames \(64, 64\) px"):
        for_probe(folder, DEMO.probe[2:-2, 2:-2], DEMO.geometry)
    with pytest.raises(ValueError, match=r"sums to 0.0"):
        for_probe(folder, DEMO.probe * 0, DEMO.geometry)
    direct = DirectConfig(width=0.1)
    with pytest.raises(ValueError, match="direct family, which is not told its probe"):
        for_probe(str(saved(tmp_path / "direct", direct)), DEMO.probe, DEMO.geometry)


def test_one_is_trained_on_random_probes_and_written(tmp_path: Path) -> None:
    network = LiftedConfig(frame_size=32, patch_size=16, width=4, stages=1, lift_steps=2)
    synthetic = SyntheticConfig(photons=1e5, sample="texture", probes=ProbeFamily())
    config = TrainingConfig(network=network, synthetic=synthetic, frames=16, batch_size=8)
    card = train_model(TrainingData(), None, config, tmp_path / "any", ModelInfo("any", command="test"))
    assert card.for_any_probe
    assert 0 < card.held_out["patch_phase_mae_rad"] < 1
    assert card.training["command"] == "test"
    assert not (tmp_path / "any" / "training.pt").exists()
    again = load_model(tmp_path / "any", "cpu")
    assert again.card == card
    one_probe = config.model_copy(update={"synthetic": SyntheticConfig()})
    with pytest.raises(ValueError, match="a family of probes"):
        train_model(TrainingData(), None, one_probe, tmp_path / "no", ModelInfo("no"))

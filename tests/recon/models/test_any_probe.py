"""A model for any probe: refused without one, at work with one, whatever the frame size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from bluesky_ptychonn import for_probe
from bluesky_ptychonn.card import InputContract, ModelCard
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.probe_family import ProbeFamily
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, make_sample, zone_plate_probe
from bluesky_ptychonn.recon.data.batches import TrainingData
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.evaluation.metrics import phase_correlation
from bluesky_ptychonn.recon.evaluation.simulated_scans import raster
from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
from bluesky_ptychonn.recon.models.checkpoint import load_model, save_model
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic
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
    with pytest.raises(ValueError, match=r"60 px wide, frames are 64 px .* say its object pixel, probe_pixel_m="):
        for_probe(folder, DEMO.probe[2:-2, 2:-2], DEMO.geometry)
    np.save(tmp_path / "probe.npy", DEMO.probe)
    with pytest.raises(ValueError, match=r"probe.npy says nothing of the geometry; give geometry=Geometry"):
        for_probe(folder, tmp_path / "probe.npy")
    with pytest.raises(ValueError, match=r"sums to 0.0"):
        for_probe(folder, DEMO.probe * 0, DEMO.geometry)
    direct = DirectConfig(width=0.1)
    with pytest.raises(ValueError, match="direct family, which is not told its probe"):
        for_probe(str(saved(tmp_path / "direct", direct)), DEMO.probe, DEMO.geometry)


def reconstructed(probe: np.ndarray, geometry: Geometry, **options: Any) -> tuple[float, Reconstructor]:
    """Scan a simulated sample with 104 px frames at 10 keV, or where `geometry` says: phase correlation with it."""
    side = geometry.frame_shape[0]
    sample = make_sample("etched", (400, 400), 3, phase_rad=-0.9, absorption=0.2)
    wave = probe / np.sqrt((np.abs(probe) ** 2).sum())
    experiment = SimulatedExperiment(geometry, wave.astype(np.complex64), sample, 3e5)
    rng = np.random.default_rng(5)
    y, x = raster(0.35 * experiment.probe_diameter_m, 1.4 * experiment.probe_diameter_m, 0.1, rng)
    frames = np.stack([experiment.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)])
    model = for_probe("zone-plates", probe * 3e5**0.5, geometry, **options)
    reconstructor = Reconstructor(model, geometry, device="cpu")
    mosaic = Mosaic(reconstructor.pixel_m, reconstructor.weight)
    mosaic.add(reconstructor.reconstruct(frames).patches, y, x, np.ones(len(y)))
    mosaic.synchronise()
    image = mosaic.snapshot()
    truth = [  # at the image's pixels, which need not be those of the sample
        ndimage.map_coordinates(
            part,
            np.meshgrid(*(
                (origin + np.arange(n) * image.pixel_m) / geometry.object_pixel_m + 200
                for origin, n in zip(image.origin_m, image.amplitude.shape, strict=True)
            ), indexing="ij"),
            order=1,
        )
        for part in (sample.real, sample.imag)
    ]  # fmt: skip
    margin = side // 4
    inner = slice(margin, -margin)
    return phase_correlation(image.complex[inner, inner], (truth[0] + 1j * truth[1])[inner, inner]), reconstructor


def ring(side: int) -> np.ndarray:
    return zone_plate_probe((side, side), 0.42 * side, pupil_fraction=0.42, astigmatism_rad=0.4)


GEOMETRY = Geometry(energy_ev=1e4, distance_m=1.0, pixel_pitch_m=75e-6, frame_shape=(104, 104))


def test_frames_of_104_px_and_of_electrons_are_taken() -> None:
    electrons = {"wavelength_m": 1.97e-12, "distance_m": 0.1}
    correlation, reconstructor = reconstructed(ring(104), GEOMETRY.model_copy(update=electrons))
    assert correlation > 0.95  # 0.978
    assert reconstructor.pixel_m == pytest.approx(1.97e-12 * 0.1 / (104 * 75e-6))
    card = reconstructor.card
    assert (card.input.patch_shape, card.input.energy_ev, card.input.wavelength_m) == ((48, 48), None, 1.97e-12)
    assert ModelCard.from_values(json.loads(card.model_dump_json()), "test") == card


def test_a_cut_of_the_frames_brings_the_probe_to_its_pixel() -> None:
    correlation, reconstructor = reconstructed(ring(104), GEOMETRY, preprocess=PreprocessConfig(crop=84))
    assert correlation > 0.95  # 0.975; with the middle of the probe instead 0.03
    assert reconstructor.pixel_m == pytest.approx(GEOMETRY.object_pixel_m * 104 / 84)
    verdict = reconstructor.verdict()
    assert verdict is not None
    assert verdict.level == "ok"


def test_modes_left_out_are_on_the_card_and_in_every_result(caplog) -> None:
    second = DEMO.probe * (np.indices((64, 64))[1] - 32)
    second -= (DEMO.probe.conj() * second).sum() * DEMO.probe
    second /= np.sqrt((np.abs(second) ** 2).sum())
    model = for_probe("zone-plates", np.stack([0.26**0.5 * second, 0.74**0.5 * DEMO.probe]), DEMO.geometry)
    assert "of the probe the strongest of 2 modes, 74% of the light" in caplog.text
    assert model.card.probe is not None
    assert model.card.probe.light_fraction == pytest.approx(0.74)
    reconstructor = Reconstructor(model, DEMO.geometry, device="cpu")
    other = SimulatedExperiment(DEMO.geometry, second.astype(np.complex64), DEMO.sample)
    rng = np.random.default_rng(0)
    places = rng.uniform(-1e-6, 1e-6, (9, 2))
    frames = np.stack([rng.poisson(0.74 * DEMO.intensity_at(*p) + 0.26 * other.intensity_at(*p)) for p in places])
    reconstructor.reconstruct(frames)
    said = reconstructor.describe()
    assert said["probe"]["light_fraction"] == pytest.approx(0.74)
    words = "modes left out: the model's probe is the strongest mode, 74% of the light; modes are not modelled yet"
    assert said["verdict"]["level"] == "doubtful"
    assert words in said["verdict"]["reasons"]
    assert not any("energy" in reason for reason in said["verdict"]["reasons"])


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

"""Trust falls with the error it cannot see, and only photon noise is forgiven."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, stats

from bluesky_ptychonn.optics.simulate import SimulatedExperiment, crop, zone_plate_probe
from bluesky_ptychonn.recon.networks.families import build_network
from bluesky_ptychonn.recon.quality.trust import (
    HALF_TRUST_UNEXPLAINED,
    frame_trust,
    noise_floor,
    under_probe,
    unexplained_fraction,
)

N, PATCH = 64, 48


@pytest.fixture(scope="module")
def scan() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames (40, 64, 64), their true patches (40, 48, 48) and the probe, at whole-pixel positions."""
    experiment = SimulatedExperiment.demo()
    rng = np.random.default_rng(11)
    rows, columns = rng.integers(-220, 220, (2, 40))
    frames = np.stack(
        [
            experiment.frame_at(r * experiment.pixel_m, c * experiment.pixel_m, rng)
            for r, c in zip(rows, columns, strict=True)
        ]
    )
    truth = np.stack([crop(experiment.sample, r + 320, c + 320, PATCH) for r, c in zip(rows, columns, strict=True)])
    probe = torch.from_numpy(experiment.probe) * experiment.photons**0.5
    return torch.from_numpy(frames.astype(np.float32)), torch.from_numpy(truth), probe


def numpy_unexplained(patch: NDArray, counts: NDArray, probe: NDArray) -> float:
    """The definition, for one frame, without torch: residual after one factor, less the exact Poisson expectation."""
    full = np.pad(patch, (probe.shape[0] - patch.shape[0]) // 2, mode="edge")
    far = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(full * probe), norm="ortho")))
    root = np.sqrt(counts)
    scale = (root * far).sum() / (far**2).sum()
    residual = ((root - scale * far) ** 2).sum()
    k = np.arange(400)
    mean = (scale * far).ravel() ** 2
    noise = [(stats.poisson.pmf(k, m) * (np.sqrt(k) - np.sqrt(m)) ** 2).sum() for m in mean[mean < 150]]
    return float((residual - np.sum(noise) - 0.25 * (mean >= 150).sum()) / counts.sum())


def test_agrees_with_its_definition(scan: tuple[torch.Tensor, ...]) -> None:
    frames, truth, probe = scan
    rng = np.random.default_rng(0)
    for k, size in ((0, 48), (1, 32)):
        m = (PATCH - size) // 2
        patch = truth[k, m : PATCH - m, m : PATCH - m] * torch.exp(
            0.3j * torch.from_numpy(rng.normal(size=(size, size)))
        )
        patch = patch.to(torch.complex64)
        found = unexplained_fraction(patch[None], frames[k : k + 1], probe)
        expected = numpy_unexplained(patch.numpy(), frames[k].numpy(), probe.numpy())
        assert float(found[0]) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("mean", [0.0, 0.01, 0.3, 1.0, 3.0, 20.0, 90.0])
def test_noise_floor_agrees_with_drawn_photons(mean: float) -> None:
    drawn = np.random.default_rng(1).poisson(mean, 400_000)
    expected = np.mean((np.sqrt(drawn) - np.sqrt(mean)) ** 2)
    assert float(noise_floor(torch.tensor([mean**0.5]))[0]) == pytest.approx(expected, rel=0.05, abs=1e-3)


def test_a_true_patch_is_trusted_at_any_dose() -> None:
    for photons in (3e3, 1e5, 1e7):
        experiment = SimulatedExperiment.demo(photons=photons)
        rng = np.random.default_rng(3)
        intensity = experiment.intensity_at(0, 0)
        counts = torch.from_numpy(rng.poisson(intensity, (20, N, N)).astype(np.float32))
        truth = torch.from_numpy(crop(experiment.sample, 320, 320, N))[None].expand(20, N, N)
        trust = frame_trust(truth, counts, torch.from_numpy(experiment.probe))
        # At 3,000 photons the noise of the noise is itself half a per cent.
        assert float(trust.min()) > (0.45 if photons < 1e4 else 0.9)
        assert float(trust.mean()) > (0.75 if photons < 1e4 else 0.97)


def test_a_true_patch_scores_high_and_every_wrong_one_low(scan: tuple[torch.Tensor, ...]) -> None:
    frames, truth, probe = scan
    good = frame_trust(truth, frames, probe)
    assert float(good.min()) > 0.9
    another_probe = torch.from_numpy(zone_plate_probe((N, N), 22, astigmatism_rad=0.4, aberration_rad=0.6, seed=5))
    wrong = {
        "another frame's patch": frame_trust(truth.roll(1, 0), frames, probe),
        "mirrored patch": frame_trust(truth.flip(-1), frames, probe),
        "conjugate patch": frame_trust(truth.conj(), frames, probe),
        "detector shifted by a pixel": frame_trust(truth, frames.roll(1, -1), probe),
        "detector transposed": frame_trust(truth, frames.transpose(-1, -2), probe),
        "another probe": frame_trust(truth, frames, another_probe),
    }
    for name, trust in wrong.items():
        assert float(trust.median()) < 0.55, name
        assert float((trust < good).float().mean()) > 0.95, name


def test_trust_falls_monotonically_with_the_error(scan: tuple[torch.Tensor, ...]) -> None:
    frames, truth, probe = scan
    rng = np.random.default_rng(7)
    margin = (N - PATCH) // 2
    weight = probe[margin : N - margin, margin : N - margin].abs().square().numpy()
    errors, trusts, medians = [], [], []
    for strength in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
        wrong = ndimage.gaussian_filter(rng.normal(size=(len(truth), PATCH, PATCH)), (0, 2, 2))
        wrong *= strength / wrong.std()
        patch = truth * torch.from_numpy(np.exp(1j * wrong).astype(np.complex64))
        trust = frame_trust(patch, frames, probe)
        offset = (wrong * weight).sum((1, 2), keepdims=True) / weight.sum()
        errors.append(np.sqrt(((wrong - offset) ** 2 * weight).sum((1, 2)) / weight.sum()))
        trusts.append(trust.numpy())
        medians.append(float(trust.median()))
    assert medians == sorted(medians, reverse=True)
    rank = stats.spearmanr(np.concatenate(errors), np.concatenate(trusts)).statistic
    assert rank < -0.9
    # The stated meaning: one half near an error of 0.1 rad, give or take what the detector cannot see.
    half = float(np.interp(-0.5, -np.array(medians), [float(np.median(e)) for e in errors]))
    assert 0.08 < half < 0.25


def test_the_map_from_photons_to_trust() -> None:
    # Half of the amplitude in a second, equal peak that the patch does not make: u is known in closed form.
    probe = torch.ones(8, 8, dtype=torch.complex64)
    patch = torch.ones(1, 8, 8, dtype=torch.complex64)  # all light into the central pixel
    counts = torch.zeros(1, 8, 8)
    counts[0, 4, 4], counts[0, 4, 6] = 1e6 * (1 - HALF_TRUST_UNEXPLAINED), 1e6 * HALF_TRUST_UNEXPLAINED
    assert float(unexplained_fraction(patch, counts, probe)[0]) == pytest.approx(HALF_TRUST_UNEXPLAINED, rel=1e-3)
    assert float(frame_trust(patch, counts, probe)[0]) == pytest.approx(0.5, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(angle=st.floats(-4, 4), factor=st.floats(0.1, 10), flux=st.floats(0.01, 100))
def test_global_phase_and_flux_do_not_matter(angle: float, factor: float, flux: float) -> None:
    rng = np.random.default_rng(2)
    probe = torch.from_numpy(zone_plate_probe((32, 32), 14)) * 300
    patch = torch.from_numpy(np.exp(0.5j * rng.normal(size=(2, 24, 24))).astype(np.complex64))
    counts = torch.from_numpy(rng.poisson(20, (2, 32, 32)).astype(np.float32))
    turned = (patch * factor * np.exp(1j * angle)).to(torch.complex64)
    assert torch.allclose(
        frame_trust(turned, counts, probe * flux), frame_trust(patch, counts, probe), rtol=1e-3, atol=1e-5
    )


def test_no_frame_depends_on_its_company(scan: tuple[torch.Tensor, ...]) -> None:
    frames, truth, probe = scan
    patches, counts = truth[:4].clone(), frames[:4].clone()
    expected = frame_trust(patches, counts, probe)
    patches[1, 0, 0], counts[2] = torch.nan, 0
    found = frame_trust(patches, counts, probe)
    assert found[1] == 0
    assert found[2] == 0
    assert torch.equal(found[[0, 3]], expected[[0, 3]])
    assert frame_trust(truth[:0], frames[:0], probe).shape == (0,)


def test_patch_lies_in_the_middle_and_its_rim_goes_on() -> None:
    patch = torch.arange(16, dtype=torch.float32).reshape(1, 4, 4) * (1 + 2j)
    full = under_probe(patch, torch.ones(8, 8, dtype=torch.complex64))
    assert torch.equal(full[:, 2:6, 2:6], patch)
    assert np.array_equal(full[0].numpy(), np.pad(patch[0].numpy(), 2, mode="edge"))


def test_shapes_that_do_not_go_together_are_refused() -> None:
    patch, probe = torch.ones(2, 8, 8, dtype=torch.complex64), torch.ones(16, 16, dtype=torch.complex64)
    for counts in (torch.ones(2, 8, 8), torch.ones(3, 16, 16)):
        with pytest.raises(ValueError, match="do not go together"):
            frame_trust(patch, counts, probe)


def test_trust_is_cheap_beside_the_network() -> None:
    network = build_network({"family": "lifted", "frame_size": 64, "patch_size": 32, "width": 40}).eval()
    probe = torch.from_numpy(zone_plate_probe((64, 64), 30)) * 300
    counts = torch.full((16, 64, 64), 20.0)

    def cpu_seconds(work: object) -> float:
        assert callable(work)
        times = []
        for _ in range(4):
            begin = time.process_time()
            work()
            times.append(time.process_time() - begin)
        return min(times)

    with torch.inference_mode():
        patch = network(counts, probe)
        assert cpu_seconds(lambda: frame_trust(patch, counts, probe)) < 0.2 * cpu_seconds(
            lambda: network(counts, probe)
        )

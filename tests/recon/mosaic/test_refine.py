"""Refinement: sweeps go to the truth where frames overlap, and keep to the start where they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bluesky_ptychonn.array_store import ArrayStore
from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from bluesky_ptychonn.recon.evaluation.metrics import phase_correlation
from bluesky_ptychonn.recon.evaluation.simulated_scans import ScanSeries, best_rounds
from bluesky_ptychonn.recon.mosaic import sweeps
from bluesky_ptychonn.recon.mosaic.probe_tuning import aberrated, pupil_aberrations
from bluesky_ptychonn.recon.mosaic.refine import refine
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement, asked_for
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic, MosaicImage
from bluesky_ptychonn.recon.networks.families import build_network
from bluesky_ptychonn.recon.networks.lifted import LiftedConfig, LiftedNetwork
from tests.support.scans import scan_of

EXPERIMENT = SimulatedExperiment.demo("etched", seed=5, photons=1e6)
PIXEL = EXPERIMENT.pixel_m
PROBE = torch.as_tensor((EXPERIMENT.probe * np.sqrt(EXPERIMENT.photons)).astype(np.complex64))
N = PROBE.shape[0]
WEIGHT = np.abs(EXPERIMENT.probe[N // 4 : -N // 4, N // 4 : -N // 4]) ** 2


def scan(step_px: float, side: int = 6) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Frames, y and x of a raster with steps that are no whole pixels."""
    rng = np.random.default_rng(0)
    line = (np.arange(side) - (side - 1) / 2) * step_px * PIXEL
    y, x = (a.ravel() for a in np.meshgrid(line, line, indexing="ij"))
    y = y + rng.uniform(-0.5, 0.5, y.size) * PIXEL
    frames = np.stack([EXPERIMENT.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)])
    return torch.as_tensor(frames.astype(np.float32)), y, x


def mosaic_of(y: np.ndarray, x: np.ndarray, patches: np.ndarray | None = None) -> MosaicImage:
    """Stitch patches; flat ones where none are given."""
    h, w = WEIGHT.shape
    mosaic = Mosaic(PIXEL, WEIGHT)
    mosaic.add(np.ones((len(y), h, w), np.complex64) if patches is None else patches, y, x, np.ones(len(y)))
    return mosaic.snapshot()


def correlation(image: MosaicImage) -> float:
    truth = EXPERIMENT.truth_on(image.origin_m, image.phase.shape)
    seen = np.isfinite(image.phase)
    return phase_correlation(np.where(seen, image.complex, 1), truth, seen.astype(float))


def test_overlapping_frames_lead_to_the_truth() -> None:
    counts, y, x = scan(6.0)
    flat = mosaic_of(y, x)
    refined, record = refine(flat, scan_of(counts, y, x, PROBE), WEIGHT, Refinement(sweeps=40, rounds=1, pull=0))
    assert correlation(refined) > 0.95
    assert record["sweeps"] == 40
    assert record["frames"] == len(counts)
    assert record["looks"] == 0
    np.testing.assert_array_equal(np.isfinite(refined.phase), np.isfinite(flat.phase))
    np.testing.assert_array_equal(refined.coverage, flat.coverage)
    assert refined.origin_m == flat.origin_m


def test_frames_in_a_file_lead_to_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than fits, counts lie in a file, and moduli and probes are made again in each sweep."""
    counts, y, x = scan(6.0)
    flat = mosaic_of(y, x)
    expected, _ = refine(flat, scan_of(counts, y, x, PROBE), WEIGHT, Refinement(sweeps=3, rounds=1))
    store = ArrayStore(10 * counts[0].nbytes)
    for frame in counts.numpy():
        store.append(frame)
    assert store.on_disk
    monkeypatch.setattr(sweeps, "_KEPT_BYTES", 0)
    lying = scan_of(torch.from_numpy(store.whole()), y, x, PROBE)
    found, _ = refine(flat, lying, WEIGHT, Refinement(sweeps=3, rounds=1))
    np.testing.assert_allclose(found.complex, expected.complex, atol=1e-5)
    again, _ = refine(flat, lying, WEIGHT, Refinement(sweeps=3, rounds=1))
    np.testing.assert_array_equal(found.complex, again.complex)


def test_what_frames_give_is_added_up_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """`index_add_` adds on a graphics processor in any order; light and object are told here by numpy."""
    counts, y, x = scan(3.3)
    monkeypatch.setattr(torch.Tensor, "index_add_", None, raising=False)
    sweeper = sweeps.Sweeper(mosaic_of(y, x), scan_of(counts, y, x, PROBE), Refinement())
    expected = np.zeros(tuple(sweeper._light.shape), np.float64)
    for window, probe in zip(sweeper._windows, sweeper._probes(torch.arange(len(y))), strict=True):
        expected[window] += probe.abs().square().numpy()
    np.testing.assert_allclose(sweeper._light.numpy(), expected, rtol=1e-4, atol=1e-3 * expected.max())
    sweeper.sweep()


def test_the_truth_stays_where_it_is() -> None:
    counts, y, x = scan(6.0)
    flat = mosaic_of(y, x)
    truth = EXPERIMENT.truth_on(flat.origin_m, flat.phase.shape)
    seen = np.isfinite(flat.phase)
    start = MosaicImage(
        np.where(seen, np.abs(truth), np.nan).astype(np.float32),
        np.where(seen, np.angle(truth), np.nan).astype(np.float32),
        flat.coverage,
        flat.trust,
        flat.origin_m,
        flat.pixel_m,
    )
    refined, _ = refine(start, scan_of(counts, y, x, PROBE), WEIGHT, Refinement(sweeps=5, rounds=1))
    assert correlation(refined) > 0.98  # noise and the unknown surroundings move it a little


def test_a_strong_pull_keeps_the_start() -> None:
    counts, y, x = scan(6.0)
    flat = mosaic_of(y, x)
    held, _ = refine(flat, scan_of(counts, y, x, PROBE), WEIGHT, Refinement(sweeps=1, rounds=1, pull=10))
    free, _ = refine(flat, scan_of(counts, y, x, PROBE), WEIGHT, Refinement(sweeps=1, rounds=1, pull=0))
    seen = np.isfinite(flat.phase)
    assert np.abs(held.complex - flat.complex)[seen].mean() < np.abs(free.complex - flat.complex)[seen].mean() / 2


def test_the_network_looks_again_between_rounds() -> None:
    torch.manual_seed(0)
    network = build_network(LiftedConfig(frame_size=N, patch_size=N // 2, width=8, stages=2)).eval()
    counts, y, x = scan(8.0, side=4)
    settings = Refinement(sweeps=2, rounds=3)
    _, record = refine(mosaic_of(y, x), scan_of(counts, y, x, PROBE), WEIGHT, settings, network=network)
    assert (record["sweeps"], record["looks"]) == (6, 2)
    # A network that corrects nothing repeats its lift, whose last stage begins from what it is told.
    known = torch.ones(1, N, N, dtype=torch.complex64) * 0.5
    again = network.last_stage(counts[:1], PROBE, known)
    assert again.shape == (1, N // 2, N // 2)
    assert torch.isfinite(torch.view_as_real(again)).all()


def test_a_second_look_is_synchronised() -> None:
    """A ramp of phase of which the ends come first: what lies between them agrees with both only afterwards."""
    places, (h, w) = np.array([0, 64, 16, 48, 32]), WEIGHT.shape  # px

    class Ramp(LiftedNetwork):
        def last_stage(self, counts: torch.Tensor, probe: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
            columns = places[counts[:, 0, 0].int().numpy()][:, None, None] + np.arange(w) + np.zeros((h, 1))
            return torch.as_tensor(np.exp(0.3j * columns).astype(np.complex64))

    counts = torch.arange(5.0)[:, None, None].expand(5, N, N)
    y, x = np.zeros(5), places * PIXEL
    flat = mosaic_of(y, x)
    swept = sweeps.Sweeper(flat, scan_of(counts, y, x, PROBE), Refinement())
    network = Ramp(LiftedConfig(frame_size=N, patch_size=N // 2, width=4, stages=1))
    swept.apply_last_stage(network, np.ones((h, w), np.float32), anchor=0.0)
    phase = np.unwrap(swept.image(flat).phase[h // 2])
    assert np.ptp(np.diff(phase)) < 0.005


class Forgetful(LiftedNetwork):
    """A network whose second look undoes what the sweeps did."""

    def last_stage(self, counts: torch.Tensor, probe: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(known[:, N // 4 : -N // 4, N // 4 : -N // 4])


class Keen(LiftedNetwork):
    """A network that sees nothing at first, and all that is known at a second look."""

    def stages(self, counts: torch.Tensor, probe: torch.Tensor | None) -> list[torch.Tensor]:
        return [torch.ones(len(counts), N // 2, N // 2, dtype=torch.complex64)]

    def last_stage(self, counts: torch.Tensor, probe: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        return known[:, N // 4 : -N // 4, N // 4 : -N // 4]


@pytest.mark.parametrize(("kind", "expected"), [(Forgetful, 1), (Keen, 2)])
def test_a_second_look_is_taken_where_it_helps(kind: type[LiftedNetwork], expected: int) -> None:
    torch.manual_seed(0)
    network = kind(LiftedConfig(frame_size=N, patch_size=N // 2, width=4, stages=1)).eval()
    series = ScanSeries((0.35,), ("etched",), 1.5)
    assert best_rounds(network, PROBE.numpy(), EXPERIMENT.geometry, series, most=2) == expected


def test_a_drifted_probe_is_tuned_first() -> None:
    counts, y, x = scan(8.0)
    drift = torch.tensor([0.6, 0, 0, 0, 0, 0, 0])
    believed = aberrated(PROBE, pupil_aberrations(PROBE), drift)
    start = mosaic_of(y, x)
    wrong, record = refine(start, scan_of(counts, y, x, believed), WEIGHT, Refinement(sweeps=20, pull=0))
    assert "probe" not in record
    settings = Refinement(sweeps=20, pull=0, tune_probe=True)
    mended, record = refine(start, scan_of(counts, y, x, believed), WEIGHT, settings)
    assert record["probe"]["used"]
    assert record["probe"]["aberrations_rad"]["defocus"] == pytest.approx(-0.6, abs=0.06)
    assert correlation(mended) > correlation(wrong) + 0.02
    _, record = refine(start, scan_of(counts, y, x, PROBE), WEIGHT, settings)
    assert not record["probe"]["used"]
    _, record = refine(start, scan_of(counts, y, x, believed), WEIGHT, settings, within_s=0.5)
    assert "probe" not in record  # a running scan's mosaics do not wait for it


def test_time_that_is_up_ends_it() -> None:
    counts, y, x = scan(8.0, side=3)
    _, record = refine(mosaic_of(y, x), scan_of(counts, y, x, PROBE), WEIGHT, Refinement(sweeps=1000), within_s=0.05)
    assert record["sweeps"] < 1000


def test_what_does_not_go_together_is_said() -> None:
    counts, y, x = scan(8.0, side=3)
    with pytest.raises(ValueError, match=r"counts \(9, 64, 64\), probe \(32, 32\) and positions \(9, 2\)"):
        refine(mosaic_of(y, x), scan_of(counts, y, x, PROBE[:32, :32]), WEIGHT)
    assert asked_for(False) is None
    assert asked_for(True) == Refinement()
    assert asked_for(Refinement(sweeps=3)).sweeps == 3

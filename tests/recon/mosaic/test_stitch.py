"""The mosaic: exact where patches agree, one global phase, always a whole picture."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bluesky_ptychonn.optics.simulate import SampleKind, SimulatedExperiment, crop
from bluesky_ptychonn.recon.evaluation.metrics import phase_mae
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic

PIXEL = 2e-8


def bump(size: int = 32) -> NDArray[np.float32]:
    r = np.arange(size) - size / 2 + 0.5
    return np.exp(-(r[:, None] ** 2 + r[None, :] ** 2) / (size / 4) ** 2).astype(np.float32)


def middle(kind: SampleKind) -> SimulatedExperiment:
    """The demo with the middle of its sample only: to interpolate it takes as long as it is large."""
    whole = SimulatedExperiment.demo(kind)
    return replace(whole, sample=whole.sample[224:416, 224:416])


def cut(
    experiment: SimulatedExperiment, y_px: NDArray[np.float64], x_px: NDArray[np.float64], size: int = 32
) -> NDArray[np.complex64]:
    pixel = experiment.pixel_m
    return np.stack(
        [
            experiment.truth_on(((y - size // 2) * pixel, (x - size // 2) * pixel), (size, size))
            for y, x in zip(y_px, x_px, strict=True)
        ]
    )


@pytest.mark.parametrize(("step", "reach"), [(4, 24.0), (11, 45.0), (15, 45.0)])
def test_true_patches_give_the_true_object(step: int, reach: float) -> None:
    experiment = middle("cells")
    line = np.arange(-reach, reach + 1, step)
    y, x = (g.ravel() for g in np.meshgrid(line, line))
    mosaic = Mosaic(experiment.pixel_m, bump(), anchor=0)  # the overlap alone decides
    mosaic.add(cut(experiment, y, x), y * experiment.pixel_m, x * experiment.pixel_m, np.ones(y.size))
    mosaic.synchronise(200, 1e-6)
    image = mosaic.snapshot()
    truth = experiment.truth_on(image.origin_m, image.amplitude.shape)
    assert phase_mae(image.complex, truth) < 1e-3
    np.testing.assert_allclose(image.amplitude[image.coverage > 0], np.abs(truth)[image.coverage > 0], atol=1e-3)


def test_sub_pixel_positions_are_honoured() -> None:
    experiment = middle("cells")
    rng = np.random.default_rng(0)
    y, x = rng.uniform(-30, 30, (2, 60))
    patches = cut(experiment, y, x)
    errors = []
    for shift in (0.0, 0.5):
        mosaic = Mosaic(experiment.pixel_m, bump(), anchor=0)
        mosaic.add(patches, (y + shift) * experiment.pixel_m, x * experiment.pixel_m, np.ones(60))
        mosaic.synchronise(200)
        image = mosaic.snapshot()
        origin = (image.origin_m[0], image.origin_m[1])
        errors.append(phase_mae(image.complex, experiment.truth_on(origin, image.amplitude.shape)))
    assert errors[0] < 0.01
    assert errors[1] > 2 * errors[0]


@pytest.mark.parametrize("shift", [(0.5, 0.0), (0.3, -0.4), (0.0, 0.2)])
def test_patches_are_shifted_by_parts_of_a_pixel(shift: tuple[float, float]) -> None:
    """Fine waves of phase, told by a formula: put on whole pixels they would be wrong by 0.1 rad and more."""
    line = np.arange(0.0, 49, 8)
    y, x = (g.ravel() for g in np.meshgrid(line + shift[0], line + shift[1], indexing="ij"))

    def phase(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(0.3 * np.sin(2 * np.pi * rows / 7) + 0.3 * np.cos(2 * np.pi * columns / 6))

    pixels = np.arange(32) - 16
    patches = np.exp(1j * phase(y[:, None, None] + pixels[:, None], x[:, None, None] + pixels)).astype(np.complex64)
    mosaic = Mosaic(PIXEL, bump(), anchor=0)
    mosaic.add(patches, y * PIXEL, x * PIXEL, np.ones(len(y)))
    mosaic.synchronise(50)
    image = mosaic.snapshot()
    rows, columns = (o / PIXEL + np.arange(n) for o, n in zip(image.origin_m, image.phase.shape, strict=True))
    truth = np.exp(1j * phase(rows[:, None], columns))
    inner = (slice(16, -16), slice(16, -16))
    turned = image.complex[inner] * truth[inner].conj()
    error = np.angle(turned * np.exp(-1j * np.angle(turned.sum())))
    assert np.abs(error).mean() < 0.005
    assert np.abs(error).max() < 0.02


def test_a_patch_weighs_where_it_lies_between_pixels() -> None:
    """Light that falls linearly from a ridge: half a pixel on, each pixel has the mean of the two it lies between."""
    weight = (1 - np.abs(np.arange(8) - 3) / 8 + np.zeros((8, 1))).astype(np.float32)
    mosaic = Mosaic(PIXEL, weight)
    mosaic.add(np.ones((1, 8, 8), np.complex64), np.zeros(1), np.array([0.25 * PIXEL]), np.ones(1))
    expected = 0.75 * weight[:, 1:] + 0.25 * weight[:, :-1]
    np.testing.assert_allclose(mosaic.snapshot().coverage[:, 1:], expected, atol=1e-5)


def test_random_global_phases_are_agreed() -> None:
    """What the network cannot know, the overlap tells: turned patches give the same picture."""
    experiment = middle("etched")
    rng = np.random.default_rng(1)
    line = np.arange(-60.0, 61.0, 15)
    y, x = (g.ravel() for g in np.meshgrid(line, line))
    order = rng.permutation(y.size)  # neighbours arrive late, so arrival alone cannot agree
    y, x = y[order], x[order]
    patches = cut(experiment, y, x) * np.exp(2j * np.pi * rng.random(y.size))[:, None, None].astype(np.complex64)
    mosaic = Mosaic(experiment.pixel_m, bump(), anchor=0)
    mosaic.add(patches, y * experiment.pixel_m, x * experiment.pixel_m, np.ones(y.size))
    last_turn = mosaic.synchronise(100)
    image = mosaic.snapshot()
    assert last_turn < 0.02
    assert phase_mae(image.complex, experiment.truth_on(image.origin_m, image.amplitude.shape)) < 0.02


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_neither_order_nor_blocks_change_coverage(order: list[int], block: int) -> None:
    rng = np.random.default_rng(5)
    patches = rng.standard_normal((6, 8, 8)).astype(np.complex64)
    y, x = rng.uniform(0, 20 * PIXEL, (2, 6))
    reference = Mosaic(PIXEL, bump(8))
    reference.add(patches, y, x, np.ones(6))
    other = Mosaic(PIXEL, bump(8))
    for start in range(0, 6, block):
        part = order[start : start + block]
        other.add(patches[part], y[part], x[part], np.ones(len(part)))
    a, b = reference.snapshot(), other.snapshot()
    assert a.origin_m == pytest.approx(b.origin_m)
    np.testing.assert_allclose(a.coverage, b.coverage, atol=1e-5)


def test_nothing_covered_is_nan_not_zero() -> None:
    mosaic = Mosaic(PIXEL, np.ones((8, 8), np.float32))
    mosaic.add(np.ones((2, 8, 8), np.complex64), np.array([0.0, 0.0]), np.array([0.0, 40 * PIXEL]), np.ones(2))
    image = mosaic.snapshot()
    gap = image.coverage == 0
    assert gap.any()
    for name in ("amplitude", "phase", "trust"):
        assert np.isnan(getattr(image, name)[gap]).all()
        assert np.isfinite(getattr(image, name)[~gap]).all()


def test_distrusted_patches_weigh_less() -> None:
    mosaic = Mosaic(PIXEL, np.ones((8, 8), np.float32))
    patches = np.stack([np.full((8, 8), 1.0), np.full((8, 8), 2.0)]).astype(np.complex64)
    mosaic.add(patches, np.zeros(2), np.zeros(2), np.array([1.0, 0.1]))
    image = mosaic.snapshot()
    assert image.amplitude[4, 4] == pytest.approx((1 + 0.1 * 2) / 1.1, rel=1e-5)
    assert image.trust[4, 4] == pytest.approx((1 + 0.1 * 0.1) / 1.1, rel=1e-5)


def test_the_anchor_holds_what_overlaps_too_little_to_agree() -> None:
    """Patches with errors where they overlap: a long chain drifts without an anchor, and stays with one."""
    rng = np.random.default_rng(3)
    patches = np.ones((40, 16, 16), np.complex64)
    patches[:, :, 12:] *= np.exp(1j * rng.normal(0.4, 0.05, 40))[:, None, None]
    spread = []
    for anchor in (0.0, 0.5):
        mosaic = Mosaic(PIXEL, np.ones((16, 16), np.float32), anchor=anchor)
        mosaic.add(patches, np.zeros(40), np.arange(40) * 14 * PIXEL, np.ones(40))
        mosaic.synchronise(50)
        phase = np.unwrap(mosaic.snapshot().phase[8, 6::14])
        spread.append(np.ptp(phase))
    assert spread[0] > 3 * spread[1]


def test_an_empty_mosaic_is_an_empty_picture() -> None:
    assert Mosaic(PIXEL, bump(8)).snapshot().phase.shape == (0, 0)


def test_memory_for_synchronising_is_bounded() -> None:
    """Beyond the limit patches lie in a file, and the picture is the same to the bit."""
    rng = np.random.default_rng(2)
    y, x = rng.uniform(0, 30 * PIXEL, (2, 50))
    patches = np.exp(1j * rng.normal(0, 1, (50, 8, 8)) + 1j * rng.uniform(0, 6, (50, 1, 1))).astype(np.complex64)
    pictures = []
    for keep in (2**20, 8 * 8 * 8 * 3):
        mosaic = Mosaic(PIXEL, bump(8), keep=keep)
        mosaic.add(patches, y, x, np.ones(50))
        arrived = mosaic.snapshot().phase
        mosaic.synchronise()
        pictures.append(mosaic.snapshot())
        assert mosaic._plain.on_disk == (keep < 2**20)
        assert np.nanmax(np.abs(pictures[-1].phase - arrived)) > 0.1  # there was something to synchronise
    np.testing.assert_array_equal(pictures[0].complex, pictures[1].complex)


def test_memory_does_not_grow_with_patches() -> None:
    mosaic = Mosaic(PIXEL, bump(64), keep=0)
    patches, at = np.ones((32, 64, 64), np.complex64), np.zeros(32)
    mosaic.add(patches, at, at, np.ones(32))
    tracemalloc.start()
    for _ in range(4):
        mosaic.add(patches, at, at, np.ones(32))
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 128 * 1024  # 1 KiB a patch; the patches themselves are 32 KiB each


def test_patches_that_no_disk_takes_keep_their_phase_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    mosaic = Mosaic(PIXEL, bump(8), keep=8 * 8 * 8 * 3)
    mosaic.add(np.ones((50, 8, 8), np.complex64), np.zeros(50), np.arange(50) * PIXEL, np.ones(50))
    mosaic.synchronise()
    assert mosaic.problem == "patches beyond 3 cannot be kept: [Errno 28] No space left on device"
    assert mosaic.count == 50  # the others are in it all the same
    np.testing.assert_allclose(mosaic.snapshot().amplitude[1:-1, 1:-1], 1, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(9)), st.integers(1, 9))
def test_the_synchronised_picture_is_the_same_to_the_bit_however_patches_came(order: list[int], block: int) -> None:
    rng = np.random.default_rng(5)
    patches = np.exp(1j * rng.normal(0, 1, (9, 8, 8))).astype(np.complex64)
    y, x, trust = *rng.uniform(0, 12 * PIXEL, (2, 9)), rng.uniform(0, 1, 9)
    reference, other = Mosaic(PIXEL, bump(8)), Mosaic(PIXEL, bump(8))
    reference.add(patches, y, x, trust, range(9))
    early = order[:3]  # others in their place at first
    other.add(patches[early][::-1], x[early], y[early], trust[early], early)
    for start in range(0, 9, block):
        part = order[start : start + block]
        other.add(patches[part], y[part], x[part], trust[part], part)
    assert other.count == 9
    for mosaic in (reference, other):
        mosaic.synchronise()
    a, b = reference.snapshot(), other.snapshot()
    row, column = (round((mine - theirs) / PIXEL) for mine, theirs in zip(a.origin_m, b.origin_m, strict=True))
    h, w = a.phase.shape
    for name in ("amplitude", "phase", "coverage", "trust"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name)[row : row + h, column : column + w])


@pytest.mark.parametrize(
    ("y", "words"),
    [([np.nan, 0.0], "position of patch 0 is not finite"), ([0.0, 1.0], "check the unit of the positions")],
)
def test_bad_positions_are_refused_and_nothing_is_added(y: list[float], words: str) -> None:
    mosaic = Mosaic(PIXEL, bump(8))
    with pytest.raises(ValueError, match=words):
        mosaic.add(np.ones((2, 8, 8), np.complex64), np.array(y), np.zeros(2), np.ones(2))
    assert mosaic.count == 0
    assert mosaic.snapshot().phase.shape == (0, 0)


def test_wrong_patch_shape_names_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"a patch is \(8, 8\) px"):
        Mosaic(PIXEL, bump(8)).add(np.ones((1, 9, 9), np.complex64), np.zeros(1), np.zeros(1), np.ones(1))


def test_crop_matches_truth_grid() -> None:
    """The patch convention: pixel h // 2 sits at the position, the same for the simulator's crop and its truth."""
    experiment = SimulatedExperiment.demo()
    np.testing.assert_allclose(
        crop(experiment.sample, 320 + 7, 320 - 3, 32), cut(experiment, np.array([7.0]), np.array([-3.0]))[0], atol=1e-5
    )

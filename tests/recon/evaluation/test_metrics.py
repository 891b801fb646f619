"""Errors that do not move when what ptychography cannot know moves, checked against plain loops and closed forms."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bluesky_ptychonn.recon.evaluation.metrics import (
    RingCorrelation,
    align,
    fourier_ring_correlation,
    phase_correlation,
    phase_error,
    phase_mae,
    ssim,
)

SHAPE = (24, 20)


def pair(seed: int = 0, shape: tuple[int, int] = SHAPE, noise: float = 0.2) -> tuple[NDArray, NDArray]:
    """A complex reference with structure, and a noisy version of it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    phase = 0.6 * np.sin(0.7 * y + 0.2) * np.cos(0.45 * x) - 0.3
    reference = (0.85 + 0.1 * np.cos(0.5 * x)) * np.exp(1j * phase)
    image = reference * (1 + 0.05 * rng.normal(size=shape)) * np.exp(1j * noise * rng.normal(size=shape))
    return image, reference


def ramp_of(shape: tuple[int, int], slope_y: float, slope_x: float) -> NDArray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.exp(1j * (slope_y * y + slope_x * x))


def test_phase_mae_agrees_with_a_plain_loop() -> None:
    image, reference = pair(3)
    total = sum(
        cmath.exp(1j * (cmath.phase(a) - cmath.phase(b))) for a, b in zip(image.ravel(), reference.ravel(), strict=True)
    )
    offset = cmath.phase(total)
    errors = []
    for a, b in zip(image.ravel(), reference.ravel(), strict=True):
        error = cmath.phase(a) - cmath.phase(b) - offset
        errors.append(math.remainder(error, 2 * math.pi))
    assert phase_mae(image, reference) == pytest.approx(np.mean(np.abs(errors)), rel=1e-9)


def test_phase_correlation_agrees_with_numpy_where_nothing_wraps() -> None:
    image, reference = pair(4)
    expected = np.corrcoef(np.angle(align(image, reference)).ravel(), np.angle(reference).ravel())[0, 1]
    assert phase_correlation(image, reference) == pytest.approx(expected, abs=1e-9)


def test_a_phase_image_and_its_transmission_give_the_same_error() -> None:
    image, reference = pair(5)
    assert phase_mae(np.angle(image), np.angle(reference)) == pytest.approx(phase_mae(image, reference), rel=1e-9)
    assert phase_correlation(np.angle(image), reference) == pytest.approx(phase_correlation(image, reference))


@settings(max_examples=30, deadline=None)
@given(angle=st.floats(-7, 7), turn=st.floats(-7, 7), factor=st.floats(0.2, 5), seed=st.integers(0, 20))
def test_global_phase_and_scale_change_nothing(angle: float, turn: float, factor: float, seed: int) -> None:
    image, reference = pair(seed)
    moved, turned = factor * image * np.exp(1j * angle), reference * np.exp(1j * turn)
    for measure in (phase_mae, phase_correlation):
        assert measure(moved, turned) == pytest.approx(measure(image, reference), abs=1e-9)
    assert ssim(moved, turned) == pytest.approx(ssim(image, reference), abs=1e-9)
    assert np.allclose(
        fourier_ring_correlation(moved, reference).correlation, fourier_ring_correlation(image, reference).correlation
    )


@settings(max_examples=30, deadline=None)
@given(slope_y=st.floats(-1.5, 1.5), slope_x=st.floats(-1.5, 1.5), angle=st.floats(-4, 4), seed=st.integers(0, 20))
def test_a_ramp_changes_nothing_when_asked_to_remove_it(
    slope_y: float, slope_x: float, angle: float, seed: int
) -> None:
    image, reference = pair(seed)
    moved = image * ramp_of(SHAPE, slope_y, slope_x) * np.exp(1j * angle)
    assert phase_mae(moved, reference, ramp=True) == pytest.approx(phase_mae(image, reference, ramp=True), abs=1e-6)
    assert phase_correlation(moved, reference, ramp=True) == pytest.approx(
        phase_correlation(image, reference, ramp=True), abs=1e-6
    )


def test_a_ramp_counts_unless_asked_to_remove_it() -> None:
    _, reference = pair()
    moved = reference * ramp_of(SHAPE, 0.08, -0.05)
    assert phase_mae(moved, reference) > 0.3
    assert phase_mae(moved, reference, ramp=True) < 1e-6


def test_alignment_restores_phase_ramp_and_scale_together() -> None:
    _, reference = pair()
    moved = 2.5 * reference * ramp_of(SHAPE, 0.31, 0.17) * np.exp(2.2j)
    assert np.allclose(align(moved, reference, ramp=True, scale=True), reference, atol=1e-6)


def test_the_difference_wraps() -> None:
    reference = np.full((8, 8), np.pi - 0.05)
    image = reference.copy()
    image[::2] = -np.pi + 0.05  # 0.1 rad further round the circle, half of the rows
    error = phase_error(image, reference)
    assert np.abs(error).max() == pytest.approx(0.05, abs=1e-9)


def test_a_known_error_is_measured() -> None:
    reference = np.zeros((10, 10))
    image = np.where(np.arange(100).reshape(10, 10) % 2, 0.2, -0.2)
    assert phase_mae(image, reference) == pytest.approx(0.2)


def test_nan_outside_coverage_is_the_same_as_cutting_it_off() -> None:
    image, reference = pair(6)
    holed = image.copy()
    holed[:, 14:] = np.nan
    cut = (slice(None), slice(0, 14))
    for measure in (phase_mae, phase_correlation):
        assert measure(holed, reference) == pytest.approx(measure(image[cut], reference[cut]))
    assert np.isnan(phase_error(holed, reference)[:, 14:]).all()
    assert np.isnan(align(holed, reference, ramp=True)[:, 14:]).all()
    assert np.isfinite(ssim(holed, reference))
    assert np.isfinite(fourier_ring_correlation(holed, reference).correlation[1:5]).all()


def test_weight_of_zero_hides_garbage_and_weights_weigh() -> None:
    image, reference = pair(7)
    broken = image.copy()
    broken[:5] = 40 * np.exp(2j)
    mask = np.ones(SHAPE, dtype=bool)
    mask[:5] = False
    assert phase_mae(broken, reference, mask) == pytest.approx(phase_mae(image[5:], reference[5:]))
    # A pixel of weight 2 counts like the same pixel twice.
    doubled = np.concatenate([image, image[5:]])
    weights = np.where(mask, 2.0, 1.0)
    expected = phase_mae(doubled, np.concatenate([reference, reference[5:]]))
    assert phase_mae(image, reference, weights) == pytest.approx(expected)


def test_ssim_is_one_for_the_same_image_and_falls_with_noise() -> None:
    _, reference = pair()
    scores = [ssim(pair(9, noise=n)[0], reference) for n in (0.0, 0.1, 0.3, 0.8)]
    assert scores[0] == pytest.approx(1.0, abs=1e-6)
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.5


def test_ssim_data_range_is_the_reference_span_unless_given() -> None:
    image, reference = pair(10)
    theirs = np.angle(reference * np.exp(-1j * np.angle(np.sum(reference / np.abs(reference)))))
    assert ssim(image, reference) == pytest.approx(ssim(image, reference, data_range=float(np.ptp(theirs))))
    assert ssim(image, reference, data_range=20.0) > ssim(image, reference)


def test_correlation_of_a_flat_phase_is_undefined() -> None:
    _, reference = pair()
    assert math.isnan(phase_correlation(np.ones(SHAPE, dtype=complex), reference))


def test_ring_correlation_agrees_with_a_loop_over_pixels() -> None:
    image, reference = pair(11, (16, 16))
    window = np.outer(np.hanning(18)[1:-1], np.hanning(18)[1:-1])
    ours = align(image, reference)
    a = np.fft.fft2((ours - ours.mean()) * window)
    b = np.fft.fft2((reference - reference.mean()) * window)
    k = np.fft.fftfreq(16) * 16
    top, left, right, count = (np.zeros(9) for _ in range(4))
    for i in range(16):
        for j in range(16):
            ring = int(np.rint(math.hypot(k[i], k[j])))
            if ring <= 8:
                top[ring] += (a[i, j] * b[i, j].conjugate()).real
                left[ring] += abs(a[i, j]) ** 2
                right[ring] += abs(b[i, j]) ** 2
                count[ring] += 1
    found = fourier_ring_correlation(image, reference)
    assert np.allclose(found.correlation, top / np.sqrt(left * right))
    assert np.array_equal(found.pixels, count)
    assert found.frequency[-1] == pytest.approx(0.5)


def test_ring_correlation_finds_the_blur() -> None:
    rng = np.random.default_rng(12)
    n = 128
    spectrum = np.fft.fft2(rng.normal(size=(n, n)))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n)))
    shared = np.real(np.fft.ifft2(np.where(radius < 0.2, spectrum, 0)))
    first, second = (np.exp(1j * (0.1 * shared + 0.01 * rng.normal(size=(n, n)))) for _ in range(2))
    for criterion in ("half-bit", "1/7"):
        resolution = fourier_ring_correlation(first, second).resolution_px(criterion)  # type: ignore[arg-type]
        assert 0.5 / resolution == pytest.approx(0.2, abs=0.02)
    assert fourier_ring_correlation(first, first).resolution_px() == 1.0


def test_half_bit_threshold_at_its_limits() -> None:
    curve = RingCorrelation(np.array([0.0, 0.5]), np.array([1.0, 0.0]), np.array([1, 10**12]))
    assert curve.half_bit[0] == pytest.approx(1.0, abs=1e-6)
    assert curve.half_bit[1] == pytest.approx(0.2071 / 1.2071, abs=1e-4)
    assert curve.resolution_px() == math.inf


@pytest.mark.parametrize(
    ("image", "reference", "weight", "words"),
    [
        (np.ones((4, 4)), np.ones((5, 4)), None, "cut both to the same area"),
        (np.ones(4), np.ones((4, 4)), None, "2-D image"),
        (np.full((4, 4), np.nan), np.ones((4, 4)), None, "no pixel to compare"),
        (np.ones((4, 4)), np.ones((4, 4)), -np.ones((4, 4)), "weights are 0 or more"),
        (np.ones((4, 4)), np.ones((4, 4)), np.ones((3, 4)), "must be the same"),
        (np.ones((4, 4)), np.ones((4, 4)), np.zeros((4, 4)), "weight 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(
    image: NDArray, reference: NDArray, weight: NDArray | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        phase_mae(image, reference, weight)


def test_ssim_refuses_in_words() -> None:
    with pytest.raises(ValueError, match="7 x 7"):
        ssim(np.zeros((5, 9)), np.zeros((5, 9)), data_range=1.0)
    with pytest.raises(ValueError, match="data_range"):
        ssim(np.zeros((9, 9)), np.zeros((9, 9)))
    with pytest.raises(ValueError, match="amplitude 0"):
        align(np.zeros((4, 4), complex), np.ones((4, 4)), scale=True)

"""Counts come out where they should, and a broken frame is named, never raised, and never touches its neighbours."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch.nn import functional

from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from bluesky_ptychonn.recon.inference import preprocess as preprocessing
from bluesky_ptychonn.recon.inference.preprocess import Preprocess, PreprocessConfig, find_bad_pixels


def smooth_frames(n: int = 3, shape: tuple[int, int] = (16, 16), dtype: Any = np.uint16) -> NDArray:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[: shape[0], : shape[1]]
    mean = 200 * np.exp(-((y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2) / 60) + 5
    return rng.poisson(mean, (n, *shape)).astype(dtype)


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "uint32", "int16", "int32", "int64", "float32", "float64", ">u2", ">f4"]
)
def test_every_real_type_passes_unchanged(dtype: str) -> None:
    frames = np.minimum(smooth_frames(dtype=np.int64), 200).astype(dtype)
    prepared = Preprocess()(frames)
    assert prepared.counts.dtype == torch.float32
    assert np.array_equal(prepared.counts.numpy(), frames.astype(np.float32))
    assert prepared.valid.all()
    assert prepared.flag == ["", "", ""]


def test_memory_that_may_not_be_written_and_slices_are_taken() -> None:
    frames = smooth_frames(6)
    expected = frames[::-2].astype(np.float32)
    frames.flags.writeable = False
    assert np.array_equal(Preprocess()(frames[::-2]).counts.numpy(), expected)
    assert np.array_equal(Preprocess()(torch.from_numpy(expected)).counts.numpy(), expected)


def test_the_input_is_never_changed() -> None:
    frames = smooth_frames(dtype=np.float32)
    frames[0, 3, 3] = np.nan
    frames[1, 4, 4] = -3
    before = frames.copy()
    Preprocess(PreprocessConfig(count_threshold=2, bad_pixels=((1, 1),)))(frames)
    assert np.array_equal(frames, before, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([16, 18, 24]),
    columns=st.sampled_from([16, 20]),
    transpose=st.booleans(),
    flip_y=st.booleans(),
    flip_x=st.booleans(),
    crop=st.sampled_from([None, 8, 12, 16, 32]),
    centre=st.one_of(st.none(), st.tuples(st.integers(0, 15), st.integers(0, 15))),
)
def test_orientation_and_cut_agree_with_indexing_about_the_beam(
    rows: int,
    columns: int,
    transpose: bool,
    flip_y: bool,
    flip_x: bool,
    crop: int | None,
    centre: tuple[int, int] | None,
) -> None:
    config = PreprocessConfig(transpose=transpose, flip_y=flip_y, flip_x=flip_x, crop=crop, centre=centre)
    frame = np.random.default_rng(rows * columns).integers(1, 100, (rows, columns)).astype(np.uint16)
    found = Preprocess(config)(frame[None]).counts.numpy()[0]
    beam = centre or (rows // 2, columns // 2)
    height, width = found.shape
    for i in range(height):
        for j in range(width):
            dy, dx = i - height // 2, j - width // 2  # from the beam, in the frame that comes out
            dy, dx = (-dy if flip_y else dy), (-dx if flip_x else dx)
            if transpose:
                dy, dx = dx, dy
            y, x = beam[0] + dy, beam[1] + dx
            inside = 0 <= y < rows and 0 <= x < columns
            assert found[i, j] == (frame[y, x] if inside else 0)


def test_binning_sums() -> None:
    frames = smooth_frames()
    found = Preprocess(PreprocessConfig(bin=2))(frames).counts.numpy()
    expected = frames.astype(float).reshape(3, 8, 2, 8, 2).sum(axis=(2, 4))
    assert np.allclose(found, expected)


@pytest.mark.parametrize(("side", "out"), [(24, 8), (32, 16), (40, 16), (16, 16), (12, 16)])
def test_resizing_agrees_with_scikit_image(side: int, out: int) -> None:
    from skimage.transform import resize

    frames = smooth_frames(2, (side, side), np.float32)
    expected = np.stack([resize(f, (out, out), preserve_range=True, anti_aliasing=True) for f in frames.astype(float)])
    found = Preprocess(PreprocessConfig(resize=out))(frames).counts.numpy()
    inner = slice(2, -2)  # scikit-image mirrors at the edge where torch repeats
    assert np.allclose(found[:, inner, inner], expected[:, inner, inner], rtol=1e-4)


def test_published_preprocessing_on_a_measured_frame() -> None:
    """Crop 192 of 256, resize to 64 with anti-aliasing, counts below 3 to 0 (PtychoNN, APS 26-ID)."""
    from skimage.transform import resize

    folder = Path(os.environ.get("PTYCHONN_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
    path = folder / "20191008_39_diff_sample.npy"
    if not path.is_file():
        pytest.skip(f"measured frames are absent: {path} (set PTYCHONN_DATA)")
    frames = np.load(path).reshape(-1, 256, 256)
    expected = []
    for frame in frames.astype(float):
        small = resize(frame[32:-32, 32:-32], (64, 64), preserve_range=True, anti_aliasing=True)
        expected.append(np.where(small < 3, 0, small))
    prepared = Preprocess(PreprocessConfig(crop=192, resize=64, count_threshold=3))(frames)
    assert prepared.valid.all()
    difference = np.abs(prepared.counts.numpy() - np.array(expected))
    # float32 against float64; at the threshold rounding may decide.
    assert np.quantile(difference, 0.999) < 1e-2
    assert difference.max() < 3.01 + 1e-5 * np.max(expected)


def test_small_counts_are_cut() -> None:
    frames = np.array([[[1, 2, 3, 4]] * 4], dtype=np.float32)
    found = Preprocess(PreprocessConfig(count_threshold=3))(frames).counts.numpy()
    assert found[0, 0].tolist() == [0, 0, 3, 4]


def median_around(frame: NDArray, row: int, column: int, bad: set[tuple[int, int]]) -> float:
    """Lower median of the good pixels in the 5 x 5 block, by hand."""
    values = sorted(
        float(frame[r, c])
        for r in range(row - 2, row + 3)
        for c in range(column - 2, column + 3)
        if 0 <= r < frame.shape[0] and 0 <= c < frame.shape[1] and (r, c) not in bad
    )
    return values[(len(values) - 1) // 2]


def test_static_bad_pixels_are_mended_silently() -> None:
    frames = smooth_frames()
    bad = {(7, 7), (7, 8), (0, 0)}
    frames[:, 7, 7], frames[:, 7, 8], frames[:, 0, 0] = 65535, 0, 65535
    mask = np.zeros((16, 16), dtype=bool)
    mask[0, 0] = True
    prepared = Preprocess(PreprocessConfig(bad_pixels=((7, 7), (7, 8))), mask=mask)(frames)
    assert prepared.flag == ["", "", ""]
    for n in range(3):
        for row, column in bad:
            assert prepared.counts[n, row, column] == median_around(frames[n], row, column, bad)


@pytest.mark.parametrize(
    ("value", "dtype", "flag"),
    [
        (np.nan, np.float32, "nan"),
        (np.inf, np.float64, "nan"),
        (-np.inf, np.float32, "nan"),
        (65535, np.uint16, "saturated"),
        (65534, np.uint16, "saturated"),
        (254, np.uint8, "saturated"),
        (2**31 - 1, np.int32, "saturated"),
        (2**31 - 2, np.int32, "saturated"),
        (2**32 - 2, np.uint32, "saturated"),
        (2**32 - 1, np.float32, "saturated"),
        (2**32 - 2, np.float64, "saturated"),
        (-(2**31), np.int32, "nan"),
        (-1, np.int16, "masked"),
        (-2, np.int32, "masked"),
        (-1, np.int64, "masked"),
        (-1, np.float32, "masked"),
    ],
)
def test_single_bad_pixels_are_mended_and_named(value: float, dtype: Any, flag: str) -> None:
    frames = np.minimum(smooth_frames(dtype=np.int64), 250).astype(dtype)
    clean = frames.copy()
    frames[1, 5, 9] = value
    prepared = Preprocess()(frames)
    assert prepared.flag == ["", flag, ""]
    assert prepared.valid.all()
    assert prepared.counts[1, 5, 9] == median_around(clean[1], 5, 9, {(5, 9)})
    clean[1, 5, 9] = prepared.counts[1, 5, 9]
    assert np.array_equal(prepared.counts.numpy(), clean.astype(np.float32))


def test_saturation_below_the_types_largest_value() -> None:
    frames = smooth_frames(dtype=np.float32)
    frames[2, 1, 1] = 5000
    prepared = Preprocess(PreprocessConfig(saturation=5000))(frames)
    assert prepared.flag == ["", "", "saturated"]
    assert prepared.counts[2, 1, 1] < 100


def test_looking_for_hot_pixels_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are unfolded a few at a time, and found bad whatever part they are in."""
    frames = np.random.default_rng(3).poisson(50, (30, 32, 32)).astype(np.float32)
    frames[::7, 5, 9] = 5000
    unfolded: list[int] = []
    unfold = functional.unfold

    def noting(x: torch.Tensor, size: int) -> torch.Tensor:
        found = unfold(x, size)
        unfolded.append(found.nbytes)
        return found

    whole = Preprocess(PreprocessConfig(hot_ratio=10))(frames).counts
    monkeypatch.setattr(functional, "unfold", noting)
    monkeypatch.setattr(preprocessing, "_UNFOLDED_PX", 4 * 32 * 32)
    parts = Preprocess(PreprocessConfig(hot_ratio=10))(frames).counts
    assert torch.equal(whole, parts)
    assert parts[::7, 5, 9].max() < 100
    assert max(unfolded) <= 9 * 4 * frames[0].nbytes


def test_bad_pixels_of_a_scan_are_found_in_little_memory() -> None:
    frames = np.random.default_rng(4).poisson(50, (400, 64, 64)).astype(np.uint16)
    tracemalloc.start()
    find_bad_pixels(frames)
    assert tracemalloc.get_traced_memory()[1] < frames.nbytes
    tracemalloc.stop()


def test_hot_pixels_by_ratio() -> None:
    frames = smooth_frames()
    frames[1, 2, 2] = 4000
    assert Preprocess()(frames).counts[1, 2, 2] == 4000
    assert Preprocess(PreprocessConfig(hot_ratio=10))(frames).counts[1, 2, 2] < 100
    clean = smooth_frames()
    assert np.array_equal(Preprocess(PreprocessConfig(hot_ratio=10))(clean).counts.numpy(), clean.astype(np.float32))


def test_negative_counts_become_zero_and_are_named() -> None:
    frames = smooth_frames(dtype=np.int32)
    frames[0, 3, 3] = -3
    prepared = Preprocess()(frames)
    assert prepared.flag == ["negative", "", ""]
    assert prepared.valid.all()
    assert prepared.counts[0, 3, 3] == 0
    noisy = smooth_frames(dtype=np.float32)
    noisy[0, :2] = -1.5
    assert Preprocess(PreprocessConfig(count_threshold=3))(noisy).flag == ["", "", ""]  # below the noise floor


def beam_frames(seed: int, n: int = 8, photons: float = 1e5) -> NDArray[np.uint16]:
    """Frames of the simulated beamline, 64 px."""
    experiment, rng = SimulatedExperiment.demo("cells", seed=seed, photons=photons), np.random.default_rng(seed)
    places = rng.uniform(-150, 150, (n, 2)) * experiment.pixel_m
    return np.stack([experiment.frame_at(y, x, rng) for y, x in places])


def noisy(seed: int, sigma: float, **settings: Any) -> NDArray[np.float64]:
    """Frames after a dark subtraction: zero-mean read noise of `sigma` counts."""
    frames = beam_frames(seed, **settings)
    return frames + np.random.default_rng(seed + 1).normal(0, sigma, frames.shape)


@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_a_row_of_codes_is_mended_as_nan_is(threshold: float) -> None:
    """-1 and -2 mark pixels that measured nothing, whatever type they came through; in the dark, 0 is as good."""
    frames, nan = beam_frames(3).astype(np.int32), beam_frames(3).astype(np.float32)
    frames[:, 20], frames[:, 44, ::7], nan[:, 20], nan[:, 44, ::7] = -1, -2, np.nan, np.nan
    prepare = Preprocess(PreprocessConfig(count_threshold=threshold))
    expected = prepare(nan).counts
    for kind in (np.int32, np.float64):
        prepared = prepare(frames.astype(kind))
        assert prepared.valid.all()
        assert all(flag.startswith("masked") for flag in prepared.flag)
        assert (prepared.counts - expected).abs().max() <= 5
        assert (prepared.counts - expected).abs().mean() < 2e-3
    frames[:, 30:33] = -1  # with the others more than 2 % of the frame, and lit
    assert not prepare(frames).valid.any()


def test_noise_that_reaches_no_further_than_the_codes_is_no_code() -> None:
    """A sixth of the dim pixels at -1: where there is no light, a code and noise below zero come to the same."""
    for seed in range(3):
        frames = np.rint(noisy(seed, 0.5)).astype(np.int32)
        assert frames.min() >= -3
        assert (frames < 0).mean() > 0.05
        assert Preprocess()(frames).valid.all()


@pytest.mark.parametrize("photons", [2e4, 1e5])
@pytest.mark.parametrize("sigma", [0.5, 2.0, 4.0])
def test_read_noise_around_zero_is_cut_at_zero(sigma: float, photons: float) -> None:
    frames = noisy(11, sigma, photons=photons)
    weak_dark = np.random.default_rng(5).poisson(0.25, frames.shape) - 0.25 + beam_frames(11, photons=photons)
    for those in (frames, np.rint(frames).astype(np.int16), weak_dark):
        prepared = Preprocess()(those)
        assert prepared.valid.all()
        assert all("negative" in flag or "masked" in flag for flag in prepared.flag)
    assert np.array_equal(Preprocess()(frames).counts.numpy(), np.maximum(frames, 0).astype(np.float32))


@pytest.mark.parametrize("sigma", [0.0, 2.0, 4.0])
@pytest.mark.parametrize(
    ("where", "level"),
    [
        (np.s_[:], -5),
        (np.s_[:], -2),
        (np.s_[:, :, :16], -8),  # one amplifier
        (np.s_[:, 32:, 32:], -8),  # one chip
        (np.s_[:, :, 60:], -50),  # a narrow strip, far off
    ],
)
def test_a_level_below_zero_is_found_in_the_noise(where: Any, level: float, sigma: float) -> None:
    frames = noisy(21, sigma)
    frames[where] += level
    for those in (frames, np.rint(frames).astype(np.int32)):
        prepared = Preprocess()(those)
        assert not prepared.valid.any()
        assert all("negative" in flag for flag in prepared.flag)


def test_a_frame_of_read_noise_alone_is_empty() -> None:
    """Cut at zero, noise has a sum; it must not be taken for a weak beam."""
    frames = np.random.default_rng(31).normal(0, 2, (4, 64, 64))
    frames[1:] += beam_frames(31)[1:4] * np.array([1e-4, 0.02, 1.0])[:, None, None]
    prepared = Preprocess()(frames)
    assert prepared.flag == ["negative, empty", "negative, empty", "negative", "negative"]
    assert prepared.valid.tolist() == [False, False, True, True]


@pytest.mark.parametrize("config", [{}, {"transpose": True}, {"flip_y": True}, {"transpose": True, "flip_x": True}])
def test_only_what_the_window_takes_is_judged(config: dict[str, Any]) -> None:
    """A detector of two modules: the gap, a dead module and a negative one lie beside the window."""
    window, beam = beam_frames(4).astype(np.int64), (97, 232)
    frames = np.zeros((len(window), 195, 487), np.int64)
    frames[:, 65:129, 200:264] = window
    expected = Preprocess(PreprocessConfig(centre=beam, crop=64, **config))(frames.copy())
    frames[:, 130:147], frames[:, 150:], frames[:, :, :190] = 2**32 - 1, -7, -1  # flips move the window by a pixel
    prepared = Preprocess(PreprocessConfig(centre=beam, crop=64, **config))(frames)
    assert prepared.flag == [""] * len(window)
    assert torch.equal(prepared.counts, expected.counts)
    # A pixel at the window's edge is still mended by what lies around it, there too.
    frames[:, 129:147] = 9
    frames[:, 128, 230] = 2**32 - 1
    edge = Preprocess(PreprocessConfig(centre=beam, crop=64))(frames).counts[0, 63, 30]
    assert edge == median_around(frames[0], 128, 230, {(128, 230)})


def test_frames_beyond_mending_are_rejected_and_harm_no_other() -> None:
    good = smooth_frames(6, dtype=np.float32)
    frames = good.copy()
    frames[0] = np.nan
    frames[1, :8] = np.inf
    frames[2] = -frames[2]
    frames[3] = 0
    frames[4] = 1e30
    prepared = Preprocess(PreprocessConfig(saturation=1e6))(frames)
    assert prepared.flag == ["nan", "nan", "negative", "empty", "saturated", ""]
    assert prepared.valid.tolist() == [False] * 5 + [True]
    assert torch.isfinite(prepared.counts).all()
    assert not prepared.counts[:5].any()
    assert np.array_equal(prepared.counts[5].numpy(), good[5])


def test_several_faults_are_all_named() -> None:
    frames = smooth_frames(1, dtype=np.float32)
    frames[0, 1, 1], frames[0, 2, 9], frames[0, 12, 12] = np.nan, -4, 1e9
    prepared = Preprocess(PreprocessConfig(saturation=1e6))(frames)
    assert prepared.flag == ["nan, negative, saturated"]
    assert prepared.valid.all()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_frame_depends_on_its_company(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    frames = smooth_frames(5, dtype=np.float32)
    for _ in range(data.draw(st.integers(0, 12))):
        n, row, column = rng.integers(0, (5, 16, 16))
        frames[n, row, column] = rng.choice([np.nan, np.inf, -4, 70000, 0])
    preprocess = Preprocess(PreprocessConfig(saturation=65535, hot_ratio=30, flip_y=True, crop=12))
    together = preprocess(frames)
    for n in range(5):
        alone = preprocess(frames[n : n + 1])
        assert torch.equal(alone.counts[0], together.counts[n])
        assert alone.flag[0] == together.flag[n]
        assert alone.valid[0] == together.valid[n]


def test_no_frames_give_no_counts() -> None:
    prepared = Preprocess(PreprocessConfig(bin=2))(np.zeros((0, 16, 16), np.uint16))
    assert prepared.counts.shape == (0, 8, 8)
    assert prepared.flag == []


@pytest.mark.parametrize(
    ("config", "frames", "words"),
    [
        ({}, np.zeros((16, 16), np.uint16), r"got shape \(16, 16\)"),
        ({}, np.zeros((1, 16, 16), np.complex64), "got complex64"),
        ({"bin": 3}, np.zeros((1, 16, 16), np.uint16), "cannot be binned by 3"),
        ({"centre": (20, 4)}, np.zeros((1, 16, 16), np.uint16), r"centre \(20, 4\) px lies outside"),
        ({"bad_pixels": ((0, 16),)}, np.zeros((1, 16, 16), np.uint16), "bad_pixels"),
    ],
)
def test_what_cannot_be_prepared_is_refused_in_words(config: dict[str, Any], frames: NDArray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Preprocess(PreprocessConfig(**config))(frames)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="give a mask of the recorded frame"):
        Preprocess(mask=np.zeros((8, 8), bool))(smooth_frames())
    with pytest.raises(ValueError, match="rows and columns"):
        Preprocess(mask=np.zeros(8, bool))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bin": 2, "resize": 64}, "give one of them"),
        ({"crop": 64, "bin": 5}, "not a multiple"),
        ({"croop": 3}, "croop"),
        ({"bad_pixels": ((-1, 0),)}, "count from 0"),
    ],
)
def test_a_contradictory_configuration_cannot_exist(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PreprocessConfig(**values)


def test_configuration_survives_json() -> None:
    config = PreprocessConfig(bad_pixels=((1, 2),), centre=(3, 4), crop=192, resize=64, count_threshold=3)
    assert PreprocessConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("config", "factor"), [({"crop": 64}, 2.0), ({"bin": 2}, 1.0), ({"crop": 256}, 0.5), ({}, 1.0)]
)
def test_a_cut_coarsens_the_object_pixel_and_binning_keeps_it(config: dict[str, Any], factor: float) -> None:
    camera = Geometry(energy_ev=8000, distance_m=2, pixel_pitch_m=50e-6, frame_shape=(128, 128))
    after = PreprocessConfig(**config).geometry_after(camera)
    assert after.object_pixel_m == pytest.approx(factor * camera.object_pixel_m)


def test_bad_pixels_of_a_simulated_detector_are_found() -> None:
    experiment = SimulatedExperiment.demo(dead_fraction=0.004, hot_fraction=0.002, seed=4)
    rng = np.random.default_rng(1)
    frames = np.stack([experiment.frame_at(y, x, rng) for y, x in rng.uniform(-200, 200, (24, 2)) * experiment.pixel_m])
    found = find_bad_pixels(frames)
    assert found[experiment.hot].all()
    # A dead pixel matters, and can be told, where the field is bright.
    bright = frames.mean(axis=0)
    from scipy import ndimage

    lit = ndimage.median_filter(bright, 5) > 10
    assert found[experiment.dead & lit].all()
    assert not found[~experiment.dead & ~experiment.hot].any()


def test_pixels_that_stand_still_are_found() -> None:
    """A code in every frame, whatever number it is; not a weak pixel that had the same count by chance."""
    frames = beam_frames(6, n=12).astype(np.int32)
    dim = frames.sum(axis=0) < 6
    assert dim.sum() > 100
    codes = {(3, 3): -1, (20, 20): -2, (20, 40): 65534, (33, 20): 65535, (40, 33): 255, (50, 50): 2**31 - 2}
    for (row, column), code in codes.items():
        frames[:, row, column] = code
    for those in (frames, frames.astype(np.float32)):
        assert sorted(zip(*np.nonzero(find_bad_pixels(those)), strict=True)) == sorted(codes)


def test_a_clean_detector_has_no_bad_pixels() -> None:
    experiment = SimulatedExperiment.demo(sample="star")
    rng = np.random.default_rng(2)
    frames = np.stack([experiment.frame_at(0, x, rng) for x in np.linspace(-100, 100, 12) * experiment.pixel_m])
    assert not find_bad_pixels(frames).any()
    with pytest.raises(ValueError, match="at least 8 frames"):
        find_bad_pixels(frames[:3])

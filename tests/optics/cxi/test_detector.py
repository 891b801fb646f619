"""What a CXI file says of its detector: used, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bluesky_ptychonn.optics.cxi import read_cxi
from bluesky_ptychonn.optics.probe_file import read_probe
from bluesky_ptychonn.optics.simulate import zone_plate_probe

JOULE = 1.602176634e-19
DETECTOR = "instrument_1/detector_1"
PITCH = 75e-6
Say = Callable[[h5py.Group], None]


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Nine frames 16×16, different at each pixel."""
    return np.random.default_rng(5).integers(1, 400, (9, 16, 16)).astype(np.uint16)


def write(path: Path, frames: np.ndarray, *say: Say, entry: str = "entry_1") -> Path:
    with h5py.File(path, "a") as file:
        group = file.create_group(entry)
        group["data_1/data"] = frames
        group["data_1/translation"] = np.arange(3.0 * len(frames)).reshape(-1, 3) * 1e-7
        group["instrument_1/source_1/energy"] = 1e4 * JOULE
        for name, value in (("distance", 1.0), ("x_pixel_size", PITCH), ("y_pixel_size", PITCH)):
            group[f"{DETECTOR}/{name}"] = value
        for one in say:
            one(group)
    return path


def put(what: str, value: Any, units: str | None = None, at: str = DETECTOR) -> Say:
    def say(group: h5py.Group) -> None:
        place = f"{at}/{what}"
        if place in group:
            del group[place]
        group[place] = value
        if units is not None:
            group[place].attrs["units"] = units

    return say


def drop(*places: str) -> Say:
    def say(group: h5py.Group) -> None:
        for place in places:
            del group[place]

    return say


def mask_of(*bad: tuple[int, int], value: int = 1, shape: tuple[int, ...] = (16, 16)) -> np.ndarray:
    mask = np.zeros(shape, np.uint32)
    for pixel in bad:
        mask[(..., *pixel)] = value
    return mask


def test_masked_pixels_are_unknown_and_those_with_signal_are_good(tmp_path, frames) -> None:
    mask = mask_of((3, 4), (9, 9), value=0x1080) | mask_of((5, 5), value=0x1000)
    scan = read_cxi(write(tmp_path / "a.cxi", frames, put("mask", mask)))
    wanted = frames.astype(np.float32)
    wanted[:, [3, 9], [4, 9]] = np.nan
    assert scan.frames.dtype == np.float32
    np.testing.assert_array_equal(scan.frames[:], wanted)
    np.testing.assert_array_equal(scan.frames[4], wanted[4])
    np.testing.assert_array_equal(scan.frames[[1, 3]], wanted[[1, 3]])
    np.testing.assert_array_equal(scan.frames[2:4, 3, 4:], wanted[2:4, 3, 4:])
    assert scan.bad_pixels is not None
    assert np.argwhere(scan.bad_pixels).tolist() == [[3, 4], [9, 9]]
    assert scan.masked_fraction == pytest.approx(2 / 256)
    scan.check_masked(0.02)
    with pytest.raises(ValueError, match=r"condemns 0.8% of the pixels; of a frame at most 0.5% are mended"):
        scan.check_masked(0.005)


def test_a_mask_beside_the_frames_and_a_dark_as_pynx_names_it_are_used(tmp_path, frames) -> None:
    told = (put("mask", mask_of((3, 4)), at="data_1"), put("dark", np.full((16, 16), 7)))
    scan = read_cxi(write(tmp_path / "a.cxi", frames, *told))
    wanted = frames.astype(np.float32) - 7
    wanted[:, 3, 4] = np.nan
    np.testing.assert_array_equal(scan.frames[:], wanted)


def test_weak_read_noise_below_zero_is_no_sign_of_pixels_that_are_not_there(tmp_path) -> None:
    noise = np.random.default_rng(4).integers(-2, 3, (9, 16, 16)).astype(np.int32)
    light = np.zeros((16, 16), np.int32)
    light[4:12, 4:12] = 90
    subtracted = noise + light
    subtracted[:, 7, :] = np.where(light[7] > 0, -1, subtracted[:, 7])  # a row that is not there, where light falls
    scan = read_cxi(write(tmp_path / "a.cxi", subtracted, put("mask", mask_of((0, 0)))))
    unknown = np.isnan(scan.frames[:])
    assert unknown[:, 7, 4:12].all()
    assert not unknown[:, 1:2].any()
    assert not unknown[:, 14:].any()


def test_a_mask_that_condemns_nothing_leaves_counts_as_they_are(tmp_path, frames) -> None:
    scan = read_cxi(write(tmp_path / "a.cxi", frames, put("mask", np.full((16, 16), 0x1000))))
    assert scan.frames.dtype == np.uint16
    assert scan.bad_pixels is None


def test_each_frame_may_have_its_own_mask(tmp_path, frames) -> None:
    masks = mask_of(shape=frames.shape)
    masks[np.arange(9), np.arange(9), 3] = 2
    scan = read_cxi(write(tmp_path / "a.cxi", frames, put("mask", masks)))
    assert np.argwhere(np.isnan(scan.frames[:])).tolist() == [[k, k, 3] for k in range(9)]
    assert np.argwhere(np.isnan(scan.frames[7])).tolist() == [[7, 3]]
    assert scan.masked_fraction == pytest.approx(1 / 256)


def test_values_that_are_no_counts_stay_unknown_in_corrected_frames(tmp_path) -> None:
    signed = np.full((9, 16, 16), 50, np.int32)
    signed[:, 2, 2], signed[:, 3, 3], signed[:, 4, 4] = -1, -2, np.iinfo(np.int32).max
    scan = read_cxi(write(tmp_path / "a.cxi", signed, put("data_dark", np.full((16, 16), 10))))
    assert np.argwhere(np.isnan(scan.frames[0])).tolist() == [[2, 2], [3, 3], [4, 4]]
    assert np.nanmin(scan.frames[0]) == 40
    signed[:, 5, 5] = -7  # counts from which something was subtracted already
    scan = read_cxi(write(tmp_path / "b.cxi", signed, put("data_dark", np.full((16, 16), 10))))
    assert np.argwhere(np.isnan(scan.frames[0])).tolist() == [[4, 4]]


def test_dark_and_white_fields_and_gain_are_carried_out(tmp_path, frames) -> None:
    rng = np.random.default_rng(1)
    dark, gain = rng.uniform(5, 9, (3, 16, 16)), rng.uniform(0.8, 1.2, (16, 16))
    white = 1000 * gain + dark.mean(axis=0)
    white[2, 3] = 0  # dead
    told = (put("data_dark", dark), put("data_white", white), put("counts_per_joule", 4 / (1e4 * JOULE)))
    scan = read_cxi(write(tmp_path / "a.cxi", frames, *told))
    flat = np.where(white > 0, gain, np.nan)
    wanted = (frames - dark.mean(axis=0)) / (flat / np.nanmedian(flat)) / 4
    np.testing.assert_allclose(scan.frames[:], wanted, rtol=1e-4, atol=1e-4)
    assert np.isnan(scan.frames[0, 2, 3])
    assert [words.split(":")[0] for words in scan.corrections] == [
        "mask",
        "data_dark",
        "data_white, counts_per_joule",
    ]


DOWN, UP, RIGHT, LEFT = (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0)  # of CXI: x to the left, y up


@pytest.mark.parametrize(
    ("rows", "columns", "as_recorded"),
    [
        (DOWN, RIGHT, lambda f: f),
        (UP, RIGHT, lambda f: f[:, ::-1]),
        (DOWN, LEFT, lambda f: f[:, :, ::-1]),
        (UP, LEFT, lambda f: f[:, ::-1, ::-1]),
        (RIGHT, DOWN, lambda f: f.swapaxes(1, 2)),
        (LEFT, DOWN, lambda f: np.rot90(f, 1, (1, 2))),
        (RIGHT, UP, lambda f: np.rot90(f, 3, (1, 2))),
        (LEFT, UP, lambda f: f.swapaxes(1, 2)[:, ::-1, ::-1]),
    ],
)
@pytest.mark.parametrize("form", ["(2, 3)", "(3, 2)", "a frame"])
def test_frames_are_turned_as_the_basis_vectors_say(tmp_path, frames, rows, columns, as_recorded, form) -> None:
    vectors = PITCH * np.array([rows, columns], float)
    vectors = {"(2, 3)": vectors, "(3, 2)": vectors.T, "a frame": np.tile(vectors, (9, 1, 1))}[form]
    alone = drop(f"{DETECTOR}/x_pixel_size", f"{DETECTOR}/y_pixel_size")
    mask = as_recorded(mask_of((3, 4))[None])[0]
    told = (put("basis_vectors", vectors), put("mask", mask), alone)
    scan = read_cxi(write(tmp_path / "a.cxi", as_recorded(frames), *told))
    wanted = frames.astype(np.float32)
    wanted[:, 3, 4] = np.nan
    np.testing.assert_array_equal(scan.frames[:], wanted)
    assert scan.geometry.pixel_pitch_m == pytest.approx(PITCH)


def test_the_probe_turns_with_the_frames(tmp_path, frames) -> None:
    probe = np.random.default_rng(2).standard_normal((16, 16, 2)) @ [1, 1j]
    told = (
        put("basis_vectors", PITCH * np.array([UP, RIGHT], float)),
        put("illumination", probe, at="instrument_1/source_1"),
    )
    scan = read_cxi(write(tmp_path / "a.cxi", frames, *told))
    assert scan.probe is not None
    np.testing.assert_allclose(scan.probe[1:], probe[:0:-1].astype(np.complex64))


def test_the_probe_is_cut_and_turned_as_the_frames(tmp_path) -> None:
    probe = zone_plate_probe((64, 64), 12, aberration_rad=0.5, seed=3)
    far = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe), norm="ortho"))) ** 2
    counts = np.tile(1e6 * far, (9, 1, 1)).astype(np.uint32)
    basis = PITCH * np.array([RIGHT, UP], float)
    told = (put("basis_vectors", basis), put("illumination", 1e3 * probe, at="instrument_1/source_1"))
    path = write(tmp_path / "a.cxi", counts, *told)
    scan = read_cxi(path, crop=32, centre=(32, 32), check_far_field=False)
    assert scan.probe is not None
    made = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(scan.probe), norm="ortho"))) ** 2
    np.testing.assert_allclose(made, scan.frames[0], atol=1 + 1e-5 * counts.max())
    assert scan.frames[0].max() == counts[0, 16:48, 16:48].max()
    # Whoever takes the probe alone gets it as the frames lie.
    alone, geometry = read_probe(path)
    assert geometry is not None
    np.testing.assert_array_equal(alone, read_cxi(path).probe)


def test_the_corner_says_where_the_beam_is_and_how_far_the_detector(tmp_path, frames) -> None:
    wide = np.zeros((9, 30, 25), np.uint16)
    wide[:, 10:26, 3:19] = frames  # the beam at pixel (18, 11)
    far = drop(f"{DETECTOR}/distance")
    for name, beam in (("corner", (18.5, 11.5)), ("middle", (18, 11))):
        corner = [beam[1] * PITCH, beam[0] * PITCH, 2.0]
        scan = read_cxi(write(tmp_path / f"{name}.cxi", wide, put("corner_position", corner), far), crop=16)
        np.testing.assert_array_equal(scan.frames[:], frames)
        assert scan.geometry.distance_m == 2
        assert scan.corrections == ("corner_position: the beam is at pixel (18, 11)",)
    # What the caller says goes before it.
    scan = read_cxi(tmp_path / "corner.cxi", crop=16, centre=(17, 11))
    np.testing.assert_array_equal(scan.frames[:, 1:], frames[:, :-1])


def test_frames_of_any_shape_are_cut_filled_and_binned(tmp_path, frames) -> None:
    odd = np.zeros((9, 19, 40), np.uint16)
    odd[:, 1:17, 12:28] = frames
    path = write(tmp_path / "a.cxi", odd)
    with pytest.raises(ValueError, match=r"frames of 19 x 40 px come out as 19 x 40 px; they must be .*at best 18"):
        read_cxi(path)
    scan = read_cxi(path, crop=16, centre=(9, 20))
    np.testing.assert_array_equal(scan.frames[:], frames)
    assert scan.geometry.frame_shape == (16, 16)
    filled = read_cxi(path, crop=24, centre=(9, 20)).frames[:]
    np.testing.assert_array_equal(filled[:, 4:20, 4:20], frames)
    assert filled.sum() == frames.sum()
    binned = read_cxi(path, crop=16, centre=(9, 20), bin=2)
    np.testing.assert_array_equal(binned.frames[:], frames.reshape(9, 8, 2, 8, 2).sum(axis=(2, 4)))
    assert binned.geometry.pixel_pitch_m == pytest.approx(2 * PITCH)
    assert binned.geometry.object_pixel_m == pytest.approx(scan.geometry.object_pixel_m)
    for wrong, words in (
        ({"crop": 15}, "crop: "),
        ({"crop": 16, "bin": 3}, "not a multiple of bin"),
        ({"centre": (50, 0), "crop": 16}, "centre"),
    ):
        with pytest.raises(ValueError, match=f"a.cxi: .*{words}"):
            read_cxi(path, **wrong)


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (put("mask", mask_of((3, 4), shape=(8, 16, 16))), r"mask: uint32 of shape \(8, 16, 16\); needed are integers"),
        (put("mask", np.zeros((16, 16))), r"mask: float64 of shape \(16, 16\); needed are integers"),
        (put("mask", np.ones((16, 16), int)), "mask: condemns 100% of the pixels; in CXI 0 "),
        (put("data_dark", np.zeros((8, 8))), r"data_dark: shape \(8, 8\); needed is \(16, 16\)"),
        (
            put("data_white", np.geomspace(1, 1e4, 256).reshape(16, 16)),
            "data_white: spreads from .* no even illumination",
        ),
        (put("counts_per_joule", -1.0), r"counts_per_joule: -1.0; needed is one number above 0"),
        (put("basis_vectors", PITCH * np.array([(0.2, -1, 0), (-1, 0.2, 0)])), "turned or tilted detector"),
        (put("basis_vectors", PITCH * np.array([(0, -1, 0), (-1, 0, 0.3)])), "turned or tilted detector"),
        (put("basis_vectors", PITCH * np.array([DOWN, UP], float)), "rows and columns must run along x and y"),
        (put("basis_vectors", np.zeros((2, 3))), "a vector has no length"),
        (put("basis_vectors", np.zeros(6)), r"basis_vectors: shape \(6,\); allowed: \(2, 3\) or \(3, 2\)"),
        (
            put("basis_vectors", 2 * PITCH * np.array([DOWN, RIGHT], float)),
            "pixel_pitch_m is 7.5e-05 m by itself, and 0.00015 m",
        ),
        (
            put("basis_vectors", np.arange(1.0, 10)[:, None, None] * PITCH * np.array([DOWN, RIGHT])),
            "basis_vectors: differs from frame to frame",
        ),
        (put("corner_position", [0.0, 0.0, 1.0]), r"places the beam at pixel \(0, 0\) of frames of 16 x 16 px"),
        (put("corner_position", [8 * PITCH, 8 * PITCH, 1.5]), "distance_m is 1 m by itself, and 1.5 m"),
        (put("distance", 1.0, units="s"), "detector_1/distance .*unit 's' is not a length"),
        (put("energy", 1.0, units="m", at="instrument_1/source_1"), "source_1/energy: unit 'm' is not an energy"),
        (put("translation", np.zeros((9, 3)), units="V", at="data_1"), "data_1/translation .*unit 'V' is not a length"),
        (
            put("translation", np.arange(27.0).reshape(9, 3) * 1e-4, at="data_1"),
            "positions span 2400 µm, 23.* object pixels of 103.3 nm; at most 20000 .* attribute units",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(tmp_path, frames, say, words) -> None:
    with pytest.raises(ValueError, match=words):
        read_cxi(write(tmp_path / "a.cxi", frames, say))


def test_frames_that_are_an_image_already_are_not_corrected_again(tmp_path, frames) -> None:
    def image(group: h5py.Group) -> None:
        group["image_1/data"] = group["data_1/data"]
        group["image_1/mask"] = mask_of((1, 2))

    told = (image, put("data", frames + 50), put("data_dark", np.full((16, 16), 50)), put("mask", mask_of((9, 9))))
    scan = read_cxi(write(tmp_path / "a.cxi", frames, *told))
    wanted = frames.astype(np.float32)
    wanted[:, 1, 2] = np.nan
    np.testing.assert_array_equal(scan.frames[:], wanted)
    path = write(tmp_path / "b.cxi", frames, *told, put("is_fft_shifted", 1, at="image_1"))
    with pytest.raises(ValueError, match="beam in their corner"):
        read_cxi(path)


@pytest.mark.parametrize(("unit", "factor"), [("m", 1), ("mm", 1e3), ("um", 1e6), ("nm", 1e9)])
def test_units_of_each_number_are_read(tmp_path, frames, unit, factor) -> None:
    plain = read_cxi(write(tmp_path / "a.cxi", frames))
    positions = np.arange(27.0).reshape(9, 3) * 1e-7 * factor
    told = [put("translation", positions, np.bytes_(unit), at="data_1")]
    told += [
        put(name, factor * value, unit)
        for name, value in (("distance", 1.0), ("x_pixel_size", PITCH), ("y_pixel_size", PITCH))
    ]
    told += [
        put("energy", 10.0, "keV", at="instrument_1/source_1"),
        put("wavelength", factor * 1.2398419843320026e-10, unit, at="instrument_1/source_1"),
    ]
    scan = read_cxi(write(tmp_path / "b.cxi", frames, *told))
    np.testing.assert_allclose([scan.y_m, scan.x_m], [plain.y_m, plain.x_m])
    ours, theirs = (s.geometry.model_dump(exclude={"sources", "frame_shape"}) for s in (scan, plain))
    assert ours == pytest.approx(theirs)


def test_one_of_several_entries_is_chosen_by_name(tmp_path, frames) -> None:
    path = write(tmp_path / "a.cxi", frames, entry="entry_2")
    assert len(read_cxi(path)) == 9
    write(path, frames[:5], entry="entry_3")
    with h5py.File(path, "a") as file:
        file["cxi_version"] = 160
        file["results/data"] = 3
    with pytest.raises(ValueError, match=r"several scans: entry_2 \(9 frames\), entry_3 \(5 frames\); choose"):
        read_cxi(path)
    assert len(read_cxi(path, entry="entry_3")) == 5
    with pytest.raises(ValueError, match="not a CXI file with a group 'entry_9'"):
        read_cxi(path, entry="entry_9")

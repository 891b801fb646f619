"""Reading CXI files: what is there, and the words for what is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import ndimage

from bluesky_ptychonn.optics.cxi import near_field_shadow, read_cxi
from bluesky_ptychonn.optics.simulate import SimulatedExperiment

Spoil = Callable[[h5py.Group], None]


@pytest.fixture
def measured() -> Path:
    folder = Path(os.environ.get("PTYCHONN_DATA", "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no measured data: PTYCHONN_DATA={folder} is not a folder")
    return folder


def write(path: Path, frames: np.ndarray, yx_m: np.ndarray, spoil: Spoil | None = None) -> Path:
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry_1")
        entry["data_1/data"] = frames
        entry["data_1/translation"] = np.column_stack([yx_m[:, 1], yx_m[:, 0], np.zeros(len(yx_m))])
        entry["instrument_1/source_1/energy"] = 1e4 * 1.602176634e-19
        entry["instrument_1/detector_1/distance"] = 1.0
        entry["instrument_1/detector_1/x_pixel_size"] = 75e-6
        entry["instrument_1/detector_1/y_pixel_size"] = 75e-6
        if spoil:
            spoil(entry)
    return path


@pytest.fixture(scope="module")
def far_field() -> tuple[np.ndarray, np.ndarray]:
    experiment = SimulatedExperiment.demo()
    rng = np.random.default_rng(0)
    yx = rng.uniform(-1e-6, 1e-6, (40, 2))
    return np.stack([experiment.frame_at(y, x, rng) for y, x in yx]), yx


def test_a_scan_comes_back_in_si_units_with_sources(tmp_path, far_field) -> None:
    frames, yx = far_field
    scan = read_cxi(write(tmp_path / "a.cxi", frames, yx))
    np.testing.assert_array_equal(scan.frames[3:5], frames[3:5])
    np.testing.assert_array_equal(scan.frames[[1, 7]], frames[[1, 7]])
    assert (len(scan), scan.frames.shape, scan.frames.dtype) == (40, (40, 64, 64), np.uint16)
    np.testing.assert_allclose(np.column_stack([scan.y_m, scan.x_m]), yx)
    assert scan.geometry.energy_ev == pytest.approx(1e4)
    assert "a.cxi, /entry_1: instrument_1/source_1/energy" in scan.geometry.sources["energy_ev"]
    assert scan.probe is None
    assert scan.bad_pixels is None


def test_the_star_is_read_whole(measured) -> None:
    scan = read_cxi(measured / "velociprobe-siemens-star.cxi")
    assert scan.frames.shape == (516, 128, 128)
    assert scan.geometry.object_pixel_m == pytest.approx(28.18e-9, rel=1e-3)
    assert scan.nearest_m / scan.geometry.object_pixel_m == pytest.approx(9, abs=0.2)
    assert scan.probe is not None
    assert (scan.probe.shape, scan.probe.dtype) == ((128, 128), np.complex64)


def test_near_field_data_is_refused_with_what_was_seen(measured) -> None:
    with pytest.raises(ValueError, match=r"near-field data.*follow the stage.*far-field window of 1.99 µm"):
        read_cxi(measured / "PETRAIII_P25_Near_Field_Ptycho.cxi")


def test_a_simulated_shadow_is_near_field_and_a_far_field_scan_is_not(tmp_path, far_field) -> None:
    frames, yx = far_field
    assert near_field_shadow(read_cxi(write(tmp_path / "far.cxi", frames, yx), check_far_field=False)) is None
    rng = np.random.default_rng(1)
    sample = ndimage.gaussian_filter(rng.standard_normal((400, 400)), 2)
    sample = 1 + 0.5 * sample / sample.std()
    window = np.hypot(*(np.indices((64, 64)) - 32)) < 25
    yx = rng.uniform(-5e-6, 5e-6, (40, 2))  # 5 px a µm: a beam of 10 µm
    shadows = [
        rng.poisson(100 * window * np.clip(sample[a : a + 64, b : b + 64], 0, None))
        for a, b in np.round(150 + yx * 5e6).astype(int)
    ]
    path = write(tmp_path / "near.cxi", np.array(shadows, np.uint16), yx)
    with pytest.raises(ValueError, match=r"follow the stage by 4.[89]. px a µm"):
        read_cxi(path)
    assert len(read_cxi(path, check_far_field=False)) == 40


def _drop(place: str) -> Spoil:
    return lambda entry: entry.__delitem__(place)


def _put(place: str, value: Any) -> Spoil:
    def spoil(entry: h5py.Group) -> None:
        if place in entry:
            del entry[place]
        entry[place] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_drop("data_1/data"), "no frames in /entry_1; looked at data_1/data"),
        (_drop("data_1/translation"), "no positions in /entry_1"),
        (_drop("instrument_1/detector_1/distance"), "geometry lacks distance_m"),
        (_drop("instrument_1/source_1/energy"), "geometry lacks energy_ev"),
        (_put("instrument_1/detector_1/distance", float("nan")), "geometry lacks distance_m"),
        (_put("instrument_1/detector_1/y_pixel_size", 80e-6), "pixels of 8e-05 by 7.5e-05 m; square"),
        (_put("instrument_1/source_1/wavelength", 2e-10), r"energy \(10000 eV\) and wavelength \(2e-10 m\) contr"),
        (_put("data_1/data", np.zeros((64, 64))), "shape \\(64, 64\\); \\(n, rows, columns\\) wanted"),
        (_put("data_1/translation", np.zeros((39, 3))), "40 frames, but 39 positions"),
        (_put("data_1/translation", np.zeros((40, 5))), "shape \\(40, 5\\)"),
        (
            _put("data_1/translation", np.full((40, 3), np.nan)),
            "40 of 40 positions .* not finite, the first at ",
        ),
        (_put("data_1/translation", np.arange(120.0).reshape(40, 3)), "another unit"),
        (_put("data_1/data", np.zeros((40, 64, 32), np.uint16)), "must be square"),
        (_put("instrument_1/source_1/illumination", np.zeros((32, 32), complex)), r"probe .* is \(32, 32\) px, frames"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_words(tmp_path, far_field, spoil, words) -> None:
    with pytest.raises(ValueError, match=words):
        read_cxi(write(tmp_path / "a.cxi", *far_field, spoil))


def test_files_that_are_no_cxi_are_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_cxi(tmp_path / "absent.cxi")
    (tmp_path / "text.cxi").write_text("hello")
    with pytest.raises(ValueError, match="not a CXI file: it is not HDF5"):
        read_cxi(tmp_path / "text.cxi")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["results"] = [1, 2]
    with pytest.raises(ValueError, match="not a CXI file with a group 'entry_1'; it holds: results"):
        read_cxi(tmp_path / "other.h5")


@pytest.mark.parametrize(
    "light",
    [
        {"wavelength": 1.9687e-12},
        {"wavelength": 1.9687e-12, "energy": 300e3 * 1.602176634e-19},
        {"wavelength": 1.9687e-12, "energy": 6.62607015e-34 * 299792458.0 / 1.9687e-12},  # as of photons
        {"energy": 300e3 * 1.602176634e-19, "probe": "electron"},
    ],
)
def test_electrons_are_taken_however_they_are_said(tmp_path, far_field, light) -> None:
    def more(entry: h5py.Group) -> None:
        del entry["instrument_1/source_1/energy"]
        for name, value in light.items():
            entry[f"instrument_1/source_1/{name}"] = value

    scan = read_cxi(write(tmp_path / "a.cxi", *far_field, more), check_far_field=False)
    assert scan.geometry.wavelength_m == pytest.approx(1.9687e-12, rel=1e-4)
    assert scan.geometry.energy_ev in (None, pytest.approx(300e3))
    assert scan.probe is None


def test_of_two_modes_the_stronger_is_taken_and_said(tmp_path, far_field, caplog) -> None:
    ones = np.ones((64, 64), complex)
    ramp = ones * np.exp(2j * np.pi * np.arange(64) / 64)  # orthogonal to it
    modes = np.stack([0.26**0.5 * ones, 0.74**0.5 * ramp])
    scan = read_cxi(write(tmp_path / "a.cxi", *far_field, _put("instrument_1/source_1/illumination", modes)))
    np.testing.assert_allclose(scan.probe, modes[1], atol=1e-6)
    assert scan.probe_light_fraction == pytest.approx(0.74)
    assert "a.cxi: of the probe the strongest of 2 modes, 74% of the light, is used" in caplog.text


def test_mask_probe_modes_and_wavelength_are_understood(tmp_path, far_field) -> None:
    def more(entry: h5py.Group) -> None:
        del entry["instrument_1/source_1/energy"]
        entry["instrument_1/source_1/wavelength"] = 1.2398419843320026e-10
        mask = np.zeros((64, 64), np.uint32)
        mask[3, 4] = 1
        entry["instrument_1/detector_1/mask"] = mask
        entry["instrument_1/source_1/illumination"] = np.stack([np.full((64, 64), 2 + 0j), np.zeros((64, 64))])

    scan = read_cxi(write(tmp_path / "a.cxi", *far_field, more))
    assert scan.geometry.energy_ev == pytest.approx(1e4)
    assert scan.bad_pixels is not None
    assert np.argwhere(scan.bad_pixels).tolist() == [[3, 4]]
    assert scan.probe is not None
    assert (scan.probe == 2).all()


def test_too_few_frames_say_nothing_about_the_field(tmp_path, far_field) -> None:
    frames, yx = far_field
    assert near_field_shadow(read_cxi(write(tmp_path / "a.cxi", frames[:5], yx[:5]))) is None
    same = np.zeros_like(yx)
    assert near_field_shadow(read_cxi(write(tmp_path / "b.cxi", frames, same))) is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_put("data_1/data", h5py.SoftLink("/entry_1/data_1/data")), "no frames in /entry_1|damaged: .*too many links"),
        (_put("data_1/translation", h5py.ExternalLink("nowhere.h5", "/x")), "a link to the file 'nowhere.h5'; only"),
        (_put("data_1/translation", h5py.Empty("f4")), "data_1/translation holds float32; numbers are needed"),
        (_put("instrument_1/source_1/energy", b"much"), "source_1/energy holds .*; numbers are needed there"),
        (_put("instrument_1/detector_1/distance", np.zeros(0)), "distance has shape .*; one real number is needed"),
    ],
)
def test_what_stands_where_it_should_not_is_said_in_words(tmp_path, far_field, spoil, words) -> None:
    with pytest.raises(ValueError, match=words):
        read_cxi(write(tmp_path / "a.cxi", *far_field, spoil))


def _virtual(entry: h5py.Group) -> None:
    layout = h5py.VirtualLayout(shape=(40, 64, 64), dtype="f8")
    layout[:] = h5py.VirtualSource("secret.h5", "data", shape=(40, 64, 64))
    del entry["data_1/data"]
    entry.create_virtual_dataset("data_1/data", layout)


def _outside(entry: h5py.Group) -> None:
    del entry["data_1/data"]
    entry.create_dataset("data_1/data", (40, 64, 64), "u1", external=[("secret.h5", 0, 40 * 64 * 64)])


def _round_about(entry: h5py.Group) -> None:
    del entry["data_1/data"]
    entry["aside"] = h5py.ExternalLink("secret.h5", "/")
    entry["data_1/data"] = h5py.SoftLink("/entry_1/aside/data")


@pytest.mark.parametrize("spoil", [_virtual, _outside, _round_about])
def test_a_file_does_not_choose_what_else_is_read(tmp_path, far_field, spoil) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = np.ones((40, 64, 64))
    with pytest.raises(ValueError, match=r"data_1/data is .*; only what the file itself holds is read"):
        read_cxi(write(tmp_path / "a.cxi", *far_field, spoil))


def test_a_file_of_a_kilobyte_does_not_take_all_memory(tmp_path, far_field) -> None:
    def claim(place: str, shape: tuple[int, ...], kind: str) -> Spoil:
        def spoil(entry: h5py.Group) -> None:
            entry.pop(place, None)
            entry.create_dataset(place, shape, kind, chunks=tuple(min(16, n) for n in shape))  # nothing is stored

        return spoil

    cases = [
        (claim("data_1/translation", (1 << 40, 3), "f8"), "40 frames, but 1099511627776 positions"),
        (claim("instrument_1/source_1/illumination", (1 << 30, 64, 64), "c8"), "takes .* bytes; at most 1073741824"),
        (claim("instrument_1/detector_1/distance", (1 << 40,), "f8"), "one real number is needed there"),
    ]
    for spoil, words in cases:
        with pytest.raises(ValueError, match=words):
            read_cxi(write(tmp_path / "a.cxi", *far_field, spoil))

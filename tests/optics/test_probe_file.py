"""Probes from the files people have, and what is said of files that hold none."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from bluesky_ptychonn.optics.probe_file import open_probe, read_probe
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, zone_plate_probe

PROBE = zone_plate_probe((32, 32), 14)
STAR = Path(os.environ.get("PTYCHONN_DATA", "../shared/data")) / "velociprobe-siemens-star.cxi"


def write(path: Path) -> Path:
    if path.suffix == ".npy":
        np.save(path, PROBE)
    elif path.suffix == ".npz":
        np.savez(path, probe=PROBE)
    else:
        with h5py.File(path, "w") as file:
            file["entry_1/instrument_1/source_1/illumination"] = PROBE
    return path


@pytest.mark.parametrize("name", ["probe.npy", "probe.npz", "probe.h5", "probe.cxi"])
def test_every_form_gives_the_same_probe(tmp_path: Path, name: str) -> None:
    probe, geometry = read_probe(write(tmp_path / name))
    np.testing.assert_array_equal(probe, PROBE)
    assert geometry is None


def test_the_strongest_of_several_modes_is_taken_and_what_is_left_out_said(tmp_path: Path, caplog) -> None:
    other = PROBE * (np.indices(PROBE.shape)[0] - 16)
    other -= (PROBE.conj() * other).sum() * PROBE
    other /= np.sqrt((np.abs(other) ** 2).sum())
    np.save(tmp_path / "modes.npy", np.stack([0.26**0.5 * other, 0.74**0.5 * PROBE])[:, None])
    np.testing.assert_allclose(read_probe(tmp_path / "modes.npy")[0], 0.74**0.5 * PROBE, atol=1e-6)
    assert "modes.npy: of the probe the strongest of 2 modes, 74% of the light, is used" in caplog.text
    assert open_probe(tmp_path / "modes.npy").light_fraction == pytest.approx(0.74)


def test_modes_that_are_one_lose_no_light(tmp_path: Path, caplog) -> None:
    np.save(tmp_path / "modes.npy", np.stack([0.1 * PROBE, PROBE, 0.3 * PROBE])[:, None])
    found = open_probe(tmp_path / "modes.npy")
    np.testing.assert_allclose(found.wave, 1.1**0.5 * PROBE, atol=1e-6)
    assert (found.light_fraction, caplog.text) == (1.0, "")


def test_the_simulated_beamline_has_its_own() -> None:
    probe, geometry = read_probe("simulated")
    assert geometry == SimulatedExperiment.demo().geometry
    assert probe.shape == (64, 64)


@pytest.mark.skipif(not STAR.exists(), reason=f"{STAR.name} is not there; set PTYCHONN_DATA")
def test_a_cxi_scan_brings_its_geometry() -> None:
    probe, geometry = read_probe(STAR)
    assert probe.shape == (128, 128)
    assert geometry is not None
    assert geometry.object_pixel_m == pytest.approx(28.2e-9, rel=0.01)


def bad(path: Path, array: np.ndarray) -> Path:  # type: ignore[type-arg]
    np.save(path, array)
    return path


def test_what_is_no_probe_is_refused_in_words(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", image=PROBE)
    (tmp_path / "broken.h5").write_bytes(b"not HDF5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    cases = [
        (tmp_path / "nosuch.npy", "no such file; give 'simulated'"),
        (bad(tmp_path / "real.npy", np.ones((8, 8))), "needed is a square complex array"),
        (bad(tmp_path / "oblong.npy", np.ones((8, 6), complex)), "needed is a square complex array"),
        (bad(tmp_path / "nan.npy", np.full((8, 8), np.nan + 0j)), "NaN or infinite values"),
        (bad(tmp_path / "dark.npy", np.zeros((8, 8), complex)), "dark everywhere"),
        (tmp_path / "other.npz", "no probe, it lacks probe; it holds image"),
        (tmp_path / "broken.h5", "not a readable HDF5 file"),
        (tmp_path / "empty.h5", "no probe in it; looked for"),
    ]
    for path, words in cases:
        with pytest.raises(ValueError, match=words):
            read_probe(path)


def test_an_unknown_ending_names_the_known(tmp_path: Path) -> None:
    (tmp_path / "probe.tif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a probe is read from .npy, .npz or .cxi"):
        read_probe(tmp_path / "probe.tif")

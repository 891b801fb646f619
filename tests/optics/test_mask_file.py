"""Masks from beamlines' files."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import tifffile

from bluesky_ptychonn.optics.mask_file import read_mask

BAD = np.zeros((6, 8), bool)
BAD[2, 3] = BAD[5, 0] = True


def test_every_format_says_the_same(tmp_path) -> None:
    np.save(tmp_path / "a.npy", BAD)
    np.savez(tmp_path / "a.npz", mask=BAD.astype(np.uint8) * 7)
    tifffile.imwrite(tmp_path / "a.TIF", BAD.astype(np.uint8) * 255)
    for name, place in (("a.h5", "mask"), ("a.nxs", "entry/instrument/detector/pixel_mask")):
        with h5py.File(tmp_path / name, "w") as file:
            file[place] = BAD.astype(np.uint32) << 30  # Dectris sets high bits too
    for name in ("a.npy", "a.npz", "a.TIF", "a.h5", "a.nxs"):
        found = read_mask(tmp_path / name)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, BAD)


def test_what_is_no_mask_is_refused_in_words(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"mask '.*none.npy': no such file; give \.npy"):
        read_mask(tmp_path / "none.npy")
    np.save(tmp_path / "good.npy", ~BAD)
    with pytest.raises(ValueError, match=r"good.npy: 96% of the pixels would be bad\..*the other way round"):
        read_mask(tmp_path / "good.npy")
    np.save(tmp_path / "many.npy", np.zeros((2, 6, 8)))
    with pytest.raises(ValueError, match=r"mask of shape \(2, 6, 8\), float64; rows and columns are needed"):
        read_mask(tmp_path / "many.npy")
    (tmp_path / "a.tif").write_text("no picture")
    with pytest.raises(ValueError, match=r"a.tif: not a readable TIFF"):
        read_mask(tmp_path / "a.tif")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["masks"] = BAD
    with pytest.raises(ValueError, match=r"a.h5: no mask in it; looked for entry/instrument/detector/pixel_mask"):
        read_mask(tmp_path / "a.h5")
    (tmp_path / "a.edf").touch()
    with pytest.raises(ValueError, match=r"a.edf: a mask is read from"):
        read_mask(tmp_path / "a.edf")

"""NumPy files of strangers: what they claim is weighed before it is read."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bluesky_ptychonn.optics.numpy_files import read_npy, read_npz


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def stored(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    "array",
    [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((2, 3), complex)), np.array("words"), np.zeros((0, 4))],
)
def test_arrays_come_back_as_numpy_reads_them(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", a=array, other=np.zeros(3))
    for read in (read_npy(tmp_path / "a.npy"), read_npz(tmp_path / "a.npz", ["a"], "thing")["a"]):
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype
        assert read.flags.writeable


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a readable NumPy array"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"), "needs 8000000000000 bytes"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), "shape .-1,. of float64"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", bytes(8)), "holds Python objects"),
        (npy("(" * 3000), "not a readable NumPy array"),
        (npy("{'descr': (), 'fortran_order': False, 'shape': ()}"), "not a readable NumPy array"),
        (stored(np.ones(9))[:-1], "needs 72 bytes|cut short"),
        (b"\x93NUMPY\x03\x00", "format .3, 0. is unknown"),
    ],
)
def test_what_is_no_array_is_said_in_words(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match=f"a.npy: .*{words}"):
        read_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(ValueError, match=words):
        read_npz(tmp_path / "a.npz", ["a"], "thing")


def test_an_archive_that_lies_or_is_torn_is_said_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones(4))
    good = path.read_bytes()
    with pytest.raises(ValueError, match="no thing, it lacks b; it holds a"):
        read_npz(path, ["b"], "thing")
    at = good.rfind(b"PK\x01\x02")
    spoilt = {
        good[:-5]: "cannot be read as a thing: File is not a zip file",
        good[: at + 20] + b"\xff\xff\xff\x7f" + good[at + 24 :]: "names more bytes than there are",
        good[: at + 10] + b"\x63\x00" + good[at + 12 :]: "compression method is not supported",
        good[:150] + b"\x01" + good[151:]: "Bad CRC-32|not a readable",
    }
    for data, words in spoilt.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            read_npz(path, ["a"], "thing")

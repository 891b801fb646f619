"""Read a measured probe from the files beamlines keep it in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.optics.framing import turned_probe
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.hdf5 import find_first, open_hdf5, read_numeric
from bluesky_ptychonn.optics.numpy_files import read_npy, read_npz
from bluesky_ptychonn.optics.probe_modes import strongest_mode
from bluesky_ptychonn.optics.simulate import SimulatedExperiment

if TYPE_CHECKING:
    from bluesky_ptychonn.optics.cxi import CxiScan

#: ``--probe`` value that means the simulated beamline's own probe.
SIMULATED = "simulated"
_HDF5 = (".cxi", ".h5", ".hdf5", ".nxs")
_HDF5_PATHS = ("entry_1/instrument_1/source_1/illumination", "probe", "entry/probe", "object/probe")


@dataclass(frozen=True)
class ProbeFile:
    """What a probe's file says.

    Attributes
    ----------
    wave : (n, n) complex64 ndarray
        Scale as found.
    geometry : Geometry or None
        Where the source says it.
    light_fraction : float
        Part of the light that the wave has, of all modes of the file.
    source : str
        Where it came from, and what was left out.
    """

    wave: NDArray[np.complex64]
    geometry: Geometry | None
    light_fraction: float
    source: str


def read_probe(source: str | os.PathLike[str]) -> tuple[NDArray[np.complex64], Geometry | None]:
    """Read a complex probe.

    Parameters
    ----------
    source : str or path
        ``simulated``, a ``.npy`` or ``.npz`` file (array ``probe``), or an HDF5 or CXI file with ``probe`` or
        ``entry_1/instrument_1/source_1/illumination``. Of several modes the strongest is taken, see
        `bluesky_ptychonn.optics.probe_modes.strongest_mode`; a warning in the log says what light is left out.

    Returns
    -------
    probe : (n, n) complex64 ndarray
        Scale as found; square-root photons where its squared modulus sums to the photons of a frame.
    geometry : Geometry or None
        Where the source says it.

    Raises
    ------
    ValueError
        In words: no such file, no probe in it, not square, not complex, not finite, or dark.
    """
    found = open_probe(source)
    return found.wave, found.geometry


def open_probe(source: str | os.PathLike[str]) -> ProbeFile:
    """Read a probe with what is known of it, see `read_probe`."""
    if str(source) == SIMULATED:
        experiment = SimulatedExperiment.demo()
        return ProbeFile(experiment.probe, experiment.geometry, 1.0, SIMULATED)
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"probe {str(source)!r}: no such file; give {SIMULATED!r}, .npy, .npz or {', '.join(_HDF5)}")
    array = np.asarray(_read(path))
    shape = array.shape[-2:]
    if array.ndim < 2 or not array.size or shape[0] != shape[1] or not np.iscomplexobj(array):
        raise ValueError(f"{path.name}: probe of shape {array.shape}, {array.dtype}; needed is a square complex array")
    if not np.isfinite(array).all() or not np.abs(array).max() > 0:
        raise ValueError(f"{path.name}: probe holds NaN or infinite values, or is dark everywhere")
    mode, scan = strongest_mode(array, path.name), _scan(path, shape[0])
    # Frames of the file are turned as it says its detector stands, and the probe goes with them.
    wave = mode.wave if scan is None else turned_probe(mode.wave, scan.framing)
    return ProbeFile(
        wave.astype(np.complex64),
        None if scan is None else scan.geometry,
        mode.light_fraction,
        ", ".join(filter(None, [path.name, mode.note])),
    )


def _scan(path: Path, size: int) -> CxiScan | None:
    """Scan of a CXI file whose frames fit the probe; None where it holds the probe alone."""
    if path.suffix != ".cxi":
        return None
    from bluesky_ptychonn.optics.cxi import read_cxi

    try:
        scan = read_cxi(path)
    except ValueError:
        return None  # a probe without a scan is as good a source; the caller asks for the geometry in words
    return scan if scan.geometry.frame_shape == (size, size) else None


def _read(path: Path) -> NDArray[np.generic]:
    if path.suffix == ".npy":
        return read_npy(path)
    if path.suffix == ".npz":
        return read_npz(path, ("probe",), "probe")["probe"]
    if path.suffix in _HDF5:
        with open_hdf5(path) as file:
            if (place := find_first(file, _HDF5_PATHS, path.name)) is not None:
                return read_numeric(file, place, path.name)
        raise ValueError(f"{path.name}: no probe in it; looked for {', '.join(_HDF5_PATHS)}")
    raise ValueError(f"{path.name}: a probe is read from .npy, .npz or {', '.join(_HDF5)}")

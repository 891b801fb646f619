"""What a CXI file says of its beam, and the geometry that follows with what it says of its detector."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_ptychonn.optics.cxi.detector import DetectorStatement
from bluesky_ptychonn.optics.cxi.fields import JOULE_PER_EV, in_si
from bluesky_ptychonn.optics.geometry import HC_EV_M, Geometry, electron_wavelength_m
from bluesky_ptychonn.optics.hdf5 import find_inside, numeric_dataset

_SHORTEST_LIGHT_M = 1e-11


def _scalar(group: Any, place: str) -> float | None:
    if find_inside(group, place, group.name) is None:
        return None
    found = numeric_dataset(group, place, group.name)
    if found.size != 1 or found.dtype.kind == "c":
        raise ValueError(
            f"{group.name}/{place} has shape {found.shape}, {found.dtype}; one real number is needed there"
        )
    energy = place.endswith("energy")
    value = in_si(float(np.asarray(found[()]).ravel()[0]), found, f"{group.name}/{place}", energy=energy)
    return value if math.isfinite(value) and value > 0 else None


def read_geometry(group: Any, shape: tuple[int, ...], source: Path, told: DetectorStatement) -> Geometry:
    """Read the geometry of frames that come out in a `shape`, (rows, columns), completed by what the detector tells."""
    where = f"CXI file {source.name}, {group.name}"
    energy_j = _scalar(group, "instrument_1/source_1/energy")
    wavelength = _scalar(group, "instrument_1/source_1/wavelength")
    light = _light(energy_j, wavelength, electrons=read_text(group, "instrument_1/source_1/probe") == "electron")
    pitch_y, pitch_x = (_scalar(group, f"instrument_1/detector_1/{axis}_pixel_size") for axis in "yx")
    if pitch_x and pitch_y and abs(pitch_x / pitch_y - 1) > 1e-6:
        raise ValueError(f"{source.name}: pixels of {pitch_y:g} by {pitch_x:g} m; square ones are needed")
    values = {
        **light,
        "distance_m": _scalar(group, "instrument_1/detector_1/distance"),
        "pixel_pitch_m": pitch_x or pitch_y,
        "frame_shape": tuple(int(side) for side in shape),
    }
    completed = told.complete(values)
    places = {
        **dict.fromkeys(light, f"instrument_1/source_1/{'wavelength' if energy_j is None else 'energy'}"),
        "distance_m": "instrument_1/detector_1/distance",
        "pixel_pitch_m": "instrument_1/detector_1/x_pixel_size",
        "frame_shape": "shape of the frames",
        **completed,
    }
    return Geometry.from_document({**values, "sources": {k: f"{where}: {v}" for k, v in places.items()}}, where)


def photon_j(group: Any) -> float | None:
    """Energy of a photon, J."""
    wavelength = _scalar(group, "instrument_1/source_1/wavelength")
    energy = _scalar(group, "instrument_1/source_1/energy")
    return energy if energy or not wavelength else HC_EV_M * JOULE_PER_EV / wavelength


def read_text(group: Any, place: str) -> str:
    """Text in lower case; empty where there is none."""
    found = find_inside(group, place, group.name)
    value = found[()] if getattr(found, "shape", None) == () and found.dtype.kind in "SO" else b""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip().lower()


def _light(energy_j: float | None, wavelength_m: float | None, *, electrons: bool) -> dict[str, float]:
    """Give energy, wavelength or both as `Geometry` takes them: both of electrons, of photons the energy."""
    energy_ev = None if energy_j is None else energy_j / JOULE_PER_EV
    if energy_ev is None:
        return {} if wavelength_m is None else _of_wavelength(wavelength_m)
    if wavelength_m is None:
        return {"energy_ev": energy_ev} | ({"wavelength_m": electron_wavelength_m(energy_ev)} if electrons else {})
    if abs(wavelength_m * energy_ev / HC_EV_M - 1) <= 1e-3:
        # Of electrons some write the energy that photons of their wavelength would have.
        return _of_wavelength(wavelength_m) if wavelength_m < _SHORTEST_LIGHT_M else {"energy_ev": energy_ev}
    return {"energy_ev": energy_ev, "wavelength_m": wavelength_m}


def _of_wavelength(wavelength_m: float) -> dict[str, float]:
    """Say what it means alone: a wavelength does not say what has it, but no beamline has photons beyond 124 keV."""
    return {"wavelength_m": wavelength_m} if wavelength_m < _SHORTEST_LIGHT_M else {"energy_ev": HC_EV_M / wavelength_m}

"""Scan geometry and the only unit conversions of the project.

The object pixel follows from the far-field (Fraunhofer) relation between detector and sample plane,
``object_pixel = wavelength * distance / (frame_size * detector_pitch)``
(for example Goodman, Introduction to Fourier Optics, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

# h c / e in eV m, CODATA 2018 (exact in the present SI).
HC_EV_M = 1.2398419843320026e-06

#: Symbols of length, each with its metres. `to_metres` takes their names in full too, and any capitals.
LENGTH_UNITS: dict[str, float] = {
    "m": 1.0,
    "mm": 1e-3,
    "um": 1e-6,
    "µm": 1e-6,
    "nm": 1e-9,
    "pm": 1e-12,
    "cm": 1e-2,
    "Å": 1e-10,
}
_PREFIXES = {"": "m", "centi": "cm", "milli": "mm", "micro": "um", "nano": "nm", "pico": "pm"}
_NAMES = {"micron": "um", "angstrom": "Å", "ångström": "Å"} | {
    f"{prefix}{metre}": symbol for prefix, symbol in _PREFIXES.items() for metre in ("metre", "meter")
}
# Case does not tell units apart: no stage moves by megametres. It also makes the signs µ (U+00B5, U+03BC) one.
_METRES = {symbol.casefold(): metres for symbol, metres in LENGTH_UNITS.items()} | {
    f"{name}{plural}": LENGTH_UNITS[symbol] for name, symbol in _NAMES.items() for plural in ("", "s")
}


@overload
def to_metres(value: float, unit: str, who: str) -> float: ...
@overload
def to_metres(value: NDArray[Any], unit: str, who: str) -> NDArray[np.float64]: ...
def to_metres(value: float | NDArray[Any], unit: str, who: str) -> float | NDArray[np.float64]:
    """Convert a length to metres.

    Parameters
    ----------
    value : float or ndarray
        Length in `unit`.
    unit : str
        One of `LENGTH_UNITS`, or its name in full (``micrometre``, ``Millimeters``, ``microns``); case does not matter.
    who : str
        The device or key the value came from, for the error message.

    Raises
    ------
    ValueError
        When the unit is not a length this project knows.
    """
    try:
        factor = _METRES[unit.strip().casefold()]
    except (KeyError, AttributeError):
        raise ValueError(
            f"{who}: unit {unit!r} is not a length; allowed: {', '.join(LENGTH_UNITS)}, or a name in full. "
            "Set the device's engineering units, or give positions in metres."
        ) from None
    if isinstance(value, np.ndarray):
        return value.astype(np.float64) * factor
    return float(value) * factor


class Geometry(BaseModel):
    """Where the detector stands and what light it sees.

    Parameters
    ----------
    energy_ev : float
        Photon energy in eV.
    distance_m : float
        Sample to detector distance in m.
    pixel_pitch_m : float
        Detector pixel pitch in m, after binning.
    frame_shape : tuple of int
        Rows and columns of the frame whose centre is the beam; square.
    sources : dict of str to str
        Where each value came from (``"start document"``, ``"CXI file"``, ``"user"``), kept for provenance.

    Examples
    --------
    >>> g = Geometry(energy_ev=8800, distance_m=1.92, pixel_pitch_m=75e-6, frame_shape=(128, 128))
    >>> f"{g.object_pixel_m * 1e9:.1f} nm"
    '28.2 nm'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy_ev: float = Field(gt=50, lt=200_000, description="photon energy, eV")
    distance_m: float = Field(gt=0, lt=1000, description="sample to detector, m")
    pixel_pitch_m: float = Field(gt=1e-7, lt=1e-2, description="detector pixel pitch, m")
    frame_shape: tuple[int, int] = Field(description="rows, columns")
    sources: dict[str, str] = Field(default_factory=dict)

    @field_validator("frame_shape")
    @classmethod
    def _square(cls, shape: tuple[int, int]) -> tuple[int, int]:
        rows, columns = shape
        if rows != columns or rows < 8 or rows > 4096 or rows % 2:
            raise ValueError(
                f"frame_shape {shape} px: the network frame must be square and even, 8 to 4096 px on a side; "
                "crop or pad it in the preprocessing"
            )
        return shape

    @property
    def wavelength_m(self) -> float:
        """Wavelength in m."""
        return HC_EV_M / self.energy_ev

    @property
    def object_pixel_m(self) -> float:
        """Pixel size of the reconstructed object in m."""
        return self.wavelength_m * self.distance_m / (self.frame_shape[0] * self.pixel_pitch_m)

    def to_px(self, length_m: float) -> float:
        """Length in object pixels."""
        return length_m / self.object_pixel_m

    def to_m(self, length_px: float) -> float:
        """Length in m from object pixels."""
        return length_px * self.object_pixel_m

    @classmethod
    def from_document(cls, document: Mapping[str, Any] | None, where: str = "start document") -> Geometry:
        """Read a geometry from a document's mapping, naming every missing or wrong value.

        Raises
        ------
        ValueError
            In words: what is missing or wrong, what is allowed, where to give it.
        """
        names = ("energy_ev", "distance_m", "pixel_pitch_m", "frame_shape")
        hint = (
            f"Needed: {', '.join(names)} (eV, m, m, px). Give them in md['ptychography']['geometry'] of the plan, "
            "or as geometry=Geometry(...)."
        )
        if not document:
            raise ValueError(f"{where}: no geometry. {hint}")
        missing = [name for name in names if document.get(name) is None]
        if missing:
            raise ValueError(f"{where}: geometry lacks {', '.join(missing)}. {hint}")
        values = dict(document)
        sources = document.get("sources") or {}
        values["sources"] = {**dict.fromkeys(names, where), **sources} if isinstance(sources, Mapping) else sources
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: got {e['input']!r}, {e['msg']}" for e in error.errors())
            raise ValueError(f"{where}: geometry is not usable: {wrong}. {hint}") from None

"""Scan geometry and the only unit conversions of the project.

The object pixel follows from the far-field (Fraunhofer) relation between detector and sample plane,
``object_pixel = wavelength * distance / (frame_size * detector_pitch)``
(for example Goodman, Introduction to Fourier Optics, section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

# h c / e in eV m, CODATA 2018 (exact in the present SI).
HC_EV_M = 1.2398419843320026e-06
#: Rest energy of an electron, eV, CODATA 2018.
ELECTRON_REST_EV = 510_998.95
_PHOTON_EV = (50.0, 200_000.0)
_SAME = 1e-3  # relative difference up to which an energy and a wavelength say the same
_LIGHT = ("energy_ev", "wavelength_m")
_HINT = (
    "Needed: energy_ev, distance_m, pixel_pitch_m, frame_shape (eV, m, m, px); of electrons wavelength_m (m) instead "
    "of energy_ev. Give them in md['ptychography']['geometry'] of the plan, or as geometry=Geometry(...)."
)

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


def electron_wavelength_m(energy_ev: float) -> float:
    """Wavelength of electrons by their kinetic energy in eV, m: relativistic, ``h / p``.

    >>> f"{electron_wavelength_m(300e3) * 1e12:.3f} pm"
    '1.969 pm'
    """
    return HC_EV_M / math.sqrt(energy_ev * (energy_ev + 2 * ELECTRON_REST_EV))


class Geometry(BaseModel):
    """Where the detector stands and what light, or which electrons, it sees.

    Parameters
    ----------
    energy_ev : float, optional
        Photon energy in eV; of electrons, whose `wavelength_m` is given too, the kinetic energy.
    wavelength_m : float
        Wavelength in m. That of photons of `energy_ev` when not given.
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
    >>> Geometry(wavelength_m=1.97e-12, distance_m=0.1, pixel_pitch_m=150e-6, frame_shape=(128, 128)).beam
    '1.97 pm'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy_ev: float | None = Field(default=None, gt=_PHOTON_EV[0], lt=1e7, description="photon energy, eV")
    # Filled in below; from hard gamma rays and electrons of 10 MeV to infrared light.
    wavelength_m: float = Field(default=0.0, gt=1e-13, lt=1e-5, validate_default=False, description="wavelength, m")
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

    @model_validator(mode="after")
    def _one_wavelength(self) -> Geometry:
        energy, wavelength = self.energy_ev, self.wavelength_m
        if energy is None:
            if not wavelength:
                raise ValueError("give energy_ev, of photons, or wavelength_m")
            return self
        photons, electrons = HC_EV_M / energy, electron_wavelength_m(energy)
        if not wavelength:
            if energy >= _PHOTON_EV[1]:
                raise ValueError(
                    f"energy_ev {energy:g} eV: photons have {_PHOTON_EV[0]:g} to {_PHOTON_EV[1]:g} eV here; "
                    f"of electrons of this energy give wavelength_m, {electrons:.4g} m"
                )
            object.__setattr__(self, "wavelength_m", photons)
        elif all(abs(wavelength / length - 1) > _SAME for length in (photons, electrons)):
            raise ValueError(
                f"energy ({energy:g} eV) and wavelength ({wavelength:.6g} m) contradict each other: photons of this "
                f"energy have {photons:.6g} m, electrons {electrons:.6g} m"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what follows: of photons there is the energy, as in the documents of earlier versions."""
        values: dict[str, Any] = dump(self)
        if self.energy_ev is None:
            values.pop("energy_ev", None)
        elif self.wavelength_m == HC_EV_M / self.energy_ev:
            values.pop("wavelength_m", None)
        return values

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values, checked like any; an energy replaces the wavelength, and the other way."""
        if update is None:
            return super().model_copy(deep=deep)
        return type(self).model_validate(self._changed(update))

    def updated(self, given: Mapping[str, Any], where: str) -> Geometry:
        """Return a copy with other values, which came from `where`; ValueError in words, see `from_document`."""
        return self.from_document(self._changed(given), where)

    def _changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        light = _LIGHT if any(name in given for name in _LIGHT) else ()
        return {**self.model_dump(exclude=set(light)), **given}

    @property
    def light(self) -> dict[str, float]:
        """Energy in eV, wavelength in m, or both, as they were given: what makes an equal geometry, or a card."""
        return {name: value for name, value in self.model_dump().items() if name in _LIGHT}

    @property
    def beam(self) -> str:
        """The same in words."""
        return beam_in_words(**self.light) or ""

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
        if not document:
            raise ValueError(f"{where}: no geometry. {_HINT}")
        light = "energy_ev" if document.get("wavelength_m") is None else "wavelength_m"
        names = (light, "distance_m", "pixel_pitch_m", "frame_shape")
        missing = [name for name in names if document.get(name) is None]
        if missing:
            raise ValueError(f"{where}: geometry lacks {', '.join(missing)}. {_HINT}")
        values = {name: value for name, value in document.items() if name != "wavelength_m" or value is not None}
        sources = document.get("sources") or {}
        values["sources"] = {**dict.fromkeys(names, where), **sources} if isinstance(sources, Mapping) else sources
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: got {e['input']!r}, {e['msg']}"
                if e["loc"]
                else str(e["ctx"]["error"])
                for e in error.errors()
            )
            raise ValueError(f"{where}: geometry is not usable: {wrong}. {_HINT}") from None


def beam_in_words(energy_ev: float | None = None, wavelength_m: float | None = None) -> str | None:
    """Say an energy in keV and a wavelength in pm; None for neither."""
    parts = [
        f"{value / unit:.4g} {name}"
        for value, unit, name in ((energy_ev, 1e3, "keV"), (wavelength_m, 1e-12, "pm"))
        if value
    ]
    return ", ".join(parts) or None


#: A mosaic larger than this on a side means positions in the wrong unit, not a larger sample.
MAX_SIDE_PX = 20_000

"""Which data of a run are the diffraction patterns and which the positions, and the run's geometry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ConfigDict

from bluesky_ptychonn.optics.geometry import LENGTH_UNITS, Geometry, to_metres

_LARGEST_PX = 1 << 16  # on a side of a frame


class RunError(ValueError):
    """A run that cannot be reconstructed, said in words."""


class DocumentError(ValueError):
    """A document that is not what its kind is; the run goes on without it."""


@dataclass(frozen=True)
class DataKeys:
    """Which data keys to use.

    What is None is taken from ``md["ptychography"]`` of the start document, else found in the descriptor: the one
    external image, the two motors of the hints.

    Parameters
    ----------
    frame : str or None
        Data key of the diffraction patterns.
    x, y : str or None
        Data keys of the positions.
    x_sign, y_sign : int or None
        1 or -1: object coordinate = sign × readback.
    stream : str
        Name of the stream with the frames.
    position_unit : str or None
        Unit of the positions, for devices whose data keys name none.
    """

    frame: str | None = None
    x: str | None = None
    y: str | None = None
    x_sign: int | None = None
    y_sign: int | None = None
    stream: str = "primary"
    position_unit: str | None = None
    __pydantic_config__ = ConfigDict(extra="forbid")  # for the configurations that hold one

    def __post_init__(self) -> None:
        for name in ("frame", "x", "y", "stream", "position_unit"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name}={getattr(self, name)!r}: a name in words is needed")
        for name, sign in (("x_sign", self.x_sign), ("y_sign", self.y_sign)):
            if sign not in (None, 1, -1):
                raise ValueError(f"{name}={sign!r}: a sign is 1 or -1 (object coordinate = sign × motor readback)")
        if self.position_unit is not None:
            to_metres(1.0, self.position_unit, "position_unit")

    def filled_from(self, start: Mapping[str, Any]) -> DataKeys:
        """Return these keys, what is None taken from the start document where it says.

        Raises
        ------
        RunError
            When the start document's own values are not usable.
        """
        theirs = {"frame": "frame_key", "x": "x_key", "y": "y_key", "x_sign": "x_sign", "y_sign": "y_sign"}
        theirs["position_unit"] = "position_unit"
        given = _ptychography(start)
        values = {ours: given[name] for ours, name in theirs.items() if getattr(self, ours) is None and name in given}
        try:
            return replace(self, **values)
        except ValueError as error:
            raise RunError(f"start document, md['ptychography']: {error}") from None


def _ptychography(start: Mapping[str, Any]) -> Mapping[str, Any]:
    md = start.get("ptychography")
    return md if isinstance(md, Mapping) else {}


def with_objects(descriptor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data keys of a descriptor, each with the device that it is of, ``object_name``, where that is said."""
    objects = descriptor.get("object_keys") or {}
    devices = {key: name for name, keys in objects.items() for key in keys}
    return {
        key: {**value, "object_name": devices[key]} if key in devices else value
        for key, value in descriptor["data_keys"].items()
    }


def geometry_of(start: Mapping[str, Any], geometry: Geometry | None = None) -> Geometry:
    """Geometry of a run: the one given, else the start document's; RunError says what lacks and where to set it."""
    if geometry is not None:
        return geometry
    given = _ptychography(start).get("geometry")
    try:
        return Geometry.from_document(given if isinstance(given, Mapping) else None)
    except ValueError as error:
        raise RunError(str(error)) from None


@dataclass(frozen=True)
class Axis:
    """One position: its data key, and object metres per unit of it, with sign."""

    key: str
    factor: float
    external: bool = False  # whether it lies outside the events: an encoder's array, written by a fly scan

    def metres(self, data: Mapping[str, Any]) -> float | None:
        """Position in m, of several samples their mean; None when it is missing or not finite."""
        try:
            value = data[self.key]
            value = (float(value) if np.ndim(value) == 0 else float(np.mean(np.asarray(value, float)))) * self.factor
        except (KeyError, TypeError, ValueError):
            return None
        return value if math.isfinite(value) else None


@dataclass(frozen=True)
class RunLayout:
    """The keys of a run, found in its descriptor."""

    frame_key: str
    frame_shape: tuple[int, int]  # rows and columns
    external: bool  # whether frames lie outside the events (files), rather than in them
    y: Axis
    x: Axis

    @classmethod
    def find(
        cls,
        start: Mapping[str, Any],
        data_keys: Mapping[str, Any],
        keys: DataKeys,
        configuration: Mapping[str, Any] | None = None,
    ) -> RunLayout:
        """Find the keys among a descriptor's `data_keys`; the `configuration` of its devices may know units.

        Raises
        ------
        RunError
            No or several images, no motors, a position without a unit: in words, with what to set.
        """
        frame_key = keys.frame or _find_frame_key(data_keys)
        where = f"stream {keys.stream!r}"
        for what, key in (("frame_key", frame_key), ("y_key", keys.y), ("x_key", keys.x)):
            if key and key not in data_keys:
                raise RunError(f"{where} has no {what} {key!r}; it has {', '.join(data_keys)}")
        y_key, x_key = _find_axes(start, data_keys, keys)
        shape = _image_shape(data_keys[frame_key])
        if shape is None:
            got = data_keys[frame_key].get("shape")
            raise RunError(f"{where}: {frame_key!r} of shape {got} is not one image per event")
        y, x = (
            _axis(key, data_keys[key], sign or 1, keys.position_unit or _unit(key, data_keys[key], configuration or {}))
            for key, sign in ((y_key, keys.y_sign), (x_key, keys.x_sign))
        )
        return cls(frame_key, shape, "external" in data_keys[frame_key], y, x)


def _image_shape(data_key: Mapping[str, Any]) -> tuple[int, int] | None:
    shape = [size for size in data_key.get("shape") or () if size is not None]
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    return (int(shape[0]), int(shape[1])) if len(shape) == 2 and 1 < min(shape) <= max(shape) <= _LARGEST_PX else None


def _find_frame_key(data_keys: Mapping[str, Any]) -> str:
    images = [key for key, value in data_keys.items() if _image_shape(value) is not None]
    found = [key for key in images if "external" in data_keys[key]] or images
    if len(found) != 1:
        got = f"several images ({', '.join(found)})" if found else f"no image, only {', '.join(data_keys) or 'nothing'}"
        raise RunError(f"stream has {got}: say which is the diffraction pattern with frame_key=…")
    return found[0]


def _find_axes(start: Mapping[str, Any], data_keys: Mapping[str, Any], keys: DataKeys) -> tuple[str, str]:
    """Keys of y and x: those given; one alone is joined by the hinted motor of the other axis."""
    dimensions = (start.get("hints") or {}).get("dimensions") or ()
    motors = [key for fields, _stream in dimensions for key in fields if key in data_keys]
    y, x = keys.y or None, keys.x or None
    if y is None and x is None:
        y, x = (_hinted(motors, None, letter) if len(motors) == 2 else None for letter in "yx")
    elif y is None:
        y = _hinted(motors, x, "y")
    elif x is None:
        x = _hinted(motors, y, "x")
    if y is None or x is None:
        got = ", ".join(f"{name}_key={key!r}" for name, key in (("x", keys.x), ("y", keys.y)) if key)
        raise RunError(
            f"positions: {got and got + ', and '}the hints name {', '.join(motors) or 'no motor'}, not one ending in x "
            f"and one ending in y; say which are which with x_key=… and y_key=…; there are {', '.join(data_keys)}"
        )
    if y == x:
        raise RunError(f"positions: x_key and y_key are both {x!r}; two axes are needed")
    return y, x


def _hinted(motors: Sequence[str], given: str | None, letter: str) -> str | None:
    """Return the one hinted motor of an axis: of two the one that was not given, else the one whose name ends so."""
    others = [key for key in motors if key != given]
    if len(motors) == 2 and len(others) == 1:
        return others[0]
    named = [key for key in others if key.lower().endswith(letter)]
    return named[0] if len(named) == 1 else None


def _unit(key: str, data_key: Mapping[str, Any], configuration: Mapping[str, Any]) -> str | None:
    """Return the unit of a position: of its data key, else the engineering unit in its device's configuration."""
    if data_key.get("units"):
        return str(data_key["units"])
    device = str(data_key.get("object_name"))
    objects = [configuration[device]] if device in configuration else list(configuration.values())
    units = {name: value for each in objects for name, value in (each.get("data") or {}).items() if _names_unit(name)}
    found = [value for name, value in units.items() if name.startswith(key)]
    if not found and device in configuration and len(units) == 1:
        found = list(units.values())
    return str(found[0]) if len(found) == 1 else None


def _names_unit(name: str) -> bool:
    return name.lower().endswith("egu")


def _axis(key: str, data_key: Mapping[str, Any], sign: int, unit: str | None) -> Axis:
    kind, shape = data_key.get("dtype"), [size for size in data_key.get("shape") or () if size is not None]
    if kind not in ("number", "integer", "array", None) or len(shape) > 1:
        raise RunError(
            f"position {key!r} is {kind} of shape {shape} per event; a number is needed, or several samples of one "
            "(their mean is taken). Set x_key=…, y_key=…"
        )
    if not unit:
        raise RunError(
            f"{key}: its data key names no unit, nor does its device's configuration; allowed: "
            f"{', '.join(LENGTH_UNITS)}. Set the device's engineering units, or say position_unit=…"
        )
    try:
        return Axis(key, to_metres(1.0, unit, key) * sign, "external" in data_key)
    except ValueError as error:
        raise RunError(str(error)) from None

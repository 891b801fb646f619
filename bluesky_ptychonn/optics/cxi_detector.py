"""What a CXI file says of its detector: each statement is used, or refused in words.

The coordinates are CXI's: z along the beam, y up, x horizontal, the sample at the origin. Frames are brought to rows
along -y and columns along -x, which CXI takes where a file has no ``basis_vectors``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from bluesky_ptychonn.optics.cxi_frames import FrameCorrection, marked_bad
from bluesky_ptychonn.optics.framing import PreprocessConfig, framed
from bluesky_ptychonn.optics.geometry import to_metres
from bluesky_ptychonn.optics.hdf5 import find_inside, numeric_dataset, read_numeric

JOULE_PER_EV = 1.602176634e-19
_ENERGY_UNITS = {"j": 1.0, "joule": 1.0, "ev": JOULE_PER_EV, "kev": 1e3 * JOULE_PER_EV}
_MOST_MASKED = 0.5
_LOOKED_AT = 64  # masks of single frames
_WHITE_SPREAD = 4.0


@dataclass(frozen=True)
class DetectorStatement:
    """What a file says of its detector.

    Parameters
    ----------
    correction : FrameCorrection
        What becomes of its frames.
    recorded_shape : tuple of int
        Rows and columns in the file, px.
    pixel_pitch_m, distance_m : float or None
        As ``basis_vectors`` and ``corner_position`` give them, m.
    masked_fraction : float
        Part of the pixels of a frame, as it comes out, that a mask condemns.
    words : tuple of str
        What was used, for provenance.
    name : str
        Of the file, for messages.
    """

    correction: FrameCorrection
    recorded_shape: tuple[int, int]
    pixel_pitch_m: float | None
    distance_m: float | None
    masked_fraction: float
    words: tuple[str, ...]
    name: str

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Rows and columns of frames as they come out, px."""
        return self.correction.framing.output_shape(self.recorded_shape)

    def complete(self, geometry: dict[str, Any]) -> None:
        """Put pitch and distance into a geometry's values where these lack them; ValueError where they contradict.

        The pitch becomes that of the pixels as they come out.
        """
        for name, told, unlike in (("pixel_pitch_m", self.pixel_pitch_m, 1e-3), ("distance_m", self.distance_m, 1e-2)):
            given = geometry.get(name)
            if given and told and abs(told / given - 1) > unlike:
                raise ValueError(
                    f"{self.name}: {name} is {given:g} m by itself, and {told:g} m by basis_vectors and "
                    "corner_position of the detector; they contradict each other"
                )
            geometry[name] = given or told
        if geometry["pixel_pitch_m"]:
            geometry["pixel_pitch_m"] *= self.correction.framing.bin


def in_si(value: Any, dataset: Any, who: str, *, energy: bool = False) -> Any:
    """Convert a dataset's value to m, or to J where it is an `energy`, by its attribute ``units``; CXI's own without.

    ValueError, in words, for a unit of something else.
    """
    unit = dataset.attrs.get("units", "J" if energy else "m")
    unit = np.asarray(unit).ravel()[0] if np.size(unit) else ""
    unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
    if not energy:
        return to_metres(value, unit, f"{who} (attribute units)")
    factor = _ENERGY_UNITS.get(unit.strip().casefold())
    if factor is None:
        raise ValueError(f"{who}: unit {unit!r} is not an energy; allowed: J, eV, keV")
    return value * factor


@dataclass
class _Reader:
    """Statements of one detector, or of the processed image frames were taken from."""

    group: Any
    place: str
    shape: tuple[int, int]
    count: int
    name: str

    def _array(self, what: str) -> NDArray[Any] | None:
        place = f"{self.place}/{what}"
        if find_inside(self.group, place, self.name) is None:
            return None
        found = read_numeric(self.group, place, self.name)
        if found.dtype.kind == "c" or not found.size:
            raise self.refused(what, f"{found.dtype} of shape {found.shape}; real numbers are needed there")
        return found

    def refused(self, what: str, why: str) -> ValueError:
        return ValueError(f"{self.name}: {self.group.name}/{self.place}/{what}: {why}")

    def _lengths(self, what: str) -> NDArray[np.float64] | None:
        found = self._array(what)
        if found is None:
            return None
        dataset = numeric_dataset(self.group, f"{self.place}/{what}", self.name)
        metres: NDArray[np.float64] = in_si(found.astype(np.float64), dataset, f"{self.name}: {dataset.name}")
        return metres

    def _one_for_all(self, what: str, shapes: tuple[tuple[int, ...], ...]) -> NDArray[np.float64] | None:
        """Lengths of one of the shapes, also where they stand there once for each frame; ValueError if those differ."""
        found = self._lengths(what)
        if found is None:
            return None
        if found.shape not in shapes:
            if found.shape[1:] not in shapes:
                raise self.refused(what, f"shape {found.shape}; allowed: {' or '.join(map(str, shapes))}")
            if not np.allclose(found, found[0], rtol=1e-6, atol=1e-12):
                raise self.refused(what, "differs from frame to frame: the detector moved, which is not followed")
            found = found[0]
        if not np.isfinite(found).all():
            raise self.refused(what, "holds values that are not finite")
        return found

    def orientation(self) -> tuple[dict[str, bool], NDArray[np.float64] | None]:
        """Transposition and flips that bring frames to rows along -y, columns along -x; vectors (rows, columns) in m.

        A turn that moves no pixel of the frame by half a pixel is none; any other is refused.
        """
        vectors = self._one_for_all("basis_vectors", ((2, 3), (3, 2)))
        if vectors is None:
            return {}, None
        vectors = vectors if vectors.shape == (2, 3) else vectors.T
        length = np.linalg.norm(vectors, axis=1)
        if not (length > 0).all():
            raise self.refused("basis_vectors", "a vector has no length")
        along = np.abs(vectors).argmax(axis=1)
        askew = max(float(np.delete(np.abs(v), a).max()) / n for v, a, n in zip(vectors, along, length, strict=True))
        if sorted(along.tolist()) != [0, 1] or askew * max(self.shape) / 2 > 0.5:
            raise self.refused(
                "basis_vectors",
                f"{vectors.tolist()} m: rows and columns must run along x and y. A turned or tilted detector is not "
                "modelled: write frames as a detector square to the beam sees them",
            )
        transpose = bool(along[0] == 0)
        rows, columns = (1, 0) if transpose else (0, 1)
        flips = {"flip_y": bool(vectors[rows, 1] > 0), "flip_x": bool(vectors[columns, 0] > 0)}
        return {"transpose": transpose, **flips}, vectors

    def corner(self, vectors: NDArray[np.float64] | None) -> tuple[tuple[int, int] | None, float | None]:
        """Row and column of the beam in the recorded frame, and distance in m, from the corner of the first pixel."""
        corner = self._one_for_all("corner_position", ((3,), (1, 3)))
        if corner is None:
            return None, None
        corner = corner.ravel()
        distance = abs(float(corner[2])) or None
        if vectors is None:
            pitch_y, pitch_x = (self._lengths(f"{axis}_pixel_size") for axis in "yx")
            pitch = pitch_x if pitch_x is not None else pitch_y
            if pitch is None or not pitch.ravel()[0] > 0:
                return None, distance
            vectors = -pitch.ravel()[0] * np.array([[0.0, 1, 0], [1, 0, 0]])
        steps = -corner[:2] @ np.linalg.inv(vectors[:, :2])
        # Some give the middle of the first pixel: both ways the beam is in the pixel it falls into.
        row, column = (math.floor(step + 0.25) for step in steps)
        return (row, column), distance

    def bad_pixels(self) -> tuple[NDArray[np.bool_] | None, str | None]:
        """Pixels (H, W) bad in every frame, and the dataset with a mask for each, where the file has such."""
        place = f"{self.place}/mask"
        if find_inside(self.group, place, self.name) is None:
            return None, None
        dataset = numeric_dataset(self.group, place, self.name)
        if dataset.dtype.kind not in "biu" or dataset.shape not in (
            self.shape,
            (1, *self.shape),
            (self.count, *self.shape),
        ):
            raise self.refused(
                "mask",
                f"{dataset.dtype} of shape {dataset.shape}; needed are integers, {self.shape} or, a mask a frame, "
                f"{(self.count, *self.shape)}",
            )
        if dataset.ndim == 3 and len(dataset) > 1:
            return None, dataset.name
        return marked_bad(np.asarray(dataset[()]).reshape(self.shape)), None

    def mean_image(self, what: str) -> NDArray[np.float32] | None:
        """Image (H, W), or the mean of several."""
        found = self._array(what)
        if found is None:
            return None
        if found.shape[-2:] != self.shape:
            raise self.refused(what, f"shape {found.shape}; needed is {self.shape}, or several of them")
        images = found.reshape(-1, *self.shape).astype(np.float64)
        known = np.isfinite(images)
        total = np.where(known, images, 0).sum(axis=0)
        return np.asarray(np.where(known.any(axis=0), total / known.sum(axis=0).clip(1), np.nan), np.float32)

    def gain(self, dark: NDArray[np.float32] | None, energy_j: float | None) -> NDArray[np.float32] | float | None:
        """Find the counts a photon: relative ones by the white field, absolute by ``counts_per_joule``; None is 1."""
        gain: Any = None
        white = self.mean_image("data_white")
        if white is not None:
            white = white if dark is None else white - dark
            white = np.where(white > 0, white, np.nan)
            low, high = np.nanpercentile(white, [1, 99]) if np.isfinite(white).any() else (1.0, np.inf)
            if high > _WHITE_SPREAD * low:
                raise self.refused(
                    "data_white",
                    f"spreads from {low:g} to {high:g} counts (1st and 99th percentile): no even illumination of the "
                    "detector, so frames cannot be divided by it. Take it out of the file, or correct the frames",
                )
            gain = white / np.float32(np.nanmedian(white))
        rate = self._array("counts_per_joule")
        if rate is not None:
            if rate.size != 1 or not (energy_j and rate.item() > 0 and math.isfinite(rate.item())):
                raise self.refused("counts_per_joule", f"{rate.tolist()}; needed is one number above 0, and an energy")
            counts = float(rate.item() * energy_j)
            if abs(counts - 1) > 1e-3:
                gain = counts if gain is None else gain * np.float32(counts)
        return None if gain is None else gain


def read_detector(
    group: Any, frames: Any, name: str, energy_j: float | None, asked: dict[str, Any]
) -> DetectorStatement:
    """Read what an entry says of the detector of its frames.

    Parameters
    ----------
    group, frames : h5py.Group, h5py.Dataset
        The entry, and the frames (n, H, W).
    name : str
        Of the file, for messages.
    energy_j : float or None
        Of a photon.
    asked : dict
        ``crop``, ``bin`` and ``centre``, as in `PreprocessConfig`.

    Raises
    ------
    ValueError
        In words, for a statement that cannot be used.
    """
    image = _is_processed(group, frames, name)
    shape, count = (int(frames.shape[1]), int(frames.shape[2])), int(frames.shape[0])
    reader = _Reader(group, "image_1" if image else "instrument_1/detector_1", shape, count, name)
    turn, vectors = _Reader(group, "instrument_1/detector_1", shape, count, name).orientation()
    beam, distance = _Reader(group, "instrument_1/detector_1", shape, count, name).corner(vectors)
    framing = _framing(reader, asked, turn, beam)
    bad, masks = reader.bad_pixels()
    dark = None if image else reader.mean_image("data_dark")
    gain = None if image else reader.gain(dark, energy_j)
    unknown = [part for part in (dark, gain) if isinstance(part, np.ndarray)]
    if any(not np.isfinite(part).all() for part in unknown):
        nowhere = np.any([~np.isfinite(part) for part in unknown], axis=0)
        bad = nowhere if bad is None else bad | nowhere
    correction = FrameCorrection(framing, bad if bad is not None and bad.any() else None, masks, dark, gain)
    fraction = _masked_fraction(reader, correction)
    pitch = None if vectors is None else _pitch(reader, vectors)
    words = _words(reader, correction, fraction, turn, beam if asked.get("centre") is None else None)
    return DetectorStatement(correction, shape, pitch, distance, fraction, words, name)


def _is_processed(group: Any, frames: Any, name: str) -> bool:
    """Whether the frames are an image of the file, processed already, and not the detector's own."""
    image = find_inside(group, "image_1/data", name)
    if image is None or image != frames or find_inside(group, "instrument_1/detector_1/data", name) == frames:
        return False
    shifted = find_inside(group, "image_1/is_fft_shifted", name)
    if shifted is not None and np.any(shifted[()]):
        raise ValueError(f"{name}: frames at {frames.name} have the beam in their corner (is_fft_shifted); shift them")
    return True


def _framing(
    reader: _Reader, asked: dict[str, Any], turn: dict[str, Any], beam: tuple[int, int] | None
) -> PreprocessConfig:
    """Orientation, and the window asked for around the beam: as asked, as the file says, or in the frame's middle."""
    rows, columns = reader.shape
    centre = asked.get("centre") or beam
    if centre is None and turn:
        # In the middle of the frame as it comes out, so that a flip is a flip and costs no row.
        flipped = (turn["flip_x"], turn["flip_y"]) if turn["transpose"] else (turn["flip_y"], turn["flip_x"])
        centre = tuple(n - 1 - n // 2 if flip else n // 2 for n, flip in zip(reader.shape, flipped, strict=True))
    try:
        framing = PreprocessConfig(crop=asked.get("crop"), bin=asked.get("bin", 1), centre=centre, **turn)
        shape = framing.output_shape(reader.shape)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'frame'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{reader.name}: {wrong}") from None
    except ValueError as error:
        raise ValueError(f"{reader.name}: {error}") from None
    if shape[0] != shape[1] or shape[0] % 2:
        raise ValueError(
            f"{reader.name}: frames of {rows} x {columns} px come out as {shape[0]} x {shape[1]} px; they must be "
            f"square and even: give crop= (--crop), the side in px of a window around the beam, at best "
            f"{min(reader.shape) // 2 * 2}; a window larger than the frame is filled with zeros"
        )
    if centre == beam and beam is not None:
        _refuse_beam_outside(reader, framing, beam)
    return framing


def _refuse_beam_outside(reader: _Reader, framing: PreprocessConfig, beam: tuple[int, int]) -> None:
    sides = framing.window_shape(reader.shape)
    sides = (sides[1], sides[0]) if framing.transpose else sides
    inside = [
        min(at - side // 2 + side, size) - max(at - side // 2, 0)
        for at, side, size in zip(beam, sides, reader.shape, strict=True)
    ]
    if math.prod(inside) < min(math.prod(sides), math.prod(reader.shape)) / 2:
        raise reader.refused(
            "corner_position",
            f"places the beam at pixel {beam} of frames of {reader.shape[0]} x {reader.shape[1]} px, so that most of "
            f"a window of {sides[0]} x {sides[1]} px around it lies outside; give centre=(row, column)",
        )


def _masked_fraction(reader: _Reader, correction: FrameCorrection) -> float:
    """Part of the pixels that are masked in a frame as it comes out; of masks for single frames the mean of some."""
    bad = np.zeros(reader.shape, bool) if correction.bad is None else correction.bad
    marked = [bad]
    if correction.masks is not None:
        dataset = numeric_dataset(reader.group, correction.masks, reader.name)
        some = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _LOOKED_AT)).astype(int))
        marked = [marked_bad(np.asarray(dataset[int(k)])) | bad for k in some]
    seen = [framed(np.where(one, np.nan, 1.0)[None], correction.framing) for one in marked]
    fraction = float(np.isnan(seen).mean())
    if fraction > _MOST_MASKED:
        raise reader.refused("mask", f"condemns {fraction:.0%} of the pixels; in CXI 0 (or 0x1000) is a good pixel")
    return fraction


def _pitch(reader: _Reader, vectors: NDArray[np.float64]) -> float:
    rows, columns = np.linalg.norm(vectors, axis=1)
    if abs(rows / columns - 1) > 1e-6:
        raise reader.refused("basis_vectors", f"pixels of {rows:g} by {columns:g} m; square ones are needed")
    return float(columns)


def _words(
    reader: _Reader,
    correction: FrameCorrection,
    fraction: float,
    turn: dict[str, bool],
    beam: tuple[int, int] | None,
) -> tuple[str, ...]:
    words = []
    if fraction:
        words.append(f"mask: {fraction:.2%} of the pixels are NaN")
    if correction.dark is not None:
        words.append(f"data_dark: {float(np.nanmean(correction.dark)):.4g} counts a pixel subtracted")
    if correction.gain is not None:
        words.append(f"data_white, counts_per_joule: divided by {float(np.nanmean(correction.gain)):.4g} on average")
    if any(turn.values()):
        words.append("basis_vectors: " + ", ".join(name for name, is_so in turn.items() if is_so))
    if beam is not None:
        words.append(f"corner_position: the beam is at pixel {beam}")
    return tuple(words)

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

from bluesky_ptychonn.optics.cxi.fields import DetectorFields
from bluesky_ptychonn.optics.cxi.frames import FrameCorrection, marked_bad
from bluesky_ptychonn.optics.framing import PreprocessConfig, framed
from bluesky_ptychonn.optics.hdf5 import MOST_BYTES, find_inside, numeric_dataset

_MOST_MASKED = 0.5  # beyond it a mask is more likely the other way round
_LOOKED_AT = 64  # masks of single frames


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
    def framing(self) -> PreprocessConfig:
        """How frames are turned, cut and binned."""
        return self.correction.framing

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Rows and columns of frames as they come out, px."""
        return self.correction.framing.output_shape(self.recorded_shape)

    def complete(self, geometry: dict[str, Any]) -> dict[str, str]:
        """Put pitch and distance into a geometry's values where these lack them; ValueError where they contradict.

        The pitch becomes that of the pixels as they come out. Returns the places of the values put in.
        """
        places = {}
        for name, told, unlike, field in (
            ("pixel_pitch_m", self.pixel_pitch_m, 1e-3, "basis_vectors"),
            ("distance_m", self.distance_m, 1e-2, "corner_position"),
        ):
            given = geometry.get(name)
            if given and told and abs(told / given - 1) > unlike:
                raise ValueError(
                    f"{self.name}: {name} is {given:g} m by itself, and {told:g} m by {field} of the "
                    "detector; they contradict each other"
                )
            if told and not given:
                places[name] = f"instrument_1/detector_1/{field}"
            geometry[name] = given or told
        if geometry["pixel_pitch_m"]:
            geometry["pixel_pitch_m"] *= self.correction.framing.bin
        return places


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
    if math.prod(frames.shape[1:]) * 4 > MOST_BYTES:
        raise ValueError(
            f"{name}: frames of {frames.shape[1]} x {frames.shape[2]} px; a frame takes at most {MOST_BYTES} B"
        )
    image = _is_processed(group, frames, name)
    shape, count = (int(frames.shape[1]), int(frames.shape[2])), int(frames.shape[0])
    stands = DetectorFields(group, "instrument_1/detector_1", shape, count, name)
    reader = DetectorFields(group, "image_1", shape, count, name) if image else stands
    turn, vectors = stands.orientation()
    beam, distance = stands.corner(vectors)
    framing = _framing(stands, asked, turn, beam)
    bad, masks = reader.bad_pixels()
    dark = None if image else reader.dark()
    gain = None if image else reader.gain(dark, energy_j)
    unknown = [part for part in (dark, gain) if isinstance(part, np.ndarray)]
    if any(not np.isfinite(part).all() for part in unknown):
        nowhere = np.any([~np.isfinite(part) for part in unknown], axis=0)
        bad = nowhere if bad is None else bad | nowhere
    correction = FrameCorrection(framing, bad if bad is not None and bad.any() else None, masks, dark, gain)
    fraction = _masked_fraction(reader, correction)
    pitch = None if vectors is None else _pitch(stands, vectors)
    words = _words(reader, correction, fraction, turn, beam if asked.get("centre") is None else None)
    return DetectorStatement(correction, shape, pitch, distance, fraction, words, name)


def _is_processed(group: Any, frames: Any, name: str) -> bool:
    """Whether the frames are an image of the file, processed already, and not the detector's own."""
    image = find_inside(group, "image_1/data", name)
    if image is None or image != frames or find_inside(group, "instrument_1/detector_1/data", name) == frames:
        return False
    shifted = find_inside(group, "image_1/is_fft_shifted", name)
    if getattr(shifted, "shape", None) in ((), (1,)) and np.any(shifted[()]):
        raise ValueError(f"{name}: frames at {frames.name} have the beam in their corner (is_fft_shifted); shift them")
    return True


def _framing(
    reader: DetectorFields, asked: dict[str, Any], turn: dict[str, Any], beam: tuple[int, int] | None
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


def _refuse_beam_outside(reader: DetectorFields, framing: PreprocessConfig, beam: tuple[int, int]) -> None:
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


def _masked_fraction(reader: DetectorFields, correction: FrameCorrection) -> float:
    """Part of the pixels that are masked in a frame as it comes out; of masks for single frames the mean of some."""
    if correction.bad is None and correction.masks is None:
        return 0.0
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


def _pitch(reader: DetectorFields, vectors: NDArray[np.float64]) -> float:
    rows, columns = np.linalg.norm(vectors, axis=1)
    if abs(rows / columns - 1) > 1e-6:
        raise reader.refused("basis_vectors", f"pixels of {rows:g} by {columns:g} m; square ones are needed")
    return float(columns)


def _words(
    reader: DetectorFields,
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

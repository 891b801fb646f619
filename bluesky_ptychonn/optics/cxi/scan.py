"""Read ptychography scans from CXI files (the Coherent X-ray Imaging format, HDF5, SI units).

Only far-field data is accepted: the object pixel of this project is the Fraunhofer one.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.optics.cxi.beam import photon_j, read_geometry, read_text
from bluesky_ptychonn.optics.cxi.detector import DetectorStatement, read_detector
from bluesky_ptychonn.optics.cxi.fields import in_si
from bluesky_ptychonn.optics.cxi.frames import LazyFrames
from bluesky_ptychonn.optics.cxi.near_field import near_field_shadow
from bluesky_ptychonn.optics.framing import PreprocessConfig, framed, turned_probe
from bluesky_ptychonn.optics.geometry import MAX_SIDE_PX, Geometry
from bluesky_ptychonn.optics.hdf5 import find_first, find_inside, numeric_dataset, open_hdf5, read_numeric
from bluesky_ptychonn.optics.positions import nearest
from bluesky_ptychonn.optics.probe_grid import probe_on
from bluesky_ptychonn.optics.probe_modes import ProbeMode, strongest_mode

# The format lets the same thing stand in several places, mostly as links to each other.
_FRAMES = ("data_1/data", "instrument_1/detector_1/data", "image_1/data")
_POSITIONS = (
    "data_1/translation",
    "sample_1/geometry_1/translation",
    "instrument_1/detector_1/translation",
    "sample_1/geometry/translation",
)
_PROBES = ("instrument_1/source_1/illumination", "instrument_1/source_1/probe")


@dataclass(frozen=True)
class CxiScan:
    """A measured scan.

    Parameters
    ----------
    path : Path
        The file.
    frames : LazyFrames
        (n, N, N) counts, with what the file says of its detector carried out: float32 with NaN at pixels that its mask
        condemns, dark subtracted, rows along -y and columns along -x.
    y_m, x_m : (n,) float64 ndarray
        Positions in m, y along frame rows.
    geometry : Geometry
        With the place in the file each value came from.
    probe : (N, N) complex64 ndarray or None
        Illumination in object pixels, as the file has it; of several modes the strongest.
    bad_pixels : (N, N) bool ndarray or None
        Pixels that the file's mask condemns in every frame; NaN in `frames`.
    masked_fraction : float
        Part of a frame's pixels that is masked.
    corrections : tuple of str
        What the file says of its detector and was used, in words.
    probe_light_fraction : float
        Part of the light that `probe` has, of all modes of the file.
    """

    path: Path
    frames: LazyFrames
    y_m: NDArray[np.float64]
    x_m: NDArray[np.float64]
    geometry: Geometry
    probe: NDArray[np.complex64] | None
    bad_pixels: NDArray[np.bool_] | None
    masked_fraction: float = 0.0
    corrections: tuple[str, ...] = ()
    probe_light_fraction: float = 1.0

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def nearest_m(self) -> float:
        """Median distance of a position to its nearest neighbour, m."""
        return float(np.median(nearest(self.y_m, self.x_m)[0]))

    @property
    def framing(self) -> PreprocessConfig:
        """How frames were turned, cut and binned."""
        return PreprocessConfig() if self.frames.correction is None else self.frames.correction.framing

    def check_masked(self, rejected_fraction: float) -> None:
        """Refuse, in words (ValueError), a scan with more of a frame masked than `PreprocessConfig` lets be mended."""
        if self.masked_fraction > rejected_fraction:
            raise ValueError(
                f"{self.path.name}: the file's mask condemns {self.masked_fraction:.1%} of the pixels; of a frame at "
                f"most {rejected_fraction:.1%} are mended, so all would be rejected. Cut a window that has fewer "
                "(--crop, --centre), or allow more: preprocess=PreprocessConfig(rejected_fraction=...)"
            )


def read_cxi(
    path: str | os.PathLike[str],
    *,
    entry: str | None = None,
    crop: int | None = None,
    bin: int = 1,  # noqa: A002  # as in PreprocessConfig
    centre: tuple[int, int] | None = None,
    check_far_field: bool = True,
) -> CxiScan:
    """Read a scan; frames stay in the file.

    What the file says of its detector is carried out on each frame that is asked for: `mask`, `data_dark`,
    `data_white`, `counts_per_joule`, `basis_vectors`, `corner_position`, and the `units` of each of its numbers.

    Parameters
    ----------
    path : path
        The CXI file.
    entry : str, optional
        Name of the file's entry; needed where several hold frames.
    crop : int, optional
        Side in px of the window around the beam, even; one larger than the frame is filled with zeros.
    bin : int
        Sum blocks of this many px a side.
    centre : tuple of int, optional
        Row and column of the beam in the frame as it is in the file; by default as ``corner_position`` says, else its
        middle.
    check_far_field : bool
        Look whether frames are far-field patterns, see `near_field_shadow`.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        In words: not a CXI file, no frames, no positions, positions that are not finite or in another unit, missing
        geometry, a statement about the detector that cannot be used, or near-field data.
    """
    import h5py

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    if not h5py.is_hdf5(source):
        raise ValueError(f"{source.name} is not a CXI file: it is not HDF5")
    with open_hdf5(source) as file:
        group = _entry(file, entry, source)
        frames_at = _find(group, _FRAMES, source, "frames")
        positions_at = _find(group, _POSITIONS, source, "positions")
        frames = numeric_dataset(group, frames_at, source.name)
        if frames.ndim != 3:
            raise ValueError(
                f"{source.name}: frames at {frames.name} have shape {frames.shape}; (n, rows, columns) wanted"
            )
        y_m, x_m = _positions(group, positions_at, len(frames), source)
        asked = {"crop": crop, "bin": bin, "centre": centre}
        detector = read_detector(group, frames, source.name, photon_j(group), asked)
        geometry = read_geometry(group, detector.frame_shape, source, detector)
        _check_extent(y_m, x_m, geometry, source)
        mode = _probe(group, detector, geometry, source)
        bad, dtype = detector.correction.bad, detector.correction.dtype(frames.dtype)
        shape = (len(frames), *detector.frame_shape)
        lazy = LazyFrames(source.absolute(), frames.name, shape, dtype, detector.correction)
    bad = None if bad is None else framed(np.where(bad, np.nan, 0)[None], detector.correction.framing)[0]
    wave, light = (None, 1.0) if mode is None else (mode.wave, mode.light_fraction)
    about = (None if bad is None else np.isnan(bad), detector.masked_fraction, detector.words)
    scan = CxiScan(source.absolute(), lazy, y_m, x_m, geometry, wave, *about, light)
    if check_far_field and (shadow := near_field_shadow(scan)) is not None:
        raise ValueError(f"{source.name} holds near-field data, which far-field ptychography cannot use: {shadow}")
    return scan


def _entry(file: Any, entry: str | None, source: Path) -> Any:
    """Entry asked for, or the one that holds frames."""
    import h5py

    if entry is None:
        holding = {name: count for name in file if (count := _frame_count(file, name, source))}
        if len(holding) > 1:
            counts = (f"{name} ({count} frames)" for name, count in holding.items())
            raise ValueError(f"{source.name} holds several scans: {', '.join(counts)}; choose one by entry= (--entry)")
        entry = next(iter(holding)) if holding else "entry_1"
    group = find_inside(file, entry, source.name)
    if not isinstance(group, h5py.Group):
        found = ", ".join(map(str, file)) or "nothing"
        raise ValueError(f"{source.name} is not a CXI file with a group {entry!r}; it holds: {found}")
    return group


def _frame_count(file: Any, entry: str, source: Path) -> int:
    """Count the frames of an entry; 0 where it is none."""
    import h5py

    with contextlib.suppress(ValueError):  # what is wrong with an entry is said when it is read
        group = find_inside(file, entry, source.name)
        if isinstance(group, h5py.Group) and (place := find_first(group, _FRAMES, source.name)) is not None:
            shape = numeric_dataset(group, place, source.name).shape
            return int(shape[0]) if shape else 0
    return 0


def _find(group: Any, places: tuple[str, ...], source: Path, what: str) -> str:
    place = find_first(group, places, source.name)
    if place is None:
        raise ValueError(f"{source.name}: no {what} in {group.name}; looked at {', '.join(places)}")
    return place


def _positions(group: Any, place: str, count: int, source: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = numeric_dataset(group, place, source.name)
    where, shape = found.name, found.shape
    if len(shape) != 2 or shape[1] not in (2, 3) or found.dtype.kind == "c":
        raise ValueError(f"{source.name}: positions at {where} have shape {shape}; (n, 3) x, y, z in m wanted")
    if len(found) != count:
        raise ValueError(f"{source.name}: {count} frames, but {len(found)} positions at {where}")
    table = read_numeric(group, place, source.name)
    x_m, y_m = in_si(table[:, :2].astype(np.float64), found, f"{source.name}: {where}").T
    wrong = np.flatnonzero(~(np.isfinite(x_m) & np.isfinite(y_m)))
    if wrong.size:
        raise ValueError(
            f"{source.name}: {wrong.size} of {count} positions at {where} are not finite, the first at index {wrong[0]}"
        )
    if max(np.ptp(x_m), np.ptp(y_m)) > 0.1:
        raise ValueError(
            f"{source.name}: positions at {where} span {max(np.ptp(x_m), np.ptp(y_m)):g} m; CXI wants metres, "
            "these look like another unit, which the attribute units of the positions would say"
        )
    return y_m, x_m


def _check_extent(y_m: NDArray[np.float64], x_m: NDArray[np.float64], geometry: Geometry, source: Path) -> None:
    """Refuse, with a ValueError, a scan of which no mosaic could be made; else it would be played to its end first."""
    span_m = float(max(np.ptp(y_m), np.ptp(x_m)))
    if geometry.to_px(span_m) + geometry.frame_shape[0] > MAX_SIDE_PX:
        raise ValueError(
            f"{source.name}: positions span {span_m * 1e6:g} µm, {geometry.to_px(span_m):.0f} object pixels of "
            f"{geometry.object_pixel_m * 1e9:.4g} nm; at most {MAX_SIDE_PX} are reconstructed. CXI wants metres: the "
            "attribute units of the positions says where it is another unit"
        )


def _probe(group: Any, detector: DetectorStatement, geometry: Geometry, source: Path) -> ProbeMode | None:
    """Probe that goes with the frames as they come out; the file's goes with them as recorded, or already so."""
    place = find_first(group, _PROBES, source.name)
    if place is None or read_text(group, place):  # where NeXus names what the source gives
        return None
    found, recorded, framing = (
        numeric_dataset(group, place, source.name).shape,
        detector.recorded_shape,
        detector.framing,
    )
    if found[-2:] not in (recorded, detector.frame_shape) or 0 in found:
        raise ValueError(f"{source.name}: probe at {place} is {found} px, frames are {detector.frame_shape} px")
    mode = strongest_mode(read_numeric(group, place, source.name).astype(np.complex64), source.name)
    if found[-2:] != recorded:
        return mode
    if recorded[0] != recorded[1]:
        raise ValueError(f"{source.name}: probe at {place} is {found} px; a square one is needed")
    side = geometry.frame_shape[0] * framing.bin  # of the window, before pixels are summed
    window = geometry.model_copy(
        update={"frame_shape": (side, side), "pixel_pitch_m": geometry.pixel_pitch_m / framing.bin}
    )
    pixel_m = window.object_pixel_m * side / recorded[0]  # what a frame is cut to, its object pixel is coarser by
    wave, _ = probe_on(turned_probe(mode.wave, framing), window, PreprocessConfig(bin=framing.bin), pixel_m)
    return replace(mode, wave=wave)

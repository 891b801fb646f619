"""A beamline that plays a recorded scan: measured frames at their measured positions, the same writing code."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bluesky import plans as bp
from bluesky.utils import MsgGenerator, plan
from cycler import cycler
from numpy.typing import NDArray

from bluesky_ptychonn.beamline.axis import SimStage
from bluesky_ptychonn.beamline.camera import SimCamera
from bluesky_ptychonn.beamline.start_document import axes_metadata, join_metadata
from bluesky_ptychonn.optics.cxi import CxiScan, read_cxi
from bluesky_ptychonn.optics.geometry import Geometry, to_metres
from bluesky_ptychonn.optics.positions import spacing_m, thinned
from bluesky_ptychonn.optics.simulate import illuminated_diameter_px

_READING = ("entry", "crop", "bin", "centre", "check_far_field")


class ReplaySource:
    """The frames of a recorded scan as a `FrameProvider`; ValueError from `frame_at` where nothing was measured."""

    def __init__(self, scan: CxiScan) -> None:
        from scipy.spatial import cKDTree

        self.scan = scan
        self._tolerance_m = scan.geometry.object_pixel_m / 1000  # how far the stage may be from a measured position
        self._tree = cKDTree(np.stack([scan.y_m, scan.x_m], axis=1))
        self._played: Counter[int] = Counter()
        self._lock = threading.Lock()

    @property
    def geometry(self) -> Geometry:
        """Geometry of the scan."""
        return self.scan.geometry

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the counts."""
        return self.scan.frames.dtype

    @property
    def probe_diameter_m(self) -> float | None:
        """Illuminated diameter of the file's probe, m."""
        if self.scan.probe is None:
            return None
        return illuminated_diameter_px(self.scan.probe) * self.geometry.object_pixel_m

    def frame_at(self, y_m: float, x_m: float, exposure: int) -> NDArray[Any]:
        """Frame (N, N) measured at (y_m, x_m) in m; of several at one place, the one played least so far."""
        near = self._tree.query_ball_point((y_m, x_m), self._tolerance_m)
        if not near:
            distance, index = self._tree.query((y_m, x_m))
            raise ValueError(
                f"replay of {self.scan.path.name}: nothing was measured at y {y_m * 1e6:.4f}, x {x_m * 1e6:.4f} µm; "
                f"the nearest frame is number {index}, {distance * 1e6:.4f} µm away. Use replay_scan, which visits "
                "measured positions"
            )
        with self._lock:
            index = min(near, key=lambda i: (self._played[i], i))
            self._played[index] += 1
        return self.scan.frames[index]


@dataclass(frozen=True)
class ReplayBeamline:
    """A stage and a camera that play a recorded scan."""

    stage: SimStage
    camera: SimCamera
    scan: CxiScan

    @property
    def geometry(self) -> Geometry:
        """Geometry of the scan."""
        return self.scan.geometry

    @classmethod
    def from_scan(
        cls, scan: CxiScan | str | os.PathLike[str], folder: Path | str, *, egu: str = "mm", **options: Any
    ) -> ReplayBeamline:
        """Put devices around a recorded scan.

        Parameters
        ----------
        scan : CxiScan or path
            The scan, or its CXI file.
        folder : Path
            Where the camera writes.
        egu : str
            Unit of the stage's axes.
        **options
            ``entry``, ``crop``, ``bin``, ``centre`` and ``check_far_field``, with which a file is read, see `read_cxi`;
            ``documents``, ``exposure_s`` and faults of the camera, see `SimCamera`.

        Raises
        ------
        ValueError
            From `read_cxi`, or when options for reading are given with a scan that is read already.
        """
        reading = {name: options.pop(name) for name in _READING if name in options}
        if reading and isinstance(scan, CxiScan):
            raise ValueError(f"replay: {', '.join(reading)}: this scan is read already; give them to read_cxi")
        recorded, camera = scan if isinstance(scan, CxiScan) else read_cxi(scan, **reading), options
        reach_m = 1.1 * max(np.abs(recorded.y_m).max(), np.abs(recorded.x_m).max(), 1e-6)
        stage = SimStage(name="stage", egu=egu, travel=float(reach_m) / to_metres(1.0, egu, "replay stage"))
        player = SimCamera(source=ReplaySource(recorded), stage=stage, folder=folder, **camera)
        player.cam.model.put(f"replay of {recorded.path.name}")
        return cls(stage, player, recorded)


@plan  # type: ignore[untyped-decorator]  # bluesky's is
def replay_scan(
    beamline: ReplayBeamline,
    every: int = 1,
    first: int = 0,
    *,
    frames: Sequence[int] | None = None,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Play a recorded scan, or a part of it.

    Parameters
    ----------
    beamline : ReplayBeamline
        Stage and camera.
    every : int
        Play one frame in so many, spread evenly over the scanned area in both directions; 1 plays all.
    first : int
        Index of the first frame played.
    frames : sequence of int, optional
        Indices of the frames to play, in this order, instead of what `every` and `first` choose.
    md : dict, optional
        Metadata of the run.

    Returns
    -------
    str
        Uid of the run. The start document's dense equivalent is the whole recorded scan.

    Raises
    ------
    ValueError
        When no frame is left to play, or an index is not one of the scan.
    """
    recorded, stage = beamline.scan, beamline.stage
    if every < 1 or not 0 <= first < len(recorded):
        raise ValueError(
            f"replay: every {every} and first {first} leave no frame of {len(recorded)}; "
            f"allowed: every from 1, first from 0 to {len(recorded) - 1}"
        )
    chosen = thinned(recorded.y_m, recorded.x_m, every, first)
    if frames is not None:
        chosen = np.asarray(frames, np.intp)
        if not chosen.size or chosen.min() < 0 or chosen.max() >= len(recorded):
            raise ValueError(f"replay: frames must name some of 0 to {len(recorded) - 1}; got {list(frames)[:10]}")
    how: dict[str, Any] = {"every": every, "first": first} if frames is None else {"frames": chosen.tolist()}
    per_metre = 1 / to_metres(1.0, stage.x.egu, stage.x.name)
    y, x = (positions[chosen] * per_metre for positions in (recorded.y_m, recorded.x_m))
    plan_metadata = {
        "plan_name": "replay_scan",
        "plan_args": {"file": recorded.path.name, **how},
        **axes_metadata(stage.x, stage.y),
    }
    start = join_metadata(plan_metadata, _ptychography(beamline, chosen, how), md)
    trajectory = cycler(stage.y, y.tolist()) + cycler(stage.x, x.tolist())
    return (yield from bp.scan_nd([beamline.camera], trajectory, md=start))


def _ptychography(beamline: ReplayBeamline, chosen: NDArray[np.intp], how: dict[str, Any]) -> dict[str, Any]:
    """Compose what the start document says under ``ptychography``, for the `chosen` frames."""
    recorded, stage, camera = beamline.scan, beamline.stage, beamline.camera
    step_m = spacing_m(recorded.y_m[chosen], recorded.x_m[chosen])
    diameter_m = camera.probe_diameter_m
    return {
        "geometry": recorded.geometry.model_dump(mode="json"),
        "frame_key": camera.image_key,
        "x_key": stage.x.name,
        "y_key": stage.y.name,
        "x_sign": 1,
        "y_sign": 1,
        "pattern": f"replay, every {how['every']}" if "every" in how else "replay, chosen frames",
        "step_m": step_m,
        "extent_m": {
            name: [float(positions[chosen].min()), float(positions[chosen].max())]
            for name, positions in (("x", recorded.x_m), ("y", recorded.y_m))
        },
        "sampling": None if diameter_m is None or step_m is None else step_m / diameter_m,
        "probe_diameter_m": diameter_m,
        "dense_equivalent_frames": len(recorded),
        "dose_saved_fraction": 1 - len(chosen) / len(recorded),
        "model": None,
        "tolerated_error_rad": None,
        "recorded_file": recorded.path.name,
        "recorded_corrections": list(recorded.corrections),
        "recorded_index": how,
    }

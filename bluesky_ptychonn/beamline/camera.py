"""A simulated camera: writes real HDF5 files, emits what a real areaDetector emits, and fails where told to."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ophyd import Component, Device, Kind, Signal
from ophyd.device import Staged
from ophyd.status import DeviceStatus

from bluesky_ptychonn.beamline.assets import Asset, Documents, make_assets
from bluesky_ptychonn.beamline.axis import SimStage
from bluesky_ptychonn.beamline.frames import FrameFile, FrameProvider
from bluesky_ptychonn.optics.geometry import Geometry

_DATA_TYPES = {"uint8": "UInt8", "uint16": "UInt16", "int32": "Int32", "uint32": "UInt32", "float32": "Float32"}


class _ArraySize(Device):  # type: ignore[misc]  # ophyd is untyped
    array_size_y = Component(Signal, value=0, kind=Kind.config)
    array_size_x = Component(Signal, value=0, kind=Kind.config)


class SimCam(Device):  # type: ignore[misc]
    """The driver's part of the device tree."""

    acquire = Component(Signal, value=0, kind=Kind.omitted)
    acquire_time = Component(Signal, value=0.0, kind=Kind.config)
    acquire_period = Component(Signal, value=0.0, kind=Kind.config)
    num_images = Component(Signal, value=1, kind=Kind.config)
    image_mode = Component(Signal, value="Multiple", kind=Kind.config)
    trigger_mode = Component(Signal, value="Internal", kind=Kind.config)
    data_type = Component(Signal, value="UInt16", kind=Kind.config)
    manufacturer = Component(Signal, value="bluesky_ptychonn", kind=Kind.config)
    model = Component(Signal, value="simulated", kind=Kind.config)
    array_counter = Component(Signal, value=0, kind=Kind.omitted)
    detector_state = Component(Signal, value="Idle", kind=Kind.omitted)
    array_size = Component(_ArraySize, "", kind=Kind.config)


class SimHDF5Plugin(Device):  # type: ignore[misc]
    """The file plugin's part of the device tree.

    ``num_captured`` is read with every event: it is the number of frames in the file, so that who has only the catalog
    can tell which exposures reached it.
    """

    enable = Component(Signal, value="Enable", kind=Kind.config)
    file_path = Component(Signal, value="", kind=Kind.omitted)
    file_name = Component(Signal, value="", kind=Kind.omitted)
    file_template = Component(Signal, value="%s%s_%6.6d.h5", kind=Kind.omitted)
    file_write_mode = Component(Signal, value="Stream", kind=Kind.config)
    full_file_name = Component(Signal, value="", kind=Kind.omitted)
    compression = Component(Signal, value="none", kind=Kind.config)
    swmr_mode = Component(Signal, value="On", kind=Kind.config)
    capture = Component(Signal, value=0, kind=Kind.omitted)
    dropped_arrays = Component(Signal, value=0, kind=Kind.omitted)
    num_captured = Component(Signal, value=0, kind=Kind.normal)


@dataclass(frozen=True)
class Faults:
    """What goes wrong in a run, by number of the exposure, from 1 (the event's seq_num in a run without rewinds).

    Parameters
    ----------
    drop_frames : collection of int
        Exposures whose frame never reaches the file.
    corrupt_frames : collection of int
        Exposures whose frame is in the file, but cannot be decoded.
    missed : {"absent", "blank"}, optional
        A dropped frame leaves no document (streamed documents only, and then by default), or a frame of zeros, which
        is what a writer that works by position leaves.
    keep_orphans : bool
        Whether a frame whose event never came (a pause during the exposure) stays in the file, as at a real detector,
        or is overwritten by the next.
    """

    drop_frames: Collection[int] = ()
    corrupt_frames: Collection[int] = ()
    missed: Literal["absent", "blank"] | None = None
    keep_orphans: bool = False

    def for_documents(self, documents: Documents) -> Faults:
        """Choose what a dropped frame leaves, where nobody did.

        ValueError when classic documents should leave a frame out: an event must name a datum for every data key.
        """
        missed = self.missed or ("absent" if documents == "stream" else "blank")
        if documents == "classic" and missed == "absent":
            raise ValueError(
                "camera: missed='absent' needs documents='stream'; classic events name a datum each, use missed='blank'"
            )
        return replace(self, missed=missed)


class SimCamera(Device):  # type: ignore[misc]
    """A camera that looks at a `FrameProvider` through a stage and writes what it sees.

    Parameters
    ----------
    prefix : str
        Kept for the look of it.
    name : str
        The image's data key is ``<name>_image``.
    source : FrameProvider
        What it looks at.
    stage : SimStage
        Whose readback says where the beam is.
    folder : Path
        Where the files go; made if absent.
    documents : {"stream", "classic"}
        StreamResource and StreamDatum, or Resource and Datum.
    exposure_s : float
        Time of one exposure in s; also settable as ``cam.acquire_time``.
    **faults
        See `Faults`.

    Raises
    ------
    RuntimeError
        From `trigger` when the camera is not staged.
    """

    cam = Component(SimCam, "cam1:", kind=Kind.config)
    hdf1 = Component(SimHDF5Plugin, "HDF1:", kind=Kind.normal)

    def __init__(
        self,
        prefix: str = "",
        *,
        name: str = "camera",
        source: FrameProvider,
        stage: SimStage,
        folder: Path | str,
        documents: Documents = "stream",
        exposure_s: float = 0.0,
        **faults: Any,
    ) -> None:
        super().__init__(prefix, name=name, labels={"detectors"})
        self.source = source
        self.stage_device = stage
        self.folder = Path(folder).absolute()
        self.image_key = f"{name}_image"
        self.assets = make_assets(documents, self.image_key, self.folder)
        self.faults = Faults(**faults).for_documents(documents)
        self.cam.acquire_time.put(exposure_s)
        self.cam.data_type.put(_DATA_TYPES.get(source.dtype.name, source.dtype.name))
        rows, columns = self.geometry.frame_shape
        self.cam.array_size.array_size_y.put(rows)
        self.cam.array_size.array_size_x.put(columns)
        if self.faults.corrupt_frames:
            self.hdf1.compression.put("zlib")
        self._file: FrameFile | None = None
        self._exposure: threading.Thread | None = None
        self._committed = 0

    @property
    def geometry(self) -> Geometry:
        """Geometry of the source."""
        return self.source.geometry

    @property
    def probe_diameter_m(self) -> float | None:
        """Illuminated diameter in m, where the source knows it."""
        return self.source.probe_diameter_m

    def inject(self, **faults: Any) -> None:
        """Replace the faults, see `Faults`; holds from the next run on."""
        self.faults = Faults(**faults).for_documents(self.assets.kind)
        self.hdf1.compression.put("zlib" if self.faults.corrupt_frames else "none")

    def stage(self) -> list[object]:
        """Open a new file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        staged: list[object] = super().stage()
        file_name = uuid.uuid4().hex
        path = self.folder / f"{file_name}_000000.h5"
        self._file = FrameFile(path, self.geometry.frame_shape, self.source.dtype, self.hdf1.compression.get())
        self._committed = 0
        for signal, value in (
            (self.cam.array_counter, 0),
            (self.hdf1.file_path, f"{self.folder}/"),
            (self.hdf1.file_name, file_name),
            (self.hdf1.full_file_name, str(path)),
            (self.hdf1.num_captured, 0),
            (self.hdf1.dropped_arrays, 0),
            (self.hdf1.capture, 1),
        ):
            signal.put(value)
        self.assets.open(path, self.geometry.frame_shape)
        return staged

    def unstage(self) -> list[object]:
        """Let a running exposure end, and close the file."""
        if self._exposure is not None:
            self._exposure.join()
            self._exposure = None
        if self._file is not None:
            self._file.close()
            self._file = None
        self.hdf1.capture.put(0)
        unstaged: list[object] = super().unstage()
        return unstaged

    def trigger(self) -> DeviceStatus:
        """Expose one frame at the stage's present readback."""
        if self._staged != Staged.yes or self._file is None:
            raise RuntimeError(f"{self.name}: not staged; call stage() before trigger(), plans of bluesky do")
        if self._exposure is not None:
            self._exposure.join()
        # Kept in a local: a short exposure may end before this returns.
        status = DeviceStatus(self)
        number = int(self.cam.array_counter.get()) + 1
        self.cam.array_counter.put(number)
        self.cam.acquire.put(1)
        self.cam.detector_state.put("Acquire")
        arguments = (status, self._file, number, self.stage_device.position_m())
        self._exposure = threading.Thread(
            target=self._expose, args=arguments, name=f"{self.name} exposing", daemon=True
        )
        self._exposure.start()
        return status

    def _expose(self, status: DeviceStatus, file: FrameFile, number: int, beam_m: tuple[float, float]) -> None:
        try:
            time.sleep(max(0.0, float(self.cam.acquire_time.get())))
            self._record(file, number, beam_m)
        except Exception as error:  # noqa: BLE001  # the status carries it to the RunEngine, which fails the plan
            status.set_exception(error)
        else:
            status.set_finished()
        finally:
            self.cam.acquire.put(0)
            self.cam.detector_state.put("Idle")

    def _record(self, file: FrameFile, number: int, beam_m: tuple[float, float]) -> None:
        dropped = number in self.faults.drop_frames
        if dropped:
            self.hdf1.dropped_arrays.put(self.hdf1.dropped_arrays.get() + 1)
            if self.faults.missed == "absent":
                return
        frame = self.source.frame_at(*beam_m, number - 1)
        if dropped:
            frame = np.zeros_like(frame)
        index = file.count if self.faults.keep_orphans else self._committed
        now = time.time()
        readable = number not in self.faults.corrupt_frames
        file.write(index, frame, unique_id=number, timestamp=now, readable=readable)
        self.hdf1.num_captured.put(file.count)
        self.assets.note(index, now)

    def describe(self) -> dict[str, Any]:
        """Describe the image and what else an event holds."""
        described: dict[str, Any] = super().describe()
        described[self.image_key] = {
            "source": f"SIM:{self.name}",
            "dtype": "array",
            "dtype_numpy": self.source.dtype.str,
            "units": "counts",
            **self.assets.data_key(self.geometry.frame_shape),
        }
        return described

    def read(self) -> dict[str, Any]:
        """Read the last frame's reference (classic documents only) and the number of frames in the file."""
        readings: dict[str, Any] = super().read()
        if (reading := self.assets.reading()) is not None:
            readings[self.image_key] = reading
        return readings

    def collect_asset_docs(self) -> Iterator[Asset]:
        """Yield the external-data documents since the last call."""
        for name, document in self.assets.collect():
            if name in ("datum", "stream_datum"):
                self._committed += 1
            yield name, document

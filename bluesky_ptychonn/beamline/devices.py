"""Ophyd devices for a real beamline: an areaDetector camera with its HDF5 plugin in SWMR mode, and a scan stage.

Composed of ophyd's stock classes; they connect over Channel Access when they are made.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ophyd import AreaDetector, Component, Device, EpicsMotor, FormattedComponent, SingleTrigger
from ophyd.areadetector.filestore_mixins import FileStoreHDF5IterativeWrite
from ophyd.areadetector.plugins import HDF5Plugin_V34
from ophyd.device import Staged

from bluesky_ptychonn.optics.geometry import Geometry, to_metres


class SwmrHDF5Plugin(HDF5Plugin_V34, FileStoreHDF5IterativeWrite):  # type: ignore[misc]  # ophyd is untyped
    """The HDF5 file plugin of ADCore 3.4 or later: one file a run, one frame a chunk, readable while it is written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.filestore_spec = "AD_HDF5_SWMR"
        # `capture` opens the file and must stay the last of these.
        self.stage_sigs.update(
            [("lazy_open", "No"), ("swmr_mode", "On"), ("num_frames_chunks", 1), ("num_frames_flush", 1)]
        )
        self.stage_sigs.move_to_end("capture")

    def stage(self) -> list[object]:
        """Stage; folders that are missing are made, as deep as ``stage_sigs["create_directory"]`` says."""
        # ADCore makes them when the path is set, and ophyd sets the path before it stages this signal.
        self.create_directory.set(self.stage_sigs["create_directory"]).wait(timeout=10)
        staged: list[object] = super().stage()
        return staged


class PtychoCamera(SingleTrigger, AreaDetector):  # type: ignore[misc]
    """An areaDetector camera that writes a frame per trigger.

    Parameters
    ----------
    prefix : str
        Of the IOC's PVs, e.g. ``"13SIM1:"``; driver and plugin are ``cam1:`` and ``HDF1:`` below it.
    name : str
        The image's data key is ``<name>_image``.
    write_path : Path or str
        Folder on the IOC's machine; may hold `strftime` fields such as ``%Y/%m/%d``.
    read_path : Path or str, optional
        The same folder as seen from here, where it differs.
    root : str
        The part of the path that is not meant, e.g. a mount point.
    geometry : Geometry, optional
        Of the frames; plans put it into the start document.
    probe_diameter_m : float, optional
        Illuminated diameter at the sample, m; plans put it there too.

    Examples
    --------
    ``camera = PtychoCamera("13SIM1:", name="camera", write_path="/data/%Y/%m", geometry=Geometry(...))``
    """

    hdf1 = Component(SwmrHDF5Plugin, "HDF1:", write_path_template="/", root="/")

    def __init__(
        self,
        prefix: str,
        *,
        name: str,
        write_path: Path | str,
        read_path: Path | str | None = None,
        root: str = "/",
        geometry: Geometry | None = None,
        probe_diameter_m: float | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("labels", {"detectors"})
        super().__init__(prefix, name=name, **kwargs)
        self.geometry = geometry
        self.probe_diameter_m = probe_diameter_m
        self.image_key = self._image_name
        self.hdf1.reg_root = root
        self.hdf1.write_path_template = _folder(write_path)
        self.hdf1.read_path_template = None if read_path is None else _folder(read_path)
        self.read_attrs = ["hdf1"]
        # Read with every event: how many frames are in the file, so that a lost one can be told from the catalog.
        self.hdf1.read_attrs = ["num_captured"]
        self.hdf1.configuration_attrs = ["compression", "swmr_mode", "nd_array_port"]
        self.cam.configuration_attrs = [
            "acquire_time",
            "acquire_period",
            "num_images",
            "num_exposures",
            "image_mode",
            "trigger_mode",
            "manufacturer",
            "model",
        ]

    def describe(self) -> dict[str, Any]:
        """Describe a frame as rows and columns.

        ophyd says (1, rows, columns), and a Tiled server of version 0.2.20 then gives no frame of a file that holds one
        more than the documents say: while the run goes on, and for ever after one that was aborted.
        """
        described: dict[str, Any] = super().describe()
        key = described.get(self._image_name)
        if key is not None and len(key["shape"]) == 3 and key["shape"][0] == 1:
            key["shape"] = key["shape"][1:]
        return described

    def stage(self) -> list[object]:
        """Make sure that a trigger is one frame, and stage."""
        self.stage_sigs["cam.num_images"] = 1
        staged: list[object] = super().stage()
        return staged

    def trigger(self) -> Any:
        """Expose one frame.

        Raises
        ------
        RuntimeError
            When the camera is not staged.
        """
        if self._staged != Staged.yes:
            raise RuntimeError(f"{self.name}: not staged; call stage() before trigger(), plans of bluesky do")
        # Kept in a local: ophyd's own returns the attribute, which a short exposure has set to None by then.
        status = self._status = self._status_type(self)
        self._acquisition_signal.put(1, wait=False)
        self.generate_datum(self._image_name, time.time(), {})
        return status


def _folder(path: Path | str) -> str:
    return f"{str(path).rstrip('/')}/"


class ScanStage(Device):  # type: ignore[misc]
    """Two EPICS motors that carry the sample.

    Parameters
    ----------
    prefix : str
        Of both motors.
    name : str
        The axes are ``<name>_x`` and ``<name>_y``.
    x, y : str
        Suffixes of the motor records.

    Examples
    --------
    ``stage = ScanStage("26idc:", name="stage", x="m1", y="m2")``
    """

    x = FormattedComponent(EpicsMotor, "{prefix}{_x}", labels={"motors"})
    y = FormattedComponent(EpicsMotor, "{prefix}{_y}", labels={"motors"})

    def __init__(self, prefix: str, *, name: str, x: str = "m1", y: str = "m2", **kwargs: Any) -> None:
        self._x, self._y = x, y
        super().__init__(prefix, name=name, **kwargs)

    def position_m(self) -> tuple[float, float]:
        """Readback (y, x) in m."""
        return (
            to_metres(float(self.y.position), self.y.egu, self.y.name),
            to_metres(float(self.x.position), self.x.egu, self.x.name),
        )

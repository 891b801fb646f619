"""The records of the simulated IOC: motors, an areaDetector driver and its HDF5 plugin. Needs ``caproto``."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
from caproto import ChannelType
from caproto.server import PVGroup, SubGroup, get_pv_pair_wrapper, pvproperty

from bluesky_ptychonn.beamline.frames import FrameFile
from bluesky_ptychonn.beamline.sim import ExperimentSource
from bluesky_ptychonn.optics.geometry import to_metres
from bluesky_ptychonn.optics.simulate import SimulatedExperiment

_UPDATE_S = 0.02  # how often a moving motor reports
# A setpoint and its ``_RBV`` that follows, areaDetector's convention.
_pair: Any = get_pv_pair_wrapper()


def _enum(value: str, *strings: str) -> dict[str, Any]:
    return {"value": value, "dtype": ChannelType.ENUM, "enum_strings": list(strings)}


def _string(value: str) -> dict[str, Any]:
    return {"value": value, "dtype": ChannelType.STRING}


def _path(value: str = "") -> dict[str, Any]:
    # A CHAR array that starts empty has no type a client could ask for; one reported as a string ends after 40 letters.
    return {"value": value or " ", "dtype": ChannelType.CHAR, "max_length": 256}


class Motor(PVGroup):  # type: ignore[misc]  # caproto is untyped
    """A motor record, in mm, that goes where it is told."""

    record = pvproperty(value=0.0, name="", record="motor", precision=7)

    @record.startup  # type: ignore[no-redef,untyped-decorator]  # caproto wants the same name
    async def record(self, instance: Any, async_lib: Any) -> None:
        """Set up the fields, then follow what is written to the record."""
        fields = instance.field_inst
        written = async_lib.library.Event()

        async def notice(_fields: Any, _value: Any) -> None:
            written.set()

        fields.value_write_hook = notice
        travel_mm = self.parent.travel_mm
        await fields.engineering_units.write("mm")
        await fields.velocity.write(self.parent.velocity_mm_s)
        await fields.user_low_limit.write(-travel_mm)
        await fields.user_high_limit.write(travel_mm)
        # What a client reads as the limits of VAL.
        await instance.write_metadata(lower_ctrl_limit=-travel_mm, upper_ctrl_limit=travel_mm, units="mm")
        await fields.user_readback_value.write_metadata(units="mm", precision=7)
        await fields.done_moving_to_value.write(1)
        while True:
            await written.wait()
            written.clear()
            await fields.done_moving_to_value.write(0)
            await fields.motor_is_moving.write(1)
            if await self._stopped_on_the_way(instance, async_lib):
                written.clear()
            await fields.motor_is_moving.write(0)
            await fields.done_moving_to_value.write(1)

    async def _stopped_on_the_way(self, instance: Any, async_lib: Any) -> bool:
        """Move to the record's value, or until STOP is written, which makes the place reached the value."""
        fields = instance.field_inst
        target, start = float(instance.value), float(fields.user_readback_value.value)
        steps = max(1, int(abs(target - start) / max(fields.velocity.value, 1e-9) / _UPDATE_S))
        for step in range(1, steps + 1):
            if fields.stop.value:
                await fields.stop.write(0)
                await instance.write(float(fields.user_readback_value.value), verify_value=False)
                return True
            await fields.user_readback_value.write(start + (target - start) * step / steps)
            await async_lib.library.sleep(_UPDATE_S if steps > 1 else 0.0)
        return False


class Plugin(PVGroup):  # type: ignore[misc]
    """The HDF5 file plugin."""

    FilePath = _pair(**_path())
    FileName = _pair(**_path())
    FileTemplate = _pair(**_path("%s%s_%6.6d.h5"))
    FullFileName_RBV = pvproperty(**_path())
    FileNumber = _pair(value=0)
    NumCapture = _pair(value=0)
    NumFramesChunks = _pair(value=1)
    NumFramesFlush = _pair(value=1)
    CreateDirectory = _pair(value=0)
    ArrayCounter = _pair(value=0)
    DroppedArrays = _pair(value=0)
    AutoIncrement = _pair(**_enum("Yes", "No", "Yes"))
    AutoSave = _pair(**_enum("No", "No", "Yes"))
    BlockingCallbacks = _pair(**_enum("No", "No", "Yes"))
    LazyOpen = _pair(**_enum("No", "No", "Yes"))
    EnableCallbacks = _pair(**_enum("Disable", "Disable", "Enable"))
    SWMRMode = _pair(**_enum("Off", "Off", "On"))
    FileWriteMode = _pair(**_enum("Stream", "Single", "Capture", "Stream"))
    Compression = _pair(**_enum("None", "None", "N-bit", "szip", "zlib"))
    Capture = _pair(**_enum("Done", "Done", "Capture"))
    NDArrayPort = _pair(**_string("SIM1"))
    PluginType_RBV = pvproperty(**_string("NDFileHDF5"))
    PortName_RBV = pvproperty(**_string("HDF1"))
    ArraySize0_RBV = pvproperty(value=0)
    ArraySize1_RBV = pvproperty(value=0)
    ArraySize2_RBV = pvproperty(value=0)
    NDimensions_RBV = pvproperty(value=2)
    NumCaptured_RBV = pvproperty(value=0)
    FilePathExists_RBV = pvproperty(value=0)
    UniqueId_RBV = pvproperty(value=0)
    file: FrameFile | None = None

    @FilePath.setpoint.putter  # type: ignore[no-redef,untyped-decorator]
    async def FilePath(pair: Any, instance: Any, path: str) -> None:  # noqa: N802,N805  # `pair` is a group of its own
        """Make the folder where that is allowed, and say whether it is there."""
        await pair.readback.write(path)
        folder = Path(str(path).strip() or "/")
        if int(pair.parent.CreateDirectory.setpoint.value):
            folder.mkdir(parents=True, exist_ok=True)
        await pair.parent.FilePathExists_RBV.write(int(folder.is_dir()))

    @Capture.setpoint.putter  # type: ignore[no-redef,untyped-decorator]
    async def Capture(pair: Any, instance: Any, value: Any) -> None:  # noqa: N802,N805
        """Close the file, and open the next one."""
        await pair.readback.write(value)
        await pair.parent.open_file(value in ("Capture", 1))

    async def open_file(self, wanted: bool) -> None:
        """Close the present file, and open another where it is wanted."""
        if self.file is not None:
            self.file.close()
            self.file = None
        if not wanted:
            return
        number = int(self.FileNumber.setpoint.value)
        pairs = (self.FileTemplate, self.FilePath, self.FileName)
        template, path, name = (str(pair.setpoint.value).strip().strip("\x00") for pair in pairs)
        full = Path(template % (path, name, number))
        self.file = FrameFile(full, self.parent.frame_shape)
        await self.FullFileName_RBV.write(str(full))
        await self.NumCaptured_RBV.write(0)
        # As in ADCore, the number is that of the next file once this one is open.
        await self.FileNumber.setpoint.write(number + 1)

    async def take(self, frame: np.ndarray[Any, Any], unique_id: int) -> None:
        """Write a frame where a file is open and the plugin enabled."""
        if self.file is None or self.EnableCallbacks.setpoint.value not in ("Enable", 1):
            return  # a client may have written the enum's index or its string
        self.file.write(self.file.count, frame, unique_id=unique_id, timestamp=time.time())
        await self.UniqueId_RBV.write(unique_id)
        await self.NumCaptured_RBV.write(self.file.count)


class Driver(PVGroup):  # type: ignore[misc]
    """The detector's driver."""

    DataType = pvproperty(**_enum("UInt16", "Int8", "UInt8", "Int16", "UInt16"))
    # The record's DISA field says whether ophyd may trust the data type.
    DataType_RBV = pvproperty(record="mbbi", **_enum("UInt16", "Int8", "UInt8", "Int16", "UInt16"))
    AcquireTime = _pair(value=0.01)
    AcquirePeriod = _pair(value=0.01)
    NumImages = _pair(value=1)
    NumExposures = _pair(value=1)
    ArrayCounter = _pair(value=0)
    ArrayCallbacks = _pair(value=1)
    Acquire = _pair(**_enum("Done", "Done", "Acquire"))
    ImageMode = _pair(**_enum("Multiple", "Single", "Multiple", "Continuous"))
    TriggerMode = _pair(**_enum("Internal", "Internal", "External"))
    DetectorState_RBV = pvproperty(**_enum("Idle", "Idle", "Acquire", "Error"))
    Manufacturer_RBV = pvproperty(**_string("bluesky_ptychonn"))
    Model_RBV = pvproperty(**_string("simulated"))
    PortName_RBV = pvproperty(**_string("SIM1"))
    ArraySizeX_RBV = pvproperty(value=0)
    ArraySizeY_RBV = pvproperty(value=0)
    ArraySizeZ_RBV = pvproperty(value=0)
    exposing: asyncio.Task[None] | None = None

    @ArraySizeX_RBV.startup  # type: ignore[no-redef,untyped-decorator]
    async def ArraySizeX_RBV(self, instance: Any, async_lib: Any) -> None:  # noqa: N802
        """Give driver and plugin the frame's size: one of 0 makes ophyd refuse to describe the image."""
        plugin, side = self.parent.hdf1, self.parent.frame_shape[0]
        for size in (self.ArraySizeX_RBV, self.ArraySizeY_RBV, plugin.ArraySize0_RBV, plugin.ArraySize1_RBV):
            await size.write(side)

    @Acquire.setpoint.putter  # type: ignore[no-redef,untyped-decorator]
    async def Acquire(pair: Any, instance: Any, value: Any) -> None:  # noqa: N802,N805
        """Begin to expose, or stop."""
        await pair.readback.write(value)
        driver = pair.parent
        if driver.exposing is not None and not driver.exposing.done():
            driver.exposing.cancel()
        if value in ("Acquire", 1):
            driver.exposing = asyncio.get_running_loop().create_task(driver.expose())

    async def expose(self) -> None:
        """Expose as many images as are asked for."""
        await self.DetectorState_RBV.write("Acquire")
        state = "Idle"
        try:
            for _ in range(int(self.NumImages.setpoint.value)):
                await asyncio.sleep(float(self.AcquireTime.setpoint.value))
                number = int(self.ArrayCounter.setpoint.value) + 1
                frame = self.parent.frame(number - 1)
                await self.parent.hdf1.take(frame, number)  # callbacks block, as the devices ask for
                await self.ArrayCounter.setpoint.write(number)
        except Exception as error:  # noqa: BLE001  # said here and in the state; an IOC goes on
            print(f"exposure failed: {error!r}", flush=True)  # noqa: T201
            state = "Error"
        finally:
            await self.DetectorState_RBV.write(state)
            await self.Acquire.readback.write("Done")
            await self.Acquire.setpoint.write("Done", verify_value=False)


class BeamlineIoc(PVGroup):  # type: ignore[misc]
    """Two motors and a camera that sees an experiment; serve its ``pvdb``.

    The records are ``m1``, ``m2`` (x, y in mm, soft limits ± the travel), ``cam1:…``, ``HDF1:…`` after the prefix.
    """

    m1 = SubGroup(Motor, prefix="m1")
    m2 = SubGroup(Motor, prefix="m2")
    cam1 = SubGroup(Driver, prefix="cam1:")
    hdf1 = SubGroup(Plugin, prefix="HDF1:")

    def __init__(
        self, prefix: str, experiment: SimulatedExperiment, *, velocity_mm_s: float = 1.0, travel_mm: float = 0.1
    ) -> None:
        super().__init__(prefix)
        self.frame_shape = experiment.geometry.frame_shape
        self.velocity_mm_s = velocity_mm_s
        self.travel_mm = travel_mm
        self._source = ExperimentSource(experiment)

    def frame(self, exposure: int) -> np.ndarray[Any, Any]:
        """Frame (N, N) in counts where the motors are now."""
        y, x = (float(motor.record.field_inst.user_readback_value.value) for motor in (self.m2, self.m1))
        return self._source.frame_at(to_metres(y, "mm", "m2"), to_metres(x, "mm", "m1"), exposure)

"""The simulated beamline as a Channel Access IOC: two motor records and an areaDetector with its HDF5 plugin.

Stock ophyd devices (see `devices`) cannot tell it from a real one. Needs ``caproto`` (extra ``ioc``). Run it as
``python -m bluesky_ptychonn.beamline.ioc``, or from Python with `ioc_process.IocProcess`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_ptychonn.beamline.frames import FrameFile
from bluesky_ptychonn.beamline.sim import ExperimentSource
from bluesky_ptychonn.optics.geometry import to_metres
from bluesky_ptychonn.optics.simulate import SimulatedExperiment

READY = "IOC ready"
_SWITCH = ("No", "Yes")
_STATES = ("Idle", "Acquire", "Error")


def _pair(name: str, value: Any, act: str | None = None, **options: Any) -> dict[str, Any]:
    """Make a setpoint and its ``_RBV`` that follows, areaDetector's convention; `act` is the group's method to call."""
    from caproto.server import pvproperty

    async def follow(group: Any, instance: Any, new: Any) -> None:
        await getattr(group, f"{name}_RBV").write(new)
        if act is not None:
            await getattr(group, act)(new)

    setpoint = pvproperty(name=name, value=value, put=follow, **options)
    return {name: setpoint, **_readback(name, value, **options)}


def _readback(name: str, value: Any, **options: Any) -> dict[str, Any]:
    from caproto.server import pvproperty

    return {f"{name}_RBV": pvproperty(name=f"{name}_RBV", value=value, **options)}


def _word(value: str) -> dict[str, Any]:
    from caproto import ChannelType

    return {"value": value, "dtype": ChannelType.STRING}


def _text(value: str) -> dict[str, Any]:
    from caproto import ChannelType

    # A CHAR array that starts empty has no type a client could ask for; one reported as a string ends after 40 letters.
    return {"value": value or " ", "dtype": ChannelType.CHAR, "max_length": 256}


def _enum(value: str, strings: tuple[str, ...]) -> dict[str, Any]:
    from caproto import ChannelType

    return {"value": value, "dtype": ChannelType.ENUM, "enum_strings": list(strings)}


def _driver_properties(size: int) -> dict[str, Any]:
    from caproto.server import pvproperty

    properties: dict[str, Any] = {
        "DataType": pvproperty(name="DataType", **_enum("UInt16", ("Int8", "UInt8", "Int16", "UInt16"))),
        # The record's DISA field says whether ophyd may trust the data type.
        "DataType_RBV": pvproperty(
            name="DataType_RBV", record="mbbi", **_enum("UInt16", ("Int8", "UInt8", "Int16", "UInt16"))
        ),
    }
    for name, value in (
        ("AcquireTime", 0.01),
        ("AcquirePeriod", 0.01),
        ("NumImages", 1),
        ("NumExposures", 1),
        ("ArrayCounter", 0),
        ("ArrayCallbacks", 1),
    ):
        properties |= _pair(name, value)
    properties |= _pair("Acquire", act="on_acquire", **_enum("Done", ("Done", "Acquire")))
    properties |= _pair("ImageMode", **_enum("Multiple", ("Single", "Multiple", "Continuous")))
    properties |= _pair("TriggerMode", **_enum("Internal", ("Internal", "External")))
    properties |= _readback("DetectorState", **_enum("Idle", _STATES))
    for name, word in (("Manufacturer", "bluesky_ptychonn"), ("Model", "simulated"), ("PortName", "SIM1")):
        properties |= _readback(name, **_word(word))
    # A size of 0 makes ophyd refuse to describe the image.
    for name, number in (("ArraySizeX", size), ("ArraySizeY", size), ("ArraySizeZ", 0)):
        properties |= _readback(name, number)
    return properties


def _plugin_properties(size: int) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    properties |= _pair("FilePath", act="on_file_path", **_text(""))
    for name, text in (("FileName", ""), ("FileTemplate", "%s%s_%6.6d.h5")):
        properties |= _pair(name, **_text(text))
    properties |= _readback("FullFileName", **_text(""))
    for name, value in (
        ("FileNumber", 0),
        ("NumCapture", 0),
        ("NumFramesChunks", 1),
        ("NumFramesFlush", 1),
        ("CreateDirectory", 0),
        ("ArrayCounter", 0),
        ("DroppedArrays", 0),
    ):
        properties |= _pair(name, value)
    for name, chosen in (("AutoIncrement", "Yes"), ("AutoSave", "No"), ("BlockingCallbacks", "No"), ("LazyOpen", "No")):
        properties |= _pair(name, **_enum(chosen, _SWITCH))
    properties |= _pair("EnableCallbacks", **_enum("Disable", ("Disable", "Enable")))
    properties |= _pair("SWMRMode", **_enum("Off", ("Off", "On")))
    properties |= _pair("FileWriteMode", **_enum("Stream", ("Single", "Capture", "Stream")))
    properties |= _pair("Compression", **_enum("None", ("None", "N-bit", "szip", "zlib")))
    properties |= _pair("Capture", act="on_capture", **_enum("Done", ("Done", "Capture")))
    properties |= _pair("NDArrayPort", **_word("SIM1"))
    for name, word in (("PluginType", "NDFileHDF5"), ("PortName", "HDF1")):
        properties |= _readback(name, **_word(word))
    numbers = (("ArraySize0", size), ("ArraySize1", size), ("ArraySize2", 0), ("NDimensions", 2))
    for name, number in (*numbers, ("NumCaptured", 0), ("FilePathExists", 0), ("UniqueId", 0)):
        properties |= _readback(name, number)
    return properties


def make_ioc(
    prefix: str, experiment: SimulatedExperiment, *, velocity_mm_s: float = 1.0, travel_mm: float = 0.1
) -> Any:
    """Build the IOC.

    Parameters
    ----------
    prefix : str
        Of all PVs; the records are ``m1``, ``m2`` (x, y in mm), ``cam1:…``, ``HDF1:…``.
    experiment : SimulatedExperiment
        What the camera sees.
    velocity_mm_s, travel_mm : float
        Of the motors; soft limits are ± the travel.

    Returns
    -------
    caproto.server.PVGroup
        Serve its ``pvdb``.
    """
    from caproto.server import PVGroup, SubGroup, pvproperty

    size = experiment.geometry.frame_shape[0]
    source = ExperimentSource(experiment)

    class Motor(PVGroup):  # type: ignore[misc]  # caproto is untyped
        """A motor record that goes where it is told."""

        record = pvproperty(value=0.0, name="", record="motor", precision=7)

        @record.startup  # type: ignore[no-redef,untyped-decorator]  # caproto wants the same name
        async def record(self, instance: Any, async_lib: Any) -> None:
            fields = instance.field_inst
            asked = async_lib.library.Event()

            async def remember(_fields: Any, _value: Any) -> None:
                asked.set()

            fields.value_write_hook = remember
            await fields.engineering_units.write("mm")
            await fields.velocity.write(velocity_mm_s)
            await fields.user_low_limit.write(-travel_mm)
            await fields.user_high_limit.write(travel_mm)
            # What a client reads as the limits of VAL.
            await instance.write_metadata(lower_ctrl_limit=-travel_mm, upper_ctrl_limit=travel_mm, units="mm")
            await fields.user_readback_value.write_metadata(units="mm", precision=7)
            await fields.done_moving_to_value.write(1)
            while True:
                await asked.wait()
                asked.clear()
                target, start = float(instance.value), float(fields.user_readback_value.value)
                await fields.done_moving_to_value.write(0)
                await fields.motor_is_moving.write(1)
                steps = max(1, int(abs(target - start) / max(fields.velocity.value, 1e-9) / 0.02))
                for step in range(1, steps + 1):
                    if fields.stop.value:
                        await fields.stop.write(0)
                        target = float(fields.user_readback_value.value)
                        await instance.write(target, verify_value=False)
                        asked.clear()
                        break
                    await fields.user_readback_value.write(start + (target - start) * step / steps)
                    await async_lib.library.sleep(0.02 if steps > 1 else 0.0)
                await fields.motor_is_moving.write(0)
                await fields.done_moving_to_value.write(1)

    class Plugin(PVGroup):  # type: ignore[misc]
        """The HDF5 file plugin."""

        locals().update(_plugin_properties(size))
        file: FrameFile | None = None

        async def on_file_path(self, path: str) -> None:
            folder = Path(str(path).strip() or "/")
            if int(self.CreateDirectory.value):
                folder.mkdir(parents=True, exist_ok=True)
            await self.FilePathExists_RBV.write(int(folder.is_dir()))

        async def on_capture(self, value: Any) -> None:
            if self.file is not None:
                self.file.close()
                self.file = None
            if value not in ("Capture", 1):
                return
            number = int(self.FileNumber.value)
            template, path, name = (self._string(p) for p in (self.FileTemplate, self.FilePath, self.FileName))
            full = Path(template % (path, name, number))
            self.file = FrameFile(full, experiment.geometry.frame_shape)
            await self.FullFileName_RBV.write(str(full))
            await self.NumCaptured_RBV.write(0)
            # As in ADCore, the number is that of the next file once this one is open.
            await self.FileNumber.write(number + 1)

        @staticmethod
        def _string(channel: Any) -> str:
            return str(channel.value).strip().strip("\x00")

        async def take(self, frame: np.ndarray[Any, Any], unique_id: int) -> None:
            if self.file is None or self.EnableCallbacks.value not in ("Enable", 1):
                return  # a client may have written the enum's index or its string
            self.file.write(self.file.count, frame, unique_id=unique_id, timestamp=time.time())
            await self.UniqueId_RBV.write(unique_id)
            await self.NumCaptured_RBV.write(self.file.count)

    class Driver(PVGroup):  # type: ignore[misc]
        """The detector's driver."""

        locals().update(_driver_properties(size))
        exposing: asyncio.Task[None] | None = None

        async def on_acquire(self, value: Any) -> None:
            if self.exposing is not None and not self.exposing.done():
                self.exposing.cancel()
            if value in ("Acquire", 1):
                self.exposing = asyncio.get_running_loop().create_task(self.expose())

        async def expose(self) -> None:
            await self.DetectorState_RBV.write("Acquire")
            state = "Idle"
            try:
                for _ in range(int(self.NumImages.value)):
                    await asyncio.sleep(float(self.AcquireTime.value))
                    number = int(self.ArrayCounter.value) + 1
                    y_m, x_m = self.parent.beam_m()
                    frame = source.frame_at(y_m, x_m, number - 1)
                    await self.parent.hdf1.take(frame, number)  # callbacks block, as the devices ask for
                    await self.ArrayCounter.write(number)
            except Exception as error:  # noqa: BLE001  # said here and in the state; an IOC goes on
                print(f"exposure failed: {error!r}", flush=True)  # noqa: T201
                state = "Error"
            finally:
                await self.DetectorState_RBV.write(state)
                await self.Acquire_RBV.write("Done")
                await self.Acquire.write("Done", verify_value=False)

    class Beamline(PVGroup):  # type: ignore[misc]
        """Two motors and a camera."""

        m1 = SubGroup(Motor, prefix="m1")
        m2 = SubGroup(Motor, prefix="m2")
        cam1 = SubGroup(Driver, prefix="cam1:")
        hdf1 = SubGroup(Plugin, prefix="HDF1:")

        def beam_m(self) -> tuple[float, float]:
            """Readback (y, x) in m."""
            y, x = (float(m.record.field_inst.user_readback_value.value) for m in (self.m2, self.m1))
            return to_metres(y, "mm", "m2"), to_metres(x, "mm", "m1")

    return Beamline(prefix=prefix)


def main(arguments: list[str] | None = None) -> None:
    """Serve the simulated beamline until ended."""
    parser = argparse.ArgumentParser(prog="python -m bluesky_ptychonn.beamline.ioc", description=main.__doc__)
    parser.add_argument("--prefix", default="PTYCHO:", help="prefix of all PVs")
    parser.add_argument("--port", type=int, default=5064, help="Channel Access port on 127.0.0.1")
    parser.add_argument("--sample", default="etched", help="etched, cells, star, texture or mixed")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the sample")
    options = parser.parse_args(arguments)
    # Channel Access is configured through the environment, which caproto reads when the server starts.
    os.environ["EPICS_CA_SERVER_PORT"] = os.environ["EPICS_CAS_SERVER_PORT"] = str(options.port)
    os.environ["EPICS_CAS_AUTO_BEACON_ADDR_LIST"] = "NO"
    # Beacons want somebody who listens; nobody else need hear them.
    os.environ["EPICS_CAS_BEACON_ADDR_LIST"] = f"127.0.0.1:{options.port}"
    from caproto.server import run

    async def ready(_library: Any) -> None:
        sys.stdout.write(f"{READY} on 127.0.0.1:{options.port}\n")
        sys.stdout.flush()

    ioc = make_ioc(options.prefix, SimulatedExperiment.demo(options.sample, options.seed))
    run(
        ioc.pvdb, module_name="caproto.asyncio.server", interfaces=["127.0.0.1"], log_pv_names=False, startup_hook=ready
    )


if __name__ == "__main__":
    main()

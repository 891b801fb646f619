"""The simulated beamline as a Channel Access IOC: two motor records and an areaDetector with its HDF5 plugin.

Stock ophyd devices (see `devices`) cannot tell it from a real one. Needs ``caproto`` (extra ``ioc``). Run it as
``python -m bluesky_ptychonn.beamline.ioc``, or from Python with `IocProcess`.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from bluesky_ptychonn.optics.simulate import SimulatedExperiment

_READY = "IOC ready"


class IocProcess:
    """The IOC in a process of its own, on a free port of the loopback interface.

    Channel Access reads its environment when ophyd is imported: start the client's process with `environment`, or put
    it into `os.environ` before the first ``import ophyd``.

    For sample and seed see `make_sample`. RuntimeError with what it printed when the process ends, or says nothing
    within `timeout_s`.

    Examples
    --------
    ``with IocProcess() as ioc: subprocess.run([...], env=os.environ | ioc.environment)``
    """

    def __init__(
        self, prefix: str = "PTYCHO:", sample: str = "etched", seed: int = 2026, timeout_s: float = 120.0
    ) -> None:
        self.prefix = prefix
        self.port = _free_port()
        self.environment = {
            "EPICS_CA_ADDR_LIST": f"127.0.0.1:{self.port}",
            "EPICS_CA_AUTO_ADDR_LIST": "NO",
            "EPICS_CA_SERVER_PORT": str(self.port),
            "OPHYD_CONTROL_LAYER": "caproto",
        }
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in close()
        command = [sys.executable, "-m", "bluesky_ptychonn.beamline.ioc"]
        arguments = ["--prefix", prefix, "--port", str(self.port), "--sample", sample, "--seed", str(seed)]
        self._process = subprocess.Popen(
            [*command, *arguments], stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + timeout_s
        while _READY not in self.log:
            if self._process.poll() is not None or time.monotonic() > deadline:
                printed = self.log[-2000:]
                self.close()
                raise RuntimeError(
                    f"the simulated IOC did not start within {timeout_s:g} s; it said: {printed or 'nothing'}"
                )
            time.sleep(0.05)

    @property
    def log(self) -> str:
        """What the process printed so far."""
        self._log.seek(0)
        return self._log.read()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def close(self) -> None:
        """End the process; again is harmless."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
        if not self._log.closed:
            self._log.close()

    def __enter__(self) -> IocProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_port() -> int:
    """Port that is free for both UDP searches and TCP circuits."""
    for _ in range(100):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port on 127.0.0.1 for the simulated IOC")


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

    from bluesky_ptychonn.beamline.ioc_records import BeamlineIoc

    async def ready(_library: Any) -> None:
        sys.stdout.write(f"{_READY} on 127.0.0.1:{options.port}\n")
        sys.stdout.flush()

    ioc = BeamlineIoc(options.prefix, SimulatedExperiment.demo(options.sample, options.seed))
    run(
        ioc.pvdb, module_name="caproto.asyncio.server", interfaces=["127.0.0.1"], log_pv_names=False, startup_hook=ready
    )


if __name__ == "__main__":
    main()

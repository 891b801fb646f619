"""The simulated beamline as a Channel Access IOC: two motor records and an areaDetector with its HDF5 plugin.

Stock ophyd devices (see `devices`) cannot tell it from a real one. Needs ``caproto`` (extra ``ioc``). Run it as
``python -m bluesky_ptychonn.beamline.ioc``, or from Python with `ioc_process.IocProcess`.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from bluesky_ptychonn.optics.simulate import SimulatedExperiment

READY = "IOC ready"


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
        sys.stdout.write(f"{READY} on 127.0.0.1:{options.port}\n")
        sys.stdout.flush()

    ioc = BeamlineIoc(options.prefix, SimulatedExperiment.demo(options.sample, options.seed))
    run(
        ioc.pvdb, module_name="caproto.asyncio.server", interfaces=["127.0.0.1"], log_pv_names=False, startup_hook=ready
    )


if __name__ == "__main__":
    main()

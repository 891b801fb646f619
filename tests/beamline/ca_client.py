"""Drive the simulated IOC with stock ophyd devices; run in a process whose EPICS_* environment points to it.

Writes what happened as JSON to the path given second; the first is the folder for frames.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from typing import Any

from bluesky import RunEngine
from event_model import DocumentNames, schema_validators

from bluesky_ptychonn.beamline.devices import PtychoCamera, ScanStage
from bluesky_ptychonn.beamline.plans import rel_ptycho_scan
from bluesky_ptychonn.optics.simulate import SimulatedExperiment


def main(folder: str, report: str) -> None:
    stage = ScanStage("TEST:", name="stage")
    geometry = SimulatedExperiment.demo().geometry
    camera = PtychoCamera("TEST:", name="camera", write_path=folder, geometry=geometry)
    stage.wait_for_connection(timeout=60)
    camera.wait_for_connection(timeout=60)
    camera.cam.acquire_time.set(0.0).wait(10)
    stage.x.set(2e-3).wait(10)
    documents: list[tuple[str, Any]] = []

    def keep(name: str, doc: dict[str, Any]) -> None:
        schema_validators[DocumentNames[name]].validate(doc)
        documents.append((name, doc))

    RE = RunEngine({})
    RE.subscribe(keep)
    RE(rel_ptycho_scan([camera], stage.x, stage.y, 1.0, 0.5, 0.5, pattern="snake"))
    back = stage.position_m()
    try:
        RE(rel_ptycho_scan([camera], stage.x, stage.y, 500.0, 0.5, 50))
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
    result = {
        "documents": documents,
        "back": back,
        "refused": refused,
        "torch": "torch" in sys.modules,
        "capture": camera.hdf1.capture.get(),
    }
    with open(report, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(result, file)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(120, exit=True)  # a hang says where
    try:
        main(*sys.argv[1:])
    except BaseException:
        # Threads of Channel Access would keep a failed process alive.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

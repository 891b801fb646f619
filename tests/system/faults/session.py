"""A user's session in a process of its own: RunEngine, devices, raw writer and live reconstruction, told what to scan.

``python session.py SETTINGS`` with a JSON file; on the input the catalog's key first, then orders, a JSON object each.
What happens is printed, one JSON object a line: the parent knows every frame that was taken, also when we are killed.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


def say(**words: Any) -> None:
    os.write(_out, json.dumps(words).encode() + b"\n")


class Watch:
    """A callback around another: how long one document took it at most, s."""

    def __init__(self, callback: Callable[[str, Mapping[str, Any]], Any]) -> None:
        self.callback = callback
        self.longest_s = 0.0

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        began = time.perf_counter()
        self.callback(name, doc)
        self.longest_s = max(self.longest_s, time.perf_counter() - began)


class Mark(NamedTuple):
    """What clocks say when a frame was taken, s."""

    wall: float
    cpu: float  # of this process, all its threads
    gc: float  # in which Python collected garbage and nobody else ran
    stolen: float  # of the machine's processors, by its other guests


class Report:
    """Prints frames as they are taken, and keeps what went on between them."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self._gc_s, self._gc_began = 0.0, 0.0
        gc.callbacks.append(self._on_gc)

    def _on_gc(self, phase: str, _: Mapping[str, int]) -> None:
        if phase == "start":
            self._gc_began = time.perf_counter()
        else:
            self._gc_s += time.perf_counter() - self._gc_began

    def _mark(self) -> Mark:
        stolen = int(Path("/proc/stat").read_text(encoding="ascii").split(None, 9)[8])
        return Mark(time.perf_counter(), time.process_time(), self._gc_s, stolen / os.sysconf("SC_CLK_TCK"))

    def stall(self) -> dict[str, float]:
        """Longest time between two frames beyond the median, that median, and what took it."""
        pairs = sorted(itertools.pairwise(self.marks), key=lambda pair: pair[1].wall - pair[0].wall)
        if not pairs:
            return {"stall_s": 0.0, "gap_s": 0.0}
        (before, after), (begin, end) = pairs[-1], pairs[len(pairs) // 2]
        median = end.wall - begin.wall
        took = {f"stall_{name}_s": getattr(after, name) - getattr(before, name) for name in ("cpu", "gc", "stolen")}
        return {"stall_s": after.wall - before.wall - median, "gap_s": median, **took}

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self.marks = []
            say(start=doc["uid"])
        elif name == "event":
            self.marks.append(self._mark())
            say(event=doc["seq_num"], captured=int(doc["data"]["camera_hdf1_num_captured"]))
        elif name == "stop":
            say(stop=doc["exit_status"])


def devices(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    if settings.get("channel_access"):
        from bluesky_ptychonn.beamline.devices import PtychoCamera, ScanStage
        from bluesky_ptychonn.optics.simulate import SimulatedExperiment

        geometry = SimulatedExperiment.demo().geometry
        stage = ScanStage("TEST:", name="stage")
        camera = PtychoCamera("TEST:", name="camera", write_path=settings["frames"], geometry=geometry)
        stage.wait_for_connection(timeout=60)
        camera.wait_for_connection(timeout=60)
        camera.cam.acquire_time.set(0.0).wait(10)
        return camera, stage
    from bluesky_ptychonn.beamline.sim import SimulatedBeamline

    beamline = SimulatedBeamline.demo(settings["frames"], exposure_s=settings["exposure_s"])
    return beamline.camera, beamline.stage


def scan(RE: Any, camera: Any, stage: Any, order: Mapping[str, Any]) -> str:
    """Run one scan, paused and resumed where asked; returns the error, if any."""
    from bluesky.utils import RunEngineInterrupted

    from bluesky_ptychonn.beamline.plans import ptycho_scan

    side = round(order["points"] ** 0.5)
    field = 0.3 * (side - 1)
    pauses = [threading.Timer(after, RE.request_pause) for after in order.get("pause_s", ())]
    for pause in pauses:
        pause.start()
    error = ""
    go: Callable[[], Any] = lambda: RE(  # noqa: E731
        ptycho_scan([camera], stage.x, stage.y, field, field, 0.3, pattern="snake", md=order.get("md"))
    )
    while True:
        try:
            go()
        except RunEngineInterrupted:
            go = RE.resume
            continue
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        break
    for pause in pauses:
        pause.cancel()
    return error


def main(settings: Mapping[str, Any]) -> None:
    from bluesky import RunEngine

    from bluesky_ptychonn.catalog.connection.connect import connect
    from bluesky_ptychonn.catalog.raw.writer import raw_writer
    from bluesky_ptychonn.live.callback import LiveReconstruction

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    catalog = connect(settings["uri"], sys.stdin.readline().strip())
    camera, stage = devices(settings)
    RE = RunEngine({}, context_managers=[])
    writer = raw_writer(catalog, settings["backup"])
    live = LiveReconstruction(settings["model"], catalog, journal_dir=settings["journals"], raw_writer=writer)
    watches = [Watch(writer), Watch(live)]
    report = Report()
    for callback in (*watches, report):
        RE.subscribe(callback)
    live.wait_ready()
    gc.collect()
    gc.freeze()  # as profile_startup/90-steady.py does
    say(ready=str(live.folder))
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "scan":
            for watch in watches:
                watch.longest_s = 0.0
            error = scan(RE, camera, stage, order)
            say(over=error, callback_s=max(w.longest_s for w in watches), **report.stall())
        elif order["do"] == "status":
            say(status=str(live.status), raw=repr(writer), error=live.status.problem)
        elif order["do"] == "close":
            live.close(order.get("timeout", 60.0))
            writer.close()
            say(closed=True)
            return


if __name__ == "__main__":
    _out = os.dup(1)
    os.dup2(2, 1)
    try:
        main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.flush()
    if os.environ.get("OPHYD_CONTROL_LAYER"):
        os._exit(0)  # threads of Channel Access would keep the process

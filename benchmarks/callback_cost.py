"""What live reconstruction costs a scan: ``python -m benchmarks.callback_cost`` writes results/callback.json.

Callback cost: µs of the RunEngine's thread for each event document, taken around the callback's own call in a real
RunEngine, for scalar events with streamed frames and for frames inside the events, without and with Tiled; with the raw
writer it is that of both callbacks together, which write each document once.
Slowdown: time of a scan with the callback over time of the same scan without it, in alternating pairs in one process,
the worker computing meanwhile; once with TiledWriter in the RunEngine's thread in both, once with the shipped profile's
raw writer in both, which has a thread of its own. Figures of single pairs are kept: a machine with neighbours shows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "callback.json"


class Stopwatch:
    """A callback around another, that notes how long each event took it."""

    def __init__(self, callback: Callable[[str, Mapping[str, Any]], None]) -> None:
        self.callback = callback
        self.events_us: list[float] = []

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Pass on a document."""
        began = time.perf_counter_ns()
        self.callback(name, doc)
        took = time.perf_counter_ns() - began
        if name == "event":
            self.events_us.append(took / 1e3)


def machine() -> dict[str, Any]:
    """Describe the machine, and how busy it is with other things."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "load_average": [round(x, 2) for x in os.getloadavg()]}


def summary(values: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    ordered = sorted(values)
    return {
        "median_us": round(statistics.median(ordered), 2),
        "p99_us": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
        "events": len(ordered),
    }


def engine(*callbacks: Any) -> Any:
    """Make a RunEngine with callbacks."""
    from bluesky import RunEngine

    engine = RunEngine({}, context_managers=[])
    for callback in callbacks:
        engine.subscribe(callback)
    return engine


def cost(model: str, catalog: Any, writer: Any, beamline: Any, points: int, work: Path) -> dict[str, Any]:
    """Measure the callback with streamed frames and with frames in the events, beside a writer where one is given.

    A `RawWriter` is measured too.
    """
    import bluesky.plans as bp
    import numpy as np
    from ophyd.sim import SynSignal, motor1, motor2

    from bluesky_ptychonn.catalog.raw.writer import RawWriter
    from bluesky_ptychonn.live.callback import LiveReconstruction

    image = np.zeros((64, 64), np.uint16)
    camera = SynSignal(name="camera", func=lambda: image)
    plans = {
        "streamed_frames": lambda: scan(beamline, points),
        "frames_in_events": lambda: bp.list_scan([camera], motor1, list(range(points)), motor2, list(range(points))),
    }
    found = {}
    raw_writer = writer if isinstance(writer, RawWriter) else None
    with LiveReconstruction(model, catalog, journal_dir=work / "journal", raw_writer=raw_writer) as live:
        live.wait_ready()

        def both(name: str, doc: Mapping[str, Any]) -> None:
            writer(name, doc)
            live(name, doc)

        for name, plan in plans.items():
            watch = Stopwatch(live if raw_writer is None else both)
            run = engine(*([writer] if writer is not None and raw_writer is None else []), watch)
            run(plan())
            found[name] = summary(watch.events_us)
    return found


def scan(beamline: Any, points: int) -> Any:
    """Make the plan of a ptychography line of `points` points, at a step of a third of the probe."""
    from bluesky_ptychonn.beamline.plans import ptycho_scan

    side = max(2, round(points**0.5))
    field = 0.3 * (side - 1)
    return ptycho_scan([beamline.camera], beamline.stage.x, beamline.stage.y, field, field, 0.3, pattern="snake")


def slowdown(
    model: str, server: Any, beamline: Any, points: int, pairs: int, work: Path, *, threaded: bool
) -> dict[str, Any]:
    """Scan time with the callback over without, in alternating pairs."""
    from bluesky_tiled_plugins import TiledWriter

    from bluesky_ptychonn.catalog.raw.writer import raw_writer
    from bluesky_ptychonn.live.callback import LiveReconstruction

    kept = raw_writer(server, work / "backup") if threaded else None
    run = engine(kept or TiledWriter(server.raw, batch_size=1))
    times: dict[str, list[float]] = {"without": [], "with": []}
    with LiveReconstruction(model, server, journal_dir=work / "journal", raw_writer=kept) as live:
        live.wait_ready()
        run(scan(beamline, points))  # warms caches up
        lags = []
        for pair in range(pairs):
            for kind in ("with", "without") if pair % 2 else ("without", "with"):
                token = run.subscribe(live) if kind == "with" else None
                began = time.perf_counter()
                (uid,) = run(scan(beamline, points))
                times[kind].append(time.perf_counter() - began)
                while threaded and uid not in written(server):
                    time.sleep(0.2)  # what is left to write must not slow the next scan down
                if token is not None:
                    run.unsubscribe(token)
                    live.wait(uid)  # what is left to do must not slow the next scan down
                    frames = live.result(uid).frames
                    lags += (frames.time_done - frames.time_raw).tolist()
        threads, nice = live.settings.threads, live.settings.nice
    ratios = [a / b for a, b in zip(times["with"], times["without"], strict=True)]
    return {
        "slowdown": round(statistics.median(ratios), 3),
        "slowdown_of_totals": round(sum(times["with"]) / sum(times["without"]), 3),
        "pairs": [round(ratio, 3) for ratio in ratios],
        "scan_s": round(statistics.median(times["without"]), 2),
        "events": points,
        "ms_per_event_without": round(1e3 * statistics.median(times["without"]) / points, 1),
        "latency_s": {"p50": round(statistics.median(lags), 3), "p95": round(sorted(lags)[int(0.95 * len(lags))], 3)},
        "worker": {"torch_threads": threads, "nice": nice},
    }


def written(server: Any) -> list[str]:
    """Uids of the last runs that are whole in the catalog."""
    runs = server.raw
    return [str(key) for key in list(runs)[-3:] if runs[key].metadata.get("stop")]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="simulated-zp64")
    parser.add_argument("--points", type=int, default=100, help="a square number")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--exposure-s", type=float, default=0.05)
    parser.add_argument("--callback-only", action="store_true", help="print the callback's cost, and write nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from bluesky_tiled_plugins import TiledWriter

    from bluesky_ptychonn.beamline.sim import SimulatedBeamline
    from bluesky_ptychonn.catalog.connection.server import serve_catalog
    from bluesky_ptychonn.catalog.raw.writer import raw_writer

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with serve_catalog(work / "catalog", readable=[work / "frames"]) as server:
            quick = SimulatedBeamline.demo(work / "frames")
            beamline = SimulatedBeamline.demo(work / "frames", exposure_s=arguments.exposure_s)
            report: dict[str, Any] = {"machine": machine()}
            report["callback"] = {
                "without_tiled": cost(arguments.model, server, None, quick, 400, work),
                "with_tiled_writer": cost(
                    arguments.model, server, TiledWriter(server.raw, batch_size=1), quick, arguments.points, work
                ),
                "with_raw_writer": cost(arguments.model, server, raw_writer(server, work / "backup"), quick, 400, work),
            }
            if arguments.callback_only:
                print(json.dumps(report, indent=2))
                return
            report["exposure_s"] = arguments.exposure_s
            for name, threaded in (("scan", False), ("scan_raw_writer", True)):
                report[name] = slowdown(
                    arguments.model, server, beamline, arguments.points, arguments.pairs, work, threaded=threaded
                )
                print(name, json.dumps(report[name]), flush=True)
            report["machine"]["load_average_after"] = [round(x, 2) for x in os.getloadavg()]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

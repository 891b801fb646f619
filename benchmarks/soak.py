"""Scan after scan for half an hour, as fast as frames are taken care of, with faults: results/soak.{json,png}.

``python -m benchmarks.soak --minutes 32 --seed 1``. A scan begins as soon as no more than `BEHIND` of those before it
are unfinished: that is the highest rate that can be kept up. In every other one something goes wrong that kills nobody,
so that session, worker and server grow old: their memory, open files and threads are sampled. All frames of all scans
are judged as in `benchmarks.faults`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.callback_cost import machine
from bluesky_ptychonn.live.session import WorkerStatus
from tests.system.faults.kinds import KINDS
from tests.system.faults.oracle import judge, wait_until_settled, warm_up
from tests.system.faults.scene import Scan, Scene

RESULTS = Path(__file__).parent / "results"
BEHIND = 2  # scans that may be unfinished when another begins
POINTS = 100
EVERY_S = 5.0
WARM_S = 300.0  # after which nothing is expected to grow
FAULTS = [
    "server: SIGSTOP", "server: stutters", "worker: SIGSTOP", "connections refused", "connections half open",
    "slow network", "errors and resets", "plan paused, resumed",
]  # fmt: skip
LASTS_S = (0.5, 10.0)


@dataclass
class Log:
    """What is seen of the processes, and of the scans."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    scans: list[dict[str, Any]] = field(default_factory=list)


def measure(pid: int) -> dict[str, float]:
    """Memory in MiB, open files and threads of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"memory_mib": int(values["VmRSS"].split()[0]) / 1024, "files": files, "threads": int(values["Threads"])}


def sample(scene: Scene, began: float, log: Log) -> None:
    """Look at all three processes, if it is time."""
    now = time.monotonic() - began
    if log.samples and now - log.samples[-1]["at_s"] < EVERY_S:
        return
    status = WorkerStatus.load(scene.session.folder)
    pids = {"session": scene.session.process.pid, "worker": status.pid, "server": scene.server.pid}
    try:
        measured = {name: measure(pid) for name, pid in pids.items()}
    except (OSError, KeyError):  # one has just died, and the next has not said so yet
        return
    log.samples.append(
        {
            "at_s": round(now, 1),
            "worker_pid": status.pid,
            "unfinished": sum(not run.finished for run in status.runs.values()),
            "spooled": sum(run.spooled for run in status.runs.values()),
            **measured,
        }
    )


def soak(scene: Scene, seconds: float, seed: int) -> Log:
    """Scan until the time is over; returns what was seen once every scan is judged."""
    rng, log = random.Random(seed), Log()
    began = time.monotonic()
    unsettled: list[tuple[Scan, dict[str, Any]]] = []
    while time.monotonic() - began < seconds:
        fault = rng.choice(FAULTS) if len(log.scans) % 2 else "none"
        order: dict[str, Any] = {}
        if fault == "plan paused, resumed":
            order["pause_s"] = sorted(rng.uniform(0.2, 4.0) for _ in range(2))
        scan = scene.session.begin(POINTS, **order)
        about = {"began_s": round(time.monotonic() - began, 1), "fault": fault}
        log.scans.append(about)
        _pass(scene, began, log, rng.uniform(0.0, 4.0))
        KINDS[fault].break_it(scene, rng)
        _pass(scene, began, log, rng.uniform(*LASTS_S) if KINDS[fault].lasts_s[1] else 0.0)
        scene.mend()
        scene.session.wait_over(300)
        for name in ("stall", "stall_cpu", "stall_gc", "stall_stolen", "callback"):
            about[f"{name}_ms"] = round(1e3 * getattr(scan, f"{name}_s"), 1)
        about["harmed"] = scan.error or ("" if scan.exit_status == "success" else scan.exit_status)
        unsettled.append((scan, about))
        while len(unsettled) > BEHIND or (unsettled and _finished(scene, unsettled[0][0])):
            if _finished(scene, unsettled[0][0]):
                _judge(scene, *unsettled.pop(0))
            _pass(scene, began, log, 0.1)
    log.samples[-1]["at_s"] = round(time.monotonic() - began, 1)
    for scan, about in unsettled:
        _judge(scene, scan, about)
    return log


def _pass(scene: Scene, began: float, log: Log, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        sample(scene, began, log)
        if (left := end - time.monotonic()) <= 0:
            return
        time.sleep(min(left, 0.5))


def _finished(scene: Scene, scan: Scan) -> bool:
    run = WorkerStatus.load(scene.session.folder).runs.get(scan.uid)
    return run is not None and run.finished


def _judge(scene: Scene, scan: Scan, about: dict[str, Any]) -> None:
    key, _ = wait_until_settled(scene.client, scan, 180)
    finding = judge(scene.client, scan, scene.frames)
    about |= {
        "frames": len(set(scan.events)),
        "status": finding.status,
        "lost": len(finding.lost) + finding.raw_missing,
        "doubled": len(finding.doubled),
        "wrong": len(finding.wrong),
        "named": sum(finding.named.values()),
        "words": finding.words if key else f"not settled {finding.words}",
    }
    fine = not (about["harmed"] or about["words"] or about["lost"] or about["doubled"] or about["wrong"])
    print(
        f"{about['began_s']:7.1f} s {about['fault']:24s} {about['status']}{'' if fine else f' NOT FINE {about}'}",
        flush=True,
    )


def growth(samples: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians of the first and last quarter of the time after warming up, and the slope between, an hour."""
    warm = [one for one in samples if one["at_s"] >= min(WARM_S, samples[-1]["at_s"] / 4)]
    quarter = max(1, len(warm) // 4)
    hours = (warm[-1]["at_s"] - warm[0]["at_s"]) / 3600
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("session", "worker", "server"):
        found[name] = {}
        for what in ("memory_mib", "files", "threads"):
            values = [one[name][what] for one in warm]
            first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
            slope, _ = statistics.linear_regression([one["at_s"] / 3600 for one in warm], values)
            found[name][what] = {
                "first_quarter": round(first, 1),
                "last_quarter": round(last, 1),
                "most": round(max(values), 1),
                "slope_per_hour": round(slope, 2) if hours else 0.0,
            }
    return found


def draw(log: Log, path: Path) -> None:
    """Draw memory, files, threads and what waits over the time."""
    import matplotlib.pyplot as plt

    minutes = [one["at_s"] / 60 for one in log.samples]
    figure, axes = plt.subplots(4, 1, figsize=(9, 9), sharex=True, layout="constrained")
    for axis, what, label in zip(
        axes, ("memory_mib", "files", "threads"), ("memory, MiB", "open files", "threads"), strict=False
    ):
        for name in ("session", "worker", "server"):
            axis.plot(minutes, [one[name][what] for one in log.samples], label=name, lw=1)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[0].legend(ncols=3, loc="lower right")
    axes[3].plot(minutes, [one["unfinished"] for one in log.samples], lw=1, label="scans unfinished")
    axes[3].plot(
        minutes, [one["spooled"] / POINTS for one in log.samples], lw=1, label="scans' worth of frames on disk"
    )
    for scan in log.scans:
        if scan["fault"] != "none":
            axes[3].axvline(scan["began_s"] / 60, color="tab:red", lw=0.5, alpha=0.4)
    axes[3].set(xlabel="minutes (red: a scan with a fault)", ylabel="waiting")
    axes[3].legend(loc="upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Soak, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=32.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    before = machine()
    with (
        tempfile.TemporaryDirectory(prefix="ptychonn-soak-", ignore_cleanup_errors=True) as folder,
        Scene(Path(folder) / "scene", options.seed) as scene,
    ):
        warm_up(scene.client)
        log = soak(scene, 60 * options.minutes, options.seed)
        status = scene.session.status()["status"]
    frames = sum(scan["frames"] for scan in log.scans)
    written = {
        "machine": before,
        "seed": options.seed,
        "minutes": round(log.samples[-1]["at_s"] / 60, 1),
        "scans": len(log.scans),
        "scans_with_faults": sum(scan["fault"] != "none" for scan in log.scans),
        "frames": frames,
        "frames_per_s": round(frames / log.samples[-1]["at_s"], 2),
        "scans_harmed": sum(bool(scan["harmed"]) for scan in log.scans),
        **{f"frames_{what}": sum(scan[what] for scan in log.scans) for what in ("lost", "doubled", "wrong", "named")},
        "not_settled": sum(bool(scan["words"]) for scan in log.scans),
        "longest_stall_ms": max(scan["stall_ms"] for scan in log.scans),
        "longest_callback_ms": max(scan["callback_ms"] for scan in log.scans),
        "worker_restarts": len({one["worker_pid"] for one in log.samples}) - 1,
        "growth": growth(log.samples),
        "worker_said": status.splitlines()[0],
        "by_scan": log.scans,
    }
    (options.out / "soak.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    draw(log, options.out / "soak.png")
    print(json.dumps({key: value for key, value in written.items() if key != "by_scan"}, indent=1))


if __name__ == "__main__":
    main()

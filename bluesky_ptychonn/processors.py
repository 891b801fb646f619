"""Processors: how they are named, which are free for us, and how threads wait for one another.

OpenMP's threads spin while they wait by default. On a machine with other work the one that is waited for does not get
the processor on which the others spin: 64 frames then took 2.4 s instead of 0.2 s. Told to wait passively they sleep.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

#: For the environment of a process that has yet to load torch: GNU's, LLVM's and Intel's OpenMP wait without spinning.
_PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
_STAT = Path("/proc/stat")
_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_IDLE_FIELDS = slice(3, 5)  # of a processor's line in /proc/stat: idle, and waiting for a disk


def device_name(device: str) -> str:
    """Refuse a device that no machine has; whether this one has it is for a worker to say, who knows torch."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"{device!r} is unknown; allowed: auto, cpu, cuda, cuda:N")
    return device


def wait_passively() -> None:
    """Let OpenMP's threads in this process sleep while they wait, unless the user chose how.

    Without effect where torch was imported before: OpenMP looks once.
    """
    if "torch" not in sys.modules:
        os.environ.update(passive(os.environ))


def passive(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which OpenMP's threads sleep while they wait, unless it says how they should."""
    chosen = any(name in environment for name in _PASSIVE)
    return dict(environment) if chosen else {**environment, **_PASSIVE}


def usable_processors() -> int:
    """Processors that this process may use: by its affinity, its control group's quota and ``OMP_NUM_THREADS``."""
    limits: list[float] = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    limits += _quotas()
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal():
        limits.append(int(asked))
    return max(1, int(min(limits)))


def free_processors(watch_s: float = 0.1) -> int:
    """Usable processors that nobody else used while we watched for so long, at least 1."""
    usable = usable_processors()
    if usable == 1:
        return 1
    before = _idle_share()
    time.sleep(watch_s)
    after = _idle_share()
    if before is None or after is None or after[1] <= before[1]:
        return usable
    processors, idle = after[2], (after[0] - before[0]) / (after[1] - before[1])
    return max(1, min(usable, round(processors * idle)))


def worker_threads() -> int:
    """Threads beside a scan: half the usable processors, so that acquisition keeps the others."""
    return max(1, usable_processors() // 2)


def _idle_share() -> tuple[int, int, int] | None:
    """Ticks that our processors were idle, ticks in all, and their number; None where the system does not say."""
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = [[int(tick) for tick in line.split()[1:9]] for line in lines if line.split(maxsplit=1)[:1][0] in ours]
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    if not ticks:
        return None
    return sum(sum(row[_IDLE_FIELDS]) for row in ticks), sum(map(sum, ticks)), len(ticks)


def _quotas() -> list[float]:
    """Processors that control groups allow, this process's own and those above it; versions 1 and 2."""
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = _CGROUPS / "cpu" if controllers else _CGROUPS
        folder = top / path.strip("/")
        # In a container the path may be the host's, which is not to be seen here: the top is the container's own then.
        for place in {top, *(folder, *folder.parents)[: len(Path(path.strip("/")).parts)]}:
            quota = _quota(place)
            if quota is not None:
                found.append(quota)
    return found


def _quota(folder: Path) -> float | None:
    """Processors that one control group allows; None without a limit."""
    try:
        if (folder / "cpu.max").exists():
            allowed, _, period = (folder / "cpu.max").read_text(encoding="ascii").partition(" ")
        else:
            allowed = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        return int(allowed) / int(period) if int(allowed) > 0 else None
    except (OSError, ValueError):
        return None

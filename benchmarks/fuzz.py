"""Spoilt input for every parser: ``python -m benchmarks.fuzz --inputs 100000 --seed 1`` writes results/fuzz.json.

Each parser of `benchmarks.fuzz_targets` is tried in child processes under limits of memory and time. Allowed is a good
result, or a refusal in words: ValueError, LookupError or OSError as a user gets them. All else (another exception, also
one of a library that nobody put into words; a crash; too long; too large) is a finding, kept with its number:
``python -m benchmarks.fuzz --replay cxi:1234 --seed 1`` does it again, in this process, with the traceback.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.callback_cost import machine
from benchmarks.fuzz_targets import TARGETS, Target

CHILD = ["-m", "benchmarks.fuzz"]
RESULTS = Path(__file__).parent / "results" / "fuzz.json"
CPU_S = 10  # for one input
WALL_S = 120  # on a busy machine
MEMORY = 2 << 30  # bytes beyond what the imports took
_KEPT = 20  # findings of one parser that are kept in full


def dice(seed: int, name: str, number: int) -> random.Random:
    """Dice of one input."""
    return random.Random(f"{seed}/{name}/{number}")


def attempt(target: Target, rng: random.Random) -> tuple[str, str]:
    """Try one input: ``accepted``, ``refused`` or ``finding``, and the words for it."""
    try:
        return ("accepted" if target(rng) else "refused"), ""
    except Exception as error:  # noqa: BLE001  whatever it is, it is what this looks for
        message = f"{type(error).__name__}: {error}"
        return ("refused" if _in_words(error) else "finding"), message


def _in_words(error: Exception) -> bool:
    """Whether a user gets this as words: not a KeyError's bare key, nor a subclass that a library meant for us."""
    kind = type(error)
    ours = kind.__module__.startswith("bluesky_ptychonn") and isinstance(error, (ValueError, LookupError, OSError))
    return bool(str(error)) and (ours or kind in (ValueError, LookupError) or isinstance(error, OSError))


def child(name: str, seed: int, first: int, stop: int, notes: Path) -> None:
    """Try some inputs of one parser; notes say which is under way, so that whoever finds us dead knows."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="ptychonn-fuzz-", dir=_fast()) as folder:
        target = TARGETS[name](Path(folder))
        attempt(target, dice(seed, name, -1))  # what the first input imports
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        counts: dict[str, Any] = {"accepted": 0, "refused": 0, "findings": [], "slowest_ms": 0.0}
        with notes.open("w", encoding="utf-8") as file:
            for number in range(first, stop):
                file.seek(0)
                file.write(json.dumps({"at": number, **counts}) + "\n")
                file.flush()
                signal.setitimer(signal.ITIMER_PROF, CPU_S)  # the signals end the process, wherever it is
                signal.setitimer(signal.ITIMER_REAL, WALL_S)
                began = time.process_time()
                outcome, message = attempt(target, dice(seed, name, number))
                took = 1e3 * (time.process_time() - began)
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
                if outcome == "finding":
                    counts["findings"].append({"input": number, "what": message[:300]})
                else:
                    counts[outcome] += 1
                counts["slowest_ms"] = max(counts["slowest_ms"], round(took, 1))
            counts["grown_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
            file.seek(0)
            file.truncate()
            file.write(json.dumps({"at": stop, **counts}) + "\n")


def _fast() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def fuzz(name: str, seed: int, inputs: int) -> dict[str, Any]:
    """Try a parser; a child that dies is a finding, and another goes on behind it."""
    total: dict[str, Any] = {"inputs": inputs, "accepted": 0, "refused": 0, "findings": [], "slowest_ms": 0.0}
    total["grown_mib"] = first = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ptychonn-fuzz-") as folder:
        notes = Path(folder) / "notes.json"
        while first < inputs:
            command = [sys.executable, *CHILD, "--child", name, str(first), str(inputs), str(notes)]
            done = subprocess.run([*command, "--seed", str(seed)], capture_output=True, text=True, check=False)
            if not notes.exists():
                raise RuntimeError(f"fuzz {name}: the child did not begin: {done.stderr[-2000:]}")
            note = json.loads(notes.read_text(encoding="utf-8").splitlines()[0])
            notes.unlink()
            for key in ("accepted", "refused", "findings"):
                total[key] += note[key]
            for key in ("slowest_ms", "grown_mib"):
                total[key] = max(total[key], note.get(key, 0))
            first = note["at"]
            if done.returncode:
                total["findings"].append({"input": first, "what": _ending(done)})
                first += 1
    total["findings_in_all"] = len(total["findings"])
    total["findings"] = total["findings"][:_KEPT]
    return {**total, "seconds": round(time.monotonic() - began, 1)}


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == -signal.SIGPROF:
        return f"more than {CPU_S} s of CPU"
    if done.returncode == -signal.SIGALRM:
        return f"more than {WALL_S} s"
    return f"the interpreter ended with {done.returncode}: {done.stderr[-300:]}"


def replay(name: str, seed: int, number: int) -> None:
    """Try one input here, with the traceback of what it raises."""
    with tempfile.TemporaryDirectory(prefix="ptychonn-fuzz-") as folder:
        try:
            print("accepted" if TARGETS[name](Path(folder))(dice(seed, name, number)) else "refused")
        except Exception:  # noqa: BLE001  shown
            traceback.print_exc()


def main() -> None:
    """Fuzz and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all parsers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=[*TARGETS], default=[*TARGETS])
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--replay", metavar="PARSER:INPUT")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, first, stop, notes = arguments.child
        child(name, arguments.seed, int(first), int(stop), Path(notes))
        return
    if arguments.replay:
        name, _, number = arguments.replay.partition(":")
        replay(name, arguments.seed, int(number))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    report: dict[str, Any] = {"machine": machine(), "seed": arguments.seed}
    report["limits"] = {"cpu_s": CPU_S, "wall_s": WALL_S, "memory_mib": MEMORY >> 20}
    each = -(-arguments.inputs // len(arguments.only))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = pool.map(lambda name: fuzz(name, arguments.seed, each), arguments.only)
        report["parsers"] = dict(zip(arguments.only, done, strict=True))
    for key in ("inputs", "findings_in_all"):
        report[key] = sum(one[key] for one in report["parsers"].values())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

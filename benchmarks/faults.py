"""Faults at random moments of real scans: ``python -m benchmarks.faults --seed 1`` writes results/faults.{json,md}.

Real processes throughout: Tiled server, RunEngine, worker, IOC, and a proxy between them that misbehaves. Each trial is
a scan, one fault at a random moment of it, and the question whether every frame that was taken is in the catalog
exactly once and is the image of that frame, or is named with a reason. A trial's dice depend on seed, kind and number
alone, so one can be repeated: ``--only "worker: kill -9" --number 3``. What is done is kept in ``build/faults``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.callback_cost import machine
from tests.system.faults.kinds import KINDS
from tests.system.faults.oracle import warm_up
from tests.system.faults.scene import Scene
from tests.system.faults.trial import Trial, run_trial

RESULTS = Path(__file__).parent / "results"
KEPT = Path("build") / "faults"
#: Out of a hundred trials, how many are of each kind.
SHARES = {
    "none": 4,
    "server: kill -9, restart": 8,
    "server: orderly restart": 4,
    "server: SIGSTOP": 6,
    "server: stutters": 5,
    "worker: kill -9": 9,
    "worker: SIGSTOP": 4,
    "session: kill -9": 9,
    "machine down": 5,
    "connections refused": 6,
    "connections half open": 6,
    "slow network": 4,
    "errors and resets": 6,
    "plan paused, resumed": 6,
    "two at once": 6,
    "catalog's disk full": 3,
    "session's disk full": 3,
    "both disks full": 2,
    "IOC: SIGSTOP": 2,
    "IOC, server: kill -9": 1,
    "IOC, worker: kill -9": 1,
}


def planned(seed: int, trials: int) -> list[tuple[str, int]]:
    """Kinds and numbers of all trials, in a random order within the scenes that they share."""
    wanted = [(kind, number) for kind, share in SHARES.items() for number in range(round(share * trials / 100) or 1)]
    random.Random(seed).shuffle(wanted)
    return sorted(wanted, key=lambda item: (KINDS[item[0]].channel_access, KINDS[item[0]].small_disks))


def run(seed: int, wanted: Iterable[tuple[str, int]], done: dict[str, Trial], kept: Path) -> None:
    """Do what is not done; a scene that is beyond repair is a finding, and a new one takes its place."""
    scene: Scene | None = None
    needs: tuple[bool, bool] | None = None
    scenes = 0
    with tempfile.TemporaryDirectory(prefix="ptychonn-faults-", ignore_cleanup_errors=True) as folder:
        try:
            for kind, number in wanted:
                dice = f"{seed}/{kind}/{number}"
                if dice in done:
                    continue
                wants = (KINDS[kind].channel_access, KINDS[kind].small_disks)
                if scene is None or needs != wants:
                    if scene is not None:
                        scene.close()
                    scenes, needs = scenes + 1, wants
                    scene = Scene(Path(folder) / str(scenes), scenes, channel_access=wants[0], small_disks=wants[1])
                    warm_up(scene.client)
                began = time.monotonic()
                try:
                    trial = run_trial(scene, kind, dice)
                except Exception as error:  # noqa: BLE001  whatever it is, it is what this looks for
                    traceback.print_exc()
                    trial = Trial(kind, dice, words=f"{type(error).__name__}: {error}"[:500])
                done[dice] = trial
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(trial.as_dict()) + "\n")
                _say(len(done), trial, time.monotonic() - began)
                if not trial.fine:
                    _keep_logs(scene, kept.parent / f"{kind}-{number}".replace("/", "-"))
                    scene.close()
                    scene = None
        finally:
            if scene is not None:
                scene.close()


def _say(number: int, trial: Trial, took_s: float) -> None:
    verdict = "" if trial.fine else f" NOT FINE {trial.as_dict()}"
    print(
        f"{number:4d} {trial.fault:26s} at {trial.at_s:5.2f} s for {trial.lasts_s:5.2f} s, {trial.frames:3d} frames,"
        f" {trial.status:8s} stall {trial.stall_ms or 0:7.1f} ms, caught up {trial.catch_up_s or 0:6.2f} s"
        f" [{took_s:.0f} s]{verdict}",
        flush=True,
    )


def _keep_logs(scene: Scene, folder: Path) -> None:
    """Keep what sessions, workers and servers said, for whoever asks why."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*scene.folder.glob("*.log"), *scene.folder.glob("state/journals/*/worker.log")):
        (folder / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())


def rows(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """Sum up by kind of fault."""
    by_kind: dict[str, list[Trial]] = {}
    for trial in trials:
        by_kind.setdefault(trial.fault, []).append(trial)
    return [_row(kind, by_kind[kind]) for kind in KINDS if kind in by_kind]


def _row(kind: str, trials: list[Trial]) -> dict[str, Any]:
    caught = [trial.catch_up_s for trial in trials if trial.catch_up_s is not None]
    return {
        "fault": kind,
        "tried": len(trials),
        "frames": sum(trial.frames for trial in trials),
        "scans_harmed": sum(bool(trial.harmed) for trial in trials),
        "frames_lost": sum(len(trial.lost) + trial.raw_missing for trial in trials),
        "frames_doubled": sum(len(trial.doubled) for trial in trials),
        "frames_wrong": sum(len(trial.wrong) for trial in trials),
        "frames_named": sum(sum(trial.named.values()) for trial in trials),
        "not_settled": sum(bool(trial.words) for trial in trials),
        "longest_stall_ms": max((trial.stall_ms for trial in trials if trial.stall_ms is not None), default=None),
        "longest_callback_ms": max((t.callback_ms for t in trials if t.callback_ms is not None), default=None),
        "catch_up_s": round(statistics.median(caught), 1) if caught else None,
        "longest_catch_up_s": round(max(caught), 1) if caught else None,
        "scan_dies_of_it": KINDS[kind].ends_session,
    }


def table(found: list[dict[str, Any]]) -> str:
    """Make a Markdown table of the rows."""
    heads = {
        "fault": "fault", "tried": "tried", "frames": "frames", "scans_harmed": "scans harmed", "frames_lost": "lost",
        "frames_doubled": "doubled", "frames_wrong": "another's image", "frames_named": "named with a reason",
        "longest_stall_ms": "longest stall, ms", "longest_callback_ms": "longest callback, ms",
        "catch_up_s": "catch-up, s (median)", "longest_catch_up_s": "(longest)",
    }  # fmt: skip
    lines = [" | ".join(heads.values()), " | ".join(["---"] * len(heads))]
    lines += [" | ".join("–" if row[key] is None else str(row[key]) for key in heads) for row in found]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Try faults, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=210)
    parser.add_argument("--only", choices=KINDS, help="one kind; nothing is written to results")
    parser.add_argument("--number", type=int, nargs="*", help="with --only: which of its trials")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.only:
        wanted = [(options.only, number) for number in options.number or range(3)]
        with tempfile.TemporaryDirectory(prefix="ptychonn-faults-") as folder:
            run(options.seed, wanted, {}, Path(folder) / "trials.jsonl")
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / f"seed-{options.seed}.jsonl"
    done: dict[str, Trial] = {}
    if kept.is_file():
        for line in kept.read_text(encoding="utf-8").splitlines():
            trial = Trial(**json.loads(line))
            done[trial.seed] = trial
    before = machine()
    run(options.seed, planned(options.seed, options.trials), done, kept)
    found = rows(done.values())
    total = {key: sum(row[key] for row in found) for key in found[0] if isinstance(found[0][key], int)}
    total.pop("scan_dies_of_it", None)
    written = {
        "machine": before,
        "seed": options.seed,
        "total": total,
        "rows": found,
        "not_fine": [trial.as_dict() for trial in done.values() if not trial.fine],
    }
    (options.out / "faults.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    (options.out / "faults.md").write_text(table(found) + "\n", encoding="utf-8")
    print(table(found))
    print(total)


if __name__ == "__main__":
    main()

"""A beamline that drifts: what a frozen model, one that learns on, and one trained anew make of thirty runs.

    python -m benchmarks.learning            # writes results/learning.{json,png}; resumes in build/learning
    python -m benchmarks.learning --runs 6   # a shorter trial, in build/learning-6

The shipped model's beamline, simulated. Its defocus drifts, a little more in every run, to 1.1 rad (RMS over the
pupil), while samples change from etched to cells to stars and back. Five runs have something wrong. After each run the
learner considers it, proposes, judges, and crowns or keeps; it never sees a truth. Each run is first reconstructed with
the champion as it is then: that is what a user would have had live. Errors are those of whole mosaics against the
truth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.star import RESULTS, _cpu
from bluesky_ptychonn.optics.simulate import SampleKind, SimulatedExperiment, make_sample
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.evaluation.simulated_scans import score_mosaic, stitched
from bluesky_ptychonn.recon.evaluation.trust_calibration import refocused, synthetic_config
from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
from bluesky_ptychonn.recon.learning.learner import Learner, LearningConfig
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.networks.families import network_config
from bluesky_ptychonn.recon.training.fit import TrainingConfig, fit

MODEL, SEED, RUNS = "simulated-zp64", 60_000_011, 30
DRIFT_RAD, SAMPLING = 1.1, 0.4
KINDS: tuple[SampleKind, ...] = ("etched", "cells", "star", "texture", "etched")
CONFIG = LearningConfig()
#: Scratch: from random weights, through the probe as the learner tuned it, so many rounds' frames, every so many runs.
SCRATCH_ROUNDS, SCRATCH_EVERY = 4, 10
FORGETTING = 8  # of the first runs


@dataclass(frozen=True)
class Run:
    """A run of the drifting beamline; `wrong` says what is wrong with it, "" for nothing."""

    number: int
    kind: SampleKind
    defocus_rad: float
    wrong: str
    experiment: SimulatedExperiment
    frames: NDArray[np.float32]
    y_m: NDArray[np.float64]
    x_m: NDArray[np.float64]

    def error(self, image: MosaicImage) -> float:
        """Phase error of a mosaic, rad."""
        truth = self.experiment.truth_on(image.origin_m, image.amplitude.shape)
        return score_mosaic(image, truth, self.y_m, self.x_m).phase_mae_rad


SCRAMBLED, SHIFTED, DARK, SLIPPED, INSISTED = (
    "positions scrambled",
    "detector shifted 3 px",
    "beam lost in a third of the frames",
    "three positions in ten mixed up",
    "positions scrambled, taken on insistence",
)
WRONG = {6: SCRAMBLED, 11: SHIFTED, 16: DARK, 21: SLIPPED, 26: INSISTED}


def run_of(k: int, probe: torch.Tensor, photons: float) -> Run:
    """Simulate run `k`, of `RUNS`."""
    rng = np.random.default_rng((SEED, k))
    walk = np.random.default_rng(SEED).normal(0, 0.02, RUNS)
    defocus = float(DRIFT_RAD * k / (RUNS - 1) + (walk[k] if k else 0.0))
    now = refocused(probe, defocus)
    unit = np.asarray((now / now.abs().square().sum().sqrt()).numpy(), dtype=np.complex64)
    geometry = SimulatedExperiment.demo().geometry
    side, kind = int(rng.integers(8, 11)), KINDS[k * len(KINDS) // RUNS]
    plain = SimulatedExperiment.demo()
    step = SAMPLING * plain.probe_diameter_m
    size = int(side * step / plain.pixel_m + geometry.frame_shape[0] + 16) // 2 * 2
    experiment = SimulatedExperiment(geometry, unit, make_sample(kind, (size, size), rng), photons)
    line = (np.arange(side) - (side - 1) / 2) * step
    y, x = (a + rng.uniform(-0.1, 0.1, a.size) * step for a in (np.repeat(line, side), np.tile(line, side)))
    frames = np.stack([experiment.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)]).astype(np.float32)
    wrong = WRONG.get(k, "")
    if wrong in (SCRAMBLED, INSISTED, SLIPPED):
        moved = rng.permutation(len(y))[: 3 * len(y) // 10 if wrong == SLIPPED else len(y)]
        y[moved], x[moved] = y[np.roll(moved, 1)], x[np.roll(moved, 1)]
    elif wrong == SHIFTED:
        frames = np.roll(frames, 3, axis=1)
    elif wrong == DARK:
        frames[::3] = rng.poisson(0.02, frames[::3].shape)
    return Run(k, kind, defocus, wrong, experiment, frames, y, x)


def source_of(number: int) -> str:
    """Name a run for the learner."""
    return f"drift-{number:02d}"


def live(model: Model, run: Run) -> tuple[NDArray[np.bool_], NDArray[np.float32], tuple[str, ...]]:
    """Reconstruct as the live road does: valid frames, their trust, and the verdict's reasons."""
    engine = Reconstructor(model, run.experiment.geometry, device="cpu")
    result = engine.reconstruct(run.frames)
    engine.placed(result.patches[result.valid], run.y_m[result.valid], run.x_m[result.valid])
    verdict = engine.verdict()
    return result.valid, result.trust, () if verdict is None else verdict.reasons


def error_of(network: torch.nn.Module, probe: torch.Tensor, run: Run) -> float | None:
    """Phase error of the mosaic a network makes of a run, rad; None where positions or beam are not what they are."""
    if run.wrong:
        return None
    assert isinstance(network, ObjectNetwork)  # noqa: S101
    scan = MeasuredScan(run.frames, run.y_m, run.x_m, probe.numpy(), run.experiment.geometry, "drift")
    return run.error(stitched(network, scan, probe))


def step(learner: Learner, frozen: Model, run: Run, build: Path) -> dict[str, Any]:
    """One run after another: reconstruct, consider, propose, judge, crown or keep."""
    before = learner.champion
    valid, trust, reasons = live(before, run)
    assert before.probe is not None and frozen.probe is not None  # noqa: S101, PT018
    scan = MeasuredScan(
        run.frames[valid],
        run.y_m[valid],
        run.x_m[valid],
        before.probe.numpy(),
        run.experiment.geometry,
        source_of(run.number),
    )
    began = time.perf_counter()
    considered = learner.consider(scan, trust=trust[valid], verdict_reasons=reasons, insist=run.wrong == INSISTED)
    spent = {"consider_s": time.perf_counter() - began}
    row: dict[str, Any] = {
        "run": run.number,
        "kind": run.kind,
        "defocus_rad": run.defocus_rad,
        "wrong": run.wrong,
        "frames": len(run.frames),
        "verdict": [str(reason) for reason in reasons],
        "frozen_rad": error_of(frozen.network, frozen.probe, run),
        "live_rad": error_of(before.network, before.probe, run),
        "considered": str(considered),
        "taken": considered.taken,
        "decision": "no candidate",
        "promoted": False,
        "numbers": considered.numbers,
    }
    candidate = learner.propose()
    spent["propose_s"] = time.perf_counter() - began - spent["consider_s"]
    if candidate is not None:
        found = learner.judge(candidate)
        spent["judge_s"] = float(found.numbers["seconds"])
        row |= {"decision": found.reason, "promoted": found.promote, "judged": found.numbers}
        if found.promote:
            kept = build / "champions" / candidate.model.card.version
            shutil.copytree(candidate.folder, kept, dirs_exist_ok=True)
            learner.set_champion(load_model(kept, "cpu"))
    champion = learner.champion
    assert champion.probe is not None  # noqa: S101
    tuned_probe = _tuned(learner, source_of(run.number))
    row["tuned_defocus_rad"] = None if tuned_probe is None else round(_defocus(tuned_probe, frozen.probe), 3)
    row["champion"] = champion.card.version
    row["after_rad"] = None if tuned_probe is None else error_of(champion.network, tuned_probe, run)
    row["frozen_told_rad"] = None if tuned_probe is None else error_of(frozen.network, tuned_probe, run)
    return row | {name: round(value, 1) for name, value in spent.items()}


def _defocus(probe: torch.Tensor, plain: torch.Tensor) -> float:
    """Defocus, rad, of the plain probe that is most like another."""
    tried = np.arange(-0.5, DRIFT_RAD + 0.5, 0.01)
    return float(tried[np.argmax([abs(complex((refocused(plain, d).conj() * probe).sum())) for d in tried])])


def _tuned(learner: Learner, source: str) -> torch.Tensor | None:
    """Probe that a run was tuned to, if the learner took it."""
    found = next((scan for scan in learner._held_out.scans() if scan.source == source), None)
    return None if found is None else torch.as_tensor(found.probe)


def scratch(frozen: Model, probe: torch.Tensor, number: int, build: Path) -> tuple[ObjectNetwork, float]:
    """Train from random weights through a run's tuned probe."""
    config = TrainingConfig(
        network=network_config({"family": frozen.card.family, **frozen.card.network}),
        synthetic=synthetic_config(frozen),
        frames=SCRATCH_ROUNDS * CONFIG.frames,
        seed=number,
    )
    network, record = fit(probe.numpy(), config, checkpoint=build / f"scratch-{number}.pt")
    return network, float(record["seconds"])


def study(runs: int, build: Path) -> dict[str, Any]:
    """Run all of it; what is done is kept in `build`."""
    build.mkdir(parents=True, exist_ok=True)
    log = build / "rows.json"
    rows: list[dict[str, Any]] = json.loads(log.read_text()) if log.exists() else []
    frozen = load_model(MODEL, "cpu")
    assert frozen.probe is not None  # noqa: S101
    last = next((row["champion"] for row in reversed(rows) if row["champion"] != frozen.card.version), None)
    champion = frozen if last is None else load_model(build / "champions" / last, "cpu")
    learner = Learner(build / "learner", champion, CONFIG)
    photons = synthetic_config(frozen).photons

    def keep() -> None:
        draft = log.with_suffix(".part")
        draft.write_text(json.dumps(rows))
        draft.replace(log)

    for k in range(len(rows), runs):
        rows.append(step(learner, frozen, run_of(k, frozen.probe, photons), build))
        keep()
        row = rows[-1]
        print(_line(row), flush=True)
    good = [row for row in rows if row["taken"] and not row["wrong"]]
    last_champion = learner.champion.network
    for row in good[:FORGETTING]:
        tuned_probe = _tuned(learner, source_of(row["run"]))
        if tuned_probe is not None and "final_rad" not in row:
            row["final_rad"] = error_of(last_champion, tuned_probe, run_of(row["run"], frozen.probe, photons))
    for row in good:
        if row["run"] % SCRATCH_EVERY == SCRATCH_EVERY - 1 and "scratch_rad" not in row:
            tuned_probe = _tuned(learner, source_of(row["run"]))
            if tuned_probe is None:
                continue
            network, seconds = scratch(frozen, tuned_probe, row["run"], build)
            row["scratch_rad"] = error_of(network, tuned_probe, run_of(row["run"], frozen.probe, photons))
            row["scratch_s"] = round(seconds, 1)
            keep()
            print(f"scratch after run {row['run']}: {row['scratch_rad']:.3f} rad in {seconds:.0f} s", flush=True)
    keep()
    return {"summary": summary(rows), "rows": rows}


def _line(row: dict[str, Any]) -> str:
    errors = "  ".join(
        f"{name} {'  -  ' if row[f'{name}_rad'] is None else format(row[f'{name}_rad'], '.3f')}"
        for name in ("frozen", "live", "after")
    )
    line = f"run {row['run']:2d} {row['kind']:8s} {row['defocus_rad']:+.2f} rad  {errors}"
    return f"{line}  {row['wrong'] and '[' + row['wrong'] + '] '}{row['considered']}; {row['decision']}"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Work out what the study says."""
    fine = [row for row in rows if not row["wrong"]]
    late = fine[-len(fine) // 3 :]

    def mean(some: list[dict[str, Any]], name: str) -> float | None:
        values = [row[name] for row in some if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    names = ("frozen_rad", "frozen_told_rad", "live_rad", "after_rad")
    early = [row for row in fine if row.get("final_rad") is not None]
    compared = [row for row in fine if row.get("scratch_rad") is not None]
    return {
        "runs": len(rows),
        "all": {name: mean(fine, name) for name in names},
        "last_third": {name: mean(late, name) for name in names},
        "scratch": {
            "runs": [row["run"] for row in compared],
            "scratch_rad": mean(compared, "scratch_rad"),
            **{name: mean(compared, name) for name in names},
            "frames": SCRATCH_ROUNDS * CONFIG.frames,
            "seconds": mean(compared, "scratch_s"),
        },
        "forgetting": {
            "runs": [row["run"] for row in early],
            "then_rad": mean(early, "after_rad"),
            "final_rad": mean(early, "final_rad"),
            "frozen_rad": mean(early, "frozen_rad"),
            "worst_loss_rad": max((row["final_rad"] - row["after_rad"] for row in early), default=None),
        },
        "promoted": sum(row["promoted"] for row in rows),
        "kept": sum("judged" in row and not row["promoted"] for row in rows),
        "bad_runs": {
            row["wrong"]: {"taken": row["taken"], "promoted": _ended_well(row, rows), "why": _why(row, rows)}
            for row in rows
            if row["wrong"]
        },
        "good_runs_not_taken": [row["run"] for row in fine if not row["taken"]],
        "seconds_a_round": {name: mean(rows, name) for name in ("consider_s", "propose_s", "judge_s")},
        "frames_a_round": CONFIG.frames,
    }


def _round_of(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Row of the judgement that a run was judged in."""
    source = source_of(row["run"])
    return next((other for other in rows if source in other.get("judged", {}).get("new", {})), None)


def _ended_well(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    ended = _round_of(row, rows)
    return ended is not None and bool(ended["promoted"])


def _why(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    ended = _round_of(row, rows)
    return str(row["considered"] if not row["taken"] else "no candidate yet" if ended is None else ended["decision"])


def figure(found: dict[str, Any], path: Path) -> None:
    """Draw errors run by run, and forgetting."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = found["rows"]
    drawing, (top, bottom) = plt.subplots(
        2, 1, figsize=(11, 7.5), layout="constrained", height_ratios=(3, 1.3), sharex=True
    )
    series: tuple[tuple[str, str, str, str], ...] = (
        ("frozen_rad", "frozen", "#bb5566", "o-"),
        ("live_rad", "learner, live: the champion before this run", "#4477aa", "s-"),
        ("after_rad", "learner, after this run", "#66ccee", "^:"),
        ("scratch_rad", f"from scratch, {SCRATCH_ROUNDS} rounds' frames at once", "#222222", "D"),
        ("final_rad", "last champion, looking back", "#228833", "x"),
    )
    for name, label, colour, style in series:
        points = [(row["run"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            top.plot(*zip(*points, strict=True), style, color=colour, label=label, ms=5, lw=1.4)
    top.set(ylabel="phase error of the mosaic, rad", ylim=(0, None))
    top.set_title("A drifting beamline, simulated: what each model makes of a run it has not seen", fontsize=11)
    for row in rows:
        if row["wrong"]:
            for axes in (top, bottom):
                axes.axvspan(row["run"] - 0.5, row["run"] + 0.5, color="0.9", lw=0)
            note = row["wrong"] + ("\nits candidate is not promoted" if not _ended_well(row, rows) else "\nPROMOTED")
            note = note if row["taken"] else row["wrong"] + "\nnot taken"
            top.text(row["run"], 0.985, note, rotation=90, fontsize=7.5, ha="center", va="top", transform=_over(top))
    changes = [0, *(k for k in range(1, len(rows)) if rows[k]["kind"] != rows[k - 1]["kind"])]
    for first in changes:
        bottom.text(first - 0.4, 0.93, rows[first]["kind"], fontsize=9, va="top", transform=_over(bottom))
        for axes in (top, bottom):
            axes.axvline(first - 0.5, color="0.7", lw=0.8, ls=":")
    bottom.plot([row["run"] for row in rows], [row["defocus_rad"] for row in rows], color="0.4", label="true defocus")
    tuned = [(row["run"], row["tuned_defocus_rad"]) for row in rows if row.get("tuned_defocus_rad") is not None]
    if tuned:
        bottom.plot(*zip(*tuned, strict=True), "+", color="#4477aa", label="as the learner tuned it")
    for row in rows:
        if "judged" in row:
            bottom.plot(
                row["run"], -0.12, "^" if row["promoted"] else "v", color="#228833" if row["promoted"] else "#bb5566"
            )
    bottom.plot([], [], "^", color="#228833", label="promoted")
    bottom.plot([], [], "v", color="#bb5566", label="kept")
    bottom.set(xlabel="run", ylabel="defocus, rad", ylim=(-0.25, 1.35 * DRIFT_RAD))
    drawing.legend(*top.get_legend_handles_labels(), fontsize=8.5, loc="outside lower center", ncols=3, frameon=False)
    bottom.legend(fontsize=8, loc="center left", frameon=False)
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
    drawing.savefig(path, dpi=100)
    plt.close(drawing)


def _over(axes: Any) -> Any:
    """Run numbers across, part of the axes upwards."""
    transform: Callable[[], Any] = axes.get_xaxis_transform
    return transform()


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    asked = parser.parse_args()
    trial = asked.runs != RUNS
    build = Path("build") / (f"learning-{asked.runs}" if trial else "learning")
    found = {
        "machine": f"{_cpu()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "config": CONFIG.model_dump(),
        **study(asked.runs, build),
    }
    folder = build if trial else RESULTS
    (folder / "learning.json").write_text(json.dumps(_short(found), indent=1) + "\n", encoding="utf-8")
    figure(found, folder / "learning.png")
    print(json.dumps(_short(found["summary"]), indent=1))


if __name__ == "__main__":
    main()

"""Fine-tuning on one half of the measured star, judged on the other: split by area, no light in common.

    python -m benchmarks.star_halves    # writes results/star_halves.{json,md}

The network trained by simulation (`benchmarks.star`) is fine-tuned in two ways on the frames of one half: by the
iterative solver's image of those frames alone, and without any label. Then each reconstructs every n-th frame of the
other half, and is compared there with the solver's image from all frames, beside the solver on the same frames. The
probe is the one everything else on the star is told.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.star import FAMILIES, MODELS, RESULTS, Reference, _cpu, data_file
from bluesky_ptychonn.optics.cxi import CxiScan, read_cxi
from bluesky_ptychonn.recon.data.batches import Mix
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.evaluation.simulated_scans import stitched, stitching_weight
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.mosaic.refine import refine
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from bluesky_ptychonn.recon.mosaic.sweeps import ScanTensors
from bluesky_ptychonn.recon.solver.labelling import solve
from bluesky_ptychonn.recon.solver.ptychi import reconstruct_with_probe
from bluesky_ptychonn.recon.training.fit import fine_tune

EVERY = (1, 2, 4, 6, 9, 16)
LABELS = {
    "before": "trained by simulation",
    "labelled": "fine-tuned by labels",
    "label_free": "fine-tuned without labels",
    "before_refined": "by simulation, refined",
    "labelled_refined": "by labels, refined",
    "solver": "pty-chi, same frames",
}


def tuned(model: Model, learn: MeasuredScan, frames: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Fine-tune in both ways; networks and seconds, the solver's for its label among them."""
    start = time.perf_counter()
    label, _ = solve(learn)
    spent = {"label": time.perf_counter() - start}
    networks: dict[str, Any] = {"before": model.network}
    alone = Mix(simulated=0, label_free=1)  # simulated frames would keep it where it is
    ways: dict[str, dict[str, Any]] = {
        "labelled": {"labelled": [label]},
        "label_free": {"measured": [learn], "mix": alone},
    }
    for way, given in ways.items():
        networks[way], record = fine_tune(model, frames=frames, seed=3, progress=_report(way), **given)
        spent[way] = float(record["seconds"])
    return networks, spent


def _report(way: str) -> Any:
    def say(done: int, total: int, loss: float) -> None:
        if done % 512 < 16:
            print(f"{way} {done}/{total} loss {loss:.4f}", flush=True)

    return say


def judged(
    reference: Reference, judge: MeasuredScan, beyond: NDArray[np.bool_], model: Model, networks: dict[str, Any]
) -> list[dict[str, Any]]:
    """Score every n-th frame of the half nobody learned from, over the covered part of that half."""
    pixel = judge.geometry.object_pixel_m
    told = torch.as_tensor(judge.probe)
    weight = stitching_weight(judge.probe, model.card.input.patch_shape[0])
    rounds = Refinement(rounds=model.card.refine_rounds)
    rows = []
    for n in EVERY:
        few = judge.select(np.arange(0, len(judge), n))
        placed, seconds = {}, {}
        for way, network in networks.items():
            start = time.perf_counter()
            image = stitched(network, few, told)
            seconds[way] = time.perf_counter() - start
            placed[way] = reference.place(image.complex, image.origin_m, pixel)
            if way != "label_free":
                better, _ = refine(image, ScanTensors.from_scan(few, told), weight, rounds, network=network)
                seconds[f"{way}_refined"] = time.perf_counter() - start
                placed[f"{way}_refined"] = reference.place(better.complex, better.origin_m, pixel)
        positions = np.stack([few.y_m, few.x_m], axis=1) / pixel + reference.origin_px
        solved = reconstruct_with_probe(few.counts, positions, judge.probe, reference.shape)
        placed["solver"], seconds["solver"] = solved.object, float(solved.seconds[-1])
        covered = np.isfinite(placed["before"]) & beyond
        row: dict[str, Any] = {"every": n, "frames": len(few)}
        for way in LABELS:
            row[f"{way}_corr"], row[f"{way}_mae_rad"] = reference.score(placed[way], covered)
            row[f"{way}_s"] = seconds[way]
        rows.append(row)
        print({key: round(value, 3) for key, value in row.items()}, flush=True)
    return rows


def scan_of(reference: Reference, scan: CxiScan) -> MeasuredScan:
    """All frames of the star, with the reference's probe."""
    pixel = scan.geometry.object_pixel_m
    y, x = ((reference.positions_px.T - reference.origin_px) * pixel).astype(np.float64)
    probe = reference.probe.astype(np.complex64)
    return MeasuredScan(reference.frames.astype(np.float32), y, x, probe, scan.geometry, data_file().name)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=6_000, help="frames seen in each fine-tuning")
    asked = parser.parse_args()
    recorded = read_cxi(data_file())
    reference = Reference(recorded)
    model = load_model(MODELS / FAMILIES["network"], "cpu")
    learn, judge = scan_of(reference, recorded).halves(axis=0)
    print(f"{len(learn)} frames to learn from, {len(judge)} to judge on", flush=True)
    networks, seconds = tuned(model, learn, asked.frames)
    border = round(judge.y_m.min() / recorded.geometry.object_pixel_m) + reference.origin_px
    beyond = np.zeros(reference.shape, dtype=bool)
    beyond[border:] = True
    answer = {
        "model": f"{model.card.name} {model.card.version}",
        "machine": f"{_cpu()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "learned_from": len(learn),
        "judged_on": len(judge),
        "frames_seen": asked.frames,
        "seconds": {key: round(value, 1) for key, value in seconds.items()},
        "rows": judged(reference, judge, beyond, model, networks),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "star_halves.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "star_halves.md").write_text(_table(answer), encoding="utf-8")


def _table(answer: dict[str, Any]) -> str:
    seconds = answer["seconds"]
    head = (
        f"Measured Siemens star: {answer['model']} fine-tuned on {answer['learned_from']} frames of one half, "
        f"judged on the {answer['judged_on']} of the other. {answer['frames_seen']} frames seen: by labels "
        f"{seconds['label']:.0f} s of pty-chi and {seconds['labelled']:.0f} s, without {seconds['label_free']:.0f} s."
    )
    lines = [
        head,
        f"Phase correlation (MAE in rad), and seconds. {answer['machine']}.\n",
        "| every | frames | " + " | ".join(f"{words} | s" for words in LABELS.values()) + " |",
        "|---|---|" + "---|---|" * len(LABELS),
    ]
    for row in answer["rows"]:
        cells = [f"{row[f'{w}_corr']:.3f} ({row[f'{w}_mae_rad']:.3f}) | {row[f'{w}_s']:.1f}" for w in LABELS]
        lines.append(f"| {row['every']} | {row['frames']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

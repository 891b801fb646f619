"""How fast networks train: ``python -m benchmarks.training`` writes results/training.json.

Frames/s of whole steps of `bluesky_ptychonn.recon.training.fit.fit` (a simulated batch, the network, its update),
median over the steps of a few seconds after two that warm up, for both families as `ptychonn train` makes them, at 64
and 128 px, in float32 and bfloat16, with 1 and 2 threads of a CPU and on the first CUDA device where there is one.
Beside them what the supply of batches alone would allow. A machine with neighbours shows in its load.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.callback_cost import machine
from bluesky_ptychonn.optics.simulate import zone_plate_probe
from bluesky_ptychonn.recon.data.simulated import SimulatedFrames, SyntheticConfig
from bluesky_ptychonn.recon.networks.families import family_class
from bluesky_ptychonn.recon.training.fit import TrainingConfig, fit

RESULTS = Path(__file__).parent / "results" / "training.json"
BATCH = 16
WARM_UP = 2
FEWEST = 3
SYNTHETIC = SyntheticConfig(photons=1e5)


class _EnoughError(Exception):
    """Seen enough steps."""


def frames_per_s(family: str, size: int, precision: str, device: str, within_s: float) -> float:
    """Measure one way to train."""
    ends: list[float] = []

    def tick(done: int, total: int, loss: float) -> None:
        ends.append(time.perf_counter())
        if len(ends) > WARM_UP + FEWEST and ends[-1] - ends[WARM_UP] > within_s:
            raise _EnoughError

    network = family_class(family).config_class.for_training(size, size // 2, None, SYNTHETIC.photons)
    config = TrainingConfig.model_validate(
        {
            "network": network,
            "synthetic": SYNTHETIC,
            "loss": network.loss,
            "batch_size": BATCH,
            "precision": precision,
        }
    )
    with contextlib.suppress(_EnoughError):
        fit(zone_plate_probe((size, size), size * 0.45), config, device=device, progress=tick)
    steps = [after - before for before, after in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False)]
    return BATCH / statistics.median(steps)


def supply_per_s(size: int, device: str, within_s: float) -> float:
    """Measure what simulates the batches, alone."""
    probe = zone_plate_probe((size, size), size * 0.45)
    data = SimulatedFrames(probe, size // 2, BATCH, SYNTHETIC, 0, device)
    data.batch(0)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < within_s:
        count += 1
        data.batch(count)
    return BATCH * count / (time.perf_counter() - began)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "batch": BATCH, "rows": []}
    places: list[tuple[str, int]] = [("cpu", 1), ("cpu", 2)]
    if torch.cuda.is_available():
        report["machine"]["cuda"] = torch.cuda.get_device_name()
        places.append(("cuda", 1))
    for device, threads in places:
        torch.set_num_threads(threads)
        for size in (64, 128):
            supply = supply_per_s(size, device, options.seconds / 4)
            for family in ("lifted", "direct"):
                for precision in ("float32", "bfloat16"):
                    speed = frames_per_s(family, size, precision, device, options.seconds)
                    row = {"device": device, "threads": threads, "family": family, "size_px": size}
                    row |= {"precision": precision, "frames_per_s": round(speed, 1), "supply_per_s": round(supply, 1)}
                    report["rows"].append(row)
                    print(json.dumps(row), flush=True)
    report["machine"]["load_average_after"] = machine()["load_average"]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

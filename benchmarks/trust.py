"""Is trust what it says: reliability, rank, what goes wrong and whether it shows, and what it costs.

    python -m benchmarks.trust               # writes results/trust.{json,png}
    python -m benchmarks.trust --calibrate   # first measures the tables of the models' cards again

Simulated frames are of fresh seeds, drawn like those of the calibration
(`bluesky_ptychonn.recon.evaluation.trust_calibration`). Frames of the measured star are compared with the peer's image
from all frames, which `benchmarks.star` makes and keeps.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from benchmarks.corruptions import CLEAN, CORRUPTIONS, Corruption, Scan, simulated_scan
from benchmarks.star import FAMILIES, MODELS, RESULTS, Reference, _cpu, data_file
from bluesky_ptychonn.optics.cxi import read_cxi
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, crop
from bluesky_ptychonn.recon.evaluation.trust_calibration import (
    disturbed_frames,
    recalibrate,
    refocused,
    scored,
    synthetic_config,
)
from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.quality.trust import frame_trust, movement

SHIPPED = Path(__file__).parents[1] / "bluesky_ptychonn" / "models" / "simulated-zp64"
STAR = MODELS / FAMILIES["network"]
SEED = 40_000_003
SCANS = 24

Floats = NDArray[np.floating]


def reliability(trust: Floats, right: NDArray[np.bool_], bins: int = 8) -> list[dict[str, float]]:
    """Mean trust and part right in bins of equally many frames."""
    groups = np.array_split(np.argsort(trust), bins)
    return [
        {"trust": float(trust[g].mean()), "right": float(right[g].mean()), "frames": len(g)} for g in groups if len(g)
    ]


def summary(trust: Floats, error: Floats, tolerance: float, plain: Floats | None = None) -> dict[str, Any]:
    """Rank, calibration and reliability of frames (n,)."""
    right = error < tolerance
    found = {
        "frames": len(error),
        "error_rad_5_50_95": np.quantile(error, [0.05, 0.5, 0.95]).round(4).tolist(),
        "right": float(right.mean()),
        "mean_trust": float(trust.mean()),
        "spearman": float(-spearmanr(trust, error).statistic),
        "brier": float(np.mean((trust - right) ** 2)),
        "reliability": reliability(trust, right),
    }
    if plain is not None:
        found["spearman_residual_alone"] = float(-spearmanr(plain, error).statistic)
    return found


def simulated(model: Model, frames: int) -> dict[str, Any]:
    """Fresh simulated frames, half of them disturbed."""
    assert model.probe is not None and model.card.trust is not None and isinstance(model.network, ObjectNetwork)  # noqa: S101, PT018
    score, error, plain, troubled = [], [], [], []
    for counts, told, truth, trouble in disturbed_frames(
        model.probe.numpy(), synthetic_config(model), model, frames, SEED
    ):
        s, e = scored(model.network, counts, told, truth)
        with torch.inference_mode():
            plain.append(frame_trust(model.network(counts, told), counts, told).numpy())
        score.append(s)
        error.append(e)
        troubled += [trouble] * len(e)
    scores, errors, kinds = np.concatenate(score), np.concatenate(error), np.array(troubled)
    table = model.card.trust
    trust = table.trust(scores)
    found = summary(trust, errors, table.tolerance_rad, np.concatenate(plain))
    found["below_expected_error"] = float((errors < table.error(scores)).mean())
    as_trained = kinds == ""
    found["as_trained"] = summary(trust[as_trained], errors[as_trained], table.tolerance_rad)
    return found


def star_errors(reference: Reference, patches: NDArray[np.complex64], probe: torch.Tensor) -> Floats:
    """Phase error (n,) rad of each frame's patch against the peer's image, weighted by the probe."""
    size, pad = patches.shape[-1], 8
    truth = []
    frequency = np.fft.fftfreq(size + 2 * pad)
    for y, x in reference.positions_px:
        row, column = round(y), round(x)
        image = np.fft.fft2(crop(reference.object.astype(np.complex64), row, column, size + 2 * pad))
        ramp = np.exp(2j * np.pi * (frequency[:, None] * (y - row) + frequency[None, :] * (x - column)))
        truth.append(np.fft.ifft2(image * ramp)[pad:-pad, pad:-pad])
    there = torch.from_numpy(np.asarray(truth, dtype=np.complex64))
    return movement(there, torch.from_numpy(patches), probe).numpy()


def star(model: Model) -> dict[str, Any]:
    """Frames of the measured star, as they are and disturbed, and the verdicts on both."""
    assert model.probe is not None and model.card.trust is not None  # noqa: S101, PT018
    scan = read_cxi(data_file())
    reference = Reference(scan)
    frames = reference.frames.astype(np.float32)
    tolerance = model.card.trust.tolerance_rad
    found: dict[str, Any] = {}
    trusts, errors = [], []
    cases: dict[str, tuple[NDArray[np.float32], torch.Tensor]] = {
        "as measured": (frames, model.probe),
        "detector shifted 1 px": (np.roll(frames, 1, axis=1), model.probe),
        "detector shifted 3 px": (np.roll(frames, 3, axis=2), model.probe),
        "probe out of focus 1 rad": (frames, refocused(model.probe, 1.0)),
        "probe out of focus 3 rad": (frames, refocused(model.probe, 3.0)),
    }
    for name, (counts, probe) in cases.items():
        engine = Reconstructor(Model(model.card, model.network, probe, model.weight), device="cpu")
        made = engine.reconstruct(counts)
        engine.placed(made.patches, scan.y_m, scan.x_m)
        error = star_errors(reference, made.patches, model.probe)
        verdict = engine.verdict()
        found[name] = summary(made.trust, error, tolerance)
        found[name]["verdict"] = None if verdict is None else verdict.document()
        trusts.append(made.trust)
        errors.append(error)
    found["all"] = summary(np.concatenate(trusts), np.concatenate(errors), tolerance)
    return found


def auroc(bad: Floats, good: Floats) -> float:
    """Chance that a bad one has more of something than a good one."""
    ranks = rankdata(np.concatenate([bad, good]))
    return float((ranks[: len(bad)].sum() - len(bad) * (len(bad) + 1) / 2) / (len(bad) * len(good)))


def _scans(model: Model, corruption: Corruption) -> list[dict[str, Any]]:
    assert model.probe is not None  # noqa: S101
    probe = model.probe.numpy()
    unit = np.asarray(probe / np.sqrt((np.abs(probe) ** 2).sum()), dtype=np.complex64)
    geometry, photons = SimulatedExperiment.demo().geometry, synthetic_config(model).photons
    engine = Reconstructor(model, geometry, device="cpu")
    rows = []
    for k in range(SCANS):
        scan: Scan = simulated_scan(unit, geometry, engine.patch_shape[0], photons, SEED + k, corruption)
        run = engine.for_run()
        made = run.reconstruct(scan.frames)
        good = made.valid
        run.placed(made.patches[good], scan.y_m[good], scan.x_m[good])
        verdict = run.verdict()
        assert verdict is not None  # noqa: S101
        error = movement(torch.from_numpy(scan.truth[good]), torch.from_numpy(made.patches[good]), model.probe).numpy()
        rows.append({"trust": made.trust, "error": error, "verdict": verdict, "mean_error": float(error.mean())})
    return rows


def corruptions(model: Model) -> dict[str, Any]:
    """How well a frame's trust and a run's verdict tell scans with something wrong from scans without."""
    clean = _scans(model, CLEAN)
    trust = np.concatenate([row["trust"] for row in clean])
    hard = [row["mean_error"] > 0.1 for row in clean]
    found: dict[str, Any] = {
        "clean": {
            "scans": len(clean),
            "not_ok": sum(row["verdict"].level != "ok" for row in clean),
            "mean_error_above_0.1_rad": sum(hard),
            "not_ok_of_these": sum(
                row["verdict"].level != "ok" for row, is_hard in zip(clean, hard, strict=True) if is_hard
            ),
            "mean_trust": float(trust.mean()),
        }
    }
    measured = [(row["verdict"].figures.overlap_rad, row["mean_error"]) for row in clean]
    for name, corruption in CORRUPTIONS.items():
        rows = _scans(model, corruption)
        error = np.concatenate([row["error"] for row in rows])
        bad = np.concatenate([row["trust"] for row in rows])
        if name == "beam":  # every third frame has none; the others are as they should be
            bad = np.concatenate([row["trust"][::3] for row in rows])
        measured += [(row["verdict"].figures.overlap_rad, row["mean_error"]) for row in rows]
        severe = [row for row in rows if row["mean_error"] > 0.1]
        found[name] = {
            "what": corruption.words,
            "auroc_frame_trust": auroc(-bad, -trust),
            "auroc_mean_trust_of_a_scan": auroc(
                np.array([-row["trust"].mean() for row in rows]), np.array([-row["trust"].mean() for row in clean])
            ),
            "scans": len(rows),
            "not_ok": sum(row["verdict"].level != "ok" for row in rows),
            "reason_named": sum(
                any(str(w).startswith(corruption.reason) for w in row["verdict"].reasons) for row in rows
            ),
            "median_error_rad": float(np.median(error)),
            "mean_error_above_0.1_rad": len(severe),
            "not_ok_of_these": sum(row["verdict"].level != "ok" for row in severe),
            "mean_trust": float(bad.mean()),
            "example": next((str(row["verdict"].reasons[0]) for row in rows if row["verdict"].reasons), ""),
        }
    pairs = np.array([(a, b) for a, b in measured if a is not None])
    found["overlap_spearman_with_scan_error"] = float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
    return found


def cost(model: Model, frames: int = 256) -> dict[str, float]:
    """CPU seconds of judging frames and run, against those of the network; the least of five on a shared machine."""
    assert model.probe is not None  # noqa: S101
    engine = Reconstructor(model, device="cpu")
    n = engine.card.input.frame_shape[0]
    counts = torch.poisson(torch.full((frames, n, n), float(model.probe.abs().square().sum()) / n**2))
    positions = np.arange(frames) * 8 * engine.pixel_m

    def seconds(work: Any) -> float:
        times = []
        for _ in range(5):
            begin = time.process_time()
            work()
            times.append(time.process_time() - begin)
        return min(times)

    patches = engine.reconstruct(counts).patches
    size = engine._passes.batch_size

    @torch.inference_mode()
    def network() -> None:
        for k in range(0, frames, size):
            model.network(counts[k : k + size], engine._probe)

    made = torch.from_numpy(patches)

    @torch.inference_mode()
    def judging() -> None:
        run = engine.for_run()
        assert run._probe is not None  # noqa: S101
        for k in range(0, frames, size):
            moved = movement(made[k : k + size], made[k : k + size], run._probe)
            run._scores(made[k : k + size], moved, counts[k : k + size], run._probe)
        run._statistics.add_frames(
            counts, np.full(frames, 1e5), np.ones(frames, bool), [False] * frames, [False] * frames
        )
        run.placed(patches, positions, positions * 0)
        run.verdict()

    inference, judged = seconds(network), seconds(judging)
    return {
        "network_ms_a_frame": 1e3 * inference / frames,
        "judging_ms_a_frame": 1e3 * judged / frames,
        "part_of_inference": judged / inference,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", action="store_true", help="first measure the cards' tables again")
    parser.add_argument("--frames", type=int, default=2048, help="simulated frames")
    asked = parser.parse_args()
    if asked.calibrate:
        for folder in (SHIPPED, STAR):
            recalibrate(folder)
    shipped, lifted = load_model(SHIPPED, "cpu"), load_model(STAR, "cpu")
    found: dict[str, Any] = {
        "machine": f"{_cpu()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "meaning": "trust = probability that a frame's mean absolute phase error under the probe is below 0.1 rad",
        "cost": {"simulated-zp64": cost(shipped), "star-lifted": cost(lifted)},
        "simulated": {"simulated-zp64": simulated(shipped, asked.frames)},
        "corruptions": corruptions(shipped),
    }
    found["simulated"]["star-lifted"] = simulated(lifted, asked.frames // 2)
    if data_file().exists():
        found["star"] = star(lifted)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "trust.json").write_text(json.dumps(_short(found), indent=1) + "\n", encoding="utf-8")
    figure(found, RESULTS / "trust.png")
    print(json.dumps(_short(found), indent=1))


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def figure(found: dict[str, Any], path: Path) -> None:
    """Draw reliability, and what each corruption does."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    drawing, (left, right) = plt.subplots(1, 2, figsize=(12.5, 6), layout="constrained", width_ratios=(1, 1.25))
    left.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--", label="as stated")
    series = {f"simulated, {name}": part for name, part in found["simulated"].items()}
    if "star" in found:
        series["measured star, as it is and disturbed"] = found["star"]["all"]
        series["measured star, as it is"] = found["star"]["as measured"]
    for (name, part), marker in zip(series.items(), "os^D", strict=False):
        x, y, n = (np.array([row[key] for row in part["reliability"]]) for key in ("trust", "right", "frames"))
        half = 1.96 * np.sqrt((y * (1 - y) + 1 / n) / n)
        low, high = np.minimum(half, y), np.minimum(half, 1 - y)
        left.errorbar(
            x, y, [low, high], fmt=marker + "-", ms=5, lw=1, capsize=2, label=f"{name}: ρ = {part['spearman']:.2f}"
        )
    left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="trust", ylabel="frames with phase error below 0.1 rad")
    left.set_title("Reliability, 95 % intervals; ρ: rank correlation with the error", fontsize=10)
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(-0.1, -0.13), ncols=1, frameon=False)
    left.grid(alpha=0.3)
    rows = {name: part for name, part in found["corruptions"].items() if name in CORRUPTIONS}
    place = np.arange(len(rows))[::-1]
    bars = (
        ("a frame's trust: AUROC", "auroc_frame_trust", "#4477aa"),
        ("the verdict: part of scans not ok", "not_ok", "#ee7733"),
        ("… with this reason named", "reason_named", "#ccbb44"),
    )
    for k, (label, key, colour) in enumerate(bars):
        values = [part[key] / (1 if key.startswith("auroc") else part["scans"]) for part in rows.values()]
        right.barh(place + 0.27 - 0.27 * k, values, 0.25, label=label, color=colour)
    clean = found["corruptions"]["clean"]
    right.axvline(clean["not_ok"] / clean["scans"], color="#ee7733", ls=":", lw=1.2)
    names = [f"{part['what']}\n(median error {part['median_error_rad']:.2f} rad)" for part in rows.values()]
    right.set_yticks(place, names, fontsize=8)
    right.set(xlim=(0, 1.02))
    right.set_title(
        f"What goes wrong, in {clean['scans']} scans each. Dotted: judged not ok with nothing wrong,\n"
        f"{clean['not_ok']} scans, of which {clean['not_ok_of_these']} do err by more than 0.1 rad",
        fontsize=9,
    )
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.07), ncols=1, frameon=False)
    right.grid(alpha=0.3, axis="x")
    drawing.savefig(path, dpi=100)
    plt.close(drawing)


if __name__ == "__main__":
    main()

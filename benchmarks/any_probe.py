"""One model for many probes, judged where it was never trained: simulated beamlines, and the measured star.

    python -m benchmarks.any_probe    # writes results/any_probe.{json,md,png}

Each beamline has a probe of its own, some of kinds that are in no training. Its scans are reconstructed with that probe
by: the steps through the probe alone that the network begins with (no training at all), the model for any probe as it
is shipped, the same refined, and, where there is one, a model trained for that probe alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft

from benchmarks.star import FAMILIES, MODELS, RESULTS, Reference, _cpu, data_file
from bluesky_ptychonn.optics.cxi import read_cxi
from bluesky_ptychonn.optics.forward import to_fft_order
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.probe_family import ProbeFamily
from bluesky_ptychonn.optics.simulate import (
    SampleKind,
    SimulatedExperiment,
    illuminated_diameter_px,
    make_sample,
    zone_plate_probe,
)
from bluesky_ptychonn.recon.evaluation.simulated_scans import raster, score_mosaic, stitching_weight
from bluesky_ptychonn.recon.models.any_probe import for_probe
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.mosaic.refine import refine
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic, MosaicImage
from bluesky_ptychonn.recon.mosaic.sweeps import ScanTensors
from bluesky_ptychonn.recon.networks.lifted import lift

SHIPPED = "zone-plates"
KINDS: tuple[SampleKind, ...] = ("etched", "cells")
SAMPLINGS = (0.4, 0.7)
SEED = 50_000_017
METHODS = ("lift", "any", "any_refined", "own")
LABELS = {
    "lift": "steps through the probe alone",
    "any": "model for any probe",
    "any_refined": "the same, refined",
    "own": "trained for this probe",
}

Wave = NDArray[np.complex64]


def _unit(wave: NDArray[np.complexfloating]) -> Wave:
    return np.asarray(wave / np.sqrt((np.abs(wave) ** 2).sum()), dtype=np.complex64)


def mirrors(size: int, defocus_rad: float, side_fraction: float = 0.4) -> Wave:
    """Kirkpatrick-Baez mirrors out of focus: a rectangular pupil, which no training had."""
    k = (np.arange(size) - size // 2) / (size / 2) / side_fraction
    y, x = np.meshgrid(k, k * 1.3, indexing="ij")
    inside = 0.25 * (1 - np.tanh((np.abs(y) - 1) * 12)) * (1 - np.tanh((np.abs(x) - 1) * 12))
    pupil = inside * np.exp(1j * defocus_rad * (y**2 + x**2))
    return _unit(fft.fftshift(fft.ifft2(fft.ifftshift(pupil))))


def pinhole(size: int, diameter_px: float, fresnel_rad: float) -> Wave:
    """Propagate the disc of a pinhole that stands some way before the sample."""
    y, x = np.indices((size, size)) - size // 2
    disc = 0.5 * (1 - np.tanh(np.hypot(y, x) - diameter_px / 2))
    k = fft.fftfreq(size) * 2
    return _unit(fft.ifft2(fft.fft2(disc) * np.exp(-1j * fresnel_rad * (k[:, None] ** 2 + k[None] ** 2))))


def drawn(size: int, number: int) -> Callable[[], Wave]:
    """Draw from the family it was trained on, by a seed that training cannot meet."""
    return lambda: ProbeFamily().draw(size, np.random.default_rng((SEED, number)))


#: Name, what it is to the model, probe, photons a frame.
BEAMLINES: tuple[tuple[str, str, Callable[[], Wave], float], ...] = (
    ("zone plate A, 128 px", "as in training", drawn(128, 1), 3e5),
    ("zone plate B, 128 px", "as in training", drawn(128, 2), 3e5),
    ("zone plate C, 96 px", "as in training", drawn(96, 3), 3e5),
    ("zone plate D, 64 px", "as in training", drawn(64, 4), 3e5),
    ("zone plate A, 10,000 photons", "fewer photons", drawn(128, 1), 1e4),
    ("zone plate, stop of 0.7", "larger stop", lambda: zone_plate_probe((128, 128), 60, 0.7, 0.5), 3e5),
    ("zone plate in focus", "no ring", lambda: zone_plate_probe((128, 128), 8, 0.3, 0.4), 3e5),
    ("mirrors out of focus", "another pupil", lambda: mirrors(128, 20.0), 3e5),
    ("pinhole", "another pupil", lambda: pinhole(128, 50, 15.0), 3e5),
    ("simulated beamline, 64 px", "as in training", lambda: SimulatedExperiment.demo().probe, 1e5),
)


def _mosaic(patches: NDArray[Any], y: NDArray[Any], x: NDArray[Any], weight: NDArray[Any], pixel_m: float) -> Any:
    mosaic = Mosaic(pixel_m, weight)
    mosaic.add(patches, y, x, np.ones(len(y)))
    mosaic.synchronise()
    return mosaic.snapshot()


def _probe_of(model: Model) -> torch.Tensor:
    if model.probe is None:
        raise ValueError(f"model {model.card.name!r} has no probe")
    return model.probe


def images(
    frames: NDArray[Any], y: NDArray[Any], x: NDArray[Any], model: Model, own: Model | None, pixel_m: float
) -> dict[str, MosaicImage]:
    """Reconstruct a scan by every method."""
    given = _probe_of(model)
    size = model.card.input.patch_shape[0]
    weight = stitching_weight(given.numpy(), size)
    counts = torch.as_tensor(frames.astype(np.float32))
    inner = slice((len(given) - size) // 2, (len(given) + size) // 2)
    patches: dict[str, list[NDArray[Any]]] = {"lift": [], "any": [], "own": []}
    with torch.inference_mode():
        for some in torch.split(counts, 16):
            bare = lift(to_fft_order(some.clamp_min(0).sqrt()), given, 12)
            patches["lift"].append(bare[:, inner, inner].numpy())
            patches["any"].append(model.network(some, given).numpy())
            if own is not None:
                patches["own"].append(own.network(some, _probe_of(own)).numpy())
    found = {k: _mosaic(np.concatenate(v), y, x, weight, pixel_m) for k, v in patches.items() if v}
    refined, _ = refine(
        found["any"], ScanTensors(counts, np.stack([y, x], -1), given), weight, Refinement(), network=model.network
    )
    return {**found, "any_refined": refined}


def beamline(name: str, role: str, probe: Wave, photons: float, general: Model, own: Model | None) -> dict[str, Any]:
    """Scan unseen samples at one beamline."""
    size = len(probe)
    geometry = Geometry(energy_ev=1e4, distance_m=1.0, pixel_pitch_m=75e-6, frame_shape=(size, size))
    model = for_probe(general, probe, geometry, photons=photons)
    pixel, diameter = geometry.object_pixel_m, illuminated_diameter_px(probe)
    side = int(np.ceil(3.5 * diameter / 2) * 2 + size)
    rows: list[dict[str, Any]] = []
    for sampling in SAMPLINGS:
        scores: dict[str, list[Any]] = {}
        for k, kind in enumerate(KINDS):
            rng = np.random.default_rng((SEED, k))
            experiment = SimulatedExperiment(geometry, _unit(probe), make_sample(kind, (side, side), rng), photons)
            y, x = raster(sampling * diameter * pixel, 2.2 * diameter * pixel, 0.1, rng)
            frames = np.stack([experiment.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)])
            for method, image in images(frames, y, x, model, own, pixel).items():
                truth = experiment.truth_on(image.origin_m, image.amplitude.shape)
                scores.setdefault(method, []).append(score_mosaic(image, truth, y, x))
        row: dict[str, Any] = {"sampling": sampling, "frames": len(y)}
        for method, each in scores.items():
            row[f"{method}_mae_rad"] = float(np.mean([s.phase_mae_rad for s in each]))
            row[f"{method}_corr"] = float(np.mean([s.phase_correlation for s in each]))
        rows.append(row)
        print(name, {k: round(v, 3) for k, v in row.items()}, flush=True)
    return {"beamline": name, "to_the_model": role, "photons": photons, "diameter_px": diameter, "rows": rows}


def star(general: Model, every: Sequence[int]) -> list[dict[str, Any]]:
    """Score the measured star through its measured probe, as `benchmarks.star` does."""
    scan = read_cxi(data_file())
    reference, pixel = Reference(scan), scan.geometry.object_pixel_m
    model = for_probe(general, reference.probe.astype(np.complex64), scan.geometry)
    own = load_model(MODELS / FAMILIES["network"], "cpu")
    rows = []
    for n in every:
        frames = reference.frames[::n]
        y, x = ((reference.positions_px[::n].T - reference.origin_px) * pixel).astype(np.float64)
        by_method = images(frames, y, x, model, own, pixel)
        placed = {method: reference.place(image.complex, image.origin_m, pixel) for method, image in by_method.items()}
        covered = np.isfinite(placed["any"])
        row: dict[str, Any] = {"every": n, "frames": len(frames)}
        for method in METHODS:
            row[f"{method}_corr"], row[f"{method}_mae_rad"] = reference.score(placed[method], covered)
        rows.append(row)
        print("star", {k: round(v, 3) for k, v in row.items()}, flush=True)
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SHIPPED, help="name or folder of a lifted model for any probe")
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 4, 6, 9, 12, 16, 25])
    asked = parser.parse_args()
    general = load_model(asked.model, "cpu")
    mine = load_model("simulated-zp64", "cpu")
    found = [
        beamline(name, role, probe(), photons, general, mine if name.startswith("simulated beamline") else None)
        for name, role, probe, photons in BEAMLINES
    ]
    answer = {
        "model": f"{general.card.name} {general.card.version}",
        "weights_sha256": general.card.weights_sha256,
        "machine": f"{_cpu()}, torch {torch.__version__}",
        "beamlines": found,
        "star": star(general, asked.every) if data_file().is_file() else [],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "any_probe.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "any_probe.md").write_text(_tables(answer), encoding="utf-8")
    _figure(answer, RESULTS / "any_probe.png")


def _cells(row: dict[str, Any]) -> str:
    cells = [f"{row[f'{m}_corr']:.3f} ({row[f'{m}_mae_rad']:.3f})" if f"{m}_corr" in row else "-" for m in METHODS]
    return " | ".join(cells)


def _tables(answer: dict[str, Any]) -> str:
    heads = " | ".join(LABELS[method] for method in METHODS)
    lines = [
        f"One model for many probes ({answer['model']}), told each beamline's probe and trained for none of them.",
        "Phase correlation (MAE in rad), means of an etched and a cellular sample it never saw.",
        f"{answer['machine']}.\n",
        f"| beamline | to the model | step / probe | {heads} |",
        "|---|---|---|" + "---|" * len(METHODS),
    ]
    for each in answer["beamlines"]:
        start = f"| {each['beamline']} | {each['to_the_model']} "
        lines += [f"{start}| {row['sampling']:.1f} | {_cells(row)} |" for row in each["rows"]]
    if answer["star"]:
        lines += ["", "The measured Siemens star, against the iterative image of all frames:\n"]
        lines += [f"| every | frames | {heads} |", "|---|---|" + "---|" * len(METHODS)]
        lines += [f"| {row['every']} | {row['frames']} | {_cells(row)} |" for row in answer["star"]]
    return "\n".join(lines) + "\n"


def _figure(answer: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 5), layout="constrained", gridspec_kw={"width_ratios": [2, 1]}
    )
    names = [each["beamline"] for each in answer["beamlines"]]
    place = np.arange(len(names))
    for k, method in enumerate(METHODS):
        values = [each["rows"][0].get(f"{method}_mae_rad", np.nan) for each in answer["beamlines"]]
        left.barh(place + (k - 1.5) * 0.2, values, 0.2, label=LABELS[method])
    left.set_yticks(place, names)
    left.invert_yaxis()
    left.set(xlabel=f"phase MAE (rad) at a sampling of {SAMPLINGS[0]}")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize="small", frameon=False)
    for method in METHODS:
        rows = answer["star"]
        right.plot([r["every"] for r in rows], [r[f"{method}_corr"] for r in rows], "o-", label=LABELS[method])
    right.set(xscale="log", xlabel="every n-th frame of the measured star", ylabel="phase correlation")
    right.set_xticks([r["every"] for r in answer["star"]], [str(r["every"]) for r in answer["star"]])
    right.minorticks_off()
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()

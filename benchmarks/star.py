"""The measured Siemens star: both network families and the iterative peer, on the same frames with the same probe.

    python -m benchmarks.star            # replays, reconstructs, scores; writes results/star.{json,md,png}
    python -m benchmarks.star --train    # first trains both networks again, by simulation through the peer's probe
    python -m benchmarks.star --train direct --frames 60000

Every n-th frame in the order they were taken goes the product's whole road: replay camera, RunEngine, TiledWriter, live
reconstruction by the lifted network, catalog; the direct network reconstructs the same run from the catalog, and so
does the lifted one once more, refined by sweeps of the physics; what is scored is read back from there. Seconds are of
inference, stitching and refinement alone, and of the peer's solver alone, on the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.optics.cxi import CxiScan, read_cxi
from bluesky_ptychonn.recon.evaluation.metrics import phase_correlation, phase_mae
from bluesky_ptychonn.recon.solver.ptychi import (
    SolverSettings,
    reconstruct_probe_and_object,
    reconstruct_with_probe,
    settled_epochs,
    solver_version,
)

EVERY = (1, 2, 4, 6, 9, 12, 16, 25)
CENTRE = 260  # px, side of the square that is scored
MARGIN = 72  # px of object around the outermost positions
HERE = Path(__file__).parent
RESULTS, MODELS, CACHE = HERE / "results", HERE / "models", HERE.parent / "build" / "star"
FAMILIES = {"network": "star-lifted", "direct": "star-direct"}
METHODS = ("direct", "network", "refined")


def data_file() -> Path:
    """Return the star's CXI file: in ``PTYCHONN_DATA``, by default ``../shared/data``."""
    folder = os.environ.get("PTYCHONN_DATA", str(HERE.parents[1] / "shared" / "data"))
    return Path(folder) / "velociprobe-siemens-star.cxi"


class Reference:
    """The peer's image from all frames, with its probe and the positions in its pixels."""

    def __init__(self, scan: CxiScan) -> None:
        pixel = scan.geometry.object_pixel_m
        metres = np.stack([scan.y_m, scan.x_m], axis=1)
        side = 2 * int(np.ceil(np.abs(metres).max() / pixel + MARGIN))
        self.shape, self.origin_px = (side, side), side // 2
        self.positions_px = metres / pixel + self.origin_px
        self.frames = np.asarray(scan.frames[:])
        cache = CACHE / "peer.npz"
        if not cache.exists():
            if scan.probe is None:
                raise ValueError(f"{scan.path.name}: no first guess of the probe in it")
            made = reconstruct_probe_and_object(self.frames, self.positions_px, scan.probe, self.shape)
            cache.parent.mkdir(parents=True, exist_ok=True)
            scale = self._vacuum(made.object)
            np.savez(cache, object=made.object / scale, probe=made.probe * scale, seconds=made.seconds[-1])
        with np.load(cache) as kept:
            self.object, self.probe = kept["object"], kept["probe"]
            self.seconds = float(kept["seconds"])

    def _vacuum(self, image: NDArray[np.complexfloating]) -> float:
        """Amplitude of the bare membrane: the modes of spoke and gap differ, and the gap is the brighter half."""
        amplitude = np.abs(image[self.centre])
        return float(np.median(amplitude[amplitude > np.median(amplitude)]))

    @property
    def centre(self) -> tuple[slice, slice]:
        """The scored square."""
        middle = slice(self.origin_px - CENTRE // 2, self.origin_px + CENTRE // 2)
        return middle, middle

    def place(self, image: NDArray[np.complexfloating], origin_m: tuple[float, float], pixel_m: float) -> Any:
        """Put a mosaic on the reference's grid (H, W), NaN elsewhere."""
        out = np.full(self.shape, np.nan + 0j, dtype=np.complex64)
        top, left = (round(o / pixel_m) + self.origin_px for o in origin_m)
        y0, x0 = max(0, top), max(0, left)
        y1, x1 = min(out.shape[0], top + image.shape[0]), min(out.shape[1], left + image.shape[1])
        out[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def score(self, image: NDArray[np.complexfloating], covered: NDArray[np.bool_]) -> tuple[float, float]:
        """Phase correlation and MAE (rad) in the scored square, where `covered` (H, W) holds."""
        ours, theirs = image[self.centre], self.object[self.centre]
        weight = covered[self.centre].astype(float)
        return phase_correlation(ours, theirs, weight), phase_mae(ours, theirs, weight)


def train(reference: Reference, scan: CxiScan, families: tuple[str, ...], frames: int) -> None:
    """Train families by simulation through the peer's probe."""
    from bluesky_ptychonn.recon.data.batches import TrainingData
    from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
    from bluesky_ptychonn.recon.networks.families import family_class
    from bluesky_ptychonn.recon.training.fit import TrainingConfig
    from bluesky_ptychonn.recon.training.model import ModelInfo, train_model

    photons = float((np.abs(reference.probe) ** 2).sum())
    # The direct family needs many small steps, and learns a narrower kind of sample better in the same time.
    recipes: dict[str, dict[str, Any]] = {
        "lifted": {"synthetic": SyntheticConfig(photons=photons)},
        "direct": {
            "synthetic": SyntheticConfig(photons=photons, dose_spread=1.05, sample="etched"),
            "loss": "amplitude_phase",
            "batch_size": 8,
            "learning_rate": 1.5e-3,
        },
    }
    for family in families:
        name = {"lifted": FAMILIES["network"]}.get(family, FAMILIES["direct"])
        size = reference.probe.shape[0]
        network = family_class(family).config_class.for_training(size, size // 2, None, photons)
        config = TrainingConfig(network=network, frames=frames, seed=1, **recipes[family])
        train_model(
            TrainingData(reference.probe),
            scan.geometry,
            config,
            MODELS / name,
            ModelInfo(
                name,
                source="pty-chi LSQML on all 516 frames of the star",
                command=f"python -m benchmarks.star --train {family} --frames {frames}",
            ),
            progress=lambda done, total, loss: print(f"\r{done}/{total} loss {loss:.4f}", end="", flush=True),
        )
        print()


def replay(scan: CxiScan, every: tuple[int, ...]) -> dict[tuple[int, str], Any]:
    """Send every n-th frame the whole road; return what the catalog then holds, by (n, method)."""
    from bluesky import RunEngine
    from bluesky_tiled_plugins import TiledWriter

    from bluesky_ptychonn import LiveReconstruction, reconstruct, serve_catalog
    from bluesky_ptychonn.beamline.replay import ReplayBeamline, replay_scan

    found: dict[tuple[int, str], Any] = {}
    with tempfile.TemporaryDirectory(prefix="ptychonn-star-") as folder:
        frames = Path(folder, "frames")
        with serve_catalog(Path(folder, "catalog"), readable=[frames]) as server:
            beamline = ReplayBeamline.from_scan(scan, frames)
            engine = RunEngine({})
            engine.subscribe(TiledWriter(server.raw, batch_size=1))
            with LiveReconstruction(MODELS / FAMILIES["network"], server, journal_dir=Path(folder, "journal")) as live:
                engine.subscribe(live)
                live.wait_ready()
                for n in every:
                    (uid,) = engine(replay_scan(beamline, frames=range(0, len(scan), n)))
                    live.wait(uid, timeout=600)
                    done = live.result(uid)
                    found[n, "network"] = (done.mosaic(), done.status, done.counts)
                    done = reconstruct(uid, MODELS / FAMILIES["direct"], server)
                    found[n, "direct"] = (done.mosaic(), done.status, done.counts)
                    done = reconstruct(uid, MODELS / FAMILIES["network"], server, refine=True)
                    found[n, "refined"] = (done.mosaic(), done.status, done.counts)
                    print(f"every {n}: {done.counts}", flush=True)
    return found


def timed(reference: Reference, n: int, method: str, pixel_m: float) -> float:
    """Seconds of inference, stitching and refinement, warm; the best of three, as the machine is shared."""
    from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
    from bluesky_ptychonn.recon.models.checkpoint import load_model
    from bluesky_ptychonn.recon.mosaic.stitch import Mosaic

    engine = Reconstructor(load_model(MODELS / FAMILIES["direct" if method == "direct" else "network"]))
    engine.warm_up()
    y, x = ((reference.positions_px[::n].T - reference.origin_px) * pixel_m).astype(np.float64)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run = engine.for_run()
        batch = run.reconstruct(reference.frames[::n])
        mosaic = Mosaic(pixel_m, engine.weight, anchor=engine.anchor)
        mosaic.add(batch.patches, y, x, batch.trust)
        mosaic.synchronise()
        image = mosaic.snapshot()
        if method == "refined":
            run.refine(image, reference.frames[::n], y, x)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Run the benchmark."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = ("lifted", "direct")
    parser.add_argument("--train", nargs="*", choices=families, help="train both networks again, or the one named")
    parser.add_argument("--frames", type=int, default=110_000, help="simulated frames of a training")
    parser.add_argument("--every", type=int, nargs="+", default=list(EVERY))
    asked = parser.parse_args()
    scan = read_cxi(data_file())
    pixel = scan.geometry.object_pixel_m
    reference = Reference(scan)
    if asked.train is not None:
        train(reference, scan, tuple(asked.train) or families, asked.frames)
    results = replay(scan, tuple(asked.every))
    rows, images = [], {}
    for n in asked.every:
        row: dict[str, Any] = {"every": n, "frames": len(reference.frames[::n])}
        placed = {
            family: reference.place(results[n, family][0].complex, results[n, family][0].origin_m, pixel)
            for family in METHODS
        }
        # One area for all three: where the lifted network covers. Each method is judged on the same pixels.
        covered = np.isfinite(placed["network"]) & np.isfinite(placed["direct"])
        row["covered_fraction"] = float(covered[reference.centre].mean())
        for family in METHODS:
            image, status, counts = placed[family], *results[n, family][1:]
            row[f"{family}_corr"], row[f"{family}_mae_rad"] = reference.score(image, covered)
            row[f"{family}_s"] = timed(reference, n, family, pixel)
            row[f"{family}_status"], row[f"{family}_reconstructed"] = status, counts.get("reconstructed")
        peer = reconstruct_with_probe(
            reference.frames[::n],
            reference.positions_px[::n],
            reference.probe,
            reference.shape,
            epochs=_epochs(len(reference.frames[::n])),
            settings=SolverSettings(threads=torch.get_num_threads()),
        )
        scores = [reference.score(snapshot, covered) for snapshot in peer.snapshots]
        # The benefit of every doubt: the epoch that happens to agree best with the truth, which no user could know.
        best = int(np.argmax([corr for corr, _ in scores]))
        row |= {
            "peer": peer.software,
            "peer_corr": scores[best][0],
            "peer_mae_rad": scores[best][1],
            "peer_s": float(peer.seconds[best]),
            "peer_epochs": int(peer.epochs[best]),
            "peer_last_corr": scores[-1][0],
            "peer_last_mae_rad": scores[-1][1],
            "peer_last_s": float(peer.seconds[-1]),
            "peer_last_epochs": int(peer.epochs[-1]),
        }
        rows.append(row)
        images[n] = {**placed, "peer": np.where(covered, peer.snapshots[best], np.nan)}
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    about = f"{_cpu()}, {torch.get_num_threads()} threads, torch {torch.__version__}, pty-chi {solver_version()}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "star.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "star.md").write_text(_table(rows, about, reference.seconds), encoding="utf-8")
    _figure(rows, images, reference, RESULTS / "star.png")


def _epochs(frames: int) -> list[int]:
    """After which epochs the peer's object is judged: a quarter, half and all of what it is given."""
    most = settled_epochs(frames)
    return [max(1, most // 4), most // 2, most]


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def _table(rows: list[dict[str, Any]], about: str, reference_s: float) -> str:
    head = (
        "Measured Siemens star: phase against the peer's image from all 516 frames, over the covered part of the\n"
        "central 260 × 260 px. Correlation (MAE in rad), and seconds.\n"
        f"{about}. The reference took the peer {reference_s:.0f} s.\n\n"
        "| every | frames | covered | direct | s | lifted | s | lifted, refined | s | peer, best epoch | s "
        "| peer, last epoch | s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for r in rows:
        cells = [f"{r['every']}", f"{r['frames']}", f"{r['covered_fraction']:.2f}"]
        for key in (*METHODS, "peer", "peer_last"):
            cells += [f"{r[f'{key}_corr']:.3f} ({r[f'{key}_mae_rad']:.3f})", f"{r[f'{key}_s']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return head + "\n".join(lines) + "\n"


def _figure(rows: list[dict[str, Any]], images: dict[int, dict[str, Any]], reference: Reference, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [n for n in (1, 4, 9, 25) if n in images]
    labels = {
        "direct": "PtychoNN (direct)",
        "network": "lifted network",
        "refined": "lifted, refined",
        "peer": "pty-chi, same probe",
    }
    figure = plt.figure(figsize=(15, 13), layout="constrained")
    grid = figure.add_gridspec(4, len(shown) + 2)
    phase = np.angle(reference.object[reference.centre])
    low, high = np.percentile(phase, [1, 99])
    for row, (key, label) in enumerate(labels.items()):
        for column, n in enumerate(shown):
            axes = figure.add_subplot(grid[row, column])
            ours, theirs = images[n][key][reference.centre], reference.object[reference.centre]
            seen = np.isfinite(ours)
            turned = np.angle(ours * np.exp(-1j * np.angle(np.sum(ours[seen] * theirs[seen].conj()))))
            picture = axes.imshow(np.where(seen, turned, np.nan), cmap="viridis", vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[])
            axes.set_facecolor("0.85")
            if row == 0:
                frames = next(r["frames"] for r in rows if r["every"] == n)
                axes.set_title(f"every {n}: {frames} frames")
            if column == 0:
                axes.set_ylabel(label)
    axes = figure.add_subplot(grid[0, len(shown) :])
    axes.imshow(phase, cmap="viridis", vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[], title="reference: pty-chi, all 516 frames")
    figure.colorbar(picture, ax=axes, label="phase (rad)", shrink=0.8)
    for row, (key, ylabel) in enumerate((("corr", "phase correlation"), ("mae_rad", "phase MAE (rad)")), start=1):
        axes = figure.add_subplot(grid[row if row == 1 else slice(2, 4), len(shown) :])
        for family, marker in (("direct", "s"), ("network", "o"), ("refined", "D"), ("peer", "^")):
            axes.plot(
                [r["every"] for r in rows], [r[f"{family}_{key}"] for r in rows], marker + "-", label=labels[family]
            )
        axes.set(xscale="log", xlabel="every n-th frame", ylabel=ylabel)
        axes.set_xticks([r["every"] for r in rows], [str(r["every"]) for r in rows])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left" if key == "corr" else "upper left")
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""``ptychonn demo``: the main job, whole, on a simulated beamline."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from bluesky_ptychonn.cli.local_session import LocalSession

REPORT, PICTURE = "report.json", "reconstruction.png"
#: The model that comes with the package, made for the simulated beamline.
MODEL = "simulated-zp64"


def demo(
    out: Annotated[Path, typer.Option(help="folder for catalog, picture and report")] = Path("demo-output"),
    model: Annotated[str, typer.Option(help="name or folder of the model")] = MODEL,
    sample: Annotated[Literal["etched", "cells", "star", "texture"], typer.Option(help="kind of sample")] = "etched",
    seed: Annotated[int, typer.Option(help="of the sample, never seen in training")] = 2026,
    field_um: Annotated[float, typer.Option(help="side of the scanned square, µm")] = 4.5,
    tolerated_error: Annotated[float, typer.Option(help="phase error you accept, rad; sets the step")] = 0.06,
    step_um: Annotated[float | None, typer.Option(help="step, µm, instead of the tolerated error's")] = None,
    exposure_s: Annotated[float, typer.Option(help="time of one exposure, s")] = 0.05,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Scan a simulated sample sparsely, reconstruct it while it is scanned, query it, and draw it."""
    from bluesky_ptychonn.beamline.plans import sparse_ptycho_scan
    from bluesky_ptychonn.beamline.sim import SimulatedBeamline
    from bluesky_ptychonn.cli.local_session import CATALOG, open_local_session

    started = time.perf_counter()
    typer.echo(f"starting the catalog in {out / CATALOG}, and a worker with the model {model} ...")
    with open_local_session(out, model, device=device) as road:
        beamline = SimulatedBeamline.demo(road.frames, sample, seed, exposure_s=exposure_s)
        stage, camera = beamline.stage, beamline.camera

        def plan() -> Any:
            return sparse_ptycho_scan(
                [camera],
                stage.x,
                stage.y,
                field_um,
                field_um,
                model=model,
                tolerated_error_rad=tolerated_error,
                step_um=step_um,
                md={"sample": f"simulated {sample}, seed {seed}", "purpose": "demo"},
            )

        # Without, with, without: a machine that grows slower or faster meanwhile counts for neither.
        _, before_s = road.scan(plan(), reconstruct=False, words="scan by itself")
        uid, with_s = road.scan(plan(), words="scan, reconstructing")
        _, after_s = road.scan(plan(), reconstruct=False, words="scan by itself, again")
        result = road.finish(uid)
        slowdown = with_s / ((before_s + after_s) / 2)
        report = _report(road, result, beamline.experiment, slowdown, out)
        _query(out / CATALOG, uid)
        picture = _draw(result, beamline.experiment, report, out / PICTURE)
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _say(report, picture, out, time.perf_counter() - started)


def _report(road: LocalSession, result: Any, experiment: Any, slowdown: float, out: Path) -> dict[str, Any]:
    """Judge the result against the truth, over the covered part of the scanned field, global phase removed."""
    from bluesky_ptychonn.cli.local_session import frames_per_s, latency_ms
    from bluesky_ptychonn.recon.evaluation.simulated_scans import score_mosaic

    image, frames = result.mosaic(), result.frames
    scan = result.raw.metadata["start"]["ptychography"]
    truth = experiment.truth_on(image.origin_m, image.amplitude.shape)
    score = score_mosaic(image, truth, frames["y_m"].to_numpy(), frames["x_m"].to_numpy())
    model = result.metadata["model"]
    return {
        "frames": len(frames),
        "dense_equivalent_frames": scan["dense_equivalent_frames"],
        "step_m": scan["step_m"],
        "sampling": scan["sampling"],
        "phase_mae_rad": round(score.phase_mae_rad, 4),
        "phase_correlation": round(score.phase_correlation, 4),
        "ssim": round(score.ssim, 4),
        "coverage_fraction": round(score.covered_fraction, 4),
        "latency_ms": latency_ms(frames),
        "frames_per_s": frames_per_s(frames),
        "scan_slowdown": round(slowdown, 3),
        "model": f"{model['name']} {model['version']}",
        "device": road.live.status.device,
        "catalog": str(road.server.folder.relative_to(out.resolve())),
        "reconstruction_uid": result.path_parts[-1],
    }


def _query(catalog: Path, uid: str) -> None:
    """Print what a user would type to find the reconstruction, and run exactly that."""
    run_lines(
        [
            "from pathlib import Path",
            "from bluesky_ptychonn import connect, reconstructions",
            f"catalog = connect(Path({str(catalog)!r}))",
            f"found = reconstructions(catalog, raw={uid!r}, status='complete')",
            "found",
            "found[0].phase.read().shape",
            "found[0].frames[['seq_num', 'x_m', 'y_m', 'trust']].head(3)",
            "found[0].raw.metadata['start']['ptychography']['dose_saved_fraction']",
        ]
    )


def run_lines(lines: list[str]) -> None:
    """Print each line as if typed at a prompt, run it, and print what it gives."""
    names: dict[str, Any] = {}
    for line in lines:
        typer.echo(f">>> {line}")
        sys.stdout.flush()
        exec(compile(line, "<query>", "single"), names)


def _draw(result: Any, experiment: Any, report: dict[str, Any], path: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")  # a file is wanted, never a window
    from bluesky_ptychonn.viewer import reconstruction_figure

    image = result.mosaic()
    figure = reconstruction_figure(
        image,
        result.frames,
        f"{report['frames']} frames instead of {report['dense_equivalent_frames']}, a step of "
        f"{report['sampling']:.2f} probe diameters; phase error {report['phase_mae_rad']:.3f} rad, "
        f"correlation {report['phase_correlation']:.3f} (model {report['model']})",
        truth=experiment.truth_on(image.origin_m, image.amplitude.shape),
        probe_diameter_m=experiment.probe_diameter_m,
    )
    figure.savefig(path, dpi=130)
    return path


def _say(report: dict[str, Any], picture: Path, out: Path, took_s: float) -> None:
    latency = report["latency_ms"]
    typer.echo(
        f"\n{report['frames']} frames where overlapping ones would be {report['dense_equivalent_frames']}: "
        f"step {report['step_m'] * 1e6:.3f} µm, {report['sampling']:.2f} of the probe's diameter\n"
        f"phase error {report['phase_mae_rad']:.3f} rad, correlation {report['phase_correlation']:.3f}, SSIM "
        f"{report['ssim']:.3f}, over {report['coverage_fraction']:.0%} of the field\n"
        f"from frame written to reconstruction readable: median {latency['p50']:.0f} ms, 95 % within "
        f"{latency['p95']:.0f} ms; scan slowed down by a factor {report['scan_slowdown']:.3f}\n"
        f"picture {picture}, report {out / REPORT}, {took_s:.0f} s in all\n"
        f"look again: ptychonn view {report['reconstruction_uid'][:8]} --catalog {out / report['catalog']}"
    )

"""``ptychonn demo``: the main job, whole, on a simulated beamline."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bluesky_ptychonn.cli.common.options import GivenOptions, takes_reconstruction_options
from bluesky_ptychonn.live.pipeline.settings import LiveOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bluesky_ptychonn.catalog.results.client import PtychoReconstruction
    from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

PICTURE = "reconstruction.png"
#: The model that comes with the package, made for the simulated beamline.
MODEL = "simulated-zp64"
# What the report says, in this order.
_REPORT = (
    "frames", "dense_equivalent_frames", "step_m", "sampling", "phase_mae_rad", "phase_correlation", "ssim",
    "coverage_fraction", "latency_ms", "frames_per_s", "scan_slowdown", "model", "device", "catalog",
    "reconstruction_uid",
)  # fmt: skip


@takes_reconstruction_options(LiveOptions, without=("geometry", "keys", "raw", "journal_dir"))
def demo(
    out: Annotated[Path, typer.Option(help="folder for catalog, picture and report")] = Path("demo-output"),
    model: Annotated[str, typer.Option(help="name or folder of the model")] = MODEL,
    sample: Annotated[Literal["etched", "cells", "star", "texture"], typer.Option(help="kind of sample")] = "etched",
    seed: Annotated[int, typer.Option(help="of the sample, never seen in training")] = 2026,
    field_um: Annotated[float, typer.Option(help="side of the scanned square, µm")] = 4.5,
    tolerated_error: Annotated[float, typer.Option(help="phase error you accept, rad; sets the step")] = 0.06,
    step_um: Annotated[float | None, typer.Option(help="step, µm, instead of the tolerated error's")] = None,
    exposure_s: Annotated[float, typer.Option(help="time of one exposure, s")] = 0.05,
    *,
    given: GivenOptions,
) -> None:
    """Scan a simulated sample sparsely, reconstruct it while it is scanned, query it, and draw it."""
    from bluesky_ptychonn.beamline.plans import sparse_ptycho_scan
    from bluesky_ptychonn.beamline.sim import SimulatedBeamline
    from bluesky_ptychonn.beamline.start_document import UM, scan_field, spacing
    from bluesky_ptychonn.card import load_card
    from bluesky_ptychonn.cli.common import local_session as local

    # What can be refused is refused before anything is started.
    _, step_m = spacing(model, tolerated_error, step_um, False)
    scan_field(field_um, field_um, step_m / UM, "jittered", 0.1, 0)
    started = time.perf_counter()
    keywords = given.keywords(load_card(model), local.local_options(out))
    typer.echo(f"starting the catalog in {out / local.CATALOG}, and a worker with the model {model} ...")
    with local.open_local_session(out, model, **keywords) as session:
        beamline = SimulatedBeamline.demo(session.frames, sample, seed, exposure_s=exposure_s)
        plan = functools.partial(
            sparse_ptycho_scan,
            [beamline.camera],
            beamline.stage.x,
            beamline.stage.y,
            field_um,
            field_um,
            model=model,
            tolerated_error_rad=tolerated_error,
            step_um=step_um,
            md={"sample": f"simulated {sample}, seed {seed}", "purpose": "demo"},
        )
        # Without, with, without: a machine that grows slower or faster meanwhile counts for neither.
        _, before_s = session.scan(plan(), reconstruct=False, title="scan by itself")
        uid, with_s = session.scan(plan(), title="scan, reconstructing")
        _, after_s = session.scan(plan(), reconstruct=False, title="scan by itself, again")
        result = session.finish(uid)
        slowdown = with_s / ((before_s + after_s) / 2)
        image = result.mosaic()
        truth = beamline.experiment.truth_on(image.origin_m, image.amplitude.shape)
        known = {**session.report(result), **_judge(result, image, truth), "scan_slowdown": round(slowdown, 3)}
        report = {key: known[key] for key in _REPORT}
        _query(out / local.CATALOG, uid)
        picture, diameter_m = out / PICTURE, beamline.experiment.probe_diameter_m
        local.save_picture(picture, result, _title(report), truth=truth, probe_diameter_m=diameter_m)
    typer.echo(f"\n{_summary(report)}")
    took_s = time.perf_counter() - started
    typer.echo(f"picture {picture}, report {local.write_report(out, report)}, {took_s:.0f} s in all")
    typer.echo(f"look again: ptychonn view {report['reconstruction_uid'][:8]} --catalog {out / report['catalog']}")


def _judge(result: PtychoReconstruction, image: MosaicImage, truth: NDArray[np.complex64]) -> dict[str, Any]:
    """Judge the result against the truth, over the covered part of the scanned field, global phase removed."""
    from bluesky_ptychonn.recon.evaluation.simulated_scans import score_mosaic

    score = score_mosaic(image, truth, result.frames["y_m"].to_numpy(), result.frames["x_m"].to_numpy())
    return {
        "dense_equivalent_frames": result.raw.metadata["start"]["ptychography"]["dense_equivalent_frames"],
        "phase_mae_rad": round(score.phase_mae_rad, 4),
        "phase_correlation": round(score.phase_correlation, 4),
        "ssim": round(score.ssim, 4),
        "coverage_fraction": round(score.covered_fraction, 4),
    }


def _query(catalog: Path, uid: str) -> None:
    """Print what a user would type to find the reconstruction, and run exactly that."""
    names: dict[str, Any] = {}
    for line in (
        "from pathlib import Path",
        "from bluesky_ptychonn import connect, reconstructions",
        f"catalog = connect(Path({str(catalog)!r}))",
        f"found = reconstructions(catalog, raw={uid!r}, status='complete')",
        "found",
        "found[0].phase.read().shape",
        "found[0].frames[['seq_num', 'x_m', 'y_m', 'trust']].head(3)",
        "found[0].raw.metadata['start']['ptychography']['dose_saved_fraction']",
    ):
        typer.echo(f">>> {line}")
        sys.stdout.flush()
        exec(compile(line, "<query>", "single"), names)


def _title(report: dict[str, Any]) -> str:
    return (
        f"{report['frames']} frames instead of {report['dense_equivalent_frames']}, a step of "
        f"{report['sampling']:.2f} probe diameters; phase error {report['phase_mae_rad']:.3f} rad, "
        f"correlation {report['phase_correlation']:.3f} (model {report['model']})"
    )


def _summary(report: dict[str, Any]) -> str:
    latency = report["latency_ms"]
    return (
        f"{report['frames']} frames where overlapping ones would be {report['dense_equivalent_frames']}: "
        f"step {report['step_m'] * 1e6:.3f} µm, {report['sampling']:.2f} of the probe's diameter\n"
        f"phase error {report['phase_mae_rad']:.3f} rad, correlation {report['phase_correlation']:.3f}, SSIM "
        f"{report['ssim']:.3f}, over {report['coverage_fraction']:.0%} of the field\n"
        f"from frame written to reconstruction readable: median {latency['p50']:.0f} ms, 95 % within "
        f"{latency['p95']:.0f} ms; scan slowed down by a factor {report['scan_slowdown']:.3f}"
    )

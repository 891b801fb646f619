"""``ptychonn replay``: a measured scan from a CXI file down the same road as a live one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def replay(
    file: Annotated[Path, typer.Argument(help="CXI file with frames, positions and geometry")],
    model: Annotated[str, typer.Option(help="name or folder of the model")],
    every: Annotated[int, typer.Option(help="play every n-th frame")] = 1,
    first: Annotated[int, typer.Option(help="index of the first frame played")] = 0,
    out: Annotated[Path, typer.Option(help="folder for catalog, picture and report")] = Path("replay-output"),
    exposure_s: Annotated[float, typer.Option(help="time of one exposure, s")] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Play a measured scan through RunEngine and catalog, and reconstruct it while it plays."""
    from bluesky_ptychonn.card import load_card
    from bluesky_ptychonn.optics.cxi import read_cxi

    # What can be refused is refused before anything is started.
    card, scan = load_card(model), read_cxi(file)
    card.check_geometry(scan.geometry)
    from bluesky_ptychonn.beamline.replay import ReplayBeamline, replay_scan
    from bluesky_ptychonn.cli.local_session import CATALOG, frames_per_s, latency_ms, open_local_session

    typer.echo(f"starting the catalog in {out / CATALOG}, and a worker with the model {model} ...")
    with open_local_session(out, model, device=device) as road:
        beamline = ReplayBeamline.from_scan(scan, road.frames, exposure_s=exposure_s)
        plan = replay_scan(beamline, every, first, md={"sample": file.stem, "purpose": "replay"})
        uid, took_s = road.scan(plan, words=f"replay, every {every}")
        result = road.finish(uid)
        typer.echo(repr(result))
        for problem in result.problems:
            typer.echo(f"  {problem}")
        import matplotlib as mpl

        mpl.use("Agg")
        from bluesky_ptychonn.viewer import reconstruction_figure

        about, frames = result.raw.metadata["start"]["ptychography"], result.frames
        figure = reconstruction_figure(
            result.mosaic(), frames, repr(result).strip("<>"), probe_diameter_m=about["probe_diameter_m"]
        )
        picture = out / f"{file.stem}-every-{every}.png"
        figure.savefig(picture, dpi=130)
        report = {
            "file": file.name,
            "every": every,
            "frames": len(frames),
            "status": result.status,
            "counts": result.counts,
            "step_m": about["step_m"],
            "sampling": about["sampling"],
            "scan_s": round(took_s, 2),
            "latency_ms": latency_ms(frames),
            "frames_per_s": frames_per_s(frames),
            "model": f"{card.name} {card.version}",
            "device": road.live.status.device,
            "catalog": CATALOG,
            "reconstruction_uid": result.path_parts[-1],
        }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"picture {picture}, report {out / 'report.json'}")

"""``ptychonn replay``: a measured scan from a CXI file, reconstructed as a live one is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bluesky_ptychonn.cli.catalogs import echo_result
from bluesky_ptychonn.cli.options import GivenOptions, ProbeOption, takes_reconstruction_options, with_probe
from bluesky_ptychonn.live.pipeline.settings import LiveOptions


@takes_reconstruction_options(LiveOptions, without=("raw", "journal_dir"))
def replay(
    file: Annotated[Path, typer.Argument(help="CXI file with frames, positions and geometry")],
    model: Annotated[str, typer.Option(help="name or folder of the model")],
    every: Annotated[int, typer.Option(help="play every n-th frame")] = 1,
    first: Annotated[int, typer.Option(help="index of the first frame played")] = 0,
    out: Annotated[Path, typer.Option(help="folder for catalog, picture and report")] = Path("replay-output"),
    exposure_s: Annotated[float, typer.Option(help="time of one exposure, s")] = 0.0,
    probe: ProbeOption = None,
    *,
    given: GivenOptions,
) -> None:
    """Play a measured scan through RunEngine and catalog, and reconstruct it while it plays."""
    from bluesky_ptychonn.card import load_card
    from bluesky_ptychonn.cli import local_session as local
    from bluesky_ptychonn.optics.cxi import read_cxi

    # What can be refused is refused before anything is started.
    card, scan = load_card(model), read_cxi(file)
    keywords = given.keywords(card, local.local_options(out), scan.geometry.model_dump())
    at_work: Any = model
    geometry = keywords.get("geometry", scan.geometry)
    if probe is not None:
        at_work = with_probe(model, probe, geometry, keywords)
        card = at_work.card
    card.prepared_by(keywords.get("preprocess")).check_geometry(geometry)
    from bluesky_ptychonn.beamline.replay import ReplayBeamline, replay_scan

    typer.echo(f"starting the catalog in {out / local.CATALOG}, and a worker with the model {model} ...")
    with local.open_local_session(out, at_work, **keywords) as session:
        beamline = ReplayBeamline.from_scan(scan, session.frames, exposure_s=exposure_s)
        plan = replay_scan(beamline, every, first, md={"sample": file.stem, "purpose": "replay"})
        uid, took_s = session.scan(plan, title=f"replay, every {every}")
        result = session.finish(uid)
        echo_result(result)
        picture = out / f"{file.stem}-every-{every}.png"
        local.save_picture(picture, result, repr(result).strip("<>"), probe_diameter_m=beamline.camera.probe_diameter_m)
        report = {
            "file": file.name,
            "every": every,
            "status": result.status,
            "counts": result.counts,
            "scan_s": round(took_s, 2),
            **session.report(result),
        }
    typer.echo(f"picture {picture}, report {local.write_report(out, report)}")

"""``ptychonn replay``: a measured scan from a CXI file, reconstructed as a live one is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bluesky_ptychonn.cli.common.catalogs import echo_result
from bluesky_ptychonn.cli.common.options import (
    GivenOptions,
    ProbeOption,
    ProbePixelOption,
    takes_reconstruction_options,
    with_probe,
)
from bluesky_ptychonn.live.pipeline.settings import LiveOptions
from bluesky_ptychonn.optics.geometry import Geometry


@takes_reconstruction_options(LiveOptions, without=("raw", "journal_dir"))
def replay(
    file: Annotated[Path, typer.Argument(help="CXI file with frames, positions and geometry")],
    model: Annotated[str, typer.Option(help="name or folder of the model")],
    every: Annotated[int, typer.Option(help="play one frame in n, spread evenly over the scanned area")] = 1,
    first: Annotated[int, typer.Option(help="index of the first frame played")] = 0,
    out: Annotated[Path, typer.Option(help="folder for catalog, picture and report")] = Path("replay-output"),
    exposure_s: Annotated[float, typer.Option(help="time of one exposure, s")] = 0.0,
    entry: Annotated[str | None, typer.Option(help="of the file, where several hold frames")] = None,
    probe: ProbeOption = None,
    probe_pixel_m: ProbePixelOption = None,
    *,
    given: GivenOptions,
) -> None:
    """Play a measured scan through RunEngine and catalog, and reconstruct it while it plays."""
    from bluesky_ptychonn.card import load_card
    from bluesky_ptychonn.cli.common import local_session as local
    from bluesky_ptychonn.optics.cxi import read_cxi

    # What can be refused is refused before anything is started.
    card = load_card(model)
    framing = given.framing(card)
    # Cut and binned while they are read, so that the catalog holds frames as the network wants them.
    reading = {} if framing is None else {name: getattr(framing, name) for name in ("crop", "bin", "centre")}
    scan = read_cxi(file, entry=entry, **reading)
    keywords = given.keywords(card, local.local_options(out), scan.geometry.model_dump())
    if framing is not None:
        keywords["preprocess"] = framing.model_copy(update={"crop": None, "bin": 1, "centre": None})
    at_work: Any = model
    geometry = keywords.get("geometry", scan.geometry)
    if probe is not None:
        recorded = geometry if framing is None else _recorded(file, entry) or geometry
        if recorded is not geometry and "geometry" in keywords:
            recorded = given.keywords(card, recorded=recorded.model_dump())["geometry"]
        whole = keywords.get("preprocess") if recorded is geometry else framing
        at_work = with_probe(model, probe, recorded, whole, probe_pixel_m)
        card = at_work.card
    used = card.prepared_by(keywords.get("preprocess"))
    used.check_geometry(geometry)
    scan.check_masked(used.input.preprocess.rejected_fraction)
    _check_mask(keywords.get("mask"), scan.geometry.frame_shape)
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
        report = {"file": file.name, "every": every, "status": result.status, "counts": result.counts}
        report |= {"scan_s": round(took_s, 2), **session.report(result)}
    typer.echo(f"picture {picture}, report {local.write_report(out, report)}")


def _check_mask(mask: Path | None, frame_shape: tuple[int, int]) -> None:
    """Refuse a mask of another size than the frames that are played."""
    from bluesky_ptychonn.optics.mask_file import read_mask

    if mask is not None and (shape := read_mask(mask).shape) != frame_shape:
        raise ValueError(f"{mask.name}: a mask of {shape} px; the frames that are played have {frame_shape}")


def _recorded(file: Path, entry: str | None) -> Geometry | None:
    """Geometry of the frames as they are in the file; None where they are not square."""
    from bluesky_ptychonn.optics.cxi import read_cxi

    try:
        return read_cxi(file, entry=entry, check_far_field=False).geometry
    except ValueError:
        return None

"""``ptychonn serve``: a catalog on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bluesky_ptychonn.cli.learn import stop_signals


def serve(
    folder: Annotated[Path, typer.Argument(help="where databases and arrays lie; made if absent")],
    readable: Annotated[
        list[Path] | None, typer.Option(help="folder with the detector's files that the server may read; repeat it")
    ] = None,
    port: Annotated[int, typer.Option(help="TCP port on loopback; 0 takes the last one again, or any")] = 0,
    profile: Annotated[str | None, typer.Option(help="also write a Tiled profile of this name")] = None,
    subscriptions: Annotated[bool, typer.Option("--subscriptions", help="offer Tiled subscriptions")] = False,
) -> None:
    """Serve a catalog until Ctrl-C: raw runs, reconstructions, models."""
    from bluesky_ptychonn.catalog.connection.server import serve_catalog
    from bluesky_ptychonn.cli.common.local_session import FRAMES

    allowed = [folder / FRAMES, *(readable or [])]
    with (
        stop_signals() as over,
        serve_catalog(folder, port=port, readable=allowed, profile=profile, subscriptions=subscriptions) as server,
    ):
        typer.echo(f"serving {folder} at {server.uri}")
        typer.echo(
            f"reached by: connect(Path({str(server.folder)!r}))" + (f", or connect({profile!r})" if profile else "")
        )
        typer.echo("end it with Ctrl-C")
        while not over.wait(0.5):
            if not server.running:
                raise RuntimeError(f"the server stopped by itself; see {server.folder / 'server.log'}")
    typer.echo("stopped; everything written stays")

"""``ptychonn status``: what the live reconstructions of this user are doing, from any shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(
    journal: Annotated[
        Path | None, typer.Option(help="folder of sessions, where the configuration sets another than the user's own")
    ] = None,
    sessions: Annotated[int, typer.Option(help="how many, newest first", min=1)] = 3,
    runs: Annotated[int, typer.Option(help="how many runs of each, newest last", min=1)] = 5,
) -> None:
    """Say of each session whether its worker is alive, and of each run what is done, waiting, rejected and wrong."""
    from bluesky_ptychonn.stream.session import find_sessions, journal_root

    root = (journal or journal_root()).expanduser()
    found = find_sessions(root)
    if not found:
        typer.echo(f"no session of live reconstruction in {root}")
    for session in found[:sessions]:
        typer.echo(f"{session.folder.name}, {session.catalog}")
        worker = session.worker
        alive = f"worker {worker.state}, process {worker.pid}" if session.alive else "no worker"
        typer.echo(f"  {alive}" + (f", on {worker.device}" if worker.device and session.alive else ""))
        if session.unfinished:
            typer.echo(
                f"  {session.unfinished} runs not finished" + ("" if session.alive else ", taken up by the next")
            )
        for run in list(worker.runs.values())[-runs:]:
            typer.echo(f"  scan {run.scan_id}: {run}")
        if worker.problem:
            typer.echo(f"  last problem: {worker.problem}")
        typer.echo(f"  log: {session.log}")

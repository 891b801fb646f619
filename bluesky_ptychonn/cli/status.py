"""``ptychonn status``: what the live reconstructions of this user are doing, from any shell."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer


def status(
    journal: Annotated[
        Path | None, typer.Option(help="folder of sessions, where the configuration sets another than the user's own")
    ] = None,
    sessions: Annotated[int, typer.Option(help="how many, newest first", min=1)] = 3,
    runs: Annotated[int, typer.Option(help="how many runs of each, newest last", min=1)] = 5,
    backup: Annotated[
        Path | None,
        typer.Option(help="folder where raw runs wait for the catalog; the configuration's, where there is one"),
    ] = None,
) -> None:
    """Say of each session whether its worker is alive, and of each run what is done, waiting, rejected and wrong.

    And which raw runs are not whole in the catalog yet.
    """
    from bluesky_ptychonn.live.pipeline.progress import Status
    from bluesky_ptychonn.live.pipeline.settings import SPOOL
    from bluesky_ptychonn.live.session import LOG, SILENT_S, find_sessions
    from bluesky_ptychonn.paths import journal_root

    root = (journal or journal_root()).expanduser()
    found = find_sessions(root)
    if not found:
        typer.echo(f"no session of live reconstruction in {root}")
    for session in found[:sessions]:
        typer.echo(f"{session.folder.name}, {session.catalog}")
        worker = session.worker
        alive = f"worker {worker.state}, process {worker.pid}" if session.alive else "no worker"
        if session.alive and session.silent_s > SILENT_S:
            alive += f", says nothing for {session.silent_s:.0f} s"
        typer.echo(f"  {alive}" + (f", on {worker.device}" if worker.device and session.alive else ""))
        if session.unfinished:
            typer.echo(
                f"  {session.unfinished} runs not finished" + ("" if session.alive else ", taken up by the next")
            )
        for run in list(worker.runs.values())[-runs:]:
            typer.echo(f"  scan {run.scan_id}: {run}")
        totals = Status(worker.state, runs=worker.runs)
        if totals.spooled:
            where = f"{totals.spool_bytes / 2**20:.1f} MiB in {session.folder / SPOOL}"
            typer.echo(f"  {totals.spooled} frames on disk until the catalog takes them, {where}")
        if worker.problem:
            typer.echo(f"  last problem: {worker.problem}")
        typer.echo(f"  log: {session.folder / LOG}")
    _echo_waiting_raw_runs(backup)


def _echo_waiting_raw_runs(backup: Path | None) -> None:
    from bluesky_ptychonn.config import Config
    from bluesky_ptychonn.journal.append_file import run_files

    if backup is None:
        with contextlib.suppress(ValueError):  # no configuration: whoever has a backup folder names it
            backup = Config.load().catalog.backup_folder
    waiting = [] if backup is None else run_files(backup.expanduser())
    if waiting:
        typer.echo(f"{len(waiting)} raw runs not whole in the catalog yet, in {backup}:")
    for path in waiting:
        typer.echo(f"  {path.stem}")

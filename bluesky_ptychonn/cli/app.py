"""Put the commands together, and end every foreseeable error in one sentence."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from bluesky_ptychonn import __version__
from bluesky_ptychonn.cli.demo import demo
from bluesky_ptychonn.cli.export import export
from bluesky_ptychonn.cli.label import label
from bluesky_ptychonn.cli.learn import learn
from bluesky_ptychonn.cli.models.app import models
from bluesky_ptychonn.cli.reconstruct import backfill, reconstruct
from bluesky_ptychonn.cli.recover import recover
from bluesky_ptychonn.cli.replay import replay
from bluesky_ptychonn.cli.serve import serve
from bluesky_ptychonn.cli.status import status
from bluesky_ptychonn.cli.train import train
from bluesky_ptychonn.cli.view import view
from bluesky_ptychonn.paths import named_config
from bluesky_ptychonn.processors import wait_passively

#: Set to see the traceback behind an error's sentence.
TRACEBACK_VARIABLE = "PTYCHONN_TRACEBACK"

app = typer.Typer(
    name="ptychonn",
    help="Live neural ptychography for Bluesky: reconstruct while you scan, and scan only as densely as needed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _command in (demo, reconstruct, replay, train, serve, export, view, recover, backfill, label, learn, status):
    app.command()(_command)
app.add_typer(models, name="models")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ptychonn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="say it and end")
    ] = False,
) -> None:
    """Take what stands before the command."""
    named_config()  # a configuration that is not there is no command's, whether it would read it or not


def main() -> None:
    """Run the command line; an error a user can mend is one sentence on stderr and exit code 2."""
    wait_passively()  # before any command imports torch
    try:
        app()
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        sys.stderr.write(f"ptychonn: {sentence(error)}\n")
        raise SystemExit(2) from None


def sentence(error: BaseException) -> str:
    """Say an error in one line."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(message.split()) or type(error).__name__

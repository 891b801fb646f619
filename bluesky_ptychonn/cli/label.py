"""``ptychonn label``: what an iterative solver makes of an overlapped run."""

from __future__ import annotations

from typing import Annotated

import typer

from bluesky_ptychonn.cli.common.catalogs import CatalogOption, RunArgument, open_catalog, run_key
from bluesky_ptychonn.cli.common.options import GivenOptions, takes_reconstruction_options


@takes_reconstruction_options(only=("geometry", "keys", "preprocess", "raw"))
def label(
    catalog: CatalogOption,
    run: RunArgument,
    model: Annotated[str | None, typer.Option(help="name or folder of the model whose probe to use")] = None,
    probe: Annotated[str | None, typer.Option(help="or a file with the probe: .npy, .npz, .cxi, .h5")] = None,
    epochs: Annotated[int | None, typer.Option(help="how long to solve; by default as long as it helps")] = None,
    refine_probe: Annotated[bool, typer.Option(help="let the solver find the probe too, from the one given")] = False,
    most_sampling: Annotated[
        float | None, typer.Option(help="step over probe diameter up to which a run is dense enough; by default 0.4")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    again: Annotated[bool, typer.Option(help="make it anew where it is there")] = False,
    *,
    given: GivenOptions,
) -> None:
    """Let an iterative solver (pty-chi) reconstruct an overlapped run, and keep the label in the same catalog.

    pty-chi is not installed with this package. Give it an interpreter of its own (python -m venv ~/peer, then
    ~/peer/bin/pip install ptychi==2.2.0) and name that in PTYCHONN_PEER_PYTHON.
    """
    from bluesky_ptychonn.card import load_card
    from bluesky_ptychonn.catalog.runs.measured import ProbeSetup
    from bluesky_ptychonn.catalog.runs.stored_documents import find_run
    from bluesky_ptychonn.live.batch.label import label as make_label
    from bluesky_ptychonn.recon.solver.labelling import MOST_SAMPLING

    ProbeSetup.from_source(model, probe)  # an unknown model or file is said before a server is started
    with open_catalog(catalog) as root:
        stored = find_run(root, run_key(run), given.get("raw"))
        said = stored.metadata["start"].get("ptychography") or {}
        keywords = given.keywords(None if model is None else load_card(model), recorded=said.get("geometry"))
        typer.echo("solving, which takes from seconds to many minutes ...")
        result = make_label(
            stored,
            root,
            model=model,
            probe=probe,
            epochs=epochs,
            refine_probe=refine_probe,
            most_sampling=MOST_SAMPLING if most_sampling is None else most_sampling,
            device=device,
            again=again,
            **keywords,
        )
        typer.echo(repr(result))
        metadata = result.metadata
        solver, counts = metadata["solver"], metadata["counts"]
        typer.echo(
            f"  {solver['seconds']:.1f} s, loss {solver['first_loss']:.4f} to {solver['loss']:.4f}, "
            f"step {metadata['sampling']:.2f} of the probe's diameter"
        )
        for reason, number in counts["rejected"].items():
            typer.echo(f"  {number} frames left out: {reason}")
        typer.echo(f"in the catalog as processed/{result.path_parts[-1]}")

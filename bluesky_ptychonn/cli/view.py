"""``ptychonn view``: the picture of a reconstruction."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from bluesky_ptychonn.cli.common.catalogs import (
    CatalogOption,
    ReconstructionArgument,
    echo_result,
    find_reconstruction,
    open_catalog,
    refused_later,
)
from bluesky_ptychonn.cli.export import check_output


def view(
    catalog: CatalogOption,
    which: ReconstructionArgument = "latest",
    out: Annotated[Path | None, typer.Option(help="picture file (.png, .pdf, .svg); by default <uid>.png")] = None,
    window: Annotated[bool, typer.Option("--window", help="open a window instead of writing a file")] = False,
) -> None:
    """Draw phase, amplitude, trust, coverage and scan points of a reconstruction."""
    import matplotlib as mpl

    if not window:
        mpl.use("Agg")
    if out is not None and not window:
        _check_picture(out)
    from bluesky_ptychonn.viewer import reconstruction_figure

    with open_catalog(catalog) as root:
        result = find_reconstruction(root, which)
        echo_result(result, *(refused_later(root, result) if which == "latest" else []))
        scan: dict[str, Any] = {}
        with contextlib.suppress(LookupError):  # the run may be in another catalog
            scan = result.raw.metadata["start"].get("ptychography") or {}
        figure = reconstruction_figure(
            result.mosaic(),
            result.frames,
            repr(result).strip("<>"),
            probe_diameter_m=scan.get("probe_diameter_m"),
        )
        name = f"{result.path_parts[-1][:8]}.png"
    if window:
        import matplotlib.pyplot as plt

        plt.show()
        return
    path = out or Path(name)
    figure.savefig(path, dpi=150)
    typer.echo(f"picture in {path}")


def _check_picture(path: Path) -> None:
    """Refuse, in words (ValueError), a file that no picture can be written to."""
    from matplotlib.backend_bases import FigureCanvasBase

    check_output(path)
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in known:
        raise ValueError(
            f"view: {path.name!r} has no suffix of a picture; allowed: {', '.join(f'.{s}' for s in known)}"
        )

"""``ptychonn models import`` and ``export``: models from and into files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_ptychonn.cli.common.catalogs import AlsoCatalogOption, ModelArgument, open_registry, split_name

if TYPE_CHECKING:
    from bluesky_ptychonn.recon.models.upstream.input_step import InputStep

_CHECKPOINTS = (".pth", ".pt", ".safetensors", ".ckpt")


def import_model(
    source: Annotated[
        Path, typer.Argument(help="folder of a model, .zip made by export, or an upstream PtychoNN state dict (.pth)")
    ],
    name: Annotated[str | None, typer.Option(help="name of the model; by default its own, or the file's")] = None,
    to: Annotated[Path | None, typer.Option(help="folder of models; by default the user's")] = None,
    object_pixel_nm: Annotated[
        float | None, typer.Option(help="state dict: object pixel it was trained at, nm; it does not say itself")
    ] = None,
    frame_size: Annotated[
        int | None, typer.Option(help="state dict: side of its frames, px; by default 64 for 3 blocks, 128 for more")
    ] = None,
    crop: Annotated[int | None, typer.Option(help="state dict: side cut from the recorded frame, px")] = None,
    resize: Annotated[int | None, typer.Option(help="state dict: side the cut is resized to, px")] = None,
    count_threshold: Annotated[float, typer.Option(help="state dict: counts below it become 0")] = 0.0,
    input_scale: Annotated[float, typer.Option(help="state dict: what its input is divided by")] = 1.0,
    input_root: Annotated[bool, typer.Option(help="state dict: it takes the square root of counts")] = False,
    input_mean: Annotated[
        str | None, typer.Option(help="state dict: what is subtracted from its input, .npy of a pattern, or a number")
    ] = None,
    input_deviation: Annotated[
        str | None, typer.Option(help="state dict: what divides it then, .npy of a pattern, or a number")
    ] = None,
    input_counts: Annotated[
        bool, typer.Option("--input-counts", help="state dict: counts go in as they are, nothing is done to them")
    ] = False,
    counts: Annotated[
        tuple[float, float] | None, typer.Option(help="state dict: lowest and highest counts of a frame in training")
    ] = None,
) -> None:
    """Take a model into the user's models, after checking it. No code in a file is ever run.

    A model that is there already stays as it is; another one of the same name and version gets the next version.
    """
    from bluesky_ptychonn.recon.models.checkpoint import load_model
    from bluesky_ptychonn.recon.models.library import check_name, place, read_folder, users_folder

    if name is not None:
        check_name(name)
    if not source.exists():
        raise ValueError(
            f"import: {source} does not exist; give a model's folder, a .zip made by export, or a .pth file"
        )
    with tempfile.TemporaryDirectory(prefix="ptychonn-import-") as scratch:
        folder = source
        if source.is_file() and source.suffix.lower() == ".zip":
            from bluesky_ptychonn.recon.models.archive import unpack

            folder = place(*unpack(source), Path(scratch))
        elif source.is_file() and source.suffix.lower() in _CHECKPOINTS:
            folder = _import_state_dict(
                source,
                Path(scratch) / "imported",
                object_pixel_nm,
                crop,
                resize,
                count_threshold,
                name=name or _name_from(source),
                frame_size=frame_size,
                counts_per_frame=counts,
                input_step=_input_step(input_root, input_mean, input_deviation, input_scale, said=input_counts),
            )
        elif not source.is_dir():
            raise ValueError(
                f"import: {source.name!r} is neither a model's folder, nor a .zip, nor a state dict "
                f"({', '.join(_CHECKPOINTS)})"
            )
        card, data = read_folder(folder)
        load_model(folder, "cpu")  # weights for another network than the card's are refused now, not in a scan
        if name is not None:
            card = card.model_copy(update={"name": name})
        placed = place(card, data, to or users_folder(), when_taken="next")
    typer.echo(f"{card.name}/{placed.name} in {placed}")
    if card.training.get("unknown"):
        typer.echo(f"unknown: {'; '.join(map(str, card.training['unknown']))}")


def _input_step(root: bool, mean: str | None, deviation: str | None, scale: float, *, said: bool) -> InputStep | None:
    """Make the step before a network of what was given; None for nothing, which is unknown."""
    from bluesky_ptychonn.recon.models.upstream.input_step import InputStep, number_or_file

    step = InputStep(root, number_or_file(mean, "--input-mean"), number_or_file(deviation, "--input-deviation"), scale)
    something = step.words != InputStep().words
    if said and something:
        raise ValueError(f"import: --input-counts says that nothing is done to counts, the others {step.words}: choose")
    return step if said or something else None


def _import_state_dict(
    source: Path,
    folder: Path,
    object_pixel_nm: float | None,
    crop: int | None,
    resize: int | None,
    count_threshold: float,
    **options: Any,
) -> Path:
    """Write the model of an upstream state dict into `folder`, which is returned; see `import_upstream`."""
    from bluesky_ptychonn.optics.framing import PreprocessConfig
    from bluesky_ptychonn.recon.models.upstream.importer import import_upstream

    if object_pixel_nm is None:
        raise ValueError(f"import: {source} does not say the object pixel it was trained at; give --object-pixel-nm")
    preprocess = None
    if crop is not None or resize is not None or count_threshold > 0:
        preprocess = PreprocessConfig(crop=crop, resize=resize, count_threshold=count_threshold)
    import_upstream(
        source,
        folder,
        object_pixel_m=object_pixel_nm * 1e-9,
        preprocess=preprocess,
        command=f"ptychonn models import {source.name}",
        **options,
    )
    return folder


def _name_from(source: Path) -> str:
    """Name for a checkpoint: its file's, in the characters that a name may have."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._+-") else "-" for c in source.stem).lstrip("._+-")[:80]


def export(
    name: ModelArgument,
    to: Annotated[Path, typer.Option(help="file: .zip")],
    catalog: AlsoCatalogOption = None,
) -> None:
    """Write a model into a .zip to send to somebody, who imports it; with a catalog, the one that is there."""
    from bluesky_ptychonn.card import find_model
    from bluesky_ptychonn.recon.models.archive import pack
    from bluesky_ptychonn.recon.models.library import read_folder

    if catalog is None:
        card, data = read_folder(find_model(name))
    else:
        with open_registry(catalog) as registry, tempfile.TemporaryDirectory(prefix="ptychonn-export-") as scratch:
            card, data = read_folder(registry.fetch(*split_name(name), to=scratch))
    pack(card, data, to)
    typer.echo(f"{card.name} {card.version} in {to}, {to.stat().st_size} bytes")

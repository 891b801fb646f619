"""``ptychonn export``: a reconstruction as a file that other programs read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from bluesky_ptychonn.cli.common.catalogs import (
    CatalogOption,
    ReconstructionArgument,
    find_reconstruction,
    open_catalog,
)

if TYPE_CHECKING:
    import pandas as pd

    from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage


_ARRAYS = ("amplitude", "phase", "coverage", "trust")


def export(
    catalog: CatalogOption,
    to: Annotated[Path, typer.Option(help="file: .cxi or .h5 (CXI), .npz (NumPy), .tif (float32 pages)")],
    which: ReconstructionArgument = "latest",
) -> None:
    """Write a reconstruction into a file, with its positions, pixel size and where it came from."""
    write = writer_for(to)
    check_output(to)
    with open_catalog(catalog) as root:
        result = find_reconstruction(root, which)
        write(to, result.mosaic(), result.frames, dict(result.metadata))
        typer.echo(f"{result!r}\nin {to}")


def check_output(path: Path) -> None:
    """Refuse, in words (ValueError) and before any work, a file that cannot be written."""
    folder = path.expanduser().absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{path}: there is no folder {folder}; make it, or name a file elsewhere")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{path}: may not be written to; name a file elsewhere")


Writer = Callable[[Path, "MosaicImage", "pd.DataFrame", dict[str, Any]], None]


def writer_for(path: Path) -> Writer:
    """Choose by suffix; ValueError for one that nobody here writes."""
    writers: dict[str, Writer] = {
        ".cxi": write_cxi,
        ".h5": write_cxi,
        ".hdf5": write_cxi,
        ".npz": write_npz,
        ".tif": write_tiff,
        ".tiff": write_tiff,
    }
    try:
        return writers[path.suffix.lower()]
    except KeyError:
        raise ValueError(
            f"export: {path.name!r} has no suffix of a format written here; allowed: {', '.join(writers)}"
        ) from None


def write_cxi(path: Path, image: MosaicImage, frames: pd.DataFrame, metadata: dict[str, Any]) -> None:
    """Write CXI 1.6: complex object, trust, coverage, positions; NaN where not covered.

    Pixel size in m as `x_pixel_size` and `y_pixel_size`, place of the middle of pixel [0, 0] as `origin` (x, y, z).
    """
    import h5py

    positions = np.stack([frames["x_m"], frames["y_m"], np.zeros(len(frames))], axis=1)
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        entry = file.create_group("entry_1")
        entry["title"] = "ptychographic reconstruction"
        picture = entry.create_group("image_1")
        picture.create_dataset("data", data=image.complex, compression="gzip", shuffle=True)
        picture.create_dataset("mask", data=np.where(np.isfinite(image.phase), 0, 1).astype(np.uint32))
        for name in _ARRAYS:
            picture.create_dataset(name, data=getattr(image, name), compression="gzip", shuffle=True)
        picture["phase"].attrs["units"] = "rad"
        picture["data_type"], picture["data_space"] = "complex transmission", "real"
        picture["x_pixel_size"] = picture["y_pixel_size"] = image.pixel_m
        picture["origin"] = np.array([image.origin_m[1], image.origin_m[0], 0.0])
        picture["metadata"] = json.dumps(metadata, default=str)
        entry["data_1"] = h5py.SoftLink("/entry_1/image_1")
        entry["sample_1/geometry_1/translation"] = positions
        entry["process_1/command"] = "ptychonn"


def write_npz(path: Path, image: MosaicImage, frames: pd.DataFrame, metadata: dict[str, Any]) -> None:
    """Write NumPy arrays ``amplitude, phase, coverage, trust, origin_m, pixel_m, x_m, y_m, frame_trust, metadata``."""
    np.savez_compressed(
        path,
        **{name: getattr(image, name) for name in _ARRAYS},
        origin_m=np.array(image.origin_m),
        pixel_m=np.array(image.pixel_m),
        x_m=frames["x_m"].to_numpy(),
        y_m=frames["y_m"].to_numpy(),
        frame_trust=frames["trust"].to_numpy(),
        metadata=np.array(json.dumps(metadata, default=str)),
    )


def write_tiff(path: Path, image: MosaicImage, frames: pd.DataFrame, metadata: dict[str, Any]) -> None:
    """Write ImageJ pages amplitude, phase (rad), coverage and trust as float32; pixel size in µm."""
    import tifffile

    pages = np.stack([getattr(image, name) for name in _ARRAYS]).astype(np.float32)
    per_um = 1e-6 / image.pixel_m
    imagej = {
        "axes": "CYX",
        "unit": "um",
        "Labels": ["amplitude", "phase (rad)", "coverage", "trust"],
        "Info": json.dumps(metadata, default=str),
    }
    tifffile.imwrite(path, pages, imagej=True, resolution=(per_um, per_um), metadata=imagej)

"""Valid inputs to be spoilt: a scan, CXI files, models; and how an HDF5 file is spoilt."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mutations import spoil_bytes


def small_scan() -> Any:
    """Make a small labelled scan, 12 frames of 16 px."""
    from bluesky_ptychonn.optics.geometry import Geometry
    from bluesky_ptychonn.optics.simulate import zone_plate_probe
    from bluesky_ptychonn.recon.data.scans import LabelledScan

    rng = np.random.default_rng(0)
    geometry = Geometry(energy_ev=8800, distance_m=2.0, pixel_pitch_m=75e-6, frame_shape=(16, 16))
    probe = zone_plate_probe((16, 16), 8)
    y_m, x_m = rng.uniform(-1e-6, 1e-6, (2, 12))
    counts = rng.poisson(5, (12, 16, 16)).astype(np.float32)
    pixel = geometry.object_pixel_m
    thing, light = np.ones((24, 24), np.complex64), np.ones((24, 24), np.float32)
    return LabelledScan(counts, y_m, x_m, probe, geometry, "seed", thing, (0.0, 0.0), pixel, light, "nobody")


def cxi_seeds() -> list[bytes]:
    """Make CXI files of that scan, plain, and compressed in chunks with all that the format says of a detector."""
    import h5py

    scan, seeds = small_scan(), []
    for options in ({}, {"chunks": (1, 16, 16), "compression": "gzip", "shuffle": True}):
        out = io.BytesIO()
        with h5py.File(out, "w") as file:
            entry = file.create_group("entry_1")
            entry.create_dataset("data_1/data", data=scan.counts.astype(np.uint16), **options)
            entry["data_1/translation"] = np.stack([scan.x_m, scan.y_m, 0 * scan.y_m], 1)
            entry["instrument_1/source_1/energy"] = 8800 * 1.602176634e-19
            entry["instrument_1/source_1/illumination"] = scan.probe[None]
            for name, value in (("distance", 2.0), ("x_pixel_size", 75e-6), ("y_pixel_size", 75e-6)):
                entry[f"instrument_1/detector_1/{name}"] = value
            entry["instrument_1/detector_1/mask"] = np.zeros((16, 16), np.uint32)
            if options:
                entry["data_1/translation"].attrs["units"] = "m"
                for name, said in (
                    ("basis_vectors", [[0.0, -75e-6, 0], [-75e-6, 0, 0]]),
                    ("corner_position", [8 * 75e-6, 8 * 75e-6, 2.0]),
                    ("data_dark", np.zeros((2, 16, 16))),
                    ("data_white", np.full((16, 16), 50.0)),
                    ("counts_per_joule", 1 / (8800 * 1.602176634e-19)),
                ):
                    entry[f"instrument_1/detector_1/{name}"] = said
        seeds.append(out.getvalue())
    return seeds


def small_models(folder: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Cards and weights of a small lifted and a small direct model."""
    import torch

    from bluesky_ptychonn.card import InputContract, ModelCard, ProbeReference
    from bluesky_ptychonn.recon.models.checkpoint import save_model
    from bluesky_ptychonn.recon.networks.direct import DirectConfig
    from bluesky_ptychonn.recon.networks.families import build_network
    from bluesky_ptychonn.recon.networks.lifted import LiftedConfig

    torch.manual_seed(0)
    scan = small_scan()
    pixel = scan.geometry.object_pixel_m
    lifted = LiftedConfig(frame_size=16, patch_size=16, lift_steps=1, stage_steps=0, stages=1, width=4)
    direct = DirectConfig(frame_size=16, patch_size=16, encoder_channels=(2, 2), decoder_channels=(2, 2))
    models = []
    for config, light in ((lifted, scan.probe), (direct, None)):
        card = ModelCard(
            name="seed",
            version="1",
            family=config.family,
            network=config.model_dump(mode="json"),
            input=InputContract(
                frame_shape=(16, 16), patch_shape=(16, 16), object_pixel_m=pixel, counts_per_frame=(1.0, 1e6)
            ),
            probe=None if light is None else ProbeReference.from_probe(light, pixel, "seed"),
            weights_sha256="0" * 64,
        )
        home = folder / config.family
        save_model(home, build_network(config), card, light)
        models.append((json.loads((home / "card.json").read_text()), (home / "model.safetensors").read_bytes()))
    return models


def spoil_hdf5(path: Path, data: bytes, rng: random.Random) -> None:
    """Write a spoilt HDF5 file: its bytes, or what stands in it."""
    import h5py

    path.write_bytes(spoil_bytes(data, rng, data[::-1]) if rng.random() < 0.5 else data)
    if path.read_bytes() != data:
        return
    with h5py.File(path, "r+") as file:
        for _ in range(rng.randint(1, 3)):
            names: list[str] = []
            file.visit(names.append)
            if not names:
                return
            name, other = rng.choice(names), rng.choice(names)
            if rng.random() < 0.8 and name in file:
                del file[name]
            if name in file:
                continue
            _replace(file, name, other, rng)


def _replace(file: Any, name: str, other: str, rng: random.Random) -> None:
    import h5py

    match rng.randrange(9):
        case 0:
            file[name] = h5py.SoftLink(rng.choice((f"/{other}", f"/{name}", "/nowhere")))
        case 1:
            file[name] = h5py.ExternalLink(rng.choice(("/etc/passwd", "nowhere.h5", file.filename)), f"/{other}")
        case 2:
            file.create_group(name)
        case 3:
            shape = rng.choice(((1 << 40, 16, 16), (12, 1 << 20, 1 << 20), (0, 16, 16), (12, 0, 16), (1 << 40, 3), ()))
            chunks = tuple(min(16, max(1, n)) for n in shape) or None
            kind = rng.choice(("u2", "f8", "c8", "S5", "V7", "f2", "i8", "c16"))
            file.create_dataset(name, shape, kind, chunks=chunks)  # nothing is stored, so it may be any size
        case 4:
            file[name] = rng.choice(("word", b"\xff", np.nan, np.inf, -1.0, 0, 1e300, 1 + 2j, [], [1.0, 2.0], True))
        case 5:
            file[name] = h5py.Empty(rng.choice(("f4", "S10")))
        case 6:
            shape = rng.choice(((12, 16, 16), (12, 3), (12, 2), (11, 3), (16, 16), (3, 16, 16), (12, 4, 4), (0, 3)))
            values = np.full(shape, rng.choice((np.nan, np.inf, -1.0, 0.0, 1e308, 1.0)))
            file[name] = values.astype(rng.choice(("f8", "f4", "c16", "S9")))
        case 7:
            file[name] = np.zeros(12, [("x", "f8"), ("y", "S4")])
        case _:
            file[name] = np.array(file.ref, h5py.ref_dtype)

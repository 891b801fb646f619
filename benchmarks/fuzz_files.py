"""Parsers of files, each with valid seeds and the ways to spoil them."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz_seeds import cxi_seeds, small_models, small_scan, spoil_hdf5
from benchmarks.mutations import (
    NASTY,
    spelled,
    spoil_bytes,
    spoil_json,
    spoil_npy,
    spoil_safetensors,
    spoil_toml,
    spoil_tree,
    spoil_zip,
)

Target = Callable[[random.Random], bool]


def cxi(folder: Path) -> Target:
    """`optics.cxi.read_cxi`, and the frames of what it took."""
    from bluesky_ptychonn.optics.cxi import read_cxi

    seeds, path = cxi_seeds(), folder / "seed.cxi"

    def attempt(rng: random.Random) -> bool:
        spoil_hdf5(path, rng.choice(seeds), rng)
        scan = read_cxi(path)
        return scan.frames[:1].shape[1:] == scan.geometry.frame_shape

    return attempt


def probe(folder: Path) -> Target:
    """`optics.probe_file.read_probe`: .npy, .npz, .h5, .cxi."""
    from bluesky_ptychonn.optics.probe_file import read_probe

    array = small_scan().probe
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, array)
    np.savez(npz, probe=array)
    hdf5 = cxi_seeds()[0]

    def attempt(rng: random.Random) -> bool:
        path = folder / f"probe{rng.choice(('.npy', '.npz', '.h5', '.cxi'))}"
        if path.suffix == ".npy":
            path.write_bytes(spoil_npy(npy.getvalue(), rng))
        elif path.suffix == ".npz":
            path.write_bytes(spoil_zip(npz.getvalue(), rng, {".npy": spoil_npy}))
        else:
            spoil_hdf5(path, hdf5, rng)
        return bool(np.isfinite(read_probe(path)[0]).all())

    return attempt


def model(folder: Path) -> Target:
    """`recon.models.checkpoint.load_model`: the card, or weights whose digest the card was given."""
    from bluesky_ptychonn.recon.models.checkpoint import load_model

    seeds = small_models(folder)

    def attempt(rng: random.Random) -> bool:
        card, data = rng.choice(seeds)
        if rng.random() < 0.6:
            data = spoil_safetensors(data, rng)
            card = {**card, "weights_sha256": hashlib.sha256(data).hexdigest()}
        if rng.random() < 0.5:
            card = {**card, "network": spoil_tree(card["network"], rng, 1)}
        if rng.random() < 0.2:
            card = {**card, "input": spoil_tree(card["input"], rng, 1)}
        home = folder / "model"
        home.mkdir(exist_ok=True)
        (home / "card.json").write_bytes(spelled(json.dumps(card)))
        (home / "model.safetensors").write_bytes(data)
        return load_model(home, "cpu").card.name == "seed"

    return attempt


def card(folder: Path) -> Target:
    """`card.ModelCard.load`."""
    from bluesky_ptychonn.card import ModelCard, load_card

    seeds = [small_models(folder)[0][0], json.loads(load_card("simulated-zp64").model_dump_json())]
    path = folder / "card.json"

    def attempt(rng: random.Random) -> bool:
        path.write_bytes(spoil_json(rng.choice(seeds), rng))
        return bool(ModelCard.load(path).name)

    return attempt


def archive(folder: Path) -> Target:
    """`recon.models.archive.unpack`, what ``ptychonn models import`` does with a zip."""
    from bluesky_ptychonn.card import ModelCard
    from bluesky_ptychonn.recon.models.archive import pack, unpack

    seeds = [pack(ModelCard(**card), data, folder / "seed.zip").read_bytes() for card, data in small_models(folder)]
    path = folder / "model.zip"

    def spoil_card(data: bytes, rng: random.Random) -> bytes:
        return spoil_json(json.loads(data), rng)

    def attempt(rng: random.Random) -> bool:
        seed, spoilers = rng.choice(seeds), {".json": spoil_card, ".safetensors": spoil_safetensors}
        path.write_bytes(spoil_zip(seed, rng, spoilers) if rng.random() < 0.9 else seed)
        return bool(unpack(path)[1])

    return attempt


def state_dict(folder: Path) -> Target:
    """`recon.models.upstream.importer.import_upstream`: somebody's .pth, its pickle and its tensors."""
    import torch

    from bluesky_ptychonn.recon.models.upstream.importer import import_upstream
    from bluesky_ptychonn.recon.networks.direct import DirectConfig
    from bluesky_ptychonn.recon.networks.families import build_network

    torch.manual_seed(0)
    config = DirectConfig(encoder_channels=(1, 1, 2), decoder_channels=(2, 1, 1), batch_norm=True)
    state = dict(build_network(config).state_dict())
    path = folder / "theirs.pth"

    def written(values: Any, *, legacy: bool = False) -> bytes:
        out = io.BytesIO()
        torch.save(values, out, _use_new_zipfile_serialization=not legacy)
        return out.getvalue()

    seeds = [written(state), written({"model_state_dict": state})]
    old = written(state, legacy=True)

    def odd(rng: random.Random) -> Any:
        one = torch.zeros(1)
        return rng.choice(
            (
                one.expand(1 << rng.choice((10, 20, 33))), one.to(torch.complex64), one.to(torch.float16) * torch.nan,
                torch.zeros(2, 2).to_sparse(), torch.zeros(0), torch.zeros((1,) * 20), torch.tensor(2**40), one.bool(),
                torch.zeros(2, 2, 3, 3), torch.zeros(1, 1, 3, 3, device="meta"), *NASTY,
            )
        )  # fmt: skip

    def attempt(rng: random.Random) -> bool:
        way = rng.random()
        if way < 0.1:
            path.write_bytes(rng.choice((*seeds, old)))
        elif way < 0.4:
            path.write_bytes(spoil_zip(rng.choice(seeds), rng, {"data.pkl": spoil_bytes}))
        elif way < 0.6:
            path.write_bytes(spoil_bytes(old, rng, rng.choice(seeds)))
        else:
            values: dict[Any, Any] = dict(state)
            for _ in range(rng.randint(1, 5)):
                name = rng.choice((*values, "encoder.99.weight", "decoder3.0.bias", "", 5))
                if rng.random() < 0.4:
                    values.pop(name, None)
                else:
                    values[name] = odd(rng)
            path.write_bytes(written(values, legacy=rng.random() < 0.3))
        return import_upstream(path, folder / "model", name="x", object_pixel_m=1e-8).name == "x"

    return attempt


def config(folder: Path) -> Target:
    """`config.Config.load`."""
    from bluesky_ptychonn.config import Config

    seed = {
        "catalog": {"folder": "catalog", "port": 0, "readable": ["frames"], "subscriptions": False, "profile": "p"},
        "reconstruction": {
            "model": "simulated-zp64",
            "device": "auto",
            "worker": "process",
            "batch_size": 16,
            "refine": {"rounds": 1},
            "geometry": {"energy_ev": 8800, "distance_m": 2.0, "pixel_pitch_m": 75e-6, "frame_shape": [128, 128]},
            "keys": {"frame": "img", "x": "sx", "y": "sy", "x_sign": 1, "position_unit": "mm"},
            "pace": {"block": 64, "flush_s": 0.3, "share": 0.2},
        },
    }
    path = folder / "config.toml"

    def attempt(rng: random.Random) -> bool:
        path.write_bytes(spoil_toml(seed, rng))
        return bool(Config.load(path).reconstruction.model)

    return attempt


def labelled(folder: Path) -> Target:
    """`recon.data.scans.LabelledScan.load`."""
    from bluesky_ptychonn.recon.data.scans import LabelledScan

    seed = small_scan().save(folder / "seed.npz").read_bytes()
    path = folder / "label.npz"

    def attempt(rng: random.Random) -> bool:
        path.write_bytes(spoil_zip(seed, rng, {".npy": spoil_npy}))
        return len(LabelledScan.load(path)) > 0

    return attempt

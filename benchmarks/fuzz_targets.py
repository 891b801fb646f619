"""What is fuzzed: every parser of what others wrote, each with valid seeds and the ways to spoil them.

A target is made once in a child process and then tried with dice: it spoils a seed, writes it down, reads it. It
returns whether what came out was taken whole; what it raises is for `benchmarks.fuzz` to judge.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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


def _scan() -> Any:
    """Make a small labelled scan, 12 frames of 16 px."""
    from bluesky_ptychonn.optics.geometry import Geometry
    from bluesky_ptychonn.optics.simulate import zone_plate_probe
    from bluesky_ptychonn.recon.labelled import LabelledScan

    rng = np.random.default_rng(0)
    geometry = Geometry(energy_ev=8800, distance_m=2.0, pixel_pitch_m=75e-6, frame_shape=(16, 16))
    probe = zone_plate_probe((16, 16), 8)
    y_m, x_m = rng.uniform(-1e-6, 1e-6, (2, 12))
    counts = rng.poisson(5, (12, 16, 16)).astype(np.float32)
    pixel = geometry.object_pixel_m
    thing, light = np.ones((24, 24), np.complex64), np.ones((24, 24), np.float32)
    return LabelledScan(counts, y_m, x_m, probe, geometry, "seed", thing, (0.0, 0.0), pixel, light, "nobody")


def _cxi_seeds() -> list[bytes]:
    import h5py

    scan, seeds = _scan(), []
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
        seeds.append(out.getvalue())
    return seeds


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


def cxi(folder: Path) -> Target:
    """`optics.cxi.read_cxi`, and the frames of what it took."""
    from bluesky_ptychonn.optics.cxi import read_cxi

    seeds, path = _cxi_seeds(), folder / "seed.cxi"

    def attempt(rng: random.Random) -> bool:
        spoil_hdf5(path, rng.choice(seeds), rng)
        scan = read_cxi(path)
        return scan.frames[:1].shape[1:] == scan.geometry.frame_shape

    return attempt


def probe(folder: Path) -> Target:
    """`optics.probe_file.read_probe`: .npy, .npz, .h5, .cxi."""
    from bluesky_ptychonn.optics.probe_file import read_probe

    array = _scan().probe
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, array)
    np.savez(npz, probe=array)
    hdf5 = _cxi_seeds()[0]

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


def _models(folder: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Cards and weights of a small lifted and a small direct model."""
    import torch

    from bluesky_ptychonn.card import InputContract, ModelCard, ProbeReference
    from bluesky_ptychonn.recon.checkpoint import save_model
    from bluesky_ptychonn.recon.network import DirectConfig, LiftedConfig, build_network

    torch.manual_seed(0)
    scan = _scan()
    pixel = scan.geometry.object_pixel_m
    lifted = LiftedConfig(frame_size=16, patch_size=16, lift_steps=1, stage_steps=0, stages=1, width=4)
    direct = DirectConfig(frame_size=16, patch_size=16, encoder_channels=(2, 2), decoder_channels=(2, 2))
    made = []
    for config, light in ((lifted, scan.probe), (direct, None)):
        card = ModelCard(
            name="seed",
            version="1",
            family=config.family,
            network=config.model_dump(mode="json"),
            input=InputContract(
                frame_shape=(16, 16), patch_shape=(16, 16), object_pixel_m=pixel, counts_per_frame=(1.0, 1e6)
            ),
            probe=None if light is None else ProbeReference.of(light, pixel, "seed"),
            weights_sha256="0" * 64,
        )
        home = folder / config.family
        save_model(home, build_network(config), card, light)
        made.append((json.loads((home / "card.json").read_text()), (home / "model.safetensors").read_bytes()))
    return made


def model(folder: Path) -> Target:
    """`recon.checkpoint.load_model`: the card, or weights whose digest the card was given."""
    from bluesky_ptychonn.recon.checkpoint import load_model

    seeds = _models(folder)

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

    seeds = [_models(folder)[0][0], json.loads(load_card("simulated-zp64").model_dump_json())]
    path = folder / "card.json"

    def attempt(rng: random.Random) -> bool:
        path.write_bytes(spoil_json(rng.choice(seeds), rng))
        return bool(ModelCard.load(path).name)

    return attempt


def archive(folder: Path) -> Target:
    """`recon.archive.unpack`, what ``ptychonn models import`` does with a zip."""
    from bluesky_ptychonn.card import ModelCard
    from bluesky_ptychonn.recon.archive import pack, unpack

    seeds = [pack(ModelCard(**card), data, folder / "seed.zip").read_bytes() for card, data in _models(folder)]
    path = folder / "model.zip"

    def spoil_card(data: bytes, rng: random.Random) -> bytes:
        return spoil_json(json.loads(data), rng)

    def attempt(rng: random.Random) -> bool:
        seed, spoilers = rng.choice(seeds), {".json": spoil_card, ".safetensors": spoil_safetensors}
        path.write_bytes(spoil_zip(seed, rng, spoilers) if rng.random() < 0.9 else seed)
        return bool(unpack(path)[1])

    return attempt


def state_dict(folder: Path) -> Target:
    """`recon.upstream.import_upstream`: somebody's .pth, its pickle and its tensors."""
    import torch

    from bluesky_ptychonn.recon.network import DirectConfig, build_network
    from bluesky_ptychonn.recon.upstream import import_upstream

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
    """`recon.labelled.LabelledScan.load`."""
    from bluesky_ptychonn.recon.labelled import LabelledScan

    seed = _scan().save(folder / "seed.npz").read_bytes()
    path = folder / "label.npz"

    def attempt(rng: random.Random) -> bool:
        path.write_bytes(spoil_zip(seed, rng, {".npy": spoil_npy}))
        return len(LabelledScan.load(path)) > 0

    return attempt


def _work(folder: Path, workshop: Any) -> bool:
    """Let a worker finish the journals of a folder; whether every run is whole. Each frame must be there once."""
    from bluesky_ptychonn.stream.progress import FINISHED, Pace
    from bluesky_ptychonn.stream.session import Order
    from bluesky_ptychonn.stream.worker import Worker

    pace = Pace(block=4, flush_s=0, mosaic_s=0, share=1, patience_s=0, outage_s=0)
    order = Order(model="fake", catalog="http://nowhere", pace=pace)
    closing = threading.Event()
    closing.set()
    worker = Worker(folder, order, lambda order: workshop, silence_s=0)
    worker.run(closing)
    for uid, run in worker.status.runs.items():
        if run.state not in FINISHED:
            raise AssertionError(f"run {uid!r} was left {run.state}")
        sink = workshop.sinks.get(uid)
        if run.state in ("complete", "partial") and sink is not None:
            named = sum(run.rejected.values())
            if run.seen != run.done + named or len(sink.table) != run.seen:
                raise AssertionError(f"{run.seen} seen, {run.done} done, {named} named, {len(sink.table)} in the table")
    return bool(worker.status.runs) and all(run.state == "complete" for run in worker.status.runs.values())


def _runs(rng: random.Random) -> tuple[list[tuple[str, dict[str, Any]]], Any]:
    """Documents of one to three interleaved runs, and a workshop with their frames."""
    from bluesky_ptychonn.stream.testing import FakeSource, FakeWorkshop, RunMaker, frame_of

    workshop, parts = FakeWorkshop(), []
    for number in range(rng.choice((1, 1, 1, 2, 3))):
        uid, points = f"run-{number}", rng.randint(0, 6)
        run = RunMaker(rng.choice(("event", "datum", "stream")), uid)
        run.descriptor, run.file = f"descriptor-{number}", f"file-{number}"
        documents = [*run.open(points)]
        for seq_num in range(1, points + 1):
            documents += run.point(seq_num, 0.0, seq_num / 100)
        parts.append([*documents, *run.close()])
        workshop.sources[uid] = FakeSource({row: frame_of(row + 1) for row in range(8)})
    documents = []
    while any(parts):
        part = rng.choice([part for part in parts if part])
        documents.append(part.pop(0))
    return [(name, _plain(doc)) for name, doc in documents], workshop


def _plain(doc: dict[str, Any]) -> dict[str, Any]:
    """Take the arrays out of an event, so that it can be spoilt as a tree, and say where they were."""
    if "img" in doc.get("data", {}) and not isinstance(doc["data"]["img"], str):
        return {**doc, "data": {**doc["data"], "img": [[1, 2], [3, 4]]}}
    return doc


def documents(folder: Path) -> Target:
    """Documents from RunEngine to result: journal, follower, pairing, assembly; fakes for network and catalog."""
    from bluesky_ptychonn.stream.journal import JournalWriter

    def attempt(rng: random.Random) -> bool:
        said, workshop = _runs(rng)
        for _ in range(rng.randint(0, 3)):
            at, to = rng.randrange(len(said)), rng.randrange(len(said))
            match rng.randrange(6):
                case 0:
                    del said[at]
                case 1:
                    said.insert(to, said[at])
                case 2:
                    said.insert(to, said.pop(at))
                case 3:
                    said[at] = (said[to][0], said[at][1])
                case _:
                    said[at] = (said[at][0], spoil_tree(said[at][1], rng, 1))
            if not said:
                break
        home = Path(tempfile.mkdtemp(dir=folder))
        journal, errors = JournalWriter(home), 0
        try:
            for name, doc in said:
                try:
                    journal.append(name, doc)
                except (LookupError, TypeError, ValueError, AttributeError):
                    errors += 1  # as `LiveReconstruction` counts them
            journal.close()
            return _work(home, workshop) and not errors
        finally:
            journal.close()
            shutil.rmtree(home)

    return attempt


def journal(folder: Path) -> Target:
    """`stream.worker.Worker` on a journal that a disk, or somebody, spoilt."""
    from bluesky_ptychonn.stream.journal import encode, journal_path, slim

    def attempt(rng: random.Random) -> bool:
        said, workshop = _runs(rng)
        lines = [encode(name, slim(name, doc) or doc, 0.0) for name, doc in said]
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(len(lines))
            if rng.random() < 0.5:
                lines[at] = spoil_json(json.loads(encode(*said[at], 0.0)), rng) + b"\n"
            else:
                lines[at] = spoil_bytes(lines[at], rng, lines[0])
        home = Path(tempfile.mkdtemp(dir=folder))
        try:
            journal_path(home, "run-0").write_bytes(b"".join(lines))
            return _work(home, workshop)
        finally:
            shutil.rmtree(home)

    return attempt


TARGETS: dict[str, Callable[[Path], Target]] = {
    made.__name__: made for made in (cxi, probe, model, card, archive, state_dict, config, labelled, documents, journal)
}

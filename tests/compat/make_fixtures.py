"""Write the files of ``tests/compat/v<version>``: what this version of the package leaves on disk.

Run with the version whose files are to be kept, before it changes::

    python tests/compat/make_fixtures.py tests/compat/v0.1.0

Everything is made by the package itself: real servers, a real worker process that is killed in the midst of a run.
Machine paths are replaced by `PLACE`, which the test turns into its own folder. ``expected.json`` and
``expected.npz`` hold what this version reads from its files.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import numpy as np
import torch
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter

from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.card import InputContract, ModelCard, ProbeReference
from bluesky_ptychonn.catalog.connection.connect import connect
from bluesky_ptychonn.catalog.connection.server import serve_catalog
from bluesky_ptychonn.catalog.raw.writer import raw_writer
from bluesky_ptychonn.catalog.registry.learning_log import LearningLog, LearningRecord
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.catalog.results.block import Block
from bluesky_ptychonn.catalog.results.client import reconstructions
from bluesky_ptychonn.catalog.results.spool import Spool
from bluesky_ptychonn.live.batch.label import label
from bluesky_ptychonn.live.callback import LiveReconstruction
from bluesky_ptychonn.live.learning.service import CatalogLearner
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.testing import RunMaker
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, make_sample, zone_plate_probe
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.evaluation.simulated_scans import stitching_weight
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.learning.learner import Learner
from bluesky_ptychonn.recon.models.checkpoint import load_model, save_model
from bluesky_ptychonn.recon.networks.direct import DirectConfig
from bluesky_ptychonn.recon.networks.lifted import LiftedConfig
from bluesky_ptychonn.recon.training.config import TrainingConfig
from bluesky_ptychonn.recon.training.fit import fit
from bluesky_ptychonn.recon.training.metrics_table import write_rows

PLACE = "/place-of-the-fixtures"
PACKED = (".db", ".h5", ".pt")  # files that are mostly zeros
KEY = "compat"
NAME = "compat-lifted"
PHOTONS = 1e5
PROBE = zone_plate_probe((32, 32), 14)
GEOMETRY = Geometry(energy_ev=10_000, distance_m=1, pixel_pitch_m=75e-6, frame_shape=(32, 32))
EXPERIMENT = SimulatedExperiment(
    GEOMETRY, PROBE, make_sample("etched", (160, 160), 2, phase_rad=-0.9, absorption=0.1), PHOTONS
)
SIDE = 3  # points of a scan
WAIT_S = 120.0
# A solver of no time, see tests/live/batch/test_label.py.
SOLVER = """#!{python}
import sys
import numpy as np
_, worker, asked, answered = sys.argv
with np.load(asked) as given:
    shape, probe = tuple(given["shape"]), given["probe"]
np.savez(answered, snapshots=np.full((1, *shape), np.exp(0.5j), np.complex64), probe=probe, epochs=[5], seconds=[1.0],
    cpu_seconds=[1.0], loss=[0.2, 0.1], software="stand-in 1", device="cpu")
"""


class Killed(BaseException):
    """In the midst of a training."""


def training_config(network: Any, **changes: Any) -> TrainingConfig:
    """A training of a second."""
    loss = "complex" if network.family == "lifted" else "amplitude_phase"
    synthetic = SyntheticConfig(photons=PHOTONS, sample="texture")
    return TrainingConfig(
        network=network, synthetic=synthetic, loss=loss, frames=480, learning_rate=5e-3, ema=0.9
    ).model_copy(update=changes)


def make_models(root: Path, expected: dict[str, Any], arrays: dict[str, Any]) -> None:
    """One folder for each family, and what they predict."""
    for network in (
        LiftedConfig(frame_size=32, patch_size=16, width=4, stages=2, lift_steps=2, stage_steps=1),
        DirectConfig(
            frame_size=32, patch_size=16, encoder_channels=(4, 8), decoder_channels=(8, 4), batch_norm=True,
            input_root=True, input_scale=5.0,
        ),
    ):  # fmt: skip
        config = training_config(network)
        trained, record = fit(PROBE, config)
        probe = np.asarray(PROBE * PHOTONS**0.5, np.complex64)
        folder = root / "models" / f"compat-{network.family}"
        contract = InputContract(
            frame_shape=(32, 32),
            patch_shape=(16, 16),
            object_pixel_m=GEOMETRY.object_pixel_m,
            counts_per_frame=(1e4, 1e6),
        )
        card = ModelCard(
            name=folder.name,
            version="1",
            family=network.family,
            network=network.model_dump(mode="json"),
            input=contract,
            probe=ProbeReference.from_probe(probe, GEOMETRY.object_pixel_m, "simulated"),
            held_out={"patch_phase_mae_rad": 0.1},
            training={"command": "make_fixtures", "config": config.model_dump(mode="json")},
            weights_sha256="0" * 64,
        )
        save_model(folder, trained, card, probe, stitching_weight(probe, 16))
        write_rows(folder / "metrics.csv", record["metrics"][::20])
        counts = frames(3)[0][:3].astype(np.float32)
        model = load_model(folder, "cpu")
        with torch.inference_mode():
            patches = model.network(torch.from_numpy(counts), model.probe)
        arrays["counts"], arrays[f"{network.family}/patches"] = counts, patches.numpy()
        expected[network.family] = {
            "weights_sha256": model.card.weights_sha256,
            "metrics": len(record["metrics"][::20]),
        }


def frames(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, y and x of a scan of `side` times `side` points."""
    rng = np.random.default_rng(5)
    step = 0.3 * EXPERIMENT.probe_diameter_m
    line = (np.arange(side) - (side - 1) / 2) * step
    y, x = (a + rng.uniform(-0.2, 0.2, a.size) * step for a in (np.repeat(line, side), np.tile(line, side)))
    return np.stack([EXPERIMENT.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)]), y, x


def session(root: Path) -> None:
    """Two scans, reconstructed live; in the second the worker stops and this process is killed after the last point."""
    server = connect(root / "catalog")
    beamline = SimulatedBeamline.from_experiment(EXPERIMENT, root / "frames")
    stage, reach = beamline.stage, (SIDE - 1) / 2 * 0.3 * EXPERIMENT.probe_diameter_m * 1e3
    md = {"ptychography": {"geometry": GEOMETRY.model_dump(mode="json")}, "sample": "etched"}
    plan = [beamline.camera], stage.y, -reach, reach, SIDE, stage.x, -reach, reach, SIDE, False
    live = LiveReconstruction(NAME, server, journal_dir=root / "journal", pace=Timing(flush_s=0.1, patience_s=2.0))
    live.wait_ready(WAIT_S)
    engine = RunEngine({}, context_managers=[])
    engine.subscribe(TiledWriter(server["raw"], batch_size=1))
    engine.subscribe(live)
    (first,) = engine(bp.grid_scan(*plan, md=md))
    (ended,) = live.wait(first, WAIT_S)
    assert ended.state == "complete", ended

    def stop_worker(name: str, doc: dict[str, Any]) -> None:
        if doc["seq_num"] != 4:
            return
        end = time.monotonic() + WAIT_S
        while live.status.done < SIDE**2 + 2 and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.5)  # no request of it is under way
        os.kill(json.loads((live.folder / "status.json").read_text())["pid"], signal.SIGSTOP)

    engine.subscribe(stop_worker, "event")
    (second,) = engine(bp.grid_scan(*plan, md=md))
    (root / "session.json").write_text(
        json.dumps({"folder": live.folder.name, "finished": first, "unfinished": second})
    )
    os.kill(os.getpid(), signal.SIGKILL)


def make_session(root: Path, server: Any) -> dict[str, Any]:
    """Let a process measure and be killed; what waits in its spool is put there as its worker would have."""
    environment = {**os.environ, "PTYCHONN_MODELS": str(root / "models"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, "session", str(root)], env=environment, check=False, timeout=300)
    about: dict[str, Any] = json.loads((root / "session.json").read_text())
    folder = root / "journal" / about["folder"]
    os.kill(json.loads((folder / "status.json").read_text())["pid"], signal.SIGKILL)
    about["key"] = json.loads((folder / "status.json").read_text())["runs"][about["unfinished"]]["key"]
    _, y, x = frames(SIDE)
    patches = np.full((2, 16, 16), 0.5 + 0.5j, np.complex64)
    now = np.full(2, time.time())
    spool = Spool(folder / "spool" / about["key"], 2**20)
    columns = {"y_m": y[4:6], "x_m": x[4:6], "trust": np.ones(2), "valid": np.ones(2), "flag": ["", "told"]}
    spool.put(Block.from_patches([5, 6], patches, **columns, time_raw=now))
    return about


def make_backup(root: Path) -> dict[str, Any]:
    """Two raw runs that no catalog took, the second one without its end: its session was killed in a line."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    writer = raw_writer(f"{address}?api_key={KEY}", root / "backup")
    whole, cut = RunMaker("event"), RunMaker("event")
    for run, points in ((whole, 4), (cut, 2)):
        for document in run.open(points):
            writer(*document)
        for n in range(1, points + 1):
            image = np.arange(256, dtype=np.uint16).reshape(16, 16) + n
            x = {2: float("nan"), 3: float("inf")}.get(n, 0.1 * n)
            for document in run.point(n, 0.25, x, image=image):
                writer(*document)
    for document in whole.close():
        writer(*document)
    writer.close(1)
    with (root / "backup" / f"{cut.uid}.jsonl").open("ab") as file:
        file.write(b'{"name":"event","doc":{"seq_')
    return {"whole": whole.uid, "cut": cut.uid}


def make_training(root: Path, expected: dict[str, Any], arrays: dict[str, Any]) -> None:
    """A training that was killed half way, and a learner killed in a round."""
    config = training_config(
        LiftedConfig(frame_size=32, patch_size=16, width=4, stages=1), frames=96, save_every_s=1e-9
    )
    folder = root / "training"
    folder.mkdir()

    def kill(done: int, total: int, loss: float) -> None:
        if done == 64:
            raise Killed

    checkpoint = folder / "killed.pt"
    try:
        fit(PROBE, config, checkpoint=checkpoint, progress=kill)
    except Killed:
        (folder / "config.json").write_text(config.model_dump_json(indent=1) + "\n")
    else:
        raise RuntimeError("the training was not killed")
    whole, record = fit(PROBE, config)
    arrays.update({f"trained/{name}": tensor.numpy() for name, tensor in whole.state_dict().items()})
    expected["training"] = {"begins_after": 48, "loss": record["loss"]}

    counts, y, x = frames(5)
    champion = load_model(root / "models" / "compat-direct", "cpu")
    scan = MeasuredScan(counts, y, x, champion.probe.numpy(), GEOMETRY, "a run")
    rounds = LearningConfig(
        runs_a_round=1, frames=96, simulated_frames=16, fewest_frames=8, buffer_bytes=2**20, save_every_s=1e-6
    )
    learner = Learner(root / "learning" / "learner", champion, rounds)
    considered = learner.consider(scan, trust=np.ones(len(scan)), insist=True)
    assert considered.taken, considered
    steps: list[int] = []
    assert learner.propose(lambda: bool(steps.append(1)) or len(steps) == 3) is None
    (root / "learning" / "config.json").write_text(rounds.model_dump_json(indent=1) + "\n")
    kept = {name: getattr(considered, name) for name in ("reason", "frames", "held_out")}
    expected["learner"] = {**kept, "pending": list(learner.pending), "version": "1-learn1"}


def told(result: Any, name: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """What a reader gets of a reconstruction."""
    for picture in ("amplitude", "phase", "coverage", "trust"):
        arrays[f"{name}/{picture}"] = getattr(result, picture).read()
    arrays[f"{name}/patches"] = result.patches()
    table = result.frames
    for column in table.columns:
        arrays[f"{name}/frames/{column}"] = table[column].to_numpy().astype("U" if column == "flag" else None)
    values = {key: getattr(result, key) for key in ("status", "counts", "problems", "verdict", "pixel_m")}
    return {**values, "model": result.metadata["model"], "columns": list(table.columns)}


def scrub(root: Path, was: str) -> None:
    """Replace the machine's paths by `PLACE`, leave out logs, locks and caches, pack what is large."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.suffix in (".log", ".lock", ".err") or path.name in ("champions", "session.json", "solver"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in root.rglob("*.db"):
        with sqlite3.connect(path, isolation_level=None) as database:
            if path.name == "catalog.db":
                database.execute("UPDATE assets SET data_uri = replace(data_uri, ?, ?)", (was, PLACE))
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("VACUUM")  # or the old pages stay in the file
    for path in root.rglob("*.json*"):
        path.write_bytes(path.read_bytes().replace(was.encode(), PLACE.encode()))
    here = [str(folder).encode() for folder in (was, Path(was).parent, Path.home(), Path(__file__).parents[2])]
    for path in [path for path in root.rglob("*") if path.is_file()]:
        if any(word in path.read_bytes() for word in here):
            raise RuntimeError(f"{path} holds a path of this machine")
        if path.suffix in PACKED:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            path.unlink()


def main(target: Path) -> None:
    """Make everything in a folder of its own, then copy it."""
    torch.set_num_threads(1)
    os.environ |= {"TILED_RETRY_ATTEMPTS": "2", "TILED_RETRY_TIMEOUT": "1.0"}
    expected: dict[str, Any] = {"geometry": GEOMETRY.model_dump(mode="json")}
    arrays: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        make_models(root, expected, arrays)
        with serve_catalog(root / "catalog", readable=[root / "frames"], api_key=KEY) as server:
            registry = Registry(server)
            version = registry.publish(root / "models" / NAME, by="fixture")
            registry.promote(NAME, version, "what we begin with", by="fixture")
            LearningLog(server, NAME).add(
                LearningRecord("a run", "passed over", "1", "too dark", numbers={"x": None}, by="fixture")
            )
            CatalogLearner(server, NAME, root / "learning").close()
            expected["session"] = about = make_session(root, server)
            solver = root / "solver"
            solver.write_text(SOLVER.format(python=sys.executable))
            solver.chmod(solver.stat().st_mode | stat.S_IXUSR)
            os.environ["PTYCHONN_PEER_PYTHON"] = str(solver)
            made = label(about["finished"], server, model=root / "models" / NAME)
            arrays["label/amplitude"], arrays["label/phase"] = made.amplitude, made.phase
            (result,) = reconstructions(server, raw=about["finished"])
            expected["finished"] = told(result, "finished", arrays)
            arrays["raw/camera"] = np.squeeze(result.raw["primary"]["camera_image"].read())
        expected["backup"] = make_backup(root)
        make_training(root, expected, arrays)
        shutil.rmtree(target, ignore_errors=True)
        kept = Path(shutil.copytree(root, Path(temporary) / "kept", ignore=shutil.ignore_patterns("kept")))
        os.environ["PTYCHONN_MODELS"] = str(root / "models")
        with serve_catalog(root / "catalog", readable=[root / "frames"]) as server:
            live = LiveReconstruction(NAME, server.client, journal_dir=root / "journal")
            end = time.monotonic() + WAIT_S
            (result,) = reconstructions(server, raw=about["unfinished"])
            while result.status == "live" and time.monotonic() < end:
                time.sleep(0.2)
            assert result.status == "complete", result
            expected["unfinished"] = told(result, "unfinished", arrays)
            live.close()
        scrub(kept, str(root))
        shutil.copytree(kept, target)
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    np.savez_compressed(target / "expected.npz", **arrays)


if __name__ == "__main__":
    if sys.argv[1] == "session":
        session(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))

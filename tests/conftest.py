"""What every test may rely on: no window, no user's files touched, measured data where there is some."""

from __future__ import annotations

import gc
import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import hypothesis
import pytest

if TYPE_CHECKING:
    from bluesky_ptychonn.catalog.connection.server import CatalogServer
    from tests.system.faults.proxy import Proxy


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported that looks: pictures without windows, one core each, and a home of the tests' own."""
    os.environ["MPLBACKEND"] = "Agg"
    # The tests' processes share the cores; trainings whose threads wait for one another take ten times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    home = tempfile.TemporaryDirectory(prefix="ptychonn-tests-")
    config.add_cleanup(home.cleanup)
    for name in ("STATE", "CONFIG", "DATA", "CACHE"):
        os.environ[f"XDG_{name}_HOME"] = str(Path(home.name) / name.lower())
    # The same examples every time, and however busy the machine is.
    hypothesis.settings.register_profile("ptychonn", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("ptychonn")
    for name in ("PTYCHONN_MODELS", "PTYCHONN_CONFIG", "PTYCHONN_CATALOG", "PTYCHONN_TRACEBACK", "TILED_API_KEY"):
        os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests of whole processes first: they take longest, and none is to be left alone at the end."""
    first = {item.path for item in items if item.get_closest_marker("system")}
    items.sort(key=lambda item: item.path not in first)


def pytest_collection_finish() -> None:
    """Modules stay: the garbage collector need not go through them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def star() -> Path:
    """The measured Siemens star."""
    path = Path(os.environ.get("PTYCHONN_DATA", "../shared/data")) / "velociprobe-siemens-star.cxi"
    if not path.is_file():
        pytest.skip(f"no measured star: {path} is not there; set PTYCHONN_DATA to its folder")
    return path


@pytest.fixture(scope="session")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the catalog server may read the detector's files from."""
    return tmp_path_factory.mktemp("detector")


@pytest.fixture(scope="session")
def catalog_server(tmp_path_factory: pytest.TempPathFactory, detector_folder: Path) -> Iterator[CatalogServer]:
    """A real server on loopback, started once a session; tests tell their data apart by uid."""
    from bluesky_ptychonn.catalog.connection.server import serve_catalog

    with serve_catalog(tmp_path_factory.mktemp("catalog"), readable=[detector_folder]) as server:
        yield server


@pytest.fixture
def proxy(catalog_server: CatalogServer) -> Iterator[Proxy]:
    """The way to the catalog, which can be cut and mended."""
    from tests.system.faults.proxy import Proxy

    between = Proxy(urlsplit(catalog_server.uri).port or 0)
    yield between
    between.close()


@pytest.fixture
def RE() -> Iterator[Any]:
    """A bare RunEngine, quiet and closed afterwards."""
    from bluesky import RunEngine

    engine = RunEngine({}, context_managers=[])
    yield engine
    if engine.state not in ("idle", "panicked"):
        engine.halt()
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()


@pytest.fixture
def tiled_writer(RE: Any, catalog_server: CatalogServer) -> Any:
    """TiledWriter subscribed to `RE`, every event written as it comes."""
    from bluesky_tiled_plugins import TiledWriter

    writer = TiledWriter(catalog_server.raw, batch_size=1)
    RE.subscribe(writer)
    return writer


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny untrained lifted model for the simulated beamline's 64 px frames."""
    import torch

    from bluesky_ptychonn.card import InputContract, ModelCard, ProbeReference
    from bluesky_ptychonn.optics.simulate import SimulatedExperiment
    from bluesky_ptychonn.recon.models.checkpoint import save_model
    from bluesky_ptychonn.recon.networks.families import build_network
    from bluesky_ptychonn.recon.networks.lifted import LiftedConfig

    experiment = SimulatedExperiment.demo()
    config = LiftedConfig(frame_size=64, patch_size=32, lift_steps=2, stage_steps=0, stages=1, width=8)
    contract = InputContract(
        frame_shape=(64, 64),
        patch_shape=(32, 32),
        object_pixel_m=experiment.geometry.object_pixel_m,
        counts_per_frame=(1.0, 1e9),
    )
    card = ModelCard(
        name="tiny",
        version="0",
        family="lifted",
        network=config.model_dump(),
        input=contract,
        probe=ProbeReference.from_probe(experiment.probe, experiment.geometry.object_pixel_m, "simulated"),
        weights_sha256="0" * 64,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, build_network(config), card, experiment.probe)
    return folder


@pytest.fixture
def make_model(tmp_path: Path, small_model: Path) -> Callable[..., Path]:
    """Copy of the small model under a name of its own; other `seed`, other weights."""
    from bluesky_ptychonn.card import load_card
    from bluesky_ptychonn.recon.models.library import WEIGHTS_FILE, place

    name = f"m-{uuid.uuid4().hex[:12]}"

    def make(version: str = "1", seed: int = 0, **changes: Any) -> Path:
        data = bytearray((small_model / WEIGHTS_FILE).read_bytes())
        data[8 + int.from_bytes(data[:8], "little")] ^= seed  # first number after the header: batches that were counted
        data = bytes(data)
        card = load_card(small_model).model_copy(
            update={
                "name": name,
                "version": version,
                "weights_sha256": hashlib.sha256(data).hexdigest(),
                "held_out": {"patch_phase_mae_rad": 0.1 / (1 + seed)},
                **changes,
            }
        )
        return place(card, data, tmp_path / f"made-{seed}")

    return make

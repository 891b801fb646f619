"""Live neural ptychography for Bluesky: reconstruct while you scan, and scan only as densely as needed.

Every name for users is here, by what it is for; where it lives may change. Each is imported on first use, so that
``import bluesky_ptychonn`` costs nothing and a plan never pays for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bluesky_ptychonn.beamline.devices import PtychoCamera as PtychoCamera
    from bluesky_ptychonn.beamline.devices import ScanStage as ScanStage
    from bluesky_ptychonn.beamline.metadata import PersistentMetadata as PersistentMetadata
    from bluesky_ptychonn.beamline.plans import ptycho_scan as ptycho_scan
    from bluesky_ptychonn.beamline.plans import rel_ptycho_scan as rel_ptycho_scan
    from bluesky_ptychonn.beamline.plans import rel_sparse_ptycho_scan as rel_sparse_ptycho_scan
    from bluesky_ptychonn.beamline.plans import sparse_ptycho_scan as sparse_ptycho_scan
    from bluesky_ptychonn.beamline.replay import ReplayBeamline as ReplayBeamline
    from bluesky_ptychonn.beamline.replay import replay_scan as replay_scan
    from bluesky_ptychonn.beamline.sim import SimulatedBeamline as SimulatedBeamline
    from bluesky_ptychonn.card import ModelCard as ModelCard
    from bluesky_ptychonn.card import load_card as load_card
    from bluesky_ptychonn.catalog.connection.connect import connect as connect
    from bluesky_ptychonn.catalog.connection.server import CatalogServer as CatalogServer
    from bluesky_ptychonn.catalog.connection.server import serve_catalog as serve_catalog
    from bluesky_ptychonn.catalog.raw.writer import RawWriter as RawWriter
    from bluesky_ptychonn.catalog.raw.writer import raw_writer as raw_writer
    from bluesky_ptychonn.catalog.raw.writer import recover as recover
    from bluesky_ptychonn.catalog.registry.registry import Registry as Registry
    from bluesky_ptychonn.catalog.results.client import PtychoReconstruction as PtychoReconstruction
    from bluesky_ptychonn.catalog.results.client import reconstructions as reconstructions
    from bluesky_ptychonn.catalog.results.label_client import PtychoLabel as PtychoLabel
    from bluesky_ptychonn.catalog.results.label_client import labels as labels
    from bluesky_ptychonn.catalog.runs.data_keys import DataKeys as DataKeys
    from bluesky_ptychonn.catalog.runs.measured import ProbeSetup as ProbeSetup
    from bluesky_ptychonn.catalog.runs.measured import RunFrames as RunFrames
    from bluesky_ptychonn.catalog.runs.measured import measured_run as measured_run
    from bluesky_ptychonn.config import Config as Config
    from bluesky_ptychonn.live.batch.backfill import backfill as backfill
    from bluesky_ptychonn.live.batch.backfill import unfinished as unfinished
    from bluesky_ptychonn.live.batch.label import label as label
    from bluesky_ptychonn.live.batch.label import read_label as read_label
    from bluesky_ptychonn.live.batch.reconstruct import reconstruct as reconstruct
    from bluesky_ptychonn.live.callback import LiveReconstruction as LiveReconstruction
    from bluesky_ptychonn.live.learning.config import LearnerConfig as LearnerConfig
    from bluesky_ptychonn.live.learning.service import CatalogLearner as CatalogLearner
    from bluesky_ptychonn.live.pipeline.progress import Progress as Progress
    from bluesky_ptychonn.live.pipeline.progress import Status as Status
    from bluesky_ptychonn.live.pipeline.progress import Timing as Timing
    from bluesky_ptychonn.live.pipeline.settings import LiveOptions as LiveOptions
    from bluesky_ptychonn.messages import show_messages as show_messages
    from bluesky_ptychonn.optics.cxi import CxiScan as CxiScan
    from bluesky_ptychonn.optics.cxi import read_cxi as read_cxi
    from bluesky_ptychonn.optics.framing import PreprocessConfig as PreprocessConfig
    from bluesky_ptychonn.optics.geometry import Geometry as Geometry
    from bluesky_ptychonn.optics.probe_family import ProbeFamily as ProbeFamily
    from bluesky_ptychonn.optics.probe_file import read_probe as read_probe
    from bluesky_ptychonn.optics.simulate import SimulatedExperiment as SimulatedExperiment
    from bluesky_ptychonn.plan_windows import WindowsDuringPlan as WindowsDuringPlan
    from bluesky_ptychonn.recon.data.batches import Mix as Mix
    from bluesky_ptychonn.recon.data.scans import LabelledScan as LabelledScan
    from bluesky_ptychonn.recon.data.scans import MeasuredScan as MeasuredScan
    from bluesky_ptychonn.recon.evaluation.metrics import fourier_ring_correlation as fourier_ring_correlation
    from bluesky_ptychonn.recon.evaluation.metrics import phase_correlation as phase_correlation
    from bluesky_ptychonn.recon.evaluation.metrics import phase_mae as phase_mae
    from bluesky_ptychonn.recon.evaluation.metrics import ssim as ssim
    from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor as Reconstructor
    from bluesky_ptychonn.recon.models.any_probe import for_probe as for_probe
    from bluesky_ptychonn.recon.models.archive import pack as pack
    from bluesky_ptychonn.recon.models.archive import unpack as unpack
    from bluesky_ptychonn.recon.models.checkpoint import load_model as load_model
    from bluesky_ptychonn.recon.models.checkpoint import save_model as save_model
    from bluesky_ptychonn.recon.models.upstream.importer import import_upstream as import_upstream
    from bluesky_ptychonn.recon.models.upstream.input_step import InputStep as InputStep
    from bluesky_ptychonn.recon.mosaic.refine_config import Refinement as Refinement
    from bluesky_ptychonn.recon.training.config import TrainingConfig as TrainingConfig
    from bluesky_ptychonn.recon.training.fit import fine_tune as fine_tune
    from bluesky_ptychonn.recon.training.fit import fit as fit
    from bluesky_ptychonn.viewer import LiveView as LiveView
    from bluesky_ptychonn.viewer import reconstruction_figure as reconstruction_figure

__version__ = "0.3.0"

# What it is for, where it lives, its names. The imports above say the same to type checkers.
_HOMES = {
    # reconstruct, live and again
    "live.callback": "LiveReconstruction",
    "live.pipeline.progress": "Progress Status Timing",
    "live.pipeline.settings": "LiveOptions",
    "live.batch.reconstruct": "reconstruct",
    "live.batch.backfill": "backfill unfinished",
    "recon.mosaic.refine_config": "Refinement",
    "config": "Config",
    # scan
    "beamline.plans": "ptycho_scan rel_ptycho_scan rel_sparse_ptycho_scan sparse_ptycho_scan",
    "beamline.devices": "PtychoCamera ScanStage",
    "beamline.sim": "SimulatedBeamline",
    "beamline.replay": "ReplayBeamline replay_scan",
    # the catalog: connect, write raw runs, find and look
    "catalog.connection.connect": "connect",
    "catalog.connection.server": "CatalogServer serve_catalog",
    "catalog.raw.writer": "RawWriter raw_writer recover",
    "catalog.runs.data_keys": "DataKeys",
    "catalog.runs.measured": "ProbeSetup RunFrames measured_run",
    "catalog.results.client": "PtychoReconstruction reconstructions",
    "viewer": "LiveView reconstruction_figure",
    # a session: what it keeps, says, and shows while a plan runs
    "beamline.metadata": "PersistentMetadata",
    "messages": "show_messages",
    "plan_windows": "WindowsDuringPlan",
    # labels
    "live.batch.label": "label read_label",
    "catalog.results.label_client": "PtychoLabel labels",
    # models: what they promise, as files, in the catalog
    "card": "ModelCard load_card",
    "recon.models.checkpoint": "load_model save_model",
    "recon.models.any_probe": "for_probe",
    "recon.models.archive": "pack unpack",
    "recon.models.upstream.importer": "import_upstream",
    "recon.models.upstream.input_step": "InputStep",
    "recon.inference.reconstructor": "Reconstructor",
    "catalog.registry.registry": "Registry",
    # train and learn
    "recon.training.fit": "fine_tune fit",
    "recon.training.config": "TrainingConfig",
    "recon.data.batches": "Mix",
    "recon.data.scans": "LabelledScan MeasuredScan",
    "live.learning.service": "CatalogLearner",
    "live.learning.config": "LearnerConfig",
    # optics and measures
    "optics.geometry": "Geometry",
    "optics.framing": "PreprocessConfig",
    "optics.probe_file": "read_probe",
    "optics.probe_family": "ProbeFamily",
    "optics.cxi": "CxiScan read_cxi",
    "optics.simulate": "SimulatedExperiment",
    "recon.evaluation.metrics": "fourier_ring_correlation phase_correlation phase_mae ssim",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    """Import `name` from where it lives, once (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""Live neural ptychography for Bluesky: reconstruct while you scan, and scan only as densely as needed.

Everything here is imported on first use, so that ``import bluesky_ptychonn`` costs nothing and a plan never pays
for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bluesky_ptychonn.beamline.plans import (
        ptycho_scan,
        rel_ptycho_scan,
        rel_sparse_ptycho_scan,
        sparse_ptycho_scan,
    )
    from bluesky_ptychonn.catalog.connection.server import connect, serve_catalog
    from bluesky_ptychonn.catalog.results.client import reconstructions
    from bluesky_ptychonn.live.batch.reconstruct import reconstruct
    from bluesky_ptychonn.live.callback import LiveReconstruction
    from bluesky_ptychonn.optics.geometry import Geometry
    from bluesky_ptychonn.recon.models.any_probe import for_probe
    from bluesky_ptychonn.recon.models.checkpoint import load_model
    from bluesky_ptychonn.recon.training.fit import fine_tune

__version__ = "0.1.0"

__all__ = [
    "Geometry",
    "LiveReconstruction",
    "__version__",
    "connect",
    "fine_tune",
    "for_probe",
    "load_model",
    "ptycho_scan",
    "reconstruct",
    "reconstructions",
    "rel_ptycho_scan",
    "rel_sparse_ptycho_scan",
    "serve_catalog",
    "sparse_ptycho_scan",
]

_HOMES = {
    "Geometry": "optics.geometry",
    "LiveReconstruction": "live.callback",
    "connect": "catalog.connection.server",
    "for_probe": "recon.models.any_probe",
    "fine_tune": "recon.training.fit",
    "load_model": "recon.models.checkpoint",
    "ptycho_scan": "beamline.plans",
    "reconstruct": "live.batch.reconstruct",
    "reconstructions": "catalog.results.client",
    "rel_ptycho_scan": "beamline.plans",
    "rel_sparse_ptycho_scan": "beamline.plans",
    "serve_catalog": "catalog.connection.server",
    "sparse_ptycho_scan": "beamline.plans",
}


def __getattr__(name: str) -> Any:
    """Import `name` from where it lives, once (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

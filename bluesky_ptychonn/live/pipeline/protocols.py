"""What a run's reconstruction is made of: the protocols between documents, network and catalog."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.results.block import Block
from bluesky_ptychonn.catalog.runs.data_keys import RunLayout
from bluesky_ptychonn.catalog.runs.frame_source import FrameReader
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.inference.patch_batch import PatchBatch
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from bluesky_ptychonn.recon.quality.verdict import Verdict


class FrameReconstructor(Protocol):
    """Frames to patches; `recon.inference.reconstructor.Reconstructor` is one."""

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Rows and columns of a patch, px."""

    @property
    def weight(self) -> NDArray[np.float32]:
        """Weight (h, w) of a patch's pixels in the mosaic."""

    @property
    def anchor(self) -> float:
        """How strongly a mosaic pulls each patch's mean phase to zero."""

    @property
    def pixel_m(self) -> float:
        """Object pixel of the patches, m."""

    def reconstruct(self, frames: NDArray[Any]) -> PatchBatch:
        """Make patches of counts (n, H, W); ValueError in words when frames do not fit the model."""

    @property
    def refinement(self) -> Refinement | None:
        """How to refine mosaics; None for not at all."""

    def refine(
        self,
        image: MosaicImage,
        frames: NDArray[Any],
        y_m: NDArray[np.float64],
        x_m: NDArray[np.float64],
        within_s: float = ...,
    ) -> tuple[MosaicImage, dict[str, Any]]:
        """Refine a mosaic by its frames (n, H, W); ValueError in words when it cannot be."""

    def placed(self, patches: NDArray[np.complex64], y_m: NDArray[np.float64], x_m: NDArray[np.float64]) -> None:
        """Hear where patches (n, h, w) of this run lie, m."""

    @property
    def probe_factor(self) -> float:
        """Factor that brings the probe to the run's flux, as the latest frames were made with."""

    def settle(self) -> None:
        """Hold flux and figures as they are: what comes now are frames of the run that are done again."""

    def verdict(self) -> Verdict | None:
        """Judge the run so far; None before its first frame."""

    def describe(self) -> dict[str, Any]:
        """Model, device and settings, for the result's metadata; ``verdict`` on the run once there are frames."""


class Sink(Protocol):
    """Where results go; `catalog.results.sink.ResultSink` is one."""

    @property
    def key(self) -> str:
        """The reconstruction's uid."""

    @property
    def asked_s(self) -> float:
        """Seconds that the catalog took to answer, so far."""

    @property
    def written(self) -> Set[int]:
        """Sequence numbers in the catalog."""

    @property
    def spooled(self) -> Set[int]:
        """Sequence numbers taken that wait on disk for the catalog."""

    @property
    def spool_bytes(self) -> int:
        """Bytes on disk that wait for the catalog."""

    @property
    def waits_since(self) -> float | None:
        """Since when the oldest frame waits there, POSIX seconds; None where none does."""

    @property
    def behind(self) -> bool:
        """Whether anything waits for the catalog: frames, a mosaic, metadata."""

    @property
    def problem(self) -> str:
        """Why what waits could not be sent, in words; empty when all is well."""

    def make_room(self) -> None:
        """See to it that the next block can be taken; ConnectionError when it cannot."""

    def deliver(self) -> bool:
        """Send what waits, for a short while; whether nothing is left."""

    def write_block(self, block: Block) -> None:
        """Write frames, keyed by sequence number, the last one wins."""

    def write_mosaic(self, image: MosaicImage, **metadata: Any) -> None:
        """Replace the mosaic by a whole snapshot, and change the result's metadata with it."""

    def update(self, **metadata: Any) -> None:
        """Change the result's metadata."""

    def finish(self, exit_status: str | None, counts: Mapping[str, Any], refused: str = "") -> str:
        """Verify and close; returns the status that stands in the catalog.

        No exit status while the run goes on; `refused` says why it cannot be reconstructed.
        """


class ComponentFactory(Protocol):
    """Makes the parts of a run's reconstruction; handed in, so that tests need neither torch nor Tiled."""

    @property
    def model(self) -> str:
        """Model that makes reconstructors, ``name/version``."""

    @property
    def model_folder(self) -> str:
        """Where that lies; empty for one that was given loaded."""

    @property
    def problem(self) -> str:
        """Why it is not the model that it should be, in words; empty when all is well."""

    def for_run(self, made_by: str = "") -> ComponentFactory:
        """Make a factory that keeps its model for one run: the one it began with, or else the champion of now."""

    def reconstructor(self, geometry: Geometry) -> FrameReconstructor:
        """Reconstructor for a geometry; ValueError in words when the model does not fit it."""

    def source(self, start: Mapping[str, Any], stream: str, layout: RunLayout) -> FrameReader:
        """Frames of a run."""

    def is_raw_run_complete(self, start: Mapping[str, Any]) -> bool:
        """Whether the raw run in the catalog has its stop document; ConnectionError when there is no answer."""

    def sink(
        self,
        start: Mapping[str, Any],
        metadata: Mapping[str, Any],
        patch_shape: tuple[int, int] | None,
        expected: int | None,
    ) -> Sink:
        """Make a result to write to; no `patch_shape` for a run that fails before its first frame."""

"""The real parts of a reconstruction: network, Tiled frames, Tiled results."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.stream.keys import Layout
from bluesky_ptychonn.stream.lull import Lull
from bluesky_ptychonn.stream.parts import Reconstructs, Sink
from bluesky_ptychonn.stream.session import Order
from bluesky_ptychonn.stream.source import TiledFrames

log = logging.getLogger(__name__)


class TiledWorkshop:
    """Makes reconstructors, sources and sinks; loads the network and warms it up at once.

    Parameters
    ----------
    order : Order
        What to make them of.
    session : str
        Name of the session; a run has one result in each.
    root : tiled client, optional
        Root of the catalog; connected to when not given.
    api_key : str, optional
        Its key.
    model : Model, optional
        A loaded model; else the one in the order's folder.
    folder : Path, optional
        The session's folder, to make requests when its scans make none.

    Raises
    ------
    ValueError
        When model or device cannot be used.
    """

    def __init__(
        self,
        order: Order,
        session: str,
        *,
        root: Any = None,
        api_key: str | None = None,
        model: Any = None,
        folder: Path | None = None,
    ) -> None:
        began = time.monotonic()
        import torch

        from bluesky_ptychonn.recon.checkpoint import load_model
        from bluesky_ptychonn.recon.engine import Reconstructor
        from bluesky_ptychonn.stream.server import connect

        if order.threads:
            torch.set_num_threads(order.threads)
        self._order = order
        self._before = None if folder is None else Lull(folder).wait
        self._session = uuid.uuid5(uuid.NAMESPACE_URL, f"ptychonn:{session}")
        self._model = load_model(order.model, order.device) if model is None else model
        self._settings: dict[str, Any] = {
            "device": order.device,
            "batch_size": order.batch_size,
            "precision": order.precision,
            "preprocess": order.preprocess,
            "refinement": order.refinement,
        }
        first = Reconstructor(self._model, order.geometry, **self._settings)
        first.warm_up()
        _import_early()
        self.device = first.device_name
        self._reconstructors: dict[str, Reconstructor] = {}
        # Last: what is wrong with the model or the device is said at once, and not only when the catalog answers.
        self._root = connect(order.catalog, api_key=api_key) if root is None else root
        log.info("%s on %s, ready in %.1f s", self._model, self.device, time.monotonic() - began)

    def reconstructor(self, geometry: Geometry) -> Reconstructs:
        """Make a reconstructor for a run of this geometry; the network is shared."""
        from bluesky_ptychonn.recon.engine import Reconstructor

        key = geometry.model_dump_json(exclude={"sources"})
        if key not in self._reconstructors:
            self._reconstructors[key] = Reconstructor(self._model, geometry, **self._settings)
        return self._reconstructors[key].for_run()  # the beam may differ from run to run

    def source(self, start: Mapping[str, Any], stream: str, layout: Layout) -> TiledFrames:
        """Frames of a run in this catalog."""
        where = [part for part in self._order.raw.split("/") if part]
        path = (*where, start["uid"], stream, layout.frame_key)
        return TiledFrames(self._root, path, layout.frame_shape, before_request=self._before)

    def sink(
        self,
        start: Mapping[str, Any],
        metadata: Mapping[str, Any],
        patch_shape: tuple[int, int] | None,
        expected: int | None,
    ) -> Sink:
        """Make a result in this catalog."""
        from bluesky_ptychonn.stream.sink import ResultSink

        return ResultSink(
            self._root,
            start=start,
            metadata=dict(metadata),
            patch_shape=patch_shape,
            frames_expected=expected,
            # The same for every worker of a session: one that starts again goes on with the same result.
            key=uuid.uuid5(self._session, start["uid"]).hex,
            before_request=self._before,
            patience_s=1.0,  # the run is tried again later; others go on meanwhile
        )


def _import_early() -> None:
    """Import what the first run would import in its midst, beside a scan."""
    import hdf5plugin  # noqa: F401
    import pyarrow as pa  # noqa: F401
    import tiled.structures.array
    import tiled.structures.table  # noqa: F401

    import bluesky_ptychonn.stream.sink  # noqa: F401

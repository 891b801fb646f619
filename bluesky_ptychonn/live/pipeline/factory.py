"""The real parts of a reconstruction: network, Tiled frames, Tiled results."""

from __future__ import annotations

import copy
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bluesky_ptychonn.catalog.connection.circuit_breaker import CircuitBreaker
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.registry.champion import Champion, cache_folder
from bluesky_ptychonn.catalog.runs.data_keys import RunLayout
from bluesky_ptychonn.catalog.runs.frame_source import TiledFrames, WatchedFrames
from bluesky_ptychonn.live.pipeline.protocols import Reconstructs, Sink
from bluesky_ptychonn.live.pipeline.settings import SPOOL, ReconstructionSettings
from bluesky_ptychonn.optics.geometry import Geometry

log = logging.getLogger(__name__)

_SIGN_S = 10.0


class _LoadedModel:
    """A loaded model with its reconstructors, one for each geometry; the network is shared."""

    def __init__(self, model: Any, folder: str, order: ReconstructionSettings) -> None:
        from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor

        self.folder = folder
        self.name = f"{model.card.name}/{model.card.version}"
        self._model = model = model.on_cpu()  # from where it goes to the device: one that is lost takes nothing with it
        self._settings: dict[str, Any] = {
            "device": order.device,
            "batch_size": order.batch_size,
            "precision": order.precision,
            "preprocess": order.preprocess,
            "refinement": order.refine,
        }
        self._first = self._last = Reconstructor(model, order.geometry, **self._settings)
        self._reconstructors: dict[str, Reconstructor] = {}
        self._warm = False

    @classmethod
    def load(cls, folder: str, order: ReconstructionSettings) -> _LoadedModel:
        from bluesky_ptychonn.recon.models.checkpoint import load_model

        return cls(load_model(folder, "cpu"), folder, order)

    @property
    def device(self) -> str:
        """What the network runs on, and what befell that in the last run."""
        events = self._last.device_events
        return self._last.device_name + (f" ({events[-1]})" if events else "")

    def warm_up(self) -> None:
        """Let the network see its first frame, once."""
        if not self._warm:
            self._first.warm_up()
            self._warm = True

    def reconstructor(self, geometry: Geometry) -> Reconstructs:
        from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor

        key = geometry.model_dump_json(exclude={"sources"})
        if key not in self._reconstructors:
            self._reconstructors[key] = Reconstructor(self._model, geometry, **self._settings)
        self._last = self._reconstructors[key].for_run()  # the beam may differ from run to run
        return self._last


class TiledComponentFactory:
    """Makes reconstructors, sources and sinks; loads the network and warms it up at once.

    Where the order names a champion, its model is what the catalog says when a run begins.

    Parameters
    ----------
    order : ReconstructionSettings
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
        The session's folder, to keep results there that the catalog does not take; without one a catalog that does not
        answer is the caller's.
    before_request : callable, optional
        Called before every request to the catalog.

    Attributes
    ----------
    problem : str
        Why it is not the champion that is at work, in words; empty when it is, or none is followed.

    Raises
    ------
    ValueError
        When model or device cannot be used.
    """

    def __init__(
        self,
        order: ReconstructionSettings,
        session: str,
        *,
        root: Any = None,
        api_key: str | None = None,
        model: Any = None,
        folder: Path | None = None,
        before_request: Callable[[], None] | None = None,
    ) -> None:
        began = time.monotonic()
        import torch

        from bluesky_ptychonn.catalog.connection.server import connect

        if order.threads:
            torch.set_num_threads(order.threads)
        self._order = order
        self._spool = None if folder is None else folder / SPOOL
        self._session = uuid.uuid5(uuid.NAMESPACE_URL, f"ptychonn:{session}")
        self.problem = ""
        bench = None
        if model is not None or order.model:  # what is wrong with it is said at once, not when the catalog answers
            bench = _LoadedModel.load(order.model, order) if model is None else _LoadedModel(model, "", order)
        _import_early()
        if root is None:
            ask_for_a_sign(order.catalog)
        self._root = connect(order.catalog, api_key=api_key) if root is None else root
        self._line = CircuitBreaker(self._root, before_request, own=root is None)
        self._champion = None
        if order.champion:
            place = cache_folder(None if folder is None else folder.parent)
            self._champion = Champion(self._root, order.champion, place, self._line.wait)
            bench = self._of_now(bench)
        if bench is None:
            raise ValueError(f"model {order.champion or order.model!r} is neither here nor a champion in this catalog")
        self._bench = bench
        bench.warm_up()
        log.info("%s on %s, ready in %.1f s", self.model, self.device, time.monotonic() - began)

    @property
    def device(self) -> str:
        """What the network runs on, and what befell that."""
        return self._bench.device

    @property
    def model(self) -> str:
        """Model that makes reconstructors, ``name/version``."""
        return self._bench.name

    @property
    def model_folder(self) -> str:
        """Where that lies; empty for one that was given loaded."""
        return self._bench.folder

    def for_run(self, made_by: str = "") -> TiledComponentFactory:
        """Make a factory that keeps its model for one run; looks once whether the champion changed.

        Parameters
        ----------
        made_by : str
            Model that an earlier worker began the run with, ``name/version``.
        """
        if self._champion is None:
            return copy.copy(self)
        there = self._bench
        self._bench = self._of_now(there) or there
        if self._bench is not there:
            log.info("champion is %s now, before %s", self.model, there.name)
        run = copy.copy(self)
        if made_by and made_by != self.model:
            run._bench = self._of_then(self._champion, made_by, there)
        return run

    def _of_now(self, there: _LoadedModel | None) -> _LoadedModel | None:
        """Champion, or the order's model where none is decided; what is there when that cannot be had."""
        if self._champion is None:
            return there
        try:
            found = self._champion.look()
            folder = self._order.model if found is None else str(found)
            if folder and (there is None or there.folder != folder):
                bench = _LoadedModel.load(folder, self._order)
                bench.warm_up()
                there = bench
            self.problem = ""
        except Exception as error:  # shown in status and log; a run is not lost for a model that cannot be had
            if there is None:
                raise
            self.problem = f"champion of {self._champion.name}: {error}; {there.name} is at work instead"
            log.warning("%s", self.problem)
        return there

    def _of_then(self, champion: Champion, made_by: str, there: _LoadedModel) -> _LoadedModel:
        """Model that a run began with; where it cannot be had again, the one at work."""
        if made_by == there.name:
            return there
        try:
            if self._order.model:
                local = _LoadedModel.load(self._order.model, self._order)
                if local.name == made_by:
                    return local
            return _LoadedModel.load(str(champion.version(made_by.partition("/")[2])), self._order)
        except Exception as error:  # noqa: BLE001  # as above
            log.warning("model %s, which the run began with: %s; %s goes on with it", made_by, error, self.model)
            return self._bench

    def reconstructor(self, geometry: Geometry) -> Reconstructs:
        """Make a reconstructor for a run of this geometry; the network is shared."""
        return self._bench.reconstructor(geometry)

    def source(self, start: Mapping[str, Any], stream: str, layout: RunLayout) -> WatchedFrames:
        """Frames of a run in this catalog."""
        where = [part for part in self._order.raw.split("/") if part]
        path = (*where, start["uid"], stream, layout.frame_key)
        frames = TiledFrames(self._root, path, layout.frame_shape, before_request=self._line.wait)
        return WatchedFrames(frames, self._line)

    def whole(self, start: Mapping[str, Any]) -> bool:
        """Whether the raw run in the catalog has its stop document: one request."""
        where = [part for part in self._order.raw.split("/") if part]
        with self._line.watched():
            found = TiledNode(self._root, [*where, start["uid"]], self._line.wait).attributes()
        return found is not None and found["metadata"].get("stop") is not None

    def sink(
        self,
        start: Mapping[str, Any],
        metadata: Mapping[str, Any],
        patch_shape: tuple[int, int] | None,
        expected: int | None,
    ) -> Sink:
        """Make a result in this catalog."""
        from bluesky_ptychonn.catalog.results.sink import ResultSink

        with self._line.watched():
            return ResultSink(
                self._root,
                start=start,
                metadata=dict(metadata),
                patch_shape=patch_shape,
                frames_expected=expected,
                # The same for every worker of a session: one that starts again goes on with the same result.
                key=uuid.uuid5(self._session, start["uid"]).hex,
                spool=self._spool,
                spool_limit_bytes=self._order.spool_mib << 20,
                before_request=self._line.wait,
                on_outage=self._line.lost,
                patience_s=1.0,  # the run is tried again later; others go on meanwhile
            )


def ask_for_a_sign(uri: str) -> None:
    """Ask for any answer: Tiled's client would wait for one for half a minute, and then once more.

    Raises
    ------
    ConnectionError
        When there is none within ten seconds.
    """
    import httpx

    try:
        httpx.get(uri, timeout=_SIGN_S)
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):  # `connect` says that in words
            raise ConnectionError(f"catalog {uri} does not answer: {str(error) or type(error).__name__}") from error


def _import_early() -> None:
    """Import what the first run would import in its midst, beside a scan."""
    import hdf5plugin  # noqa: F401
    import pyarrow as pa  # noqa: F401
    import tiled.client.array  # brings dask, xarray, pandas and numba: 3 s
    import tiled.structures.array
    import tiled.structures.table  # noqa: F401

    import bluesky_ptychonn.catalog.results.sink  # noqa: F401

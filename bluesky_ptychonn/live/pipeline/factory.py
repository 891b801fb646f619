"""The real parts of a reconstruction: network, Tiled frames, Tiled results."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bluesky_ptychonn.catalog.connection.circuit_breaker import CircuitBreaker
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.layout import runs_path
from bluesky_ptychonn.catalog.connection.requests import require_answer
from bluesky_ptychonn.catalog.registry.champion import Champion, cache_folder
from bluesky_ptychonn.catalog.runs.data_keys import RunLayout
from bluesky_ptychonn.catalog.runs.frame_source import TiledFrames
from bluesky_ptychonn.live.pipeline.protocols import FrameReconstructor, Sink
from bluesky_ptychonn.live.pipeline.settings import SPOOL, ReconstructionSettings
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.mask_file import read_mask

log = logging.getLogger(__name__)


class _LoadedModel:
    """A loaded model with its reconstructors, one for each geometry; the network is shared."""

    def __init__(self, settings: ReconstructionSettings, folder: str = "", model: Any = None) -> None:
        from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
        from bluesky_ptychonn.recon.models.checkpoint import load_model

        model = load_model(folder, "cpu") if model is None else model
        self.folder = folder
        self.name = f"{model.card.name}/{model.card.version}"
        self._model = model = model.on_cpu()  # from where it goes to the device: one that is lost takes nothing with it
        self._options: dict[str, Any] = {
            "device": settings.device,
            "batch_size": settings.batch_size,
            "precision": settings.precision,
            "preprocess": settings.preprocess,
            "mask": None if settings.mask is None else read_mask(settings.mask),
            "refinement": settings.refine,
        }
        self._first = self._last = Reconstructor(model, settings.geometry, **self._options)
        self._reconstructors: dict[str, Reconstructor] = {}
        self._warm = False

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

    def reconstructor(self, geometry: Geometry) -> FrameReconstructor:
        from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor

        key = geometry.model_dump_json(exclude={"sources"})
        if key not in self._reconstructors:
            self._reconstructors[key] = Reconstructor(self._model, geometry, **self._options)
        self._last = self._reconstructors[key].for_run()  # the beam may differ from run to run
        return self._last


class TiledComponentFactory:
    """Makes reconstructors, sources and sinks; loads the network and warms it up at once.

    Where the settings name a champion, its model is what the catalog says when a run begins; `problem` says why another
    is at work. ValueError when model or device cannot be used.

    Parameters
    ----------
    settings : ReconstructionSettings
    session : str
        Its name; a run has one result in each.
    root : tiled client, optional
        Of the catalog's container; connected to, with the `api_key`, when not given.
    model : Model, optional
        A loaded model; else the one in the settings' folder.
    folder : Path, optional
        The session's folder, to keep results there that the catalog does not take; without one a catalog that does not
        answer is the caller's.
    before_request : callable, optional
        Called before every request to the catalog.
    metadata : mapping, optional
        What every result's metadata say besides.
    """

    def __init__(
        self,
        settings: ReconstructionSettings,
        session: str,
        *,
        root: Any = None,
        api_key: str | None = None,
        model: Any = None,
        folder: Path | None = None,
        before_request: Callable[[], None] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        began = time.monotonic()
        import torch

        from bluesky_ptychonn.catalog.connection.server import connect

        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._settings = settings
        self._metadata = dict(metadata or {})
        self._spool = None if folder is None else folder / SPOOL
        self._session = uuid.uuid5(uuid.NAMESPACE_URL, f"ptychonn:{session}")
        self.problem = ""
        loaded = None
        if model is not None or settings.model:  # what is wrong with it is said at once, not when the catalog answers
            loaded = _LoadedModel(settings, settings.model if model is None else "", model)
        _import_early()
        if root is None:
            require_answer(settings.catalog)
        self._root = connect(settings.catalog, api_key=api_key) if root is None else root
        self._breaker = CircuitBreaker(self._root, before_request, own=root is None)
        self._raw = self._find_runs()
        self._champion = None
        if settings.champion:
            place = cache_folder(None if folder is None else folder.parent)
            self._champion = Champion(self._root, settings.champion, place, self._breaker.wait)
            loaded = self._current_model(loaded)
        if loaded is None:
            raise ValueError(
                f"model {settings.champion or settings.model!r} is neither here nor a champion in this catalog"
            )
        self._loaded = loaded
        loaded.warm_up()
        log.info("%s on %s, ready in %.1f s", self.model, self.device, time.monotonic() - began)

    @property
    def device(self) -> str:
        """What the network runs on, and what befell that."""
        return self._loaded.device

    @property
    def model(self) -> str:
        """Model that makes reconstructors, ``name/version``."""
        return self._loaded.name

    @property
    def model_folder(self) -> str:
        """Where that lies; empty for one that was given loaded."""
        return self._loaded.folder

    def for_run(self, made_by: str = "") -> TiledComponentFactory:
        """Look once whether the champion changed; see `ComponentFactory.for_run`."""
        if self._champion is None:
            return copy.copy(self)
        before = self._loaded
        self._loaded = self._current_model(before) or before
        if self._loaded is not before:
            log.info("champion is %s now, before %s", self.model, before.name)
        run = copy.copy(self)
        if made_by and made_by != self.model:
            run._loaded = self._earlier_model(self._champion, made_by, before)
        return run

    def _current_model(self, at_work: _LoadedModel | None) -> _LoadedModel | None:
        """Champion, or the settings' model where none is decided; the one at work when that cannot be had."""
        if self._champion is None:
            return at_work
        try:
            found = self._champion.current()
            folder = self._settings.model if found is None else str(found)
            if folder and (at_work is None or at_work.folder != folder):
                loaded = _LoadedModel(self._settings, folder)
                loaded.warm_up()
                at_work = loaded
            self.problem = ""
        except Exception as error:  # shown in status and log; a run is not lost for a model that cannot be had
            if at_work is None:
                raise
            self.problem = f"champion of {self._champion.name}: {error}; {at_work.name} is at work instead"
            log.warning("%s", self.problem)
        return at_work

    def _earlier_model(self, champion: Champion, made_by: str, at_work: _LoadedModel) -> _LoadedModel:
        """Model that a run began with; where it cannot be had again, the one at work."""
        if made_by == at_work.name:
            return at_work
        try:
            if self._settings.model:
                local = _LoadedModel(self._settings, self._settings.model)
                if local.name == made_by:
                    return local
            return _LoadedModel(self._settings, str(champion.version(made_by.partition("/")[2])))
        except Exception as error:  # noqa: BLE001  # as above
            log.warning("model %s, which the run began with: %s; %s goes on with it", made_by, error, self.model)
            return self._loaded

    def reconstructor(self, geometry: Geometry) -> FrameReconstructor:
        """Make a reconstructor for a run of this geometry; the network is shared."""
        return self._loaded.reconstructor(geometry)

    def source(self, start: Mapping[str, Any], stream: str, layout: RunLayout) -> TiledFrames:
        """Frames of a run in this catalog."""
        if not self._raw and self._settings.raw is None:  # nothing was there yet; who makes the container may have been
            with contextlib.suppress(ValueError):
                self._raw = self._find_runs()
        path = (*self._raw_path(start), stream, layout.frame_key)
        return TiledFrames(self._root, path, layout.frame_shape, breaker=self._breaker)

    def is_raw_run_complete(self, start: Mapping[str, Any]) -> bool:
        """Whether the raw run in the catalog has its stop document: one request."""
        with self._breaker.recording():
            found = TiledNode(self._root, self._raw_path(start), self._breaker.wait).attributes()
        return found is not None and found["metadata"].get("stop") is not None

    def _raw_path(self, start: Mapping[str, Any]) -> list[str]:
        return [*filter(None, self._raw.split("/")), start["uid"]]

    def _find_runs(self) -> str:
        with self._breaker.recording():
            return runs_path(self._root, self._settings.raw, self._breaker.wait)

    def sink(
        self,
        start: Mapping[str, Any],
        metadata: Mapping[str, Any],
        patch_shape: tuple[int, int] | None,
        expected: int | None,
    ) -> Sink:
        """Make a result in this catalog."""
        from bluesky_ptychonn.catalog.results.provenance import initial_metadata
        from bluesky_ptychonn.catalog.results.sink import ResultSink
        from bluesky_ptychonn.catalog.results.spool import Spool

        # The same for every worker of a session: one that starts again goes on with the same result.
        key = uuid.uuid5(self._session, start["uid"]).hex
        spool = None if self._spool is None else Spool(self._spool / key, self._settings.spool_mib << 20)
        with self._breaker.recording():
            return ResultSink(
                self._root,
                initial_metadata(start, {**metadata, **self._metadata}, patch_shape, expected, self._raw),
                key=key,
                spool=spool,
                breaker=self._breaker,
                patience_s=1.0,  # the run is tried again later; others go on meanwhile
            )


def _import_early() -> None:
    """Import what the first run would import in its midst, beside a scan."""
    import pyarrow as pa  # noqa: F401
    import tiled.client.array  # brings dask, xarray, pandas and numba: 3 s
    import tiled.structures.array
    import tiled.structures.table  # noqa: F401

    import bluesky_ptychonn.catalog.results.sink  # noqa: F401
    from bluesky_ptychonn.optics.hdf5 import import_h5py

    import_h5py()

"""Results into the catalog: patches and their table in blocks, mosaics as whole pictures, a status that was checked.

A block costs three requests whatever its size: amplitudes, phases, table rows. Everything is keyed by sequence number,
so a block that is sent again, after a pause of the plan, a lost answer or a restart, overwrites and never doubles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_ptychonn.backoff import Backoff
from bluesky_ptychonn.catalog.connection.circuit_breaker import CircuitBreaker
from bluesky_ptychonn.catalog.connection.connect import PROCESSED
from bluesky_ptychonn.catalog.connection.errors import CatalogRefusedError, CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.layout import create_in
from bluesky_ptychonn.catalog.results.block import Block, chunk_frames, stretches
from bluesky_ptychonn.catalog.results.frame_table import FrameTable
from bluesky_ptychonn.catalog.results.mosaics import Mosaics
from bluesky_ptychonn.catalog.results.spool import Spool
from bluesky_ptychonn.catalog.results.verification import decide_status, differences

if TYPE_CHECKING:
    from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

SPEC = {"name": "PtychoReconstruction", "version": "1.0"}
PATCHES = ("amplitude_patches", "phase_patches")
_RETRY_S = (0.5, 2.0)  # first and longest wait for a catalog that does not answer
_SLICE_S = 0.5  # of sending what waits, before others have their turn


class ResultSink:
    """One reconstruction in the catalog, being written: a `live.pipeline.protocols.Sink`, for one thread.

    Parameters
    ----------
    root : Tiled container client
        Root of the catalog, as `catalog.connection.connect.connect` returns it.
    metadata : mapping
        See `provenance.initial_metadata`; patches have its ``patch_shape``.
    key : str
        Uid of the reconstruction; one that was begun before goes on.
    spool : Spool, optional
        For blocks that the catalog cannot take now, beyond whose limit `write_block` waits; without one `write_block`
        raises `CatalogUnavailableError` instead.
    breaker : CircuitBreaker, optional
        Asked before every request of a run under way, and told of every one without an answer.
    patience_s : float
        How long to wait for a catalog that does not answer, where waiting is all that is left, s.

    Raises
    ------
    CatalogUnavailableError
        When the catalog does not answer.
    CatalogRefusedError
        When it does not take a result from this key, or has something else under this one.
    """

    def __init__(
        self,
        root: Any,
        metadata: Mapping[str, Any],
        *,
        key: str,
        spool: Spool | None = None,
        breaker: CircuitBreaker | None = None,
        patience_s: float = 60.0,
    ) -> None:
        shape = metadata["patch_shape"]
        self.key = key
        self.patch_shape: tuple[int, int] | None = None if shape is None else (shape[0], shape[1])
        self.problem = ""
        self._patience_s = patience_s
        self._breaker = breaker
        self._spool = spool
        before_request = None if breaker is None else breaker.wait
        self._container = TiledNode(root, [PROCESSED, self.key], before_request)
        self._chunk = chunk_frames(self.patch_shape, metadata["counts"]["expected"])
        self._table = FrameTable(self._container)
        self._mosaics = Mosaics(self._container)
        self._last: Block | None = None
        self._image_due: MosaicImage | None = None
        self._metadata_due: dict[str, Any] = {}
        self._backoff = Backoff(*_RETRY_S)
        parent = TiledNode(root, [PROCESSED], before_request)
        if not create_in(parent, root, PROCESSED, self.key, metadata=metadata, specs=[SPEC]):
            self._resume()
        self._others = parent.requests

    # -- what a worker calls

    @property
    def pending(self) -> int:
        """Frames that are in the local spool and not in the catalog yet."""
        return 0 if self._spool is None else self._spool.frames

    @property
    def spooled(self) -> Set[int]:
        """See `Sink.spooled`."""
        return frozenset() if self._spool is None else self._spool.seq_nums

    @property
    def spool_bytes(self) -> int:
        """See `Sink.spool_bytes`."""
        return 0 if self._spool is None else self._spool.nbytes

    @property
    def waits_since(self) -> float | None:
        """See `Sink.waits_since`."""
        return None if self._spool is None else self._spool.since

    @property
    def behind(self) -> bool:
        """See `Sink.behind`."""
        return bool(self.pending or self._image_due is not None or self._metadata_due)

    @property
    def written(self) -> frozenset[int]:
        """Sequence numbers in the catalog; after a restart, those that need not be done again."""
        return frozenset(self._table.written)

    @property
    def requests(self) -> int:
        """Requests made so far."""
        return self._container.requests + self._others

    @property
    def asked_s(self) -> float:
        """See `Sink.asked_s`."""
        return self._container.seconds

    def write_block(self, block: Block) -> None:
        """Write frames; of two with one sequence number the last wins.

        With a spool this returns also when the catalog does not answer: see `pending`.

        Parameters
        ----------
        block : Block
            Row ``seq_num - 1`` of the patch arrays is a frame's. The table's `time_done` says when the catalog had
            acknowledged amplitude and phase, so that any reader could have them; never earlier than the block's.

        Raises
        ------
        ValueError
            When the patches have another shape. Nothing is written then.
        CatalogUnavailableError
            Without a spool, or with a full one after waiting.
        CatalogRefusedError
            When the catalog will not take it.
        """
        if block.patch_shape != self.patch_shape:
            raise ValueError(f"write_block: patches {block.amplitude.shape}, patch_shape {self.patch_shape} px")
        # In order: a block goes directly only where none waits before it.
        if len(block) and not (self._drain(_SLICE_S) and self._try(self._send, block)) and self._spool is not None:
            self._keep(block, self._spool)

    def make_room(self) -> None:
        """See `Sink.make_room`; asked before frames are read and reconstructed."""
        if self._spool is not None and self._spool.full and not self._drain(_SLICE_S) and self._spool.full:
            raise CatalogUnavailableError(self._full(self._spool))

    def deliver(self) -> bool:
        """Send what waits, for half a second or so; whether nothing is left. Nothing before the next try is due."""
        self._drain(_SLICE_S)
        self._try(self._write_due)
        return not self.behind

    def write_mosaic(self, image: MosaicImage, **metadata: Any) -> None:
        """Replace the mosaic by this snapshot: six requests, more when it outgrew its place.

        When the catalog does not answer and there is a spool, the snapshot is kept and sent later; the latest wins. The
        metadata are merged into the reconstruction's, in the same request.
        """
        self._image_due = image
        self._metadata_due.update(metadata)
        self._try(self._write_due)

    def update(self, **metadata: Any) -> None:
        """Merge into the reconstruction's metadata, e.g. ``status``, ``counts``; None removes a key."""
        self._metadata_due.update(metadata)
        self._try(self._write_due)

    def finish(self, exit_status: str | None, counts: Mapping[str, Any], refused: str = "") -> str:
        """Send what is left, read back, compare, and stamp what is true.

        Parameters
        ----------
        exit_status : str or None
            Of the run's stop document: ``success``, ``abort``, ``fail`` or ``unknown``; None while it goes on.
        counts : mapping
            ``expected`` (int or None), ``seen``, ``reconstructed`` (int) and ``rejected`` (reason to int).
        refused : str
            Why the run cannot be reconstructed, in words; the first of the result's ``problems``.

        Returns
        -------
        str
            ``complete``: the run succeeded and the catalog holds a reconstruction of every frame, as counted here, by
            the plan, and by reading back. ``failed``: nothing was reconstructed, or the catalog does not hold what was
            written. ``partial``: all else.

        Raises
        ------
        CatalogUnavailableError
            When the catalog does not answer for `patience_s`; what waits is still in the spool, and `finish` can be
            called again.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                self._drain(strict=True)
                status = self._finish(exit_status, counts, refused)
                self.problem = ""
                return status
            except CatalogUnavailableError as error:
                self._record_failure(error)
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_S[0])

    def __repr__(self) -> str:
        pending = f", {self.pending} frames pending" if self.pending else ""
        return f"<ResultSink {self.key[:8]}, {len(self._table.written)} frames written{pending}>"

    # -- blocks

    def _send(self, block: Block) -> None:
        """Send both patch arrays and the table: three requests; more where a gap in the numbers holds other frames."""
        if self._table.node is None:
            self._create_nodes(block)
        for first, last in stretches(block.seq_num, self._table.written, self._chunk):
            span = slice(*np.searchsorted(block.seq_num, [first, last + 1]))
            rows = block.seq_num[span] - first
            for name, data in zip(PATCHES, (block.amplitude, block.phase), strict=True):
                whole = np.zeros((last - first + 1, *data.shape[1:]), np.float32)
                whole[rows] = data[span]
                self._container.patch_array(name, whole, first - 1)
        block.time_done[:] = np.maximum(block.time_done, time.time())
        self._table.add(block)
        self._last = block

    def _create_nodes(self, block: Block) -> None:
        for name in PATCHES:
            shape = (self._chunk, *block.patch_shape)
            self._container.create_array(name, shape, shape, ("frame", "y", "x"))
        self._table.create()

    # -- a catalog that does not answer

    def _try(self, send: Callable[..., None], *what: Any) -> bool:
        """Send unless the catalog did not answer a moment ago; whether it was sent. Without a spool it must be."""
        if self._spool is None:
            send(*what)
            return True
        if not self._backoff.due:
            return False
        try:
            send(*what)
        except CatalogUnavailableError as error:
            self._record_failure(error)
            self._backoff.fail()
            return False
        self._backoff.succeed()
        self.problem = ""
        return True

    def _record_failure(self, error: CatalogUnavailableError) -> None:
        self.problem = str(error)
        if self._breaker is not None:
            self._breaker.record_failure(error)

    def _drain(self, for_s: float = float("inf"), *, strict: bool = False) -> bool:
        """Send what the spool holds, oldest first; whether nothing is left."""
        until = time.monotonic() + for_s
        while self._spool is not None and len(self._spool):
            if strict:
                self._send(self._spool.first())
            elif time.monotonic() > until or not self._try(self._send, self._spool.first()):
                return False
            self._spool.drop()
        return True

    def _keep(self, block: Block, spool: Spool) -> None:
        deadline = time.monotonic() + self._patience_s
        while not spool.fits(block):
            if time.monotonic() >= deadline:
                raise CatalogUnavailableError(self._full(spool))
            time.sleep(_RETRY_S[0])
            self._drain(_SLICE_S)
        spool.put(block)

    def _full(self, spool: Spool) -> str:
        return (
            f"the spool {spool.folder} holds {spool.nbytes} bytes, its limit is {spool.limit_bytes} for all runs, and "
            f"the catalog does not answer ({self.problem}); give it a larger one"
        )

    # -- mosaics, metadata, the end

    def _write_due(self) -> None:
        """Send mosaic and metadata that are due."""
        if self._image_due is not None:
            counts = {"reconstructed": self._table.valid, **(self._metadata_due.get("counts") or {})}
            self._mosaics.draw(self._image_due, {**self._metadata_due, "counts": counts})
            self._image_due, self._metadata_due = None, {}
        if self._metadata_due:
            self._container.update(self._metadata_due)
            self._metadata_due = {}

    def _finish(self, exit_status: str | None, counts: Mapping[str, Any], refused: str) -> str:
        self._write_due()
        self._table.finish()
        self._mosaics.finish()
        written = self._table.written
        if written:
            for name in PATCHES:
                self._container.trim_array(name, max(written))
        nodes = self._mosaics.nodes | ({} if self._table.node is None else {"frames": self._table.node})
        self._tidy(nodes)
        found = differences(self._container, nodes, written, self._last, self._mosaics.image, self.patch_shape)
        status, problems = decide_status(exit_status, counts, found, refused)
        self._container.update(
            {
                "status": status,
                "exit_status": exit_status,
                "counts": self._counts(counts),
                "problems": problems or None,
                "time_finished": time.time(),
            }
        )
        written_status = self._metadata().get("status")
        if written_status != status:
            raise CatalogUnavailableError(
                f"{self._container.path}: status {status!r} was written and {written_status!r} is read back"
            )
        return status

    def _metadata(self) -> dict[str, Any]:
        return dict((self._container.attributes() or {}).get("metadata", {}))

    def _counts(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Make counts that leave nothing of older ones when merged: a run that goes on has fewer frames missing."""
        old = self._metadata().get("counts") or {}
        gone = dict.fromkeys(set(old.get("rejected") or {}) - set(counts.get("rejected") or {}))
        rejected = {**gone, **(counts.get("rejected") or {})}
        return {**dict.fromkeys(set(old) - set(counts)), **counts, "rejected": rejected}

    def _tidy(self, nodes: Mapping[str, str]) -> None:
        """Remove what an outage in the middle of a change left behind."""
        for stray in set(self._container.children()) - set(nodes.values()) - set(PATCHES):
            self._container.delete(stray)

    def _resume(self) -> None:
        """Go on with a reconstruction that an earlier process began."""
        found = self._container.attributes()
        place = self._container.path
        if found is None:
            raise CatalogRefusedError(f"{place} is there, and this key does not show it: another user's", 403)
        if found["specs"][0]["name"] != SPEC["name"]:
            raise CatalogRefusedError(f"{place} is there and is not a reconstruction", 409)
        metadata = found["metadata"]
        self._mosaics.resume(metadata)
        self._table.resume(metadata.get("nodes") or {})
        if metadata.get("status") != "live":
            self._container.update({"status": "live", "problems": None, "problem": None})

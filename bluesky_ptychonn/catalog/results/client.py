"""What a user gets from the catalog: a reconstruction with its pictures, table, run and plot; and queries for more.

Tiled hands out `PtychoReconstruction` for every node of that spec (entry point ``tiled.special_client``), so
``cat["processed"][uid]`` is one, through whatever client the catalog was opened: `connect`, Tiled's own, or databroker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.connect import RAW
from bluesky_ptychonn.catalog.connection.errors import CatalogRefusedError, CatalogUnavailableError
from bluesky_ptychonn.catalog.results.block import frames_schema
from bluesky_ptychonn.catalog.results.derived import DerivedData, find_derived
from bluesky_ptychonn.catalog.results.mosaics import PICTURES, Canvas

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

T = TypeVar("T")

SPEC = "PtychoReconstruction"
_LOOK_BACK = 20  # reconstructions under way at once that have no picture yet
_TRIES = 20  # a picture is moved while it grows, and is then found again within a few requests
_TRY_AGAIN_S = 0.05


class Picture:
    """One picture of a reconstruction: the newest whole snapshot whenever it is read.

    Attributes
    ----------
    name : str
        ``amplitude``, ``phase`` (rad), ``coverage`` or ``trust``.
    """

    def __init__(self, reconstruction: PtychoReconstruction, name: str) -> None:
        self.name = name
        self._reconstruction = reconstruction

    def read(self) -> NDArray[np.float32]:
        """Read the picture (H, W) float32; NaN where there is no coverage, except in ``coverage``.

        Raises
        ------
        LookupError
            When there is no picture yet.
        """
        return self._reconstruction._read_again(lambda: self._reconstruction._picture(self.name))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.read(), dtype=dtype)

    def __repr__(self) -> str:
        window = (self._reconstruction._newest().get("mosaic") or {}).get("window")
        size = f"{window[0][1] - window[0][0]} × {window[1][1] - window[1][0]} px" if window else "not there yet"
        return f"<Picture {self.name} {size}>"


class PtychoReconstruction(DerivedData):
    """A reconstruction in the catalog. While its status is ``live`` every read asks for the newest state.

    Attributes
    ----------
    amplitude, phase, coverage, trust : Picture
        ``.read()`` gives an (H, W) float32 array; phase in rad.
    """

    @property
    def amplitude(self) -> Picture:
        """Amplitude of the object's transmission."""
        return Picture(self, "amplitude")

    @property
    def phase(self) -> Picture:
        """Phase of the object's transmission, rad, up to one constant."""
        return Picture(self, "phase")

    @property
    def coverage(self) -> Picture:
        """Summed weight of the patches that fell on a pixel."""
        return Picture(self, "coverage")

    @property
    def trust(self) -> Picture:
        """Trust of the patches that fell on a pixel, 0 to 1; NaN where the model has no probe to judge by."""
        return Picture(self, "trust")

    @property
    def frames(self) -> pd.DataFrame:
        """One row for each frame: ``seq_num, x_m, y_m, trust, valid, flag, time_raw, time_done``.

        ``trust`` is NaN where the model has no probe to judge by. ``time_done`` is when the catalog had acknowledged
        the frame's patches; ``time_done - time_raw`` is the latency.
        """

        def read() -> pd.DataFrame:
            node = (self._newest().get("nodes") or {}).get("frames")
            rows = frames_schema().empty_table() if node is None else self._node.read_rows(node, frames_schema())
            return rows.to_pandas()

        return self._read_again(read)

    def patches(self, seq_nums: Sequence[int] | None = None) -> NDArray[np.complex64]:
        """Read what the network made of single frames.

        Parameters
        ----------
        seq_nums : sequence of int, optional
            Which frames, as in `frames`; by default all rows of the table, in its order.

        Returns
        -------
        (n, h, w) complex64 ndarray
            Amplitude and phase as one; NaN where a frame was rejected.

        Raises
        ------
        LookupError
            When the table does not have one of the frames.
        """
        there = self.frames["seq_num"].to_numpy()
        wanted = there if seq_nums is None else np.asarray(seq_nums, dtype=np.int64)
        missing = np.setdiff1d(wanted, there)
        if len(missing):
            raise LookupError(f"reconstruction {self._uid[:8]}: no frames {missing[:10].tolist()} in its table")
        rows, columns = self.metadata.get("patch_shape") or (0, 0)
        out = np.zeros((len(wanted), rows, columns), np.complex64)
        if not len(wanted):
            return out
        order = np.argsort(wanted)
        cuts = np.flatnonzero(np.diff(wanted[order]) > 64) + 1  # frames apart are asked for apart
        for part in np.split(order, cuts):
            first, stop = int(wanted[part[0]]) - 1, int(wanted[part[-1]])
            shape = (stop, rows, columns)
            amplitude, phase = (
                self._node.read_array(f"{name}_patches", shape, (first, stop)) for name in ("amplitude", "phase")
            )
            pick = wanted[part] - 1 - first
            out[part] = amplitude[pick] * np.exp(1j * phase[pick])
        return out

    def mosaic(self) -> MosaicImage:
        """All four pictures of one snapshot, with their place and pixel size."""

        def read() -> MosaicImage:
            before = self._newest()
            if not before.get("mosaic"):
                raise LookupError(f"reconstruction {self._uid[:8]} ({before['status']}) has no image yet")
            pictures = {name: self._array(before, name) for name in PICTURES}
            after = self._newest()["mosaic"]
            if before["mosaic"]["snapshot"] != after["snapshot"]:
                raise CatalogRefusedError("the mosaic was replaced while it was read", 409)
            return Canvas.from_metadata(after).cut(after["window"], pictures.__getitem__)

        return self._read_again(read)

    @property
    def status(self) -> str:
        """``live``, ``complete``, ``partial`` or ``failed``."""
        return str(self._newest()["status"])

    @property
    def counts(self) -> dict[str, Any]:
        """Frames ``expected``, ``seen``, ``reconstructed``, and ``rejected`` by reason."""
        return dict(self._newest().get("counts") or {})

    @property
    def problems(self) -> list[str]:
        """Why the status is not ``complete``, in words."""
        return list(self._newest().get("problems") or [])

    @property
    def verdict(self) -> dict[str, Any]:
        """Whether the run can be believed: ``level`` (ok, doubtful, wrong), ``reasons`` in words, and the ``figures``.

        Empty before the first frame, and where the model has no probe to judge by.
        """
        return dict(self._newest().get("verdict") or {})

    @property
    def pixel_m(self) -> float | None:
        """Pixel size of the pictures, m; None before the first."""
        return self._newest().get("pixel_m")

    @property
    def raw(self) -> Any:
        """The run this was made from.

        Raises
        ------
        LookupError
            When this catalog does not hold it.
        """
        uid = self.metadata["raw"]["uid"]
        from tiled.client import from_context

        root = from_context(
            self.context, structure_clients=self.structure_clients, node_path_parts=self.path_parts[:-2]
        )
        place = self.metadata["raw"].get("container", RAW)
        try:
            return root[(*filter(None, place.split("/")), uid)]
        except KeyError:
            raise LookupError(f"run {uid} is not in {place or 'the root'}{'/' * bool(place)} of this catalog") from None

    def wait(self, timeout: float = 60.0) -> PtychoReconstruction:
        """Wait until it is no longer ``live``; returns itself.

        Raises
        ------
        TimeoutError
            When it still is after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while self.status == "live":
            if time.monotonic() > deadline:
                raise TimeoutError(f"reconstruction {self._uid[:8]} is still live after {timeout:g} s")
            time.sleep(0.2)
        return self

    def plot(self, path: Any = None) -> Figure:
        """Draw amplitude, phase, trust and coverage with the scan's points, axes in µm; in a session, into a window.

        Parameters
        ----------
        path : path, optional
            Also save it there.
        """
        from bluesky_ptychonn.catalog.results.plot import plot_reconstruction, show

        figure = plot_reconstruction(self.mosaic(), self.frames, self._title())
        if path is not None:
            figure.savefig(path, dpi=150)
        show(figure)
        return figure

    def __repr__(self) -> str:
        metadata = self._newest()
        parts = [self._title(), f"raw {metadata['raw']['uid'][:8]}"]
        verdict = metadata.get("verdict") or {}
        if verdict.get("level"):
            why = (verdict.get("reasons") or [""])[0].partition(" (")[0]
            parts.append(f"verdict {verdict['level']}{f' ({why})' if why else ''}")
        pixel, window = metadata.get("pixel_m"), (metadata.get("mosaic") or {}).get("window")
        if pixel and window:
            rows, columns = (stop - start for start, stop in window)
            parts.append(f"{columns * pixel * 1e6:.2f} × {rows * pixel * 1e6:.2f} µm at {pixel * 1e9:.1f} nm")
        return f"<{SPEC} {self._uid[:8]} {', '.join(parts)}>"

    # -- inside

    def _panels(self) -> dict[str, NDArray[np.float32]]:
        image = self.mosaic()
        return {name: getattr(image, name) for name in ("amplitude", "phase", "trust", "coverage")}

    def _title(self) -> str:
        metadata = self.metadata
        raw, counts, model = metadata["raw"], metadata.get("counts") or {}, metadata.get("model") or {}
        parts = []
        if raw.get("scan_id") is not None:
            parts.append(f"scan {raw['scan_id']}")
        if raw.get("sample") is not None:
            parts.append(str(raw["sample"]))
        parts.append(str(metadata["status"]))
        if (metadata.get("refinement") or {}).get("sweeps"):
            parts.append("refined")
        done, expected = counts.get("reconstructed"), counts.get("expected")
        if done is not None:
            parts.append(f"{done}{f'/{expected}' if expected else ''} frames")
        rejected = sum((counts.get("rejected") or {}).values())
        if rejected:
            parts.append(f"{rejected} rejected")
        if isinstance(model, dict) and model.get("name"):
            parts.append(f"model {model['name']} {model.get('version', '')}".rstrip())
        return ", ".join(parts)

    def _newest(self) -> dict[str, Any]:
        """Metadata; of a live reconstruction, as it is now."""
        if self.metadata["status"] == "live":
            self.refresh()
        return dict(self.metadata)

    def _picture(self, name: str) -> NDArray[np.float32]:
        metadata = self._newest()
        whole = self._array(metadata, name)
        (top, bottom), (left, right) = metadata["mosaic"]["window"]
        return whole[top:bottom, left:right]

    def _array(self, metadata: dict[str, Any], name: str) -> NDArray[np.float32]:
        """Read the array that a picture is in."""
        mosaic, node = metadata.get("mosaic"), (metadata.get("nodes") or {}).get(name)
        if not mosaic or not node:
            status, why = metadata["status"], "; ".join(metadata.get("problems") or [])
            rest = f": {why}" if status == "failed" and why else " yet"
            raise LookupError(f"reconstruction {self._uid[:8]} ({status}) has no {name}{rest}")
        return self._node.read_array(node, tuple(mosaic["shape"]))

    def _read_again(self, read: Callable[[], T]) -> T:
        """Read again what was moved meanwhile."""
        for _ in range(_TRIES):
            try:
                return read()
            except (CatalogRefusedError, CatalogUnavailableError) as error:
                if error.status is None:  # no answer at all
                    raise
                # Tiled answers 404 for a picture that was outgrown, and 500 where that happens in the midst of reading.
                time.sleep(_TRY_AGAIN_S)
                self.refresh()
        return read()


def reconstructions(
    catalog: Any,
    *,
    raw: Any = None,
    model: str | None = None,
    version: str | None = None,
    status: str | None = None,
    sample: str | None = None,
    limit: int = 100,
) -> list[PtychoReconstruction]:
    """Find reconstructions, newest first; refused attempts, which made no image, only by ``status="failed"``.

    Parameters
    ----------
    catalog : anything `connect` takes
        The catalog.
    raw : str, int or run, optional
        The run they were made from: its uid, its scan id, or the run itself.
    model, version : str, optional
        Name and version of the model.
    status : str, optional
        ``live``, ``complete``, ``partial`` or ``failed``.
    sample : str, optional
        Name of the sample in the run's start document.
    limit : int
        Most to return. For more, or other conditions, search ``catalog["processed"]`` with Tiled's queries.

    Raises
    ------
    ValueError
        When `status` is not a status, or there is neither ``processed/`` nor a place of runs.

    Examples
    --------
    >>> reconstructions("ptychonn", raw=uid, status="complete")[0].plot()  # doctest: +SKIP
    """
    allowed = ("live", "complete", "partial", "failed")
    if status is not None and status not in allowed:
        raise ValueError(f"reconstructions: status {status!r}; allowed: {', '.join(allowed)}")
    conditions = {"model.name": model, "model.version": version, "status": status, "raw.sample": sample}
    return find_derived(catalog, SPEC, raw, limit, unlike="failed" if status is None else None, **conditions)


def newest_with_image(catalog: Any, *, raw: Any = None) -> PtychoReconstruction | None:
    """Find the newest reconstruction that has pictures, of a run where one is given; None without one."""
    found = reconstructions(catalog, raw=raw, limit=_LOOK_BACK)
    return next((result for result in found if result.metadata.get("mosaic")), None)

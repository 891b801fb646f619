"""Pictures for people: a reconstruction beside its truth, and one that follows a scan while it runs."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.results import plot
from bluesky_ptychonn.plan_windows import windows_are_served

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

log = logging.getLogger(__name__)

_UM = 1e6
_LIVE_SIZE = (9.0, 8.0)  # inches
_NOT_JUDGED = "0.55"  # grey


def reconstruction_figure(
    image: MosaicImage,
    frames: pd.DataFrame,
    title: str = "",
    *,
    truth: NDArray[np.complex64] | None = None,
    probe_diameter_m: float | None = None,
) -> Figure:
    """Draw truth (where it is known), phase, amplitude, trust, coverage and scan points; axes in µm.

    Parameters
    ----------
    image : MosaicImage
        The reconstruction.
    frames : DataFrame
        Columns ``x_m, y_m`` (m), ``valid`` and ``trust``.
    title : str
        Above it all.
    truth : (H, W) complex64 ndarray, optional
        The true object on the mosaic's grid. Phases are then turned to agree, and share one colour scale.
    probe_diameter_m : float, optional
        Illuminated diameter, drawn to scale beside the scan points.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        When truth and mosaic differ in shape.
    """
    figure, axes = plot.make_axes(image, 2, 3, title)
    if truth is None:
        plot.draw_phase(axes[0, 0], image, plot.centre_phase(image.phase), "phase")
        plot.draw_amplitude(axes[0, 1], image)
        axes[0, 2].set_axis_off()
        axes[0, 2].text(0, 1, _summary(image, frames), va="top", transform=axes[0, 2].transAxes, fontsize="medium")
    else:
        ours, theirs = _aligned_phases(image, truth)
        limits = plot.colour_limits(theirs[np.isfinite(ours)])
        plot.draw_phase(axes[0, 0], image, theirs, "true phase", limits, known=True)
        plot.draw_phase(axes[0, 1], image, ours, "reconstructed phase", limits)
        plot.draw_amplitude(axes[0, 2], image)
    plot.draw_trust(axes[1, 0], image)
    plot.draw_coverage(axes[1, 1], image)
    _draw_trusted_points(axes[1, 2], frames, probe_diameter_m)
    return figure


def _aligned_phases(image: MosaicImage, truth: NDArray[np.complex64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Our phase and the true one (H, W), the global phase taken out where we cover, around the truth's mean."""
    if truth.shape != image.phase.shape:
        raise ValueError(f"reconstruction_figure: truth {truth.shape} px and mosaic {image.phase.shape} px differ")
    from bluesky_ptychonn.recon.evaluation.metrics import phase_error

    covered = np.isfinite(image.phase)
    unit = np.exp(1j * np.angle(truth))
    theirs = np.angle(unit * np.conj(unit[covered].sum() or 1.0))
    return (theirs + phase_error(image.phase, truth) if covered.any() else image.phase), theirs


def _draw_trusted_points(axis: Axes, frames: pd.DataFrame, probe_diameter_m: float | None) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Circle

    valid, x, y = plot.scan_points_um(frames)
    size = float(np.clip(6000 / max(len(frames), 1), 2.0, 30.0))
    trust = frames["trust"].to_numpy()[valid]
    judged = bool(np.isfinite(trust).any() or not len(trust))
    colours = colormaps["cividis"].with_extremes(bad=_NOT_JUDGED)
    points = axis.scatter(
        x[valid], y[valid], s=size, c=trust, cmap=colours, vmin=0, vmax=1, linewidths=0, plotnonfinite=True
    )
    label = "trust of the frame" if judged else f"trust: {plot.NOT_JUDGED}"
    axis.figure.colorbar(points, ax=axis, shrink=0.85, label=label)
    title = f"scan points: {valid.sum()} frames"
    if (~valid).any():
        axis.scatter(x[~valid], y[~valid], s=2 * size, c="tab:red", marker="x")
        title += f", {(~valid).sum()} rejected (×)"
    if probe_diameter_m is not None and len(x):
        middle = int(np.argmin((x - np.median(x)) ** 2 + (y - np.median(y)) ** 2))
        axis.add_patch(
            Circle((x[middle], y[middle]), probe_diameter_m * _UM / 2, fill=False, color="tab:red", linewidth=1.2)
        )
        title += ", ○ probe"
    axis.set_facecolor("0.93")
    axis.set_title(title, fontsize="medium")
    axis.set_aspect("equal")


def _summary(image: MosaicImage, frames: pd.DataFrame) -> str:
    rows, columns = image.phase.shape
    size = image.pixel_m * _UM
    covered = np.isfinite(image.phase).mean()
    lines = [
        f"{columns * size:.2f} × {rows * size:.2f} µm, {columns} × {rows} px of {size * 1e3:.1f} nm",
        f"{covered:.0%} of it covered",
        f"{len(frames)} frames",
    ]
    trust = frames["trust"].to_numpy()[frames["valid"].to_numpy(dtype=bool)]
    if np.isfinite(trust).any():
        lines.append(f"median trust {np.nanmedian(trust):.2f}")
    elif len(trust):
        lines.append(f"trust {plot.NOT_JUDGED}")
    return "\n".join(lines)


class LiveView:
    """A figure of the newest reconstruction that follows the catalog while scans run.

    A thread of its own reads the catalog; the RunEngine's thread is never asked for anything. Where matplotlib has a
    window, the window's own timer draws what was read; elsewhere call `draw`, or let `path` be written. While a plan
    runs, every RunEngine serves windows of Qt, which matplotlib takes where PySide6 is installed, and one that was made
    with `WindowsDuringPlan` all windows; where neither is so, a line says it.

    Parameters
    ----------
    source : LiveReconstruction or catalog
        What to follow: a live reconstruction's latest run, or the newest reconstruction of a catalog (anything
        `connect` takes).
    interval_s : float
        Time between two reads of the catalog, s.
    path : path, optional
        Picture file to rewrite with every new snapshot.

    Raises
    ------
    ValueError
        When the interval is not above 0.

    Examples
    --------
    >>> view = LiveView(live)  # doctest: +SKIP
    >>> RE(sparse_ptycho_scan([camera], stage.x, stage.y, 5, 5, model="simulated-zp64"))  # doctest: +SKIP
    >>> view.close()  # doctest: +SKIP
    """

    def __init__(self, source: Any, *, interval_s: float = 1.0, path: str | Path | None = None) -> None:
        if not interval_s > 0:
            raise ValueError(f"LiveView: interval_s {interval_s} s must be above 0")
        self.problem = ""
        self.snapshots = 0
        self.figure: Figure | None = None
        self._source = source
        self._interval_s = interval_s
        self._path = path
        self._newest: _Snapshot | None = None  # replaced whole, so that the two threads need no lock
        self._drawn: _Snapshot | None = None
        self._timer: Any = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="LiveView", daemon=True)
        self._thread.start()
        if plot.has_windows():
            import matplotlib.pyplot as plt

            self.figure = plt.figure(figsize=_LIVE_SIZE, layout="constrained")
            self._timer = self.figure.canvas.new_timer(interval=max(100, int(1e3 * interval_s / 2)))
            self._timer.add_callback(self.draw)
            self._timer.start()
            self.figure.show()
            if not windows_are_served():
                log.warning(
                    "LiveView: windows of %s do not move while a plan runs. Install PySide6, or make the RunEngine "
                    "with RunEngine(during_task=WindowsDuringPlan())",
                    plt.get_backend(),
                )
        elif path is None:
            log.warning("LiveView: matplotlib has no windows here. Call its draw(), or make it with path='live.png'")

    def draw(self) -> Figure | None:
        """Draw the newest snapshot into the figure, if it is not there yet; None while there is none at all."""
        newest = self._newest
        if newest is not None and newest is not self._drawn:
            self.figure = newest.draw(self.figure)
            self.figure.canvas.draw_idle()
            self._drawn = newest
        return self.figure

    def close(self) -> None:
        """Stop following; the figure stays. Safe to call twice."""
        self._closing.set()
        self._thread.join(10.0)
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """How many snapshots were seen, and what went wrong last."""
        status = f"{self.snapshots} snapshots" + (f", {self.problem}" if self.problem else "")
        return f"<LiveView {'closed' if self._closing.is_set() else 'following'}, {status}>"

    def _follow(self) -> None:
        while True:
            closing = self._closing.is_set()  # before the last read, so that what came before `close` is seen
            try:
                self._read_newest()
                self.problem = ""
            except LookupError:
                pass  # nothing there yet
            except Exception as error:  # noqa: BLE001  # shown in the repr; a view must outlive a catalog's restart
                self.problem = f"{type(error).__name__}: {error}"
            if closing:
                return
            self._closing.wait(self._interval_s)

    def _read_newest(self) -> None:
        result = self._latest()
        result.refresh()
        metadata = result.metadata
        version = (result.path_parts[-1], (metadata.get("mosaic") or {}).get("snapshot"), metadata["status"])
        if self._newest is not None and self._newest.version == version:
            return
        self._newest = _Snapshot(version, result.mosaic(), result.frames, repr(result).strip("<>"))
        self.snapshots += 1
        if self._path is not None:
            self._newest.draw().savefig(self._path, dpi=100)

    def _latest(self) -> Any:
        if hasattr(self._source, "result"):
            return self._source.result()
        from bluesky_ptychonn.catalog.results.client import newest_with_image

        found = newest_with_image(self._source)
        if found is None:
            raise LookupError("no reconstruction yet")
        return found


@dataclass(frozen=True)
class _Snapshot:
    """What one read of the catalog gave."""

    version: tuple[Any, ...]
    image: MosaicImage
    frames: pd.DataFrame
    title: str

    def draw(self, figure: Figure | None = None) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=_LIVE_SIZE, layout="constrained") if figure is None else figure
        figure.clear()
        plot.draw_all(figure.subplots(2, 2, sharex=True, sharey=True), self.image, self.frames)
        plot.write_title(figure, self.title)
        return figure

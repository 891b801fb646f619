"""The picture of a reconstruction, and the panels it is made of.

What little light fell on is drawn faintly, so that noise does not look like a feature; nothing is filled in.
"""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

_UM = 1e6
_UNCOVERED = "0.93"  # grey
_LETTERS_PER_INCH = 11  # of a title; capitals throughout take an inch for ten
#: Part of the median coverage that is drawn in full: noise there is 1.4 times that of half of the picture.
_WELL_COVERED = 0.5
NOT_JUDGED = "not judged: the model has no probe"
_WRAPS_RAD = 5.0  # a phase that spans more goes round, and gets a colour map that does


def plot_reconstruction(image: MosaicImage, frames: pd.DataFrame, title: str) -> Figure:
    """Draw amplitude, phase, trust and coverage, the last with the scan's points; axes in µm.

    Parameters
    ----------
    image : MosaicImage
        What to draw; the phase is shown around its mean, a mosaic knows it up to a constant.
    frames : DataFrame
        Columns ``x_m, y_m`` (m) and ``valid``.
    title : str
        Above it all.
    """
    figure, axes = make_axes(image, 2, 2, title)
    draw_all(axes, image, frames)
    return figure


def has_windows() -> bool:
    """Whether matplotlib's backend draws into windows."""
    import matplotlib.pyplot as plt
    from matplotlib.backends.registry import BackendFilter, backend_registry

    registry: Any = backend_registry
    return plt.get_backend().lower() in {name.lower() for name in registry.list_builtin(BackendFilter.INTERACTIVE)}


def show(figure: Figure) -> None:
    """Open the figure's window, where somebody types and there are windows; a script shows its own when it wants."""
    if hasattr(sys, "ps1") and has_windows():
        figure.show()


def draw_all(axes: NDArray[Any], image: MosaicImage, frames: pd.DataFrame) -> None:
    """Draw amplitude, phase, trust and coverage with scan points into axes (2, 2)."""
    draw_amplitude(axes[0, 0], image)
    draw_phase(axes[0, 1], image, centre_phase(image.phase), "phase")
    draw_trust(axes[1, 0], image)
    draw_coverage(axes[1, 1], image)
    draw_points(axes[1, 1], frames)
    label_axes(axes)


def make_axes(image: MosaicImage, rows: int, columns: int, title: str) -> tuple[Figure, NDArray[Any]]:
    """Figure with axes (rows, columns) in µm that zoom together, shaped for `image`."""
    import matplotlib.pyplot as plt

    height, width = image.amplitude.shape
    tall = float(np.clip(height / max(width, 1), 0.3, 2.0))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.5 * columns, 0.7 + (0.5 + 3.3 * tall) * rows),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    label_axes(axes)
    write_title(figure, title)
    return figure, axes


def write_title(figure: Figure, title: str) -> None:
    """Write the title of a whole figure, on as many lines as its width asks for."""
    letters = round(_LETTERS_PER_INCH * figure.get_size_inches()[0])
    figure.suptitle(textwrap.fill(title, letters), fontsize="medium")


def label_axes(axes: NDArray[Any]) -> None:
    """Name the outer axes (rows, columns) of a grid."""
    for axis in axes[-1]:
        axis.set_xlabel("x (µm)")
    for axis in axes[:, 0]:
        axis.set_ylabel("y (µm)")


def centre_phase(phase: NDArray[Any]) -> NDArray[Any]:
    """Phase in rad around its mean direction: its constant means nothing, and must not split it at a wrap."""
    wave = np.exp(1j * phase)
    return np.asarray(np.angle(wave * np.conj(np.nansum(wave) or 1.0)))


def visibility(coverage: NDArray[Any]) -> NDArray[np.float64]:
    """How strongly to draw each pixel (H, W), 0 to 1: in proportion to its coverage, up to half of the median."""
    covered = coverage > 0
    if not covered.any():
        return np.zeros(coverage.shape)
    return np.asarray(np.clip(coverage / (_WELL_COVERED * np.median(coverage[covered])), 0.0, 1.0))


def colour_limits(data: NDArray[Any], image: MosaicImage | None = None) -> tuple[float, float]:
    """Colour limits of data (H, W) that a few odd pixels do not decide, nor what `image` hardly covers."""
    known = np.isfinite(data)
    well = known if image is None else known & (visibility(image.coverage) == 1)
    finite = data[well if well.any() else known]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [0.5, 99.5])
    return float(low), float(max(high, low + 1e-6))


def draw_amplitude(axis: Axes, image: MosaicImage) -> None:
    """Draw the amplitude (of 1) in grey."""
    draw_panel(axis, image, image.amplitude, "amplitude", "", "gray", colour_limits(image.amplitude, image))


def draw_phase(
    axis: Axes,
    image: MosaicImage,
    phase: NDArray[Any],
    title: str,
    limits: tuple[float, float] | None = None,
    *,
    known: bool = False,
) -> None:
    """Draw a phase (H, W) in rad; where it goes round, in colours that do. One that is `known` needs no coverage."""
    low, high = limits or colour_limits(phase, image)
    if high - low > _WRAPS_RAD:
        phase, colours, (low, high) = np.angle(np.exp(1j * phase)), "twilight", (-np.pi, np.pi)
    else:
        colours = "viridis"
    draw_panel(axis, image, phase, title, "rad", colours, (low, high), dim=not known)


def draw_trust(axis: Axes, image: MosaicImage) -> None:
    """Draw the trust, 0 to 1; or say that there is none."""
    draw_panel(axis, image, image.trust, "trust", "0 to 1", "cividis", (0.0, 1.0))
    if (image.coverage > 0).any() and not np.isfinite(image.trust).any():
        axis.text(0.5, 0.5, NOT_JUDGED, ha="center", va="center", transform=axis.transAxes, fontsize="medium")


def draw_coverage(axis: Axes, image: MosaicImage) -> None:
    """Draw the coverage: how many patches, by weight, a pixel has."""
    shown = np.where(image.coverage > 0, image.coverage, np.nan)
    draw_panel(axis, image, shown, "coverage", "summed weight", "Greys", (0.0, colour_limits(shown)[1]), dim=False)


def scan_points_um(frames: pd.DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Whether frames are valid (n,) bool, and their positions x, y (n,) in µm."""
    return frames["valid"].to_numpy(dtype=bool), frames["x_m"].to_numpy() * _UM, frames["y_m"].to_numpy() * _UM


def draw_points(axis: Axes, frames: pd.DataFrame) -> None:
    """Draw where frames were taken, rejected ones crossed."""
    valid, x, y = scan_points_um(frames)
    view = axis.axis()  # a point off the picture must not shrink it
    size = float(np.clip(4000 / max(len(frames), 1), 1.0, 12.0))
    axis.scatter(x[valid], y[valid], s=size, c="tab:blue", linewidths=0, label=f"{valid.sum()} frames")
    if (~valid).any():
        axis.scatter(x[~valid], y[~valid], s=3 * size, c="tab:red", marker="x", label=f"{(~valid).sum()} rejected")
    axis.axis(view)
    axis.legend(loc="upper right", fontsize="small", framealpha=0.8)


def draw_panel(
    axis: Axes,
    image: MosaicImage,
    data: NDArray[Any],
    title: str,
    unit: str,
    colours: str,
    limits: tuple[float, float],
    *,
    dim: bool = True,
) -> None:
    """Draw (H, W) data on the grid of `image`, x to the right and y downwards as in the array, with a colour bar.

    With `dim` what is hardly covered is drawn faintly, see `visibility`.
    """
    rows, columns = data.shape
    half = image.pixel_m / 2
    top, left = image.origin_m[0] - half, image.origin_m[1] - half
    extent = (left * _UM, (left + columns * image.pixel_m) * _UM, (top + rows * image.pixel_m) * _UM, top * _UM)
    alpha = visibility(image.coverage) if dim else None
    low, high = limits
    shown = axis.imshow(data, extent=extent, cmap=colours, vmin=low, vmax=high, alpha=alpha, interpolation="nearest")
    axis.set_facecolor(_UNCOVERED)
    axis.set_title(title, fontsize="medium")
    axis.figure.colorbar(shown, ax=axis, shrink=0.85, label=unit)

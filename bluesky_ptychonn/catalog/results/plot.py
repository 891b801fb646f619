"""The picture of a reconstruction, and the panels it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

_UM = 1e6
_NOTHING = "0.93"  # grey of what is not covered
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
    figure, axes = grid(image, 2, 2, title)
    draw_all(axes, image, frames)
    return figure


def draw_all(axes: NDArray[Any], image: MosaicImage, frames: pd.DataFrame) -> None:
    """Draw amplitude, phase, trust and coverage with scan points into axes (2, 2)."""
    draw_amplitude(axes[0, 0], image)
    draw_phase(axes[0, 1], image, centred(image.phase), "phase")
    draw_trust(axes[1, 0], image)
    draw_coverage(axes[1, 1], image)
    draw_points(axes[1, 1], frames)
    label(axes)


def grid(image: MosaicImage, rows: int, columns: int, title: str) -> tuple[Figure, NDArray[Any]]:
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
    label(axes)
    figure.suptitle(title, fontsize="medium")
    return figure, axes


def label(axes: NDArray[Any]) -> None:
    """Name the outer axes (rows, columns) of a grid."""
    for axis in axes[-1]:
        axis.set_xlabel("x (µm)")
    for axis in axes[:, 0]:
        axis.set_ylabel("y (µm)")


def centred(phase: NDArray[Any]) -> NDArray[Any]:
    """Phase in rad around its mean direction: its constant means nothing, and must not split it at a wrap."""
    wave = np.exp(1j * phase)
    return np.asarray(np.angle(wave * np.conj(np.nansum(wave) or 1.0)))


def limits(data: NDArray[Any]) -> tuple[float, float]:
    """Colour limits that a few odd pixels do not decide."""
    finite = data[np.isfinite(data)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [0.5, 99.5])
    return float(low), float(max(high, low + 1e-6))


def draw_amplitude(axis: Axes, image: MosaicImage) -> None:
    """Draw the amplitude (of 1) in grey."""
    panel(axis, image, image.amplitude, "amplitude", "", "gray", limits(image.amplitude))


def draw_phase(
    axis: Axes, image: MosaicImage, phase: NDArray[Any], title: str, span: tuple[float, float] | None = None
) -> None:
    """Draw a phase (H, W) in rad; where it goes round, in colours that do."""
    low, high = span or limits(phase)
    if high - low > _WRAPS_RAD:
        panel(axis, image, np.angle(np.exp(1j * phase)), title, "rad", "twilight", (-np.pi, np.pi))
    else:
        panel(axis, image, phase, title, "rad", "viridis", (low, high))


def draw_trust(axis: Axes, image: MosaicImage) -> None:
    """Draw the trust, 0 to 1."""
    panel(axis, image, image.trust, "trust", "0 to 1", "cividis", (0.0, 1.0))


def draw_coverage(axis: Axes, image: MosaicImage) -> None:
    """Draw the coverage: how many patches, by weight, a pixel has."""
    shown = np.where(image.coverage > 0, image.coverage, np.nan)
    panel(axis, image, shown, "coverage", "summed weight", "Greys", (0.0, limits(shown)[1]))


def draw_points(axis: Axes, frames: pd.DataFrame) -> None:
    """Draw where frames were taken, rejected ones crossed."""
    valid = frames["valid"].to_numpy(dtype=bool)
    x, y = frames["x_m"].to_numpy() * _UM, frames["y_m"].to_numpy() * _UM
    view = axis.axis()  # a point off the picture must not shrink it
    size = float(np.clip(4000 / max(len(frames), 1), 1.0, 12.0))
    axis.scatter(x[valid], y[valid], s=size, c="tab:blue", linewidths=0, label=f"{valid.sum()} frames")
    if (~valid).any():
        axis.scatter(x[~valid], y[~valid], s=3 * size, c="tab:red", marker="x", label=f"{(~valid).sum()} rejected")
    axis.axis(view)
    axis.legend(loc="upper right", fontsize="small", framealpha=0.8)


def panel(
    axis: Axes,
    image: MosaicImage,
    data: NDArray[Any],
    title: str,
    unit: str,
    colours: str,
    span: tuple[float, float],
) -> None:
    """Draw (H, W) data on the grid of `image`, x to the right and y downwards as in the array, with a colour bar."""
    rows, columns = data.shape
    half = image.pixel_m / 2
    top, left = image.origin_m[0] - half, image.origin_m[1] - half
    extent = (left * _UM, (left + columns * image.pixel_m) * _UM, (top + rows * image.pixel_m) * _UM, top * _UM)
    shown = axis.imshow(data, extent=extent, cmap=colours, vmin=span[0], vmax=span[1], interpolation="nearest")
    axis.set_facecolor(_NOTHING)
    axis.set_title(title, fontsize="medium")
    axis.figure.colorbar(shown, ax=axis, shrink=0.85, label=unit)

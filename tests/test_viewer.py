"""Pictures: what they show, and a live view that never asks the RunEngine's thread for anything."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bluesky_ptychonn.catalog.results.plot import plot_reconstruction
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from bluesky_ptychonn.viewer import LiveView, reconstruction_figure


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def truth() -> np.ndarray:
    y, x = np.mgrid[:40, :60]
    return np.exp(1j * 0.8 * np.sin(x / 6) * np.cos(y / 5)).astype(np.complex64)


@pytest.fixture
def image(truth) -> MosaicImage:
    turned = truth * np.exp(2.5j)  # a mosaic knows its phase up to a constant
    phase = np.angle(turned).astype(np.float32)
    phase[:5] = np.nan
    coverage = np.where(np.isfinite(phase), 1.0, 0.0).astype(np.float32)
    return MosaicImage(np.ones_like(phase), phase, coverage, coverage * 0.7, origin_m=(-5e-7, -7e-7), pixel_m=2.5e-8)


@pytest.fixture
def frames() -> pd.DataFrame:
    x, y = np.meshgrid(np.linspace(-5e-7, 5e-7, 4), np.linspace(-4e-7, 4e-7, 3))
    valid = np.ones(12, bool)
    valid[5] = False
    return pd.DataFrame({"x_m": x.ravel(), "y_m": y.ravel(), "trust": np.linspace(0, 1, 12), "valid": valid})


def titles(figure: Any) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_with_a_truth_both_phases_share_constant_and_colours(image, frames, truth) -> None:
    figure = reconstruction_figure(image, frames, "a title", truth=truth, probe_diameter_m=3e-7)
    true, ours = (axis.images[0] for axis in figure.axes[:2])
    assert true.get_clim() == ours.get_clim()
    shown = np.ma.filled(ours.get_array().astype(float), np.nan)
    np.testing.assert_allclose(shown[5:], true.get_array()[5:], atol=1e-5)
    assert np.isnan(shown[:5]).all()
    assert titles(figure)[:6] == [
        "true phase",
        "reconstructed phase",
        "amplitude",
        "trust",
        "coverage",
        "scan points: 11 frames, 1 rejected (×), ○ probe",
    ]


def test_axes_are_micrometres_at_the_place_of_the_sample(image, frames) -> None:
    figure = reconstruction_figure(image, frames)
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    assert (left, right) == pytest.approx((-0.7125, 0.7875))
    assert (top, bottom) == pytest.approx((-0.5125, 0.4875))  # y runs down, as rows do
    labels = {axis.get_xlabel() for axis in figure.axes} | {axis.get_ylabel() for axis in figure.axes}
    assert {"x (µm)", "y (µm)"} <= labels
    assert "rad" in labels


def test_a_phase_that_goes_round_gets_colours_that_do(image, frames) -> None:
    round_ = np.angle(np.exp(1j * np.linspace(0, 20, image.phase.size))).reshape(image.phase.shape)
    figure = reconstruction_figure(
        MosaicImage(image.amplitude, round_.astype(np.float32), image.coverage, image.trust, (0.0, 0.0), 1e-8), frames
    )
    assert figure.axes[0].images[0].get_cmap().name == "twilight"
    assert reconstruction_figure(image, frames).axes[0].images[0].get_cmap().name == "viridis"


def test_what_is_hardly_covered_is_drawn_faintly_and_sets_no_colours(image, frames, truth) -> None:
    """Pinholes, and the noise at dark probe centres: below 2 % of the largest coverage, with wild values."""
    coverage, phase, amplitude = image.coverage.copy(), image.phase.copy(), image.amplitude.copy()
    hole, weak = np.s_[20:22, 30:32], np.s_[30:, :]
    coverage[hole], phase[hole], amplitude[hole] = 0.015, 3.0, 9.0
    coverage[weak], amplitude[:5] = 0.25, np.nan
    trust = np.where(np.isfinite(phase), image.trust, np.nan).astype(np.float32)
    spoilt = MosaicImage(amplitude, phase, coverage, trust, (0.0, 0.0), 1e-8)
    panels = [*plot_reconstruction(spoilt, frames, "").axes[:3], *reconstruction_figure(spoilt, frames).axes[:2]]
    for shown in (axis.images[0] for axis in panels):
        alpha = shown.get_alpha()
        assert alpha[hole].max() <= 0.05
        assert alpha[weak] == pytest.approx(0.5)
        assert (alpha[6:20] == 1).all()
        assert (np.ma.getmaskarray(shown.get_array()) == np.isnan(phase)).all()  # nothing is filled in
        assert shown.get_clim()[1] < 3
    truths = reconstruction_figure(spoilt, frames, truth=truth).axes
    assert truths[0].images[0].get_alpha() is None  # what is true is true everywhere
    assert truths[1].images[0].get_alpha()[hole].max() <= 0.05


def test_trust_that_nobody_judged_is_said_to_be_none(image, frames) -> None:
    unjudged = replace(image, trust=np.full_like(image.trust, np.nan))
    frames = frames.assign(trust=np.where(frames.valid, np.nan, 0.0))
    figure = reconstruction_figure(unjudged, frames)
    words = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert "trust not judged: the model has no probe" in words[0]
    assert words.count("not judged: the model has no probe") == 1
    (points,) = (axis.collections[0] for axis in figure.axes if axis.get_title().startswith("scan points"))
    figure.canvas.draw()
    assert len(points.get_facecolors()) == 11  # and every one is drawn
    assert (points.get_facecolors()[:, 3] == 1).all()
    figure = plot_reconstruction(unjudged, frames, "")
    assert "not judged: the model has no probe" in [text.get_text() for axis in figure.axes for text in axis.texts]
    assert "median trust" in reconstruction_figure(image, frames.assign(trust=0.5)).axes[2].texts[0].get_text()


def test_nothing_covered_is_no_error(image, frames, truth) -> None:
    nothing = np.full_like(image.phase, np.nan)
    empty = MosaicImage(nothing, nothing, np.zeros_like(nothing), nothing, (0.0, 0.0), 1e-8)
    reconstruction_figure(empty, frames.iloc[:0]).canvas.draw()
    reconstruction_figure(empty, frames.iloc[:0], truth=truth).canvas.draw()


def test_truth_of_another_shape_is_refused(image, frames, truth) -> None:
    with pytest.raises(ValueError, match=r"truth \(10, 60\) px and mosaic \(40, 60\) px differ"):
        reconstruction_figure(image, frames, truth=truth[:10])


class Reconstruction:
    """What `LiveView` needs of a reconstruction."""

    path_parts = ("processed", "abc")

    def __init__(self, image: MosaicImage, frames: pd.DataFrame) -> None:
        self.image, self.frames = image, frames
        self.metadata = {"mosaic": {"snapshot": 1}, "status": "live"}
        self.readers: set[str] = set()

    def refresh(self) -> None:
        self.readers.add(threading.current_thread().name)

    def mosaic(self) -> MosaicImage:
        return self.image

    def __repr__(self) -> str:
        return f"<PtychoReconstruction abc, {self.metadata['status']}>"


class Live:
    """What `LiveView` needs of a live reconstruction."""

    def __init__(self) -> None:
        self.reconstruction: Reconstruction | None = None
        self.broken = False

    def result(self) -> Reconstruction:
        if self.broken:
            raise ConnectionError("catalog is away")
        if self.reconstruction is None:
            raise LookupError("no run was seen yet")
        return self.reconstruction


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def test_live_view_follows_the_snapshots(image, frames, tmp_path) -> None:
    live = Live()
    with LiveView(live, interval_s=0.02, path=tmp_path / "live.png") as view:
        assert view.draw() is None
        live.reconstruction = Reconstruction(image, frames)
        until(lambda: view.snapshots == 1)
        figure = view.draw()
        assert figure._suptitle.get_text() == "PtychoReconstruction abc, live"
        time.sleep(0.2)
        assert view.snapshots == 1  # the same snapshot is not read again
        live.reconstruction.metadata = {"mosaic": {"snapshot": 2}, "status": "complete"}
        until(lambda: view.snapshots == 2)
        assert view.draw() is figure
        assert figure._suptitle.get_text() == "PtychoReconstruction abc, complete"
    assert live.reconstruction.readers == {"LiveView"}
    assert (tmp_path / "live.png").stat().st_size > 10_000
    assert repr(view) == "<LiveView closed, 2 snapshots>"


def test_a_long_title_is_whole(image, frames) -> None:
    title = "PtychoReconstruction d11a6985 scan 1, " + "a rather long name of a sample, " * 6 + "verdict ok"

    class Named(Reconstruction):
        def __repr__(self) -> str:
            return title

    live = Live()
    live.reconstruction = Named(image, frames)
    with LiveView(live, interval_s=0.02) as view:
        until(lambda: view.snapshots == 1)
        for figure in (view.draw(), reconstruction_figure(image, frames, title)):
            assert figure._suptitle.get_text().replace("\n", " ") == title
            figure.savefig(os.devnull, format="png")
            box = figure._suptitle.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.width


def test_live_view_outlives_a_catalog_that_is_away(image, frames) -> None:
    live = Live()
    live.broken = True
    with LiveView(live, interval_s=0.02) as view:
        until(lambda: "catalog is away" in repr(view))
        live.reconstruction, live.broken = Reconstruction(image, frames), False
        until(lambda: view.snapshots == 1 and not view.problem)


def test_what_comes_just_before_the_end_is_still_seen(image, frames) -> None:
    live = Live()
    view = LiveView(live, interval_s=60)
    live.reconstruction = Reconstruction(image, frames)
    view.close()
    assert view.snapshots == 1


def test_an_interval_is_above_zero() -> None:
    with pytest.raises(ValueError, match="interval_s 0 s must be above 0"):
        LiveView(Live(), interval_s=0)

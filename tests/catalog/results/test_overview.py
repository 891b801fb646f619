"""What a browser shows of a result, as Tiled makes PNG of it: the picture, however little of it is there yet."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiled.serialization.array import save_to_buffer_PIL

from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.results.overview import OVERVIEW, draw_overview
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from tests.support.results import PIXEL_M, block_of, counts_of, make_sink

Y, X = np.mgrid[:60, :80]


def image(covered: Any) -> MosaicImage:
    """A picture with waves in it, where it is covered, whose phase lies across the wrap at π."""
    there = np.where(covered, np.float32(1), np.float32(np.nan))
    wave = 3 + np.sin(X / 9) * np.cos(Y / 7)
    phase, trust = np.angle(np.exp(1j * wave)) * there, (0.5 + 0.4 * np.sin(Y / 5)) * there
    amplitude = (0.8 + 0.1 * np.cos(X / 5)) * there
    arrays = [np.asarray(data, np.float32) for data in (amplitude, phase, np.where(covered, 2 + np.sin(X), 0), trust)]
    return MosaicImage(*arrays, origin_m=(0.0, 0.0), pixel_m=PIXEL_M)


def panels(picture: MosaicImage) -> dict[str, Any]:
    return {name: getattr(picture, name) for name in ("amplitude", "phase", "trust", "coverage")}


@pytest.mark.parametrize("covered", [1.0, 0.7, 0.1, 0.01, 0.003, 0.0])
def test_tiled_shows_the_overview_as_it_is(covered: float) -> None:
    """Tiled scales between percentiles of all pixels; nothing may change by that."""
    overview = draw_overview(panels(image((80 * np.sqrt(covered) > X) & (60 * np.sqrt(covered) > Y))))
    assert (overview.shape, overview.dtype) == ((124, 164), np.uint8)
    png = np.asarray(Image.open(io.BytesIO(save_to_buffer_PIL("image/png", overview, "png"))))
    assert np.abs(png.astype(int) - overview).max() <= 1


def test_each_panel_is_its_picture() -> None:
    """Phases that lie across the wrap are one wave; what is not covered is told from all values."""
    disc = (X - 40) ** 2 + (Y - 30) ** 2 < 25**2
    overview = draw_overview(panels(image(disc))).astype(float)
    amplitude, phase = overview[:60, :80], overview[:60, 84:]
    trust, coverage = overview[64:, :80], overview[64:, 84:]
    expected = {"amplitude": np.cos(X / 5), "phase": np.sin(X / 9) * np.cos(Y / 7), "coverage": np.sin(X)}
    for shown, wave in zip((amplitude, phase, coverage), expected.values(), strict=True):
        assert np.corrcoef(shown[disc], wave[disc])[0, 1] > 0.99
    np.testing.assert_allclose(trust[disc], 255 * (0.5 + 0.4 * np.sin(Y / 5))[disc], atol=1)
    assert all(np.median(shown[~disc]) == 128 for shown in (amplitude, phase, trust, coverage))


def test_what_has_little_light_is_faint() -> None:
    whole = panels(image(X >= 0))
    dark = np.where(X < 10, np.float32(0.02), whole["coverage"])
    shown = draw_overview(whole | {"coverage": dark})[:60, :80].astype(int)
    assert np.abs(shown[:, :10] - 128).max() <= 128 * 0.03
    assert np.ptp(shown[:, 10:]) == 255


def test_where_nothing_was_judged_its_panel_is_empty() -> None:
    whole = panels(image(X >= 0))
    overview = draw_overview(whole | {"trust": np.full((60, 80), np.nan, np.float32)})
    assert np.median(overview[64:, :80]) == 128
    np.testing.assert_array_equal(overview[:60], draw_overview(whole)[:60])


def test_a_browser_is_shown_the_picture_live_and_at_the_end(catalog_server: CatalogServer) -> None:
    """A twentieth of the field at first, then all of it; the picture of single arrays too, clear where nothing is."""
    sink = make_sink(catalog_server)
    sink.write_block(block_of([1, 2]))
    http = catalog_server.client.context.http_client

    def png(name: str) -> np.ndarray:
        address = f"{catalog_server.uri}/array/full/processed/{sink.key}/{name}"
        return np.asarray(Image.open(io.BytesIO(http.get(address, params={"format": "image/png"}).content)))

    for covered in ((X < 18) & (Y < 13), X + Y < 100):
        sink.write_mosaic(image(covered))
        np.testing.assert_array_equal(png(OVERVIEW), draw_overview(panels(image(covered))))
        for name, wave in (("amplitude", np.cos(X / 5)), ("trust", np.sin(Y / 5))):
            shown = png(name)
            np.testing.assert_array_equal(shown[..., 1] == 255, covered)
            assert np.corrcoef(shown[covered][:, 0], wave[covered])[0, 1] > 0.99
    assert sink.finish("success", counts_of(2)) == "complete"
    found = catalog_server.processed[sink.key]
    np.testing.assert_array_equal(found[OVERVIEW].read(), draw_overview(panels(image(covered))))
    assert np.isnan(found["phase"].read()[~covered]).all()  # the data say what is not covered, as ever


def test_a_reconstruction_that_0_2_began_gets_its_overview(catalog_server: CatalogServer) -> None:
    first = make_sink(catalog_server)
    first.write_block(block_of([1, 2]))
    first.write_mosaic(image(X < 18))
    node = TiledNode(catalog_server.client, ["processed", first.key])
    node.delete(OVERVIEW)
    node.update({"nodes": {OVERVIEW: None}})
    again = make_sink(catalog_server, key=first.key)
    again.write_mosaic(image(X < 30))
    assert again.finish("success", counts_of(2)) == "complete"
    found = catalog_server.processed[first.key]
    np.testing.assert_array_equal(found[OVERVIEW].read(), draw_overview(panels(image(X < 30))))
    np.testing.assert_array_equal(found.mosaic().phase, image(X < 30).phase)

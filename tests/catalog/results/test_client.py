from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.results import plot
from bluesky_ptychonn.catalog.results.client import PtychoReconstruction, newest_with_image, reconstructions
from bluesky_ptychonn.catalog.results.mosaics import PICTURES
from bluesky_ptychonn.catalog.results.overview import OVERVIEW
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic
from tests.support.results import block_of, counts_of, make_sink, patches_of, picture, start_document


@pytest.fixture(autouse=True)
def close_figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="module")
def finished(catalog_server: CatalogServer) -> PtychoReconstruction:
    """A small finished reconstruction, one of its frames rejected."""
    sink = make_sink(catalog_server, start_document(scan_id=17, sample_name="cells"), frames_expected=5)
    sink.write_block(block_of([1, 2, 3, 4, 5], flags={4: "all zero"}))
    sink.write_mosaic(picture(30, 20, (3, 4)))
    assert sink.finish("success", counts_of(4, expected=5, dark=1)) == "partial"
    found: PtychoReconstruction = catalog_server.processed[sink.key]
    return found


def test_the_catalog_hands_out_reconstructions(catalog_server: CatalogServer, finished: PtychoReconstruction) -> None:
    assert isinstance(finished, PtychoReconstruction)
    found = catalog_server.client["processed"][finished.path_parts[-1]]
    assert type(found) is PtychoReconstruction


@pytest.mark.parametrize(("windows", "prompt", "opened"), [(True, True, 1), (False, True, 0), (True, False, 0)])
def test_plot_opens_a_window_where_somebody_types(
    finished: PtychoReconstruction, monkeypatch: pytest.MonkeyPatch, windows: bool, prompt: bool, opened: int
) -> None:
    shown = list[object]()
    monkeypatch.setattr("matplotlib.figure.Figure.show", lambda figure: shown.append(figure))
    monkeypatch.setattr(plot, "has_windows", lambda: windows)
    monkeypatch.delattr(sys, "ps1", raising=False)
    if prompt:
        monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    figure = finished.plot()
    assert shown == [figure] * opened


def test_pictures_and_arrays(finished: PtychoReconstruction) -> None:
    image = picture(30, 20, (3, 4))
    for name in PICTURES:
        np.testing.assert_array_equal(getattr(finished, name).read(), getattr(image, name))
    assert np.asarray(finished.phase).shape == (30, 20)
    assert repr(finished.phase) == "<Picture phase 30 × 20 px>"
    mosaic = finished.mosaic()
    assert mosaic.origin_m == pytest.approx(image.origin_m)
    assert mosaic.pixel_m == image.pixel_m == finished.pixel_m


def test_a_picture_deleted_in_the_midst_of_reading_is_read_again(
    finished: PtychoReconstruction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiled answers 500 when a node goes between its finding it and its reading it."""
    read, answers = TiledNode.read_array, iter([500, 503])

    def sometimes(self: TiledNode, *arguments: Any) -> Any:
        if (status := next(answers, None)) is not None:
            raise CatalogUnavailableError("its log says why", status)
        return read(self, *arguments)

    monkeypatch.setattr(TiledNode, "read_array", sometimes)
    np.testing.assert_array_equal(finished.mosaic().phase, picture(30, 20).phase)
    monkeypatch.setattr(TiledNode, "read_array", lambda *_: (_ for _ in ()).throw(CatalogUnavailableError("no answer")))
    with pytest.raises(CatalogUnavailableError, match="no answer"):
        finished.mosaic()


def test_patches_by_sequence_number(finished: PtychoReconstruction) -> None:
    expected = patches_of([1, 2, 3, 4, 5])
    found = finished.patches([5, 1])
    assert found.dtype == np.complex64
    np.testing.assert_allclose(found, expected[[4, 0]], rtol=1e-5)
    assert np.isnan(finished.patches()[3]).all()
    assert finished.patches([]).shape == (0, 8, 8)


def test_repr_says_what_it_is(finished: PtychoReconstruction) -> None:
    assert repr(finished) == (
        f"<PtychoReconstruction {finished.path_parts[-1][:8]} scan 17, cells, partial, 4/5 frames, 1 rejected, "
        f"model made-up 1, raw {finished.metadata['raw']['uid'][:8]}, 0.20 × 0.30 µm at 10.0 nm>"
    )
    assert finished.status == "partial"
    assert finished.counts["rejected"] == {"dark": 1}
    assert finished.problems == ["1 frames have no reconstruction: 1 (dark)"]


def test_a_live_reconstruction_is_always_the_newest(catalog_server: CatalogServer) -> None:
    sink = make_sink(catalog_server)
    found = catalog_server.processed[sink.key]
    assert found.status == "live"
    assert found.frames.empty
    assert repr(found.amplitude) == "<Picture amplitude not there yet>"
    sink.write_block(block_of([1, 2]))
    sink.write_mosaic(picture(9, 9))
    assert len(found.frames) == 2
    assert found.amplitude.read().shape == (9, 9)
    sink.write_mosaic(picture(12, 12, (-3, -3)))
    assert found.amplitude.read().shape == (12, 12)
    with pytest.raises(TimeoutError, match="still live after 0 s"):
        found.wait(timeout=0)
    thread = threading.Thread(target=lambda: (time.sleep(0.3), sink.finish("abort", counts_of(2))))
    thread.start()
    assert found.wait(timeout=60).status == "partial"
    thread.join()
    assert found.problems == ["the run ended with 'abort'"]


def test_raw_is_the_run_it_was_made_from(catalog_server: CatalogServer, RE: Any, tiled_writer: Any) -> None:
    from bluesky.plans import count
    from ophyd.sim import det

    (uid,) = RE(count([det], 1))
    run = catalog_server.raw[uid]
    sink = make_sink(catalog_server, dict(run.start))
    found = catalog_server.processed[sink.key]
    assert found.raw.start["uid"] == uid
    assert [one.path_parts for one in reconstructions(catalog_server, raw=run)] == [found.path_parts]
    orphan = catalog_server.processed[make_sink(catalog_server).key]
    with pytest.raises(LookupError, match="is not in raw/ of this catalog"):
        _ = orphan.raw


def test_queries(catalog_server: CatalogServer) -> None:
    sample = start_document()["uid"]
    runs = [start_document(scan_id=9000 + i, sample_name=sample) for i in range(3)]
    keys = []
    for i, run in enumerate(runs):
        sink = make_sink(catalog_server, run, metadata={"model": {"name": f"m{i % 2}-{sample}", "version": "2"}})
        sink.write_block(block_of([1]))
        if i:
            sink.finish("success", counts_of(i))
        keys.append(sink.key)

    def found(**conditions: Any) -> list[str]:
        return [one.path_parts[-1] for one in reconstructions(catalog_server, sample=sample, **conditions)]

    assert found() == keys[::-1]
    assert found(limit=1) == keys[2:]
    assert found(raw=runs[1]["uid"]) == [keys[1]]
    assert found(raw=9002) == [keys[2]]
    assert found(model=f"m0-{sample}") == [keys[2], keys[0]]
    assert found(model=f"m0-{sample}", version="1") == []
    assert found(status="live") == [keys[0]]
    assert found(status="complete") == [keys[1]]
    assert found(status="partial") == [keys[2]]
    by_raw = reconstructions(catalog_server.raw, raw=runs[0]["uid"])
    assert [one.path_parts[-1] for one in by_raw] == [keys[0]]
    assert reconstructions(catalog_server.processed, raw="nothing") == []
    with pytest.raises(ValueError, match=r"status 'done'; allowed: live, complete, partial, failed"):
        reconstructions(catalog_server, status="done")
    assert [one.path_parts[-1] for one in reconstructions(catalog_server.processed[keys[0]], sample=sample)] == keys[
        ::-1
    ]
    elsewhere = catalog_server.client.create_container(sample)
    elsewhere.create_container("csx")
    with pytest.raises(ValueError, match="neither raw/ nor runs of its own; it has csx"):
        reconstructions(elsewhere)


def test_trust_that_nobody_judged_stays_unknown(catalog_server: CatalogServer) -> None:
    """By way of the table, the picture, and the reading behind ``complete``."""
    sink = make_sink(catalog_server)
    unknown = np.full(3, np.nan, np.float32)
    sink.write_block(block_of([1, 2, 3], flags={2: "nan"}, trust=np.where([True, False, True], unknown, 0)))
    image = picture(9, 9)
    sink.write_mosaic(replace(image, trust=np.full_like(image.trust, np.nan)))
    assert sink.finish("success", counts_of(2, nan=1)) == "partial"
    found = catalog_server.processed[sink.key]
    assert found.problems == ["1 frames have no reconstruction: 1 (nan)"]
    np.testing.assert_array_equal(found.frames.trust, [np.nan, 0, np.nan])
    assert np.isnan(found.trust.read()).all()
    words = [text.get_text() for axis in found.plot().axes for text in axis.texts]
    assert "not judged: the model has no probe" in words


def test_a_refused_attempt_hides_no_image(catalog_server: CatalogServer) -> None:
    """The newest is the newest with an image; what was refused is asked for by its status, and says why."""
    start, why = start_document(), "model 'm' was trained at an object pixel of 10 nm, the scan has 12 nm"
    good, refused, under_way = (make_sink(catalog_server, start) for _ in range(3))
    good.write_block(block_of([1]))
    good.write_mosaic(picture(9, 9))
    good.finish("success", counts_of(1))
    refused.update(problem=why)
    assert refused.finish("success", {**counts_of(0), "seen": 9}, why) == "failed"
    under_way.write_block(block_of([1]))
    uid = start["uid"]
    assert [one.path_parts[-1] for one in reconstructions(catalog_server, raw=uid)] == [under_way.key, good.key]
    (attempt,) = reconstructions(catalog_server, raw=uid, status="failed")
    assert (attempt.path_parts[-1], attempt.problems) == (refused.key, [why])
    assert (attempt.metadata["exit_status"], attempt.counts["seen"]) == ("success", 9)
    newest = newest_with_image(catalog_server, raw=uid)
    assert newest is not None
    assert newest.path_parts[-1] == good.key
    assert newest_with_image(catalog_server, raw="nothing") is None
    with pytest.raises(LookupError, match=rf"\(failed\) has no phase: {why}"):
        attempt.phase.read()
    again = make_sink(catalog_server, start, key=refused.key)  # taken up by a session that can
    again.write_block(block_of([1]))
    again.finish("success", counts_of(1))
    assert attempt.refresh().problems == []
    assert "problem" not in attempt.metadata


def test_tileds_own_queries_find_them(catalog_server: CatalogServer, finished: PtychoReconstruction) -> None:
    from tiled.queries import Eq, Key, SpecsQuery

    node = catalog_server.processed.search(SpecsQuery(include=["PtychoReconstruction"], exclude=[]))
    uid = finished.metadata["raw"]["uid"]
    assert list(node.search(Key("raw.uid") == uid)) == [finished.path_parts[-1]]
    assert list(node.search(Eq("counts.rejected.dark", 1)).search(Key("raw.scan_id") == 17)) == [
        finished.path_parts[-1]
    ]


def test_databroker_hands_them_out_too(
    catalog_server: CatalogServer, finished: PtychoReconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiled.profiles

    monkeypatch.setattr(tiled.profiles, "paths", [tmp_path])
    catalog_server.write_profile("ptychonn")
    key = finished.path_parts[-1]
    code = f"""
import warnings, databroker
from bluesky_ptychonn.catalog.results.client import reconstructions
for catalog in (databroker.from_profile("ptychonn"), databroker.catalog["ptychonn"]):
    found = catalog["processed"][{key!r}]
    print(found, found.amplitude.read().shape, len(reconstructions(catalog, raw={finished.metadata["raw"]["uid"]!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TILED_PROFILES": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{finished!r} (30, 20) 1"] * 2, done.stderr


def test_plot_shows_four_panels_in_micrometres(finished: PtychoReconstruction, tmp_path: Path) -> None:
    figure = finished.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == ["amplitude", "phase", "trust", "coverage"]
    left, right, bottom, top = panels[0].images[0].get_extent()
    assert (left, right) == pytest.approx((0.035, 0.235))
    assert (top, bottom) == pytest.approx((0.025, 0.325))
    for axis in panels:
        assert axis.get_xlim() == pytest.approx((0.035, 0.235))
    assert "scan 17, cells, partial" in figure.get_suptitle()
    assert [text.get_text() for text in panels[3].get_legend().get_texts()] == ["4 frames", "1 rejected"]
    points = panels[3].collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 1], [0.1, 0.2, 0.3, 0.5])


def test_a_real_mosaic_goes_through_unchanged(catalog_server: CatalogServer) -> None:
    rng = np.random.default_rng(3)
    mosaic = Mosaic(1e-8, np.ones((8, 8), np.float32))
    sink = make_sink(catalog_server)
    place = rng.uniform(-4e-7, 4e-7, (24, 2))
    for part in np.split(np.arange(24), 4):
        wave = patches_of(part + 1)
        trust = rng.uniform(0, 1, len(part)).astype(np.float32)
        y_m, x_m = place[part].T
        sink.write_block(block_of(part + 1, patches=wave, y_m=y_m, x_m=x_m, trust=trust))
        mosaic.add(wave, *place[part].T, trust)
        sink.write_mosaic(mosaic.snapshot())
    mosaic.synchronise()
    image = mosaic.snapshot()
    sink.write_mosaic(image)
    assert sink.finish("success", counts_of(24)) == "complete"
    found = catalog_server.processed[sink.key].mosaic()
    for name in PICTURES:
        np.testing.assert_array_equal(getattr(found, name), getattr(image, name))
    assert found.origin_m == pytest.approx(image.origin_m)


def test_a_notebook_shows_it_with_its_picture(
    catalog_server: CatalogServer, finished: PtychoReconstruction, monkeypatch: pytest.MonkeyPatch
) -> None:
    png = np.asarray(Image.open(io.BytesIO(finished._repr_png_() or b"")))
    np.testing.assert_array_equal(png, finished[OVERVIEW].read())
    shown = finished._repr_html_()
    assert "&lt;PtychoReconstruction" in shown
    assert "data:image/png;base64,iVBOR" in shown
    nothing_yet = catalog_server.processed[make_sink(catalog_server).key]
    assert nothing_yet._repr_png_() is None
    assert "live" in nothing_yet._repr_html_()
    monkeypatch.setattr(TiledNode, "read_array", lambda *_: (_ for _ in ()).throw(CatalogUnavailableError("no answer")))
    assert finished._repr_png_() is None


def test_what_was_found_is_shown_a_line_each(catalog_server: CatalogServer) -> None:
    start = start_document()
    for _ in range(2):
        make_sink(catalog_server, start)
    found = reconstructions(catalog_server, raw=start["uid"])
    assert [line[:22] for line in repr(found).splitlines()] == ["[<PtychoReconstruction", " <PtychoReconstruction"]
    assert found._repr_html_().count("<li><code>&lt;PtychoReconstruction") == 2
    assert found == list(found)
    assert repr(reconstructions(catalog_server, raw="none such")) == "[]"

from __future__ import annotations

import shutil
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.catalog.connection.errors import CatalogRefusedError, CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.results.block import Block
from bluesky_ptychonn.catalog.results.client import PtychoReconstruction
from bluesky_ptychonn.catalog.results.mosaics import PICTURES, Canvas
from bluesky_ptychonn.catalog.results.overview import OVERVIEW
from bluesky_ptychonn.catalog.results.sink import ResultSink
from bluesky_ptychonn.catalog.results.spool import Spool
from bluesky_ptychonn.catalog.results.verification import ReadBack, decide_status
from tests.support.results import PIXEL_M, SHAPE, block_of, counts_of, make_sink, patches_of, picture, start_document
from tests.system.faults.proxy import Proxy


def result_of(server: CatalogServer, sink: ResultSink) -> PtychoReconstruction:
    found = server.processed[sink.key]
    assert isinstance(found, PtychoReconstruction)
    return found


def same_pictures(found: PtychoReconstruction, image: Any) -> bool:
    return all(np.array_equal(getattr(found, n).read(), getattr(image, n), equal_nan=True) for n in PICTURES)


def test_what_is_written_is_read_back(catalog_server: CatalogServer) -> None:
    sink = make_sink(catalog_server, frames_expected=150)
    before = time.time()
    for first in range(1, 150, 50):
        sink.write_block(block_of(range(first, first + 50)))
    assert sink.written == set(range(1, 151))
    image = picture(20, 30)
    sink.write_mosaic(image)
    assert sink.finish("success", counts_of(150, expected=150)) == "complete"

    found = result_of(catalog_server, sink)
    frames = found.frames
    assert list(frames.columns) == ["seq_num", "x_m", "y_m", "trust", "valid", "flag", "time_raw", "time_done"]
    assert frames["seq_num"].tolist() == list(range(1, 151))
    np.testing.assert_array_equal(frames["y_m"], np.arange(1, 151) * 1e-7)
    np.testing.assert_array_equal(frames["x_m"], -np.arange(1, 151) * 1e-7)
    assert frames["valid"].all()
    assert frames["trust"].dtype == np.float32
    assert ((frames["time_done"] >= before) & (frames["time_done"] <= time.time())).all()
    expected = np.concatenate([patches_of(range(first, first + 50)) for first in range(1, 150, 50)])
    np.testing.assert_allclose(found.patches(), expected, rtol=1e-5)
    assert same_pictures(found, image)
    # As plain Tiled nodes too, under the names of the schema and cut to size.
    shapes = {name: found[name].shape for name in ("amplitude_patches", "phase_patches", *PICTURES)}
    assert shapes == {"amplitude_patches": (150, 8, 8), "phase_patches": (150, 8, 8)} | dict.fromkeys(
        PICTURES, (20, 30)
    )
    assert found["amplitude_patches"].dims == ("frame", "y", "x")
    assert found["amplitude_patches"].dtype == np.float32
    assert set(found) == {"amplitude_patches", "phase_patches", "frames", OVERVIEW, *PICTURES}


def test_metadata_links_the_run_and_says_where_it_comes_from(catalog_server: CatalogServer) -> None:
    start = start_document(scan_id=81, sample={"name": "star", "batch": 2})
    sink = make_sink(catalog_server, start, metadata={"device": "cpu", "raw": {"uid": "of a template"}})
    live = dict(result_of(catalog_server, sink).metadata)
    assert live["raw"] == {
        "uid": start["uid"],
        "scan_id": 81,
        "plan_name": "grid_scan",
        "time": start["time"],
        "sample": "star",
    }
    assert (live["status"], live["device"], live["model"]["name"]) == ("live", "cpu", "made-up")
    assert live["units"]["phase"] == "rad"
    assert live["software"]["tiled"]
    sink.update(counts={"seen": 4}, note="x")
    assert result_of(catalog_server, sink).metadata["counts"]["seen"] == 4
    sink.update(note=None)
    assert "note" not in result_of(catalog_server, sink).metadata


def test_a_block_costs_three_requests(catalog_server: CatalogServer) -> None:
    sink = make_sink(catalog_server)
    sink.write_block(block_of(range(1, 65)))
    before = sink.requests
    sink.write_block(block_of(range(65, 129)))
    assert sink.requests - before == 3
    sink.write_mosaic(picture(20, 20))
    before = sink.requests
    sink.write_mosaic(picture(20, 20, value=2))
    assert sink.requests - before == 6


def test_gaps_are_zero_and_do_not_cost_requests(catalog_server: CatalogServer) -> None:
    sink = make_sink(catalog_server)
    sink.write_block(block_of([1]))
    before = sink.requests
    sink.write_block(block_of(range(4, 200, 4)))
    assert sink.requests - before == 3
    # What lies in the gap of a later block stays.
    sink.write_block(block_of([3, 5, 7]))
    assert sink.finish("success", counts_of(53)) == "complete"
    found = result_of(catalog_server, sink)
    np.testing.assert_allclose(found.patches([4]), patches_of(range(4, 200, 4))[:1], rtol=1e-5)
    np.testing.assert_allclose(found.patches([7, 3]), patches_of([3, 5, 7])[[2, 0]], rtol=1e-5)
    assert not found["amplitude_patches"].read()[1].any()
    with pytest.raises(LookupError, match=r"no frames \[2\] in its table"):
        found.patches([1, 2])


def test_frames_measured_again_overwrite_and_never_double(catalog_server: CatalogServer) -> None:
    sink = make_sink(catalog_server)
    sink.write_block(block_of(range(1, 41)))
    found = result_of(catalog_server, sink)
    sink.write_block(block_of(range(31, 51), take=1))
    assert found.frames["seq_num"].tolist() == list(range(1, 51))
    sink.write_block(block_of([50, 2, 2], take=2))  # twice in one block, and soon after the last correction
    assert found.frames["seq_num"].is_unique
    assert sink.finish("success", counts_of(50)) == "complete"
    trust = found.refresh().frames.set_index("seq_num")["trust"]
    assert (trust[1], trust[30], trust[31], trust[49]) == (0.25, 0.25, 0.5, 0.5)
    assert (trust[2], trust[50]) == (0.75, 0.75)
    np.testing.assert_allclose(found.patches([31]), patches_of(range(31, 51), 1)[:1], rtol=1e-5)
    assert set(found) == {"amplitude_patches", "phase_patches", "frames"}


def test_frames_made_again_have_been_readable_since_they_were_made_first(catalog_server: CatalogServer) -> None:
    sink = make_sink(catalog_server)
    sink.write_block(block_of(range(1, 5)))
    found = result_of(catalog_server, sink)
    first = found.frames.set_index("seq_num")["time_done"]
    sink.write_block(block_of([3, 4], take=1, time_done=[np.nan, np.nan]))
    sink.write_block(block_of([5, 6]))
    assert sink.finish("success", counts_of(6)) == "complete"
    frames = found.refresh().frames.set_index("seq_num")
    assert frames.trust[[2, 3, 4]].tolist() == [0.25, 0.5, 0.5]
    assert frames.time_done[:4].tolist() == first.tolist()
    assert frames.time_done[5] > first.max()


def test_a_block_whose_answer_was_lost_is_sent_again_without_doubling(
    catalog_server: CatalogServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = make_sink(catalog_server)
    sink.write_block(block_of(range(1, 11)))
    append = sink._container.append_rows

    def lose_the_answer(path: str, rows: Any) -> None:
        append(path, rows)
        raise CatalogUnavailableError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(sink._container, "append_rows", lose_the_answer)
        patch.setattr(sink._container, "read_rows", _unavailable)
        with pytest.raises(CatalogUnavailableError, match="connection reset|gone"):
            sink.write_block(block_of(range(11, 21)))
    sink.write_block(block_of(range(8, 26), take=1))
    assert sink.finish("success", counts_of(25)) == "complete"
    frames = result_of(catalog_server, sink).frames
    assert frames["seq_num"].tolist() == list(range(1, 26))
    assert frames["trust"].tolist() == [0.25] * 7 + [0.5] * 18


def _unavailable(*_: Any, **__: Any) -> Any:
    raise CatalogUnavailableError("gone")


@pytest.mark.parametrize(
    ("exit_status", "counts", "status", "problem"),
    [
        ("success", counts_of(3, expected=3), "complete", None),
        ("success", counts_of(3, expected=4), "partial", "the plan announced 4 frames, 3 were seen"),
        ("abort", counts_of(3, expected=3), "partial", "the run ended with 'abort'"),
        ("success", counts_of(4), "partial", "table holds 3 reconstructed frames, 4 were counted"),
        ("success", counts_of(3, dead=1), "partial", "table holds 0 rejected frames, 1 were counted"),
    ],
)
def test_three_frames_and_a_status_that_is_true(
    catalog_server: CatalogServer, exit_status: str, counts: dict[str, Any], status: str, problem: str | None
) -> None:
    sink = make_sink(catalog_server, frames_expected=counts["expected"])
    sink.write_block(block_of([1, 2, 3]))
    sink.write_mosaic(picture(9, 9))
    assert sink.finish(exit_status, counts) == status
    found = result_of(catalog_server, sink)
    assert found.status == status
    assert found.metadata["exit_status"] == exit_status
    assert found.counts["reconstructed"] == counts["reconstructed"]
    assert (problem in found.problems) if problem else not found.problems
    assert found["amplitude_patches"].shape == (3, *SHAPE)


def test_rejected_frames_stand_in_the_table_with_their_reason(catalog_server: CatalogServer) -> None:
    sink = make_sink(catalog_server)
    sink.write_block(block_of([1, 2, 3, 4], flags={2: "negative counts", 4: "frame missing"}))
    assert sink.finish("success", counts_of(2, negative=1, missing=1)) == "partial"
    found = result_of(catalog_server, sink)
    assert found.problems == ["2 frames have no reconstruction: 1 (negative), 1 (missing)"]
    assert found.frames["flag"].tolist() == ["", "negative counts", "", "frame missing"]
    assert found.frames["valid"].tolist() == [True, False, True, False]
    assert np.isnan(found.patches([2])).all()


def test_nothing_reconstructed_is_failed(catalog_server: CatalogServer) -> None:
    sink = make_sink(catalog_server, patch_shape=None)
    sink.update(problem="geometry lacks energy_ev")
    assert sink.finish(None, {**counts_of(0), "seen": None}, "geometry lacks energy_ev") == "failed"
    found = result_of(catalog_server, sink)
    assert found.problems == ["geometry lacks energy_ev"]
    assert not {"exit_status", "seen"} & {*found.metadata, *found.counts}
    assert found.frames.empty
    assert found.metadata["problem"] == "geometry lacks energy_ev"
    with pytest.raises(LookupError, match="has no amplitude: geometry lacks energy_ev"):
        found.amplitude.read()
    with pytest.raises(ValueError, match="patch_shape None"):
        sink.write_block(block_of([1]))


def test_what_the_catalog_lost_is_not_called_complete(catalog_server: CatalogServer) -> None:
    sink = make_sink(catalog_server)
    sink.write_block(block_of(range(1, 11)))
    image = picture(9, 9)
    sink.write_mosaic(image)
    found = result_of(catalog_server, sink)
    found["amplitude_patches"].patch(np.zeros((1, *SHAPE), np.float32), offset=(5, 0, 0))
    found["trust"].write(np.zeros((9, 9), np.float32))
    assert sink.finish("success", counts_of(10)) == "failed"
    assert found.refresh().problems == [
        "amplitude_patches differs from the last block written",
        "trust differs from the mosaic",
    ]


def test_a_mosaic_grows_while_others_read_it(catalog_server: CatalogServer) -> None:
    """Every picture a reader gets is one whole snapshot, and the four of `mosaic` are of the same one."""
    sink = make_sink(catalog_server)
    sink.write_mosaic(picture(20, 20, value=1.0))
    over, seen, torn = threading.Event(), [], []

    def read() -> None:
        reader = result_of(catalog_server, sink)
        while not over.wait(0.05):
            image = reader.mosaic()
            values = [np.unique(array[np.isfinite(array)]) for array in (image.amplitude, image.phase, image.trust)]
            flat = [value.tolist() for value in values]
            snapshot = flat[0][0]
            seen.append(snapshot)
            if flat != [[snapshot], [2 * snapshot], [4 * snapshot]] or np.isfinite(image.amplitude[:2, :2]).any():
                torn.append(flat)

    thread = threading.Thread(target=read)
    thread.start()
    corners = [(0, 0), (-4, -2), (-4, -40), (-60, -40), (-60, -40)]
    for step, corner in enumerate(corners, start=2):
        image = picture(20 + 12 * step, 20 + 12 * step, corner, value=float(step))
        sink.write_mosaic(image)
    sink.write_block(block_of([1]))
    assert sink.finish("success", counts_of(1)) == "complete"
    over.set()
    thread.join(30)
    assert not torn
    assert len(seen) >= 3
    assert seen == sorted(seen)
    found = result_of(catalog_server, sink)
    assert same_pictures(found, image)
    assert found.mosaic().origin_m == pytest.approx((-60 * PIXEL_M, -40 * PIXEL_M))
    assert set(found) == {"amplitude_patches", "phase_patches", "frames", OVERVIEW, *PICTURES}


def test_a_second_process_goes_on_where_the_first_stopped(catalog_server: CatalogServer) -> None:
    start = start_document()
    first = make_sink(catalog_server, start)
    first.write_block(block_of(range(1, 21)))
    first.write_mosaic(picture(20, 20))
    first.write_mosaic(picture(60, 60, (-30, -30)))
    first.write_block(block_of(range(15, 21), take=1))
    assert first.finish("success", counts_of(20, missing=10)) == "partial"
    second = make_sink(catalog_server, start, key=first.key)
    assert second.written == set(range(1, 21))
    assert result_of(catalog_server, second).status == "live"
    second.write_block(block_of(range(18, 31), take=2))
    second.write_mosaic(picture(62, 62, (-30, -30), value=3))
    found = result_of(catalog_server, second)
    assert found.counts["reconstructed"] == 30  # as it stands, while it is live
    catalog_server.processed[second.key].create_container("phase_7")  # of a process that died in the middle
    assert second.finish("success", counts_of(30)) == "complete"
    assert found.counts == {"seen": 30, "reconstructed": 30, "rejected": {}}
    assert found.problems == []
    assert found.frames["seq_num"].tolist() == list(range(1, 31))
    assert found.amplitude.read().shape == (62, 62)
    assert set(found) == {"amplitude_patches", "phase_patches", "frames", OVERVIEW, *PICTURES}


def test_arrays_that_a_killed_server_left_without_a_name_are_in_nobodys_way(catalog_server: CatalogServer) -> None:
    """It was killed between making files and naming them, or between forgetting them and deleting them."""
    start, key = start_document(), uuid.uuid4().hex
    first = make_sink(catalog_server, start, key=key, frames_expected=9)
    first.write_block(block_of(range(1, 10)))
    files = catalog_server.folder / "data" / "processed" / key
    kept = files.with_name("kept")
    shutil.copytree(files, kept)
    TiledNode(catalog_server.client, ["processed"]).delete(key)
    assert not list(files.rglob("zarr.json"))
    shutil.rmtree(files, ignore_errors=True)
    kept.rename(files)

    again = make_sink(catalog_server, start, key=key, frames_expected=9)
    again.write_block(block_of([1, 3], take=1))
    assert again.finish("success", counts_of(2)) == "complete"
    found = result_of(catalog_server, again)
    np.testing.assert_allclose(found.patches([1, 3]), patches_of([1, 3], take=1), rtol=1e-5)
    assert not found["amplitude_patches"].read()[1].any()


def test_a_mosaic_that_nobody_draws_again_still_gets_its_name(catalog_server: CatalogServer) -> None:
    first = make_sink(catalog_server)
    first.write_block(block_of([1]))
    first.write_mosaic(picture(20, 20))
    first.write_mosaic(picture(30, 30, (-5, -5), value=3))
    second = make_sink(catalog_server, key=first.key)
    assert second.finish("abort", counts_of(1)) == "partial"
    found = result_of(catalog_server, second)
    assert found["phase"].shape == (30, 30)
    assert same_pictures(found, picture(30, 30, (-5, -5), value=3))
    assert found.mosaic().origin_m == pytest.approx((-5 * PIXEL_M, -5 * PIXEL_M))


def test_blocks_wait_in_the_spool_while_the_server_is_away(
    catalog_server: CatalogServer, proxy: Proxy, tmp_path: Path
) -> None:
    from tiled.client import from_uri

    client = from_uri(f"http://127.0.0.1:{proxy.port}/api/v1", api_key=catalog_server.api_key)
    try:
        sink = make_sink(catalog_server, root=client, spool=tmp_path / "spool", patience_s=1.0)
        sink.write_block(block_of(range(1, 11)))
        proxy.refuse()
        began = time.monotonic()
        sink.write_block(block_of(range(11, 21)))
        sink.write_block(block_of(range(15, 31), take=1))
        sink.write_mosaic(picture(9, 9, value=1))
        sink.write_mosaic(picture(9, 9, value=2))
        sink.update(note="kept")
        assert time.monotonic() - began < 5
        assert sink.pending == 26
        assert sink.spooled == set(range(11, 31))
        assert sink.behind
        assert not sink.deliver()
        assert "does not answer" in sink.problem
        assert "26 frames pending" in repr(sink)
        with pytest.raises(CatalogUnavailableError, match="does not answer"):
            sink.finish("success", counts_of(30))
        assert sink.pending == 26
        key = sink.key
        proxy.mend()
        # Both the sink that lived through it and one that finds the spool of a process that did not.
        after = make_sink(catalog_server, {"uid": "x"}, root=client, spool=tmp_path / "spool", key=key)
        assert after.pending == 26
        assert sink.finish("success", counts_of(30)) == "complete"
        assert (sink.pending, sink.spool_bytes, sink.behind, sink.problem) == (0, 0, False, "")
        assert not list((tmp_path / "spool").glob("*/*"))
        found = result_of(catalog_server, sink)
        assert found.frames["seq_num"].tolist() == list(range(1, 31))
        assert found.frames["trust"].tolist() == [0.25] * 14 + [0.5] * 16
        assert same_pictures(found, picture(9, 9, value=2))
        assert found.metadata["note"] == "kept"
    finally:
        client.context.close()


def test_without_a_spool_an_outage_is_the_callers(
    catalog_server: CatalogServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = make_sink(catalog_server)
    monkeypatch.setattr(sink._container, "_send", _unavailable)
    with pytest.raises(CatalogUnavailableError, match="gone"):
        sink.write_block(block_of([1]))
    assert sink.pending == 0


def test_a_full_spool_says_so(catalog_server: CatalogServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sink = make_sink(catalog_server, spool=tmp_path, spool_limit_bytes=10_000, patience_s=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(sink._container, "_send", _unavailable)
        sink.write_block(block_of(range(1, 21)))
        with pytest.raises(CatalogUnavailableError, match="its limit is 10000"):
            sink.write_block(block_of(range(21, 41)))
        with pytest.raises(CatalogUnavailableError, match=r"its limit is 10000 for all runs, .* \(gone\)"):
            sink.make_room()
    assert sink.pending == 20
    sink._backoff.succeed()
    sink.write_block(block_of(range(21, 41)))
    assert sink.pending == 0


def test_a_catalog_that_says_no_is_not_waited_for(catalog_server: CatalogServer, tmp_path: Path) -> None:
    sink = make_sink(catalog_server, spool=tmp_path)
    sink.write_block(block_of([1]))
    catalog_server.processed.delete_contents(sink.key, recursive=True, external_only=False)
    with pytest.raises(CatalogRefusedError, match=r"answered 404"):
        sink.write_block(block_of([2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_nums": [1, 2, 0]}, "sequence number 0 is below 1"),
        ({"patches": np.zeros((3, 8, 9), np.complex64)}, r"patches \(3, 8, 9\), patch_shape \(8, 8\) px"),
        ({"patches": np.zeros((2, 8, 8), np.complex64)}, r"3 sequence numbers, patches \(2, 8, 8\)"),
        ({"trust": [0.5]}, r"trust has shape \(1,\), expected \(3,\)"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_in_words(
    catalog_server: CatalogServer, change: dict[str, Any], message: str
) -> None:
    sink = make_sink(catalog_server)
    with pytest.raises(ValueError, match=message):
        sink.write_block(block_of(change.pop("seq_nums", [1, 2, 3]), **change))
    assert not sink.written


def test_parameters_are_checked(catalog_server: CatalogServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start document has no uid"):
        make_sink(catalog_server, {"scan_id": 1})
    with pytest.raises(ValueError, match=r"patch_shape \(0, 8\) must be"):
        make_sink(catalog_server, patch_shape=(0, 8))
    with pytest.raises(ValueError, match="limit_bytes 0 must be above 0"):
        make_sink(catalog_server, spool=tmp_path, spool_limit_bytes=0)


def test_a_lost_frame_is_failed_and_a_missing_one_partial() -> None:
    assert (
        decide_status("success", counts_of(2), ReadBack(2, 0, ("table holds 1 frames, 2 were written",)))[0] == "failed"
    )
    assert decide_status("success", counts_of(0), ReadBack(0, 0, ())) == ("failed", ["no frame was reconstructed"])
    said = ["1 frames have no reconstruction: 1 (dark)"]
    assert decide_status("success", counts_of(2, dark=1), ReadBack(2, 1, ())) == ("partial", said)
    assert decide_status("abort", counts_of(2, dark=1), ReadBack(2, 1, ()))[0] == "partial"
    unusable = {**counts_of(2), "unusable_documents": {"event": 1}}
    said = ["1 of the run's documents could not be used (event); frames may be missing"]
    assert decide_status("success", unusable, ReadBack(2, 0, ())) == ("partial", said)


def test_canvases_hold_what_they_grew_for() -> None:
    canvas = Canvas.tight(picture(20, 20))
    assert canvas.corner(picture(20, 21)) is None
    up = picture(30, 20, (-10, 0))
    larger = canvas.grown(up)
    assert larger.corner(up) == (32, 0)  # room above, none below or beside
    assert larger.shape == (62, 20)
    laid = larger.place(up)
    np.testing.assert_array_equal(laid["phase"][32:], up.phase)
    assert np.isnan(laid["phase"][:32]).all()
    assert not laid["coverage"][:32].any()
    half = picture(20, 20)
    shifted = Canvas((half.origin_m[0] + PIXEL_M / 2, 0.0), PIXEL_M, (40, 40))
    assert shifted.corner(half) is None
    with pytest.raises(ValueError, match="is not within"):
        canvas.place(up)


def test_spool_keeps_order_over_a_restart(tmp_path: Path) -> None:
    blocks = []
    spool = Spool(tmp_path / "run", 10**9)
    for first in (1, 41):
        wave = patches_of(range(first, first + 40))
        numbers = np.arange(first, first + 40)
        ones = np.ones(40)
        flag = np.array(["", "µm"] * 20)
        blocks.append(
            Block(numbers, np.abs(wave), np.angle(wave), ones, ones, ones.astype("f4"), ones > 0, flag, ones, ones)
        )
        spool.put(blocks[-1])
    (tmp_path / "run" / "00000002.draft").write_bytes(b"half")  # of a process that died while it wrote
    again = Spool(tmp_path / "run", 10**9)
    assert (len(again), again.frames) == (2, 80)
    assert again.first().flag.tolist() == ["", "µm"] * 20
    again.drop()
    np.testing.assert_array_equal(again.first().amplitude, blocks[1].amplitude)
    again.put(blocks[0])
    again.drop()
    np.testing.assert_array_equal(again.first().seq_num, blocks[0].seq_num)


def test_small_blocks_of_a_spool_are_sent_together_and_the_last_measurement_wins(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run", 10**9)
    for numbers, take in ((range(1, 4), 0), (range(2, 40), 1), (range(60, 100), 0)):
        spool.put(block_of(numbers, take))
    assert (spool.frames, spool.seq_nums) == (81, {*range(1, 40), *range(60, 100)})
    first = spool.first()
    assert first.seq_num.tolist() == list(range(1, 40))
    assert first.trust.tolist() == [0.25] + [0.5] * 38
    spool.drop()
    assert (len(spool), spool.seq_nums) == (1, set(range(60, 100)))
    spool.drop()
    assert (spool.seq_nums, spool.nbytes, spool.since) == (set(), 0, None)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_leaves_no_half_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "run", 10**9)
    spool.put(block_of([1]))

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left"):
            spool.put(block_of([2]))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["00000000.npz"]
    spool.put(block_of([2]))
    assert spool.seq_nums == {1, 2}


def test_a_spool_that_a_power_cut_spoilt_gives_what_is_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run", 10**9)
    for number in (1, 2, 3):
        spool.put(block_of([number]))
    path = tmp_path / "run" / "00000001.npz"
    path.write_bytes(path.read_bytes()[:200])
    again = Spool(tmp_path / "run", 10**9)
    assert again.seq_nums == {1, 3}
    again.put(block_of([4]))
    assert again.first().seq_num.tolist() == [1, 3, 4]


def test_the_bound_of_a_spool_holds_for_all_runs_of_a_session(tmp_path: Path) -> None:
    one, two = Spool(tmp_path / "one", 100_000), Spool(tmp_path / "two", 100_000)
    one.put(block_of(range(1, 81)))  # about 47 kB
    assert not one.full
    assert two.fits(block_of(range(1, 81)))
    one.put(block_of(range(81, 101)))
    assert one.full
    assert two.fits(block_of([1]))
    assert not two.fits(block_of(range(1, 81)))
    assert not two.full  # nothing of its own waits: it may ask

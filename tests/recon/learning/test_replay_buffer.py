"""The replay buffer is bounded, remembers what is unlike, and survives what kills its writer."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import zone_plate_probe
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.learning.novelty import features, novelty
from bluesky_ptychonn.recon.learning.replay_buffer import FEWEST, ReplayBuffer

GEOMETRY = Geometry(energy_ev=10_000, distance_m=1, pixel_pitch_m=75e-6, frame_shape=(16, 16))
PROBE = zone_plate_probe((16, 16), 7)
ROOM = 2**16


def scan(source: str, frames: int, level: float = 5.0, seed: int = 0, kind: str = "flat") -> MeasuredScan:
    """Random frames, their light everywhere or in one corner; each frame's x is its number."""
    counts = np.random.default_rng(seed).poisson(level, (frames, 16, 16))
    if kind == "corner":
        counts[:, 8:] = 0
        counts[:, :, 8:] = 0
    return MeasuredScan(counts, np.zeros(frames), np.arange(frames), PROBE, GEOMETRY, source)


def whole(folder: Path, room: int = ROOM) -> ReplayBuffer[MeasuredScan]:
    return ReplayBuffer(folder, MeasuredScan, room)


def test_frames_like_known_ones_are_no_news_and_others_are() -> None:
    known = features(scan("a", 4, 50.0).counts)
    np.testing.assert_allclose(np.linalg.norm(known, axis=1), 1, rtol=1e-5)
    same = novelty(scan("b", 4, 50.0, seed=1).counts, known)
    other = novelty(scan("c", 4, 50.0, kind="corner").counts, known)
    assert same.max() < 0.2 < other.min()
    assert novelty(scan("a", 4, 50.0).counts, known).max() == 0
    assert (novelty(scan("a", 2).counts, np.zeros((0, 96))) == 1).all()
    assert (features(np.zeros((1, 16, 16))) == 0).all()


def test_the_best_frames_come_first_and_those_without_trust_not_at_all(tmp_path: Path) -> None:
    buffer = whole(tmp_path)
    kept = buffer.add(scan("a", 4), trust=[0.1, 0.9, 0.0, 0.9], unlike=[0.5, 0.1, 0.5, 0.2])
    assert kept.frames == 3
    assert kept.left_out == {"without trust": 1}
    assert buffer.scans()[0].x_m.tolist() == [3, 1, 0]
    assert buffer.add(scan("b", 3), np.zeros(3), np.ones(3)).frames == 0
    assert [s.source for s in buffer.scans()] == ["a"]


def test_a_run_given_twice_is_there_once(tmp_path: Path) -> None:
    buffer = whole(tmp_path)
    for frames in (9, 5):
        buffer.add(scan("a", frames), np.ones(frames), np.ones(frames))
        buffer.add(scan("b", 4), np.ones(4), np.ones(4))
    assert [(s.source, len(s)) for s in buffer.scans()] == [("a", 5), ("b", 4)]
    buffer.remove("a")
    assert [s.source for s in whole(tmp_path).scans()] == ["b"]


def test_shapes_that_disagree_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 frames of a, trust and novelty for \(2,\)"):
        whole(tmp_path).add(scan("a", 3), np.ones(2), np.ones(2))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0.5, 300)), min_size=1, max_size=5))
def test_it_never_holds_more_than_it_may(runs: list[tuple[int, float]]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        buffer = whole(folder)
        for k, (frames, level) in enumerate(runs):
            given_ = scan(str(k), frames, level, seed=k)
            kept = buffer.add(given_, np.ones(frames), np.ones(frames))
            assert buffer.bytes <= ROOM
            assert kept.frames + sum(kept.left_out.values()) == frames
            mine = [s for s in buffer.scans() if s.source == str(k)]
            assert sum(len(s) for s in mine) == kept.frames
        assert [s.source for s in whole(folder).scans()] == [s.source for s in buffer.scans()]


def test_old_kinds_stay_represented(tmp_path: Path) -> None:
    buffer = whole(tmp_path)
    buffer.add(scan("old kind", 100, 20.0, kind="corner"), np.ones(100), np.ones(100))
    for k in range(14):
        buffer.add(scan(f"{k}", 100, 20.0, seed=k), np.ones(100), np.ones(100))
    kept = {s.source: len(s) for s in buffer.scans()}
    assert kept["old kind"] >= FEWEST
    assert kept["13"] >= FEWEST
    assert len(kept) > 5


def test_a_scan_that_can_never_fit_is_refused_in_words(tmp_path: Path) -> None:
    kept = whole(tmp_path, 1000).add(scan("a", 20, 200.0), np.ones(20), np.ones(20))
    assert kept.frames == 0
    assert kept.left_out == {"no room in 1000 bytes": 20}
    assert not whole(tmp_path).files


def test_a_writer_killed_before_the_file_has_its_name_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = whole(tmp_path)
    buffer.add(scan("a", 9), np.ones(9), np.ones(9))

    class Killed(BaseException):
        pass

    def kill(self: Path, target: Path) -> Path:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # a kill -9 tidies nothing up
        with pytest.raises(Killed):
            buffer.add(scan("b", 9), np.ones(9), np.ones(9))
    assert list(tmp_path.glob(".*part*"))
    again = whole(tmp_path)
    assert [s.source for s in again.scans()] == ["a"]
    assert not list(tmp_path.glob(".*part*"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_a_damaged_file_costs_its_run_alone(place: int, byte: int, cut: bool) -> None:
    with TemporaryDirectory() as name:
        buffer = whole(Path(name))
        for source in ("a", "b"):
            buffer.add(scan(source, 9), np.ones(9), np.ones(9))
        path = buffer.files[0]
        data = bytearray(path.read_bytes())
        if cut:
            path.write_bytes(data[: place % len(data)])
        else:
            data[place % len(data)] ^= byte or 1
            path.write_bytes(data)
        found = whole(Path(name)).scans()
        assert "b" in [s.source for s in found]
        for s in found:  # what is read is what was written
            np.testing.assert_array_equal(s.counts, scan(s.source, 9).counts)

"""A labelled scan cuts the object that each frame saw, and knows how far it knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan, light_on

EXPERIMENT = SimulatedExperiment.demo("cells")
PIXEL = EXPERIMENT.pixel_m
SIDE = EXPERIMENT.sample.shape[0]
ORIGIN, SHAPE = (-140.25 * PIXEL, -131.5 * PIXEL), (280, 263)
TRUTH = EXPERIMENT.truth_on(ORIGIN, SHAPE)
place = st.floats(-60, 60)


def labelled(y_px: list[float], x_px: list[float]) -> LabelledScan:
    """Frames without light: what is tested is the label, which is the truth on an odd grid."""
    y, x = np.array(y_px) * PIXEL, np.array(x_px) * PIXEL
    light = light_on(SHAPE, (y - ORIGIN[0]) / PIXEL, (x - ORIGIN[1]) / PIXEL, EXPERIMENT.probe)
    counts = np.zeros((len(y), 64, 64), np.float32)
    return LabelledScan(
        counts, y, x, EXPERIMENT.probe, EXPERIMENT.geometry, "demo", TRUTH, ORIGIN, PIXEL, light, "truth"
    )


@settings(max_examples=25, deadline=None)
@given(place, place, st.sampled_from([16, 31, 32, 64]))
def test_truth_is_what_the_simulated_beam_saw(y: float, x: float, size: int) -> None:
    patch = labelled([0.0, y], [0.0, x]).truth(np.array([1]), size)
    corner = ((y - size // 2) * PIXEL, (x - size // 2) * PIXEL)
    expected = EXPERIMENT.truth_on(corner, (size, size))
    # The label was interpolated once already, from the sample's grid to its own.
    assert patch.shape == (1, size, size)
    assert np.abs(patch[0] - expected).max() < 0.1
    assert np.sqrt(np.mean(np.abs(patch[0] - expected) ** 2)) < 0.01


def test_on_its_own_grid_truth_is_exact() -> None:
    scan = labelled([3.75], [7.5])  # whole pixels of the label
    np.testing.assert_allclose(scan.truth(slice(None), 32)[0], scan.object[128:160, 123:155], atol=1e-4)


def test_a_frame_follows_from_the_truth_at_its_place() -> None:
    """Probe times truth, transformed, is the frame without noise: the convention is the simulation's."""
    scan = labelled([10.25, -20.5], [4.0, 33.5])
    for patch, y, x in zip(scan.truth(slice(None), 64), scan.y_m, scan.x_m, strict=True):
        wave = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(EXPERIMENT.probe * patch), norm="ortho"))
        frame = EXPERIMENT.intensity_at(y, x) / EXPERIMENT.photons
        assert np.abs(np.abs(wave) - np.sqrt(frame)).sum() < 0.04 * np.sqrt(frame).sum()


def test_what_nobody_knows_is_one_and_weighs_nothing() -> None:
    scan = labelled([0.0, 250.0], [0.0, 0.0])
    gap = scan.object.copy()
    gap[:, 131:] = np.nan
    scan = replace(scan, object=gap)
    known, truth = scan.known(slice(None), 32), scan.truth(slice(None), 32)
    assert np.isfinite(truth).all()
    assert (known[0, :, 16:] == 0).all()
    assert known[0, :, 6].max() > 0.3
    assert (known[1] == 0).all()
    np.testing.assert_array_equal(truth[1], 1)


def test_on_a_mosaics_grid_the_unknown_is_nan() -> None:
    scan = labelled([0.0], [0.0])
    origin = (ORIGIN[0] - 10 * PIXEL, ORIGIN[1] + 20.5 * PIXEL)
    found = scan.truth_on(origin, (100, 50))
    assert np.isnan(found[:10]).all()
    np.testing.assert_allclose(found[15:], EXPERIMENT.truth_on(origin, (100, 50))[15:], atol=0.1)
    lit = scan.truth_on(ORIGIN, SHAPE, least_light=0.5)
    np.testing.assert_array_equal(np.isfinite(lit), scan.light >= 0.5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(place, place), min_size=1, max_size=30))
def test_light_is_the_probe_at_every_position(places: list[tuple[float, float]]) -> None:
    rows, columns = (np.array(values) + 150 for values in zip(*places, strict=True))
    light = light_on((300, 300), rows, columns, EXPERIMENT.probe)
    beam = np.abs(EXPERIMENT.probe) ** 2
    assert light.sum() == pytest.approx(len(places) * beam.sum() / beam.max(), rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1), st.floats(0.0, 40.0), st.integers(0, 2**31))
def test_halves_share_no_light(axis: int, gap_px: float, seed: int) -> None:
    y, x = np.random.default_rng(seed).uniform(-60, 60, (2, 40))
    scan = labelled(list(y), list(x))
    first, second = scan.halves(axis, gap_px * PIXEL)
    ends = ((h.y_m, h.x_m)[axis] for h in (first, second))
    low, high = ends
    assert low.max() < high.min() - gap_px * PIXEL
    assert len(second) == 20
    assert isinstance(first, LabelledScan)
    assert first.object is scan.object


def test_the_gap_is_the_beam_when_not_given() -> None:
    first, second = labelled(list(range(-60, 61)), [0.0] * 121).halves()
    assert second.y_m.min() - first.y_m.max() > EXPERIMENT.probe_diameter_m
    with pytest.raises(ValueError, match=r"cannot be halved along x with a gap of 0\.\d+ µm; take the other axis"):
        labelled(list(range(-60, 61)), [0.0] * 121).halves(axis=1)
    with pytest.raises(ValueError, match="axis 2 is unknown"):
        labelled([0.0], [0.0]).halves(axis=2)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    scan = labelled([1.0, 2.0], [3.0, 4.0])
    path = scan.save(tmp_path / "scan.npz")
    again = LabelledScan.load(path)
    for name in ("counts", "y_m", "x_m", "probe", "object", "light"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scan, name))
        assert getattr(again, name).dtype == getattr(scan, name).dtype
    assert (again.geometry, again.origin_m, again.source, again.solver) == (
        scan.geometry,
        scan.origin_m,
        "demo",
        "truth",
    )
    assert type(MeasuredScan.load(path)) is MeasuredScan
    assert [p.name for p in tmp_path.iterdir()] == ["scan.npz"]


def test_files_that_are_not_ours_are_named(tmp_path: Path) -> None:
    scan = labelled([1.0], [3.0])
    bare = MeasuredScan(scan.counts, scan.y_m, scan.x_m, scan.probe, scan.geometry, "a run").save(tmp_path / "bare.npz")
    with pytest.raises(ValueError, match=r"bare\.npz: no LabelledScan, it lacks object, origin_m, pixel_m, light, sol"):
        LabelledScan.load(bare)
    with pytest.raises(ValueError, match=r"none\.npz: cannot be read as a MeasuredScan"):
        MeasuredScan.load(tmp_path / "none.npz")
    torn = tmp_path / "torn.npz"
    torn.write_bytes(bare.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"torn\.npz: cannot be read as a MeasuredScan"):
        MeasuredScan.load(torn)
    words = {field: np.asarray(value) for field, value in np.load(bare).items()} | {"counts": np.array("many")}
    np.savez(tmp_path / "words.npz", **words)
    with pytest.raises(ValueError, match=r"words\.npz: counts is <U4; real numbers needed"):
        MeasuredScan.load(tmp_path / "words.npz")
    with pytest.raises(ValueError, match=r"counts is \(\); 0 frames"):
        replace(scan, counts=np.float32(1))
    with pytest.raises(ValueError, match=r"'scan\.h5' must end in \.npz"):
        scan.save(tmp_path / "scan.h5")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y_m": np.zeros(3)}, r"demo: y_m is \(3,\); 1 frames of \(64, 64\) px need \(1,\)"),
        ({"counts": np.zeros((1, 32, 32))}, r"counts is \(1, 32, 32\)"),
        ({"x_m": np.array([np.nan])}, "x_m holds NaN"),
        ({"probe": np.zeros((64, 64))}, "dark everywhere"),
        ({"light": np.ones((3, 3))}, r"object \(280, 263\) and light \(3, 3\) px must be one"),
        ({"light": -np.ones((280, 263))}, "light must be finite and not negative"),
        ({"object": np.full((280, 263), np.nan)}, "no pixel of the object is known"),
        ({"origin_m": (0.0, np.inf)}, "two finite numbers, y and x"),
        ({"pixel_m": 1.05 * PIXEL}, r"allowed is 1% between them"),
        ({"pixel_m": np.full((2, 2), PIXEL)}, r"pixel_m is \(2, 2\); one number of metres is needed"),
    ],
)
def test_parts_that_do_not_go_together_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(labelled([0.0], [0.0]), **change)  # type: ignore[arg-type]

"""The one adapter to an iterative solver: what it asks, and what it says when no answer comes."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.data.spacing import step_of, thinned
from bluesky_ptychonn.recon.solver import ptychi as iterative
from bluesky_ptychonn.recon.solver.labelling import MOST_SAMPLING, check_overlap, sampling_of, solve
from bluesky_ptychonn.recon.solver.ptychi import (
    PYTHON_VARIABLE,
    SolverError,
    SolverMissingError,
    SolverSettings,
    reconstruct_with_probe,
    settled_epochs,
    solver_version,
)


def measured(experiment: SimulatedExperiment, side: int, step_px: float) -> MeasuredScan:
    """A raster with half a step of jitter taken off the grid of pixels."""
    rng = np.random.default_rng(3)
    line = (np.arange(side) - (side - 1) / 2) * step_px * experiment.pixel_m
    y, x = (g.ravel() + rng.uniform(-1, 1, side**2) * experiment.pixel_m for g in np.meshgrid(line, line))
    frames = np.stack([experiment.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)]).astype(np.float32)
    probe = experiment.probe * np.float32(experiment.photons**0.5)
    return MeasuredScan(frames, y, x, probe, experiment.geometry, "simulated scan")


@pytest.fixture(scope="module")
def scan() -> MeasuredScan:
    return measured(SimulatedExperiment.demo(), 6, 8.0)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a script in the place of the solver's interpreter; it is called with worker, asked and answered."""

    def put(code: str) -> Path:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\nimport sys, numpy as np\n_, worker, asked, answered = sys.argv\n{code}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(PYTHON_VARIABLE, str(path))
        return path

    return put


ANSWER = """
with np.load(asked) as given:
    shape, probe, places = tuple(given["shape"]), given["probe"], given["positions"]
one = dict(snapshots=np.ones((1, *shape), np.complex64), probe=probe, epochs=[5], seconds=[1.0], cpu_seconds=[1.0],
    loss=[0.2, 0.1], software="stand-in 1", device="cpu")
"""


def test_an_answer_becomes_a_label(scan: MeasuredScan, stand_in) -> None:
    stand_in(ANSWER + "np.savez(answered, **one)")
    labelled, found = solve(scan)
    assert (labelled.solver, found.loss.tolist()) == ("stand-in 1", [0.2, 0.1])
    assert (labelled.pixel_m, len(labelled)) == (scan.geometry.object_pixel_m, 36)
    assert labelled.known(slice(14, 16), 16).min() == 1
    np.testing.assert_allclose(labelled.truth(slice(None), 16), 1, atol=1e-6)
    assert np.isnan(labelled.object[0, 0])


def test_a_probe_that_wandered_comes_back_and_takes_the_object_along(scan: MeasuredScan, stand_in) -> None:
    """What the solver may give for the same frames: probe moved by (3, -2) px and doubled, object the other way."""
    moved = "one['probe'] = 2 * np.roll(probe, (3, -2), (0, 1))\n"
    spot = "o = one['snapshots'] = one['snapshots'].copy() / 2\no[0, shape[0] // 2 + 3, shape[1] // 2 - 2] = 4\n"
    stand_in(ANSWER + moved + spot + "np.savez(answered, **one)")
    labelled, _ = solve(scan, refine_probe=True)
    np.testing.assert_allclose(labelled.probe, scan.probe, atol=1e-3 * np.abs(scan.probe).max())
    stand_in(ANSWER + "np.savez(answered, **one)")
    plain, _ = solve(scan)
    row, column = np.unravel_index(np.nanargmax(np.abs(labelled.object)), labelled.object.shape)
    at = [o + i * labelled.pixel_m for o, i in zip(labelled.origin_m, (row, column), strict=True)]
    wanted = [o + n // 2 * plain.pixel_m for o, n in zip(plain.origin_m, plain.object.shape, strict=True)]
    np.testing.assert_allclose(at, wanted, atol=0.02 * plain.pixel_m)
    # The solver starts from the frames' mean counts; the told probe's power is what comes back.
    power = float((np.abs(scan.probe) ** 2).sum())
    started = np.sqrt(scan.counts.sum(axis=(1, 2)).mean() / power)
    assert np.nanmedian(np.abs(labelled.object)) == pytest.approx(started, rel=1e-3)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "sys.stderr.write('Traceback\\nMemoryError: too large\\n'); sys.exit(1)",
            "ended with 1: MemoryError: too lar",
        ),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9: without a word"),
        ("pass", "answer cannot be read .*No such file"),
        ("open(answered, 'w').write('hello')", "answer cannot be read"),
        ("np.savez(answered, snapshots=np.ones((1, 3, 3)))", "answer cannot be read .*probe"),
        (ANSWER + "np.savez(answered, **one | {'snapshots': np.ones((1, 3, 3))})", r"an object \(3, 3\) and a probe"),
        (ANSWER + "one['snapshots'][:] = np.nan; np.savez(answered, **one)", "the solver diverged"),
    ],
)
def test_no_answer_is_said_in_a_line(scan: MeasuredScan, stand_in, code: str, words: str) -> None:
    stand_in(code)
    with pytest.raises(SolverError, match=words) as caught:
        solve(scan)
    assert "\n" not in str(caught.value)


def test_a_solver_that_is_missing_is_told_how_to_get(
    scan: MeasuredScan, stand_in, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The real worker, in an interpreter that is kept from seeing pty-chi.
    stand_in(f"import os; os.execv({sys.executable!r}, ['python', '-S', '-c', HIDE, worker, asked, answered])")
    hide = (
        "import sys, runpy; sys.path += PATH; sys.modules['ptychi'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    ).replace("PATH", repr(sys.path))
    path = Path(os.environ[PYTHON_VARIABLE])
    path.write_text(path.read_text().replace("HIDE", repr(hide)))
    with pytest.raises(SolverMissingError, match=r"has no pty-chi .*pip install .*ptychi==.* in PTYCHONN_PEER_PYTHON"):
        solve(scan)
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(SolverMissingError, match="nowhere cannot be started .*name an interpreter with pty-chi"):
        solve(scan)
    assert solver_version() is None


def test_what_cannot_be_asked_is_refused_at_once(scan: MeasuredScan) -> None:
    places = np.full((36, 2), 50.0)
    with pytest.raises(ValueError, match="enlarge the object or shift the positions"):
        reconstruct_with_probe(scan.counts, places, scan.probe, (60, 60))
    with pytest.raises(ValueError, match="epochs: got 0"):
        reconstruct_with_probe(scan.counts, places, scan.probe, (120, 120), epochs=0)
    with pytest.raises(ValueError, match="device: got 'tpu'"):
        SolverSettings(device="tpu")
    assert settled_epochs(516) == 15
    assert settled_epochs(33) == 236
    assert iterative._WORKER.is_file()


def test_a_scan_too_sparse_for_a_label_is_refused(scan: MeasuredScan) -> None:
    diameter_px = scan.probe_diameter_m / scan.geometry.object_pixel_m
    assert sampling_of(scan) == pytest.approx(8 / diameter_px, rel=0.1)
    assert check_overlap(scan) < MOST_SAMPLING
    sparse = scan.select(thinned(scan.y_m, scan.x_m, 14 * scan.geometry.object_pixel_m))
    with pytest.raises(
        ValueError, match=r"simulated scan: too sparse .* is 0\.[45]\d of the probe's .* allowed is 0\.40"
    ):
        check_overlap(sparse)
    assert check_overlap(sparse, 0.9) > MOST_SAMPLING
    with pytest.raises(ValueError, match="6 places lie on a line; an area is needed"):
        sampling_of(MeasuredScan(scan.counts[:6], np.zeros(6), np.arange(6.0), scan.probe, scan.geometry, "a line"))


def test_thinning_grows_the_spacing_in_both_directions() -> None:
    y, x = (g.ravel() for g in np.mgrid[0:12, 0:12])
    for least, step in ((1.0, 1.0), (2.0, 2.0), (3.0, 3.0)):
        kept = thinned(y, x, least, first=0)
        assert step_of(y[kept], x[kept]) == pytest.approx(step)
    shifted = thinned(y, x, 2.0, first=13)
    assert 13 in shifted
    assert 0 not in shifted

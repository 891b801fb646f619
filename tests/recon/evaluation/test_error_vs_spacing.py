"""The error-against-sampling curve: on simulated and labelled scans, beside a solver, onto a card that plans obey."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from bluesky_ptychonn.card import MeasuredCurve, ModelCard, SamplingPoint, load_card
from bluesky_ptychonn.cli import main
from bluesky_ptychonn.optics.simulate import SimulatedExperiment
from bluesky_ptychonn.recon.data.scans import LabelledScan, light_on
from bluesky_ptychonn.recon.evaluation.error_vs_spacing import measure_labelled, measure_simulated, measured_card
from bluesky_ptychonn.recon.evaluation.simulated_scans import ScanSeries
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.models.library import WEIGHTS_FILE
from bluesky_ptychonn.recon.solver.ptychi import PYTHON_VARIABLE


def point(sampling: float, error: float, **values: float) -> SamplingPoint:
    defaults = {"phase_correlation": 0.9, "covered_fraction": 1.0, "frames": 9}
    return SamplingPoint(sampling=sampling, step_m=sampling * 1e-6, phase_mae_rad=error, **{**defaults, **values})


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("simulated-zp64", "cpu")


@pytest.fixture(scope="module")
def card(model: Model) -> ModelCard:
    points = (point(0.2, 0.02), point(0.5, 0.05), point(0.8, 0.2))
    return model.card.model_copy(update={"sampling": points, "labelled": (), "measured": {}})


def test_a_label_binds_the_plan_and_a_simulation_only_warns(card: ModelCard) -> None:
    assert card.spacing_for(0.05) == pytest.approx(0.5e-6)
    curve = MeasuredCurve(source="label a", points=(point(0.3, 0.03), point(0.6, 0.09)))
    labelled = measured_card(card, labelled=[curve])
    assert labelled.measured_range_m == pytest.approx((0.3e-6, 0.6e-6))
    # Between the labelled steps: the larger of 0.07 (label, between its points) and 0.05 (simulated) at 0.5.
    assert labelled.error_at(0.5e-6) == pytest.approx(0.07)
    # At 0.6 the label says 0.09, the simulated curve 0.1 between its points.
    assert labelled.error_at(0.6e-6) == pytest.approx(0.1)
    assert labelled.spacing_for(0.07) == pytest.approx(0.5e-6)
    assert labelled.spacing_for(0.5) == pytest.approx(0.6e-6)  # 0.8 was never tried on real frames
    with pytest.raises(ValueError, match=r"no measured spacing keeps .* the smallest is 0.03 rad, at a step of 0.3 µm"):
        labelled.spacing_for(0.025)
    with pytest.raises(ValueError, match="was never measured; its error is known from 0.3 to 0.6 µm"):
        labelled.error_at(0.25e-6)


def test_the_more_cautious_of_the_two_counts(card: ModelCard) -> None:
    easy = MeasuredCurve(source="label of an easy sample", points=(point(0.2, 0.001), point(0.5, 0.001)))
    labelled = measured_card(card, labelled=[easy])
    assert labelled.error_at(0.5e-6) == pytest.approx(0.05)
    holes = MeasuredCurve(source="label", points=(point(0.2, 0.01), point(0.5, 0.02, covered_fraction=0.5)))
    assert measured_card(card, labelled=[holes]).spacing_for(0.5, covered_at_least=0.9) == pytest.approx(0.2e-6)


def test_a_new_curve_takes_the_place_of_the_old(card: ModelCard) -> None:
    first, other = (MeasuredCurve(source=s, points=(point(0.3, 0.03),)) for s in ("label a", "label b"))
    again = MeasuredCurve(source="label a", points=(point(0.4, 0.06),))
    both = measured_card(measured_card(card, labelled=[first, other]), (point(0.5, 0.1),), [again], {"command": "x"})
    assert both.labelled == (other, again)
    assert [p.sampling for p in both.sampling] == [0.5]
    assert ModelCard.from_values(both.model_dump(mode="json"), "again") == both


def test_old_cards_load_and_mean_what_they_did(card: ModelCard) -> None:
    values = card.model_dump(mode="json")
    for name in ("labelled", "measured"):
        del values[name]
    for row in values["sampling"]:
        for name in ("scans", "solver_phase_mae_rad", "solver_phase_correlation", "solver_s"):
            del row[name]
    assert ModelCard.from_values(values, "old") == card
    values["labelled"] = [{"source": "a", "points": [values["sampling"][1], values["sampling"][0]]}]
    with pytest.raises(ValueError, match="labelled, a: steps must ascend"):
        ModelCard.from_values(values, "old")


def labelled_scan(side: int = 9, step_px: float = 6.0) -> LabelledScan:
    """A dense simulated raster whose label is the truth."""
    experiment = SimulatedExperiment.demo()
    pixel = experiment.pixel_m
    rng = np.random.default_rng(5)
    line = (np.arange(side) - (side - 1) / 2) * step_px * pixel
    y, x = (g.ravel() for g in np.meshgrid(line, line, indexing="ij"))
    frames = np.stack([experiment.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)])
    n = 2 * round(side * step_px / 2 + 36)
    origin = (-n // 2 * pixel, -n // 2 * pixel)
    light = light_on((n, n), y / pixel + n // 2, x / pixel + n // 2, experiment.probe)
    probe = experiment.probe * np.float32(experiment.photons**0.5)
    truth = experiment.truth_on(origin, (n, n))
    return LabelledScan(
        frames.astype(np.float32), y, x, probe, experiment.geometry, "run a", truth, origin, pixel, light, "truth"
    )


def test_a_labelled_run_is_thinned_and_scored(model: Model) -> None:
    scan = labelled_scan()
    curve = measure_labelled(model, scan, starts=1, samplings=(0.2, 0.4, 0.6), device="cpu")
    assert curve.source == "run a, truth"
    found = [p.sampling for p in curve.points]
    assert found == pytest.approx([0.2, 0.4, 0.6], rel=0.25)
    assert curve.points[0].frames == 81
    errors = [p.phase_mae_rad for p in curve.points]
    assert errors[0] < 0.1
    assert errors[0] < errors[-1]
    assert curve.points[0].covered_fraction == 1
    # Against a label that is wrong in one half the error shows there.
    wrong = scan.object.copy()
    wrong[:, wrong.shape[1] // 2 :] *= np.exp(1j)
    worse = LabelledScan(**{**vars_of(scan), "object": wrong})
    (bad,) = measure_labelled(model, worse, starts=1, samplings=(), device="cpu").points
    assert bad.phase_mae_rad > 3 * errors[0]


def vars_of(scan: LabelledScan) -> dict[str, object]:
    names = ["counts", "y_m", "x_m", "probe", "geometry", "source", "object", "origin_m", "pixel_m", "light", "solver"]
    return {name: getattr(scan, name) for name in names}


@pytest.fixture
def blind_solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that knows nothing of the object: its error is the object's own contrast."""
    path = tmp_path / "python"
    path.write_text(
        f"#!{sys.executable}\nimport sys, numpy as np\n_, worker, asked, answered = sys.argv\n"
        "given = np.load(asked); shape, probe = tuple(given['shape']), given['probe']\n"
        "np.savez(answered, snapshots=np.ones((1, *shape), np.complex64), probe=probe, epochs=[5], seconds=[2.0],\n"
        "    cpu_seconds=[1.0], loss=[0.2], software='stand-in', device='cpu')\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(PYTHON_VARIABLE, str(path))


def test_the_solver_is_not_judged_by_its_own_image(model: Model, blind_solver: None) -> None:
    points = measure_labelled(model, labelled_scan(), starts=1, samplings=(0.4,), solver=True, device="cpu").points
    assert [p.solver_s for p in points] == [None, 2.0]


def test_simulated_scans_beside_a_solver(model: Model, blind_solver: None) -> None:
    few = {"series": ScanSeries((0.5,), ("etched",), 2.0), "device": "cpu"}
    (one,) = measure_simulated(model, scans=2, solver=True, **few)
    assert (one.scans, one.frames, one.solver_s) == (2, 25, 2.0)
    assert one.step_m == pytest.approx(0.5 * model.card.probe.diameter_m)  # type: ignore[union-attr]
    assert one.solver_phase_mae_rad is not None
    assert one.solver_phase_mae_rad > 2 * one.phase_mae_rad
    (same,) = measure_simulated(model, scans=2, **few)
    assert (same.phase_mae_rad, same.solver_s) == (one.phase_mae_rad, None)
    (other,) = measure_simulated(model, scans=2, seed=1, **few)
    assert other.phase_mae_rad != one.phase_mae_rad


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ptychonn", *words])
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise


def test_the_command_writes_the_card_and_leaves_the_weights(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bluesky_ptychonn.card import find_model
    from bluesky_ptychonn.recon.evaluation import error_vs_spacing as measure

    few = {"series": ScanSeries((0.4, 0.6), ("etched",), 2.0)}
    monkeypatch.setattr(measure, "measure_simulated", lambda m, **o: measure_simulated(m, **{**o, **few}))
    out = tmp_path / "mine"
    run(monkeypatch, "models", "measure", "simulated-zp64", "--scans", "1", "--out", str(out), "--device", "cpu")
    said = capsys.readouterr().out
    assert "simulated, 1 samples of each kind" in said
    assert "sparse plans may take steps of" in said
    card = load_card(out)
    assert [p.sampling for p in card.sampling] == [0.4, 0.6]
    assert card.measured["command"] == "ptychonn models measure simulated-zp64 --scans 1 --seed 0"
    assert (out / WEIGHTS_FILE).read_bytes() == (find_model("simulated-zp64") / WEIGHTS_FILE).read_bytes()
    load_model(out, "cpu")
    run(monkeypatch, "models", "show", str(out))
    said = capsys.readouterr().out
    assert "error, simulated:" in said
    assert "measured by ptychonn models measure" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--labels", "abc"), "labels are in a catalog; say which with --catalog"),
        (("--scans", "0"), "nothing to measure on; give --labels, or --scans of 1 or more"),
    ],
)
def test_the_command_says_what_is_missing_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "models", "measure", "simulated-zp64", *words)
    assert said in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_to_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SystemExit):
        run(monkeypatch, "models", "measure", "simulated-zp64")
    assert "may not be written to; give --out" in capsys.readouterr().err

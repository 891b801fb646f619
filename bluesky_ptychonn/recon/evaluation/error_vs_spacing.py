"""Error of a model against the scan spacing, on scans it never saw, simulated or labelled, beside a solver's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.card import MeasuredCurve, ModelCard, SamplingPoint
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.data.probes import with_photons
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.data.spacing import step_of, thinned
from bluesky_ptychonn.recon.evaluation.simulated_scans import (
    HELD_OUT_SEED,
    SAMPLINGS,
    ScanScore,
    ScanSeries,
    held_out_scan,
    sampling_point,
    score_mosaic,
    simulation_geometry,
)
from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
from bluesky_ptychonn.recon.models.checkpoint import Model
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic
from bluesky_ptychonn.recon.solver.labelling import solve

#: Seeds between the measurements of two ``--seed``.
_SEEDS_APART = 1000
#: A label is believed where half as much light fell as on its frames' positions.
_WELL_LIT = 0.5
_FEWEST_FRAMES = 4
#: Thinned scans nearer than this to the one before say nothing new.
_APART = 1.08
_HALVINGS = 8

Progress = Callable[[SamplingPoint], None]
#: Truth on a grid with this origin (y, x) in m and this shape; NaN where nobody knows it.
Truth = Callable[[tuple[float, float], tuple[int, int]], NDArray[np.complex64]]


@dataclass(frozen=True)
class _Scored:
    """One scan scored: the model's image, and the solver's where it was asked."""

    sampling: float
    model: ScanScore
    solver: ScanScore | None
    solver_s: float | None


class Evaluator:
    """Reconstructs scans as a live session does, and scores the mosaics.

    With `solver` the iterative solver has the same frames and the model's probe, too, in as many `threads`. ValueError
    for a geometry that the model was not trained for, or no probe where there must be one.
    """

    def __init__(
        self,
        model: Model,
        geometry: Geometry | None = None,
        *,
        solver: bool = False,
        device: str = "auto",
        threads: int = 1,
    ) -> None:
        # The frames come prepared.
        self._engine = Reconstructor(model, geometry, device=device, preprocess=PreprocessConfig())
        self._probe = None if model.probe is None else model.probe.detach().cpu().numpy().astype(np.complex64)
        if solver and self._probe is None:
            raise ValueError(f"model {model.card.name!r} has no probe, and without one there is nothing to solve with")
        self._solver, self._threads = solver, threads

    def score(self, scan: MeasuredScan, sampling: float, truth: Truth, *, solver: bool = True) -> _Scored:
        """Score a scan against its truth; `solver` False leaves the solver out of this one."""
        run = self._engine.for_run()
        batch = run.reconstruct(scan.counts)
        mosaic = Mosaic(run.pixel_m, run.weight, anchor=run.anchor)
        good = batch.valid
        if not good.any():
            raise ValueError(f"{scan.source}: none of {len(scan)} frames could be reconstructed: {batch.flag[0]}")
        mosaic.add(batch.patches[good], scan.y_m[good], scan.x_m[good], batch.trust[good])
        mosaic.synchronise()
        image = mosaic.snapshot()
        known = truth(image.origin_m, (image.amplitude.shape[0], image.amplitude.shape[1]))
        score = score_mosaic(image, known, scan.y_m, scan.x_m)
        if not (self._solver and solver):
            return _Scored(sampling, score, None, None)
        assert self._probe is not None  # noqa: S101  said when it was made
        probe = with_photons(self._probe, run.describe()["photons_per_frame"])
        asked = MeasuredScan(scan.counts, scan.y_m, scan.x_m, probe, scan.geometry, scan.source)
        found, solution = solve(asked, threads=self._threads)
        wave = found.truth_on(image.origin_m, (known.shape[0], known.shape[1]))
        wave = np.where(np.isfinite(image.complex), wave, np.complex64(np.nan))
        solved = replace(image, amplitude=np.abs(wave), phase=np.angle(wave))
        return _Scored(sampling, score, score_mosaic(solved, known, scan.y_m, scan.x_m), float(solution.seconds[-1]))


def measure_simulated(
    model: Model,
    *,
    scans: int = 3,
    seed: int = 0,
    series: ScanSeries | None = None,
    solver: bool = False,
    device: str = "auto",
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[SamplingPoint, ...]:
    """Measure on simulated samples that no training sees.

    Parameters
    ----------
    model : Model
        With its probe, which is what the simulated beam has.
    scans : int
        Samples of each kind.
    seed : int
        Another one gives other samples.
    series : ScanSeries, optional
        Samplings, kinds of samples and size of the scans.
    solver, device, threads
        See `Evaluator`.
    progress : callable, optional
        Called with every point.

    Returns
    -------
    tuple of SamplingPoint
        Averages over all scans of a sampling.

    Raises
    ------
    ValueError
        In words: no probe, no scans.
    SolverMissingError, SolverError
        Where there is no solver, or it fails.
    """
    card = model.card
    card.check_probe()
    if model.probe is None or card.probe is None:
        raise ValueError(f"model {card.name!r} has no probe to simulate with; measure it on labels")
    if scans < 1:
        raise ValueError(f"measure: {scans} scans of each kind; 1 or more are needed")
    probe = model.probe.detach().cpu().numpy().astype(np.complex64)
    geometry, series = simulation_geometry(card), series or ScanSeries()
    evaluator = Evaluator(model, geometry, solver=solver, device=device, threads=threads)
    seeds = [HELD_OUT_SEED + _SEEDS_APART * (seed + 1) + k for k in range(scans)]
    points = []
    for sampling in series.samplings:
        scored = []
        for (k, kind), held_out in product(enumerate(series.kinds), seeds):
            experiment, scan = held_out_scan(probe, geometry, kind, sampling, series.field_diameters, (held_out, k))
            scored.append(evaluator.score(scan, sampling, experiment.truth_on))
        points.append(_point(scored, card.probe.diameter_m))
        if progress is not None:
            progress(points[-1])
    return tuple(points)


def measure_labelled(
    model: Model,
    scan: LabelledScan,
    *,
    starts: int = 3,
    samplings: Sequence[float] = (*SAMPLINGS, 1.1),
    solver: bool = False,
    device: str = "auto",
    threads: int = 1,
    progress: Progress | None = None,
) -> MeasuredCurve:
    """Measure on a labelled run, thinned to larger and larger steps.

    Frames are chosen by position, so that the spacing grows in both directions; the sampling is that of the chosen
    positions, and the label the truth where it was well lit. The solver is not asked about the whole run: that is
    what the label is.

    Parameters
    ----------
    model : Model
        What is measured.
    scan : LabelledScan
        The run and its label.
    starts : int
        Choices of frames that are averaged, each begun with another frame.
    samplings : sequence of float
        Step over illuminated diameter to thin to; what is denser than the run is left out, the run itself comes first.
    solver, device, threads, progress
        As in `measure_simulated`.

    Raises
    ------
    ValueError
        In words: a run of another geometry than the model's, or too small.
    """
    own, diameter = step_of(scan.y_m, scan.x_m), scan.probe_diameter_m
    if model.card.probe is not None:  # the card's steps are in diameters of the model's probe
        diameter = model.card.probe.diameter_m
    evaluator = Evaluator(model, scan.geometry, solver=solver, device=device, threads=threads)
    lit = _WELL_LIT * _light_at_frames(scan)
    truth = partial(scan.truth_on, least_light=lit)
    points: list[SamplingPoint] = []
    for least_m in _distances(scan, own, [s * diameter for s in samplings]):
        scored = []
        for start in range(starts if least_m else 1):
            few = scan.select(thinned(scan.y_m, scan.x_m, least_m, start * len(scan) // starts)) if least_m else scan
            step = step_of(few.y_m, few.x_m)
            # What the solver makes of all frames is the label itself, or nearly.
            scored.append(evaluator.score(few, step / diameter, truth, solver=bool(least_m)))
        point = _point(scored, diameter)
        if not points or point.sampling > _APART * points[-1].sampling:
            points.append(point)
            if progress is not None:
                progress(point)
    return MeasuredCurve(source=f"{scan.source}, {scan.solver}", points=tuple(points))


def _distances(scan: LabelledScan, own_m: float, steps_m: Sequence[float]) -> Iterator[float]:
    """Smallest distances that thin the scan to about `steps_m`; 0 for the whole scan."""
    yield 0.0
    for wanted in steps_m:
        if wanted < _APART * own_m:
            continue
        low, high = 0.5 * wanted, 1.3 * wanted
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            kept = thinned(scan.y_m, scan.x_m, middle)
            if len(kept) < _FEWEST_FRAMES or _step_or_more(scan.select(kept), wanted):
                high = middle
            else:
                low = middle
        if len(thinned(scan.y_m, scan.x_m, high)) >= _FEWEST_FRAMES:
            yield high


def _step_or_more(scan: MeasuredScan, wanted_m: float) -> bool:
    try:
        return step_of(scan.y_m, scan.x_m) >= wanted_m
    except ValueError:  # so few that they lie on a line
        return True


def _light_at_frames(scan: LabelledScan) -> float:
    """Median light at the frames' positions, in peaks of the probe."""
    rows = np.rint((scan.y_m - scan.origin_m[0]) / scan.pixel_m).astype(int)
    columns = np.rint((scan.x_m - scan.origin_m[1]) / scan.pixel_m).astype(int)
    h, w = scan.light.shape
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    return float(np.median(scan.light[rows[inside], columns[inside]])) if inside.any() else 0.0


def _point(scored: Sequence[_Scored], diameter_m: float) -> SamplingPoint:
    sampling = float(np.mean([item.sampling for item in scored]))
    solutions = [item.solver for item in scored if item.solver is not None]
    solver: dict[str, float] = {}
    if solutions:
        theirs = sampling_point(sampling, solutions, diameter_m)
        solver = {
            "solver_phase_mae_rad": theirs.phase_mae_rad,
            "solver_phase_correlation": theirs.phase_correlation,
            "solver_s": float(np.mean([item.solver_s for item in scored])),
        }
    return sampling_point(sampling, [item.model for item in scored], diameter_m, **solver)


def measured_card(
    card: ModelCard,
    simulated: tuple[SamplingPoint, ...] = (),
    labelled: Sequence[MeasuredCurve] = (),
    record: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Return the card with what was measured: a new simulated curve in the place of the old, labelled ones added.

    Parameters
    ----------
    card : ModelCard
    simulated : tuple of SamplingPoint
        Empty to keep the card's.
    labelled : sequence of MeasuredCurve
        Each in the place of an earlier one of the same label.
    record : mapping
        How it was measured, JSON values.
    """
    new = {curve.source for curve in labelled}
    kept = [curve for curve in card.labelled if curve.source not in new]
    return card.model_copy(
        update={
            "sampling": simulated or card.sampling,
            "labelled": (*kept, *labelled),
            "measured": dict(record or {}),
        }
    )

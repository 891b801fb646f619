"""Measure what a score means: frames whose truth is known, half of them disturbed, through the model as it is used.

The frames are those of training, with seeds that training cannot meet. Half are as in training. The other half have one
trouble each, drawn alike: another probe (pupil phase wrong by up to 8 times what training allowed), another focus (up
to 0.8 rad RMS over the pupil), a detector shifted by a pixel, or another dose (spread, blur and background up to 8
times). So errors span the range from as good as it gets to useless.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr
from torch import Tensor

from bluesky_ptychonn.calibration import RunNorm, TrustCalibration
from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, illuminated_diameter_px, make_sample
from bluesky_ptychonn.recon.data.probes import with_photons
from bluesky_ptychonn.recon.data.simulated import SimulatedFrames, SyntheticConfig
from bluesky_ptychonn.recon.evaluation.simulated_scans import HELD_OUT_SEED, simulation_geometry
from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.mosaic.probe_tuning import aberrated, pupil_aberrations
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.networks.families import family_class
from bluesky_ptychonn.recon.quality.run_statistics import RunFigures
from bluesky_ptychonn.recon.quality.trust import frame_score, movement, unexplained_fraction

#: Beside `HELD_OUT_SEED`, so that no figure of a card is measured on frames that its trust was fitted to.
CALIBRATION_SEED = HELD_OUT_SEED + 1_000_003
TOLERANCE_RAD = 0.1
_QUANTILE = 0.9
_KNOTS = 16
_BATCH = 16
_TROUBLES = ("probe", "focus", "shift", "dose")
#: Held-out scans: steps in illuminated diameters, and frames a side.
_STEPS, _SIDE = (0.2, 0.35), 6


def calibrated(model: Model, *, frames: int = 1024, scans: int = 12, seed: int = CALIBRATION_SEED) -> Model:
    """Give a model's card its table of trust, measured on simulated frames; the weights stay as they are.

    Parameters
    ----------
    model : Model
        With a probe; one without is returned as it is, for nothing can be judged without.
    frames : int
        Held-out frames.
    scans : int
        Held-out scans, of one sample each.
    seed : int
        Of all that is random.
    """
    if model.probe is None or not isinstance(model.network, ObjectNetwork):
        return model
    config = synthetic_config(model)
    scores, errors, troubled = (
        np.concatenate(part)
        for part in zip(
            *(
                (*scored(model.network, *batch), np.full(len(batch[0]), bool(trouble)))
                for *batch, trouble in disturbed_frames(model.probe.cpu().numpy(), config, model, frames, seed)
            ),
            strict=True,
        )
    )
    table = fit_table(scores, errors)
    table = table.model_copy(update={"trained_trust": round(float(table.trust(scores[~troubled]).mean()), 4)})
    judged = replace(model, card=model.card.model_copy(update={"trust": table}))
    table = table.model_copy(update={"runs": run_norms(judged, config.photons, scans, seed)})
    # Through validation: `model_copy` alone would let anything pass.
    card = ModelCard.model_validate({**model.card.model_dump(), "trust": table.model_dump()})
    return replace(model, card=card)


def recalibrate(folder: str | os.PathLike[str], *, frames: int = 4096, scans: int = 32) -> ModelCard:
    """Calibrate the model in a folder and write its card anew; ``model.safetensors`` is not touched.

    More frames and scans than a training takes the time for.
    """
    card = calibrated(load_model(folder, device="cpu"), frames=frames, scans=scans).card
    card.save(Path(folder))
    return card


def synthetic_config(model: Model) -> SyntheticConfig:
    """Read what the model was trained on in its card, but for its own probe; what that does not say as usual."""
    kept = (model.card.training.get("config") or {}).get("synthetic") or {}
    photons = 1e5 if model.probe is None else float(model.probe.abs().square().sum())
    usual = {"photons": photons, "dose_spread": family_class(model.card.family).config_class.dose_spread}
    known = {name: value for name, value in kept.items() if name in SyntheticConfig.model_fields and name != "probes"}
    return SyntheticConfig.model_validate({**usual, **known})


def fit_table(scores: NDArray[np.floating], errors: NDArray[np.floating]) -> TrustCalibration:
    """Fit probability and error, as monotone functions of the score (n,), to errors (n,) in rad.

    Isotonic regression over groups of frames of like score.
    """
    order = np.argsort(scores)
    groups = np.array_split(order, min(_KNOTS, max(2, len(order) // 32)))
    middle = np.array([np.median(scores[g]) for g in groups])
    # One right and one wrong frame more in each group: no group is so good that the next frame could not be wrong.
    right = np.array([((errors[g] < TOLERANCE_RAD).sum() + 1) / (len(g) + 2) for g in groups])
    error = np.array([np.quantile(errors[g], _QUANTILE) for g in groups])
    sizes = np.array([len(g) for g in groups], dtype=float)
    keep = np.concatenate([[True], np.diff(middle) > 0])
    falling = isotonic_regression(right, weights=sizes, increasing=False).x
    rising = isotonic_regression(error, weights=sizes).x
    return TrustCalibration(
        tolerance_rad=TOLERANCE_RAD,
        quantile=_QUANTILE,
        score=_digits(middle[keep]),
        right=_digits(falling[keep]),
        error_rad=_digits(rising[keep]),
        frames=len(scores),
        rank_correlation=round(float(spearmanr(scores, errors).statistic), 3),
        trained_trust=0.0,
    )


def _digits(values: NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(float(f"{v:.6g}") for v in values)


def scored(
    network: ObjectNetwork, counts: Tensor, probe: Tensor, truth: Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores (n,) and true phase errors (n,) in rad of frames (n, N, N) with patches `truth` (n, h, w)."""
    with torch.inference_mode():
        stages = network.stages(counts, probe)
        moved = torch.zeros(len(counts)) if len(stages) < 2 else movement(stages[-2], stages[-1], probe)
        score = frame_score(unexplained_fraction(stages[-1], counts, probe), moved)
        return score.numpy(), movement(truth, stages[-1], probe).numpy()


def disturbed_frames(
    probe: NDArray[np.complex64], config: SyntheticConfig, model: Model, frames: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, str]]:
    """Yield batches of counts, probe as told, truth, and the trouble they have, "" for none."""
    size = model.card.input.patch_shape[0]
    for index in range(max(2, frames // _BATCH)):
        rng = np.random.default_rng((seed, index, 7))
        trouble = str(rng.choice(_TROUBLES)) if index % 2 else ""
        worse = float(np.exp(rng.uniform(0, np.log(8))))
        changes: dict[str, float] = {"objects_per_batch": 8}
        if trouble == "probe":
            changes["probe_error_rad"] = min(3.0, worse * config.probe_error_rad)
        elif trouble == "dose":
            changes["dose_spread"] = min(100.0, worse * config.dose_spread)
            changes["blur_px"] = min(0.2, worse * config.blur_px)
            changes["background"] = min(1000.0, worse * config.background)
        data = SimulatedFrames(probe, size, _BATCH, config.model_copy(update=changes), seed)
        counts, believed, truth = data.batch(index)
        if trouble == "shift":
            rows, columns = rng.permutation([1, int(rng.integers(0, 2))]) * rng.choice([-1, 1], 2)
            counts = counts.roll((int(rows), int(columns)), dims=(1, 2))
        elif trouble == "focus":
            believed = refocused(believed, float(rng.uniform(-0.8, 0.8)))
        yield counts, believed, truth, trouble


def refocused(probe: Tensor, rms_rad: float) -> Tensor:
    """Put a probe (N, N) out of focus: a quadratic pupil phase of `rms_rad` over the light."""
    return aberrated(probe, pupil_aberrations(probe)[:1], torch.tensor([rms_rad], device=probe.device))


def run_norms(model: Model, photons: float, scans: int, seed: int) -> dict[str, RunNorm]:
    """Figures of held-out scans of one sample each, as `recon.quality.run_statistics` has them: typical, and worst.

    A scan with less than half the typical trust is one that the model cannot do, in training or not; what it did there
    is no measure for others, so it counts in the typical and not in the worst.
    """
    if model.probe is None:
        return {}
    probe, geometry = model.probe.cpu().numpy(), simulation_geometry(model.card)
    engine = Reconstructor(model, device="cpu")
    diameter_px = illuminated_diameter_px(probe)
    found: list[RunFigures] = []
    for k in range(scans):
        rng = np.random.default_rng((seed, k, 11))
        step_px = _STEPS[k % len(_STEPS)] * diameter_px
        side = int(probe.shape[0] + _SIDE * step_px + 8)
        experiment = SimulatedExperiment(
            geometry, with_photons(probe), make_sample("mixed", (side, side), rng), photons
        )
        line = (np.arange(_SIDE) - (_SIDE - 1) / 2) * step_px * experiment.pixel_m
        y, x = np.repeat(line, _SIDE), np.tile(line, _SIDE)
        run = engine.for_run()
        batch = run.reconstruct(np.stack([experiment.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)]))
        run.placed(batch.patches[batch.valid], y[batch.valid], x[batch.valid])
        found.append(run.figures())
    trusts = np.array([figures.mean_trust or 0.0 for figures in found])
    able = trusts >= 0.5 * np.median(trusts)
    norms = {}
    for name in ("shift_px", "scale", "width", "overlap_rad", "mean_trust"):
        values = np.array([_magnitude(getattr(figures, name)) for figures in found])
        if np.isfinite(values).all():
            worst = values[able].min() if name == "mean_trust" else values[able].max()
            norms[name] = RunNorm(typical=float(f"{np.median(values):.4g}"), worst=float(f"{worst:.4g}"))
    return norms


def _magnitude(value: float | tuple[float, float] | None) -> float:
    return float("nan") if value is None else float(np.hypot(*value)) if isinstance(value, tuple) else abs(value)

"""From a probe to a model folder: train, measure on held-out frames and scans, write the card and the metrics."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_ptychonn.card import PIXEL_TOLERANCE, ModelCard, ProbeReference
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.data.batches import TrainingData
from bluesky_ptychonn.recon.data.probes import with_photons
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.evaluation.simulated_scans import (
    ScanSeries,
    best_rounds,
    measure_sampling,
    patch_error,
    sampling_point,
    stitching_weight,
)
from bluesky_ptychonn.recon.evaluation.trust_calibration import calibrated
from bluesky_ptychonn.recon.models.checkpoint import Model, new_card, save_model
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.networks.lifted import LiftedNetwork
from bluesky_ptychonn.recon.training.config import TrainingConfig
from bluesky_ptychonn.recon.training.distributed import rank_here
from bluesky_ptychonn.recon.training.fit import Progress, fit
from bluesky_ptychonn.recon.training.metrics_table import METRICS_FILE, PLOT_FILE, plot_rows, write_rows

TRAINING_STATE = "training.pt"
#: Object pixel on the card of a model that knows pixels only.
_NOMINAL_PIXEL_M = 1e-8
_WHOLE_TRAINING = 2000  # frames
#: An absorbing sample takes up to this part of the beam; the card's lower count limit allows for it.
_LARGEST_ABSORPTION = 0.75


@dataclass(frozen=True)
class ModelInfo:
    """What a new model is called, its probe's `source` and part of the light, and the command that trained it."""

    name: str
    version: str = "1"
    source: str = ""
    command: str = ""
    light_fraction: float = 1.0


@dataclass(frozen=True)
class Effort:
    """How thoroughly a new model is measured: scans, frames for the error of patches, options of `calibrated`."""

    series: ScanSeries | None = None
    frames: int = 512
    trust: dict[str, int] | None = None


def train_model(
    data: TrainingData,
    geometry: Geometry | None,
    config: TrainingConfig,
    out: Path,
    info: ModelInfo,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    start: Model | None = None,
) -> ModelCard | None:
    """Train a model and write its folder: weights and card, the training's metrics as a table and a plot.

    The training state stays in ``out/training.pt`` until the model is written, so a killed run resumes.

    Parameters
    ----------
    data : TrainingData
        With the probe that the model is for, whether frames are simulated through it or not.
    geometry : Geometry or None
        Of the network's frames; None for a model for any probe, trained on the family ``config.synthetic.probes``.
    config : TrainingConfig
        What and how to train.
    out : Path
        The model's folder.
    info : ModelInfo
        For the card.
    device, progress
        See `bluesky_ptychonn.recon.training.fit.fit`.
    start : Model, optional
        Begin with its weights. With ``config.frames`` 0 they are kept as they are, and only measured for this probe.

    Returns
    -------
    ModelCard or None
        As written; None in a process that `torchrun` started to help the first one.

    Raises
    ------
    ValueError
        When probe or family of probes, geometry, scans and network do not go together.
    """
    _check(data, geometry, config)
    network, record = fit(
        data.probe if config.mix.simulated else None,
        config,
        labelled=data.labelled,
        measured=data.measured,
        checkpoint=out / TRAINING_STATE,
        device=device,
        progress=progress,
        start=None if start is None else start.network.state_dict(),
    )
    if rank_here():
        return None
    record["scans"] = [scan.source for scan in data.scans]
    record["started_from"] = "" if start is None else start.card.as_start
    if geometry is None or data.probe is None:
        card = write_any_probe_model(network, config, record, out, info)
    else:
        card = write_model(network, data.probe, geometry, config, record, out, info)
    if record["metrics"]:
        write_rows(out / METRICS_FILE, record["metrics"])
        plot_rows(out / PLOT_FILE, record["metrics"], f"{info.name} {info.version}")
    (out / TRAINING_STATE).unlink(missing_ok=True)
    return card


def _check(data: TrainingData, geometry: Geometry | None, config: TrainingConfig) -> None:
    if geometry is None:
        if config.synthetic.probes is None or not config.network.uses_probe:
            raise ValueError(
                "train: a network that is told its probe, and a family of probes (synthetic.probes) are needed"
            )
        return
    shape = None if data.probe is None else data.probe.shape
    if geometry.frame_shape != shape:
        raise ValueError(f"train: geometry is of {geometry.frame_shape} px frames, the probe is {shape} px")
    for scan in data.scans:
        if abs(scan.geometry.object_pixel_m / geometry.object_pixel_m - 1) > PIXEL_TOLERANCE:
            raise ValueError(
                f"train: {scan.source} has object pixels of {scan.geometry.object_pixel_m * 1e9:.4g} nm, the model's "
                f"are {geometry.object_pixel_m * 1e9:.4g} nm; at most {PIXEL_TOLERANCE:.0%} between them are allowed"
            )


def write_model(
    network: ObjectNetwork,
    probe: NDArray[np.complex64],
    geometry: Geometry,
    config: TrainingConfig,
    record: dict[str, Any],
    out: Path,
    info: ModelInfo,
) -> ModelCard:
    """Measure a trained network on held-out simulated frames and scans, and write the model's folder."""
    contract = {
        "object_pixel_m": geometry.object_pixel_m,
        "counts_per_frame": _counts_range(config.synthetic),
        **geometry.light,
    }
    training = _provenance(config, record, info.command)
    card = new_card(config.network, info.name, info.version, contract, training=training)
    # A trial of a training gets a trial of a calibration.
    whole = config.frames >= _WHOLE_TRAINING or not config.frames
    effort = Effort(trust=None if whole else {"frames": 128, "scans": 4})
    model = measured_model(network, card, probe, geometry, config.synthetic, info, effort)
    card = model.card.model_copy(update={"held_out": model.card.held_out | final_loss(record)})
    assert model.probe is not None and model.weight is not None  # noqa: S101, PT018  measured with them
    scaled, weight = model.probe.numpy(), model.weight.numpy()
    if whole and isinstance(network, LiftedNetwork):
        card = card.model_copy(update={"refine_rounds": best_rounds(network, scaled, geometry)})
    return save_model(out, network, card, scaled, weight)


def measured_model(
    network: ObjectNetwork,
    card: ModelCard,
    probe: NDArray[np.complex64],
    geometry: Geometry,
    synthetic: SyntheticConfig,
    info: ModelInfo,
    effort: Effort,
) -> Model:
    """Give a network a probe, and its card what is measured with it: errors and the meaning of trust.

    The probe (N, N), any scale and from ``info.source``, is brought to the photons of what the network was trained on.
    """
    scaled = with_photons(probe, synthetic.photons)
    weight = stitching_weight(scaled, network.config.patch_size)
    reference = ProbeReference.from_probe(scaled, geometry.object_pixel_m, info.source, info.light_fraction)
    plain = synthetic.model_copy(update={"probes": None})
    rows = measure_sampling(network, scaled, geometry, effort.series)
    promises = {
        "probe": reference.model_dump(),
        "held_out": {"patch_phase_mae_rad": patch_error(network, scaled, plain, frames=effort.frames)},
        "sampling": [sampling_point(step, [score], reference.diameter_m).model_dump() for step, score in rows],
        "trust": None,
    }
    measured = ModelCard.model_validate({**card.model_dump(), **promises})
    model = Model(measured, network.eval(), torch.from_numpy(scaled), torch.from_numpy(weight))
    return calibrated(model, **(effort.trust or {}))


def final_loss(record: dict[str, Any]) -> dict[str, float]:
    """Last smoothed loss of a training, as a card's ``held_out`` has it; nothing where there was none."""
    return {"training_loss": float(record["loss"][-1])} if record["loss"] else {}


def write_any_probe_model(
    network: ObjectNetwork, config: TrainingConfig, record: dict[str, Any], out: Path, info: ModelInfo
) -> ModelCard:
    """Judge a trained network on unseen probes and samples, and write the model's folder."""
    error = patch_error(network, None, config.synthetic)
    assumed = ["object pixel: any, it works in pixels", "frame size: any even number of px, set by the probe"]
    card = new_card(
        config.network,
        info.name,
        info.version,
        {"object_pixel_m": _NOMINAL_PIXEL_M, "counts_per_frame": _counts_range(config.synthetic)},
        held_out={"patch_phase_mae_rad": error} | final_loss(record),
        training={**_provenance(config, record, info.command), "assumed": assumed},
    )
    return save_model(out, network.eval(), card)


def _counts_range(synthetic: SyntheticConfig) -> tuple[float, float]:
    """Lowest and highest total counts of a frame in training."""
    photons, spread = synthetic.photons, synthetic.dose_spread
    return photons / spread * (1 - _LARGEST_ABSORPTION), photons * spread * 1.2


def _provenance(config: TrainingConfig, record: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Make the card's ``training``, JSON values; `record` is what `fit` gave, and ``started_from``, ``scans``."""
    return {
        "command": command,
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "frames": record["frames"],
        **{name: record[name] for name in ("started_from", "scans") if record.get(name)},
        "seconds": round(record["seconds"], 1),
        "software": {package: installed(package) for package in ("bluesky-ptychonn", "torch", "numpy")},
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _commit() -> str:
    """Commit of the code that trains, or ``unknown`` outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=os.fspath(Path(__file__).parent),
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()

"""From a probe to a model folder: train, measure on held-out frames and scans, write the card and the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_ptychonn.card import PIXEL_TOLERANCE, InputContract, ModelCard, ProbeReference, SamplingPoint
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.evaluation.refine_rounds import best_rounds
from bluesky_ptychonn.recon.evaluation.simulated_scans import measure_sampling, patch_error, stitching_weight
from bluesky_ptychonn.recon.evaluation.trust_calibration import calibrated
from bluesky_ptychonn.recon.models.checkpoint import Model, save_model
from bluesky_ptychonn.recon.networks.networks import ObjectNetwork
from bluesky_ptychonn.recon.training.distributed import rank_here
from bluesky_ptychonn.recon.training.fit import Progress, TrainingConfig, fit
from bluesky_ptychonn.recon.training.metrics_table import METRICS_FILE, PLOT_FILE, plot_rows, write_rows
from bluesky_ptychonn.recon.training.provenance import counts_range, provenance

TRAINING_STATE = "training.pt"
_WHOLE_TRAINING = 2000  # frames


def train_model(
    probe: NDArray[np.complex64],
    geometry: Geometry,
    config: TrainingConfig,
    out: Path,
    *,
    name: str,
    labelled: Sequence[LabelledScan] = (),
    measured: Sequence[MeasuredScan] = (),
    version: str = "1",
    source: str = "",
    command: str = "",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    start: Model | None = None,
) -> ModelCard | None:
    """Train a model for a probe and write its folder: weights and card, the training's metrics as a table and a plot.

    The training state stays in ``out/training.pt`` until the model is written, so a killed run resumes.

    Parameters
    ----------
    probe : (N, N) complex64 ndarray
        Measured probe, any scale.
    geometry : Geometry
        Of the network's frames.
    config : TrainingConfig
        What and how to train.
    out : Path
        The model's folder.
    labelled, measured
        See `bluesky_ptychonn.recon.training.fit.fit`.
    name, version, source, command : str
        For the card; `source` says where the probe came from.
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
        When probe, geometry, scans and network do not go together.
    """
    if geometry.frame_shape != probe.shape:
        raise ValueError(f"produce: geometry is of {geometry.frame_shape} px frames, the probe is {probe.shape} px")
    for scan in (*labelled, *measured):
        if abs(scan.geometry.object_pixel_m / geometry.object_pixel_m - 1) > PIXEL_TOLERANCE:
            raise ValueError(
                f"produce: {scan.source} has object pixels of {scan.geometry.object_pixel_m * 1e9:.4g} nm, the model's "
                f"are {geometry.object_pixel_m * 1e9:.4g} nm; at most {PIXEL_TOLERANCE:.0%} between them are allowed"
            )
    weights = None if start is None else start.network.state_dict()
    checkpoint = out / TRAINING_STATE
    network, record = fit(
        probe if config.mix.simulated else None,
        config,
        labelled=labelled,
        measured=measured,
        checkpoint=checkpoint,
        device=device,
        progress=progress,
        start=weights,
    )
    if rank_here():
        return None
    record["scans"] = [scan.source for scan in (*labelled, *measured)]
    if start is not None:
        record["started_from"] = f"{start.card.name} {start.card.version}, sha256 {start.card.weights_sha256}"
    card = write_model(network, probe, geometry, config, record, out, name, version, source, command)
    if record["metrics"]:
        write_rows(out / METRICS_FILE, record["metrics"])
        plot_rows(out / PLOT_FILE, record["metrics"], f"{name} {version}")
    (out / TRAINING_STATE).unlink(missing_ok=True)
    return card


def write_model(
    network: ObjectNetwork,
    probe: NDArray[np.complex64],
    geometry: Geometry,
    config: TrainingConfig,
    record: dict[str, Any],
    out: Path,
    name: str,
    version: str,
    source: str,
    command: str,
) -> ModelCard:
    """Measure a trained network on held-out simulated frames and scans, and write the model's folder."""
    photons = config.synthetic.photons
    scaled = np.asarray(probe / np.sqrt((np.abs(probe) ** 2).sum()) * np.sqrt(photons), dtype=np.complex64)
    patch_mae = patch_error(network, scaled, config.synthetic)
    weight = stitching_weight(scaled, config.network.patch_size)
    reference = ProbeReference.of(scaled, geometry.object_pixel_m, source)
    rows = measure_sampling(network, scaled, geometry, weight, photons=photons)
    size = config.network.patch_size
    card = ModelCard(
        name=name,
        version=version,
        family=config.network.family,
        network=config.network.model_dump(mode="json"),
        input=InputContract(
            frame_shape=geometry.frame_shape,
            patch_shape=(size, size),
            object_pixel_m=geometry.object_pixel_m,
            counts_per_frame=counts_range(config.synthetic),
            energy_ev=geometry.energy_ev,
        ),
        probe=reference,
        held_out={"patch_phase_mae_rad": patch_mae}
        | ({"training_loss": float(record["loss"][-1])} if record["loss"] else {}),
        sampling=tuple(
            SamplingPoint(
                sampling=sampling,
                step_m=sampling * reference.diameter_m,
                phase_mae_rad=score.phase_mae_rad,
                phase_correlation=score.phase_correlation,
                covered_fraction=score.covered_fraction,
                frames=score.frames,
            )
            for sampling, score in rows
        ),
        training=provenance(config, record, command),
        weights_sha256="0" * 64,
    )
    # A trial of a training gets a trial of a calibration.
    whole = config.frames >= _WHOLE_TRAINING or not config.frames
    model = Model(card, network.eval(), torch.from_numpy(scaled), torch.from_numpy(weight))
    card = calibrated(model, **({} if whole else {"frames": 128, "scans": 4})).card
    if whole and config.network.family == "lifted":
        rounds = best_rounds(network, scaled, geometry, weight)
        card = card.model_copy(update={"refine_rounds": rounds})
    return save_model(out, network, card, scaled, weight)

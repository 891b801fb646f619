"""Models for any probe: a lifted network is told its probe with every frame, so a new beamline needs a probe only.

What such a model lacks is what was measured: its error against the scan spacing, and the meaning of its trust.
``ptychonn train --start NAME --frames 0 --probe FILE`` measures both for a probe, and writes a model of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_ptychonn.card import ModelCard, ProbeReference
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.data.probes import probe_photons, with_photons
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model, new_card
from bluesky_ptychonn.recon.networks.base import FamilyConfig
from bluesky_ptychonn.recon.networks.families import build_network

_STEP = 16  # px: frames are halved to patches, and the U-Net halves three times


def for_probe(
    model: Model | str, probe: NDArray[np.complexfloating], geometry: Geometry, *, photons: float | None = None
) -> Model:
    """Give a lifted model a probe, and with it the frame size and the object pixel of a beamline.

    Parameters
    ----------
    model : Model, name or path
        Of the lifted family; for any probe, or for another.
    probe : (N, N) complex ndarray
        Beam centred at pixel ``N // 2``; N a multiple of 16.
    geometry : Geometry
        Of the network's frames, (N, N).
    photons : float, optional
        In a frame without sample. By default what the probe holds, or 1e5 where its scale says nothing. A run's own
        flux is found from its frames anyway.

    Returns
    -------
    Model
        With a card that says nothing of errors: nothing was measured with this probe.

    Raises
    ------
    ValueError
        For a model of another family, or a probe that does not fit the geometry.
    """
    given = model if isinstance(model, Model) else load_model(model, "cpu")
    config = getattr(given.network, "config", None)
    if not (isinstance(config, FamilyConfig) and config.uses_probe):
        raise ValueError(
            f"for_probe: model {given.card.name!r} is of the {given.card.family} family, which is not told its probe; "
            "train it for this one (ptychonn train --start)"
        )
    _check_probe(probe, geometry)
    scaled = with_photons(probe, photons or probe_photons(probe))
    network = build_network(config.resized(probe.shape[-1]))
    network.load_state_dict(given.network.state_dict())
    network.eval().requires_grad_(False)
    return Model(_card_for(given.card, network.config, scaled, geometry), network, torch.from_numpy(scaled))


def _check_probe(probe: NDArray[np.complexfloating], geometry: Geometry) -> None:
    size = probe.shape[-1]
    if probe.shape != (size, size) or geometry.frame_shape != probe.shape or size % _STEP:
        raise ValueError(
            f"for_probe: probe {probe.shape} px and frames {geometry.frame_shape} px; both must be (N, N) with N a "
            f"multiple of {_STEP}. Crop or pad the probe, or the frames (preprocess)"
        )
    power = float((np.abs(probe) ** 2).sum())
    if not np.isfinite(power) or power <= 0:
        raise ValueError(f"for_probe: the probe's intensity sums to {power}; it must be finite and above 0")


def _card_for(given: ModelCard, config: FamilyConfig, probe: NDArray[np.complex64], geometry: Geometry) -> ModelCard:
    """Card of a given model with another probe: nothing is promised of errors."""
    reference = ProbeReference.from_probe(probe, geometry.object_pixel_m, "given to for_probe")
    contract = {
        "object_pixel_m": geometry.object_pixel_m,
        "counts_per_frame": given.input.counts_per_frame,
        "preprocess": given.input.preprocess,
        "energy_ev": geometry.energy_ev,
    }
    training = {
        **given.training,
        "probe_given": datetime.now(UTC).isoformat(timespec="seconds"),
        "started_from": given.as_start,
    }
    return new_card(
        config,
        given.name,
        f"{given.version}+{reference.sha256[:8]}",
        contract,
        probe=reference,
        training=training,
        weights_sha256=given.weights_sha256,
    )

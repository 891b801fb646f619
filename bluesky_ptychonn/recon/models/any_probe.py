"""Models for any probe: a lifted network is told its probe with every frame, so a new beamline needs a probe only.

What such a model lacks is what was measured: its error against the scan spacing, and the meaning of its trust.
``ptychonn train --start NAME --frames 0 --probe FILE`` measures both for a probe, and writes a model of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_ptychonn.card import InputContract, ModelCard, ProbeReference
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.networks.networks import LiftedConfig, build_network

#: Photons of a probe whose scale says nothing, as the commands take them.
_PHOTONS = 1e5
#: A probe in square-root photons has more than this; one of unit intensity has not.
_FEWEST_PHOTONS = 100.0
_STEP = 16  # px: frames are halved to patches, and the U-Net halves three times


def for_any_probe(card: ModelCard) -> bool:
    """Whether a model waits for a probe."""
    return card.family == "lifted" and card.probe is None


def resized(config: Any, frame_size: int, patch_size: int | None = None) -> Any:
    """Take a network's configuration for frames of another size, px: its convolutions do not mind.

    The patch is half the frame where no other is given.
    """
    changed = {"frame_size": frame_size, "patch_size": patch_size or frame_size // 2}
    return type(config).model_validate({**config.model_dump(), **changed})


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
    if not isinstance(config, LiftedConfig):
        raise ValueError(
            f"for_probe: model {given.card.name!r} is of the {given.card.family} family, which is not told its probe; "
            "train it for this one (ptychonn train --start)"
        )
    size = probe.shape[-1]
    if probe.shape != (size, size) or geometry.frame_shape != probe.shape or size % _STEP:
        raise ValueError(
            f"for_probe: probe {probe.shape} px and frames {geometry.frame_shape} px; both must be (N, N) with N a "
            f"multiple of {_STEP}. Crop or pad the probe, or the frames (preprocess)"
        )
    power = float((np.abs(probe) ** 2).sum())
    if not np.isfinite(power) or power <= 0:
        raise ValueError(f"for_probe: the probe's intensity sums to {power}; it must be finite and above 0")
    dose = photons or (power if power > _FEWEST_PHOTONS else _PHOTONS)
    scaled = np.asarray(probe * np.sqrt(dose / power), dtype=np.complex64)
    network = build_network(resized(config, size))
    network.load_state_dict(given.network.state_dict())
    patch = network.config.patch_size
    reference = ProbeReference.of(scaled, geometry.object_pixel_m, "given to for_probe")
    card = ModelCard(
        name=given.card.name,
        version=f"{given.card.version}+{reference.sha256[:8]}",
        family="lifted",
        network=network.config.model_dump(mode="json"),
        input=InputContract(
            frame_shape=geometry.frame_shape,
            patch_shape=(patch, patch),
            object_pixel_m=geometry.object_pixel_m,
            counts_per_frame=given.card.input.counts_per_frame,
            preprocess=given.card.input.preprocess,
            energy_ev=geometry.energy_ev,
        ),
        probe=reference,
        training={
            **given.card.training,
            "probe_given": datetime.now(UTC).isoformat(timespec="seconds"),
            "started_from": f"{given.card.name} {given.card.version}, sha256 {given.card.weights_sha256}",
        },
        weights_sha256=given.card.weights_sha256,
    )
    network.eval().requires_grad_(False)
    return Model(card, network, torch.from_numpy(scaled))

"""Models for any probe: a lifted network is told its probe with every frame, so a new beamline needs a probe only.

What such a model lacks is what was measured: its error against the scan spacing, and the meaning of its trust.
``ptychonn train --start NAME --frames 0 --probe FILE`` measures both for a probe, and writes a model of its own.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_ptychonn.card import ModelCard, ProbeReference
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.probe_file import ProbeFile, open_probe
from bluesky_ptychonn.optics.probe_grid import probe_on
from bluesky_ptychonn.optics.probe_modes import strongest_mode
from bluesky_ptychonn.recon.data.probes import probe_photons, with_photons
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model, new_card
from bluesky_ptychonn.recon.networks.base import FamilyConfig
from bluesky_ptychonn.recon.networks.families import build_network


def for_probe(
    model: Model | str,
    probe: NDArray[np.complexfloating] | str | os.PathLike[str],
    geometry: Geometry | None = None,
    *,
    photons: float | None = None,
    preprocess: PreprocessConfig | None = None,
    probe_pixel_m: float | None = None,
) -> Model:
    """Give a lifted model a probe, and with it the frame size and the object pixel of a beamline.

    Parameters
    ----------
    model : Model, name or path
        Of the lifted family; for any probe, or for another.
    probe : (n, n) or (modes, n, n) complex ndarray, or path
        Beam centred at pixel ``n // 2``, of any size; a file as `read_probe` takes it. It is brought to the object
        pixel of the network's frames. Of several modes the strongest is used: a warning in the log says what part of
        the light it has, and so do the card and every result.
    geometry : Geometry, optional
        Of the frames as recorded, or as the network gets them where there is no `preprocess`. The probe's file's when
        not given.
    photons : float, optional
        In a frame without sample. By default what the probe holds, or 1e5 where its scale says nothing. A run's own
        flux is found from its frames anyway.
    preprocess : PreprocessConfig, optional
        From recorded frames to the network's, for the card: a cut makes the object pixel larger.
    probe_pixel_m : float, optional
        The probe's object pixel, m. When not given, that of the recorded frames or the network's, whichever have the
        probe's size.

    Returns
    -------
    Model
        With a card that says nothing of errors: nothing was measured with this probe.

    Raises
    ------
    ValueError
        For a model of another family, a probe that is not square, dark or of unknown object pixel, or no geometry.

    Examples
    --------
    >>> model = for_probe("zone-plates", "probe.npy", geometry, preprocess=PreprocessConfig(crop=104))  # doctest: +SKIP
    """
    given = model if isinstance(model, Model) else load_model(model, "cpu")
    config = getattr(given.network, "config", None)
    if not (isinstance(config, FamilyConfig) and config.uses_probe):
        raise ValueError(
            f"for_probe: model {given.card.name!r} is of the {given.card.family} family, which is not told its probe; "
            "train it for this one (ptychonn train --start)"
        )
    found = _probe_file(probe)
    recorded = geometry or found.geometry
    if recorded is None:
        raise ValueError(f"for_probe: {found.source} says nothing of the geometry; give geometry=Geometry(...)")
    wave, ours = probe_on(found.wave, recorded, preprocess or PreprocessConfig(), probe_pixel_m)
    scaled = with_photons(wave, photons or probe_photons(wave))
    network = build_network(config.resized(len(scaled)))
    network.load_state_dict(given.network.state_dict())
    network.eval().requires_grad_(False)
    card = _card_for(given.card, network.config, ours, preprocess)
    reference = ProbeReference.from_probe(scaled, ours.object_pixel_m, found.source, found.light_fraction)
    version = f"{given.card.version}+{reference.sha256[:8]}"
    card = card.model_copy(update={"probe": reference, "version": version})
    return Model(card, network, torch.from_numpy(scaled))


def _probe_file(probe: NDArray[np.complexfloating] | str | os.PathLike[str]) -> ProbeFile:
    """Read a probe from its file, or take the strongest mode of an array."""
    if not isinstance(probe, np.ndarray):
        return open_probe(probe)
    if probe.ndim < 2 or not probe.size:
        raise ValueError(f"for_probe: got a probe of shape {probe.shape}; (n, n) or (modes, n, n) is needed")
    mode = strongest_mode(probe, "for_probe")
    power = float((np.abs(mode.wave) ** 2).sum())
    if not np.isfinite(power) or power <= 0:
        raise ValueError(f"for_probe: the probe's intensity sums to {power}; it must be finite and above 0")
    source = ", ".join(filter(None, ["given to for_probe", mode.note]))
    return ProbeFile(mode.wave.astype(np.complex64), None, mode.light_fraction, source)


def _card_for(
    given: ModelCard, config: FamilyConfig, geometry: Geometry, preprocess: PreprocessConfig | None
) -> ModelCard:
    """Card of a given model for another beamline: nothing is promised of errors."""
    contract = {
        "object_pixel_m": geometry.object_pixel_m,
        "counts_per_frame": given.input.counts_per_frame,
        "preprocess": preprocess or given.input.preprocess,
        **geometry.light,
    }
    training = {
        **given.training,
        "probe_given": datetime.now(UTC).isoformat(timespec="seconds"),
        "started_from": given.as_start,
    }
    return new_card(config, given.name, given.version, contract, training=training, weights_sha256=given.weights_sha256)

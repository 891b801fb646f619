"""Physics sweeps from a mosaic through the probe: what overlap there is corrects what the network guessed.

One sweep takes all frames in random order, a few at a time, see `recon.mosaic.sweeps`; the probe and the positions stay
as they are, unless the probe is to be tuned to the run first (`recon.mosaic.probe_tuning`). Between rounds the network
looks at the refined object once more, through its last stage, and the sweeps go on from its answer.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_ptychonn.recon.mosaic.probe_tuning import tune_probe
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from bluesky_ptychonn.recon.mosaic.sweeps import ScanTensors, Sweeper
from bluesky_ptychonn.recon.networks.lifted import LiftedNetwork


def refine(
    image: MosaicImage,
    scan: ScanTensors,
    weight: NDArray[np.floating],
    settings: Refinement | None = None,
    *,
    network: Any = None,
    anchor: float = 0.02,
    within_s: float = math.inf,
) -> tuple[MosaicImage, dict[str, Any]]:
    """Refine a mosaic with the frames it was made of.

    Parameters
    ----------
    image : MosaicImage
        What to start from.
    scan : ScanTensors
        The frames, their positions and the probe, on the device to work on.
    weight : (h, w) float ndarray
        Of a patch in the mosaic; used when the network looks again.
    settings : Refinement, optional
        How.
    network : LiftedNetwork, optional
        Looks again between rounds; without one, or for another family, all rounds are sweeps alone.
    anchor : float
        See `Mosaic`; of the patches of that second look.
    within_s : float
        Begin no sweep that would probably end later than this, s. With a limit, as mosaics of a running scan have one,
        the probe is not tuned either: that takes seconds, and more frames tell it better.

    Returns
    -------
    image : MosaicImage
        Amplitude and phase refined where `image` has coverage; all else as it was.
    record : dict
        ``sweeps`` and ``looks`` done, ``seconds``, ``frames``, and ``settings``; where the probe was to be tuned also
        ``probe``: what was found, and whether it was ``used``.
    """
    settings = settings or Refinement()
    began = time.perf_counter()
    about_probe: dict[str, Any] = {}
    start = image
    if settings.tune_probe and len(scan) and math.isinf(within_s):
        tuned = tune_probe(image, scan)
        about_probe = {"probe": {**tuned.as_record(), "used": tuned.better}}
        if tuned.better:
            scan, start = replace(scan, probe=tuned.probe), tuned.image
    sweeper = Sweeper(start, scan, settings)
    swept = looked = 0
    with torch.inference_mode():
        for turn in range((settings.rounds or 1) if len(scan) else 0):
            if turn and isinstance(network, LiftedNetwork) and time.perf_counter() - began < within_s:
                sweeper.apply_last_stage(network, weight, anchor)
                looked += 1
            sweeper.begin_round()
            for _ in range(settings.sweeps):
                spent = time.perf_counter() - began
                if spent + spent / max(swept, 1) > within_s:
                    break
                sweeper.sweep()
                swept += 1
        refined = sweeper.image(image)
    record = {
        "sweeps": swept,
        "looks": looked,
        "seconds": round(time.perf_counter() - began, 3),
        "frames": len(scan),
        "settings": settings.model_dump(),
        **about_probe,
    }
    return refined, record

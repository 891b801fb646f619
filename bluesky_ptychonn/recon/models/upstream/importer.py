"""Import a checkpoint that others trained and published, as a model folder that says what nobody knows about it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.optics.framing import PUBLISHED_PREPROCESSING, PreprocessConfig
from bluesky_ptychonn.recon.models.checkpoint import new_card, save_model
from bluesky_ptychonn.recon.models.upstream.input_step import InputStep
from bluesky_ptychonn.recon.models.upstream.layout import CheckpointLayout, recognise, tensors_for
from bluesky_ptychonn.recon.models.upstream.state_dict import read_state_dict
from bluesky_ptychonn.recon.networks.direct import DirectConfig
from bluesky_ptychonn.recon.networks.families import build_network

_ANY_COUNTS = (0.0, 1e15)  # a card must name a range; this one flags no frame


def import_upstream(
    checkpoint: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str,
    object_pixel_m: float,
    version: str = "1",
    frame_size: int | None = None,
    preprocess: PreprocessConfig | None = None,
    counts_per_frame: tuple[float, float] | None = None,
    input_root: bool = False,
    input_scale: float = 1.0,
    input_step: InputStep | None = None,
    command: str = "",
) -> ModelCard:
    """Turn a published PtychoNN state dict into a model folder with equal outputs.

    Depth, channels, heads and batch normalisation come from the tensors. What a state dict does not hold must be
    said here or stays unknown, and the card lists it: it has no error curve, so sparse plans refuse to choose a step.

    Parameters
    ----------
    checkpoint : path
        ``.pth``, ``.pt`` or ``.safetensors``, read without running anything in it.
    folder : path
        Where the model is written.
    name, version : str
        For the card.
    object_pixel_m : float
        Object pixel it was trained at, m.
    frame_size : int, optional
        Side of the frames it was trained with, px; 64 for networks of three blocks and 128 for deeper ones.
    preprocess : PreprocessConfig, optional
        From recorded frames to the network's; `PUBLISHED_PREPROCESSING` is the two-head network's. None by default.
    counts_per_frame : tuple of float, optional
        Lowest and highest total counts of a frame it was trained with.
    input_root, input_scale : bool, float
        Whether it takes the square root of counts, and what divides them; as in `input_step`.
    input_step : InputStep, optional
        What its authors did to counts before the network. ``InputStep()`` says that counts go in as they are; nothing
        given, every result says that it is unknown.
    command : str
        For the card.

    Returns
    -------
    ModelCard
        As written.

    Raises
    ------
    ValueError
        In words: a file that is no state dict, another architecture, values that do not go together.
    """
    path = Path(checkpoint)
    layout = _recognised(path)
    step = input_step
    if step is None and (input_root or input_scale != 1 or preprocess == PUBLISHED_PREPROCESSING):
        step = InputStep(input_root, scale=input_scale)
    side = frame_size or (64 if len(layout.encoder.channels) == 3 else 128)
    decoder = next(iter(layout.decoders.values()))
    try:
        config = DirectConfig(
            frame_size=side,
            patch_size=side if decoder.upsampled else side // 2,
            encoder_channels=layout.encoder.channels,
            decoder_channels=decoder.channels,
            batch_norm=layout.encoder.normalised,
            heads=tuple(sorted(layout.decoders)),  # type: ignore[arg-type]
            input_root=step is not None and step.root,
            input_standardised=step is not None and step.standardised,
            input_scale=1.0 if step is None else step.scale,
        )
        contract = {
            "object_pixel_m": object_pixel_m,
            "counts_per_frame": counts_per_frame or _ANY_COUNTS,
            "preprocess": preprocess or PreprocessConfig(),
        }
        training = _provenance(path, layout, frame_size is None, preprocess, counts_per_frame, command)
        training["imported"]["input"] = None if step is None else step.words
        if step is None:
            training["unknown"].append("what was done to counts before the network")
        card = new_card(config, name, version, contract, training=training)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'values'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"import of {path}: {wrong}") from None
    network = build_network(config)
    network.load_state_dict(tensors_for(layout) | ({} if step is None else step.tensors(side)))
    return save_model(folder, network.eval(), card)


def _recognised(path: Path) -> CheckpointLayout:
    state = read_state_dict(path)
    try:
        return recognise(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _provenance(
    path: Path,
    layout: CheckpointLayout,
    frame_size_assumed: bool,
    preprocess: PreprocessConfig | None,
    counts: tuple[float, float] | None,
    command: str,
) -> dict[str, Any]:
    """Say where it came from, what is unknown and what was assumed."""
    unknown = [
        "error on samples it never saw",
        "error against the scan spacing",
        "data, probe and software it was trained with",
    ]
    if counts is None:
        unknown.append("counts_per_frame")
    assumed = []
    if "phase" in layout.decoders:
        assumed.append("phase = pi * tanh, the published last layer")
    if "amplitude" in layout.decoders:
        assumed.append("amplitude = sigmoid, the published last layer")
    assumed.append("patch rows along +y, columns along +x")
    if frame_size_assumed:
        assumed.append("frame size, as published for a network of this depth")
    if preprocess is None:
        assumed.append("frames go in as recorded")
    return {
        "command": command or "unknown",
        "imported": {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "layout": layout.description,
        },
        "unknown": unknown,
        "assumed": assumed,
    }

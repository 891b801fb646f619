"""Options as keywords: shown, explained, checked, and none forgotten."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import ValidationError

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.live.batch.reconstruct import reconstruct
from bluesky_ptychonn.live.callback import LiveReconstruction
from bluesky_ptychonn.live.learning.config import LearnerConfig
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.settings import (
    PARTS,
    LiveKeywords,
    LiveOptions,
    ReconstructionKeywords,
    ReconstructionOptions,
    ReconstructionSettings,
    with_keywords,
)
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement


@pytest.mark.parametrize(
    ("function", "keywords", "options", "left_out"),
    [
        (LiveReconstruction, LiveKeywords, LiveOptions, set()),
        (reconstruct, ReconstructionKeywords, ReconstructionOptions, {"pace", "spool_mib"}),
    ],
)
def test_every_option_is_a_keyword_that_is_shown_and_explained(
    function: Any, keywords: Any, options: Any, left_out: set[str]
) -> None:
    names = set(keywords.__annotations__)
    assert names - set(PARTS) == set(options.model_fields) - left_out
    shown = inspect.signature(function).parameters
    assert names < set(shown)
    assert (shown["batch_size"].default, shown["stream"].default, shown["x_key"].default) == (16, "primary", None)
    for name in set(options.model_fields) - left_out:
        assert f"\n    {name} : " in function.__doc__
    assert "**keywords" not in function.__doc__


def test_keywords_change_what_they_name_and_nothing_else() -> None:
    before = LiveOptions(keys=DataKeys("img", x_sign=-1), pace=Timing(block=7), threads=2)
    after = with_keywords(before, {"x_key": "px", "flush_s": 0.1, "refine": True, "threads": None}, LiveKeywords)
    assert after.keys == DataKeys("img", "px", x_sign=-1)
    assert after.pace == Timing(block=7, flush_s=0.1)
    assert (after.refine, after.threads, after.batch_size) == (Refinement(), 2, 16)
    assert with_keywords(after, {"refine": False}, LiveKeywords).refine is None
    settings = ReconstructionSettings.from_options(after, model="m", catalog="c", threads=1)
    assert (settings.keys, settings.pace, settings.refine) == (after.keys, after.pace, after.refine)


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({"bath_size": 3}, TypeError, "bath_size: unknown; allowed: geometry, frame_key"),
        ({"spool_mib": 3}, TypeError, "spool_mib: unknown"),  # `reconstruct` has no spool
        ({"batch_size": 0}, ValueError, "batch_size: .*greater than or equal to 1, got 0"),
        ({"device": "cudaa"}, ValueError, "device: 'cudaa' is unknown; allowed: auto, cpu, cuda, cuda:N"),
        ({"device": "cuda:"}, ValueError, "device: 'cuda:' is unknown"),
        ({"y_sign": 2}, ValueError, "y_sign=2: a sign is 1 or -1"),
    ],
)
def test_what_is_wrong_with_a_keyword_is_said_in_words(keywords: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        with_keywords(ReconstructionOptions(), keywords, ReconstructionKeywords)
    assert "validation error" not in str(caught.value)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices_are_taken_by_their_names(device: str) -> None:
    assert with_keywords(LiveOptions(), {"device": device}, LiveKeywords).device == device
    assert LearnerConfig(device=device).device == device


def test_a_learner_is_told_at_once_of_a_device_that_no_machine_has() -> None:
    with pytest.raises(ValidationError, match="'cudaa' is unknown; allowed: auto, cpu, cuda, cuda:N"):
        LearnerConfig(device="cudaa")

"""A card keeps its promises, says no in words, and is found by name without torch."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bluesky_ptychonn import card as card_module
from bluesky_ptychonn.card import (
    MOST_CARD,
    InputContract,
    ModelCard,
    ProbeReference,
    SamplingPoint,
    available_models,
    find_model,
    load_card,
)
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry

GEOMETRY = Geometry(energy_ev=10_000, distance_m=1.0, pixel_pitch_m=75e-6, frame_shape=(64, 64))


def points(*pairs: tuple[float, float], covered: float = 1.0) -> tuple[SamplingPoint, ...]:
    """Points of (step in µm, error in rad)."""
    return tuple(
        SamplingPoint(
            sampling=step,
            step_m=step * 1e-6,
            phase_mae_rad=error,
            phase_correlation=0.9,
            covered_fraction=covered,
            frames=100,
        )
        for step, error in pairs
    )


def make_card(**changes: Any) -> ModelCard:
    values: dict[str, Any] = {
        "name": "demo",
        "version": "1.0",
        "family": "lifted",
        "network": {"family": "lifted", "frame_size": 64},
        "input": InputContract(
            frame_shape=(64, 64),
            patch_shape=(32, 32),
            object_pixel_m=GEOMETRY.object_pixel_m,
            counts_per_frame=(1e4, 2e5),
        ),
        "probe": ProbeReference(diameter_m=1e-6, diameter_px=30, sha256="0" * 64, source="simulated"),
        "held_out": {"phase_mae_rad": 0.05},
        "sampling": points((0.1, 0.03), (0.2, 0.05), (0.4, 0.09)),
        "training": {"command": "ptychonn train", "seed": 3},
        "weights_sha256": "ab" * 32,
    }
    return ModelCard(**{**values, **changes})


def test_json_round_trip(tmp_path: Path) -> None:
    card = make_card()
    path = card.save(tmp_path / "model")
    assert path == tmp_path / "model" / "card.json"
    assert ModelCard.load(tmp_path / "model") == card
    assert ModelCard.load(path) == card
    assert [p.name for p in path.parent.iterdir()] == ["card.json"]  # no draft left behind


@pytest.mark.parametrize(
    ("tolerated", "step_um"), [(0.03, 0.1), (0.04, 0.15), (0.05, 0.2), (0.07, 0.3), (0.09, 0.4), (2.0, 0.4)]
)
def test_spacing_lies_between_the_measured_steps(tolerated: float, step_um: float) -> None:
    assert make_card().spacing_for(tolerated) == pytest.approx(step_um * 1e-6)


def test_a_larger_step_never_counts_as_better_than_a_smaller() -> None:
    card = make_card(sampling=points((0.1, 0.03), (0.2, 0.08), (0.4, 0.05), (0.5, 0.12)))
    assert card.spacing_for(0.06) == pytest.approx(0.16e-6)  # not 0.4: 0.2 was worse
    assert card.error_at(0.4e-6) == pytest.approx(0.08)


@settings(max_examples=60, deadline=None)
@given(
    errors=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=8),
    tolerated=st.floats(0.0005, 1.5),
)
def test_the_spacing_keeps_the_promise_and_is_the_largest(errors: list[float], tolerated: float) -> None:
    card = make_card(sampling=points(*((0.1 * (k + 1), e) for k, e in enumerate(errors))))
    low, high = card.measured_range_m
    if tolerated < errors[0]:
        with pytest.raises(ValueError, match="no measured spacing"):
            card.spacing_for(tolerated)
        return
    step = card.spacing_for(tolerated)
    assert low <= step <= high
    assert card.error_at(step) <= tolerated * (1 + 1e-9)
    if step < high * (1 - 1e-6):
        # Brute force: every larger step on a fine grid is worse.
        later = [step + (high - step) * k / 50 for k in range(1, 51)]
        assert all(card.error_at(s) > tolerated * (1 - 1e-9) for s in later)


def test_the_envelope_at_every_measured_step_is_the_running_maximum() -> None:
    errors = [0.05, 0.02, 0.2, 0.1, 0.3]
    card = make_card(sampling=points(*((0.1 * (k + 1), e) for k, e in enumerate(errors))))
    for k in range(len(errors)):
        assert card.error_at(0.1e-6 * (k + 1)) == pytest.approx(max(errors[: k + 1]))


def test_spacings_that_leave_holes_can_be_left_out() -> None:
    card = make_card(sampling=(*points((0.1, 0.03), (0.2, 0.04)), *points((0.4, 0.05), covered=0.6)))
    assert card.spacing_for(0.06) == pytest.approx(0.4e-6)
    assert card.spacing_for(0.06, covered_at_least=0.9) == pytest.approx(0.2e-6)
    gappy = make_card(sampling=points((0.1, 0.03), covered=0.5))
    with pytest.raises(ValueError, match="no measured spacing covered 90%"):
        gappy.spacing_for(0.06, covered_at_least=0.9)


def test_a_probe_is_described_by_its_bytes_and_its_size() -> None:
    y, x = np.mgrid[:64, :64] - 32
    probe = (np.hypot(y, x) < 15).astype(np.complex128)
    reference = ProbeReference.from_probe(probe, 2e-8, "a disc")
    # 90 % of a disc's area lies within sqrt(0.9) of its radius.
    assert reference.diameter_px == pytest.approx(30 * 0.9**0.5, abs=1.0)
    assert reference.diameter_m == pytest.approx(reference.diameter_px * 2e-8)
    assert reference.sha256 == hashlib.sha256(probe.astype(np.complex64).tobytes()).hexdigest()


def test_what_was_never_measured_is_refused_in_words() -> None:
    card = make_card()
    with pytest.raises(
        ValueError, match=r"a step of 0\.5 µm was never measured; its error is known from 0\.1 to 0\.4 µm"
    ):
        card.error_at(0.5e-6)
    with pytest.raises(ValueError, match=r"within 0\.02 rad; the smallest is 0\.03 rad, at a step of 0\.1 µm"):
        card.spacing_for(0.02)
    with pytest.raises(ValueError, match="never measured against the scan spacing"):
        make_card(sampling=()).spacing_for(0.1)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive number of rad"):
            card.spacing_for(wrong)


def test_the_trained_geometry_passes_and_others_are_named() -> None:
    card = make_card()
    card.check_geometry(GEOMETRY)
    card.check_geometry(GEOMETRY.model_copy(update={"energy_ev": 10_150}))  # 1.5 % off
    with pytest.raises(ValueError, match=r"trained at an object pixel of 25\.83 nm; this scan has 24\.6"):
        card.check_geometry(GEOMETRY.model_copy(update={"energy_ev": 10_500}))
    with pytest.raises(ValueError, match="takes frames of 64 x 64 px; the detector's 128 x 128 px"):
        card.check_geometry(GEOMETRY.model_copy(update={"frame_shape": (128, 128)}))


def test_geometry_of_frames_that_preprocessing_cuts() -> None:
    camera = Geometry(energy_ev=10_000, distance_m=3.0, pixel_pitch_m=25e-6, frame_shape=(256, 256))
    contract = {"frame_shape": (64, 64), "patch_shape": (64, 64), "counts_per_frame": (0, 1e8)}
    preprocess = PreprocessConfig(crop=192, bin=3)
    # By hand: 192 pixels of 25 µm span the same angle as 64 of 75 µm.
    pixel = 1.2398419843320026e-10 * 3.0 / (192 * 25e-6)
    card = make_card(input=InputContract(object_pixel_m=pixel, preprocess=preprocess, **contract))
    after = card.network_geometry(camera)
    assert after.frame_shape == (64, 64)
    assert after.object_pixel_m == pytest.approx(pixel)
    assert after.pixel_pitch_m == pytest.approx(75e-6)
    card.check_geometry(camera)
    with pytest.raises(ValueError, match="cannot be binned by 3"):
        make_card(
            input=InputContract(object_pixel_m=pixel, preprocess=PreprocessConfig(bin=3), **contract)
        ).check_geometry(camera)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights_sha256": "xyz"}, "weights_sha256"),
        ({"name": "../evil"}, "name"),
        ({"sampling": points((0.2, 0.1), (0.1, 0.2))}, "steps must ascend"),
        ({"family": "direct"}, "differ"),
        ({"unknown_key": 1}, "unknown_key"),
    ],
)
def test_a_half_valid_card_cannot_exist(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make_card(**changes)


def test_input_contract_is_checked() -> None:
    good: dict[str, Any] = {
        "frame_shape": (64, 64),
        "patch_shape": (32, 32),
        "object_pixel_m": 1e-8,
        "counts_per_frame": (1.0, 2.0),
    }
    with pytest.raises(ValidationError, match="lowest < highest"):
        InputContract(**{**good, "counts_per_frame": (3.0, 2.0)})
    with pytest.raises(ValidationError, match="within frame_shape"):
        InputContract(**{**good, "patch_shape": (128, 128)})


def test_a_card_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_card().name = "other"  # type: ignore[misc]


def test_files_that_are_no_card_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model card there"):
        ModelCard.load(tmp_path)
    (tmp_path / "card.json").write_text("{ not json")
    with pytest.raises(ValueError, match="its JSON cannot be read"):
        ModelCard.load(tmp_path)
    (tmp_path / "card.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="its JSON cannot be read: maximum recursion"):
        ModelCard.load(tmp_path)
    (tmp_path / "card.json").write_bytes(b" " * (MOST_CARD + 1))
    with pytest.raises(ValueError, match=r"\d+ bytes; at most \d+ are read as a model card"):
        ModelCard.load(tmp_path)
    (tmp_path / "card.json").write_text('{"schema_version": 2, "later": true}')
    with pytest.raises(ValueError, match="schema 2, this version reads 1"):
        ModelCard.load(tmp_path)
    (tmp_path / "card.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="not a usable model card"):
        ModelCard.load(tmp_path)
    values = make_card().model_dump(mode="json")
    values["input"]["object_pixel_m"] = -1
    (tmp_path / "card.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"input\.object_pixel_m"):
        ModelCard.load(tmp_path)


@pytest.fixture
def shelves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two user folders, the first preferred."""
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("PTYCHONN_MODELS", f"{first}:{second}")
    return first, second


def test_models_are_found_by_name_version_and_path(shelves: tuple[Path, Path]) -> None:
    first, second = shelves
    for version in ("1.2", "1.9", "1.10"):
        make_card(version=version).save(second / "star" / version)
    make_card(name="flat").save(first / "flat")
    models = available_models()
    assert models["star"] == second / "star" / "1.10"  # not 1.9, which text sorts last
    assert {"star/1.2", "star/1.9", "star/1.10", "flat"} <= set(models)
    assert load_card("star").version == "1.10"
    assert load_card("star/1.2").version == "1.2"
    assert load_card(second / "star" / "1.9").version == "1.9"
    assert find_model(second / "star" / "1.9" / "card.json") == second / "star" / "1.9"


def test_the_first_folder_wins(shelves: tuple[Path, Path]) -> None:
    first, second = shelves
    make_card(name="same", version="9").save(second / "same")
    make_card(name="same", version="1").save(first / "same")
    assert load_card("same").version == "1"


def test_user_data_folder_is_searched_when_the_variable_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PTYCHONN_MODELS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    make_card(name="mine").save(tmp_path / "ptychonn" / "models" / "mine" / "1")
    assert load_card("mine").name == "mine"
    assert card_module.model_folders()[-1] == Path(card_module.__file__).parent / "models"


def test_an_unknown_name_lists_names_and_folders(shelves: tuple[Path, Path]) -> None:
    make_card().save(shelves[0] / "velociprobe")
    with pytest.raises(ValueError, match="unknown") as caught:
        load_card("velociprob")
    words = str(caught.value)
    assert "did you mean 'velociprobe'" in words
    assert all(str(folder) in words for folder in card_module.model_folders())
    assert re.search(r"Available: .*velociprobe", words)


def test_importing_the_card_needs_no_torch() -> None:
    code = (
        "import sys; import bluesky_ptychonn.card;"
        "print([m for m in ('torch', 'h5py', 'tiled', 'matplotlib', 'skimage') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

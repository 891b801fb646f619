"""A model comes back as it was saved, or not at all and in words."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bluesky_ptychonn.card import InputContract, ModelCard, ProbeReference
from bluesky_ptychonn.optics.simulate import zone_plate_probe
from bluesky_ptychonn.recon.models.checkpoint import WEIGHTS_FILE, choose_device, load_model, save_model
from bluesky_ptychonn.recon.networks.families import build_network

SIZE, PATCH = 32, 16
LIFTED = {
    "family": "lifted",
    "frame_size": SIZE,
    "patch_size": PATCH,
    "lift_steps": 2,
    "stage_steps": 1,
    "stages": 1,
    "width": 4,
}
DIRECT = {"family": "direct", "frame_size": SIZE, "patch_size": SIZE, "width": 0.1}
PROBE = zone_plate_probe((SIZE, SIZE), 12) * np.float32(100)


def make_card(network: dict[str, Any], with_probe: bool, **changes: Any) -> ModelCard:
    values: dict[str, Any] = {
        "name": "tiny",
        "version": "1",
        "family": network["family"],
        "network": network,
        "input": InputContract(
            frame_shape=(SIZE, SIZE),
            patch_shape=(network["patch_size"],) * 2,
            object_pixel_m=2e-8,
            counts_per_frame=(1e3, 1e5),
        ),
        "probe": ProbeReference.from_probe(PROBE, 2e-8, "simulated") if with_probe else None,
        "weights_sha256": "0" * 64,
    }
    return ModelCard(**{**values, **changes})


def saved(folder: Path, network: dict[str, Any] = LIFTED, with_probe: bool = True) -> torch.nn.Module:
    torch.manual_seed(1)
    built = build_network(network).eval()
    save_model(folder, built, make_card(network, with_probe), PROBE if with_probe else None)
    return built


@pytest.mark.parametrize(("network", "with_probe"), [(LIFTED, True), (DIRECT, False)])
def test_round_trip_gives_the_same_patches(tmp_path: Path, network: dict[str, Any], with_probe: bool) -> None:
    built = saved(tmp_path, network, with_probe)
    model = load_model(tmp_path, "cpu")
    counts = torch.from_numpy(np.random.default_rng(0).poisson(20, (3, SIZE, SIZE)).astype(np.float32))
    probe = torch.from_numpy(PROBE)
    with torch.no_grad():
        assert torch.equal(built(counts, probe), model.network(counts, probe))
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    if with_probe:
        assert model.probe is not None
        assert np.array_equal(model.probe.numpy(), PROBE)
    else:
        assert model.probe is None
    digest = hashlib.sha256((tmp_path / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert model.card.weights_sha256 == digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", WEIGHTS_FILE]
    assert "tiny 1" in repr(model)


def test_state_dict_names_are_the_networks_own(tmp_path: Path) -> None:
    saved(tmp_path, DIRECT, with_probe=False)
    names = set(load_file(tmp_path / WEIGHTS_FILE))
    assert {"encoder.0.weight", "decoder1.0.weight", "decoder2.0.weight"} <= names


def test_saving_again_replaces(tmp_path: Path) -> None:
    saved(tmp_path)
    torch.manual_seed(2)
    other = build_network(LIFTED).eval()
    card = save_model(tmp_path, other, make_card(LIFTED, True), PROBE)
    loaded = load_model(tmp_path, "cpu")
    assert loaded.card == card
    for a, b in zip(other.state_dict().values(), loaded.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="changed or cut short"):
        load_model(tmp_path, "cpu")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="changed or cut short"):
        load_model(tmp_path, "cpu")


def test_a_file_that_is_no_safetensors_is_refused_even_with_the_right_digest(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"not tensors at all")
    digest = hashlib.sha256(b"not tensors at all").hexdigest()
    make_card(LIFTED, True, weights_sha256=digest).save(tmp_path)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_model(tmp_path, "cpu")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match="weights are missing"):
        load_model(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 8}, r"is \(4, .*the network's is \(8, "),
        ({"stages": 2}, "lacks nets.1"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    saved(tmp_path)
    card = ModelCard.load(tmp_path)
    ModelCard.model_validate({**card.model_dump(), "network": {**LIFTED, **change}}).save(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path, "cpu")


def test_an_unknown_network_setting_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    card = ModelCard.load(tmp_path)
    ModelCard.model_validate({**card.model_dump(), "network": {**LIFTED, "colour": 3}}).save(tmp_path)
    with pytest.raises(ValueError, match="colour"):
        load_model(tmp_path, "cpu")


def test_a_probe_other_than_the_cards_is_refused(tmp_path: Path) -> None:
    network = build_network(LIFTED)
    with pytest.raises(ValueError, match="describes another probe"):
        save_model(tmp_path, network, make_card(LIFTED, True), PROBE * 2)
    with pytest.raises(ValueError, match="none was given"):
        save_model(tmp_path, network, make_card(LIFTED, True))
    saved(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    for change, words in (
        ({"probe.real": tensors["probe.imag"].clone()}, "is not the one its card"),
        (None, "holds none"),
    ):
        kept = {k: v for k, v in tensors.items() if change or not k.startswith("probe")}
        save_file({**kept, **(change or {})}, tmp_path / WEIGHTS_FILE)
        digest = hashlib.sha256((tmp_path / WEIGHTS_FILE).read_bytes()).hexdigest()
        make_card(LIFTED, True, weights_sha256=digest).save(tmp_path)
        with pytest.raises(ValueError, match=words):
            load_model(tmp_path, "cpu")


def test_a_probe_of_another_size_than_the_frames_is_refused(tmp_path: Path) -> None:
    small = zone_plate_probe((16, 16), 8)
    card = make_card(LIFTED, True, probe=ProbeReference.from_probe(small, 2e-8, "simulated"))
    save_model(tmp_path, build_network(LIFTED), card, small)
    with pytest.raises(ValueError, match=r"probe is \(16, 16\) px and its frames \(32, 32\) px"):
        load_model(tmp_path, "cpu")


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"model 'no-such-model' is unknown.*Available: .*Searched: "):
        load_model("no-such-model")


def test_devices_are_chosen_or_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="allowed: auto, cpu, cuda"):
        choose_device("warp")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="sees 0 CUDA devices"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"

"""Checkpoints of others give the same pictures here; what is no checkpoint is refused in words and never run."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from bluesky_ptychonn.beamline.start_document import spacing
from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
from bluesky_ptychonn.recon.models.checkpoint import load_model
from bluesky_ptychonn.recon.models.upstream.importer import PUBLISHED_PREPROCESSING, import_upstream
from bluesky_ptychonn.recon.models.upstream.input_step import InputStep
from bluesky_ptychonn.recon.models.upstream.layout import recognise, tensors_for
from bluesky_ptychonn.recon.models.upstream.state_dict import MOST_BYTES, read_state_dict
from bluesky_ptychonn.recon.networks.direct import DirectConfig
from bluesky_ptychonn.recon.networks.families import build_network
from tests.support.upstream_networks import Grouped, Published, lived, small_phase, two_head

NETWORKS: dict[str, Any] = {
    "two heads": (two_head, 64, 1_247_074),
    "small phase": (small_phase, 128, 733_921),
    "small phase, normalised": (lambda: small_phase("norm", bias=False), 128, 734_881),
    "small phase, normalised, with bias": (lambda: small_phase("norm"), 128, 734_881),
    "small phase, normalised to the end": (lambda: small_phase("norm", last_norm=True), 128, 734_881),
    "small phase, identities": (lambda: small_phase("identity"), 128, 733_921),
    "grouped": (lambda: lived(Grouped()), 128, None),
    "grouped, not normalised": (lambda: lived(Grouped(8, norm=False)), 128, None),
}


def imported(checkpoint: Path, folder: Path, **options: Any) -> ModelCard:
    return import_upstream(checkpoint, folder, **{"name": "theirs", "object_pixel_m": 1e-8, **options})


def save(state: Any, folder: Path, name: str = "theirs.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


@pytest.mark.parametrize("which", NETWORKS)
def test_outputs_are_those_of_the_network_as_published(tmp_path: Path, which: str) -> None:
    make, side, parameters = NETWORKS[which]
    theirs = make()
    card = imported(save(theirs.state_dict(), tmp_path), tmp_path / "model")
    model = load_model(tmp_path / "model", "cpu")
    assert card.input.frame_shape == card.input.patch_shape == (side, side)
    if parameters is not None:
        assert sum(p.numel() for p in model.network.parameters()) == parameters
    # In double precision: what float32 rounds off, 1.4e-4 on one processor, is no difference between the networks.
    counts = torch.from_numpy(np.random.default_rng(0).poisson(3, (2, side, side)).astype(np.float64))
    with torch.no_grad():
        expected, got = theirs.double()(counts[:, None]), model.network.double()(counts)
    assert expected["phase"].std() > 0.01
    torch.testing.assert_close(got.to(torch.complex128), torch.polar(*_both(expected)), atol=2e-6, rtol=0.0)


def _both(expected: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    phase = expected["phase"]
    return expected.get("amplitude", torch.ones_like(phase)), phase


def test_a_normalised_import_trains_as_the_original_would(tmp_path: Path) -> None:
    theirs = small_phase("norm")
    imported(save(theirs.state_dict(), tmp_path), tmp_path / "model")
    ours = load_model(tmp_path / "model", "cpu").network.train()
    theirs.train()
    counts = torch.from_numpy(np.random.default_rng(1).poisson(3, (2, 128, 128)).astype(np.float32))
    with torch.no_grad():
        # Statistics of a batch amplify rounding; a wrong bias or mean would differ by tenths of a radian.
        torch.testing.assert_close(ours(counts).angle(), theirs(counts[:, None])["phase"], atol=5e-3, rtol=0)


def test_the_published_file_gives_its_own_pictures(tmp_path: Path) -> None:
    path = Path(os.environ.get("PTYCHONN_DATA", "../shared/data")) / "edgePtychoNN-small-phase.pth"
    if not path.is_file():
        pytest.skip(f"no published checkpoint: {path} is not there; set PTYCHONN_DATA to its folder")
    theirs = Published((16, 32, 64, 128), (128, 64, 32, 16), ("decoder2",))
    theirs.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    card = imported(path, tmp_path)
    network = load_model(tmp_path, "cpu").network
    counts = torch.from_numpy(np.random.default_rng(0).poisson(5, (2, 128, 128)).astype(np.float32))
    with torch.no_grad():
        expected, got = theirs(counts[:, None])["phase"], network(counts)
    torch.testing.assert_close(got.angle(), expected, atol=1e-5, rtol=1e-4)
    assert card.training["imported"]["layout"] == "PtychoNN, 4 blocks, phase"
    onnx = path.with_suffix(".onnx")
    try:
        from onnxruntime import InferenceSession
    except ImportError:
        return
    session = InferenceSession(onnx)
    (entry,) = session.get_inputs()
    batch = [counts[:1, None].numpy()] * (entry.shape[0] if isinstance(entry.shape[0], int) else 1)
    (phase,) = session.run(None, {entry.name: np.concatenate(batch)})
    np.testing.assert_allclose(got[0].angle().numpy(), phase[0, 0], atol=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"epoch": 3, "model_state_dict": state},
        lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {name: value.double() for name, value in state.items()},
    ],
    ids=["DataParallel", "training checkpoint", "compiled and parallel", "double precision"],
)
def test_what_others_put_around_a_state_dict_is_taken_off(tmp_path: Path, wrap: Any) -> None:
    state = small_phase().state_dict()
    plain = imported(save(state, tmp_path), tmp_path / "plain")
    wrapped = imported(save(wrap(state), tmp_path, "wrapped.pth"), tmp_path / "wrapped")
    assert wrapped.weights_sha256 == plain.weights_sha256


def test_safetensors_of_the_same_names_are_read(tmp_path: Path) -> None:
    state = two_head().state_dict()
    save_file(state, tmp_path / "theirs.safetensors")
    assert (
        imported(tmp_path / "theirs.safetensors", tmp_path / "a").weights_sha256
        == imported(save(state, tmp_path), tmp_path / "b").weights_sha256
    )
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "theirs.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a safetensors file, or cut short"):
        imported(cut, tmp_path / "c")


def test_the_card_says_what_nobody_knows(tmp_path: Path) -> None:
    checkpoint = save(two_head().state_dict(), tmp_path)
    card = imported(checkpoint, tmp_path / "model", preprocess=PUBLISHED_PREPROCESSING)
    assert card.sampling == ()
    assert card.held_out == {}
    assert card.probe is None
    assert "error against the scan spacing" in card.training["unknown"]
    assert "counts_per_frame" in card.training["unknown"]
    assert "frames go in as recorded" not in card.training["assumed"]
    assert len(card.training["imported"]["sha256"]) == 64
    assert card.input.preprocess.output_shape((256, 256)) == (64, 64)
    with pytest.raises(ValueError, match="its error was never measured against the scan spacing; give the plan a step"):
        spacing(str(tmp_path / "model"), 0.1, None, False)
    known = imported(checkpoint, tmp_path / "known", counts_per_frame=(1e3, 1e6))
    assert "counts_per_frame" not in known.training["unknown"]


def test_an_import_reconstructs_frames_of_any_counts_without_flags(tmp_path: Path) -> None:
    imported(save(two_head().state_dict(), tmp_path), tmp_path / "model", preprocess=PUBLISHED_PREPROCESSING)
    reconstructor = Reconstructor(load_model(tmp_path / "model", "cpu"), device="cpu")
    for counts in (10, 300, 20_000):
        frames = np.random.default_rng(0).poisson(counts, (2, 256, 256)).astype(np.uint16)
        batch = reconstructor.for_run().reconstruct(frames)
        assert batch.valid.all()
        assert batch.flag == ["", ""]
        assert batch.patches.shape == (2, 64, 64)
    assert reconstructor.describe()["trust_judged"] is False


def test_a_mean_pattern_subtracted_and_a_deviation_divided_by_are_part_of_the_model(tmp_path: Path) -> None:
    theirs, rng = two_head(), np.random.default_rng(2)
    rate = 3 + 200 * np.exp(-np.hypot(*(np.indices((64, 64)) - 32)) / 6)
    data = rng.poisson(rate, (50, 64, 64)).astype(np.uint16)
    step = InputStep(mean=data.mean(0), deviation=data.std(0))
    card = imported(save(theirs.state_dict(), tmp_path), tmp_path / "model", input_step=step)
    reconstructor = Reconstructor(load_model(tmp_path / "model", "cpu"), device="cpu")
    batch = reconstructor.reconstruct(data[:3])
    by_hand = torch.from_numpy((data[:3] - data.mean(0)) / data.std(0)).float()[:, None]
    with torch.no_grad():
        expected = theirs(by_hand)
        plain = theirs(torch.from_numpy(data[:3]).float()[:, None])
    np.testing.assert_allclose(batch.patches, torch.polar(*_both(expected)), atol=1e-4)
    correlations = [np.corrcoef(np.angle(batch.patches).ravel(), e["phase"].ravel())[0, 1] for e in (expected, plain)]
    assert correlations[0] > 0.99999
    assert correlations[1] < 0.9  # what it would be without the step
    assert card.training["imported"]["input"] == "(counts - mean) / deviation"
    assert reconstructor.verdict() is None
    # A network of other frames has no such pattern.
    with pytest.raises(ValueError, match="frames of 128 px have none"):
        load_model(tmp_path / "model", "cpu").network.config.resized(128)


def test_an_unknown_input_is_said_of_every_result(tmp_path: Path) -> None:
    checkpoint = save(two_head().state_dict(), tmp_path)
    frames = np.random.default_rng(0).poisson(9, (9, 64, 64))
    for number, (options, unknown) in enumerate(
        [
            ({}, True),
            ({"preprocess": PUBLISHED_PREPROCESSING.model_copy(update={"crop": None, "resize": None})}, True),
            ({"input_step": InputStep()}, False),
            ({"input_scale": 30.0}, False),
        ]
    ):
        card = imported(checkpoint, tmp_path / str(number), **options)
        reconstructor = Reconstructor(load_model(tmp_path / str(number), "cpu"), device="cpu")
        reconstructor.reconstruct(frames)
        said = reconstructor.describe().get("verdict", {"level": "ok", "reasons": [""]})
        assert card.input_unknown is unknown
        assert ("what was done to counts before the network" in card.training["unknown"]) is unknown
        assert said["level"] == ("doubtful" if unknown else "ok")
        assert said["reasons"][0].startswith("input unknown: nobody said") is unknown
    # A card of version 0.2.0, which could not say it, but had a scale.
    old = {**card.model_dump(), "training": {"imported": {"file": "theirs.pth"}}}
    assert not ModelCard.from_values(old, "old").input_unknown
    old["network"] = {name: value for name, value in old["network"].items() if not name.startswith("input_")}
    assert ModelCard.from_values(old, "old").input_unknown


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (InputStep(mean=np.zeros((32, 32))), "the mean has shape (32, 32), float64; one real number, or a pattern of"),
        (InputStep(deviation=np.eye(64)), "the deviation is not above 0 in 4032 of 4096 pixels"),
        (InputStep(mean=np.full((64, 64), np.nan)), "the mean holds NaN or infinite values"),
    ],
)
def test_an_input_step_that_cannot_be_is_refused_in_words(tmp_path: Path, step: InputStep, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        imported(save(two_head().state_dict(), tmp_path), tmp_path / "model", input_step=step)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frame_size": 100}, "must be a multiple of 2"),
        ({"object_pixel_m": 0.0}, "object_pixel_m: Input should be greater than 0"),
        ({"name": "../x"}, "name: String should match pattern"),
        ({"counts_per_frame": (5.0, 1.0)}, "give (lowest, highest)"),
    ],
)
def test_values_that_do_not_go_together_are_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        imported(save(two_head().state_dict(), tmp_path), tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


class _Payload:
    """Unpickling one makes a file: the proof that nothing was run is that the file is not there."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


class _OsPayload(_Payload):
    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("kind", [_Payload, _OsPayload])
@pytest.mark.parametrize("way", ["torch", "legacy", "pickle", "beside weights"])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path, kind: Any, way: str) -> None:
    trap, path = tmp_path / "it-ran", tmp_path / "evil.pth"
    payload = kind(trap)
    if way == "pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    elif way == "beside weights":
        torch.save({**small_phase().state_dict(), "extra": payload}, path)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=way == "torch")
    with pytest.raises(ValueError, match="holds a Python object .*refused, nothing was run"):
        imported(path, tmp_path / "model")
    assert not trap.exists()
    assert not (tmp_path / "model").exists()
    pickle.loads(pickle.dumps(payload))
    assert trap.exists()  # the trap itself works


def test_a_whole_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(small_phase(), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"holds a Python object .*torch\.save\(model\.state_dict\(\)"):
        imported(tmp_path / "module.pth", tmp_path / "model")


def test_a_download_that_was_cut_short_or_is_another_thing(tmp_path: Path) -> None:
    whole = save(small_phase().state_dict(), tmp_path).read_bytes()
    path = tmp_path / "cut.pth"
    for data, words in (
        (whole[: len(whole) // 2], "was cut short"),
        (whole[:100], "was cut short"),
        (b"", "is empty"),
        (b"\x80\x02}q\x00", "cut short|damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "is a web page"),
        (os.urandom(500).replace(b"PK", b"KP"), "not a PyTorch checkpoint"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            read_state_dict(path)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_state_dict(tmp_path / "none.pth")


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_answered_in_words(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="any.pth: "):
        read_state_dict(path)


def test_sizes_are_looked_at_before_reading(tmp_path: Path) -> None:
    large = tmp_path / "large.pth"
    with large.open("wb") as file:
        file.write(b"x")
        file.truncate(MOST_BYTES + 1)  # takes no space on the disk
    with pytest.raises(ValueError, match=r"\d+ bytes; at most \d+ are read"):
        read_state_dict(large)
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x/data/0", "w") as entry:
        for _ in range(MOST_BYTES // 2**24 + 1):
            entry.write(bytes(2**24))
    assert bomb.stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"unpacks to \d+ bytes"):
        read_state_dict(bomb)
    wide = save({"encoder.0.weight": torch.zeros(1).expand(2**20, 2**12)}, tmp_path, "wide.pth")
    with pytest.raises(ValueError, match="numbers; at most"):
        read_state_dict(wide)
    many = save({f"encoder.{i}.weight": torch.zeros(1).expand(2**10, 2**12) for i in range(40)}, tmp_path, "many.pth")
    with pytest.raises(ValueError, match="its tensors claim 167772160 numbers; at most"):
        read_state_dict(many)
    unnamed = tmp_path / "unnamed.pth"
    unnamed.write_bytes(many.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x02\x00\x00\xff\xff", 1))
    with pytest.raises(ValueError, match=r"unnamed\.pth: was cut short"):
        read_state_dict(unnamed)


def test_programs_and_other_objects_are_no_state_dict(tmp_path: Path) -> None:
    script = tmp_path / "script.pt"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("script/code/__torch__.py", "")
    with pytest.raises(ValueError, match="TorchScript program, which is never run"):
        read_state_dict(script)
    for thing, words in (
        (torch.zeros(3), "holds no state dict but a Tensor"),
        ({}, "holds no state dict"),
        ({"lr": 0.1}, "'lr' is a float, not a tensor"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a holds NaN or Inf"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "allowed: dense real tensors"),
    ):
        with pytest.raises(ValueError, match=words):
            read_state_dict(save(thing, tmp_path))


def _without(name: str) -> Any:
    return lambda state: {key: value for key, value in state.items() if key != name}


def _with(**tensors: torch.Tensor) -> Any:
    return lambda state: {**state, **{name.replace("__", "."): value for name, value in tensors.items()}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with(fc__weight=torch.zeros(3, 3)), "it holds 'fc.weight'; known are PtychoNN's layouts"),
        (_with(encoder__skip__weight=torch.zeros(1)), "encoder.skip.weight is no layer of it"),
        (_with(encoder__1__weight=torch.zeros(3)), "encoder.1 is no layer of it"),
        (_with(encoder__0__weight=torch.zeros(16, 1, 5, 5)), "encoder.0 is no 3x3 convolution"),
        (_with(encoder__0__weight=torch.zeros(16, 3, 3, 3)), "encoder.0 takes 3 channels, 1 come to it"),
        (_with(encoder__0__bias=torch.zeros(3)), "encoder.0 does not fit itself"),
        (_with(encoder__2__weight=torch.zeros(8, 16, 3, 3), encoder__2__bias=torch.zeros(8)), "changes channels"),
        (_with(decoder2__20__weight=torch.zeros(3, 16, 3, 3), decoder2__20__bias=torch.zeros(3)), "one channel"),
        (_without("encoder.0.weight"), "encoder.0 is no layer of it"),
        (lambda s: {k: v for k, v in s.items() if "encoder.17" not in k}, "encoder has convolutions at"),
        (
            lambda s: {k: v for k, v in s.items() if "encoder.1" not in k or k[8] == "0"},
            "encoder has convolutions|come",
        ),
        (lambda s: {k: v for k, v in s.items() if "decoder" not in k}, "it holds encoder; known are"),
        (lambda s: {**s, **{k.replace("decoder2", "decoder_phase"): v for k, v in s.items()}}, "two decoders for the"),
    ],
)
def test_another_architecture_is_refused_by_what_does_not_fit(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        imported(save(change(dict(small_phase().state_dict())), tmp_path), tmp_path / "model")


TINY = lived(Published((4, 6), (6, 4), ("decoder1", "decoder2"), "norm")).state_dict()
SHAPES = st.lists(st.integers(0, 6), max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(TINY)), st.one_of(st.none(), SHAPES), max_size=3),
    st.sampled_from(["", "decoder1", "decoder2", "encoder"]),
)
def test_any_change_of_names_and_shapes_is_built_or_refused_in_words(
    changes: dict[str, list[int] | None], renamed: str
) -> None:
    state = {k.replace(renamed or "-", "decoder"): v for k, v in TINY.items()}
    for name, shape in changes.items():
        state.pop(name, None)
        if shape is not None:
            state[name] = torch.ones(shape)
    try:
        layout = recognise(state)
    except ValueError as error:
        words = str(error)
    else:
        words = layout.description
        config = DirectConfig(
            encoder_channels=layout.encoder.channels,
            decoder_channels=next(iter(layout.decoders.values())).channels,
            batch_norm=layout.encoder.normalised,
            heads=tuple(layout.decoders),
        )
        build_network(config).load_state_dict(tensors_for(layout))
    assert "PtychoNN" in words


def test_relatives_that_cannot_be_built_are_refused(tmp_path: Path) -> None:
    deep = Published((8, 8, 8, 8), (8, 8, 8), ("decoder2",))
    with pytest.raises(ValueError, match="halves the size 4 times and has 3 decoder blocks"):
        imported(save(deep.state_dict(), tmp_path), tmp_path / "model")
    uneven = Published((8, 8, 8), (8, 8, 8), ("decoder1", "decoder2")).state_dict()
    other = Published((8, 8, 8), (8, 4, 4), ("decoder2",)).state_dict()
    with pytest.raises(ValueError, match="the decoders of this PtychoNN differ"):
        imported(save({**uneven, **other}, tmp_path), tmp_path / "model")
    half = Published((8, 8, 8), (8, 8, 8), ("decoder2",), "identity").state_dict()
    normed = Published((8, 8, 8), (8, 8, 8), ("decoder2",), "norm").state_dict()
    mixed = {**half, **{k: v for k, v in normed.items() if k.startswith("encoder")}}
    with pytest.raises(ValueError, match="batch-normalised in part"):
        imported(save(mixed, tmp_path), tmp_path / "model")


def test_a_decoder_that_ends_at_half_the_size_gives_the_central_half(tmp_path: Path) -> None:
    theirs = Published((8, 8, 8), (8, 8, 8), ("decoder2",))
    layers = list(theirs.decoder2)
    del layers[-3]
    theirs.decoder2 = nn.Sequential(*layers)
    lived(theirs)
    card = imported(save(theirs.state_dict(), tmp_path), tmp_path / "model")
    assert card.input.patch_shape == (32, 32)
    counts = torch.ones(1, 64, 64)
    with torch.no_grad():
        got = load_model(tmp_path / "model", "cpu").network(counts).angle()
        torch.testing.assert_close(got, theirs(counts[:, None])["phase"], atol=1e-5, rtol=1e-4)

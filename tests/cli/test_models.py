"""``ptychonn models`` with files: what a user sees when a model comes from somebody else."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bluesky_ptychonn.card import load_card
from bluesky_ptychonn.cli import main
from bluesky_ptychonn.recon.models.checkpoint import load_model
from tests.support.upstream_networks import small_phase, two_head

SHIPPED = "simulated-zp64"


@pytest.fixture(autouse=True)
def users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's models, none at first."""
    folder = tmp_path / "user"
    monkeypatch.setenv("PTYCHONN_MODELS", str(folder))
    return folder


@pytest.fixture
def said(monkeypatch, capsys):
    """Run ``ptychonn models ...``; it must say nothing on stderr, and what it prints is returned."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ptychonn", "models", *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            main()
        out, err = capsys.readouterr()
        assert not err
        return out

    return run


@pytest.fixture
def refused(monkeypatch, capsys, users):
    """Run it; it must end with code 2 and one sentence, which is returned, and leave no file in the user's models."""

    def run(*arguments: object) -> str:
        before = sorted(users.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["ptychonn", "models", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        err: str = capsys.readouterr().err
        assert end.value.code == 2
        assert err.startswith("ptychonn: ")
        assert err.count("\n") == 1
        assert sorted(users.rglob("*")) == before
        return err

    return run


def test_a_model_travels_as_a_zip(said: Any, users: Path, tmp_path: Path) -> None:
    shipped = load_card(SHIPPED)
    out = said("export", SHIPPED, "--to", tmp_path / "out" / "model.zip")
    assert out.startswith(f"{shipped.name} {shipped.version} in {tmp_path}")
    out = said("import", tmp_path / "out" / "model.zip", "--name", "from-a-friend")
    folder = users / "from-a-friend" / shipped.version
    assert out == f"from-a-friend/{shipped.version} in {folder}\n"
    assert load_card("from-a-friend") == shipped.model_copy(update={"name": "from-a-friend"})
    assert said("import", tmp_path / "out" / "model.zip", "--name", "from-a-friend") == out
    assert "from-a-friend " in said("list")
    assert said("import", folder, "--to", tmp_path / "else").startswith(
        f"from-a-friend/{shipped.version} in {tmp_path}"
    )


def test_a_published_checkpoint_is_imported_with_what_nobody_knows(said: Any, users: Path, tmp_path: Path) -> None:
    theirs = two_head()
    torch.save({f"module.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "best model.pth")
    options = ("--object-pixel-nm", "8.5", "--crop", "192", "--resize", "64", "--count-threshold", "3")
    out = said("import", tmp_path / "best model.pth", *options)
    assert out.splitlines()[0] == f"best-model/1 in {users / 'best-model' / '1'}"
    assert out.splitlines()[1].startswith("unknown: error on samples it never saw; error against the scan spacing;")
    assert said("import", tmp_path / "best model.pth", *options) == out  # the same again is the same model
    card = load_card("best-model")
    assert card.input.object_pixel_m == pytest.approx(8.5e-9)
    assert card.input.preprocess.output_shape((256, 256)) == (64, 64)
    counts = torch.from_numpy(np.random.default_rng(0).poisson(3, (1, 64, 64)).astype(np.float32))
    with torch.no_grad():
        got, expected = load_model("best-model", "cpu").network(counts), theirs(counts[:, None])
    torch.testing.assert_close(got.abs(), expected["amplitude"], atol=1e-5, rtol=1e-4)
    out = said("show", "best-model")
    assert "takes   64 × 64 px, unknown counts a frame" in out
    assert "from    best model.pth (PtychoNN, 3 blocks, amplitude and phase), sha256 " in out
    assert "assumed: phase = pi * tanh" in out
    assert said("import", tmp_path / "best model.pth", "--object-pixel-nm", "9").startswith("best-model/2 in")


def test_what_was_subtracted_from_its_input_is_imported_with_it(said: Any, refused: Any, tmp_path: Path) -> None:
    theirs = small_phase()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    mean = np.random.default_rng(0).uniform(0, 5, (128, 128))
    np.save(tmp_path / "mean.npy", mean)
    options = (tmp_path / "theirs.pth", "--object-pixel-nm", "10", "--input-mean", tmp_path / "mean.npy")
    assert "what was done to counts" not in said("import", *options, "--input-deviation", "4")
    counts = torch.from_numpy(np.random.default_rng(0).poisson(3, (1, 128, 128)).astype(np.float32))
    with torch.no_grad():
        got = load_model("theirs", "cpu").network(counts)
        expected = theirs(((counts - torch.from_numpy(mean)) / 4).float()[:, None])
    torch.testing.assert_close(got.angle(), expected["phase"], atol=1e-5, rtol=1e-4)
    plain = (tmp_path / "theirs.pth", "--object-pixel-nm", "10", "--name", "plain")
    assert "what was done to counts before the network" in said("import", *plain)
    assert "what was done to counts before the network" not in said("import", *plain, "--input-counts")
    assert "--input-deviation 'none.npy' is neither a number nor a .npy" in refused(
        "import", *options, "--input-deviation", "none.npy"
    )
    assert "--input-counts says that nothing is done to counts" in refused("import", *options, "--input-counts")


def test_two_cards_side_by_side(said: Any, tmp_path: Path) -> None:
    torch.save(small_phase().state_dict(), tmp_path / "theirs.pth")
    said("import", tmp_path / "theirs.pth", "--object-pixel-nm", "10", "--counts", "100", "1e6")
    lines = said("compare", SHIPPED, "theirs").splitlines()
    rows = {line[: lines[0].index(SHIPPED)].strip(): line.split()[-2:] for line in lines}
    assert lines[0].split()[-2:] == ["theirs", "1"]
    assert rows["family"] == ["lifted", "direct"]
    assert rows["frame (px)"] == ["64×64", "128×128"]
    assert rows["object pixel (nm)"][1] == "10.00"
    assert lines[[*rows].index("counts a frame")].endswith("100 to 1e+06")
    card = load_card(SHIPPED)
    assert rows["held out: patch_phase_mae_rad"] == [f"{card.held_out['patch_phase_mae_rad']:.4f}", "-"]
    curve = [values for title, values in rows.items() if title.startswith("error at")]
    assert len(curve) == len(card.sampling)
    assert all(second == "-" for _, second in curve)
    assert curve[0][0] == f"{card.sampling[0].phase_mae_rad:.3f}"


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.target}'",)


def test_what_a_stranger_sends_is_refused_in_words(said: Any, refused: Any, tmp_path: Path) -> None:
    trap, evil = tmp_path / "it-ran", tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps(_Payload(trap), protocol=2))
    words = refused("import", evil, "--object-pixel-nm", "10")
    assert "holds a Python object" in words
    assert "refused, nothing was run" in words
    assert not trap.exists()
    torch.save(small_phase().state_dict(), tmp_path / "good.pth")
    data = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 3])
    assert "was cut short" in refused("import", tmp_path / "cut.pth", "--object-pixel-nm", "10")
    assert "give --object-pixel-nm" in refused("import", tmp_path / "good.pth")
    assert "is not usable; allowed" in refused("import", tmp_path / "good.pth", "--name", "../x")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    assert "known are PtychoNN's layouts" in refused("import", tmp_path / "other.pth", "--object-pixel-nm", "10")
    assert "none.zip does not exist; give a model's folder" in refused("import", tmp_path / "none.zip")
    (tmp_path / "notes.txt").write_text("x")
    assert "'notes.txt' is neither a model's folder, nor a .zip" in refused("import", tmp_path / "notes.txt")
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as archive:
        archive.writestr("../../slipped", "x")
    assert "lies outside its folder" in refused("import", tmp_path / "slip.zip")
    assert not (tmp_path.parent / "slipped").exists()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("card.json", bytes(1 << 23))
    assert "unpacks to 8388608 bytes; at most" in refused("import", tmp_path / "bomb.zip")
    assert "no model card there" in refused("import", tmp_path)


def test_tampered_and_misfitting_weights_are_refused(said: Any, refused: Any, tmp_path: Path) -> None:
    said("export", SHIPPED, "--to", tmp_path / "model.zip")
    said("import", tmp_path / "model.zip", "--name", "mine", "--to", tmp_path)
    folder = tmp_path / "mine" / load_card(SHIPPED).version
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert "is not what its card describes" in refused("import", folder)
    assert "is not what its card describes" in refused("export", folder, "--to", tmp_path / "again.zip")
    assert not (tmp_path / "again.zip").exists()
    name = next(name for name in tensors if name.endswith("weight") and tensors[name].ndim == 4)
    save_file({**tensors, name: tensors[name][:1].clone()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    load_card(folder).model_copy(update={"weights_sha256": digest}).save(folder)
    assert "its weights are for another network than its card describes" in refused("import", folder)
    card = load_card(folder)
    for channels, words in (
        (2**12, "its weights are for another network than its card describes: lacks encoder.0.weight"),
        (2**20, "network configuration is not usable: direct.encoder_channels.0: got 1048576"),
    ):
        huge = {"family": "direct", "encoder_channels": [channels] * 3, "decoder_channels": [channels] * 3}
        card.model_copy(update={"family": "direct", "network": huge, "weights_sha256": digest}).save(folder)
        assert words in refused("import", folder)  # before any memory is asked for


def test_what_a_card_says_does_not_steer_the_terminal(said: Any, tmp_path: Path) -> None:
    said("export", SHIPPED, "--to", tmp_path / "model.zip")
    said("import", tmp_path / "model.zip", "--to", tmp_path)
    folder = tmp_path / SHIPPED / load_card(SHIPPED).version
    load_card(folder).model_copy(update={"training": {"command": "\x1b[2Jgone", "seed": "\x1b[1m"}}).save(folder)
    assert "made by ?[2Jgone" in said("show", folder)
    assert "\x1b" not in said("compare", folder, SHIPPED)


def test_unknown_names_and_versions(refused: Any, tmp_path: Path) -> None:
    for arguments in (
        ("show", "none-such"),
        ("compare", SHIPPED, "none-such"),
        ("export", "none-such", "--to", "x.zip"),
    ):
        assert "model 'none-such' is unknown" in refused(*arguments)
    assert f"model '{SHIPPED}/99' is unknown" in refused("show", f"{SHIPPED}/99")
    assert "must end in .zip" in refused("export", SHIPPED, "--to", tmp_path / "model.tar")

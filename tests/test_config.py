"""The configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.config import CONFIG_VARIABLE, Config
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.settings import LiveKeywords, with_keywords

FULL = """
[catalog]
folder = "catalog"
port = 8123
readable = ["/detector", "frames/more"]
profile = "beamline"
subscriptions = true

[reconstruction]
model = "simulated-zp64"
device = "cpu"
worker = "thread"
batch_size = 8
threads = 2
journal_dir = "journal"

[reconstruction.geometry]
energy_ev = 8800
distance_m = 1.92
pixel_pitch_m = 75e-6
frame_shape = [128, 128]

[reconstruction.keys]
frame = "eiger_image"
x = "px"
y = "py"
y_sign = -1
position_unit = "um"

[reconstruction.pace]
block = 32
flush_s = 0.1
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "ptychonn.toml"
        path.write_text(text)
        return path

    return write


def test_every_section_arrives_as_the_pieces_own_configuration(write, tmp_path) -> None:
    config = Config.load(write(FULL))
    assert config.catalog.folder == tmp_path / "catalog"
    assert config.catalog.readable == (Path("/detector"), tmp_path / "frames/more")
    assert config.reconstruction.journal_dir == tmp_path / "journal"
    assert config.reconstruction.keys == DataKeys(frame="eiger_image", x="px", y="py", y_sign=-1, position_unit="um")
    assert config.reconstruction.pace == Timing(block=32, flush_s=0.1)
    assert config.reconstruction.geometry is not None
    assert config.reconstruction.geometry.object_pixel_m == pytest.approx(28.2e-9, rel=1e-2)


def test_live_reconstruction_is_given_the_whole_section(write, tmp_path, monkeypatch) -> None:
    given = []
    monkeypatch.setattr("bluesky_ptychonn.config.LiveReconstruction", lambda *all_, **more: given.append((all_, more)))
    section = Config.load(write(FULL)).reconstruction
    section.live("catalog", raw_writer="writer")
    assert given == [(("simulated-zp64", "catalog", section), {"raw_writer": "writer"})]
    options = with_keywords(section, {}, LiveKeywords)
    assert options == section  # paths are those beside the file, not taken for relative ones once more
    assert options.journal_dir == tmp_path / "journal"


@pytest.mark.parametrize("name", ["profile_startup/ptychonn.toml", "docs/how-to/ptychonn.toml"])
def test_shipped_examples_can_be_read(repository, name) -> None:
    config = Config.load(repository / name)
    assert config.reconstruction.model == "simulated-zp64"


def test_the_environment_names_the_file(write, monkeypatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(write(FULL)))
    assert Config.load().catalog.port == 8123


def test_no_file_is_said_with_how_to_name_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"config\.toml: no such file; write one, or name one in PTYCHONN_CONFIG"):
        Config.load()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("port = 8123", "prot = 8123"), r"catalog\.prot: unknown; allowed: address, folder, port"),
        (("block = 32", "blocks = 32"), r"reconstruction\.pace\.blocks: unknown; allowed: block, flush_s"),
        (("block = 32", "block = 0"), r"pace: block 0 must be at least 1 frame"),
        (('frame = "eiger_image"', 'image = "eiger"'), r"reconstruction\.keys\.image: unknown; allowed: frame, x, y"),
        (('folder = "catalog"', 'folder = "c"\naddress = "b"'), "give either address .* or folder"),
        (("port = 8123", "port = 81230"), r"catalog\.port: .*less than or equal to 65535, got 81230"),
        (('position_unit = "um"', 'position_unit = "inch"'), "unit 'inch' is not a length; allowed: m, mm"),
        (("energy_ev = 8800", "energy_ev = -1"), r"reconstruction\.geometry\.energy_ev: .*greater than 50, got -1"),
        (("batch_size = 8", 'precision = "fp8"'), r"reconstruction\.precision: .*'bf16' or 'fp16', got 'fp8'"),
        (("batch_size = 8", "batch_sise = 8"), r"reconstruction\.batch_sise: unknown; allowed: geometry, keys, pace"),
        (('worker = "thread"', 'worker = "fiber"'), r"reconstruction\.worker: .*'process' or 'thread'.*got 'fiber'"),
        (("[catalog]", "[catalog"), "not TOML"),
        (("port = 8123", "port = " + "[" * 9_000), "not TOML: maximum recursion"),
        (("port = 8123", "port = " + "9" * 9_000), "not TOML: Exceeds the limit"),
        (
            ("block = 32", "block = 32\n[reconstruction.refine]\nround = 1"),
            r"reconstruction\.refine\.round: unknown; allowed: sweeps, rounds",
        ),
        (("[reconstruction]\nmodel", "[reconstruction]\nmodle"), r"reconstruction\.model: Field required"),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(write, change, words) -> None:
    assert change[0] in FULL
    with pytest.raises(ValueError, match=words) as caught:
        Config.load(write(FULL.replace(*change)))
    assert str(caught.value).startswith("configuration ")


def test_a_catalog_elsewhere_takes_no_serving_options(write) -> None:
    text = '[catalog]\naddress = "beamline"\nport = 8000\n[reconstruction]\nmodel = "m"\n'
    with pytest.raises(ValueError, match="port: for a folder to serve only"):
        Config.load(write(text))

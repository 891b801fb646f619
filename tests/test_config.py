"""The configuration file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.config import CONFIG_VARIABLE, Config, LearningSection, ReconstructionConfig
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.settings import LiveKeywords, fields_of, with_keywords

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


def named(section: Any, where: str) -> set[str]:
    """Every option of a section, by its place in the file."""
    found: set[str] = set()
    for name, kind in fields_of(section).items():
        inner = named(kind, f"{where}.{name}")
        found |= inner or {f"{where}.{name}"}
    return found - {f"{where}.sources"}  # of a geometry: where it came from is found, not configured


def said_in(text: str) -> dict[str, str]:
    """Every assignment of a TOML file, also in a comment, with its value, by its place."""
    table, said = "", {}
    for line in text.splitlines():
        if header := re.match(r"(?:# )?\[([\w.]+)\]$", line):
            table = header[1]
        elif assigned := re.match(r"(?:# )?(\w+) = (.*)$", line):
            said[f"{table}.{assigned[1]}"] = assigned[2]
    return said


def test_the_example_says_every_option_of_a_reconstruction_and_of_learning(repository) -> None:
    said = said_in((repository / "docs/how-to/ptychonn.toml").read_text())
    options = named(ReconstructionConfig, "reconstruction") | named(LearningSection, "learning")
    assert options - set(said) == {"reconstruction.geometry.wavelength_m"} & options  # instead of energy_ev
    assert {"reconstruction.preprocess.crop", "reconstruction.refine.tune_probe", "learning.round.gain"} < options


def test_each_value_of_the_example_is_taken(repository) -> None:
    said = said_in((repository / "docs/how-to/ptychonn.toml").read_text())
    geometry = "".join(f"{place.split('.')[-1]} = {value}\n" for place, value in said.items() if ".geometry." in place)
    for place, value in said.items():
        table, _, name = place.rpartition(".")
        given = tomllib.loads(f"[{table}]\n{geometry if 'geometry' in table else f'{name} = {value}'}")
        minimal = {"catalog": {"folder": "c"}, "reconstruction": {"model": "m"}}
        if place == "catalog.address":
            del minimal["catalog"]
        sections = {key: {**minimal.get(key, {}), **given.get(key, {})} for key in {*minimal, *given}}
        Config.model_validate(sections)


def test_what_may_be_said_by_itself_is_taken_from_the_file_too(write, tmp_path) -> None:
    more = 'x_key = "px"\nflush_s = 0.1\nmask = "mask.npy"\nrefine = true\n'
    section = Config.load(write(f'[catalog]\nfolder = "c"\n[reconstruction]\nmodel = "m"\n{more}')).reconstruction
    assert (section.keys, section.pace) == (DataKeys(x="px"), Timing(flush_s=0.1))
    assert section.mask == tmp_path / "mask.npy"
    with pytest.raises(ValueError, match=r"mask '.*/mask\.npy': no such file"):
        with_keywords(section, {}, LiveKeywords)
    np.save(tmp_path / "mask.npy", np.zeros((4, 4), bool))
    assert with_keywords(section, {}, LiveKeywords) == section


def test_a_folder_beside_the_files_own_is_named_without_going_back(write, tmp_path) -> None:
    catalog = '[catalog]\nfolder = "../catalog"\nreadable = ["../frames"]\n'
    section = Config.load(write(catalog + '[reconstruction]\nmodel = "m"\n')).catalog
    assert (section.folder, section.readable) == (tmp_path.parent / "catalog", (tmp_path.parent / "frames",))


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
        (
            ("batch_size = 8", "batch_sise = 8"),
            r"reconstruction\.batch_sise: .* geometry, keys, .*, x_key, y_key, flush_s",
        ),
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

"""Geometry: the one place where units are converted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluesky_ptychonn.optics.geometry import HC_EV_M, LENGTH_UNITS, Geometry, to_metres

VELOCIPROBE = {"energy_ev": 8800.0, "distance_m": 1.92, "pixel_pitch_m": 75e-6, "frame_shape": (128, 128)}


def test_object_pixel_of_the_velociprobe_scan() -> None:
    # shared/data/README.md gives 28.2 nm for these nominal values.
    assert Geometry(**VELOCIPROBE).object_pixel_m == pytest.approx(28.2e-9, abs=0.05e-9)


def test_wavelength_against_codata() -> None:
    planck, light, charge = 6.62607015e-34, 299792458.0, 1.602176634e-19
    assert pytest.approx(planck * light / charge, rel=1e-12) == HC_EV_M


@given(st.floats(1e-9, 1e-3))
def test_pixels_and_metres_are_inverse(length: float) -> None:
    geometry = Geometry(**VELOCIPROBE)
    assert geometry.to_m(geometry.to_px(length)) == pytest.approx(length)


@pytest.mark.parametrize(
    ("metres", "spellings"),
    [
        (1.0, "m M metre meters Meter"),
        (1e-2, "cm centimetre"),
        (1e-3, "mm MM Mm millimeter Millimetres MILLIMETER"),
        (1e-6, "um UM µm μm micron Microns micrometer micrometres MICROMETER"),
        (1e-9, "nm NM nanometer nanometres"),
        (1e-10, "Å \N{ANGSTROM SIGN} angstrom Angstroms"),
        (1e-12, "pm picometre"),
    ],
)
def test_what_devices_call_a_length_is_one(metres: float, spellings: str) -> None:
    assert {to_metres(1.0, f" {unit} ", "stage_x") for unit in spellings.split()} == {metres}


@pytest.mark.parametrize("unit", sorted(LENGTH_UNITS))
def test_every_unit_scales_arrays_and_numbers_alike(unit: str) -> None:
    assert to_metres(np.array([2.0]), unit, "stage_x")[0] == to_metres(2.0, unit, "stage_x")


def test_unknown_unit_names_who_got_and_allowed() -> None:
    with pytest.raises(ValueError, match=r"stage_x: unit 'deg' is not a length; allowed: m, mm.*or a name in full"):
        to_metres(1.0, "deg", "stage_x")


def test_document_round_trip_says_where_values_came_from() -> None:
    geometry = Geometry.from_document(VELOCIPROBE)
    again = Geometry.from_document(geometry.model_dump(mode="json"), "catalog")
    assert again.object_pixel_m == geometry.object_pixel_m
    assert again.sources["energy_ev"] == "start document"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"energy_ev": None}, "geometry lacks energy_ev"),
        ({"energy_ev": 8.8}, "energy_ev: got 8.8"),
        ({"distance_m": -1.0}, "distance_m: got -1.0"),
        ({"frame_shape": (128, 64)}, "must be square"),
    ],
)
def test_a_wrong_document_is_refused_in_words(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Geometry.from_document({**VELOCIPROBE, **change})
    assert "Needed: energy_ev, distance_m" in str(caught.value)


def test_electrons_are_given_by_their_wavelength() -> None:
    # 1.9687 pm at 300 keV: Williams & Carter, Transmission Electron Microscopy, table 1.2 has 0.00197 nm.
    given = {"wavelength_m": 1.9687e-12, "distance_m": 0.1, "pixel_pitch_m": 150e-6, "frame_shape": (128, 128)}
    geometry = Geometry.from_document(given)
    assert geometry.object_pixel_m == pytest.approx(1.9687e-12 * 0.1 / (128 * 150e-6))
    assert Geometry.model_validate_json(geometry.model_dump_json()) == geometry
    both = Geometry.from_document({**given, "energy_ev": 300e3})
    assert (both.beam, both.object_pixel_m) == ("300 keV, 1.969 pm", geometry.object_pixel_m)
    assert Geometry.from_document(both.model_dump(mode="json")) == both.model_copy()
    with pytest.raises(ValueError, match=r"of electrons of this energy give wavelength_m, 1\.969e-12 m"):
        Geometry.from_document({**given, "wavelength_m": None, "energy_ev": 300e3})
    with pytest.raises(ValueError, match=r"contradict each other: photons .* 4\.13281e-12 m, electrons 1\.9687"):
        Geometry.from_document({**given, "wavelength_m": 3e-12, "energy_ev": 300e3})


def test_of_photons_documents_stay_as_they_were() -> None:
    geometry = Geometry(**VELOCIPROBE)
    assert set(geometry.model_dump(mode="json")) == {*VELOCIPROBE, "sources"}
    changed = geometry.model_copy(update={"energy_ev": 4400.0})
    assert changed.wavelength_m == pytest.approx(2 * geometry.wavelength_m)
    with pytest.raises(ValueError, match="greater than 50"):
        geometry.model_copy(update={"energy_ev": 1.0})


def test_no_document_at_all() -> None:
    with pytest.raises(ValueError, match="start document: no geometry"):
        Geometry.from_document(None)

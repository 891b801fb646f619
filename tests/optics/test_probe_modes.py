"""The strongest mode of a partly coherent beam, against the frames that all modes make."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import unitary_group

from bluesky_ptychonn.optics.probe_modes import strongest_mode


def test_mixed_modes_are_taken_apart() -> None:
    rng = np.random.default_rng(3)
    waves = np.linalg.qr(rng.standard_normal((64, 3)) + 1j * rng.standard_normal((64, 3)))[0].T.reshape(3, 8, 8)
    modes = waves * np.sqrt(np.array([50.0, 30.0, 20.0]))[:, None, None]
    mixed = np.tensordot(unitary_group.rvs(3, random_state=4), modes, 1)
    # No mixing changes a frame, so none may change the answer.
    np.testing.assert_allclose(
        (np.abs(np.fft.fft2(mixed)) ** 2).sum(0), (np.abs(np.fft.fft2(modes)) ** 2).sum(0), rtol=1e-9
    )
    found = strongest_mode(mixed, "test")
    alike = abs(np.vdot(found.wave, modes[0])) / 50
    assert (alike, found.light_fraction, found.modes) == (pytest.approx(1), pytest.approx(0.5), 3)


def test_one_mode_is_left_as_it_is(caplog) -> None:
    wave = np.arange(16.0).reshape(1, 1, 4, 4) * 1j
    found = strongest_mode(wave, "test")
    np.testing.assert_array_equal(found.wave, wave[0, 0])
    assert (found.light_fraction, found.note, caplog.text) == (1.0, "", "")

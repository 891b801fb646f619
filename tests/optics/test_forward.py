"""The torch forward model against NumPy, and against its own adjoint with a complex probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bluesky_ptychonn.optics.forward import (
    far_field,
    far_field_adjoint,
    intensity,
    to_detector_order,
    to_fft_order,
)
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, crop


def complex_normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def test_intensity_agrees_with_the_numpy_simulator() -> None:
    experiment = SimulatedExperiment.demo()
    patch = torch.from_numpy(crop(experiment.sample, 320, 320, 64))
    probe = torch.from_numpy(experiment.probe) * experiment.photons**0.5
    ours = intensity(patch[None], probe)[0].numpy()
    np.testing.assert_allclose(ours, experiment.intensity_at(0, 0), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("size", [8, 33])
def test_adjoint_with_a_complex_probe(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    probe, patch, far = (complex_normal(generator, size, size) for _ in range(3))
    left = torch.vdot(far_field(patch, probe).ravel(), far.ravel())
    right = torch.vdot(patch.ravel(), far_field_adjoint(far, probe).ravel())
    torch.testing.assert_close(left, right)


def test_gradient_of_the_likelihood_is_the_adjoint_of_its_residual() -> None:
    """Oracle: dL/do* = A*((1 - n / I) A o), written out, against autograd."""
    generator = torch.Generator().manual_seed(2)
    probe, patch = complex_normal(generator, 16, 16), complex_normal(generator, 16, 16).requires_grad_()
    counts = torch.rand(16, 16, dtype=torch.float64, generator=generator) * 5
    expected = intensity(patch, probe)
    loss = torch.nn.functional.poisson_nll_loss(expected, counts, log_input=False, eps=0.0, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    far = far_field(patch, probe)
    residual = far * (1 - to_fft_order(counts) / far.abs().square())
    assert patch.grad is not None
    torch.testing.assert_close(patch.grad, 2 * far_field_adjoint(residual, probe).detach())


@pytest.mark.parametrize("size", [6, 7])
def test_orders_are_inverse(size: int) -> None:
    frame = torch.arange(float(size * size)).reshape(size, size)
    assert torch.equal(to_detector_order(to_fft_order(frame)), frame)
    assert to_fft_order(frame)[0, 0] == frame[size // 2, size // 2]

"""Every distortion: shape, range, gradient, identity at strength zero, what moves with it."""

from __future__ import annotations

import pytest
import torch

from emask.train.noise import POOL, Distortion, Light, Misalignment, distort


def images() -> torch.Tensor:
    """Smooth (2, 3, 32, 32) pictures in [-0.8, 0.8]."""
    torch.manual_seed(0)
    coarse = torch.rand(2, 3, 6, 6) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


each = pytest.mark.parametrize("distortion", POOL, ids=lambda d: d.name)


@each
def test_strength_zero_is_the_identity(distortion: Distortion) -> None:
    x = images()
    assert torch.equal(distortion([x], 0.0, seeded())[0], x)


@each
def test_shape_range_and_effect(distortion: Distortion) -> None:
    x = images()
    y = distortion([x], 1.0, seeded())[0]
    assert y.shape == x.shape
    assert y.abs().max() <= 1 + 1e-5
    assert (y - x).abs().mean() > 1e-3


@each
def test_gradient_reaches_the_image(distortion: Distortion) -> None:
    x = images().requires_grad_(True)
    distortion([x], 0.7, seeded())[0].sum().backward()
    assert x.grad is not None
    assert (x.grad.abs() > 0).float().mean() > 0.5


@each
def test_same_seed_same_result(distortion: Distortion) -> None:
    x = images()
    assert torch.equal(distortion([x], 0.6, seeded())[0], distortion([x], 0.6, seeded())[0])


@each
def test_references_move_only_with_geometry_and_light(distortion: Distortion) -> None:
    x = images()
    moved = distortion([x, x.clone()], 0.8, seeded())
    if isinstance(distortion, (Misalignment, Light)):
        assert torch.equal(moved[0], moved[1])
    else:
        assert torch.equal(moved[1], x)


def test_stronger_is_worse() -> None:
    x = images()
    for distortion in POOL:
        weak, strong = (float((distortion([x], s, seeded())[0] - x).abs().mean()) for s in (0.2, 1.0))
        assert strong > weak, distortion.name


def test_pool_draws_are_seeded_and_vary() -> None:
    x = images()
    one = distort([x], seeded())[0]
    assert torch.equal(one, distort([x], seeded())[0])
    generator = seeded()
    assert len({float(distort([x], generator)[0].sum()) for _ in range(8)}) > 2

"""Distillation: the joint space keeps cosines, views stay in range, the student reads what it is given."""

from __future__ import annotations

import pytest
import torch

from emask.nets.recognizer import Recognizer
from emask.train.distill import TeacherSpace, augment
from emask.train.surrogates import Surrogate


def test_joint_cosine_is_the_teachers_mean_cosine(surrogates: list[Surrogate]) -> None:
    space = TeacherSpace(surrogates)
    x = torch.rand(2, 3, 128, 128) * 2 - 1
    joint = space.joint(x)
    singles = [float((e[0] * e[1]).sum()) for e in (s(x) for s in surrogates)]
    assert float((joint[0] * joint[1]).sum()) == pytest.approx(sum(singles) / 2, abs=1e-5)
    torch.testing.assert_close(joint.norm(dim=1), torch.ones(2))


def test_projection_keeps_the_leading_directions(surrogates: list[Surrogate]) -> None:
    torch.manual_seed(0)
    space = TeacherSpace(surrogates)
    basis = torch.linalg.qr(torch.randn(400, 400))[0][:, :10]
    joint = torch.nn.functional.normalize(torch.randn(900, 10) @ basis.T, dim=1)
    space.fit(joint)
    assert space.projection.shape == (400, 256)
    kept = space.project(joint)
    torch.testing.assert_close(kept @ kept.T, joint @ joint.T, atol=1e-4, rtol=0)


def test_views_keep_shape_and_range_and_are_seeded() -> None:
    x = torch.rand(4, 3, 128, 128) * 2 - 1
    one = augment(x, torch.Generator().manual_seed(1), 0.5)
    assert one.shape == x.shape
    assert one.abs().max() <= 1
    assert torch.equal(one, augment(x, torch.Generator().manual_seed(1), 0.5))
    assert not torch.equal(one, augment(x, torch.Generator().manual_seed(2), 0.5))


def test_segments_end_where_the_teachers_stages_end() -> None:
    features = Recognizer().eval().features(torch.zeros(1, 3, 112, 112))
    shapes = [tuple(f.shape[1:3]) for f in features]
    assert shapes == [(64, 28), (64, 28), (64, 28), (128, 14), (128, 14), (128, 14), (128, 7), (128, 7)]

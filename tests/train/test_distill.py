"""Distillation: the joint space keeps cosines, views stay in range, the student reads what it is given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from emask.engine import open_engine
from emask.errors import TrainingError
from emask.face.align import INNER
from emask.nets.recognizer import COMPACT, WIDE, Recognizer
from emask.recognize.cards import Card
from emask.train.data import Crops
from emask.train.distill import (
    DistillConfig,
    TeacherSpace,
    _further,
    _Hints,
    _save,
    augment,
    distill,
    embed_all,
    fits,
    stage_nodes,
)  # fmt: skip
from emask.train.export import export_run, to_onnx
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


@pytest.fixture(scope="module")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    """An untrained network of the refiner's own form, as an ONNX file with a card."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    teacher = Recognizer(WIDE).eval()
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # equal constants are written once, which onnx2torch cannot read
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    to_onnx(teacher, "recognizer", path, INNER)
    grey = (127.5, 127.5, 127.5)
    return Surrogate(Card("wide", path, size=(INNER, INNER), mean=grey, std=grey)).eval()


def test_a_teacher_of_the_students_form_is_read_where_its_segments_end(
    wide_teacher: Surrogate, surrogates: list[Surrogate]
) -> None:
    student = Recognizer(WIDE)
    assert len(set(stage_nodes(wide_teacher, student))) == len(student.segments) == 1 + len(WIDE.segments)
    assert fits(wide_teacher, WIDE)
    assert not fits(wide_teacher, COMPACT)  # its widths are others
    assert not fits(surrogates[0], WIDE)
    x = torch.rand(2, 3, INNER, INNER) * 2 - 1
    features, embedding = _Hints(wide_teacher, student)(x)
    assert [f.shape[1:] for f in features] == [f.shape[1:] for f in student.eval().features(x)]
    torch.testing.assert_close(embedding, wide_teacher(x))


def test_the_students_own_masks_are_grey_and_within_their_budgets() -> None:
    torch.manual_seed(0)
    budget = torch.tensor([2.0, 8.0]).view(2, 1, 1, 1)
    mask = torch.zeros(2, 1, INNER, INNER)
    for number in range(3):
        mask = _further(mask, torch.randn(2, 3, INNER, INNER), budget)
        norm = mask.square().sum((1, 2, 3)).sqrt()
        assert (norm <= budget.flatten() * (1 + 1e-5)).all()
        if number == 0:
            torch.testing.assert_close(norm, 0.6 * budget.flatten())
    along = torch.ones(2, 3, INNER, INNER)
    assert (_further(torch.zeros(2, 1, INNER, INNER), along, budget) > 0).all()  # up the gradient, not down


def test_a_refiner_is_distilled_and_exported(wide_teacher: Surrogate, tmp_path: Path) -> None:
    """A few steps, the last of them on masked faces; what is written is a recognizer of the wide form."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 128, 128, 3), dtype=np.uint8)
    crops = Crops(pixels, np.arange(12), [f"{i}.jpg" for i in range(12)], np.arange(12) % 4 == 0)
    space = TeacherSpace([wide_teacher])
    space.fit(embed_all(space, crops, np.arange(12), bf16=False), WIDE.embedding)
    worn = []

    def masked(faces: torch.Tensor, budgets: torch.Tensor) -> torch.Tensor:
        worn.append(len(faces))
        assert faces.shape[1:] == (3, 128, 128) and len(budgets) == len(faces)
        return faces + 0.01

    config = DistillConfig(batch=4, worn=0.0, forced=0.0, replays=2, bf16=False)
    student = distill(crops, space, config, 0.03, tmp_path / "refiner.pt", lambda line: None, WIDE, masked)
    assert worn and set(worn) == {2} and student.form == WIDE
    assert export_run(tmp_path, tmp_path / "models") == ["refiner"]
    manifest = json.loads((tmp_path / "models" / "manifest.json").read_text())
    assert manifest["models"]["refiner"]["outputs"][0]["shape"] == ["batch", 512]
    x = torch.rand(1, 3, INNER, INNER) * 2 - 1
    engine = open_engine(recognizer=tmp_path / "models" / "refiner.onnx", device="cpu")
    with torch.no_grad():
        np.testing.assert_allclose(engine.embed(x.numpy()), student(x).numpy(), atol=1e-4)


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: object, file: Path) -> None:
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="No space left") as caught:
        _save(tmp_path / "recognizer.pt", Recognizer(), TeacherSpace([]), 1)
    assert "--resume" not in caught.value.hint and not list(tmp_path.iterdir())

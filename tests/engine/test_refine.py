"""Refining masks by gradient steps: what it gains, what it keeps, and that it does nothing where there is no mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from emask.engine import Engine, open_engine, refined
from emask.engine.refine import Refinement, RefiningEngine, budgets, refine
from emask.errors import EmaskError
from emask.face.align import INNER, MARGIN, feather

SQUARE = slice(MARGIN, MARGIN + INNER)
EPS = 12.0


@pytest.fixture
def plain(models: Path) -> Engine:
    return open_engine(models / "generator.onnx", models / "restorer.onnx", models / "recognizer.onnx", device="cpu")


def refining(plain: Engine, models: Path, restorer: bool = True, **settings: float) -> RefiningEngine:
    key = models / "restorer.onnx" if restorer else None
    return RefiningEngine(plain, models / "recognizer.onnx", key, "cpu", Refinement(**settings))  # type: ignore[arg-type]


@pytest.fixture
def crops() -> np.ndarray:
    """(3, 3, 128, 128) smooth pictures away from black and white."""
    waves = np.random.default_rng(0).normal(size=(3, 3, 8, 8))
    return np.ascontiguousarray(0.2 * np.kron(waves, np.ones((16, 16))).clip(-3, 3), dtype=np.float32)


@pytest.fixture
def target() -> np.ndarray:
    vector = np.random.default_rng(1).normal(size=256).astype(np.float32)
    return vector / np.linalg.norm(vector)


def cosine(engine: Engine, crops: np.ndarray, target: np.ndarray) -> np.ndarray:
    return engine.embed(crops[:, :, SQUARE, SQUARE]) @ target


def test_every_face_comes_closer_to_the_target(
    plain: Engine, models: Path, crops: np.ndarray, target: np.ndarray
) -> None:
    """The twin: without steps the mask is the generator's, bit for bit."""
    before = plain.protect(crops, target, w=0.0, eps=EPS)
    none = refining(plain, models, steps=0).protect(crops, target, w=0.0, eps=EPS)
    np.testing.assert_array_equal(none, before)
    attack = refining(plain, models, steps=15, owner=0.0, roughness=0.0, pixels=0.0, identity=0.0)
    after = attack.protect(crops, target, w=0.0, eps=EPS)
    gain = cosine(plain, crops + after, target) - cosine(plain, crops + before, target)
    assert (gain > 0.05).all()


def test_bfloat16_finds_masks_as_good(
    plain: Engine, models: Path, crops: np.ndarray, target: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever this machine would take by itself; the twin is the generator's mask."""
    engine = refining(plain, models, steps=10, pixels=0.0, identity=0.0)
    before = cosine(plain, crops + plain.protect(crops, target, w=0.0, eps=EPS), target)
    gains = []
    for fast in (True, False):
        monkeypatch.setattr("emask.engine.refine.bfloat16_is_fast", lambda fast=fast: fast)
        gains.append(cosine(plain, crops + engine.protect(crops, target, w=0.0, eps=EPS), target) - before)
    assert (gains[1] > 0.03).all()
    np.testing.assert_allclose(gains[0], gains[1], atol=0.01)
    assert not np.array_equal(*gains)


def test_budget_range_and_greyness_hold(plain: Engine, models: Path, crops: np.ndarray, target: np.ndarray) -> None:
    before = plain.protect(crops, target, w=0.0, eps=EPS)
    after = refining(plain, models, steps=5).protect(crops, target, w=0.0, eps=EPS)
    assert after.shape == before.shape and after.dtype == np.float32
    assert (np.sqrt((after**2).sum((1, 2, 3))) <= EPS * (1 + 1e-5)).all()
    assert np.abs(crops + after).max() <= 1 + 1e-6
    assert np.ptp(after, axis=1).max() < 1e-6  # the same in all channels, whatever the generator's was
    assert not after[:, :, 0].any() and not after[:, :, :, -1].any()  # feathered


def test_a_mask_grows_to_its_budget_where_the_generator_stops_short() -> None:
    """The twin: with injection it is as faint as the generator made it."""
    torch.manual_seed(0)
    projection = torch.nn.functional.normalize(torch.randn(8, 3 * 8 * 8), dim=1)

    def embed(images: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)
        return torch.nn.functional.normalize(small @ projection.T, dim=1)

    crop, target = 0.2 * torch.randn(2, 3, 128, 128), torch.eye(8)[:2]
    change = 0.01 * torch.from_numpy(feather())[None, None].expand(2, 3, -1, -1)
    start = change.square().sum((1, 2, 3)).sqrt()
    settings = Refinement(steps=8, lr=0.05, roughness=0.0)
    budget = budgets(change, torch.tensor([0.0, 0.3]), 3 * start)
    torch.testing.assert_close(budget, torch.stack([3 * start[0], start[1]]))
    refined = refine(crop, torch.zeros_like(crop), change, target, settings, embed, None, budget)
    grown = refined.square().sum((1, 2, 3)).sqrt()
    assert 2 * start[0] < grown[0] <= 3.001 * start[0]
    assert grown[1] <= 1.001 * start[1]


@pytest.mark.parametrize(("w", "eps"), [(1.0, EPS), (0.0, 0.0)])
def test_where_there_is_no_mask_none_is_made(
    plain: Engine, models: Path, crops: np.ndarray, target: np.ndarray, w: float, eps: float
) -> None:
    change = refining(plain, models, steps=3).protect(crops, target, w=w, eps=eps)
    np.testing.assert_allclose(change, 0, atol=1e-6)


def test_an_edit_stays_as_it_is(plain: Engine, models: Path, crops: np.ndarray, target: np.ndarray) -> None:
    labels = np.tile(np.eye(13, dtype=np.float32)[2], (3, 1))
    edit = plain.protect(crops, target, w=0.0, eps=0.0, b=labels)
    assert np.abs(edit).max() > 0.01
    change = refining(plain, models, steps=3).protect(crops, target, w=1.0, eps=EPS, b=labels)
    np.testing.assert_allclose(change, edit, atol=1e-5)


def test_a_mask_does_not_depend_on_its_batch(
    plain: Engine, models: Path, crops: np.ndarray, target: np.ndarray
) -> None:
    engine = refining(plain, models, steps=4)
    together = engine.protect(crops, target, w=0.0, eps=EPS)
    alone = np.concatenate([engine.protect(crops[i : i + 1], target, w=0.0, eps=EPS) for i in range(3)])
    # Adam makes full steps of gradients that are nothing but rounding; few pixels have such
    assert (np.abs(alone - together) > 1e-3).mean() < 1e-3
    np.testing.assert_array_equal(engine.protect(crops, target, w=0.0, eps=EPS), together)


def test_the_restorer_keeps_masks_erasable(
    plain: Engine, models: Path, crops: np.ndarray, target: np.ndarray
) -> None:
    """The twin: refined without the restorer, erasing leaves more behind."""

    def left(restorer: bool) -> float:
        engine = refining(plain, models, restorer, steps=10, pixels=50.0, roughness=0.0)
        protected = crops + engine.protect(crops, target, w=0.0, eps=EPS)
        return float(np.sqrt(np.mean((protected + engine.erase(protected) - crops) ** 2)))

    assert left(True) < 0.95 * left(False)


def test_terms_asked_now_and_then_weigh_as_much(
    plain: Engine, models: Path, crops: np.ndarray, target: np.ndarray
) -> None:
    """Restored faces keep away from the target about as far, asked in each second step or in each.

    The twin: without the terms they do not.
    """
    free = {"steps": 12, "owner": 0.0, "roughness": 0.0, "pixels": 0.0, "away_margin": -1.0}

    def restored(**settings: float) -> np.ndarray:
        engine = refining(plain, models, **free, **settings)
        protected = crops + engine.protect(crops, target, w=0.0, eps=EPS)
        return cosine(plain, (protected + engine.erase(protected)).astype(np.float32), target)

    without = restored(identity=0.0, away=0.0)
    each, second = (without - restored(identity=2.0, away=2.0, every=every) for every in (1, 2))
    assert (each > 0.01).all() and (second > 0.5 * each).all()


def test_terms_asked_now_and_then_spare_passes(crops: np.ndarray) -> None:
    """Through a counting recognizer: once for the owner, in each step for the attack, and for the restored faces."""
    passes = 0

    def embed(images: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)

    x = torch.from_numpy(crops)
    grey = torch.randn(len(x), 1, *x.shape[2:], generator=torch.Generator().manual_seed(0))
    change = 0.05 * grey.expand(x.shape)
    target = torch.nn.functional.normalize(torch.ones(len(x), 3), dim=1)
    for settings, expected in (
        (Refinement(steps=4, every=1), 1 + 4 + 4),
        (Refinement(steps=4, every=2), 1 + 4 + 2),
        (Refinement(steps=4, every=1, identity=0.0, away=0.0), 1 + 4),
    ):
        passes = 0
        budget = torch.ones(len(x))
        refine(x, torch.zeros_like(x), change, target, settings, embed, lambda images: -0.1 * images, budget)
        assert passes == expected


def test_refined_hands_the_rest_on(plain: Engine, models: Path, crops: np.ndarray) -> None:
    assert refined(plain, 0, models / "recognizer.onnx", None, "cpu") is plain
    engine = refined(plain, 2, models / "recognizer.onnx", None, "cpu")
    assert engine is not plain and engine.name == plain.name
    np.testing.assert_array_equal(engine.erase(crops), plain.erase(crops))


def test_where_refining_runs_is_told_where_it_differs(
    plain: Engine, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refining(plain, models).name == "ONNX Runtime CPU"
    plain.name = "ONNX Runtime CUDA"
    assert refining(plain, models).name == "ONNX Runtime CUDA, refined by torch CPU"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(EmaskError, match="CUDA was asked for"):
        RefiningEngine(plain, models / "recognizer.onnx", None, "cuda")


@pytest.fixture
def refiner(models: Path, tmp_path: Path) -> Path:
    """The tiny recognizer with another projection, on 96 numbers instead of 256."""
    model = onnx.load(str(models / "recognizer.onnx"))
    (projection,) = (constant for constant in model.graph.initializer if constant.name == "projection")
    other = np.random.default_rng(5).normal(size=(projection.dims[0], 96)).astype(np.float32)
    projection.CopyFrom(numpy_helper.from_array(other, "projection"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 96
    onnx.save(model, str(tmp_path / "refiner.onnx"))
    return tmp_path / "refiner.onnx"


def test_a_refiner_is_moved_too(plain: Engine, models: Path, crops: np.ndarray, refiner: Path) -> None:
    """The twin: with a weight of 0 it is not looked through, and masks are those without it."""
    shown = np.ascontiguousarray(np.roll(crops, 1, 0)[:, :, SQUARE, SQUARE])
    free = {"owner": 0.0, "roughness": 0.0, "pixels": 0.0, "identity": 0.0, "away": 0.0}

    def engine(weight: float, steps: int = 15) -> RefiningEngine:
        settings = Refinement(steps=steps, refiner=weight, **free)  # type: ignore[arg-type]
        return RefiningEngine(plain, models / "recognizer.onnx", None, "cpu", settings, refiner=refiner)

    both = engine(1.0)
    aim = both.embed_target(shown)
    own = plain.embed_target(shown)
    assert aim.shape[1] > own.shape[1] == 256
    np.testing.assert_array_equal(aim[:, :256], own)
    np.testing.assert_allclose(np.linalg.norm(aim[:, 256:], axis=1), 1, atol=1e-5)

    def likeness(change: np.ndarray) -> np.ndarray:
        seen = both.embed_target((crops + change)[:, :, SQUARE, SQUARE])
        return (seen[:, 256:] * aim[:, 256:]).sum(1)

    without = engine(0.0).protect(crops, aim, w=0.0, eps=EPS)
    assert (likeness(both.protect(crops, aim, w=0.0, eps=EPS)) > likeness(without) + 0.01).all()
    alone = refining(plain, models, restorer=False, steps=15, **free).protect(crops, own, w=0.0, eps=EPS)
    np.testing.assert_allclose(without, alone, atol=1e-6)
    # and no steps leave the generator's masks, whatever stands behind the target's first numbers
    np.testing.assert_array_equal(
        engine(1.0, 0).protect(crops, aim, w=0.0, eps=EPS), plain.protect(crops, own, w=0.0, eps=EPS)
    )


def test_out_of_memory_is_one_line(
    plain: Engine, models: Path, crops: np.ndarray, target: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: what is nobody's memory stays a program's error."""
    engine = refining(plain, models, steps=1)

    def failing(error: Exception) -> None:
        def refine(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(engine, "_refine", refine)

    failing(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(EmaskError, match="^out of memory"):
        engine.protect(crops, target, w=0.0, eps=EPS)
    failing(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        engine.protect(crops, target, w=0.0, eps=EPS)


def test_a_refiner_that_runs_out_of_memory_is_one_line(plain: Engine, models: Path, crops: np.ndarray) -> None:
    """When it is opened and when a target is embedded; the twin: what is nobody's memory stays a program's error."""

    class Failing(torch.nn.Module):
        error: Exception | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.error is not None:
                raise self.error
            return x.flatten(1)[:, :4]

    full, bug = RuntimeError("CUDA error: out of memory"), RuntimeError("shapes do not match")
    other = Failing()
    engine = RefiningEngine(plain, models / "recognizer.onnx", None, "cpu", refiner=other)
    shown = np.ascontiguousarray(crops[:, :, SQUARE, SQUARE])
    for error, kind, said in ((full, EmaskError, "^out of memory"), (bug, RuntimeError, "shapes")):
        other.error = error
        with pytest.raises(kind, match=said):
            RefiningEngine(plain, models / "recognizer.onnx", None, "cpu", refiner=other)
        for embed in (engine.embed_target, engine.embed_person):
            with pytest.raises(kind, match=said):
                embed(shown)

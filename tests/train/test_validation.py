"""Validation of networks whose scores are known: they do nothing, paste the target, bring the original back."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emask.errors import TrainingError
from emask.nets.generator import Editor, Generator, NetConfig
from emask.nets.restorer import Restorer
from emask.recognize import Recognizer
from emask.recognize.cards import Card
from emask.train.distill import to_float
from emask.train.validation import BATCH, Validation, choose_people

V, T = BATCH + 4, 3  # more people than go into a batch
EPS = 9.5


def photos(count: int, seed: int) -> np.ndarray:
    """(count, 2, 128, 128, 3) uint8: of each person a smooth picture, and the same with some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 9, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(128, 128), mode="bicubic")
    pair = torch.stack([smooth, smooth + 0.02 * torch.randn(smooth.shape, generator=generator)], 1)
    return (pair.clamp(0, 1) * 255).byte().permute(0, 1, 3, 4, 2).numpy().copy()


@pytest.fixture(scope="module")
def judges(
    tmp_path_factory: pytest.TempPathFactory, make_block_recognizer: Callable[[Path, int], Path]
) -> list[Recognizer]:
    """Two that compare pictures by the mean colour of blocks, of 8 x 8 and of 16 x 16 pixels."""
    found = []
    for side in (8, 16):
        path = make_block_recognizer(tmp_path_factory.mktemp("judge") / f"judge-{side}.onnx", side)
        # 0.1 is low for strangers on purpose: the clean rates are then neither 0 nor 1
        found.append(Recognizer(Card(f"judge-{side}", path, thresholds={"0.01": 0.1}), "cpu"))
    return found


@pytest.fixture(scope="module")
def targets() -> np.ndarray:
    return photos(T, 1)


@pytest.fixture(scope="module")
def validation(judges: list[Recognizer], targets: np.ndarray) -> Validation:
    return Validation(photos(V, 0), judges, torch.eye(256)[:T], targets)


class Paste(nn.Module):
    """Changes a face into its target's."""

    def __init__(self, targets: np.ndarray) -> None:
        super().__init__()
        self.faces = to_float(targets[:, 0])
        self.seen: list[Tensor] = []

    def forward(self, crop: Tensor, target: Tensor, a: Tensor, b: Tensor, w: Tensor, eps: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        assert a.shape == b.shape == (len(crop), 13) and not a.any() and not b.any() and not w.any()
        assert (eps == EPS).all()
        self.seen.append(crop)
        return self.faces[target[:, :T].argmax(1)] - crop


class Recall(nn.Module):
    """Changes a protected face back into the one that `Paste` met last."""

    def __init__(self, paste: Paste) -> None:
        super().__init__()
        self.paste = paste

    def forward(self, crop: Tensor) -> Tensor:
        return self.paste.seen[-1] - crop


class Nothing(nn.Module):
    def forward(self, crop: Tensor, *others: Tensor) -> Tensor:
        return torch.zeros_like(crop)


def tiny() -> tuple[Generator, Restorer]:
    torch.manual_seed(0)
    editor = Editor(NetConfig(widths=(4, 8, 8, 8), hidden=16))
    return Generator(editor), Restorer(editor)


@pytest.mark.parametrize("bf16", [False, True])
def test_untrained(validation: Validation, bf16: bool) -> None:
    scores = validation.score(*tiny(), EPS, "cpu", bf16)
    assert 0.0 < scores["asr"] < 1.0
    for key in ("asr", "dodge", "reverify"):
        for judge in ("", "@judge-8", "@judge-16"):
            assert scores[key + judge] == scores[f"{key}-clean{judge}"]
        assert scores[key] == pytest.approx((scores[f"{key}@judge-8"] + scores[f"{key}@judge-16"]) / 2)
    assert scores["reverify"] == 1.0 and scores["dodge"] == 0.0
    assert scores["psnr"] == 100.0 and 30 < scores["psnr-restored"] < 60  # JPEG is not taken off
    assert list(scores)[:8] == [
        "asr", "asr-clean", "dodge", "dodge-clean", "reverify", "reverify-clean", "psnr", "psnr-restored"
    ]  # fmt: skip
    assert len(scores) == 8 + 2 * 6


def test_pasted_and_brought_back(validation: Validation, targets: np.ndarray) -> None:
    paste = Paste(targets)
    scores = validation.score(paste, Recall(paste), EPS, "cpu", False)
    assert scores["asr"] == 1.0 and scores["dodge"] > 0.5
    assert scores["asr-clean"] < 0.6 and scores["dodge-clean"] == 0.0
    assert scores["reverify"] == scores["reverify-clean"] == 1.0
    assert scores["psnr"] < 20 and scores["psnr-restored"] == 100.0
    # the twin whose restorer takes nothing off
    left = validation.score(paste, Nothing(), EPS, "cpu", False)
    assert left["reverify"] == pytest.approx(1 - left["dodge"]) and left["reverify-clean"] == 1.0
    assert left["asr"] == 1.0 and left["psnr-restored"] < 20


def test_the_target_is_judged_by_its_other_photo(judges: list[Recognizer], targets: np.ndarray) -> None:
    strangers = np.stack([targets[:, 0], 255 - targets[:, 1]], 1)
    scores = Validation(photos(4, 0), judges, torch.eye(256)[:T], strangers).score(
        Paste(targets), Nothing(), EPS, "cpu", False
    )
    assert scores["asr"] == 0.0


def test_leaves_no_trace(validation: Validation) -> None:
    def states() -> tuple[bytes, bytes, object]:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()

    generator, restorer = tiny()
    generator.train()
    generator.encoder.eval()  # frozen, as in training
    parts = [*generator.modules(), *restorer.modules()]
    modes, before = [part.training for part in parts], states()
    assert True in modes and False in modes
    first = validation.score(generator, restorer, EPS, "cpu", True)
    assert [part.training for part in parts] == modes and states() == before
    assert torch.is_grad_enabled() and all(p.grad is None for p in generator.parameters())
    assert validation.score(generator, restorer, EPS, "cpu", True) == first


def test_modes_are_back_after_a_failure(validation: Validation) -> None:
    class Broken(Nothing):
        def forward(self, crop: Tensor, *others: Tensor) -> Tensor:
            raise RuntimeError("broken")

    broken = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        validation.score(broken, Nothing(), EPS, "cpu", False)
    assert broken.training and torch.is_grad_enabled()


def test_write(validation: Validation, tmp_path: Path) -> None:
    path = tmp_path / "validation.csv"
    scores = validation.score(Nothing(), Nothing(), EPS, "cpu", False)
    for stage, step in ((2, 10), (2, 20), (2, 30), (2, 20), (3, 10)):  # cut off after step 30, gone on before 20
        validation.write(path, stage, step, 1.0, scores)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["step"]) for row in rows] == [("2", "10"), ("2", "20"), ("3", "10")]
    assert float(rows[0]["psnr-restored"]) == pytest.approx(scores["psnr-restored"], abs=1e-3)
    assert list(rows[0]) == ["stage", "step", "minutes", *scores]


def test_refusals(judges: list[Recognizer], targets: np.ndarray) -> None:
    crops, given = photos(2, 0), torch.eye(256)[:T]
    for arguments in (
        (crops[:, :, :64], judges, given, targets), (crops.astype(np.float32), judges, given, targets),
        (crops[:0], judges, given, targets), (crops, [], given, targets), (crops, judges, given[:1], targets),
        (crops, [judges[0], judges[0]], given, targets),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            Validation(*arguments)  # type: ignore[arg-type]
    bare = Recognizer(replace(judges[0].card, thresholds={"0.1": 0.1}), "cpu")
    with pytest.raises(TrainingError, match="no threshold"):
        Validation(crops, [bare], given, targets)


def test_choose_people() -> None:
    names = [f"lfw/p{person}/p{person}_{photo}.jpg" for person in range(20) for photo in range(1 + person % 4)]
    people = np.array([int(name.split("/")[1][1:]) for name in names])

    def chosen(people: np.ndarray, names: list[str], count: int) -> list[list[str]]:
        pairs = choose_people(people, names, count)
        assert pairs.dtype == np.int64 and pairs.shape[1:] == (2,)
        return [[names[i] for i in pair] for pair in pairs]

    all_of_them = chosen(people, names, 100)
    assert len(all_of_them) == 15  # those with two photos or more
    assert all(a != b and a.split("/")[1] == b.split("/")[1] for a, b in all_of_them)
    assert len({a.split("/")[1] for a, _ in all_of_them}) == 15
    assert chosen(people, names, 6) == all_of_them[:6]
    assert [pair[0] for pair in all_of_them] != sorted(pair[0] for pair in all_of_them)
    # in another order, under other numbers, with another system's separators
    order = np.random.default_rng(0).permutation(len(names))
    assert chosen(99 - people[order], [names[i] for i in order], 6) == all_of_them[:6]
    there = chosen(people, [name.replace("/", "\\") for name in names], 6)
    assert [[name.replace("\\", "/") for name in pair] for pair in there] == all_of_them[:6]
    assert choose_people(people, names, 0).shape == choose_people(people[:1], names[:1], 5).shape == (0, 2)

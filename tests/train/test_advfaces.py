"""The training of AdvFaces' generator: it learns, leaves a whole file or none, and never sees people kept for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emask.bench import advfaces
from emask.bench.advfaces import Settings, Trainer, main, others, train
from emask.bench.peers.advfaces import AdvFaces, load_generator
from emask.errors import TrainingError
from emask.train.checkpoint import save
from emask.train.clock import Clock
from emask.train.data import Crops
from emask.train.dataset import TrainingSet
from emask.train.surrogates import Surrogate

TINY = Settings(width=4, critic=(4, 8), batch=4, rate=5e-3, bf16=False)


def test_a_few_steps_lower_the_loss_and_the_file_gives_the_generator_back(
    training_set: TrainingSet, surrogates: list[Surrogate], tmp_path: Path
) -> None:
    trainer = Trainer(training_set, surrogates, TINY)
    lines: list[str] = []
    rows: list[dict[str, torch.Tensor]] = []
    step = trainer.step
    trainer.step = lambda progress: rows.append(step(progress)) or rows[-1]  # type: ignore[method-assign,func-returns-value]
    train(trainer, Clock(1.0, steps=40), lines.append, every=0.0)
    assert trainer.steps == len(rows) == len(lines) == 40 and "step 40: loss" in lines[-1]
    assert all(bool(value.isfinite()) for row in rows for value in row.values())
    for name in ("loss", "identity"):
        first, last = (float(torch.stack([row[name] for row in part]).mean()) for part in (rows[:6], rows[-6:]))
        assert last < 0.95 * first, name
    assert float(rows[0]["norm"]) == 0.0 and 1.0 < float(rows[-1]["norm"]) < 30.0

    save(tmp_path / "advfaces.pt", trainer.state())
    read = load_generator(tmp_path / "advfaces.pt")
    assert not read.training and read.surrogates == ("one", "two")
    crop = training_set.crops(torch.arange(3), torch.zeros(3, dtype=torch.bool))
    here, there = (AdvFaces(g)(crop[:2], crop[2:]) for g in (trainer.generator, read))  # type: ignore[arg-type]
    assert here.any()
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-5)  # memory of another order, sums of another rounding


def test_without_weights_on_identity_it_learns_no_target(
    training_set: TrainingSet, surrogates: list[Surrogate]
) -> None:
    """The twin of the training above."""
    trainer = Trainer(training_set, surrogates, replace(TINY, identity=0.0, perturbation=0.0))
    rows = [trainer.step(0.1) for _ in range(12)]
    first, last = (float(torch.stack([row["identity"] for row in part]).mean()) for part in (rows[:6], rows[-6:]))
    assert last > 0.9 * first


def test_a_target_is_somebody_else() -> None:
    people = np.array([0] * 50 + [1])
    rng = np.random.default_rng(0)
    for _ in range(5):
        sources = rng.integers(51, size=20)
        assert (people[others(people, sources, rng)] != people[sources]).all()


def test_one_person_is_too_few(training_set: TrainingSet, surrogates: list[Surrogate]) -> None:
    alone = replace(training_set, people=np.zeros(len(training_set), np.int64))
    with pytest.raises(TrainingError, match="no two"):
        Trainer(alone, surrogates, TINY)


def test_weights_that_are_no_numbers_are_not_written(
    training_set: TrainingSet, surrogates: list[Surrogate]
) -> None:
    trainer = Trainer(training_set, surrogates, TINY)
    assert trainer.state()["training"]["steps"] == 0
    with torch.no_grad():
        next(trainer.generator.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="diverged"):
        trainer.state()


@pytest.fixture
def photos(training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crops:
    """Crops as though of a folder of photos; the last four people are kept for tests."""
    people = training_set.people
    crops = Crops(training_set.pixels.numpy(), people, [f"{i}.jpg" for i in range(len(people))], people >= 8)
    monkeypatch.setattr("emask.train.prepare.load_crops", lambda data, cache, progress, device: crops)
    monkeypatch.setattr(advfaces, "user_cache_path", lambda name: tmp_path)
    (tmp_path / "training").mkdir()
    return crops


def test_the_command_writes_a_file_for_the_peer(
    photos: Crops, recognizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "advfaces.pt"
    always = ["--data", str(tmp_path), "--recognizers", str(recognizer_folder), "--device", "cpu", "--out", str(out)]
    assert main([*always, "--minutes", "0.005", "--width", "2", "--batch", "2"]) == 0
    said = capsys.readouterr().err
    assert "16 crops, 8 people, surrogates one, two, cpu" in said and "step " in said and f"wrote {out}" in said
    assert load_generator(out).width == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["advfaces.pt", "training"]  # nothing half written


def test_the_command_refuses_what_cannot_be(
    photos: Crops, recognizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    always = ["--data", str(tmp_path), "--recognizers", str(recognizer_folder)]
    assert main([*always, "--out", str(tmp_path / "nowhere" / "advfaces.pt")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main([*always, "--out", str(tmp_path / "a.pt"), "--surrogate", "four"]) == 1
    assert "no recognizer named four" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*always, "--out", str(tmp_path / "a.pt"), "--batch", "0"])
    assert "--batch must be above 0" in capsys.readouterr().err
    assert not (tmp_path / "a.pt").exists()

"""The ablation: every variant differs from the preset in the one thing its name says, and the table shows them all."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emask.train.ablation import VARIANTS, main, table, variants
from emask.train.config import TrainConfig, preset

# What each variant may change, by the settings' names.
CHANGES = {
    "--attack meta": {"attack"},
    "--attack meta-first-order": {"attack"},
    "--attack ensemble": {"attack"},
    "--injection 0": {"injection"},
    "--noise none": {"noise"},
    "--no-curriculum": {"phases", "eps"},
    "--no-critic": {"weights"},
    "--no-owner-term": {"weights"},
}


def changed(one: TrainConfig, other: TrainConfig) -> set[str]:
    first, second = asdict(one), asdict(other)
    return {name for name in first if first[name] != second[name]}


def test_each_variant_changes_one_thing_of_the_preset() -> None:
    small = preset("small")
    made = variants(small)
    assert set(VARIANTS) - set(made) == {"--attack ensemble"}  # which the preset has already
    assert made["as the preset"] == small
    for name, config in made.items():
        assert changed(small, config) == CHANGES.get(name, set()), name
    weights = {name: asdict(made[name].weights) for name in ("--no-critic", "--no-owner-term")}
    assert weights["--no-critic"]["critic"] == 0 and weights["--no-critic"]["owner"] == small.weights.owner
    assert weights["--no-owner-term"]["owner"] == 0 and weights["--no-owner-term"]["critic"] == small.weights.critic


def test_the_table_has_a_line_for_each_row() -> None:
    scores = {"asr": 0.5, "dodge": 0.25, "reverify": 1.0, "psnr": 31.04, "psnr-restored": 36.0}
    clean = {name: scores[name] for name in ("asr", "dodge", "reverify")}
    text = table([
        {"variant": "clean photos", "seed": "", "steps": "", "minutes": 0.0, "scores": clean},
        {"variant": "--noise none", "seed": 1, "steps": 650, "minutes": 2.5, "scores": scores},
    ])  # fmt: skip
    lines = text.strip().splitlines()
    assert len(lines) == 4
    assert "| --noise none | 1 | 650 | 2.5 | 50.0 | 25.0 | 100.0 | 31.0 | 36.0 |" in lines


def test_stage_one_is_gone_on_with_only_where_it_is_of_these_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the second variant; gone on with; refused with another preset; begun anew with it."""
    begun: list[tuple[tuple[int, ...], bool]] = []
    left = 1

    def train(stages: tuple[int, ...], *rest: Any, resume: bool = False, **more: Any) -> SimpleNamespace:
        nonlocal left
        file = rest[4] / "stage1.pt"
        begun.append((stages, resume and file.exists()))
        if stages == (1,):
            file.touch()
        elif not left:
            raise KeyboardInterrupt
        else:
            left -= 1
        return SimpleNamespace(modules={"generator": None, "restorer": None})

    scores = dict.fromkeys([f"{a}{b}" for a in ("asr", "dodge", "reverify") for b in ("", "-clean")], 0.5)
    judge = SimpleNamespace(score=lambda *_: {**scores, "psnr": 30.0, "psnr-restored": 40.0})
    monkeypatch.setattr("emask.train.run.run_stages", train)
    monkeypatch.setattr("emask.train.place.join", lambda device: SimpleNamespace(device=torch.device("cpu")))
    for name in ("open_surrogates", "open_recognizers"):
        monkeypatch.setattr(f"emask.train.prepare.{name}", lambda *_: [])
    monkeypatch.setattr("emask.train.prepare.prepare", lambda *_, **__: SimpleNamespace(training=None))
    monkeypatch.setattr("emask.train.prepare.open_validation", lambda *_: judge)
    always = ["--data", "d", "--recognizers", "r", "--run", str(tmp_path), "--only", "as the preset", "noise none"]
    with pytest.raises(KeyboardInterrupt):
        main([*always, "--preset", "smoke"])
    assert begun == [((1,), False), ((2, 3), False), ((2, 3), False)]
    begun.clear()
    left = 9
    assert main([*always, "--preset", "small", "--resume"]) == 1
    assert "is of other settings" in capsys.readouterr().err and not begun
    assert main([*always, "--preset", "smoke", "--resume"]) == 0
    assert begun == [((1,), True), ((2, 3), False)]
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]) == 4
    begun.clear()
    assert main([*always, "--preset", "small"]) == 0
    assert begun == [((1,), False), ((2, 3), False), ((2, 3), False)]
    kept = json.loads((tmp_path / "ablation.json").read_text())
    assert len(kept["rows"]) == 3 and kept["settings"]["steps"] == list(preset("small").steps or ())


def test_timed_presets_and_unknown_variants_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    always = ["--data", str(tmp_path), "--recognizers", str(tmp_path), "--run", str(tmp_path / "run")]
    assert main([*always, "--preset", "cpu"]) != 0
    assert "steps" in capsys.readouterr().err
    assert main([*always, "--only", "nonsense"]) != 0
    assert "no such variant" in capsys.readouterr().err

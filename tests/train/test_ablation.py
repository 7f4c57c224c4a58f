"""The ablation: every variant differs from the preset in the one thing its name says, and the table shows them all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

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


def test_timed_presets_and_unknown_variants_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    always = ["--data", str(tmp_path), "--recognizers", str(tmp_path), "--run", str(tmp_path / "run")]
    assert main([*always, "--preset", "cpu"]) != 0
    assert "steps" in capsys.readouterr().err
    assert main([*always, "--only", "nonsense"]) != 0
    assert "no such variant" in capsys.readouterr().err

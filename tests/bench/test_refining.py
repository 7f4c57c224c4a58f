"""Trials of refining: their settings, and several recognizers as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from emask import weights
from emask.bench.refining import Joined, main, parse_trial
from emask.engine.refine import Refinement
from emask.errors import UsageError


def test_a_trial_is_what_ships_but_for_what_it_says() -> None:
    usual = weights.strength("medium")[1]
    assert parse_trial("") == (Refinement(), usual)
    assert parse_trial("steps=12,owner=1,eps=7") == (Refinement(steps=12, owner=1.0), 7.0)
    assert isinstance(parse_trial("steps=12")[0].steps, int)


@pytest.mark.parametrize(
    "text",
    ["stepps=3", "steps", "steps=a few", "owner=0.5 steps=3", "every=0", "steps=-1", "eps=nan", "eps=0", "refiner=-1"],
)
def test_what_is_no_trial_is_refused_before_anything_is_loaded(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError):
        parse_trial(text)
    arguments = ["--data", str(tmp_path), "--recognizers", str(tmp_path), "--trial", text]
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_joined_cosines_are_the_mean_of_each() -> None:
    class Unit(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.map = nn.Linear(12, rows)

        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(self.map(crops.flatten(1)), dim=1)

    torch.manual_seed(0)
    parts = [Unit(5), Unit(7)]
    both = Joined(parts)(crops := torch.randn(2, 3, 2, 2))
    means = sum((part(crops)[0] * part(crops)[1]).sum().item() for part in parts) / 2
    assert (both[0] * both[1]).sum().item() == pytest.approx(means, abs=1e-6)
    assert both.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-6)

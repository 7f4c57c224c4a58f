"""Whom stage 2 makes faces look like: shares, limits, nobody as their own target, and the budget on its way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from emask.train.config import Phase, TrainConfig
from emask.train.dataset import TrainingSet
from emask.train.targets import TargetDraw

PEOPLE, PHOTOS, BUILT_IN = 10, 3, 5
COUNT = PEOPLE * PHOTOS


@pytest.fixture(scope="module")
def faces() -> TrainingSet:
    """Three photos each of ten people, shuffled, and five built-in targets; every embedding differs from all others."""
    source = torch.Generator().manual_seed(0)

    def unit(rows: int, size: int) -> torch.Tensor:
        return nn.functional.normalize(torch.randn(rows, size, generator=source), dim=1)

    people = np.random.default_rng(0).permutation(np.arange(COUNT) % PEOPLE)
    return TrainingSet(
        torch.zeros(COUNT, 1, 1, 3, dtype=torch.uint8), people, torch.zeros(COUNT, 13), unit(COUNT, 256),
        [unit(COUNT, 8), unit(COUNT, 4)], unit(BUILT_IN, 256), [unit(BUILT_IN, 8), unit(BUILT_IN, 4)],
    )  # fmt: skip


def config(*phases: Phase, eps: float = 17.0) -> TrainConfig:
    return TrainConfig(phases=phases, eps=eps)


def drawn(faces: TrainingSet, phase: Phase, count: int = 3000) -> tuple[np.ndarray, np.ndarray, list[torch.Tensor]]:
    """Sources and what was drawn for them: a photo's index, or COUNT + a built-in target's; and what is to be hit."""
    rng = np.random.default_rng(1)
    sources = rng.integers(COUNT, size=count)
    identity, wanted = TargetDraw(faces, config(phase)).draw(sources, 0.5, rng)
    everybody = torch.cat([faces.identity, faces.target_identity])
    which = (identity @ everybody.T).argmax(1)
    assert torch.equal(identity, everybody[which])
    return sources, which.numpy(), wanted


def test_share_and_limits_are_those_of_the_phase(faces: TrainingSet) -> None:
    _, which, _ = drawn(faces, Phase(1.0, 3, 4, 0.6, 10.0, False))
    people = which[which < COUNT]
    # one source in ten is the person that was drawn, and gets a built-in target instead
    assert len(people) / len(which) == pytest.approx(0.6 * 0.9, abs=0.04)
    assert len(set(faces.people[people])) == 4
    assert set(people) == {i for i in range(COUNT) if faces.people[i] in set(faces.people[people])}  # all their photos
    counts = np.bincount(which[which >= COUNT] - COUNT, minlength=BUILT_IN)
    assert counts[3:].sum() == 0 and counts[:3].min() > 0.8 * counts[:3].mean()


def test_nobody_is_their_own_target(faces: TrainingSet) -> None:
    sources, which, _ = drawn(faces, Phase(1.0, 8, 100_000, 1.0, 10.0, False))
    of_people = which < COUNT
    assert (faces.people[which[of_people]] != faces.people[sources[of_people]]).all()
    assert len(set(faces.people[which[of_people]])) == PEOPLE
    assert 0.05 < 1 - of_people.mean() < 0.15  # those who drew themselves: a built-in target each
    assert set(which[~of_people]) == set(range(COUNT, COUNT + BUILT_IN))  # 8 were allowed, and 5 there are


@pytest.mark.parametrize("phase", [Phase(1.0, 2, 0, 1.0, 10.0, False), Phase(1.0, 2, 100, 0.0, 10.0, False)])
def test_without_people_or_share_all_targets_are_built_in(faces: TrainingSet, phase: Phase) -> None:
    assert set(drawn(faces, phase, 300)[1]) == {COUNT, COUNT + 1}


def test_a_person_is_to_be_hit_at_the_mean_of_their_photos(faces: TrainingSet) -> None:
    _, which, wanted = drawn(faces, Phase(1.0, 2, 100, 0.7, 10.0, False), 50)
    for k, rows in enumerate(wanted):
        for index, row in zip(which, rows, strict=True):
            if index < COUNT:
                own = faces.surrogate[k][torch.from_numpy(faces.people == faces.people[index])]
                expected = nn.functional.normalize(own.sum(0), dim=0)
            else:
                expected = faces.target_surrogate[k][index - COUNT]
            torch.testing.assert_close(row, expected)


def test_earlier_people_stay_when_a_phase_adds_more(faces: TrainingSet) -> None:
    few, more = (
        set(faces.people[which[which < COUNT]])
        for which in (drawn(faces, Phase(1.0, 1, count, 1.0, 10.0, False))[1] for count in (2, 5))
    )
    assert len(few) == 2 and len(more) == 5 and few < more


def test_the_budget_moves_linearly_to_each_phases_end(faces: TrainingSet) -> None:
    phases = (Phase(0.2, 1, 0, 0.0, 17.0, False), Phase(0.6, 2, 0, 0.0, 13.0, False), Phase(1.0, 3, 0, 0.0, 9.0, True))
    phase = TargetDraw(faces, config(*phases)).phase
    expected = [(0.0, 0, 17.0), (0.1, 0, 17.0), (0.2, 1, 17.0), (0.3, 1, 16.0), (0.5, 1, 14.0), (0.8, 2, 11.0)]
    for progress, number, eps in [*expected, (1.0, 2, 9.0), (1.01, 2, 9.0)]:
        assert phase(progress) == (number, pytest.approx(eps))
    # a start of its own
    assert TargetDraw(faces, replace(config(*phases), eps=21.0)).phase(0.1) == (0, pytest.approx(19.0))


def test_targets_follow_the_seed_alone(faces: TrainingSet) -> None:
    draw = TargetDraw(faces, config(Phase(1.0, 5, 100, 0.5, 10.0, False)))
    sources = np.arange(COUNT)
    first, again, other = (draw.draw(sources, 0.0, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)

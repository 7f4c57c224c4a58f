"""The preset `smoke`: in its few steps every stage learns, and one that stopped half-way goes on as if it had not.

The preset itself, on the tests' pictures and surrogates; for the command with photos see tests/cli/test_train.py.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emask.train import checkpoint, watch
from emask.train.config import TrainConfig, preset
from emask.train.dataset import Batch, TrainingSet
from emask.train.loop import Run, run_stage
from emask.train.place import Place
from emask.train.run import open_stage
from emask.train.stage import Setting
from emask.train.surrogates import Surrogate

MAIN = {1: "reconstruction", 2: "adversarial", 3: "pixels"}  # what a stage is there to lower
Terms = list[dict[str, float]]


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    config = preset("smoke")
    assert config.steps and not config.bf16  # else it would not repeat itself bit for bit
    return config


@pytest.fixture(scope="module")
def setting(training_set: TrainingSet, surrogates: list[Surrogate], config: TrainConfig) -> Setting:
    return Setting(training_set, config, Place(), surrogates)


def steps(setting: Setting, number: int) -> int:
    assert setting.config.steps
    return setting.config.steps[number - 1]


def train(number: int, setting: Setting, start: Path, folder: Path, resume: bool = False) -> Terms:
    """Train a stage, or go on with it; each step's terms.

    Args:
        start: with the checkpoint of the stage before.
        folder: of the run; the checkpoint from half-way is kept in it.
    """
    stage, terms = open_stage(number, setting, start), []
    step, path = stage.step, folder / f"stage{number}.pt"

    def noted(progress: float) -> dict[str, Tensor]:
        if stage.step_count == steps(setting, number) // 2:
            shutil.copy(path, path.with_suffix(".half"))
        values = step(progress)
        terms.append({name: value.item() for name, value in values.items()})
        return values

    stage.step = noted  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "draw_curves", lambda *_, **__: False)  # takes longer than the stage
        run_stage(stage, Run(folder, resume=resume, save_every=0.0))
    return terms


def main_loss(number: int, setting: Setting, folder: Path, trained: bool) -> float:
    """A stage's main loss where it begins, or ends, on all pictures with the same draws and without noise.

    From step to step other crops, other targets and a tighter budget change it by more than so few steps can.
    """
    stage = open_stage(number, replace(setting, config=replace(setting.config, noise=("none",))), folder)
    if trained:
        state = checkpoint.load(folder / f"stage{number}.pt", "")
        for name, module in stage.modules.items():
            module.load_state_dict(state[name])
    stage.update = lambda *_, **__: None  # type: ignore[method-assign]
    everyone = np.arange(len(stage.data))
    return stage.losses(Batch(everyone, everyone % 2 == 0, 0), 0.0)[MAIN[number]].item()


@pytest.fixture(scope="module")
def smoke(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Terms]]:
    """The folder of a whole run, and each stage's terms, step by step."""
    folder, threads = tmp_path_factory.mktemp("smoke"), torch.get_num_threads()
    torch.set_num_threads(1)
    terms = {number: train(number, setting, folder, folder) for number in MAIN}
    torch.set_num_threads(threads)
    return folder, terms


@pytest.mark.parametrize("number", MAIN)
def test_what_a_stage_is_there_to_lower_falls(
    smoke: tuple[Path, dict[int, Terms]], setting: Setting, number: int, one_thread: None
) -> None:
    folder, terms = smoke
    assert len(terms[number]) == steps(setting, number)
    assert all(np.isfinite(list(step.values())).all() for step in terms[number])
    first, last = (main_loss(number, setting, folder, trained) for trained in (False, True))
    assert last < 0.998 * first


@pytest.mark.parametrize("number", MAIN)
def test_a_stage_that_stopped_half_way_goes_on_bit_for_bit(
    smoke: tuple[Path, dict[int, Terms]], setting: Setting, tmp_path: Path, number: int, one_thread: None
) -> None:
    """The very next step's losses, and those of all that follow."""
    folder, terms = smoke
    half = steps(setting, number) // 2
    shutil.copy(folder / f"stage{number}.half", tmp_path / f"stage{number}.pt")
    again = train(number, setting, folder, tmp_path, resume=True)
    assert again[0] == terms[number][half] != terms[number][0]
    assert again == terms[number][half:]

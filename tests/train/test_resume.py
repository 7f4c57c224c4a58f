"""Interrupted runs go on as if nothing had happened: bit for bit, from any step, and after a kill."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from emask.errors import TrainingError
from emask.train import checkpoint, watch
from emask.train.config import TrainConfig, Weights
from emask.train.dataset import TrainingSet
from emask.train.loop import Run, run_stage
from emask.train.place import Place
from emask.train.run import check_before, open_stage
from emask.train.stage import Setting, Stage
from emask.train.surrogates import Surrogate

WORKER = Path(__file__).with_name("worker.py")
OpenStage = Callable[..., Stage]


def same(first: Any, second: Any) -> bool:
    """Whether two checkpoints, or parts of them, are equal bit for bit; but for the time they took."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            same(value, second[key]) for key, value in first.items() if key != "elapsed"
        )
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


@pytest.mark.parametrize(("number", "refined"), [(1, 0.0), (2, 0.0), (3, 0.0), (3, 0.7)])
def test_a_run_goes_on_bit_for_bit_wherever_it_was_interrupted(
    stage_of: OpenStage, tiny_config: TrainConfig, tmp_path: Path, number: int, refined: float, one_thread: None
) -> None:
    """At either end, and in the middle, where stage 1 labels the rest of the photos and stage 2's restorer joins."""
    assert tiny_config.steps is not None
    last = tiny_config.steps[number - 1]
    name = f"stage{number}.pt"
    config = replace(tiny_config, refined=refined, refine_every=2, replay=6)
    whole = stage_of(number, config)
    step = whole.step

    def keep_and_step(progress: float) -> dict[str, Tensor]:
        if whole.step_count:
            shutil.copy(tmp_path / name, tmp_path / f"after-{whole.step_count}.pt")
        return step(progress)

    whole.step = keep_and_step  # type: ignore[method-assign]
    run_stage(whole, Run(tmp_path, save_every=0.0))
    expected = checkpoint.load(tmp_path / name, "")
    if number == 1:
        assert expected["extra"]["labels"].any(1).all()  # photos without labels were given some on the way
    following = {key: value.item() for key, value in whole.step(1.0).items()}
    rows = list(csv.reader((tmp_path / f"stage{number}.csv").open()))
    assert len(rows) == 1 + last

    for interrupted in sorted({1, last // 2 - 1, last // 2, last - 1}):
        folder = tmp_path / str(interrupted)
        folder.mkdir()
        shutil.copy(tmp_path / f"after-{interrupted}.pt", folder / name)
        shutil.copy(tmp_path / f"stage{number}.csv", folder)  # with rows of steps that were lost
        again = stage_of(number, config)
        run_stage(again, Run(folder, resume=True, save_every=0.0))
        assert same(checkpoint.load(folder / name, ""), expected), f"interrupted after step {interrupted}"
        if interrupted in (1, last - 1):
            assert {key: value.item() for key, value in again.step(1.0).items()} == following
        # a row for each step, each once: the same numbers
        columns, wanted = (watch.read_columns(at / f"stage{number}.csv") for at in (folder, tmp_path))
        assert columns.keys() == wanted.keys()
        for column in columns.keys() - {"minutes"}:
            np.testing.assert_array_equal(columns[column], wanted[column])


def test_the_comparison_sees_a_run_that_did_not_go_on(stage_of: OpenStage, run: Path, tmp_path: Path) -> None:
    """The must-fail twin: with the random sources of another step, the end is another one."""
    state = checkpoint.load(run / "stage2.pt", "")
    stages = [stage_of(2), stage_of(2)]
    for stage, changed in zip(stages, (state, {**state, "draws": stages[1].draws.state()}), strict=True):
        stage.restore(changed)
        stage.step(1.0)
    assert not same(stages[0].modules["generator"].state_dict(), stages[1].modules["generator"].state_dict())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attack": "meta"}, "other attack (ensemble, now meta)"),
        ({"noise": ("jpeg",)}, "other noise"),
        ({"weights": Weights(owner=0.0)}, "other weights"),
        ({"seed": 7}, "other seed (0, now 7)"),
    ],
)
def test_a_run_goes_on_with_the_settings_it_began_with(
    stage_of: OpenStage, run: Path, tiny_config: TrainConfig, change: dict[str, Any], said: str
) -> None:
    state = checkpoint.load(run / "stage2.pt", "")
    with pytest.raises(TrainingError) as caught:
        stage_of(2, replace(tiny_config, **change)).restore(state)
    assert said in caught.value.message and "--resume" in caught.value.hint
    # how long and how fast may change, and an older version kept no settings
    stage_of(2, replace(tiny_config, steps=(9, 9, 9), lr=(1e-4, 1e-4, 1e-4), watch=5.0)).restore(state)
    del state["settings"]
    stage_of(2, replace(tiny_config, **change)).restore(state)


def test_a_run_goes_on_with_the_photos_it_began_with(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig, run: Path
) -> None:
    others = replace(training_set, pixels=training_set.pixels.flip(0))
    stage = open_stage(2, Setting(others, tiny_config, Place(), surrogates), run)
    with pytest.raises(TrainingError, match=r"stage2\.pt was begun with other photos$"):
        stage.restore(checkpoint.load(run / "stage2.pt", ""))


def test_a_finished_stage_is_left_as_it_is(stage_of: OpenStage, run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "stage2.pt", tmp_path)
    run_stage(stage_of(2), Run(tmp_path, resume=True))
    assert same(checkpoint.load(tmp_path / "stage2.pt", ""), checkpoint.load(run / "stage2.pt", ""))


def test_a_stage_that_begins_anew_takes_the_later_ones_away(
    stage_of: OpenStage, run: Path, tmp_path: Path
) -> None:
    """Not before its first checkpoint is there, and not when it goes on."""
    for number in (1, 2, 3):
        shutil.copy(run / f"stage{number}.pt", tmp_path)
    run_stage(stage_of(2), Run(tmp_path, resume=True))
    assert (tmp_path / "stage3.pt").exists()
    stage = stage_of(2)
    step, there = stage.step, []

    def watched(progress: float) -> dict[str, Tensor]:
        there.append((tmp_path / "stage3.pt").exists())
        return step(progress)

    stage.step = watched  # type: ignore[method-assign]
    run_stage(stage, Run(tmp_path, save_every=0.0))
    assert there[0] and not any(there[1:])
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["stage1.pt", "stage2.pt"]


# stages asked for, those there are, whether resumed: what would be lost
LOST = [
    ((1, 2, 3), (), False, ()),
    ((1, 2, 3), (1,), False, (1,)),
    ((2,), (1, 2, 3), False, (2, 3)),
    ((3,), (1, 2), False, ()),
    ((1,), (2, 3), False, (2, 3)),
    ((1, 2, 3), (1, 2), True, ()),
    ((1, 2, 3), (1, 3), True, (3,)),
    ((3,), (3,), True, ()),
]


@pytest.mark.parametrize(("stages", "there", "resume", "lost"), LOST)
def test_checkpoints_are_lost_by_force_only(
    tmp_path: Path, stages: tuple[int, ...], there: tuple[int, ...], resume: bool, lost: tuple[int, ...]
) -> None:
    for number in there:
        (tmp_path / f"stage{number}.pt").touch()
    check_before(tmp_path, stages, None, resume, force=True)
    if not lost:
        check_before(tmp_path, stages, None, resume)
        return
    with pytest.raises(TrainingError, match="would be lost") as caught:
        check_before(tmp_path, stages, None, resume)
    assert [n for n in (1, 2, 3) if f"stage{n}.pt" in caught.value.message] == list(lost)
    assert "--force" in caught.value.hint


def test_a_run_does_not_replace_what_it_begins_with(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "stage3.pt", tmp_path)
    with pytest.raises(TrainingError, match="would be replaced"):
        check_before(tmp_path, (1, 2, 3), tmp_path / "stage3.pt", force=True)
    check_before(tmp_path / "other", (1, 2, 3), tmp_path / "stage3.pt")


def test_a_longer_run_goes_on_from_a_finished_one(
    stage_of: OpenStage, run: Path, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    shutil.copy(run / "stage2.pt", tmp_path)
    before = checkpoint.load(tmp_path / "stage2.pt", "")
    run_stage(stage_of(2, replace(tiny_config, steps=(4, before["step"] + 3, 4))), Run(tmp_path, resume=True))
    after = checkpoint.load(tmp_path / "stage2.pt", "")
    assert after["step"] == before["step"] + 3
    assert after["elapsed"] > before["elapsed"]


def test_time_ends_a_stage_across_interruptions(
    stage_of: OpenStage, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    """By minutes: the second half begins where the first one's clock stood."""
    timed = replace(tiny_config, steps=None, minutes=(1.0, 1.0, 0.01))
    run_stage(stage_of(3, timed), Run(tmp_path))
    state = checkpoint.load(tmp_path / "stage3.pt", "")
    assert state["step"] > 0 and state["elapsed"] >= 0.6
    run_stage(stage_of(3, timed), Run(tmp_path, resume=True))
    assert checkpoint.load(tmp_path / "stage3.pt", "")["step"] == state["step"]


def test_a_killed_run_goes_on_bit_for_bit(
    stage_of: OpenStage, training_set: TrainingSet, recognizer_folder: Path, tiny_config: TrainConfig, run: Path,
    tmp_path: Path, one_thread: None,
) -> None:  # fmt: skip
    """A process of its own, killed without a chance to clean up; what it was writing lies about half-written."""
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copy(run / "stage1.pt", killed)
    job = {"data": training_set, "recognizers": recognizer_folder, "pause": 0.5, "stages": [(2, tiny_config, killed)]}
    torch.save(job, tmp_path / "job.pt")
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path / "job.pt")],
            stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            until = time.monotonic() + 600  # on a machine that has other work
            while not (killed / "stage2.pt").exists() or checkpoint.load(killed / "stage2.pt", "")["step"] < 2:
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "output.txt").read_text()
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    assert 2 <= checkpoint.load(killed / "stage2.pt", "")["step"] < 8
    (killed / "stage2.partial").write_bytes((killed / "stage2.pt").read_bytes()[:1000])
    with (killed / "stage2.csv").open("a") as table:
        table.write("3,0.0")  # half a row

    run_stage(stage_of(2, folder=killed), Run(killed, resume=True))
    run_stage(stage_of(2), Run(tmp_path))
    assert same(checkpoint.load(killed / "stage2.pt", ""), checkpoint.load(tmp_path / "stage2.pt", ""))
    assert not (killed / "stage2.partial").exists()

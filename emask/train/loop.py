"""Running a stage: steps until its time is up, checkpoints, loss table, pictures.

What is only looked at (tables, pictures) must not end a run: where it cannot be written, a line says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emask.errors import ImageError, TrainingError
from emask.train import watch
from emask.train.checkpoint import load, room_for, save
from emask.train.clock import Clock, stage_clock
from emask.train.stage import Stage
from emask.train.validation import Validation
from emask.train.watch import LossTable

SAVE_EVERY = 180.0  # seconds between checkpoints

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Run:
    """Where a run lives and who is told about it.

    Attributes:
        folder: for `stageN.pt`, `stageN.csv`, `stageN-curves.png`, `stageN-samples.png`, `validation.csv`.
        report: called with the share of the stage done and a line of text.
        validation: scores the networks on people who are in no training, or None.
        resume: go on from the stage's checkpoint, if there is one.
        save_every: seconds between checkpoints.
    """

    folder: Path
    report: Report = lambda share, line: None
    validation: Validation | None = None
    resume: bool = False
    save_every: float = SAVE_EVERY


def run_stage(stage: Stage, run: Run) -> None:
    """Train a stage to its end and leave its checkpoint. Only the first process of several writes and reports.

    The first checkpoint of a stage that begins anew replaces those of later stages as well: they came from the old one.

    Raises:
        TrainingError: there is no room for its checkpoints, one cannot be written, or a loss is no number any more.
    """
    place, config = stage.place, stage.config
    path = run.folder / f"stage{stage.number}.pt"
    elapsed, resumed = 0.0, run.resume and path.exists()
    if resumed:
        state = load(path, "")
        stage.restore(state)
        elapsed = state["elapsed"]
    outdated = () if resumed else [run.folder / f"stage{number}.pt" for number in range(stage.number + 1, 4)]
    if place.first:
        room_for(path, stage.size())
        watch.keep_rows(run.folder / watch.VALIDATION, stage.step_count if resumed else -1, stage.number)
    crops, batch = len(stage.data), config.batch * place.world
    clock = stage_clock(config, stage.number, crops, batch, elapsed, stage.step_count)
    table = LossTable(run.folder / f"stage{stage.number}.csv", batch, stage.step_count if resumed else None)
    saved = watched = time.monotonic()
    progress = place.agree(clock.progress)
    while progress < 1:
        terms = stage.step(progress)
        clock.step = stage.step_count
        if place.first:
            table.add(terms)
            if table.due():
                _flush(table, stage, run, clock)
            now = time.monotonic()
            if now - saved > run.save_every:
                saved = now
                if table.waiting:  # what is in no row yet would be lost with the process
                    _flush(table, stage, run, clock)
                save(path, stage.state(clock.elapsed), outdated)
            if config.watch and now - watched > config.watch * 60:
                _look(stage, run, clock)
                watched = time.monotonic()
        progress = place.agree(clock.progress)
    if place.first:
        if table.waiting:
            _flush(table, stage, run, clock)
        save(path, stage.state(clock.elapsed), outdated)
        _look(stage, run, clock)


def _flush(table: LossTable, stage: Stage, run: Run, clock: Clock) -> None:
    """A row of the table and a line for whoever watches; and before they are saved, whether losses are numbers."""
    share = min(clock.progress, 1.0)
    try:
        line = table.flush(stage.step_count, clock.elapsed / 60)
    except (OSError, ImageError) as error:
        line = f"(not in {table.path.name}: {error})"
    run.report(share, f"stage {stage.number} step {stage.step_count}  {line}{_left(clock, share)}")
    lost = [name for name, value in table.means.items() if not math.isfinite(value)]
    if lost:
        raise TrainingError(
            f"stage {stage.number} came apart before step {stage.step_count}: {', '.join(lost)} is no number any more",
            "its last checkpoint is from before: go on with --resume and a smaller lr in a preset of your own",
        )


def _left(clock: Clock, share: float) -> str:
    """Minutes left at the rate of the whole stage so far, interruptions apart."""
    if not 0 < share < 1:
        return ""
    return f"  {clock.elapsed / 60 * (1 / share - 1):.0f} min left"


def _look(stage: Stage, run: Run, clock: Clock) -> None:
    """Curves, samples, and what recognizers that no training uses say."""
    try:
        _draw(stage, run, clock)
    except (OSError, ImageError) as error:
        run.report(min(clock.progress, 1.0), f"stage {stage.number}: no pictures this time: {error}")


def _draw(stage: Stage, run: Run, clock: Clock) -> None:
    name = f"stage{stage.number}"
    rows = stage.samples()
    watch.sample_grid(list(rows.values()), run.folder / f"{name}-samples.png", list(rows))
    if run.validation is not None and {"generator", "restorer"} <= stage.modules.keys():
        scores = run.validation.score(
            stage.modules["generator"], stage.modules["restorer"], stage.config.phases[-1].eps, stage.place.device,
            stage.config.bf16,
        )  # fmt: skip
        run.validation.write(run.folder / watch.VALIDATION, stage.number, stage.step_count, clock.elapsed / 60, scores)
        line = "  ".join(f"{key} {value:.3f}" for key, value in scores.items() if "@" not in key)
        run.report(min(clock.progress, 1.0), f"stage {stage.number} validation  {line}")
    watch.draw_curves(run.folder / f"{name}.csv", run.folder / f"{name}-curves.png", stage=stage.number)

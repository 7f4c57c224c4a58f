"""How far a stage is, and what learning rate that means."""

from __future__ import annotations

import math
import time

from emask.train.config import TrainConfig


class Clock:
    """Progress of a stage across interruptions: by the time it may take, or by steps where those are given.

    Args:
        minutes: wall-clock budget.
        steps: number of steps instead of a time.
        elapsed: seconds spent before an interruption.
        step: steps made before it.
        limited: with steps, the time ends the stage all the same.
    """

    def __init__(
        self, minutes: float, steps: int | None = None, elapsed: float = 0.0, step: int = 0, limited: bool = False
    ) -> None:
        self.total = max(minutes * 60, 1e-3)
        self.steps, self.step, self.limited = steps, step, limited
        self._began = time.monotonic() - elapsed

    @property
    def elapsed(self) -> float:
        """Seconds spent on the stage, those before an interruption included."""
        return time.monotonic() - self._began

    @property
    def progress(self) -> float:
        """0 at the start, 1 or more at the end."""
        time_share = self.elapsed / self.total
        if self.steps is None:
            return time_share
        share = self.step / max(self.steps, 1)
        return max(share, time_share) if self.limited else share


def stage_clock(config: TrainConfig, stage: int, crops: int, batch: int, elapsed: float = 0.0, step: int = 0) -> Clock:
    """The clock of a stage (1, 2, 3) as its configuration says.

    Args:
        crops: in an epoch.
        batch: crops a step, over all processes.
    """
    steps = None
    if config.steps is not None:
        steps = config.steps[stage - 1]
    elif config.epochs is not None:
        steps = config.epochs[stage - 1] * max(1, crops // batch)
    return Clock(config.minutes[stage - 1], steps, elapsed, step, config.limited)


def learning_rate(config: TrainConfig, stage: int, progress: float) -> float:
    """Linear warm-up over 2% of the stage, then a cosine down to a tenth of the peak; or the peak throughout."""
    peak = config.lr[stage - 1]
    if config.constant_lr:
        return peak
    return peak * min(1.0, progress / 0.02 + 0.05) * (0.55 + 0.45 * math.cos(math.pi * min(progress, 1.0)))

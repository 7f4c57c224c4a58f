"""Projected descent with momentum, which FGSM, PGD, MI-FGSM and the target manifold share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emask.bench.peers.ball import Ball


def normalized(gradient: Tensor) -> Tensor:
    """Each face's gradient over the mean of its absolute values.

    The momentum paper divides by their sum; the two differ by a constant, which no direction depends on.
    """
    return gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-30)


def descend(
    crop: Tensor, gradient_at: Callable[[Tensor], Tensor], ball: Ball, steps: int, step: float,
    momentum: float = 0.0, start: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The change after so many projected steps.

    g <- momentum g + grad / mean |grad|;  change <- project(change - step direction(g))

    Args:
        crop: (B, 3, S, S) in [-1, 1].
        gradient_at: (B, 3, S, S) faces to the gradient of what they are to make small; called once a step.
        step: its length by the ball's norm, in units of [-1, 1].
        start: the change to begin with, (B, 3, S, S) or (1, 3, S, S); none by default.

    Returns:
        (B, 3, S, S), without gradient; within the ball, crop + change in [-1, 1].
    """
    crop = crop.detach()
    velocity = torch.zeros_like(crop)
    change = torch.zeros_like(crop) if start is None else ball.project(crop, start)
    for _ in range(steps):
        velocity = momentum * velocity + normalized(gradient_at(crop + change))
        change = ball.project(crop, change - step * ball.direction(velocity))
    return change

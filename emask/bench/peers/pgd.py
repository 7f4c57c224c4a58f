"""PGD: projected steps from a random start (Madry et al., ICLR 2018, arXiv 1706.06083, section 2.1).

x <- Pi(x - alpha sign(grad L)), the sign turned because the target's distance is to fall.

From the paper: the iteration and the random start. The paper's eps and steps are for digits and CIFAR; those here are
the ones the TIP-IM paper runs every method with on faces (section 5.1: 50 steps, alpha = 1.5, eps = 12 of 255). Our
choice: one random start for all faces of a batch; "l2", whose steps follow the L2-normalised gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emask.bench.peers.ball import EPS, Ball, Norm
from emask.bench.peers.descent import descend
from emask.bench.peers.similarity import Recognizer, dissimilarity, embed, gradient


@dataclass(frozen=True)
class PGD:
    """Many projected steps towards the target; see `Peer`.

    Attributes:
        eps, norm: the budget, units of [-1, 1].
        steps: gradient steps; with 0 and no random start nothing changes.
        step: length of one, as a share of eps.
        random_start: begin somewhere in the ball instead of in its middle.
        seed: of the random start.
    """

    eps: float = EPS
    norm: Norm = "linf"
    steps: int = 50
    step: float = 1.5 / 12
    random_start: bool = True
    seed: int = 0

    def __call__(self, crop: Tensor, targets: Tensor, surrogates: Sequence[Recognizer]) -> Tensor:
        ball = Ball(self.eps, self.norm)
        wanted = embed(targets, surrogates)
        start = ball.random(crop, torch.Generator().manual_seed(self.seed)) if self.random_start else None
        return descend(
            crop, lambda faces: gradient(lambda x: dissimilarity(x, wanted, surrogates), faces),
            ball, self.steps, self.step * self.eps, start=start,
        )  # fmt: skip

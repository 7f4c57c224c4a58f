"""A manifold of targets, after GMAA (Li et al., CVPR 2023, arXiv 2301.06083); this is not GMAA itself.

GMAA widens an attack at both ends: the target is not one photo but many states of a person, and what is made is not one
face but a manifold of them. For the second it trains a generator that edits expressions by 17 action units, with
critics and expression editors of its own, for every target anew.

What is here of it: the first end. The targets are all the photos given, their mirror images, and small changes of pose
of each, and the loss is the mean of 1 - cos over all of them. And, from the released code (tokaka22/GMAA), how the
surrogates look at a face: through 5 random draws, each with noise of up to sqrt(0.1) and resized to at least 0.9 of its
side, either with probability 0.5.

What is not: the generator, the action units, editors and critics, hence no change of expression, no smooth manifold of
protected faces, and none of GMAA's own look. Call it "GMAA-like" where figures are shown.

Our choice, since a generator has no such thing: steps with momentum within a budget, as `mi_fgsm` has them; poses by
rotation, zoom and shift as large as training's misalignment, where GMAA has real photos and edited expressions.
GMAA's code draws one of the target's photos a step; here each step has them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emask.bench.peers.ball import EPS, Ball, Norm
from emask.bench.peers.descent import descend
from emask.bench.peers.mi_fgsm import diverse
from emask.bench.peers.similarity import Recognizer, dissimilarity, embed, gradient
from emask.train.noise import moved


@dataclass(frozen=True)
class TargetManifold:
    """Steps with momentum towards many states of the target; see `Peer`.

    Attributes:
        eps, norm: the budget, units of [-1, 1].
        steps: gradient steps.
        step: length of one, as a share of eps.
        momentum: 0 for none.
        poses: moved copies of each photo and of its mirror image, besides the two.
        degrees, zoom, shift: how far a pose goes at most, either way; the last two as a share of scale and side.
        draws: looks at the face in each step.
        probability: of noise in a look, and of another size.
        noise: its standard deviation at most, units of [-1, 1].
        smallest: least side of a resized face, as a share of the crop's.
        seed: of poses and looks.
    """

    eps: float = EPS
    norm: Norm = "linf"
    steps: int = 50
    step: float = 1.5 / 12
    momentum: float = 1.0
    poses: int = 2
    degrees: float = 6.0
    zoom: float = 0.06
    shift: float = 0.04
    draws: int = 5
    probability: float = 0.5
    noise: float = math.sqrt(0.1)
    smallest: float = 0.9
    seed: int = 0

    def states(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        """(T, 3, S, S) photos to (2 T (1 + poses), 3, S, S) states: photos, mirror images, then poses of both."""
        photos = torch.cat([targets, targets.flip(-1)])
        result = [photos]
        for _ in range(self.poses):
            uniform = 2 * torch.rand(4, len(photos), 1, 1, generator=generator) - 1
            angle, zoom, right, down = uniform.to(photos)
            shift = 2 * self.shift  # a side is 2 long
            angle, zoom = math.radians(self.degrees) * angle, 1 + self.zoom * zoom
            result += moved([photos], angle, zoom, shift * right, shift * down, "bilinear")
        return torch.cat(result)

    def _look(self, faces: Tensor, generator: torch.Generator) -> Tensor:
        """Faces through noise and another size, or without, alike for all."""
        hit, level = torch.rand(2, generator=generator).tolist()
        if hit < self.probability:
            noise = torch.randn(1, *faces.shape[1:], generator=generator).to(faces)
            faces = faces + level * self.noise * noise
        return diverse(faces, self.probability, self.smallest, generator)

    def __call__(self, crop: Tensor, targets: Tensor, surrogates: Sequence[Recognizer]) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        wanted = embed(self.states(targets, generator), surrogates)

        def gradient_at(faces: Tensor) -> Tensor:
            # one draw after the other, so that memory holds the graph of one
            parts = [
                gradient(lambda x: dissimilarity(self._look(x, generator), wanted, surrogates), faces)
                for _ in range(self.draws)
            ]
            return torch.stack(parts).mean(0)

        return descend(
            crop, gradient_at, Ball(self.eps, self.norm), self.steps, self.step * self.eps, self.momentum
        )  # fmt: skip

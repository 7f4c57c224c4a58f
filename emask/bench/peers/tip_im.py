"""TIP-IM: several target photos, the most promising one taken in every step (Yang et al., ICCV 2021, arXiv 2003.06814).

- Identity (eq. 2): L_iden = D(x_p, x_t) - D(x_p, x_r), D the squared distance of unit embeddings, so 2 - 2 cos: towards
  the target photo and away from the face as it was.
- Naturalness (eq. 3 and 4): gamma times the maximum mean discrepancy of protected and real images.
- Steps (eq. 5): the gradient's sign (or its L2-normalised form), with momentum.
- Greedy insertion (algorithm 1, eq. 6 and 7): a candidate is made for every target photo, and the one goes on that has
  the largest gain log(1 + max_t exp(D(x_p, x_r) - D(x_p, x_t))).

From the paper: 50 steps, alpha = 1.5, eps = 12 of 255 (section 5.1). From the released code (ShawnXYang/TIP-IM), where
the paper is silent: momentum 1; the discrepancy is the squared one, its kernel a sum of 19 Gaussians; a candidate is
the very image the next step would go on from, momentum and naturalness included; in every step the recognizer sees
the face through a random affine map. Its step is 1.5 eps / steps, much shorter than the paper's, which is kept.

Our choice: gamma = 1, the paper's tables running from 0 to 3 without naming the one of its main results, and the code's
default being 0; pixels in [-1, 1] within the discrepancy. The paper takes it over a batch of 50 different faces, so
that each depends on the others. For single photos its appendix B makes the batch of moved and lightened copies of the
one face; here that is always so, four copies, their movements being ours. A batch of N faces that are far apart has
an Nth of their mean own discrepancy, so a face's own counts gamma / 50, to weigh what it weighs there. The paper's
targets are ten people, any of whom will do; here they are photos of one. With several surrogates D is their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emask.bench.peers.ball import EPS, Ball, Norm
from emask.bench.peers.descent import normalized
from emask.bench.peers.similarity import Recognizer, embed, gradient
from emask.train.noise import moved

# Of the kernel's Gaussians exp(-d^2 / (2 sigma)): what the released code calls sigma is a variance.
SIGMAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6)
# Standard deviations of the copies' movements: degrees, share of the scale, share of a side, brightness in [-1, 1].
DEGREES, ZOOM, SHIFT, LIGHT = 5.0, 0.05, 0.03, 0.1
# Faces in the batch that the paper takes the discrepancy over.
BATCH = 50


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy, the biased estimate, of each pair of sets.

    Args:
        x, y: (B, N, P) and (B, M, P): B pairs of sets of points.

    Returns:
        (B,), never negative but for rounding, 0 for equal sets.
    """

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        distance = (p.unsqueeze(2) - q.unsqueeze(1)).square().sum(-1)  # (B, N, M)
        return torch.stack([torch.exp(-distance / (2 * sigma)) for sigma in SIGMAS]).sum(0).mean((1, 2))

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def distance(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """D: (B, D_k) and (B, D_k), or (B, D_k) and (T, 1, D_k), to (B,) or (T, B): mean over surrogates of 2 - 2 cos."""
    return torch.stack([2 - 2 * (p * q).sum(-1) for p, q in zip(x, y, strict=True)]).mean(0)


def gain(protected: Sequence[Tensor], owner: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """G of eq. 7: the nearer a face is to the photo of the target nearest to it, compared with its owner, the larger.

    Args:
        protected, owner: (B, D_k) of each surrogate.
        wanted: (T, D_k) of each surrogate.

    Returns:
        (B,), positive.
    """
    lead = distance(protected, owner) - distance(protected, [photos.unsqueeze(1) for photos in wanted])  # (T, B)
    return torch.log1p(lead.max(0).values.exp())


def best_candidate(
    candidates: Tensor, owner: Sequence[Tensor], wanted: Sequence[Tensor], surrogates: Sequence[Recognizer]
) -> Tensor:
    """(T, B, 3, S, S) candidate faces, one for each photo of the target, to the (B,) photos of the largest gain."""
    return torch.stack([gain(embed(faces, surrogates), owner, wanted) for faces in candidates]).argmax(0)


def warped(faces: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """Faces through one random affine map, alike for all; outside there is black.

    As in the released code, noise on all six numbers of the map and then a turn, their standard deviations uniform
    between a tenth of `spread` and `spread`; here both are made one map, so that the face is resampled once.
    """
    if spread == 0:
        return faces
    first, second = (spread * (0.1 + 0.9 * torch.rand(2, generator=generator))).tolist()
    plane = torch.eye(2, 3) + first * torch.randn(2, 3, generator=generator)
    angle = second * float(torch.randn((), generator=generator))
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    matrix = torch.cat([plane[:, :2] @ turn, plane[:, 2:]], 1).to(faces).expand(len(faces), 2, 3)
    grid = nn.functional.affine_grid(matrix, list(faces.shape), align_corners=False)
    return nn.functional.grid_sample(faces + 1, grid, "bilinear", "zeros", align_corners=False) - 1


def copies(count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A function from (B, 3, S, S) faces to (B, count, P): each as it is, and moved and lightened in fixed ways."""
    normal = torch.randn(4, count, generator=generator)
    normal[:, 0] = 0.0
    light = torch.tensor([math.radians(DEGREES), ZOOM, 2 * SHIFT, LIGHT]).view(4, 1) * normal

    def make(faces: Tensor) -> Tensor:
        views: list[Tensor] = []
        for angle, zoom, shift, level in light.T.tolist():
            a, z, s = (faces.new_full((len(faces), 1, 1), x) for x in (angle, 1 + zoom, shift))
            view = moved([faces], a, z, s, s, "bilinear")[0] if views else faces
            views.append((view + level).flatten(1))
        return torch.stack(views, 1)

    return make


@dataclass(frozen=True)
class TIPIM:
    """Steps towards whichever photo of the target is the most promising; see `Peer`.

    A step costs a pass forward and as many passes back as there are photos, and as many forward again to choose.

    Attributes:
        eps, norm: the budget, units of [-1, 1].
        steps: gradient steps.
        step: length of one, as a share of eps.
        momentum: 0 for none.
        gamma: weight of naturalness as in the paper's batch; 0 leaves it out.
        copies: of a face, for naturalness; 1 is the face itself only.
        spread: of the affine map that the surrogates see the face through; 0 for none.
        seed: of copies and maps.
    """

    eps: float = EPS
    norm: Norm = "linf"
    steps: int = 50
    step: float = 1.5 / 12
    momentum: float = 1.0
    gamma: float = 1.0
    copies: int = 4
    spread: float = 0.1
    seed: int = 0

    def __call__(self, crop: Tensor, targets: Tensor, surrogates: Sequence[Recognizer]) -> Tensor:
        crop = crop.detach()
        ball, generator = Ball(self.eps, self.norm), torch.Generator().manual_seed(self.seed)
        owner, wanted = embed(crop, surrogates), embed(targets, surrogates)
        views = copies(self.copies, generator)
        real = views(crop)
        change, velocity = torch.zeros_like(crop), torch.zeros_like(crop)
        everyone = torch.arange(len(crop), device=crop.device)
        for _ in range(self.steps):
            unnatural = torch.zeros_like(crop)  # the gradient of naturalness, alike for all candidates
            if self.gamma:
                unnatural = self.gamma / BATCH * gradient(lambda x: mmd(views(x), real), crop + change)
            velocities, changes = [], []
            for identity in self._gradients(crop + change, owner, wanted, surrogates, generator):
                velocities.append(self.momentum * velocity + normalized(identity + unnatural))
                step = self.step * self.eps * ball.direction(velocities[-1])
                changes.append(ball.project(crop, change - step))
            best = everyone * 0
            if len(changes) > 1:
                best = best_candidate(crop + torch.stack(changes), owner, wanted, surrogates)
            change, velocity = torch.stack(changes)[best, everyone], torch.stack(velocities)[best, everyone]
        return change

    def _gradients(
        self, faces: Tensor, owner: Sequence[Tensor], wanted: Sequence[Tensor], surrogates: Sequence[Recognizer],
        generator: torch.Generator,
    ) -> list[Tensor]:  # fmt: skip
        """grad L_iden for each photo of the target, (B, 3, S, S) each, from one pass forward."""
        faces = faces.requires_grad_(True)
        seen = warped(faces, self.spread, generator)
        embeddings = [surrogate(seen) for surrogate in surrogates]
        away = distance(embeddings, owner)
        losses = [distance(embeddings, photo) - away for photo in zip(*wanted, strict=True)]
        return [torch.autograd.grad(loss.sum(), [faces], retain_graph=True)[0] for loss in losses]

"""MI-FGSM with diverse inputs and translation invariance, together known as TI-DIM.

- Momentum: Dong et al., CVPR 2018, arXiv 1710.06081, algorithm 1: g <- mu g + grad / ||grad||_1,
  x <- x - alpha sign(g), or along g / ||g||_2 for "l2"; mu = 1.
- Diverse inputs (DI): Xie et al., CVPR 2019, arXiv 1803.06978: grad L(T(x; p)), T being a picture at a random other
  size, padded at random, with p = 0.5, and else the picture as it is. In the released code it grows from 299 to at
  most 330 pixels; recognizers take one size only, so here it shrinks to at least 0.9 of its side, about the same
  ratio, and is padded to its old size (GMAA's code does so for faces, with 0.9). Drawn anew for each surrogate, as
  in the TI code.
- Translation invariance (TI): Dong et al., CVPR 2019, arXiv 1904.02884: sign(W * grad), W a Gaussian kernel that
  reaches three standard deviations to each side; in the released code 15 pixels of 299.

From the papers or their released code: all of these figures. Our choice: 7 pixels of a crop of 128, the same share of
the side; bilinear resizing; steps, their length and eps as TIP-IM's paper runs it (see `pgd`; the momentum paper has 10
steps of eps / 10). TIP-IM's authors found TI no help against recognizers (section 5.1): `kernel=1` leaves it out, and
`diversity=0` the diverse inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emask.bench.peers.ball import EPS, Ball, Norm
from emask.bench.peers.descent import descend
from emask.bench.peers.similarity import Recognizer, dissimilarity, embed, gradient


def diverse(faces: Tensor, probability: float, smallest: float, generator: torch.Generator) -> Tensor:
    """Faces made smaller and padded with mid grey to their old size, or left as they are; all alike.

    Args:
        faces: (B, 3, S, S).
        probability: of doing anything.
        smallest: least side, as a share of S.
    """
    hit = float(torch.rand((), generator=generator)) < probability
    side = faces.shape[-1]
    low = int(smallest * side)
    if not hit or low >= side:
        return faces
    inner = int(torch.randint(low, side, (), generator=generator))
    left, top = torch.randint(0, side - inner + 1, (2,), generator=generator).tolist()
    small = nn.functional.interpolate(faces, size=(inner, inner), mode="bilinear", align_corners=False)
    return nn.functional.pad(small, (left, side - inner - left, top, side - inner - top))


def smoothed(gradient: Tensor, size: int) -> Tensor:
    """A (B, 3, S, S) gradient convolved with a Gaussian of `size` pixels, an odd number; 1 leaves it as it is.

    The kernel ends at three standard deviations; beyond the border there are zeros.
    """
    if size == 1:
        return gradient
    line = torch.exp(-torch.linspace(-3, 3, size).square() / 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    planes = gradient.flatten(0, 1).unsqueeze(1)
    return nn.functional.conv2d(planes, kernel.to(gradient)[None, None], padding=size // 2).view_as(gradient)


@dataclass(frozen=True)
class MIFGSM:
    """Steps with momentum, towards the target; see `Peer`.

    Attributes:
        eps, norm: the budget, units of [-1, 1].
        steps: gradient steps.
        step: length of one, as a share of eps.
        momentum: mu; 0 is plain iterative FGSM.
        diversity: probability with which a surrogate is shown a resized face.
        smallest: least side of one, as a share of the crop's.
        kernel: pixels of the Gaussian, odd.
        seed: of the diverse inputs.

    Raises:
        ValueError: an even kernel.
    """

    eps: float = EPS
    norm: Norm = "linf"
    steps: int = 50
    step: float = 1.5 / 12
    momentum: float = 1.0
    diversity: float = 0.5
    smallest: float = 0.9
    kernel: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ValueError(f"a kernel of {self.kernel} pixels has no middle")

    def __call__(self, crop: Tensor, targets: Tensor, surrogates: Sequence[Recognizer]) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        wanted = embed(targets, surrogates)

        def loss(faces: Tensor) -> Tensor:
            each = [
                dissimilarity(diverse(faces, self.diversity, self.smallest, generator), [photos], [surrogate])
                for surrogate, photos in zip(surrogates, wanted, strict=True)
            ]
            return torch.stack(each).mean(0)

        return descend(
            crop, lambda faces: smoothed(gradient(loss, faces), self.kernel),
            Ball(self.eps, self.norm), self.steps, self.step * self.eps, self.momentum,
        )  # fmt: skip

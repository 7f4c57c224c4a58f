"""The budget of an attack: the ball of changes that a norm allows, cut to those that leave a picture in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
# 12 grey levels of 255, as TIP-IM has it and with it most of the field, in units of [-1, 1].
EPS = 24 / 255


@dataclass(frozen=True)
class Ball:
    """All changes of a norm of at most eps.

    Attributes:
        eps: radius in units of [-1, 1]: of any channel of any pixel for "linf", of a face's whole change for "l2".
        norm: "linf" or "l2".
    """

    eps: float
    norm: Norm = "linf"

    def direction(self, gradient: Tensor) -> Tensor:
        """The step of length 1 that rises fastest: the sign of a (B, 3, S, S) gradient, or its L2-normalised form."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / gradient.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-30)

    def project(self, crop: Tensor, change: Tensor) -> Tensor:
        """The nearest change in the ball, and then the nearest with which crop + change lies in [-1, 1]."""
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            length = change.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-30)
            change = change * (self.eps / length).clamp(max=1.0)
        # the crop lies in the range itself, so this makes no change larger
        return (crop + change).clamp(-1, 1) - crop

    def random(self, crop: Tensor, generator: torch.Generator) -> Tensor:
        """A (1, 3, S, S) change of the ball, one for all faces, so that none depends on how many there are.

        Uniform for "linf"; for "l2" of a uniform direction and a uniform length.
        """
        shape = (1, *crop.shape[1:])
        if self.norm == "linf":
            return (self.eps * (2 * torch.rand(shape, generator=generator) - 1)).to(crop)
        length = self.eps * torch.rand((), generator=generator)
        return (length * self.direction(torch.randn(shape, generator=generator))).to(crop)

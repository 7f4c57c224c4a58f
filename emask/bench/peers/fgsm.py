"""FGSM: one step of full length (Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv 1412.6572, section 4).

The paper rises on the loss of the true label, eta = eps sign(grad J). Here the step descends on the distance from the
target, the targeted form (Kurakin et al., arXiv 1611.01236, "one-step target class").

From the paper: the step. Our choice: eps, as for all peers, since the ErasableMask paper's own is lost from its text;
and "l2", which steps along the L2-normalised gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from emask.bench.peers.ball import EPS, Ball, Norm
from emask.bench.peers.descent import descend
from emask.bench.peers.similarity import Recognizer, dissimilarity, embed, gradient


@dataclass(frozen=True)
class FGSM:
    """One step towards the target; see `Peer`. Nothing in it is random.

    Attributes:
        eps, norm: the budget, units of [-1, 1].
    """

    eps: float = EPS
    norm: Norm = "linf"

    def __call__(self, crop: Tensor, targets: Tensor, surrogates: Sequence[Recognizer]) -> Tensor:
        wanted = embed(targets, surrogates)
        return descend(
            crop, lambda faces: gradient(lambda x: dissimilarity(x, wanted, surrogates), faces),
            Ball(self.eps, self.norm), steps=1, step=self.eps,
        )  # fmt: skip

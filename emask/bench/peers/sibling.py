"""Sibling-Attack: recognizers and an attribute classifier take turns (Li et al., CVPR 2023, arXiv 2303.12512).

The two tasks are siblings: what carries over from one to the other carries over to unknown recognizers, too. In turn
one leads with a few inner steps, and the other follows with one step from where these end, along its gradient there
plus a little of its gradients at all inner points (the paper's joint-task meta optimization and cross-task gradient
stabilization). The attribute task is not to change attributes but to have the target's features in the classifier:
1 - cos of an inner layer.

The paper was not to be had, the released code and its configuration were (Tencent/TFace, security/tasks). From there:
the iteration, 200 outer and 5 inner steps, alpha = 0.01 and inner steps of 1/255 with eps = 0.15 in [-1, 1], gamma =
0.1, the weight 1e-4 of the gradients along the way.

Our choice: eps as for all peers, steps keeping their ratio to it. Not to be had: the attribute network. Theirs is an
IR152 in the recognizer's own feature space (the paper's hard parameter sharing), its features those of the last
residual block; here any `Classifier` of emask's stage 1 serves, its features what its last layer reads, and it shares
nothing with the surrogates. So the paper's first constraint is missing, and figures may fall short of the original's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emask.bench.peers.ball import EPS, Ball, Norm
from emask.bench.peers.similarity import Recognizer, dissimilarity, embed, gradient
from emask.nets.discriminator import Classifier


@dataclass(frozen=True)
class AttributeFeatures:
    """What a classifier's last layer reads, at unit length; to the attack a recognizer like any other."""

    classifier: Classifier

    def __call__(self, crops: Tensor) -> Tensor:
        """(N, 3, S, S) float32 in [-1, 1] to (N, D) unit vectors."""
        *layers, _ = self.classifier.children()
        for layer in layers:
            crops = layer(crops)
        return nn.functional.normalize(crops.flatten(1), dim=1)


@dataclass(frozen=True)
class SiblingAttack:
    """Recognition and attributes in turn, towards the target; see `Peer`. Nothing in it is random.

    Attributes:
        classifier: of attributes, in evaluation mode.
        eps, norm: the budget, units of [-1, 1].
        steps: outer steps; attributes lead in the first.
        inner_steps: of the task that leads, before each.
        step: length of an outer step, as a share of eps.
        inner_step: length of an inner one, as a share of eps.
        gamma: both are this much where recognition leads, and 1 - gamma where attributes lead, times as long.
        stabilization: weight of the following task's gradients at the inner points.

    Raises:
        ValueError: a classifier in training mode, where faces depend on one another; or no inner steps.
    """

    classifier: Classifier
    eps: float = EPS
    norm: Norm = "linf"
    steps: int = 200
    inner_steps: int = 5
    step: float = 0.01 / 0.15
    inner_step: float = 1 / 255 / 0.15
    gamma: float = 0.1
    stabilization: float = 1e-4

    def __post_init__(self) -> None:
        if self.classifier.training:
            raise ValueError("the classifier is in training mode")
        if self.inner_steps < 1:
            raise ValueError("without inner steps no task leads")

    def __call__(self, crop: Tensor, targets: Tensor, surrogates: Sequence[Recognizer]) -> Tensor:
        crop = crop.detach()
        ball = Ball(self.eps, self.norm)
        attributes = [AttributeFeatures(self.classifier)]
        faces_wanted, attributes_wanted = embed(targets, surrogates), embed(targets, attributes)

        def recognition_gradient(faces: Tensor) -> Tensor:
            return gradient(lambda x: dissimilarity(x, faces_wanted, surrogates), faces)

        def attribute_gradient(faces: Tensor) -> Tensor:
            return gradient(lambda x: dissimilarity(x, attributes_wanted, attributes), faces)

        change = torch.zeros_like(crop)
        for number in range(self.steps):
            if number % 2:
                lead, follow, share = recognition_gradient, attribute_gradient, self.gamma
            else:
                lead, follow, share = attribute_gradient, recognition_gradient, 1 - self.gamma
            along, last = torch.zeros_like(crop), torch.zeros_like(crop)
            for _ in range(self.inner_steps):
                inner = share * self.inner_step * self.eps * ball.direction(lead(crop + change))
                change = ball.project(crop, change - inner)
                last = follow(crop + change)
                along = along + last
            outer = share * self.step * self.eps * ball.direction(last + self.stabilization * along)
            change = ball.project(crop, change - outer)
        return change

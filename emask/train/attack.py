"""The adversarial term of stage 2: surrogates that train for each other, and the weights that keep them level.

ErasableMask (Shen et al., arXiv 2412.17038) trains its mask by a meta-auxiliary attack: one surrogate is the primary
task and moves the generator's parameters a step, the others say whether that step carries over to them. Its first-order
form and the plain ensemble are here as well, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from emask.nets.generator import Generator

Theta = dict[str, Tensor]
"""Parameters of a generator by name, as in `Generator.named_parameters()`; only those that are trained."""

LossesAt = Callable[[Theta, Sequence[int]], Sequence[Tensor]]
"""losses_at(theta, which): L_k(theta), a scalar each, of the surrogates k in `which`, in that order."""


class Attack(str, Enum):
    """How several surrogates make one loss."""

    meta = "meta"
    meta_first_order = "meta-first-order"
    ensemble = "ensemble"


def primaries_of(step: int, count: int, one_a_step: bool) -> tuple[int, ...]:
    """Which of `count` surrogates are primary in this step: all of them (the paper), or one, in turn."""
    return (step % count,) if one_a_step else tuple(range(count))


def attack_loss(
    kind: Attack,
    at_theta: Sequence[Tensor],
    losses_at: LossesAt,
    theta: Theta,
    weights: Tensor,
    inner_lr: float,
    primaries: Sequence[int],
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """L_adv, a scalar with a gradient for theta.

    ensemble: sum_k w_k L_k(theta).
    meta: sum over primaries k of [ L_k(theta) + sum_{j != k} w_j L_j(theta'_k) ], where
    theta'_k = theta - inner_lr * grad L_k(theta) stays in the graph (double gradient).
    meta-first-order: the same with the gradient in theta'_k taken for a constant.

    With all K surrogates as primaries the meta loss has K^2 terms, with one it has K, like the ensemble.

    Args:
        at_theta: L_k(theta) of all K surrogates, scalars with their graph. Not stacked: a gradient of one element
            of a stack walks back through all surrogates, with zeros through all but one.
        losses_at: gives L_j(theta'_k); not called for the ensemble.
        theta: the very tensors with which at_theta was computed.
        weights: (K,), mean 1.
        inner_lr: alpha, the length of the inner step.
        primaries: from `primaries_of`; the ensemble has none and ignores them.
        average: the mean of a gradient over the processes that share a batch, so that all make the same inner step;
            for meta it must pass a gradient on.
    """
    if kind is Attack.ensemble:
        return _weighted(weights, range(len(at_theta)), at_theta)
    total = torch.stack([at_theta[k] for k in primaries]).sum()
    for k in primaries:
        others = [j for j in range(len(at_theta)) if j != k]
        if others:
            ahead = _inner_step(at_theta[k], theta, inner_lr, kind is Attack.meta, average)
            total = total + _weighted(weights, others, losses_at(ahead, others))
    return total


def _weighted(weights: Tensor, which: Sequence[int], values: Sequence[Tensor]) -> Tensor:
    """sum of w_j L_j over the j in `which`."""
    return torch.stack([weights[j] * value for j, value in zip(which, values, strict=True)]).sum()


def _inner_step(
    loss: Tensor, theta: Theta, lr: float, second_order: bool, average: Callable[[Tensor], Tensor] | None
) -> Theta:
    """theta - lr * grad loss(theta); a parameter that the loss does not reach stays as it is."""
    # a backward pass keeps the types of its forward pass; autocast would change them once more
    with torch.autocast(loss.device.type, enabled=False):
        grads = torch.autograd.grad(
            loss, list(theta.values()), retain_graph=True, create_graph=second_order, allow_unused=True
        )
        ahead = dict(theta)
        for (name, value), grad in zip(theta.items(), grads, strict=True):
            if grad is not None:
                ahead[name] = value - lr * (grad if average is None else average(grad))
    return ahead


class _Mask(nn.Module):
    """`Generator.mask` as a forward pass, the only method that `torch.func.functional_call` calls."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.generator.mask(*args, **kwargs)


class MaskAt:
    """A generator's `mask` as a function of its trained parameters."""

    def __init__(self, generator: Generator) -> None:
        self._module = _Mask(generator)

    def theta(self) -> Theta:
        """The generator's own trained parameters."""
        return {name: p for name, p in self._module.generator.named_parameters() if p.requires_grad}

    def __call__(self, theta: Theta | None, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """`Generator.mask(*args, **kwargs)` at theta; at the generator's own parameters for None."""
        if theta is None:
            return self._module(*args, **kwargs)
        named = {f"generator.{name}": value for name, value in theta.items()}
        return torch.func.functional_call(self._module, named, args, kwargs)


class AdaptiveWeights:
    """Self-adaptive weights: the more a surrogate lost in the epoch so far, the more it counts.

    An easy surrogate cannot dominate, nor, within the bounds, can one that will not give in.

    Args:
        count: K surrogates; all weigh 1 until the first losses arrive.
        device: of the losses.
    """

    low, high = 0.5, 2.0

    def __init__(self, count: int, device: torch.device | str | None = None) -> None:
        self._means = torch.ones(count, device=device)  # of the last epoch until the first losses of a new one
        self._steps = 0

    def update(self, losses: Tensor) -> None:
        """Take in a step's (K,) losses, none negative; without their gradient, and without waiting for their values."""
        losses = losses.detach().to(self._means)
        self._means = torch.lerp(self._means, losses, 1 / (self._steps + 1)) if self._steps else losses.clone()
        self._steps += 1

    def weights(self) -> Tensor:
        """(K,) float32 on the losses' device: proportional to the mean losses, mean 1, then cut to [0.5, 2]."""
        means = self._means + 1e-6  # once all losses are 0 all weigh the same
        return (means / means.mean()).clamp(self.low, self.high)

    def start_epoch(self) -> None:
        """Forget the losses so far; the weights stay until new ones arrive."""
        self._steps = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"means": self._means, "steps": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state()` stood."""
        self._means = state["means"].to(self._means)
        self._steps = int(state["steps"])

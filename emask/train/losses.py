"""Loss terms: each a function of tensors that returns a scalar, named as in docs/architecture.md."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def cosine_rows(x: Tensor, y: Tensor) -> Tensor:
    """(B, D) and (B, D) unit vectors to (B,) cosines."""
    return (x * y).sum(1)


def adversarial(
    embeddings: list[Tensor], targets: list[Tensor], weights: Tensor, reach: float = 1.0
) -> tuple[Tensor, Tensor]:
    """sum_k w_k max(0, reach - cos(F_k(T(x_p)), F_k(x_t))): the plain ensemble; the paper's has reach 1.

    Args:
        embeddings, targets: per surrogate, (B, D_k) unit.
        weights: (K,), mean 1.

    Returns:
        The loss and the (K,) mean of 1 - cosine per surrogate, detached.
    """
    cosines = [cosine_rows(e, t) for e, t in zip(embeddings, targets, strict=True)]
    losses = torch.stack([(reach - cosine).clamp(min=0).mean() for cosine in cosines])
    return (weights * losses).sum(), torch.stack([1 - cosine.detach().mean() for cosine in cosines])


def adaptive_weights(mean_losses: Tensor) -> Tensor:
    """Self-adaptive weights: proportional to each surrogate's mean loss, mean 1, within [0.5, 2]."""
    return (mean_losses / mean_losses.mean().clamp(min=1e-6)).clamp(0.5, 2.0)


def owner(embeddings: list[Tensor], sources: list[Tensor], margin: float) -> Tensor:
    """mean_k max(0, cos(F_k(T(x_p)), F_k(x)) - margin): away from the photo's owner."""
    terms = [
        (cosine_rows(e, s) - margin).clamp(min=0).mean() for e, s in zip(embeddings, sources, strict=True)
    ]
    return torch.stack(terms).mean()


def perturbation(mask: Tensor, eps: Tensor) -> Tensor:
    """The paper's hinge, mean of max(eps, ||mask||_2), over eps: 1 within the budget.

    Args:
        mask: (B, 3, S, S), before it is scaled into the budget.
        eps: (B,).
    """
    norm = torch.sqrt(mask.square().sum((1, 2, 3)) + 1e-12)
    return (torch.maximum(norm, eps) / eps).mean()


def roughness(change: Tensor, crop: Tensor) -> Tensor:
    """Differences of neighbouring pixels of the change, counted less where the photo itself is busy.

    The eye forgives a change in hair and not on a cheek. The weight is 0.1 / (0.1 + local contrast), the contrast a
    mean absolute difference over 5 x 5 pixels in [-1, 1] units.
    """

    def differences(x: Tensor) -> Tensor:
        right = (x[..., :, 1:] - x[..., :, :-1]).abs()[..., :-1, :]
        down = (x[..., 1:, :] - x[..., :-1, :]).abs()[..., :, :-1]
        return (right + down).mean(1, keepdim=True)

    with torch.no_grad():
        contrast = nn.functional.avg_pool2d(differences(crop), 5, 1, 2)
        weight = 0.1 / (0.1 + contrast)
    return (weight * differences(change)).mean()


def chroma(change: Tensor) -> Tensor:
    """Mean absolute departure of a change from grey, of its pixels and of its means over 8 x 8 pixels.

    Colour casts and speckles are what people notice first, and 4:2:0 JPEG halves what fine colour can carry anyway.
    """
    colour = change - change.mean(1, keepdim=True)
    return colour.abs().mean() + nn.functional.avg_pool2d(colour, 8).abs().mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """WGAN-GP (Gulrajani et al. 2017): (||grad critic(x)||_2 - 1)^2 between real and fake images."""
    share = torch.rand(real.shape[0], 1, 1, 1, generator=generator)
    between = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    score, _ = critic(between)
    (grad,) = torch.autograd.grad(score.sum(), between, create_graph=True)
    return (grad.flatten(1).norm(dim=1) - 1).square().mean()


def attribute(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of logits (B, n) against labels in [0, 1]."""
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)

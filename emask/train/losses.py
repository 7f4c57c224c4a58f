"""Loss terms: each a function of tensors that returns a scalar, named as in docs/architecture.md."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from emask.train.draws import Draws
from emask.train.place import send


def cosine_rows(x: Tensor, y: Tensor) -> Tensor:
    """(B, D) and (B, D) unit vectors to (B,) cosines."""
    return (x * y).sum(1)


def toward(embedding: Tensor, target: Tensor, reach: float = 1.0) -> Tensor:
    """L_k of one surrogate: mean max(0, reach - cos(F_k(T(x_p)), F_k(x_t))); the paper's 1 - cos has reach 1.

    Args:
        embedding, target: (B, D_k) unit.
    """
    return (reach - cosine_rows(embedding, target)).clamp(min=0).mean()


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


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, draws: Draws) -> Tensor:
    """WGAN-GP (Gulrajani et al. 2017): (||grad critic(x)||_2 - 1)^2 between real and fake images."""
    share = send(draws.uniform(real.shape[0], 1, 1, 1), real)
    between = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (grad.flatten(1).norm(dim=1) - 1).square().mean()


def attribute(logits: Tensor, labels: Tensor, on: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of logits (B, n) against labels (B, n) in [-1, 1]; one of zero is unknown and left out.

    Args:
        on: (n,) share of the labels that are on; where given, on and off weigh alike in each attribute, however rare
            one of them is.
    """
    each = nn.functional.binary_cross_entropy_with_logits(logits.float(), (labels + 1) / 2, reduction="none")
    known = (labels != 0).float()
    if on is not None:
        known = known * torch.where(labels > 0, 0.5 / on, 0.5 / (1 - on))
    return (each * known).sum() / known.sum().clamp(min=1)


def reconstruction(rebuilt: Tensor, crop: Tensor) -> Tensor:
    """L1 of D(E(x), a) against x."""
    return (rebuilt - crop).abs().mean()


def wasserstein(real_score: Tensor, fake_score: Tensor) -> Tensor:
    """The critic's loss: mean score of fake images minus that of real ones."""
    return fake_score.mean() - real_score.mean()


def pixels(restored: Tensor, crop: Tensor) -> Tensor:
    """Mean absolute plus each image's root mean square difference: small everywhere, and large nowhere.

    Args:
        restored, crop: (B, 3, S, S).
    """
    difference = restored - crop
    # the root has no gradient at 0, which an untrained restorer reaches on a crop that carries no mask
    root = torch.sqrt(difference.square().mean((1, 2, 3)) + 1e-12)
    return difference.abs().mean() + root.mean()


def identity(embedding: Tensor, source: Tensor) -> Tensor:
    """mean of 1 - cos(F(R(x_p)), F(x)): a restored face is its owner again."""
    return (1 - cosine_rows(embedding, source)).mean()


def away(embedding: Tensor, target: Tensor, margin: float) -> Tensor:
    """mean of max(0, cos(F(R(x_p)), F(x_t)) - margin): a restored face no longer is the target."""
    return (cosine_rows(embedding, target) - margin).clamp(min=0).mean()

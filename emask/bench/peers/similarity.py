"""What the attacks descend on: how far faces are from the target's photos in the eyes of several recognizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# (N, 3, S, S) crops in [-1, 1] to (N, D) unit embeddings
Recognizer = Callable[[Tensor], Tensor]
# (B, 3, S, S) faces to (B,): what each of them is to make small
Loss = Callable[[Tensor], Tensor]


@torch.no_grad()
def embed(crops: Tensor, surrogates: Sequence[Recognizer]) -> list[Tensor]:
    """The (N, D_k) unit embeddings of each surrogate, without gradient."""
    return [surrogate(crops) for surrogate in surrogates]


def dissimilarity(faces: Tensor, wanted: Sequence[Tensor], surrogates: Sequence[Recognizer]) -> Tensor:
    """(B,) mean of 1 - cos over surrogates and over the target's photos.

    Args:
        faces: (B, 3, S, S).
        wanted: (T, D_k) of each surrogate, as `embed` gives them.
    """
    # the mean of the cosines is the product with the mean of the embeddings
    each = [1 - surrogate(faces) @ photos.mean(0) for surrogate, photos in zip(surrogates, wanted, strict=True)]
    return torch.stack(each).mean(0)


def gradient(loss: Loss, faces: Tensor) -> Tensor:
    """(B, 3, S, S): each face's gradient of its own loss."""
    faces = faces.detach().requires_grad_(True)
    (result,) = torch.autograd.grad(loss(faces).sum(), [faces])
    return result

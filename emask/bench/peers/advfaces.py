"""AdvFaces: a generator trained to make the change in one pass (Deb, Zhang, Jain, IJCB 2020, arXiv 1908.05008).

G sees the photo and a photo of the target and gives a perturbation to add. It is trained, once for all people, against

    L_GAN = E log D(x) + E log(1 - D(x + G(x, t)))      so that a discriminator D takes the result for a photo
    L_perturbation = E max(eps, ||G(x, t)||_2)          the hinge: free up to eps
    L_identity = E [1 - cos(F(x + G(x, t)), F(t))]      F a recognizer, in the impersonation setting

by L_GAN + lambda_i L_identity + lambda_p L_perturbation; see `emask.bench.advfaces`, which trains it. The recognizer is
not asked any more when a photo is protected.

The paper was not to be had, its released code was (ronny3050/AdvFaces). From there: the networks (a 7 x 7 convolution,
two of 4 x 4 and stride 2, three residual blocks, with instance norms; two of 5 x 5 after upsampling, with layer norms;
one of 7 x 7 and tanh), reflected borders, and a width of 64, which `width` may make narrower.

Our choice: the last convolution begins at zero, so that an untrained G changes nothing. Of the target's photo G sees
the inner square that recognizers see, with its border repeated; of several photos the mean change is taken. The paper's
hinge bounds nothing at test time; here the change is projected onto the budget, as every peer's is, by default the one
G is trained for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from emask.bench.peers.ball import Ball, Norm
from emask.bench.peers.similarity import Recognizer
from emask.errors import ModelError
from emask.face.align import INNER
from emask.train.checkpoint import load

# Of the file that training leaves, so that it is told from other checkpoints.
KIND = "advfaces"
# L2 budget G is trained for, units of [-1, 1] over a crop: that of `emask protect --strength medium`.
TRAINED_EPS = 8.9
HINT = "train one: python -m emask.bench.advfaces"


class _Convolution(nn.Sequential):
    """Convolution with reflected borders, then a norm of each face by itself."""

    def __init__(self, before: int, width: int, kernel: int, stride: int, norm: nn.Module, *more: nn.Module) -> None:
        padding = (kernel - 1) // 2
        super().__init__(nn.Conv2d(before, width, kernel, stride, padding, padding_mode="reflect"), norm, *more)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _Convolution(width, width, 3, 1, nn.InstanceNorm2d(width, affine=True), nn.ReLU()),
            _Convolution(width, width, 3, 1, nn.InstanceNorm2d(width, affine=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PerturbationGenerator(nn.Module):
    """G: a face and a photo of the target to the change.

    Args:
        width: channels at full size; four times as many in the middle.
        blocks: residual blocks.
        surrogates: names of the recognizers it was trained with.

    Its attribute `eps` is the L2 budget it was trained for.
    """

    def __init__(self, width: int = 64, blocks: int = 3, surrogates: Sequence[str] = ()) -> None:
        super().__init__()
        self.width, self.blocks, self.surrogates = width, blocks, tuple(surrogates)
        self.eps = TRAINED_EPS

        def instance(channels: int) -> nn.Module:
            return nn.InstanceNorm2d(channels, affine=True)

        self.encoder = nn.Sequential(
            _Convolution(6, width, 7, 1, instance(width), nn.ReLU()),
            _Convolution(width, 2 * width, 4, 2, instance(2 * width), nn.ReLU()),
            _Convolution(2 * width, 4 * width, 4, 2, instance(4 * width), nn.ReLU()),
            *(_Residual(4 * width) for _ in range(blocks)),
        )
        # a group norm of one group is the layer norm of a face
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2),
            _Convolution(4 * width, 2 * width, 5, 1, nn.GroupNorm(1, 2 * width), nn.ReLU()),
            nn.Upsample(scale_factor=2),
            _Convolution(2 * width, width, 5, 1, nn.GroupNorm(1, width), nn.ReLU()),
        )
        self.to_change = nn.Conv2d(width, 3, 7, 1, 3, padding_mode="reflect")
        nn.init.zeros_(self.to_change.weight)
        assert self.to_change.bias is not None
        nn.init.zeros_(self.to_change.bias)

    def forward(self, crop: Tensor, target: Tensor) -> Tensor:
        """The unbounded change.

        Args:
            crop: (B, 3, S, S) float32 RGB in [-1, 1], S a multiple of 4.
            target: (B, 3, S, S) as `crop`, or the inner squares (B, 3, 112, 112).

        Returns:
            (B, 3, S, S) float32 in [-2, 2].
        """
        margin = (target.shape[-1] - INNER) // 2
        inner = target[..., margin : margin + INNER, margin : margin + INNER]
        border = (crop.shape[-1] - INNER) // 2
        framed = nn.functional.pad(inner, (border,) * 4, mode="replicate")
        x = self.decoder(self.encoder(torch.cat([crop, framed], 1)))
        with torch.autocast(x.device.type, enabled=False):  # bfloat16's 8 bits are too coarse for a change
            return 2 * torch.tanh(self.to_change(x.float()))


def load_generator(path: Path) -> PerturbationGenerator:
    """G of a file that `emask.bench.advfaces` wrote, in evaluation mode, on the CPU.

    Raises:
        TrainingError: no such file, or a damaged one.
        ModelError: a file of another kind.
    """
    state = load(path, HINT)
    if state.get("kind") != KIND:
        raise ModelError(f"{path} is no generator of AdvFaces", HINT)
    try:
        generator = PerturbationGenerator(**state["config"])
        generator.load_state_dict(state["generator"])
        generator.eps = float(state.get("training", {}).get("eps", TRAINED_EPS))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path} holds a generator of AdvFaces of another version", HINT) from error
    return generator.eval().requires_grad_(False)


@dataclass(frozen=True)
class AdvFaces:
    """What a trained G adds, in one pass; see `Peer`. Nothing in it is random, and the surrogates are not asked.

    Attributes:
        generator: G, trained.
        eps, norm: the budget, units of [-1, 1].
    """

    generator: PerturbationGenerator
    eps: float = TRAINED_EPS
    norm: Norm = "l2"

    @torch.no_grad()
    def __call__(self, crop: Tensor, targets: Tensor, surrogates: Sequence[Recognizer] = ()) -> Tensor:
        changes = [self.generator(crop, photo.expand(len(crop), -1, -1, -1)) for photo in targets]
        return Ball(self.eps, self.norm).project(crop, torch.stack(changes).mean(0))

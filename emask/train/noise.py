"""The noise pool: what a photo goes through between the generator and whoever reads it.

One set of objects serves training (strength sampled) and evaluation (strength given). Strength 0 is the identity,
1 the worst that training meets. Images are (B, 3, S, S) float32 RGB in [-1, 1].
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class Distortion(Protocol):
    """Degrades the first image; a geometric one moves all images given in the same way."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Sequence[Tensor], strength: float, generator: torch.Generator) -> list[Tensor]: ...


def _uniform(batch: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, generator=generator) * (high - low) + low


@dataclass(frozen=True)
class Jpeg:
    """The real codec, quality 95 at strength near 0 down to 40 at 1; its gradient is passed straight through."""

    name: str = "jpeg"

    def __call__(self, images: Sequence[Tensor], strength: float, generator: torch.Generator) -> list[Tensor]:
        if strength == 0:
            return list(images)
        image, *others = images
        quality = round(95 - 55 * strength)
        pixels = ((image.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        decoded = []
        for crop in pixels.permute(0, 2, 3, 1).cpu().numpy():
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(crop)).save(buffer, "JPEG", quality=quality)
            decoded.append(np.asarray(Image.open(buffer)))
        coded = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(image) / 127.5 - 1
        return [image + (coded - image).detach(), *others]


@dataclass(frozen=True)
class Resize:
    """Shrunk to between 1 and 0.4 of its size with antialiasing, and back."""

    name: str = "resize"

    def __call__(self, images: Sequence[Tensor], strength: float, generator: torch.Generator) -> list[Tensor]:
        if strength == 0:
            return list(images)
        image, *others = images
        side = max(8, round(image.shape[-1] * (1 - 0.6 * strength)))
        small = nn.functional.interpolate(image, size=(side, side), mode="bilinear", antialias=True)
        back = nn.functional.interpolate(small, size=image.shape[-2:], mode="bilinear")
        return [back, *others]


@dataclass(frozen=True)
class GaussianNoise:
    """Independent noise of standard deviation up to 0.1 (13 grey levels)."""

    name: str = "noise"

    def __call__(self, images: Sequence[Tensor], strength: float, generator: torch.Generator) -> list[Tensor]:
        if strength == 0:
            return list(images)
        image, *others = images
        noise = torch.randn(image.shape, generator=generator).to(image)
        return [(image + 0.1 * strength * noise).clamp(-1, 1), *others]


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with a sigma of up to 1.5 pixels."""

    name: str = "blur"

    def __call__(self, images: Sequence[Tensor], strength: float, generator: torch.Generator) -> list[Tensor]:
        if strength == 0:
            return list(images)
        image, *others = images
        offsets = torch.arange(-4, 5, dtype=torch.float32)
        kernel = torch.exp(-offsets.square() / (2 * (1.5 * strength) ** 2))
        kernel = (kernel / kernel.sum()).to(image)
        x = nn.functional.pad(image, (4, 4, 4, 4), mode="replicate")
        x = nn.functional.conv2d(x, kernel.view(1, 1, 1, -1).expand(3, 1, 1, 9), groups=3)
        return [nn.functional.conv2d(x, kernel.view(1, 1, -1, 1).expand(3, 1, 9, 1), groups=3), *others]


@dataclass(frozen=True)
class Light:
    """Brightness by up to 0.25 and contrast by up to 25%, moved alike in all images: no restorer can know of it."""

    name: str = "light"

    def __call__(self, images: Sequence[Tensor], strength: float, generator: torch.Generator) -> list[Tensor]:
        if strength == 0:
            return list(images)
        batch = images[0].shape[0]
        gain = 1 + strength * _uniform(batch, -0.25, 0.25, generator).view(-1, 1, 1, 1).to(images[0])
        shift = strength * _uniform(batch, -0.25, 0.25, generator).view(-1, 1, 1, 1).to(images[0])
        return [(image * gain + shift).clamp(-1, 1) for image in images]


@dataclass(frozen=True)
class Misalignment:
    """Another detection of the same face: rotation to 6 degrees, scale to 6%, shift to 4% of the crop."""

    name: str = "misalignment"

    def __call__(self, images: Sequence[Tensor], strength: float, generator: torch.Generator) -> list[Tensor]:
        if strength == 0:
            return list(images)
        batch = images[0].shape[0]
        angle = strength * _uniform(batch, -0.105, 0.105, generator)
        zoom = 1 + strength * _uniform(batch, -0.06, 0.06, generator)
        theta = torch.zeros(batch, 2, 3)
        theta[:, 0, 0], theta[:, 0, 1] = zoom * angle.cos(), -zoom * angle.sin()
        theta[:, 1, 0], theta[:, 1, 1] = zoom * angle.sin(), zoom * angle.cos()
        theta[:, 0, 2] = strength * _uniform(batch, -0.08, 0.08, generator)  # affine_grid spans 2 units
        theta[:, 1, 2] = strength * _uniform(batch, -0.08, 0.08, generator)
        grid = nn.functional.affine_grid(theta, list(images[0].shape), align_corners=False).to(images[0])
        return [
            nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False) for image in images
        ]


POOL: tuple[Distortion, ...] = (Jpeg(), Resize(), GaussianNoise(), Blur(), Light(), Misalignment())


def distort(images: Sequence[Tensor], generator: torch.Generator, pool: Sequence[Distortion] = POOL) -> list[Tensor]:
    """Training's draw: each distortion with probability one in three, in the pool's order, at a random strength.

    The strength is the square of a uniform number: mild ones are what most photos meet.
    """
    out = list(images)
    for distortion in reversed(pool):  # geometry and light first, the codec last, as on a photo's way
        draw, strength = torch.rand(2, generator=generator).tolist()
        if draw < 1 / 3:
            out = distortion(out, strength**2, generator)
    return out

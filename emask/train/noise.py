"""The noise pool: what a photo goes through between the generator and whoever reads it, as training sees it.

Strength 0 is the identity, 1 the worst that training meets. Images are (B, 3, S, S) float32 RGB in [-1, 1], on any
device. Evaluation has operations of its own (`emask.handling`): those work on whole photos as files, by the codecs and
filters of real programs, before a face is found; these on batches of crops, and hand a gradient back.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from emask.errors import UsageError
from emask.train.draws import Draws
from emask.train.place import send

# The quantisation tables of ITU-T T.81, annex K (tables K.1 and K.2), which libjpeg scales to a quality.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# Of these at most one is applied: a photo that is saved is saved in one format.
CODECS = ("jpeg", "jpeg-codec", "webp")


class Distortion(Protocol):
    """Degrades the first image; a geometric one or a change of light moves all images given in the same way."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]: ...


def quality_at(strength: float) -> int:
    """A codec's quality, 95 at strength near 0 down to 40 at 1."""
    return round(95 - 55 * strength)


def _symmetric(limit: float, like: Tensor, draws: Draws) -> Tensor:
    """(B, 1, 1, 1), per sample uniform in [-limit, limit], on the device of `like` (B, C, H, W)."""
    return send(limit * (2 * draws.uniform(like.shape[0], 1, 1, 1) - 1), like)


@functools.lru_cache(maxsize=256)
def _constant(device: torch.device, dtype: torch.dtype, make: Callable[..., Tensor], *args: object) -> Tensor:
    """make(*args) on a device, where it stays: it need not travel there in every step."""
    return send(make(*args).to(dtype), device)


def _soft_round(x: Tensor) -> Tensor:
    """Rounding with the cubic residual of Shin & Song (2017), within 1/8 of it; slope 3 (x - round(x))^2, not 0."""
    rounded = x.round()
    return rounded + (x - rounded) ** 3


def _quantisation(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """(8, 8) steps at a quality of 1..100, scaled as libjpeg does."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255).float()


def _cosines() -> Tensor:
    """(8, 8) the orthonormal DCT-II: row u holds the u-th cosine."""
    u, x = torch.arange(8.0).view(8, 1), torch.arange(8.0)
    matrix = torch.cos((2 * x + 1) * u * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def approximate_jpeg(image: Tensor, quality: int, exact: bool = False) -> Tensor:
    """JPEG with 4:2:0 chroma in differentiable steps; entropy coding is left out since it loses nothing.

    Args:
        image: (B, 3, H, W) in [-1, 1]; sides that are no multiple of 16 are padded with their last pixels, as
            libjpeg does.
        quality: 1..100.
        exact: round exactly, and wherever libjpeg holds whole numbers, which leaves no gradient: to be compared with
            the real codec. Otherwise only the quantisation rounds, and with the cubic residual.

    Returns:
        (B, 3, H, W) in [-1, 1].
    """

    def whole(x: Tensor) -> Tensor:
        return x.round() if exact else x

    height, width = image.shape[-2:]
    padded = nn.functional.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate")
    red, green, blue = ((padded + 1) * 127.5).unbind(1)
    # JFIF's YCbCr, with all three centred at 0 as the DCT wants them
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = whole(torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1))
    luma = whole(luma[:, None] - 128)
    cosines = _constant(image.device, image.dtype, _cosines)

    def coded(planes: Tensor, table: tuple[tuple[int, ...], ...]) -> Tensor:
        """(B, C, h, w) planes, quantised in blocks of 8 x 8."""
        step = _constant(image.device, image.dtype, _quantisation, table, quality)
        blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (B, C, h/8, w/8, 8, 8)
        levels = cosines @ blocks @ cosines.T / step
        levels = levels.round() if exact else _soft_round(levels)
        blocks = cosines.T @ (levels * step) @ cosines
        return whole(blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3))

    luma = coded(luma, LUMINANCE)[:, 0] + 128
    chroma = coded(whole(nn.functional.avg_pool2d(chroma, 2)), CHROMINANCE)
    # libjpeg's own enlargement of chroma is the triangle filter, too
    cb, cr = whole(nn.functional.interpolate(chroma, scale_factor=2, mode="bilinear")).unbind(1)
    red, blue = luma + 1.402 * cr, luma + 1.772 * cb
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    decoded = whole(torch.stack([red, green, blue], 1))[..., :height, :width]
    return (decoded / 127.5 - 1).clamp(-1, 1)


@dataclass(frozen=True)
class Jpeg:
    """JPEG as differentiable steps, quality 95 at strength near 0 down to 40 at 1: its gradient knows what is lost."""

    name: str = "jpeg"

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        if strength == 0:
            return list(images)
        image, *others = images
        return [approximate_jpeg(image, quality_at(strength)), *others]


@dataclass(frozen=True)
class Codec:
    """A real codec, quality 95 at strength near 0 down to 40 at 1; its gradient is passed straight through.

    The codec is Pillow's: images on another device travel to the CPU and back, and that device waits for it.
    """

    name: str = "jpeg-codec"
    format: str = "JPEG"

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        if strength == 0:
            return list(images)
        image, *others = images
        pixels = ((image.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        decoded = []
        for crop in pixels.permute(0, 2, 3, 1).cpu().numpy():
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(crop)).save(buffer, self.format, quality=quality_at(strength))
            decoded.append(np.asarray(Image.open(buffer)))
        coded = send(torch.from_numpy(np.stack(decoded)), image.device).permute(0, 3, 1, 2).to(image) / 127.5 - 1
        return [image + (coded - image).detach(), *others]


@dataclass(frozen=True)
class Resize:
    """Shrunk to between 1 and 0.4 of its size with antialiasing, and back."""

    name: str = "resize"

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
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

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        if strength == 0:
            return list(images)
        image, *others = images
        return [(image + 0.1 * strength * draws.normal_like(image)).clamp(-1, 1), *others]


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with a sigma of up to 1.5 pixels."""

    name: str = "blur"

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        if strength == 0:
            return list(images)
        image, *others = images
        offsets = torch.arange(-4, 5, dtype=torch.float32, device=image.device)
        kernel = torch.exp(-offsets.square() / (2 * (1.5 * strength) ** 2))
        kernel = (kernel / kernel.sum()).to(image)
        x = nn.functional.pad(image, (4, 4, 4, 4), mode="replicate")
        x = nn.functional.conv2d(x, kernel.view(1, 1, 1, -1).expand(3, 1, 1, 9), groups=3)
        return [nn.functional.conv2d(x, kernel.view(1, 1, -1, 1).expand(3, 1, 9, 1), groups=3), *others]


def _middle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The median of three numbers at each place of three tensors of one shape."""
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def _median_places(padded: Tensor) -> Tensor:
    """(B, C, H + 2, W + 2) to (B, C, H * W) int64: where in the flat padded plane each 3 x 3 window's median lies."""
    height, width = padded.shape[-2] - 2, padded.shape[-1] - 2
    a, b, c = padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:]
    # Each column of three is sorted once for the three windows it is part of; the median of a window is the middle
    # one of its columns' highest low, middle middle and lowest high.
    low = torch.minimum(torch.minimum(a, b), c)
    mid = _middle(a, b, c)
    high = torch.maximum(torch.maximum(a, b), c)
    median = _middle(
        torch.maximum(torch.maximum(low[..., :-2], low[..., 1:-1]), low[..., 2:]),
        _middle(mid[..., :-2], mid[..., 1:-1], mid[..., 2:]),
        torch.minimum(torch.minimum(high[..., :-2], high[..., 1:-1]), high[..., 2:]),
    )
    rows = torch.arange(height, device=padded.device).view(-1, 1)
    columns = torch.arange(width, device=padded.device)
    places = torch.zeros(median.shape, dtype=torch.long, device=padded.device)
    # the window's own pixel comes last, so that it is taken where several are equal
    for down, right in ((0, 0), (0, 2), (2, 0), (2, 2), (0, 1), (1, 0), (1, 2), (2, 1), (1, 1)):
        is_median = padded[..., down : down + height, right : right + width] == median
        places = torch.where(is_median, (rows + down) * (width + 2) + columns + right, places)
    return places.flatten(2)


@dataclass(frozen=True)
class Median:
    """The median of 3 x 3 pixels per channel, mixed in by the strength: (1 - s) x + s median(x).

    The gradient goes to the pixel that is the median.
    """

    name: str = "median"

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        if strength == 0:
            return list(images)
        image, *others = images
        padded = nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
        # found without a gradient, then picked: several times as fast as torch.median over unfolded windows
        with torch.no_grad():
            places = _median_places(padded)
        median = padded.flatten(2).gather(2, places).view_as(image)
        return [(1 - strength) * image + strength * median, *others]


@dataclass(frozen=True)
class Brightness:
    """Lighter or darker by up to 0.25, moved alike in all images: no restorer can know of it."""

    name: str = "brightness"

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        if strength == 0:
            return list(images)
        shift = _symmetric(0.25 * strength, images[0], draws)
        return [(image + shift).clamp(-1, 1) for image in images]


@dataclass(frozen=True)
class Contrast:
    """Stretched about mid grey by up to 25%, or squeezed, alike in all images: no restorer can know of it."""

    name: str = "contrast"

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        if strength == 0:
            return list(images)
        gain = 1 + _symmetric(0.25 * strength, images[0], draws)
        return [(image * gain).clamp(-1, 1) for image in images]


def moved(
    images: Sequence[Tensor], angle: Tensor, zoom: Tensor, right: Tensor, down: Tensor, mode: str
) -> list[Tensor]:
    """Images moved alike about their middle, border pixels repeated; each number (B, 1, 1), a side being 2 long."""
    first = images[0]
    # not affine_grid: its matrix product may run in half precision, and a pixel is 0.01 of a side
    y, x = (((2 * torch.arange(n, device=first.device) + 1) / n - 1).to(first) for n in first.shape[-2:])
    y, x = y.view(1, -1, 1), x.view(1, 1, -1)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    grid = torch.stack([cos * x - sin * y + right, sin * x + cos * y + down], -1)  # (B, H, W, 2)
    return [nn.functional.grid_sample(image, grid, mode, "border", align_corners=False) for image in images]


@dataclass(frozen=True)
class Misalignment:
    """Another detection of the same face, so all images move alike, their border pixels repeated.

    Attributes:
        degrees: the largest rotation, either way.
        zoom: the largest change of scale, as a share of 1.
        shift: the largest shift along each side, as a share of it.
    """

    name: str = "misalignment"
    degrees: float = 6.0
    zoom: float = 0.06
    shift: float = 0.04

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        if strength == 0:
            return list(images)
        first = images[0]
        angle = _symmetric(strength * math.radians(self.degrees), first, draws)[..., 0]
        zoom = 1 + _symmetric(strength * self.zoom, first, draws)[..., 0]
        right = _symmetric(strength * 2 * self.shift, first, draws)[..., 0]  # a side of the grid is 2 long
        down = _symmetric(strength * 2 * self.shift, first, draws)[..., 0]
        return moved(images, angle, zoom, right, down, "bilinear")


@dataclass(frozen=True)
class Crop:
    """A photo that was cut close to the face: up to 15% of each side repeats the last pixels that are left.

    Cutting a photo does not move its face in the aligned crop: whoever reads it detects the face again and puts it
    in the same place. What changes is that the crop now reaches outside the photo, where the alignment repeats the
    photo's border. All images lose the same border: no restorer can know what was cut off.
    """

    name: str = "crop"

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        if strength == 0:
            return list(images)
        batch, _, height, width = images[0].shape
        lost = 0.15 * strength * draws.uniform(batch, 4)  # (B, 4) shares: left, right, top, bottom
        pixels = (lost * torch.tensor([width, width, height, height])).round().long()
        left, right, top, bottom = pixels.unsqueeze(-1).unbind(1)
        columns = torch.arange(width).clamp(min=left).minimum(width - 1 - right).view(batch, 1, 1, width)
        rows = torch.arange(height).clamp(min=top).minimum(height - 1 - bottom).view(batch, 1, height, 1)
        columns, rows = send(columns, images[0].device), send(rows, images[0].device)
        return [torch.take_along_dim(torch.take_along_dim(image, rows, 2), columns, 3) for image in images]


@dataclass(frozen=True)
class Redetection:
    """The face found again in the protected photo, where its landmarks are a little off: what `erase` always meets.

    A restorer trained on crops that lie exactly where the generator had them reads the mask by its place in the pixel
    grid, and loses 3 dB on photos. So this one is no part of the pool: it is always there.

    Attributes:
        shift: standard deviation along each side, pixels of a crop of 128.
        degrees: of the rotation.
        zoom: of the logarithm of the scale.

    The defaults are what was measured between 48 photos of training's kind and their protected JPEG files.
    """

    name: str = "redetection"
    shift: float = 0.55
    degrees: float = 1.1
    zoom: float = 0.017

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        if strength == 0:
            return list(images)
        first = images[0]
        normal = strength * send(draws.normal(len(first), 4, 1, 1), first)
        angle, zoom, right, down = normal.unbind(1)
        shift = 2 * self.shift / 128
        angle, zoom = math.radians(self.degrees) * angle, (self.zoom * zoom).exp()
        # bicubic, as the alignment
        images = moved(images, angle, zoom, shift * right, shift * down, "bicubic")
        return [image.clamp(-1, 1) for image in images]


# In the reverse of a photo's way: what happens last comes first.
_ALL: tuple[Distortion, ...] = (
    Jpeg(),
    Codec(),
    Codec("webp", "WEBP"),
    Resize(),
    GaussianNoise(),
    Blur(),
    Median(),
    Brightness(),
    Contrast(),
    Misalignment(),
    Misalignment("rotation", degrees=10.0, zoom=0.0, shift=0.0),
    Crop(),
)
POOL: dict[str, Distortion] = {distortion.name: distortion for distortion in _ALL}


def choose_pool(names: Sequence[str]) -> tuple[Distortion, ...]:
    """The distortions of these names, each once, in POOL's order.

    Args:
        names: of POOL; or the single word "none" for an empty pool, or "all".

    Raises:
        UsageError: a name is not known.
    """
    if list(names) == ["none"]:
        return ()
    if list(names) == ["all"]:
        return tuple(POOL.values())
    unknown = [name for name in dict.fromkeys(names) if name not in POOL]
    if unknown:
        raise UsageError(
            f"unknown distortion: {', '.join(unknown)}", f"known: {', '.join(POOL)}; or none, or all, on its own"
        )
    return tuple(distortion for name, distortion in POOL.items() if name in names)


def distort(images: Sequence[Tensor], draws: Draws, pool: Sequence[Distortion] | None = None) -> list[Tensor]:
    """Training's draw: geometry and light first, one codec or none last, as on a photo's way, at random strengths.

    A codec is applied with probability one half, all codecs of the pool being equally likely. Each other distortion
    is applied with probability one in three, or less in a large pool, so that about two in all hit a batch: a photo
    rarely meets more, and nothing could be learned from what is left after six. The strength is the square of a
    uniform number: mild ones are what most photos meet.

    Args:
        images: (B, 3, S, S) in [-1, 1]; the first is degraded, the others only move with it.
        draws: every process of a distributed run applies the same distortions at the same strengths.
        pool: as from `choose_pool`; None is all of it. From an empty pool nothing is drawn.
    """
    pool = tuple(POOL.values()) if pool is None else pool
    codecs = [distortion for distortion in pool if distortion.name in CODECS]
    rest = [distortion for distortion in reversed(pool) if distortion.name not in CODECS]
    chance = min(1 / 3, 1.5 / max(len(rest), 1))
    out = list(images)
    # half precision would round away the small differences that this is about
    with torch.autocast(images[0].device.type, enabled=False):
        for distortion in rest:
            hit, strength = draws.shared(2)
            if hit < chance:
                out = distortion(out, strength**2, draws)
        if codecs:
            hit, which, strength = draws.shared(3)
            if hit < 1 / 2:
                out = codecs[int(which * len(codecs))](out, strength**2, draws)
    return out

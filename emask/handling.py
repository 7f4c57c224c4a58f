"""What happens to photos on their way: recompression, scaling, turning, cutting, filters, what platforms do.

An operation works on decoded pixels and gives what a reader decodes after it. Everything is Pillow's: the codecs and
filters that real programs use, not those that training knows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from emask.errors import UsageError, first_line

# a picture, the operation's value and the picture's number in a run -> the picture afterwards
Apply = Callable[[Image.Image, float, int], Image.Image]


@dataclass(frozen=True)
class Kind:
    """A kind of operation.

    Attributes:
        value: what its number says.
        low, high: the number's range.
        whole: whether the number must be whole.
        apply: does it.
    """

    value: str
    low: float
    high: float
    whole: bool
    apply: Apply


def _coded(kind: str) -> Apply:
    def apply(picture: Image.Image, quality: float, number: int) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, kind, quality=int(quality))
        return Image.open(stream).convert("RGB")

    return apply


def _scaled(picture: Image.Image, percent: float, number: int) -> Image.Image:
    width, height = (max(1, round(side * percent / 100)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _resized(picture: Image.Image, side: float, number: int) -> Image.Image:
    longest = max(picture.size)
    return picture if longest <= side else _scaled(picture, 100 * side / longest, number)


def _shrunk(picture: Image.Image, percent: float, number: int) -> Image.Image:
    return _scaled(picture, percent, number).resize(picture.size, Image.Resampling.BICUBIC)


def _turned(picture: Image.Image, degrees: float, number: int) -> Image.Image:
    angle = degrees if number % 2 == 0 else -degrees
    return picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)


def _cut(picture: Image.Image, percent: float, number: int) -> Image.Image:
    width, height = picture.size
    left, top = (min(round(side * (1 - percent / 100) / 2), (side - 1) // 2) for side in picture.size)
    return picture.crop((left, top, width - left, height - top))


def _blurred(picture: Image.Image, sigma: float, number: int) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(sigma))


def _median(picture: Image.Image, size: float, number: int) -> Image.Image:
    return picture.filter(ImageFilter.MedianFilter(2 * (int(size) // 2) + 1))


def _grained(picture: Image.Image, deviation: float, number: int) -> Image.Image:
    noise = np.random.default_rng(number).normal(0, deviation, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).round().astype(np.uint8))


def _brightened(picture: Image.Image, percent: float, number: int) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(percent / 100)


OPERATIONS: dict[str, Kind] = {
    "jpeg": Kind("quality; chroma is halved", 1, 100, True, _coded("JPEG")),
    "webp": Kind("quality", 1, 100, True, _coded("WEBP")),
    "resize": Kind("longer side in pixels; never enlarges", 16, 20_000, True, _resized),
    "scale": Kind("percent of the size", 1, 400, False, _scaled),
    "shrink": Kind("percent of the size, and back to it", 1, 100, False, _shrunk),
    "rotate": Kind("degrees; odd photos of a bench turn the other way", -180, 180, False, _turned),
    "crop": Kind("percent of each side, the middle", 1, 100, False, _cut),
    "blur": Kind("Gaussian, standard deviation in pixels", 0, 100, False, _blurred),
    "median": Kind("side of the window in pixels, odd", 1, 15, True, _median),
    "noise": Kind("Gaussian, standard deviation in grey levels", 0, 255, False, _grained),
    "brightness": Kind("percent", 0, 500, False, _brightened),
}

# By name, in operations. What platforms do is not published and changes: approximations.
NAMED = {
    "chain": "resize:1080,jpeg:85,jpeg:75",
    "facebook": "resize:2048,jpeg:80",
    "instagram": "resize:1080,jpeg:75",
    "twitter": "resize:4096,jpeg:85",
    "whatsapp": "resize:1600,jpeg:70",
    "screenshot": "scale:85",
}
# What a bench of all handlings goes through; where no codec is named, the photo is saved as JPEG 90 afterwards.
ALL = (
    "jpeg:75", "jpeg:50", "webp:80", "shrink:50,jpeg:90", "chain", "rotate:10,jpeg:90", "crop:90,jpeg:90",
    "blur:1,jpeg:90", "median:3,jpeg:90", "noise:5,jpeg:90", "brightness:120,jpeg:90", "facebook", "instagram",
    "twitter", "whatsapp", "screenshot",
)  # fmt: skip
# What curves are drawn of (`emask.bench.robustness`): one operation, at several numbers.
CURVES = (
    "jpeg:95", "jpeg:85", "jpeg:75", "jpeg:60", "jpeg:45", "jpeg:30", "rotate:5,jpeg:90", "rotate:10,jpeg:90",
    "rotate:20,jpeg:90", "rotate:30,jpeg:90", "crop:95,jpeg:90", "crop:90,jpeg:90", "crop:80,jpeg:90",
    "crop:70,jpeg:90", "scale:75,jpeg:90", "scale:50,jpeg:90", "scale:35,jpeg:90", "scale:25,jpeg:90",
)  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One operation on a picture: its name in OPERATIONS, and its number."""

    name: str
    value: float

    def __call__(self, pixels: np.ndarray, number: int = 0) -> np.ndarray:
        """(H, W, 3) uint8 RGB to (H', W', 3) uint8 RGB.

        Args:
            number: of the photo in a run; what could be drawn goes by it.

        Raises:
            UsageError: a picture this cannot be done to, as one larger than a codec allows.
        """
        try:
            return np.asarray(OPERATIONS[self.name].apply(Image.fromarray(pixels), self.value, number))
        except (OSError, ValueError, MemoryError) as error:
            size = f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
            message = f"{self.name}:{self.value:g} cannot be done to a photo of {size}: {first_line(error)}"
            raise UsageError(message, "resize it first, as with resize:4096") from None


@dataclass(frozen=True)
class Handling:
    """Operations in order.

    Attributes:
        name: as a user wrote it.
        operations: what it stands for.
    """

    name: str
    operations: tuple[Operation, ...]

    @property
    def what(self) -> str:
        """In operations, as a user could write it."""
        return ",".join(f"{operation.name}:{operation.value:g}" for operation in self.operations)

    def __call__(self, pixels: np.ndarray, number: int = 0) -> np.ndarray:
        """As for an operation."""
        for operation in self.operations:
            pixels = operation(pixels, number)
        return pixels


def parse(text: str, option: str = "--after") -> Handling:
    """Read "jpeg:75,resize:1080", or a name of NAMED, which may stand among operations too.

    Args:
        option: where the text comes from, for the error.

    Raises:
        UsageError: an unknown operation, or a number out of range.
    """
    operations: list[Operation] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if part in NAMED:
            operations += parse(NAMED[part]).operations
            continue
        name, _, number = part.partition(":")
        if name not in OPERATIONS:
            hint = f"write for example jpeg:75,resize:1080; operations: {', '.join(OPERATIONS)}; or {', '.join(NAMED)}"
            raise UsageError(f"{option} does not know {part!r}", hint)
        kind = OPERATIONS[name]
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f"{option} {part!r} needs a number after the colon", f"{name}: {kind.value}") from None
        fits = np.isfinite(value) and kind.low <= value <= kind.high and (not kind.whole or value == int(value))
        if not fits:
            raise UsageError(f"{option} {part!r} is out of range: {kind.low} to {kind.high}", f"{name}: {kind.value}")
        operations.append(Operation(name, value))
    return Handling(text, tuple(operations))


def choose(texts: Sequence[str], option: str) -> list[Handling]:
    """Each text read; "all" stands for ALL, "curves" for CURVES."""
    several = {"all": ALL, "curves": CURVES}
    wanted = [name for text in texts for name in several.get(text, (text,))]
    return [parse(text, option) for text in dict.fromkeys(wanted)]

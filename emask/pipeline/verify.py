"""Comparing the faces of two photos, after operations that photos go through on their way."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from emask.errors import NoFaceError, UsageError
from emask.images import Photo
from emask.pipeline.protect import FaceRecognizer, cut
from emask.results import Comparison, VerifyResult

if TYPE_CHECKING:
    from emask.face.detect import Detector, Face

# Name of an operation to its smallest and largest value.
OPERATIONS = {"jpeg": (1, 100), "webp": (1, 100), "resize": (16, 20_000), "blur": (0, 100)}
_HINT = "write for example jpeg:75,resize:1080; operations: jpeg:Q, webp:Q, resize:LONG_EDGE, blur:SIGMA"


@dataclass(frozen=True)
class Operation:
    """One operation on a picture.

    Attributes:
        name: "jpeg", "webp" (value: quality 1..100), "resize" (longer side in pixels; never enlarges) or "blur"
            (Gaussian, standard deviation in pixels).
        value: as above.
    """

    name: str
    value: float

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Apply it to (H, W, 3) uint8 RGB."""
        image = Image.fromarray(pixels)
        if self.name in ("jpeg", "webp"):
            buffer = io.BytesIO()
            image.save(buffer, format=self.name.upper(), quality=int(self.value))
            image = Image.open(buffer).convert("RGB")
        elif self.name == "resize":
            scale = self.value / max(image.size)
            if scale < 1:
                size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
                image = image.resize(size, Image.Resampling.LANCZOS)
        else:
            image = image.filter(ImageFilter.GaussianBlur(self.value))
        return np.asarray(image)


def parse_operations(text: str) -> list[Operation]:
    """Read "jpeg:75,resize:1080".

    Raises:
        UsageError: for an unknown operation or a value out of range.
    """
    operations = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, number = part.partition(":")
        if name not in OPERATIONS:
            raise UsageError(f"--after does not know {part!r}", _HINT)
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f"--after {part!r} needs a number after the colon", _HINT) from None
        low, high = OPERATIONS[name]
        whole = name == "blur" or value == int(value) if np.isfinite(value) else False
        if not whole or not low <= value <= high:
            raise UsageError(f"--after {part!r} is out of range: {low} to {high}", _HINT)
        operations.append(Operation(name, value))
    return operations


def verify_photos(
    a: Photo,
    b: Photo,
    recognizers: Sequence[FaceRecognizer],
    *,
    detector: Detector,
    after: str = "",
) -> VerifyResult:
    """Compare the largest face of each photo.

    Args:
        recognizers: each gives one comparison.
        after: operations applied to `a` first, as for `parse_operations`.

    Raises:
        NoFaceError: one of the photos shows no face.
        UsageError: `after` cannot be read.
    """
    pixels = a.pixels
    for operation in parse_operations(after):
        pixels = operation(pixels)
    found_a, found_b = detector.detect([pixels, b.pixels])
    crop_a = _largest(pixels, found_a, a.name + (f" after {after}" if after else ""))
    crop_b = _largest(b.pixels, found_b, b.name)
    crops = np.stack([crop_a, crop_b])
    comparisons = []
    for recognizer in recognizers:
        first, second = recognizer.embed(crops)
        cosine = float(np.clip(first @ second, -1, 1))
        thresholds = {far: float(value) for far, value in recognizer.thresholds.items()}
        comparisons.append(
            Comparison(
                recognizer=recognizer.name,
                cosine=cosine,
                thresholds=thresholds,
                matches={far: cosine >= value for far, value in thresholds.items()},
            )
        )
    notes = []
    for name, found in ((a.name, found_a), (b.name, found_b)):
        if len(found) > 1:
            notes.append(f"{name} shows {len(found)} faces; the largest was compared")
    if pixels.shape == b.pixels.shape and np.array_equal(pixels, b.pixels):
        notes.append("both photos have the same pixels")
    return VerifyResult(
        a=a.name,
        b=b.name,
        after=after,
        faces_a=len(found_a),
        faces_b=len(found_b),
        comparisons=tuple(comparisons),
        notes=tuple(notes),
    )


def _largest(pixels: np.ndarray, faces: Sequence[Face], name: str) -> np.ndarray:
    if not faces:
        raise NoFaceError(f"no face found in {name}", "use a photo in which the face is larger and not hidden")
    return np.asarray(cut(pixels, faces[:1])[1][0])

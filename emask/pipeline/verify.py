"""Comparing the faces of two photos, after operations that photos go through on their way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from emask.errors import NoFaceError
from emask.handling import parse
from emask.images import Photo
from emask.pipeline.protect import FaceRecognizer, cut
from emask.results import Comparison, VerifyResult

if TYPE_CHECKING:
    from emask.face.detect import Detector, Face

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
        after: operations applied to `a` first, as for `handling.parse`.

    Raises:
        NoFaceError: one of the photos shows no face.
        UsageError: `after` cannot be read.
    """
    pixels = parse(after)(a.pixels)
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

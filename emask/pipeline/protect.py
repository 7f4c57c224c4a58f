"""Masking the faces in photos, and measuring what the written files show a recognizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from emask.engine import Engine, to_grey_levels, to_network
from emask.errors import UsageError
from emask.face.align import CROP, Similarity, align, estimate, paste_change
from emask.images import Photo
from emask.results import FaceProtection

if TYPE_CHECKING:
    from emask.face.detect import Detector, Face


class FaceRecognizer(Protocol):
    """What `emask.recognize.Recognizer` and `emask.engine.ShippedRecognizer` have in common."""

    name: str
    thresholds: dict[str, float]

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """Unit embeddings, (N, D) float32, of aligned crops, (N, 128, 128, 3) uint8 RGB."""
        ...


# Largest share of a face's size by which its centre may move between the photo and the written file.
_SAME_FACE = 0.5


@dataclass(frozen=True)
class ChangedPhoto:
    """A photo after its faces were changed, before it is written.

    Attributes:
        pixels: (H, W, 3) uint8 RGB; bit-identical to the photo's outside the face regions.
        faces: the faces that were changed, largest first; empty when none was found.
        crops: (N, 128, 128, 3) uint8 RGB, the faces before the change.
    """

    pixels: np.ndarray
    faces: tuple[Face, ...]
    crops: np.ndarray


def choose_faces(faces: Sequence[Face], which: str) -> list[Face]:
    """The faces to work on, of a list that has the largest first.

    Args:
        which: "all", "largest", or a number N for the N largest.

    Raises:
        UsageError: for anything else.
    """
    if which == "all":
        return list(faces)
    if which == "largest":
        return list(faces[:1])
    if which.isdecimal() and int(which) > 0:
        return list(faces[: int(which)])
    raise UsageError(f"--faces {which} is neither all, largest nor a number above 0")


def cut(photo: np.ndarray, faces: Sequence[Face]) -> tuple[list[Similarity], np.ndarray]:
    """The transforms and crops, (N, 128, 128, 3) uint8, of faces in a photo, (H, W, 3) uint8."""
    transforms = [estimate(face.points) for face in faces]
    crops = [align(photo, transform) for transform in transforms]
    return transforms, np.stack(crops) if crops else np.zeros((0, CROP, CROP, 3), np.uint8)


def protect_photos(
    photos: Sequence[Photo],
    target: np.ndarray,
    *,
    engine: Engine,
    detector: Detector,
    w: float,
    eps: float,
    faces: str = "all",
    b: np.ndarray | None = None,
) -> list[ChangedPhoto]:
    """Mask the faces of several photos; their crops share the engine's batches.

    Args:
        photos: any number, of any sizes.
        target: (D,), the target by `Engine.embed_person`.
        engine: opened with a generator.
        w, eps: strength, as for `Engine.protect`.
        faces: "all", "largest" or a number N for the N largest.
        b: (13,) labels the faces shall have (`emask.attributes.labels`), zeros for what stays; None keeps the look. The
            edit is no part of the budget: it is made even at eps 0.

    Returns:
        One per photo, in order; one without faces has none and its pixels unchanged.
    """

    def change(crops: np.ndarray) -> np.ndarray:
        # nothing tells here which labels a face has: a = zeros stands for "as it is", and so the edit is what b adds
        wanted = None if b is None else np.broadcast_to(b, (len(crops), len(b)))
        return engine.protect(crops, target, w=w, eps=eps, b=wanted)

    return change_faces(photos, detector, change, faces)


def change_faces(
    photos: Sequence[Photo],
    detector: Detector,
    change: Callable[[np.ndarray], np.ndarray],
    which: str = "all",
) -> list[ChangedPhoto]:
    """Find the faces of photos, compute a change for all their crops together, and add it to the pixels.

    Overlapping faces are each computed from the unchanged photo and their changes are added up.

    Args:
        change: (N, 3, 128, 128) float32 in [-1, 1] to the change of the same shape.
        which: as for `choose_faces`.
    """
    choose_faces((), which)  # a wrong request fails before the work
    found = detector.detect([photo.pixels for photo in photos])
    chosen = [choose_faces(faces, which) for faces in found]
    cuts = [cut(photo.pixels, faces) for photo, faces in zip(photos, chosen, strict=True)]
    crops = np.concatenate([crops for _, crops in cuts]) if cuts else np.zeros((0, CROP, CROP, 3), np.uint8)
    changes = to_grey_levels(change(to_network(crops))) if len(crops) else np.zeros(crops.shape, np.float32)
    results = []
    start = 0
    for photo, faces, (transforms, own) in zip(photos, chosen, cuts, strict=True):
        pixels = photo.pixels
        for transform, levels in zip(transforms, changes[start : start + len(own)], strict=True):
            if photo.grey:  # one channel is written: give all three what it will get
                levels = np.repeat(levels.mean(axis=2, keepdims=True), 3, axis=2)
            pixels = paste_change(pixels, levels, transform)
        start += len(own)
        results.append(ChangedPhoto(pixels, tuple(faces), own))
    return results


def measure_protection(
    photo: Photo,
    changed: ChangedPhoto,
    written: Photo,
    found: Sequence[Face],
    target: np.ndarray,
    recognizer: FaceRecognizer,
) -> tuple[FaceProtection, ...]:
    """What a recognizer sees in the written file.

    Args:
        photo: the original.
        changed: its faces, as returned by `protect_photos`.
        written: the output, decoded again from what was written.
        found: the faces detected in it afresh.
        target: (D,) unit embedding of the target by the same recognizer.
        recognizer: measures the similarities.

    Returns:
        One per changed face, in the same order.
    """
    if not changed.faces:
        return ()
    before = recognizer.embed(changed.crops)
    again = match_faces(changed.faces, found)
    after = embed_found(written.pixels, again, recognizer)
    results = []
    for index, face in enumerate(changed.faces):
        vector = after[index]
        left, top, right, bottom = box = box_of(face, photo.pixels.shape)
        region = (slice(top, bottom), slice(left, right))
        results.append(
            FaceProtection(
                box=box,
                target_before=float(before[index] @ target),
                target_after=None if vector is None else float(vector @ target),
                source_after=None if vector is None else float(vector @ before[index]),
                threshold=float(recognizer.thresholds["0.01"]),
                psnr=psnr(photo.pixels[region], written.pixels[region]),
            )
        )
    return tuple(results)


def match_faces(wanted: Sequence[Face], found: Sequence[Face]) -> list[Face | None]:
    """For each wanted face the found one at the same place, or None; each found face is given out once."""
    left = list(found)
    matches: list[Face | None] = []
    for face in wanted:
        centre = _centre(face)
        near = [(float(np.hypot(*(_centre(other) - centre))), index) for index, other in enumerate(left)]
        distance, index = min(near, default=(np.inf, -1))
        matches.append(left.pop(index) if distance <= _SAME_FACE * face.size else None)
    return matches


def embed_found(
    pixels: np.ndarray, faces: Sequence[Face | None], recognizer: FaceRecognizer
) -> list[np.ndarray | None]:
    """Embeddings of the faces that are there, aligned afresh; None where there is none."""
    present = [face for face in faces if face is not None]
    if not present:
        return [None] * len(faces)
    vectors = iter(recognizer.embed(cut(pixels, present)[1]))
    return [None if face is None else next(vectors) for face in faces]


def _centre(face: Face) -> np.ndarray:
    return np.array([face.box[0] + face.box[2], face.box[1] + face.box[3]]) / 2


def box_of(face: Face, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The face's box in whole pixels, kept inside a picture of this shape."""
    height, width = shape[:2]
    left, top, right, bottom = (int(round(float(value))) for value in face.box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one shape, in dB; inf when they are equal."""
    error = float(np.mean((first.astype(np.float64) - second) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))

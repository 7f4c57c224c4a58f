"""Taking the mask off protected photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from emask.engine import Engine
from emask.errors import NoFaceError
from emask.images import Photo
from emask.pipeline.protect import ChangedPhoto, FaceRecognizer, box_of, change_faces, cut, embed_found, match_faces
from emask.results import FaceErasure

if TYPE_CHECKING:
    from emask.face.detect import Detector, Face


def erase_photos(
    photos: Sequence[Photo], *, engine: Engine, detector: Detector, faces: str = "all"
) -> list[ChangedPhoto]:
    """Erase the mask from the faces of several protected photos; their crops share the engine's batches.

    Args:
        photos: protected photos, also when they were recompressed or resized since.
        engine: opened with the restorer (the key).
        faces: "all", "largest" or a number N for the N largest.

    Returns:
        One per photo, in order; `crops` hold the protected faces.
    """
    return change_faces(photos, detector, engine.erase, faces)


def reference_embedding(photo: Photo, detector: Detector, recognizer: FaceRecognizer) -> np.ndarray:
    """(D,) unit embedding of the largest face of a reference photo of the owner.

    Raises:
        NoFaceError: no face in it.
    """
    faces = detector.detect([photo.pixels])[0]
    if not faces:
        raise NoFaceError(f"no face found in the reference {photo.name}", "use a sharp photo of the owner")
    return np.asarray(recognizer.embed(cut(photo.pixels, faces[:1])[1])[0])


def measure_erasure(
    changed: ChangedPhoto,
    written: Photo,
    found: Sequence[Face],
    recognizer: FaceRecognizer,
    reference: np.ndarray | None = None,
) -> tuple[FaceErasure, ...]:
    """What a recognizer sees in the written file. Whether it is the owner again only a reference can tell.

    Args:
        changed: the faces, as returned by `erase_photos`.
        written: the output, decoded again from what was written.
        found: the faces detected in it afresh.
        reference: (D,) unit embedding of the owner by this recognizer, or None.
    """
    if not changed.faces:
        return ()
    before = recognizer.embed(changed.crops)
    after = embed_found(written.pixels, match_faces(changed.faces, found), recognizer)
    return tuple(
        FaceErasure(
            box=box_of(face, written.pixels.shape),
            protected_restored=None if vector is None else float(vector @ own),
            reference_before=None if reference is None else float(own @ reference),
            reference_after=None if reference is None or vector is None else float(vector @ reference),
            threshold=float(recognizer.thresholds["0.01"]),
        )
        for face, own, vector in zip(changed.faces, before, after, strict=True)
    )

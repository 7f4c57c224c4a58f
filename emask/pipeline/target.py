"""Whom masks are made for: one person, by one photo or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emask.engine import unit
from emask.errors import EmaskError, NoFaceError, UsageError
from emask.face.detect import Detector
from emask.images import Photo, load_photo
from emask.pipeline.protect import cut


def target_crop(photo: Photo, detector: Detector) -> np.ndarray:
    """The aligned face of the target's photo.

    Returns:
        (1, 128, 128, 3) uint8 RGB.

    Raises:
        NoFaceError: no face in it.
        UsageError: several, so that it is unclear who is meant.
    """
    faces = detector.detect([photo.pixels])[0]
    if not faces:
        raise NoFaceError(f"no face found in the target {photo.name}", "use a sharp, frontal photo of one person")
    if len(faces) > 1:
        raise UsageError(
            f"the target {photo.name} shows {len(faces)} faces, not one", "crop it to the person who is meant"
        )
    return cut(photo.pixels, faces)[1]


@dataclass(frozen=True)
class TargetPhotos:
    """The photos a target is given by.

    Attributes:
        crops: (N, 128, 128, 3) uint8 RGB, N at least 1.
        used: N files.
        left_out: files of a folder that cannot be used, and why.
    """

    crops: np.ndarray
    used: list[Path]
    left_out: dict[Path, str]


def read_target(files: Mapping[Path, bool], detector: Detector) -> TargetPhotos:
    """The faces of a target in its photos.

    Args:
        files: photos; those that are True were named by the user and have to be usable, the others only some of them.

    Raises:
        EmaskError: a photo that has to be usable cannot be read, or shows no face or several.
        NoFaceError: none is usable.
    """
    crops, used, left_out = [], [], {}
    for file, named in files.items():
        try:
            crops.append(target_crop(load_photo(file), detector))
            used.append(file)
        except EmaskError as error:
            if named:
                raise
            left_out[file] = error.message
    if not crops:
        folders = ", ".join(dict.fromkeys(str(file.parent) for file in files))
        hint = "put sharp, frontal photos there that show nobody else"
        raise NoFaceError(f"no photo of the target in {folders} shows exactly one face", hint)
    return TargetPhotos(np.concatenate(crops), used, left_out)


def refuse_strangers(embeddings: np.ndarray, files: Sequence[Path], threshold: float) -> None:
    """See that photos show one person: each is compared with the mean of the others.

    Args:
        embeddings: (N, D) unit.
        threshold: cosine below which a photo is of somebody else.

    Raises:
        UsageError: one is.
    """
    if len(embeddings) < 2:
        return
    others = unit(embeddings.sum(0) - embeddings)
    cosines = (embeddings * others).sum(1)
    odd = int(cosines.argmin())
    if cosines[odd] < threshold:
        # of two, nobody can tell which is the wrong one
        who = f"{files[odd]} is unlike the others" if len(files) > 2 else f"{files[0]} and {files[1]} are unlike"
        raise UsageError(
            f"the target's photos show different people: {who}"
            f" (similarity {cosines[odd]:.2f}, one person has {threshold:.2f} and more)",
            "leave out what shows somebody else; one target is one person",
        )

"""Face detection: facenet-pytorch's MTCNN, in batches, at a bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from emask.engine.device import torch_device
from emask.errors import device_failure

# Longest side, in pixels, at which a photo is searched. MTCNN's cost grows with the area and its smallest scale is set
# by MIN_FACE, so a 12-megapixel photo costs no more than a 1280-pixel one; landmarks are scaled back afterwards.
DETECTION_SIZE = 1280
# Smallest face side, in pixels of the searched picture, that MTCNN looks for.
MIN_FACE = 28
# A detection below this MTCNN probability is not treated as a face.
MIN_PROBABILITY = 0.90


@dataclass(frozen=True)
class Face:
    """One detected face, in pixel coordinates of the photo (x right, y down, pixel centres at integers).

    Attributes:
        box: (4,) float32: left, top, right, bottom.
        points: (5, 2) float32: left eye, right eye, nose, left and right mouth corner, as seen in the picture.
        probability: MTCNN's confidence, 0..1.
    """

    box: np.ndarray
    points: np.ndarray
    probability: float

    @property
    def size(self) -> float:
        """The longer side of the box in pixels."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))


def main_face(faces: Sequence[Face], shape: tuple[int, ...]) -> Face | None:
    """The face nearest to the middle, larger ones preferred: in a person's folder that is the person."""
    if not faces:
        return None
    middle = np.array([shape[1] / 2, shape[0] / 2])
    return min(faces, key=lambda f: float(np.hypot(*(f.points.mean(0) - middle))) - f.size / 2)


class Detector:
    """MTCNN over whole photos. Faces come back largest first.

    Args:
        device: a torch device name; "auto" takes CUDA where it works.
        detection_size: longest side at which photos are searched, in pixels.
        min_face: smallest face side looked for, in pixels of the searched picture.
        min_probability: detections below it are dropped.

    Raises:
        EmaskError: CUDA was asked for and does not work.
    """

    def __init__(
        self,
        device: str = "auto",
        detection_size: int = DETECTION_SIZE,
        min_face: int = MIN_FACE,
        min_probability: float = MIN_PROBABILITY,
    ) -> None:
        from facenet_pytorch import MTCNN

        self.device = torch_device(device)
        self.detection_size = detection_size
        self.min_probability = min_probability
        self._mtcnn = MTCNN(keep_all=True, min_face_size=min_face, device=self.device, post_process=False).eval()

    def detect(self, photos: Sequence[np.ndarray], batch_size: int = 32) -> list[list[Face]]:
        """Find the faces in each photo.

        Args:
            photos: (H, W, 3) uint8 RGB arrays; photos of one size share a batch.
            batch_size: most photos in one MTCNN batch.

        Returns:
            One list per photo, in the order given, largest face first; empty where none was found.

        Raises:
            EmaskError: out of memory, or the GPU failed.
        """
        found: list[list[Face]] = [[] for _ in photos]
        groups: dict[tuple[int, int], list[int]] = {}
        searched: list[tuple[np.ndarray, float]] = []
        for index, photo in enumerate(photos):
            small, scale = self._bounded(photo)
            searched.append((small, scale))
            groups.setdefault((small.shape[0], small.shape[1]), []).append(index)
        for indices in groups.values():
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                self._detect_batch(batch, searched, found)
        return found

    def _bounded(self, photo: np.ndarray) -> tuple[np.ndarray, float]:
        height, width = photo.shape[:2]
        scale = min(1.0, self.detection_size / max(height, width))
        if scale == 1.0:
            return photo, 1.0
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX, reducing_gap=2.0))
        return small, scale

    def _detect_batch(
        self, batch: list[int], searched: list[tuple[np.ndarray, float]], found: list[list[Face]]
    ) -> None:
        pixels = np.stack([searched[i][0] for i in batch])
        if min(pixels.shape[1:3]) < 24:  # smaller than one MTCNN window
            return
        try:
            boxes, probabilities, points = self._mtcnn.detect(pixels, landmarks=True)
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            failure = device_failure(error)
            if failure is not None:  # says nothing of the photo
                raise failure from None
            # facenet-pytorch fails on a whole batch when one stage is left without candidates; the photos are then
            # taken one by one, and the one that has none is a photo without a face.
            if len(batch) > 1:
                for index in batch:
                    self._detect_batch([index], searched, found)
            return
        for row, index in enumerate(batch):
            if boxes[row] is None:
                continue
            scale = searched[index][1]
            faces = [
                Face(
                    box=np.asarray(box, np.float32) / scale,
                    points=np.asarray(point, np.float32) / scale,
                    probability=float(probability),
                )
                for box, probability, point in zip(boxes[row], probabilities[row], points[row], strict=True)
                if probability is not None and probability >= self.min_probability
            ]
            found[index] = sorted(faces, key=lambda face: -face.size)

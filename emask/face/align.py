"""Between a photo and an aligned crop: 5-point similarity transform, its inverse, feathered paste-back of a change.

Coordinates: x right, y down, pixel centres at integers, in every function of this file. PIL's affine transform takes
pixel centres at half-integers; the conversion is made once, in `_pil_coefficients`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

# Side of the crop the networks work on, in pixels.
CROP = 128
# Side of the square in its middle that recognizers are given, in pixels: the usual 112-pixel template.
INNER = 112
MARGIN = (CROP - INNER) // 2
# The 5-point template of the 112-pixel crop (the common ArcFace positions), in pixels of the inner square.
TEMPLATE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float64,
)
TEMPLATE = TEMPLATE_112 + MARGIN
# Width of the ramp, in crop pixels, over which a change fades to nothing at the crop's border.
FEATHER = MARGIN


@dataclass(frozen=True)
class Similarity:
    """A similarity transform from photo to crop: crop = matrix @ (x, y, 1).

    Attributes:
        matrix: (2, 3) float64, [[a, -b, tx], [b, a, ty]].
    """

    matrix: np.ndarray

    @property
    def scale(self) -> float:
        """Crop pixels per photo pixel."""
        return float(np.hypot(self.matrix[0, 0], self.matrix[1, 0]))

    def inverse(self) -> Similarity:
        """The transform from crop to photo."""
        linear = np.linalg.inv(self.matrix[:, :2])
        return Similarity(np.hstack([linear, -linear @ self.matrix[:, 2:]]))

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Move (N, 2) points."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]


def estimate(points: np.ndarray, template: np.ndarray = TEMPLATE) -> Similarity:
    """The least-squares similarity that takes `points` to `template` (Umeyama 1991 without reflection).

    In the plane the problem is linear in (a, b, tx, ty), so no singular value decomposition is needed.

    Args:
        points, template: (5, 2), pixel coordinates.

    Raises:
        ValueError: when all points coincide.
    """
    source = np.asarray(points, np.float64)
    target = np.asarray(template, np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    s, t = source - source_mean, target - target_mean
    variance = float((s**2).sum())
    if variance < 1e-9:
        raise ValueError("landmarks coincide: no similarity transform")
    a = float((s * t).sum()) / variance
    b = float((s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum()) / variance
    linear = np.array([[a, -b], [b, a]])
    return Similarity(np.hstack([linear, (target_mean - linear @ source_mean)[:, None]]))


def _pil_coefficients(out_to_in: np.ndarray) -> tuple[float, ...]:
    linear, shift = out_to_in[:, :2], out_to_in[:, 2]
    shift = shift - linear @ np.array([0.5, 0.5]) + 0.5
    return (linear[0, 0], linear[0, 1], shift[0], linear[1, 0], linear[1, 1], shift[1])


def align(photo: np.ndarray, transform: Similarity, size: int = CROP) -> np.ndarray:
    """Cut the aligned crop out of a photo.

    Bicubic; when the face is larger than the crop the photo is first reduced around the face by area averaging, so
    that fine detail does not alias. Outside the photo its border pixels are repeated.

    Args:
        photo: (H, W, 3) uint8 RGB.
        transform: photo to crop.
        size: side of the crop in pixels.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    back = transform.inverse()
    corners = back.apply(np.array([[0, 0], [size - 1, 0], [0, size - 1], [size - 1, size - 1]], np.float64))
    factor = max(1, int(1.0 / transform.scale + 1e-6))  # whole photo pixels per crop pixel
    pad = 4 * factor
    left, top = np.floor(corners.min(0)).astype(int) - pad
    right, bottom = np.ceil(corners.max(0)).astype(int) + pad + 1
    height, width = photo.shape[:2]
    # the part of the photo that is needed, its border repeated where the crop reaches outside
    columns = np.clip(np.arange(left, right), 0, width - 1)
    rows = np.clip(np.arange(top, bottom), 0, height - 1)
    region = Image.fromarray(np.ascontiguousarray(photo[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))
    if columns[0] != left or columns[-1] != right - 1 or rows[0] != top or rows[-1] != bottom - 1:
        region = Image.fromarray(photo[np.ix_(rows, columns)])
    matrix = back.matrix.copy()
    matrix[:, 2] -= (left, top)
    if factor > 1:
        region = region.reduce(factor)
        # reduce() averages blocks: centre of block k lies at factor * k + (factor - 1) / 2
        matrix[:, 2] -= (factor - 1) / 2
        matrix /= factor
    out = region.transform(
        (size, size), Image.Transform.AFFINE, _pil_coefficients(matrix), resample=Image.Resampling.BICUBIC
    )
    return np.asarray(out)


def feather(size: int = CROP, ramp: int = FEATHER) -> np.ndarray:
    """The weight a change is pasted with: 1 inside, falling to 0 at the crop's border (raised cosine).

    Returns:
        (size, size) float32 in [0, 1]; exactly 0 on the outermost pixels.
    """
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]).astype(np.float64)
    edge = 0.5 - 0.5 * np.cos(np.pi * np.clip(distance / ramp, 0, 1))
    return np.outer(edge, edge).astype(np.float32)


def paste_change(photo: np.ndarray, change: np.ndarray, transform: Similarity) -> np.ndarray:
    """Add a change made on the crop to the photo, at the photo's own resolution.

    Only the change is resampled, never the photo: where the change is zero the pixels stay bit-identical.

    Args:
        photo: (H, W, 3) uint8 RGB.
        change: (S, S, 3) float32 in grey levels (-255..255), already feathered.
        transform: photo to crop.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    size = change.shape[0]
    height, width = photo.shape[:2]
    corners = transform.inverse().apply(
        np.array([[-1, -1], [size, -1], [-1, size], [size, size]], np.float64)
    )
    left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (width, height))
    result = photo.copy()
    if right <= left or bottom <= top:
        return result
    matrix = transform.matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ np.array([left, top], np.float64)
    # one pixel of zeros around the change: PIL leaves out pixels whose centre lies outside the source
    padded = np.pad(change.astype(np.float32), ((2, 2), (2, 2), (0, 0)))
    matrix[:, 2] += 2
    coefficients = _pil_coefficients(matrix)
    area = (int(right - left), int(bottom - top))
    shrink = transform.scale > 1.25  # a face much smaller than the crop: average instead of picking samples
    channels = []
    for index in range(3):
        channel = Image.fromarray(padded[:, :, index])
        if shrink:
            channel = _area_affine(channel, coefficients, area, transform.scale)
        else:
            channel = channel.transform(
                area, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC
            )
        channels.append(np.asarray(channel))
    delta = np.stack(channels, axis=-1)
    part = result[top:bottom, left:right].astype(np.float32) + delta
    result[top:bottom, left:right] = np.clip(np.rint(part), 0, 255).astype(np.uint8)
    return result


def _area_affine(
    channel: Image.Image, coefficients: tuple[float, ...], area: tuple[int, int], scale: float
) -> Image.Image:
    """Affine transform with supersampling, for shrinking by `scale`: sample finely, then average blocks."""
    fine = int(np.ceil(scale))
    a, b, c, d, e, f = coefficients
    wide = channel.transform(
        (area[0] * fine, area[1] * fine),
        Image.Transform.AFFINE,
        (a / fine, b / fine, c, d / fine, e / fine, f),
        resample=Image.Resampling.BICUBIC,
    )
    return wide.reduce(fine)

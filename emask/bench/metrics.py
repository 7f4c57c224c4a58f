"""Figures of a benchmark: rates with their intervals, picture quality, verification accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emask.pipeline.protect import psnr as unbounded_psnr
from emask.recognize.thresholds import similarity

# 97.5% quantile of the normal distribution: two-sided 95% intervals.
Z95 = 1.959963984540054
# Identical pictures have no finite PSNR; they are entered as this many dB.
PSNR_CEILING = 100.0


@dataclass(frozen=True)
class Rate:
    """A share with its Wilson 95% interval.

    Attributes:
        hits, n: counts.
        value: hits / n, nan when n is 0.
        low, high: the interval, each in [0, 1].
    """

    hits: int
    n: int
    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | int | None]:
        """A JSON object; None instead of nan."""
        if not self.n:
            return {"hits": 0, "n": 0, "value": None, "low": 0.0, "high": 1.0}
        return {
            "hits": self.hits, "n": self.n, "value": round(self.value, 4),
            "low": round(self.low, 4), "high": round(self.high, 4),
        }  # fmt: skip


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a share; (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def rate(hits: np.ndarray) -> Rate:
    """The share of True in a (N,) bool array."""
    k, n = int(np.sum(hits)), len(hits)
    low, high = wilson(k, n)
    return Rate(k, n, k / n if n else float("nan"), low, high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """How likely chance alone sets two ways so far apart that were tried on the same photos: McNemar's exact test.

    Args:
        first, second: (N,) bool, which photos each gets right.

    Returns:
        The two-sided p-value in (0, 1]; 1 where both get the same photos right.
    """
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    apart = only_first + only_second
    tail = sum(math.comb(apart, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**apart)


def accepted(first: np.ndarray, second: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) bool: the recognizer says "same person". A face that was not found (a row of nan) is never accepted."""
    return similarity(first, second) >= threshold


def rejected(first: np.ndarray, second: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) bool: the recognizer says "another person". A face that was not found (a row of nan) is not rejected either.

    Otherwise a mask that only destroys the face would count as a success.
    """
    return similarity(first, second) < threshold


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """As `emask.pipeline.protect.psnr`, but at most PSNR_CEILING, so that there are means."""
    return min(PSNR_CEILING, unbounded_psnr(first, second))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two (H, W, 3) uint8 pictures; nan where scikit-image is not installed or below 7 px."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return float("nan")
    if min(first.shape[:2]) < 7:
        return float("nan")
    return float(structural_similarity(first, second, channel_axis=2, data_range=255))


Photo = tuple[str, int]


def lfw_accuracy(embeddings: Mapping[Photo, np.ndarray], pairs: Sequence[tuple[Photo, Photo, int]]) -> dict[str, Any]:
    """Verification accuracy, cross-validated over folds.

    For each fold the threshold is the one with the best accuracy on the other folds; the accuracy on this fold is
    counted with it.

    Args:
        embeddings: unit embedding of each photo (name, number); a pair with a photo missing here (no face found) counts
            as an error, whichever kind it is.
        pairs: from `emask.train.data.read_pairs`: two photos and the fold; one name twice means the same person.

    Returns:
        {"accuracy": mean over folds, "folds": {fold: accuracy}, "thresholds": {fold: cosine}, "pairs": n,
        "missing": n}.

    Raises:
        ValueError: with fewer than two folds.
    """
    folds = np.array([fold for _, _, fold in pairs])
    names = sorted(set(folds.tolist()))
    if len(names) < 2:
        raise ValueError("cross-validation needs at least two folds")
    same = np.array([first[0] == second[0] for first, second, _ in pairs])
    cosine = np.array(
        [
            float(similarity(embeddings[first], embeddings[second]))
            if first in embeddings and second in embeddings
            else np.nan
            for first, second, _ in pairs
        ]
    )
    accuracy, thresholds = {}, {}
    for fold in names:
        threshold = _best_threshold(cosine[folds != fold], same[folds != fold])
        held = folds == fold
        right = np.where(same[held], cosine[held] >= threshold, cosine[held] < threshold)
        accuracy[fold], thresholds[fold] = float(right.mean()), threshold
    return {
        "accuracy": float(np.mean(list(accuracy.values()))),
        "folds": accuracy,
        "thresholds": thresholds,
        "pairs": len(pairs),
        "missing": int(np.isnan(cosine).sum()),
    }


def _best_threshold(cosine: np.ndarray, same: np.ndarray) -> float:
    """The cosine, midway between two neighbours, that separates the pairs best."""
    known = ~np.isnan(cosine)
    order = np.argsort(cosine[known], kind="stable")
    values, labels = cosine[known][order], same[known][order]
    # cut c: everything from position c on is accepted
    right = np.concatenate([[labels.sum()], labels.sum() - np.cumsum(labels) + np.cumsum(~labels)])
    edges = np.concatenate([[-1.0 - 1e-9], (values[:-1] + values[1:]) / 2, [1.0 + 1e-9]]) if len(values) else [0.0]
    if len(values) > 1:  # no cut between equal values
        right[1:-1][values[:-1] == values[1:]] = -1
    best = np.flatnonzero(right == right.max())
    return float(edges[best[len(best) // 2]])

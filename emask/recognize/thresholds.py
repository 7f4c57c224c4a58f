"""Similarity of embeddings, thresholds from impostor pairs, and the share of genuine pairs they accept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# False accept rates that are reported everywhere.
FALSE_ACCEPT_RATES = (0.1, 0.01, 0.001)
# Resolution of the histogram of cosines: 2 / BINS = 5e-6.
BINS = 400_000
_BLOCK = 512


def rate_key(rate: float) -> str:
    """The key of a false accept rate in a table of thresholds: "0.1", "0.01", "0.001"."""
    return format(rate, "g")


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of unit embeddings, row by row.

    Args:
        first, second: (B, D) or (D,), unit length; broadcast against each other.

    Returns:
        (B,) float64 in [-1, 1].
    """
    cosine = (np.asarray(first, np.float64) * np.asarray(second, np.float64)).sum(-1)
    return np.clip(cosine, -1.0, 1.0)


def _histogram(embeddings: np.ndarray, people: np.ndarray, same: bool) -> np.ndarray:
    """(BINS,) int64 counts of the cosines of all pairs of the same person, or of different people."""
    embeddings = np.asarray(embeddings, np.float32)
    people = np.asarray(people)
    counts = np.zeros(BINS, np.int64)
    for start in range(0, len(embeddings), _BLOCK):
        stop = min(start + _BLOCK, len(embeddings))
        cosines = embeddings[start:stop] @ embeddings[start:].T
        wanted = (people[start:stop, None] == people[None, start:]) == same
        wanted &= np.arange(start, len(embeddings))[None] > np.arange(start, stop)[:, None]  # each pair once
        bins = ((cosines[wanted].astype(np.float64) + 1.0) * (BINS / 2)).astype(np.int64)
        counts += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
    return counts


def calibrate(
    embeddings: np.ndarray, people: np.ndarray, fars: Sequence[float] = FALSE_ACCEPT_RATES
) -> dict[str, float]:
    """Thresholds from all pairs of different people.

    Args:
        embeddings: (N, D) float, unit length.
        people: (N,) person of each embedding.
        fars: false accept rates.

    Returns:
        For each rate (keyed "0.1", ...) the smallest cosine (to 2 / BINS) such that at most this share of impostor
        pairs lies at or above it.

    Raises:
        ValueError: when there is no pair of different people, or too few for the smallest rate.
    """
    counts = _histogram(embeddings, people, same=False)
    total = int(counts.sum())
    if total == 0:
        raise ValueError("no pair of different people to calibrate on")
    if min(fars) * total < 1:
        raise ValueError(f"{total} pairs of different people are too few for a false accept rate of {min(fars):g}")
    above = np.cumsum(counts[::-1])[::-1]  # pairs in this bin or higher
    result = {}
    for far in fars:
        fitting = np.flatnonzero(above <= far * total)
        edge = int(fitting[0]) if len(fitting) else BINS
        result[rate_key(far)] = edge * 2.0 / BINS - 1.0
    return result


def true_accept_rate(embeddings: np.ndarray, people: np.ndarray, threshold: float) -> float:
    """Share of all pairs of one person with a cosine at or above the threshold (to 2 / BINS); nan without pairs."""
    counts = _histogram(embeddings, people, same=True)
    total = int(counts.sum())
    edge = int(round((threshold + 1.0) * BINS / 2))
    return float(counts[edge:].sum() / total) if total else float("nan")

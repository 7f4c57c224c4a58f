"""Rates, intervals, picture quality, verification accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from skimage.metrics import peak_signal_noise_ratio

from emask.bench import accepted, lfw_accuracy, psnr, rate, rejected, wilson
from emask.bench.metrics import PSNR_CEILING, mcnemar, ssim
from emask.bench.protocol import score_erasing, score_protection


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, table I, method 3 (score): 81/263, 15/148, 0/20, 1/29
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500), st.data())
def test_wilson_contains_the_share_and_is_symmetric(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n + 1e-12 and hits / n - 1e-12 <= high <= 1
    mirrored = wilson(n - hits, n)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-12)


def test_mcnemar_against_the_binomial_distribution() -> None:
    """Pairs that both get right, or neither, say nothing; the others are heads and tails."""

    def p(both: int, first: int, second: int, neither: int) -> float:
        a = np.repeat([True, True, False, False], (both, first, second, neither))
        b = np.repeat([True, False, True, False], (both, first, second, neither))
        return mcnemar(a, b)

    assert p(50, 0, 0, 50) == 1.0
    assert p(3, 0, 12, 9) == p(80, 12, 0, 1) == pytest.approx(2 / 2**12)
    assert p(0, 1, 1, 0) == 1.0
    for first, second in ((5, 16), (12, 24), (59, 121)):
        expected = binomtest(first, first + second, 0.5).pvalue
        assert p(10, first, second, 10) == pytest.approx(expected) == p(7, second, first, 0)


def test_rate_to_json() -> None:
    entry = rate(np.array([True, False, True, True])).to_json()
    assert (entry["hits"], entry["n"], entry["value"]) == (3, 4, 0.75)
    assert rate(np.zeros(0, bool)).to_json()["value"] is None


def test_psnr_against_scikit_image() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))
    assert psnr(a, a) == PSNR_CEILING and ssim(a, a) == pytest.approx(1)


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def test_a_face_that_is_lost_is_no_success() -> None:
    known, lost = np.array([[1.0, 0.0]]), np.array([[np.nan, np.nan]])
    assert accepted(known, known, 0.5).all() and rejected(known, -known, 0.5).all()
    assert not accepted(lost, known, -1.0).any() and not rejected(lost, known, 1.0).any()


def people(n: int, spread: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Embeddings of n owners (original, clean, another photo) and one target (given, another photo)."""
    rng = np.random.default_rng(seed)
    owners, target = rng.normal(size=(n, 64)), rng.normal(size=(1, 64))
    near = lambda x: unit(x + spread * rng.normal(size=x.shape))  # noqa: E731
    return {
        "original": near(owners),
        "clean": near(owners),
        "other": near(owners),
        "given": near(target),
        "other_t": near(target),
    }


THRESHOLDS = {"0.01": 0.35}


def test_a_mask_that_does_nothing_scores_like_the_clean_photos() -> None:
    p = people(300, 0.9)
    scores = score_protection(THRESHOLDS, p["clean"], p["clean"], p["original"], p["other"], p["given"], p["other_t"])
    for name in ("impersonation_given", "impersonation_other", "dodging_other", "dodging_same"):
        assert scores[name] == scores[name + "_clean"]
    assert scores["impersonation_given"]["0.01"]["value"] < 0.05
    assert scores["dodging_other"]["0.01"]["value"] < 0.3
    erased = score_erasing(THRESHOLDS, p["clean"], p["clean"], p["clean"], p["original"], p["other"], p["given"])
    for name in ("reverified_other", "reverified_same", "erased"):
        assert erased[name] == erased[name + "_protected"] == erased[name + "_clean"]


def test_a_mask_that_shows_the_target_succeeds_and_leaving_it_on_is_seen() -> None:
    p = people(300, 0.5)
    masked = unit(p["given"] + 0.05 * np.random.default_rng(1).normal(size=p["clean"].shape))
    scores = score_protection(THRESHOLDS, masked, p["clean"], p["original"], p["other"], p["given"], p["other_t"])
    assert (
        scores["impersonation_given"]["0.01"]["value"] == 1.0 and scores["impersonation_other"]["0.01"]["value"] > 0.95
    )
    assert scores["dodging_other"]["0.01"]["value"] > 0.9
    # nothing erased
    left = score_erasing(THRESHOLDS, masked, masked, p["clean"], p["original"], p["other"], p["given"])
    assert left["erased"]["0.01"]["value"] == 0.0 and left["reverified_other"]["0.01"]["value"] < 0.1
    assert left["reverified_other_clean"]["0.01"]["value"] > 0.9
    # a grey square: no longer the target, and yet not the owner again
    grey = np.full_like(masked, np.nan)
    lost = score_erasing(THRESHOLDS, grey, masked, p["clean"], p["original"], p["other"], p["given"])
    assert lost["erased"]["0.01"]["value"] == 0.0 and lost["reverified_other"]["0.01"]["value"] == 0.0


def brute_force_accuracy(cosine: np.ndarray, same: np.ndarray, folds: np.ndarray) -> float:
    result = []
    for fold in np.unique(folds):
        best, threshold = -1.0, 0.0
        candidates = np.sort(cosine[folds != fold])
        for cut in np.concatenate([[-1.1], (candidates[1:] + candidates[:-1]) / 2, [1.1]]):
            right = ((cosine >= cut) == same)[folds != fold].mean()
            if right > best:
                best, threshold = right, cut
        result.append(((cosine >= threshold) == same)[folds == fold].mean())
    return float(np.mean(result))


def make_pairs(n: int, seed: int) -> tuple[dict, list, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    embeddings, pairs, cosines = {}, [], []
    for i in range(n):
        same = i % 2 == 0
        first = unit(rng.normal(size=8))
        second = unit(first + 0.5 * rng.normal(size=8)) if same else unit(rng.normal(size=8))
        a, b = (f"p{i}", 1), (f"p{i}" if same else f"q{i}", 2)
        embeddings[a], embeddings[b] = first, second
        pairs.append((a, b, 9 + (i // (n // 2))))
        cosines.append(first @ second)
    return (
        embeddings,
        pairs,
        np.array(cosines),
        np.array([i % 2 == 0 for i in range(n)]),
        np.array([p[2] for p in pairs]),
    )


@pytest.mark.parametrize("seed", range(5))
def test_lfw_accuracy_against_brute_force(seed: int) -> None:
    embeddings, pairs, cosine, same, folds = make_pairs(80, seed)
    result = lfw_accuracy(embeddings, pairs)
    # thresholds that separate the other fold equally well may differ by the ties between them
    assert result["accuracy"] == pytest.approx(brute_force_accuracy(cosine, same, folds), abs=0.06)
    for fold, threshold in result["thresholds"].items():
        others = folds != fold
        best = max(((cosine >= c) == same)[others].mean() for c in np.linspace(-1, 1, 4001))
        assert ((cosine >= threshold) == same)[others].mean() >= best
    assert result["pairs"] == 80 and result["missing"] == 0


def test_lfw_accuracy_of_perfect_and_random_embeddings() -> None:
    embeddings, pairs, *_ = make_pairs(200, 0)
    perfect = {photo: unit(np.random.default_rng(abs(hash(photo[0]))).normal(size=256)) for photo in embeddings}
    assert lfw_accuracy(perfect, pairs)["accuracy"] > 0.98
    noise = {photo: unit(np.random.default_rng(i).normal(size=256)) for i, photo in enumerate(embeddings)}
    assert 0.35 < lfw_accuracy(noise, pairs)["accuracy"] < 0.65


def test_a_missing_photo_counts_as_an_error() -> None:
    embeddings, pairs, *_ = make_pairs(80, 1)
    before = lfw_accuracy(embeddings, pairs)
    missing = {photo: e for photo, e in embeddings.items() if photo[0] not in {"p0", "p1"}}
    after = lfw_accuracy(missing, pairs)
    assert after["missing"] == 2 and after["accuracy"] < before["accuracy"] + 1e-9
    with pytest.raises(ValueError, match="two folds"):
        lfw_accuracy(embeddings, [p for p in pairs if p[2] == 9])

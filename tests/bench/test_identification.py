"""Searches in a gallery: against loops over every pair, on hand-made people, and for masks that do nothing."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from emask.bench.identification import COLUMNS, DECIMALS, identify, render

# Hand-made people: one axis each, so that a probe's coordinates are its cosines times its length.
ANN, BOB, TOM, EVE, ZED = np.eye(5)
GALLERY = np.eye(5)
PEOPLE = ["ann", "bob", "tom", "eve", "zed"]
LOST = np.full(5, np.nan)


def search(probes: list[np.ndarray], **changed: Any) -> dict[str, Any]:
    """Probes of ann who shall be tom."""
    n = len(probes)
    arguments: dict[str, Any] = {
        "clean": np.tile(ANN, (n, 1)), "protected": np.array(probes), "owners": ["ann"] * n, "targets": ["tom"] * n,
        "gallery": GALLERY, "people": PEOPLE, "ranks": (1, 2),
    }  # fmt: skip
    return identify(**{**arguments, **changed})


def hits(document: dict[str, Any], figure: str) -> list[int]:
    return [entry["hits"] for entry in document["figures"][figure].values()]


def slow(probes: np.ndarray, owners: list, targets: list, gallery: np.ndarray, people: list, k: int) -> dict[str, int]:
    """Counts of hits, one probe and one photo at a time."""
    counts = {"targeted": 0, "untargeted": 0, "identified": 0}
    for probe, owner, target in zip(probes.tolist(), owners, targets, strict=True):
        if any(math.isnan(x) for x in probe):
            continue
        best: dict[Any, float] = {}
        for photo, person in zip(gallery.tolist(), people, strict=True):
            if any(math.isnan(x) for x in photo):
                continue
            dot = sum(a * b for a, b in zip(probe, photo, strict=True))
            cosine = round(dot / math.hypot(*probe) / math.hypot(*photo), DECIMALS)
            best[person] = max(best.get(person, -2.0), cosine)

        def before(person: Any, best: dict[Any, float] = best) -> int:
            return sum(value > best[person] for value in best.values())

        def not_after(person: Any, best: dict[Any, float] = best) -> int:
            return sum(value >= best[person] for value in best.values())

        counts["targeted"] += not_after(target) <= k
        counts["identified"] += not_after(owner) <= k
        counts["untargeted"] += before(owner) >= k
    return counts


@pytest.mark.parametrize("seed", range(6))
def test_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"p{i}" for i in range(9)]
    if seed % 2:
        draw = lambda n: rng.normal(size=(n, 6))  # noqa: E731
    else:  # points of a coarse grid tie all the time
        grid = np.array([p for p in itertools.product((-1, 0, 1), repeat=3) if any(p)], float)
        draw = lambda n: grid[rng.integers(0, len(grid), n)] * rng.integers(1, 4, (n, 1))  # noqa: E731
    people = names + [names[i] for i in rng.integers(0, 9, 8)]
    rng.shuffle(people)
    gallery = draw(len(people))
    again = next(i for i, name in enumerate(people) if people.count(name) > 1)
    gallery[again] = np.nan
    pairs = [rng.permutation(9)[:2] for _ in range(25)]
    owners, targets = [names[a] for a, _ in pairs], [names[b] for _, b in pairs]
    probes = {"": draw(25), "_clean": draw(25), "_restored": draw(25)}
    probes[""][:3] = np.nan
    document = identify(
        probes["_clean"], probes[""], owners, targets, gallery, people, probes["_restored"], ranks=(1, 3, 5)
    )
    for suffix, embeddings in probes.items():
        for k in (1, 3, 5):
            for name, count in slow(embeddings, owners, targets, gallery, people, k).items():
                entry = document["figures"][name + suffix][str(k)]
                assert (entry["hits"], entry["n"]) == (count, 25), (name, suffix, k)
    assert document["not_found"] == {"protected": 3, "clean": 0, "restored": 0}
    assert document["gallery"]["photos"] == 16 and document["gallery"]["photos_without_face"] == 1
    json.dumps(document, allow_nan=False)


def test_who_stands_where() -> None:
    # tom first; tom second behind zed; ann second behind tom; ann first; nobody found
    probes = [5 * TOM + EVE, 5 * ZED + 3 * TOM, 5 * TOM + 3 * ANN, 5 * ANN + TOM, LOST]
    document = search(probes)
    assert hits(document, "targeted") == [2, 4]
    assert hits(document, "untargeted") == [3, 2]
    assert hits(document, "identified") == [1, 2]
    assert hits(document, "targeted_clean") == [0, 0] and hits(document, "identified_clean") == [5, 5]
    assert document["probes"] == 5 and document["not_found"] == {"protected": 1, "clean": 0}
    assert document["gallery"] == {"photos": 5, "people": 5, "distractors": 3, "photos_without_face": 0}
    entry = document["figures"]["targeted"]["1"]
    assert entry["n"] == 5 and entry["low"] < entry["value"] == 0.4 < entry["high"]


def test_a_tie_is_no_success() -> None:
    document = search([TOM + ANN, TOM + EVE])
    # the first: tom and ann share places 1 and 2; the second: tom and eve do, and ann shares the last ones
    assert hits(document, "targeted") == [0, 2]
    assert hits(document, "untargeted") == [1, 1]
    assert hits(document, "identified") == [0, 1]
    flat = search([np.ones(5)], ranks=(4,))
    assert hits(flat, "targeted") == hits(flat, "untargeted") == hits(flat, "identified") == [0]


def test_photos_of_one_person_count_once_by_the_best() -> None:
    probe = 5 * TOM + 3 * ANN
    crowd = np.vstack([GALLERY, TOM + 0.1 * EVE, TOM + 0.1 * ZED, TOM + 0.1 * BOB, -ANN])
    document = search([probe], gallery=crowd, people=[*PEOPLE, "tom", "tom", "tom", "ann"])
    # three more photos of tom do not push ann off the second place, nor does a bad one of her own
    assert hits(document, "untargeted") == [1, 0]
    assert document["gallery"]["photos"] == 9 and document["gallery"]["people"] == 5


@pytest.mark.parametrize("seed", range(3))
def test_a_mask_that_does_nothing_scores_like_the_clean_photos(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gallery = rng.normal(size=(40, 32))
    probes = gallery[:30] + 1.2 * rng.normal(size=(30, 32))
    targets = [30 + i % 4 for i in range(30)]
    document = identify(probes, probes.copy(), range(30), targets, gallery, range(40), probes.copy())
    figures = document["figures"]
    for name in ("targeted", "untargeted", "identified"):
        assert figures[name] == figures[name + "_clean"] == figures[name + "_restored"]
    assert figures["identified"]["1"]["value"] > 0.5 > figures["untargeted"]["1"]["value"]
    assert figures["targeted"]["1"]["value"] < 0.2
    assert document["gallery"]["distractors"] == 6


def test_a_grey_square_is_no_restored_photo() -> None:
    document = search([TOM] * 3, restored=np.full((3, 1), np.nan))  # nobody found: the width is not known
    assert hits(document, "untargeted_restored") == hits(document, "identified_restored") == [0, 0]
    assert document["not_found"]["restored"] == 3
    assert hits(search([TOM] * 3, restored=np.tile(ANN, (3, 1))), "identified_restored") == [3, 3]


def test_length_does_not_matter() -> None:
    probes = [5 * TOM + EVE, 5 * ZED + 3 * TOM]
    assert search(probes) == search([100 * p for p in probes], gallery=GALLERY * np.arange(1, 6)[:, None])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"people": ["bob", "bob", "tom", "eve", "zed"]}, "of 1 owners, among them 'ann'"),
        ({"people": ["ann", "bob", "bob", "eve", "zed"]}, "of 1 targets, among them 'tom'"),
        ({"gallery": np.vstack([LOST, GALLERY[1:]])}, "of 1 owners, among them 'ann'"),
        ({"gallery": np.full((5, 5), np.nan)}, "no photo with a face of 1 owners"),
        ({"people": PEOPLE[:4]}, "5 photos in the gallery, but 4 names"),
        ({"targets": ["tom"]}, "2 owners, but 1 targets"),
        ({"targets": ["tom", "ann"]}, "'ann' is owner and target"),
        ({"owners": [], "targets": []}, "no probes"),
        ({"clean": np.ones((3, 5))}, r"clean: embeddings \(3, 5\), not \(2, 5\)"),
        ({"protected": np.ones((2, 4))}, r"protected: embeddings \(2, 4\)"),
        ({"restored": np.ones(5)}, r"restored: embeddings must be \(N, D\)"),
        ({"protected": np.zeros((2, 5))}, "protected: an embedding is zero"),
        ({"clean": np.array([ANN, [np.nan, 1, 1, 1, 1]])}, "clean: an embedding is zero or not finite"),
        ({"ranks": (5,)}, "below the 5 people"),
        ({"ranks": (0, 1)}, "1 or more"),
        ({"ranks": ()}, "ranks"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search([TOM, TOM], **changed)


def test_tables() -> None:
    plain = search([TOM, ANN, TOM, TOM])
    erased = search([TOM, ANN, TOM, TOM], restored=np.tile(ANN, (4, 1)))
    text = render({"one": erased, "two": plain})
    assert "| one | 4 | 5 | 5 | 3 | protected 0, clean 0, restored 0 |" in text
    assert "| recognizer | k | protected | restored | clean |" in text
    assert "| one | Rank-1 | 75.0 [30.1, 95.4] | 0.0 [0.0, 49.0] | 0.0 |" in text
    assert "| two | Rank-2 | 75.0 [30.1, 95.4] | - | 0.0 |" in text
    for word in COLUMNS.values():
        assert word in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {6, 7}
    assert "restored" not in render({"two": plain})

"""Identification: a protected photo as the query of a search in a gallery of known people.

The protocol of TIP-IM (Yang et al., "Towards Face Encryption by Generating Adversarial Identity Masks", ICCV 2021): the
gallery holds another photo of every owner, photos of the targets, and distractors, people who are neither. No threshold
is involved: what counts is who stands among the first k people, ranked by cosine.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from emask.bench.metrics import rate
from emask.bench.table import interval, markdown_table, percent

RANKS = (1, 5)
# Cosines are compared to this many decimals; float32 embeddings carry no more, and equal photos must tie exactly.
DECIMALS = 7

FIGURES = {
    "targeted": "The target is among the first k people (%)",
    "untargeted": "The owner is not among the first k people (%)",
    "identified": "The owner is among the first k people (%)",
}
COLUMNS = {"": "protected", "_restored": "restored", "_clean": "clean"}


def _directions(name: str, embeddings: np.ndarray) -> np.ndarray:
    """(N, D) float64 of unit length; rows of nan, faces that were not found, stay."""
    array = np.asarray(embeddings, np.float64)
    if array.ndim != 2:
        raise ValueError(f"{name}: embeddings must be (N, D), not {array.shape}")
    lost = np.isnan(array).all(1)
    length = np.linalg.norm(array, axis=1, keepdims=True)
    if not np.isfinite(array[~lost]).all() or (length == 0).any():
        raise ValueError(f"{name}: an embedding is zero or not finite, and not a whole row of nan (no face)")
    return array / length


def _enrol(gallery: np.ndarray, people: list[Hashable]) -> tuple[np.ndarray, list[Hashable], int]:
    """The gallery's photos with a face, who is in them, and how many were left out."""
    directions = _directions("gallery", gallery)
    if len(people) != len(directions):
        raise ValueError(f"{len(directions)} photos in the gallery, but {len(people)} names of who is in them")
    found = ~np.isnan(directions).any(1)
    return directions[found], [p for p, seen in zip(people, found, strict=True) if seen], int((~found).sum())


def _check(owners: list[Hashable], targets: list[Hashable], gallery: Mapping[Hashable, int]) -> None:
    """Refuse probes whose search would succeed or fail whatever the mask does."""
    if not owners:
        raise ValueError("no probes")
    if len(targets) != len(owners):
        raise ValueError(f"{len(owners)} owners, but {len(targets)} targets")
    for role, names in (("owner", owners), ("target", targets)):
        missing = [name for name in dict.fromkeys(names) if name not in gallery]
        if missing:
            raise ValueError(
                f"the gallery has no photo with a face of {len(missing)} {role}s, among them {missing[0]!r}; "
                "their figures would say nothing about the mask"
            )
    for owner, target in zip(owners, targets, strict=True):
        if owner == target:
            raise ValueError(f"{owner!r} is owner and target of one probe")


def _best_cosines(probes: np.ndarray, gallery: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(N, P) cosine of each probe to the best photo of each of P people; `columns` (G,) says whose a photo is."""
    cosines = np.round(probes @ gallery.T, DECIMALS)
    order = np.argsort(columns, kind="stable")
    starts = np.searchsorted(columns[order], np.arange(columns.max() + 1))
    return np.asarray(np.maximum.reduceat(cosines[:, order], starts, axis=1))


def _places(cosines: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) best and worst place, from 1, of one person a probe in the ranked gallery; they differ where people tie."""
    own = np.take_along_axis(cosines, column[:, None], 1)
    best = 1 + (cosines > own).sum(1)
    return best, best + (cosines == own).sum(1) - 1  # one of the equal ones is the person


def identify(
    clean: np.ndarray,
    protected: np.ndarray,
    owners: Iterable[Hashable],
    targets: Iterable[Hashable],
    gallery: np.ndarray,
    people: Iterable[Hashable],
    restored: np.ndarray | None = None,
    ranks: Sequence[int] = RANKS,
) -> dict[str, Any]:
    """Targeted and untargeted identification rates of one recognizer, the clean photos' rate beside each.

    A probe whose face was not found (a row of nan) succeeds in no figure, and neither does a tie: of people with the
    same cosine, the one whose place is asked for stands where it counts against the figure. Photos of one person count
    once, by the best of them.

    Args:
        clean, protected: (N, D) embeddings of the probes, the saved unprotected and the saved protected photos, of any
            length but zero; a row of nan = no face.
        owners: (N,) who is in each probe.
        targets: (N,) whom each probe shall be taken for.
        gallery: (G, D) embeddings. A row of nan is left out: without a face nobody is enrolled. The probes' own photos
            must not be among them.
        people: (G,) who is in each photo of the gallery.
        restored: (N, D) of the photos after erasing.
        ranks: the k of "among the first k".

    Returns:
        A JSON object: "probes", "not_found" (a count for each kind of probe), "gallery" (counts of the "photos" and
        "people" enrolled, of "distractors" among these, and "photos_without_face"), and "figures": name -> rank ("1",
        "5") -> rate. The names are those of FIGURES for protected probes, followed by "_clean" and "_restored" for the
        others; "identified" tells whether erasing brings the owner back, which "untargeted" cannot, as a face that is
        lost fails there, too.

    Raises:
        ValueError: shapes that do not fit; no probes; an embedding that is zero or not finite; an owner or target who
            is not in the gallery; somebody who is his own target; not more people in the gallery than the largest rank.
    """
    owner_list, target_list = list(owners), list(targets)
    enrolled, in_gallery, left_out = _enrol(gallery, list(people))
    column = {person: number for number, person in enumerate(dict.fromkeys(in_gallery))}
    _check(owner_list, target_list, column)
    if not ranks or min(ranks) < 1 or max(ranks) >= len(column):
        raise ValueError(f"ranks {tuple(ranks)} must be 1 or more and below the {len(column)} people of the gallery")
    n, width = len(owner_list), enrolled.shape[1]
    owner_column = np.array([column[owner] for owner in owner_list])
    target_column = np.array([column[target] for target in target_list])
    photo_column = np.array([column[person] for person in in_gallery])
    figures: dict[str, Any] = {}
    not_found: dict[str, int] = {}
    for suffix, embeddings in (("", protected), ("_clean", clean), ("_restored", restored)):
        if embeddings is None:
            continue
        probes = _directions(COLUMNS[suffix], embeddings)
        lost = np.isnan(probes).any(1)
        if len(probes) != n or (probes.shape[1] != width and not lost.all()):
            raise ValueError(f"{COLUMNS[suffix]}: embeddings {probes.shape}, not {(n, width)} like owners and gallery")
        if lost.all():
            probes = np.full((n, width), np.nan)  # where no face was found nobody knows the width
        cosines = _best_cosines(probes, enrolled, photo_column)
        target_worst = _places(cosines, target_column)[1]
        owner_best, owner_worst = _places(cosines, owner_column)
        not_found[COLUMNS[suffix]] = int(lost.sum())
        for name in FIGURES:
            figures[name + suffix] = {}
        for k in ranks:
            hits = {"targeted": target_worst <= k, "untargeted": owner_best > k, "identified": owner_worst <= k}
            for name, hit in hits.items():
                figures[name + suffix][str(k)] = rate(hit & ~lost).to_json()
    return {
        "probes": n,
        "not_found": not_found,
        "gallery": {
            "photos": len(enrolled),
            "people": len(column),
            "distractors": len(column.keys() - set(owner_list) - set(target_list)),
            "photos_without_face": left_out,
        },
        "figures": figures,
    }


def render(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown tables of what `identify` found, by recognizer.

    Rates are in percent, the protected (and restored) ones with a Wilson 95% interval in brackets; "clean" is the rate
    of the unprotected photos.
    """
    lines = ["## Identification", ""]
    rows = []
    for name, document in documents.items():
        gallery = document["gallery"]
        lost = ", ".join(f"{kind} {count}" for kind, count in document["not_found"].items())
        counts = [document["probes"], gallery["photos"], gallery["people"], gallery["distractors"]]
        rows.append([name, *map(str, counts), lost])
    header = ["recognizer", "probes (N)", "photos in the gallery", "people", "of them distractors", "faces not found"]
    lines += markdown_table(header, rows)
    for figure, heading in FIGURES.items():
        rows = []
        columns: dict[str, str] = {}
        for document in documents.values():
            columns |= {suffix: word for suffix, word in COLUMNS.items() if figure + suffix in document["figures"]}
        ordered = [suffix for suffix in COLUMNS if suffix in columns]
        for name, document in documents.items():
            for k in document["figures"][figure]:
                row = [name, f"Rank-{k}"]
                for suffix in ordered:
                    entry = document["figures"].get(figure + suffix, {}).get(k, {"value": None})
                    row.append(percent(entry) if suffix == "_clean" else interval(entry))
                rows.append(row)
        lines += [f"{heading}:", "", *markdown_table(["recognizer", "k", *(columns[s] for s in ordered)], rows)]
    return "\n".join(lines).rstrip() + "\n"

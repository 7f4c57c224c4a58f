"""When a benchmark's figures should not be trusted: it says so itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from emask.bench.table import owners

FEW = 100  # photos; a share of one half then has an interval of 20 points
LOST = 0.02  # share of faces not found again
STRANGE = 5.0  # how many times as many clean photos are taken for the target as the false accept rate says
LIKENESS = {"impersonation_given_clean": "", "impersonation_other_clean": ", by another photo"}
KNOWN = 0.9  # share of clean photos that a recognizer should take for their owner


def doubts(document: Mapping[str, Any], white_box: Collection[str]) -> list[str]:
    """A sentence for each reason to doubt a document of `emask.bench.protocol.run`.

    Args:
        white_box: recognizers that masks were made or trained with.
    """
    found = []
    faces = document["faces"]
    people = owners(document)
    if 0 < people < faces:
        found.append(f"{faces} photos are of {people} people: photos of one person are not independent of each other")
    if faces < FEW:
        found.append(f"{faces} photos: the intervals are wide, these figures are not for quoting")
    for judge in document["thresholds"]:
        if judge in white_box:
            found.append(f"{judge} is a white box: masks are made with it, and fool it more than others")
    sections = [(f"target {name}", entry) for name, entry in document["targets"].items()]
    if document["unseen"] is not None:
        sections.append(("unseen targets", document["unseen"]))
    for where, entry in sections:
        if entry["not_found"] > LOST * faces:
            lost = f"{entry['not_found']} of {faces} faces were not found again"
            found.append(f"{where}: {lost}, which counts as failure")
        for judge, figures in entry["recognizers"].items():
            for figure, photo in LIKENESS.items():
                for far, rate in figures.get(figure, {}).items():
                    # with its interval: one photo in a few is no reason
                    if rate["value"] is not None and rate["low"] > STRANGE * float(far):
                        share = f"{100 * rate['value']:.1f}% of the clean photos"
                        alike = f"for the target at FAR {far}{photo}; they look alike"
                        found.append(f"{where}: {judge} takes {share} {alike}")
    for judge, figures in sections[0][1]["recognizers"].items() if sections else ():
        # whose photos these are does not depend on the target
        for far, rate in figures.get("dodging_other_clean", {}).items():
            if rate["value"] is not None and rate["value"] > 1 - KNOWN:
                share = f"{100 * (1 - rate['value']):.1f}% of the clean photos"
                found.append(f"{judge} takes only {share} for their owners at FAR {far}, by another photo")
    for where, entry in document["erasing"].items():
        if entry["not_found"] > LOST * faces:
            lost = f"{entry['not_found']} of {faces} faces were not found again"
            found.append(f"erasing, {where}: {lost}, which counts as failure")
    return found

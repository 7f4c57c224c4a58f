"""The generator's attributes: which there are, which a user may choose, and from names to labels.

Without torch, because commands and pipeline read it; the networks take their order of labels from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from emask.errors import UsageError

# The labels of the generator's inputs a and b, in their order: the thirteen of CelebA that AttGAN edits.
ATTRIBUTES = (
    "Bald", "Bangs", "Black_Hair", "Blond_Hair", "Brown_Hair", "Bushy_Eyebrows", "Eyeglasses",
    "Male", "Mouth_Slightly_Open", "Mustache", "No_Beard", "Pale_Skin", "Young",
)  # fmt: skip
# What a person can put on, take off or do on one day and still be known by everybody. Left out, with the reasons in
# docs/cli.md: Male, Young, Bald, Bushy_Eyebrows and Pale_Skin, by which people tell who somebody is.
EDITABLE = (
    "Bangs", "Black_Hair", "Blond_Hair", "Brown_Hair", "Eyeglasses", "Mouth_Slightly_Open", "Mustache", "No_Beard",
)  # fmt: skip
# Of these a face has one at most.
HAIR_COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair")
# The name that chooses nothing.
NONE = "none"


def plain(name: str) -> str:
    """How names are compared and shown: lower case, words joined by single hyphens."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


def choose(names: Sequence[str]) -> dict[str, int]:
    """The attributes that names stand for.

    Args:
        names: of EDITABLE, in any case, with - or _ or spaces between words. "no-" in front turns an attribute off;
            for No_Beard "beard" says that. "none" alone chooses nothing.

    Returns:
        Attribute to 1 (on) or -1 (off), in the order of ATTRIBUTES. A hair colour turns the other two off.

    Raises:
        UsageError: a name that is none of these, or names that contradict one another.
    """
    meanings = {}
    for attribute in EDITABLE:
        name = plain(attribute)
        meanings[name], meanings[f"no-{name}"] = (attribute, 1), (attribute, -1)
        meanings.setdefault(name.removeprefix("no-"), (attribute, -1))
    wanted = [plain(name) for name in names]
    if NONE in wanted and len(set(wanted)) > 1:
        raise UsageError(f"--attribute {NONE} and another attribute contradict each other", f"leave out {NONE}")
    chosen: dict[str, int] = {}
    for given, name in zip(names, wanted, strict=True):
        if name == NONE:
            continue
        if name not in meanings:
            raise UsageError(_refusal(given, name), f"choose among {_offered()}")
        attribute, value = meanings[name]
        if chosen.setdefault(attribute, value) != value:
            raise UsageError(f"--attribute {given} contradicts another --attribute", "choose one of the two")
    colours = [colour for colour in HAIR_COLOURS if chosen.get(colour) == 1]
    if len(colours) > 1:
        shown = " and ".join(plain(colour) for colour in colours)
        raise UsageError(f"hair has one colour, not {shown}", "choose one of them")
    if colours:
        chosen |= {colour: -1 for colour in HAIR_COLOURS if colour != colours[0]}
    return {attribute: chosen[attribute] for attribute in ATTRIBUTES if attribute in chosen}


def _refusal(given: str, name: str) -> str:
    known = {plain(attribute) for attribute in ATTRIBUTES}
    if name in known or name.removeprefix("no-") in known:
        return f"--attribute {given} cannot be chosen: it would change who people see"
    return f"no such attribute: {given!r}"


def _offered() -> str:
    names = ", ".join(plain(attribute) for attribute in EDITABLE).replace("no-beard", "beard, no-beard")
    return f"{names}, or {NONE}; no- in front turns one off"


def labels(chosen: Mapping[str, int]) -> np.ndarray:
    """(13,) float32 labels for the generator's input b: 1 on, -1 off, 0 (as it is) for what was not chosen."""
    return np.array([chosen.get(attribute, 0) for attribute in ATTRIBUTES], np.float32)

"""Names of attributes to labels: spellings, what contradicts itself, what may not be chosen."""

from __future__ import annotations

import numpy as np
import pytest

from emask.attributes import ATTRIBUTES, EDITABLE, HAIR_COLOURS, choose, labels, plain
from emask.errors import UsageError


@pytest.mark.parametrize("name", ["eyeglasses", "Eyeglasses", "EYEGLASSES", " eyeglasses "])
def test_case_does_not_matter(name: str) -> None:
    assert choose([name]) == {"Eyeglasses": 1}


@pytest.mark.parametrize("name", ["mouth-slightly-open", "Mouth_Slightly_Open", "mouth slightly open"])
def test_hyphens_underscores_and_spaces_are_the_same(name: str) -> None:
    assert choose([name]) == {"Mouth_Slightly_Open": 1}
    for off in (f"no-{name}", f"NO_{name}", f"no {name}"):
        assert choose([off]) == {"Mouth_Slightly_Open": -1}


def test_an_attribute_that_says_no_itself() -> None:
    assert choose(["no-beard"]) == choose(["No_Beard"]) == {"No_Beard": 1}
    assert choose(["beard"]) == choose(["no-no-beard"]) == {"No_Beard": -1}


@pytest.mark.parametrize("colour", HAIR_COLOURS)
def test_hair_has_one_colour(colour: str) -> None:
    assert choose([colour]) == {other: 1 if other == colour else -1 for other in HAIR_COLOURS}
    assert choose([f"no-{colour}"]) == {colour: -1}
    other = next(c for c in HAIR_COLOURS if c != colour)
    assert choose([colour, f"no-{other}"]) == choose([colour])
    with pytest.raises(UsageError, match="one colour"):
        choose([colour, other])


def test_none_chooses_nothing() -> None:
    assert choose([]) == choose(["none"]) == choose(["NONE", "none"]) == {}
    with pytest.raises(UsageError, match="none"):
        choose(["none", "bangs"])


def test_twice_is_once_and_both_ways_is_refused() -> None:
    assert choose(["bangs", "Bangs"]) == {"Bangs": 1}
    with pytest.raises(UsageError, match="contradicts"):
        choose(["bangs", "no-bangs"])


@pytest.mark.parametrize("name", sorted(set(ATTRIBUTES) - set(EDITABLE)))
def test_what_makes_somebody_who_they_are_is_refused(name: str) -> None:
    for spelling in (name, f"no-{plain(name)}"):
        with pytest.raises(UsageError, match="who people see") as caught:
            choose([spelling])
        assert caught.value.exit_code == 2 and "eyeglasses" in caught.value.hint


@pytest.mark.parametrize("name", ["", "no-", "glasses", "no-none", "top-hat"])
def test_unknown_names_are_refused_with_the_list(name: str) -> None:
    with pytest.raises(UsageError, match="no such attribute") as caught:
        choose([name])
    assert all(plain(attribute) in caught.value.hint for attribute in EDITABLE)


def test_labels_stand_in_the_networks_order() -> None:
    values = labels({"Eyeglasses": 1, "No_Beard": -1})
    assert values.shape == (len(ATTRIBUTES),) == (13,) and values.dtype == np.float32
    assert values[ATTRIBUTES.index("Eyeglasses")] == 1 and values[ATTRIBUTES.index("No_Beard")] == -1
    assert np.count_nonzero(values) == 2
    assert not labels({}).any()

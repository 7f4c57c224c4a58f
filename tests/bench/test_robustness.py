"""Curves over handling: which handlings make one, in which order, and that the picture is one."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from emask.bench.robustness import plot, series
from emask.handling import CURVES, choose


def figures(value: float) -> dict[str, Any]:
    rates = {"0.01": {"value": value}}
    return {"judge": {"impersonation_given": rates, "impersonation_given_clean": rates, "reverified_other": rates}}


def document(names: list[str]) -> dict[str, Any]:
    handlings = choose(names, "--handling")
    return {
        "unseen": {"recognizers": figures(0.9)},
        "erasing": {"unseen targets": {"recognizers": {"judge": {"reverified_other": {"0.01": {"value": 0.8}}}}}},
        "handling": {h.name: {"what": h.what, "recognizers": figures(0.1 * i)} for i, h in enumerate(handlings)},
    }


def test_one_operation_and_one_saving_make_a_point() -> None:
    found = series(document(["jpeg:50", "rotate:10,jpeg:90", "jpeg:75", "chain", "rotate:5,blur:1,jpeg:90", "crop:90"]))
    assert {name: [x for x, _ in points] for name, points in found.items()} == {
        "jpeg": [75, 50], "rotate": [0, 10], "crop": [100, 90],
    }  # fmt: skip
    # the untouched files stand where an operation does nothing, erasing beside protecting
    untouched = found["rotate"][0][1]["judge"]
    assert untouched["impersonation_given"]["0.01"]["value"] == 0.9
    assert untouched["reverified_other"]["0.01"]["value"] == 0.8


def test_the_named_curves_have_four_panels() -> None:
    pytest.importorskip("matplotlib")
    assert [h.name for h in choose(["curves"], "--handling")] == list(CURVES)
    png = plot(document(["curves"]))
    assert png is not None
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width > 4 * 300


def test_a_single_number_is_no_curve() -> None:
    assert plot(document(["jpeg:75"])) is None
    assert plot({**document([]), "handling": {}}) is None

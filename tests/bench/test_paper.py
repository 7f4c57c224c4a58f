"""The paper's own figures: what does not add up is found, and nothing else is."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from emask.bench import paper
from emask.bench.report import REQUIRED
from emask.handling import ALL


def test_two_means_of_table_three_are_wrong() -> None:
    """By hand: (67.01 + 78.19 + 69.06) / 3 = 214.26 / 3 and (5.11 + 42.72 + 10.15) / 3 = 57.98 / 3."""
    found = paper.wrong_means()
    assert set(found) == {"ErasableMask, attack", "ErasableMask, erasion"}
    assert found["ErasableMask, attack"] == pytest.approx((72.60, 214.26 / 3))
    assert found["ErasableMask, erasion"] == pytest.approx((23.92, 57.98 / 3))


def test_the_number_of_faces_behind_percentages() -> None:
    """Against exact fractions; the twin: one figure off by a few hundredths, and the number is gone."""
    for count in (97, 138, 450):
        values = [round(float(Fraction(100 * hits, count)), 2) for hits in (1, count // 3, count // 2 + 1, count - 1)]
        found = paper.faces(values)
        assert found is not None and found <= count
        assert all(min(abs(100 * k / found - v) for k in range(found + 1)) < 0.0101 for v in values)
    figures = [*paper.ASR["CelebA-HQ"]["ErasableMask"], *paper.ESR["CelebA-HQ"]]
    assert paper.faces(figures) == 450
    assert paper.faces([figures[0] + 0.06, *figures[1:]]) != 450


def test_schemes_were_not_scored_on_the_same_faces() -> None:
    counts = {paper.faces(values) for values in paper.ASR["FFHQ"].values()}
    assert counts == {138, 139, 500, 272, 828, 450}


def test_what_it_is_compared_with_exists() -> None:
    assert {handling for _, _, handling in paper.PROCESSED.values()} <= set(ALL)


def test_ours_stands_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mean over judges at the paper's rates; what was not measured is left empty."""

    def figures(shift: int) -> dict[str, Any]:
        names = ("impersonation_given", "erased", "erased_clean", "reverified_other", "reverified_other_clean")
        return {
            name: {far: {"value": (10 * i + shift + j) / 100} for j, far in enumerate(("0.1", "0.01"))}
            for i, name in enumerate(names)
        }

    judges = {"one": figures(0), "two": figures(4)}
    document = dict.fromkeys(REQUIRED, {}) | {
        "unseen": {"recognizers": judges},
        "erasing": {"unseen targets": {"recognizers": judges}},
        "handling": {"jpeg:75": {"recognizers": judges}},
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(document))
    assert paper.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # 1 and 5 percent of the first figure at 0.01; 10 and 14 of the second at 0.1; and so on
    assert "| CelebA-HQ, untouched | 87.7 | 94.3 | 3.0 | 12.0 (22.0) | 33.0 (43.0) |" in lines
    assert "| JPEG; here jpeg:75 | 87.5 | 87.5 | 3.0 | 12.0 (22.0) | 33.0 (43.0) |" in lines
    assert "| rotation | 71.6 | 39.3 |  |  |  |" in lines
    assert "| FFHQ, untouched | 85.6 | 96.4 |  |  |  |" in lines
    path.write_text(json.dumps(document | {"settings": {"sources": "ffhq"}}))
    assert paper.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| FFHQ, untouched | 85.6 | 96.4 | 3.0 | 12.0 (22.0) | 33.0 (43.0) |" in lines
    assert "| CelebA-HQ, untouched | 87.7 | 94.3 |  |  |  |" in lines and "| JPEG | 87.5 | 87.5 |  |  |  |" in lines
    assert paper.main([]) == 0
    assert "| CelebA-HQ, untouched | 87.7 | 94.3 |  |  |  |" in capsys.readouterr().out
    assert paper.main([str(tmp_path / "none.json")]) == 2
    path.write_text(json.dumps(document | {"unseen": {"recognizers": 3}}))
    capsys.readouterr()
    assert paper.main([str(path)]) == 2 and "damaged (" in capsys.readouterr().err

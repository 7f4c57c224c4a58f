"""Curves over budget and injection: the settings of a run, its table and its picture."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from emask.bench.strengths import main, plot, render, settings_of
from emask.errors import UsageError


def document(w: float, eps: float) -> dict[str, Any]:
    def rates(value: float) -> dict[str, Any]:
        return {"0.01": {"value": value, "low": value - 0.01}}

    protected = {"impersonation_given": rates(0.05 * eps), "impersonation_given_clean": rates(0.01)}
    restored = {"reverified_other": rates(0.97), "reverified_other_clean": rates(0.99)}
    return {
        "settings": {"w": w, "eps": eps, "refine": 20, "seed": 0}, "faces": 50, "unseen_targets": [{}] * 4,
        "thresholds": {"judge": {"0.01": 0.2}}, "targets": {},
        "unseen": {
            "not_found": 0, "recognizers": {"judge": protected},
            "after_jpeg": {"psnr_mean": 45 - eps, "ssim_mean": 0.9},
        },
        "erasing": {
            "unseen targets": {"not_found": 0, "recognizers": {"judge": restored}, "restored": {"psnr_mean": 38.0}}
        },
    }  # fmt: skip


def test_each_budget_without_injection_and_each_w_at_the_middle_one() -> None:
    assert settings_of([12, 6, 9, 9], [0.5, 0.2]) == [(0, 6), (0, 9), (0, 12), (0.2, 9), (0.5, 9)]
    for budgets, injections in (([], []), ([0.0], []), ([9.0], [0.0]), ([9.0], [1.2])):
        with pytest.raises(UsageError):
            settings_of(budgets, injections)


def test_table_and_picture() -> None:
    documents = [document(0.0, eps) for eps in (6.0, 9.0, 12.0)] + [document(0.5, 9.0)]
    table = render(documents)
    assert "| 0 | 6 | 39.0 | 0.900 | 30.0 (1.0) | - | - | 97.0 (99.0) | - | 38.0 |" in table
    assert table.count("\n| 0") == 4 and "50 photos, 4 unseen targets" in table
    assert "**Warning**: 50 photos: the intervals are wide" in table
    assert "**Warning**" not in render([{**one, "faces": 100} for one in documents])
    pytest.importorskip("matplotlib")
    png = plot(documents)
    assert png is not None
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width > 900  # two panels
    assert plot(documents[:1]) is None


def test_bad_numbers_are_refused_before_anything_is_loaded(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tmp_path), "--recognizers", str(tmp_path), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--faces", "0"]) == 2
    assert main([*arguments, "--eps", "-1"]) == 2
    assert "eps must be above 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

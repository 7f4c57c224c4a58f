"""The tables of the README come from the bench's JSON: figures land in the right cells, other text stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emask.bench.card import bench_table, fill, recognizer_table


def rate(value: float) -> dict[str, Any]:
    return {"0.01": {"value": value}}


def document() -> dict[str, Any]:
    def protection(given: float) -> dict[str, Any]:
        names = ("impersonation_given", "impersonation_other", "dodging_other", "dodging_same")
        figures = {name: rate(given + index / 100) for index, name in enumerate(names)}
        return {"judge": figures | {f"{name}_clean": rate(0.005) for name in names}}

    quality = {"psnr_mean": 33.25, "psnr_min": 32.0}
    return {
        "faces": 200, "thresholds": {"judge": {}}, "default_target": "ada", "unseen_targets": [1, 2],
        "settings": {"quality": 90, "strength": "medium"},
        "targets": {
            "ada": {"recognizers": protection(0.9), "after_jpeg": quality},
            "bea": {"recognizers": protection(0.8), "after_jpeg": quality},
        },
        "unseen": {"recognizers": protection(0.5)},
        "erasing": {"default target": {
            "restored": quality,
            "recognizers": {"judge": {"reverified_other": rate(0.99), "reverified_other_clean": rate(1.0),
                                      "erased": rate(0.96), "erased_clean": rate(0.98)}},
        }},
    }  # fmt: skip


def test_figures_land_in_their_rows() -> None:
    table = bench_table(document())
    assert "| impersonation, default target | 90.0 (clean 0.5) |" in table
    assert "| impersonation, weakest of 2 built-in targets | 80.0 |" in table
    assert "the photo given | 50.0 (clean 0.5) |" in table
    assert "another picture of them, mean | 86.0 |" in table
    assert "another photo, default target | 99.0 (clean 100.0) |" in table
    assert "erased: not taken for the target, default target | 96.0 (clean 98.0) |" in table
    assert "33.2 dB (least 32.0)" in table


def test_recognizer_figures() -> None:
    entry = {
        "lfw_accuracy": 0.991, "lfw_pairs": {"folds": [9, 10], "pairs": 1200, "missing": 0},
        "thresholds": {"0.01": 0.2847}, "true_accept": {"0.01": 0.987},
        "calibration": {"photos": 2155, "people": 979},
    }  # fmt: skip
    text = recognizer_table(entry)
    assert "99.10%" in text
    assert "| 0.01 | 0.285 | 98.7 |" in text


def test_only_the_marked_block_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n")
    fill(path, {"x": r"new \1", "y": "nowhere"})
    assert path.read_text() == "before\n<!-- x:begin -->\nnew \\1\n<!-- x:end -->\nafter\n"

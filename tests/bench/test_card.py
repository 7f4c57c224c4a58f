"""The tables of the README come from the bench's JSON: figures land in the right cells, other text stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emask.bench.card import bench_table, fill, main, recognizer_table, strength_tables, strengths_table
from emask.bench.report import REQUIRED


def rate(value: float) -> dict[str, Any]:
    return {far: {"value": value, "low": value - 0.01, "high": value + 0.005} for far in ("0.01", "0.001")}


def document() -> dict[str, Any]:
    def protection(given: float) -> dict[str, Any]:
        names = ("impersonation_given", "impersonation_other", "dodging_other", "dodging_same")
        figures = {name: rate(given + index / 100) for index, name in enumerate(names)}
        return {"judge": figures | {f"{name}_clean": rate(0.005) for name in names}}

    def erasing(value: float) -> dict[str, Any]:
        figures = {"reverified_other": rate(value), "reverified_other_clean": rate(1.0),
                   "erased": rate(value - 0.03), "erased_clean": rate(0.98)}  # fmt: skip
        return {"restored": quality(38.9), "recognizers": {"judge": figures}}

    def quality(decibels: float) -> dict[str, Any]:
        return {"psnr_mean": decibels, "psnr_min": 32.0, "ssim_mean": 0.9441}

    return {
        "faces": 200, "thresholds": {"judge": {}}, "default_target": "ada", "unseen_targets": [1, 2],
        "settings": {"quality": 90, "strength": "medium", "eps": 8.9, "refine": 16},
        "targets": {
            "ada": {"recognizers": protection(0.9), "after_jpeg": quality(33.25)},
            "bea": {"recognizers": protection(0.8), "after_jpeg": quality(33.25)},
        },
        "unseen": {"recognizers": protection(0.5), "after_jpeg": quality(34.1)},
        "erasing": {"default target": erasing(0.99), "unseen targets": erasing(0.97)},
    }  # fmt: skip


def unseen_alone(strength: str, eps: float) -> dict[str, Any]:
    own = document()
    del own["erasing"]["default target"]
    own |= {"default_target": None, "targets": {}}
    own["settings"] |= {"strength": strength, "eps": eps}
    return own


def test_figures_land_in_their_rows() -> None:
    table = bench_table(document())
    assert "strength `medium`, eps 8.9, 16 steps of refining." in table
    assert "unseen targets, protected 34.1 dB (least 32.0, SSIM 0.944), restored 38.9 dB" in table
    assert "default target, protected 33.2 dB" in table
    assert "| 2 targets never trained: impersonation, the photo given | 50.0 (clean 0.5) |" in table
    assert "| 2 targets never trained: dodging, another photo of the owner | 52.0 (clean 0.5) |" in table
    assert "| default target ada: impersonation, the photo given | 90.0 (clean 0.5) |" in table
    assert "| default target ada: dodging, the same photo | 93.0 (clean 0.5) |" in table
    assert "| weakest of 2 built-in targets: impersonation, the picture given | 80.0 |" in table
    assert "| mean of 2 built-in targets: impersonation, another picture of them | 86.0 |" in table
    assert "| erased, default target: accepted as the owner by another photo | 99.0 (clean 100.0) |" in table
    assert "| erased, unseen targets: not taken for the target | 94.0 (clean 98.0) |" in table


def test_a_run_without_unseen_targets_has_the_built_in_ones() -> None:
    own = document() | {"unseen": None}
    del own["erasing"]["unseen targets"]
    table = bench_table(own)
    assert "never trained" not in table and "default target ada: dodging" in table


def test_a_strength_with_its_intervals_and_several_side_by_side() -> None:
    table = strength_tables(unseen_alone("low", 5.6))
    assert "strength `low`, eps 5.6" in table
    assert "| percent at FAR 0.001 | judge | mean |" in table
    assert table.count("| the target, another photo | 51.0 [50.0, 51.5] (clean 0.5) | 51.0 |") == 2
    assert "| erased: the owner again, another photo | 97.0 [96.0, 97.5] (clean 100.0) | 97.0 |" in table
    stronger = unseen_alone("high", 13)
    stronger["unseen"]["recognizers"]["judge"]["impersonation_other"]["0.001"]["value"] = 0.8
    both = strengths_table([unseen_alone("low", 5.6), stronger])
    assert "|  | `low` | `high` |" in both
    assert "| the target, another photo, FAR 0.001 | **51.0** (51.0; clean 0.5) | **80.0** (80.0; clean 0.5) |" in both


def test_several_runs_fill_several_files(tmp_path: Path) -> None:
    runs = []
    for name, own in (("card", document()), ("low", unseen_alone("low", 5.6)), ("high", unseen_alone("high", 13))):
        runs.append(str(tmp_path / f"{name}.json"))
        (tmp_path / f"{name}.json").write_text(json.dumps({**dict.fromkeys(REQUIRED, {}), **own}), encoding="utf-8")
    blocks = ("bench", "low", "high", "strengths", "recognizer", "medium")
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name}:begin -->\nold {name}\n<!-- {name}:end -->\n" for name in blocks))
    assert main([*runs, str(page)]) == 0
    text = page.read_text()
    assert [name for name in blocks if f"old {name}" in text] == ["medium"]  # of which there is no run
    assert "eps 5.6" in text and "eps 13" in text and "default target ada" in text
    for wrong in ([runs[1], runs[1], str(page)], [str(page)], [runs[0]]):  # a strength twice, no run, nothing to fill
        assert main(wrong) == 2
    assert page.read_text() == text


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

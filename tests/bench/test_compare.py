"""Comparing two runs: what is counted, in which direction, and what is left out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emask.bench.compare import main, rows
from emask.bench.metrics import rate
from emask.bench.report import REQUIRED
from emask.bench.resume import cosines_file


def share(hits: int) -> dict[str, Any]:
    return rate(np.arange(200) < hits).to_json()


@pytest.fixture
def document() -> dict[str, Any]:
    judge = {"impersonation_other": {"0.01": share(120)}, "impersonation_other_clean": {"0.01": share(2)}}
    restored = {"reverified_other": {"0.01": share(198)}, "reverified_other_protected": {"0.01": share(60)}}
    quality = {"psnr_mean": 33.9, "psnr_min": 33.0, "ssim_mean": 0.95}
    return {
        **dict.fromkeys(REQUIRED, {}),
        "unseen": {"not_found": 0, "after_jpeg": quality, "recognizers": {"judge": judge}},
        "erasing": {"unseen targets": {"restored": {"psnr_mean": 38.0}, "recognizers": {"judge": restored}}},
    }


def test_figures_of_merit_are_paired(document: dict[str, Any]) -> None:
    """Neither the clean photos' rates nor the protected ones' re-verification is one."""
    found = {(row.part, row.figure, row.where) for row in rows(document, document)}
    assert found == {
        ("unseen", "impersonation_other", ("judge", "0.01")),
        ("unseen", "psnr_mean", ("after_jpeg",)),
        ("unseen", "psnr_min", ("after_jpeg",)),
        ("unseen", "ssim_mean", ("after_jpeg",)),
        ("erasing", "psnr_mean", ("unseen targets", "restored")),
        ("erasing", "reverified_other", ("unseen targets", "judge", "0.01")),
    }


def test_better_and_worse_and_clearly(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = copy.deepcopy(document)
    new["unseen"]["recognizers"]["judge"]["impersonation_other"]["0.01"] = share(170)  # the intervals lie apart
    new["erasing"]["unseen targets"]["recognizers"]["judge"]["reverified_other"]["0.01"] = share(197)  # they do not
    new["unseen"]["after_jpeg"]["psnr_mean"] = 33.4
    for name, content in (("old", document), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    assert main([str(tmp_path / "old.json"), str(tmp_path / "new.json"), "--rows", "1"]) == 0
    printed = capsys.readouterr().out
    assert "6 figures: 1 better, 2 worse; none compared photo by photo." in printed
    assert "| unseen | impersonation_other | 1 | +25.0 points | 1 (1) | 0 (0) |" in printed
    assert "| erasing | reverified_other | 1 | -0.5 points | 0 (0) | 1 (0) |" in printed
    # half a point and half a dB lost: the one row that is asked for is one of them, and nothing that gained
    assert printed.rstrip().splitlines()[-1].split(" | ")[-3] in ("reverified_other", "psnr_mean")
    assert main([str(tmp_path / "new.json"), str(tmp_path / "old.json")]) == 0
    assert "6 figures: 2 better, 1 worse; none compared photo by photo." in capsys.readouterr().out


def test_the_same_photos_are_compared_one_by_one(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve photos of 200 gained and none lost is no chance, though the intervals overlap; with twelve lost it is."""
    threshold = 0.3
    document["thresholds"] = {"judge": {"0.01": threshold}}
    document["photos"] = [{"source": f"{i}.jpg"} for i in range(200)]

    def write(name: str, seen: np.ndarray) -> str:
        own = copy.deepcopy(document)
        own["unseen"]["recognizers"]["judge"]["impersonation_other"]["0.01"] = rate(seen).to_json()
        folder = tmp_path / name
        folder.mkdir()
        (folder / "bench.json").write_text(json.dumps(own), encoding="utf-8")
        cosines = np.where(seen, threshold, threshold - 0.01).astype(np.float64)
        (folder / "similarities.npz").write_bytes(cosines_file({"unseen/judge/protected-target": cosines}))
        return str(folder / "bench.json")

    before = np.arange(200) < 100
    gained, moved = before.copy(), before.copy()
    gained[188:] = True
    moved[176:] = True
    moved[:12] = False
    files = {name: write(name, seen) for name, seen in (("old", before), ("gained", gained), ("moved", moved))}
    for new, line in (("gained", "+6.0 points | 1 (1) | 0 (0) |"), ("moved", "+6.0 points | 1 (0) | 0 (0) |")):
        assert main([files["old"], files[new]]) == 0
        printed = capsys.readouterr().out
        assert f"| unseen | impersonation_other | 1 | {line}" in printed
        assert "1 of them compared photo by photo" in printed
    document["photos"] = document["photos"][::-1]  # other photos: only the intervals are left
    assert main([files["old"], write("others", gained)]) == 0
    printed = capsys.readouterr().out
    assert "+6.0 points | 1 (0) |" in printed and "none compared photo by photo" in printed


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"version": 1})])
def test_what_is_no_document_is_refused(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    (tmp_path / "good.json").write_text(json.dumps(document), encoding="utf-8")
    if content is not None:
        (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    assert main([str(tmp_path / "good.json"), str(tmp_path / "bad.json")]) == 2
    captured = capsys.readouterr()
    assert "bad.json" in captured.err and captured.out == ""


def test_damage_inside_is_told(document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = copy.deepcopy(document)
    del broken["unseen"]["recognizers"]["judge"]["impersonation_other"]["0.01"]["high"]
    for name, content in (("good", document), ("bad", broken)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    assert main([str(tmp_path / "good.json"), str(tmp_path / "bad.json")]) == 2
    error = capsys.readouterr().err
    assert "bad.json: damaged (KeyError" in error and error.count("\n") == 1

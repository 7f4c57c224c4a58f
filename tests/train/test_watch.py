"""Tables that grow late columns and go on after an interruption, curves of them, and pictures of samples."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emask.train import watch
from emask.train.watch import (
    LABEL,
    VALIDATION,
    LossTable,
    append_row,
    draw_curves,
    keep_rows,
    read_columns,
    sample_grid,
    to_pixels,
)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fill(table: LossTable, steps: range) -> None:
    """A row every second step; from step 4 on with another term."""
    for step in steps:
        terms = {"one": torch.tensor(float(step))}
        table.add(terms if step < 4 else terms | {"late": torch.tensor(0.5)})
        if step % 2:
            table.flush(step + 1, step / 10)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the table reads; to be changed in place."""
    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    return now


def test_means_line_and_rate(tmp_path: Path, clock: list[float]) -> None:
    table = LossTable(tmp_path / "a.csv", batch=8, every=20.0)
    assert not table.due() and not table.waiting and table.flush(0, 0.0) == ""
    table.add({"pixels": torch.tensor(1.0), "now and then": torch.tensor(6.0)})
    table.add({"pixels": torch.tensor(2.0)})
    clock[0] += 16.0
    assert table.waiting and not table.due()
    clock[0] += 16.0
    assert table.due()
    # a term's mean is over the steps that had it
    assert table.flush(2, 0.5) == "pixels 1.500  now and then 6.000  0.5 crops/s"
    assert rows(tmp_path / "a.csv") == [{"step": "2", "minutes": "0.50", "pixels": "1.5", "now and then": "6"}]
    table.add({"pixels": torch.tensor(3.0)})
    clock[0] += 2.0
    assert table.flush(3, 0.6) == "pixels 3.000  4.0 crops/s"  # since the last row, not since the start
    assert [row["pixels"] for row in rows(tmp_path / "a.csv")] == ["1.5", "3"]


def test_a_loss_whose_memory_is_used_again(tmp_path: Path) -> None:
    """What a compiled or captured step returns is overwritten by the next."""
    table, value = LossTable(tmp_path / "a.csv", 1), torch.zeros(())
    for number in (1.0, 3.0):
        value.fill_(number)
        table.add({"one": value})
    table.flush(2, 0.0)
    assert rows(tmp_path / "a.csv")[0]["one"] == "2"


def test_late_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    fill(LossTable(path, 1), range(8))
    assert [list(row.values()) for row in rows(path)] == [
        ["2", "0.10", "0.5", ""], ["4", "0.30", "2.5", ""], ["6", "0.50", "4.5", "0.5"], ["8", "0.70", "6.5", "0.5"],
    ]  # fmt: skip
    assert list(rows(path)[0]) == ["step", "minutes", "one", "late"]
    columns = read_columns(path)
    assert np.isnan(columns["late"][:2]).all() and columns["late"][2] == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_resumed_has_the_rows_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    fill(LossTable(whole, 1), range(12))
    fill(LossTable(cut, 1), range(10))  # its checkpoint is of step 6
    with cut.open("a") as file:
        file.write("6,0.50,9,0.")  # of a row that was being written
    fill(LossTable(cut, 1, resume_step=6), range(6, 12))
    assert cut.read_bytes() == whole.read_bytes()
    # back to where the late column was not there yet
    fill(LossTable(cut, 1, resume_step=2), range(2, 12))
    assert cut.read_bytes() == whole.read_bytes()
    # the twin that knows of no checkpoint
    fill(LossTable(cut, 1, resume_step=100), range(6, 12))
    assert cut.read_bytes() != whole.read_bytes()


def test_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    fill(LossTable(path, 1), range(4))
    before = path.read_bytes()
    LossTable(path, 1)  # one that nothing is added to, as other processes of a run have
    LossTable(path, 1, resume_step=0)
    assert path.read_bytes() == before
    LossTable(path, 1).add({"one": torch.tensor(1.0)})
    assert not path.exists()
    fill(LossTable(path, 1, resume_step=4), range(4, 6))  # the table was lost, the checkpoint was not
    assert [row["step"] for row in rows(path)] == ["6"]
    path.write_text("no table\n")
    fill(LossTable(path, 1, resume_step=4), range(4, 6))
    assert [row["step"] for row in rows(path)] == ["6"]


def test_rows_of_several_stages(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"

    def kept(last: int, stage: int) -> list[tuple[str, str]]:
        for number, step in ((2, 10), (2, 20), (3, 5), (3, 15)):
            append_row(path, step, 0.0, {"asr": 0.5}, number)
        keep_rows(path, last, stage)
        found = [(row["stage"], row["step"]) for row in rows(path)]
        path.unlink()
        return found

    assert kept(5, 3) == [("2", "10"), ("2", "20"), ("3", "5")]
    assert kept(0, 3) == [("2", "10"), ("2", "20")]
    assert kept(10, 2) == [("2", "10")]
    keep_rows(path, 1)
    assert not path.exists()


def test_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    losses, png = tmp_path / "stage2.csv", tmp_path / "curves.png"
    assert not draw_curves(losses, png) and not png.exists()

    def drawn(stage: int | None = None) -> np.ndarray:
        assert draw_curves(losses, png, stage=stage)
        with Image.open(png) as picture:
            assert picture.format == "PNG"
            return np.asarray(picture.convert("RGB"))

    fill(LossTable(losses, 1), range(4))
    first = drawn()
    assert min(first.shape[:2]) > 100 and first.std() > 5
    assert np.array_equal(first, drawn())
    append_row(losses, 5, 0.5, {"one": float("nan")})  # a run that went wrong is drawn, too
    drawn()
    append_row(losses, 6, 0.6, {"one": 9.0})
    assert not np.array_equal(first, drawn())
    before = drawn()
    for stage, value in ((2, 0.1), (3, 0.9)):
        for step in (3, 6):
            scores = {"asr": value, "asr-clean": 0.0, "asr@judge": value, "psnr": 30.0}
            append_row(tmp_path / VALIDATION, step, 0.5, scores, stage)
    second = drawn(stage=2)
    assert second.shape != before.shape or not np.array_equal(second, before)
    assert not np.array_equal(second, drawn(stage=3))
    assert drawn(stage=1).shape == before.shape
    assert {p.name for p in tmp_path.iterdir()} == {"stage2.csv", "curves.png", VALIDATION}


def test_curves_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*(n for n in sys.modules if n.startswith("matplotlib.")), "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    fill(LossTable(tmp_path / "a.csv", 1), range(4))
    assert draw_curves(tmp_path / "a.csv", tmp_path / "a.png") is False
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("names", [(), ("original", "protected")])
def test_sample_grid(tmp_path: Path, names: tuple[str, ...]) -> None:
    path, left = tmp_path / "samples.png", LABEL if names else 0
    original = torch.linspace(-1, 1, 3 * 3 * 16 * 16).view(3, 3, 16, 16)
    sample_grid([list(original), list(torch.zeros(3, 3, 16, 16)), list(5 * original)], path, names)
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (3 * 16, left + 3 * 16, 3) and pixels.dtype == np.uint8
    expected = to_pixels(original)
    for face in range(3):
        columns = slice(left + 16 * face, left + 16 * face + 16)
        assert np.array_equal(pixels[:16, columns], expected[face])
        assert (pixels[16:32, columns] == 128).all()  # no change is mid grey
    assert pixels[32:, left:].min() == 0 and pixels[32:, left:].max() == 255
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"]


def test_to_pixels() -> None:
    levels = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert np.array_equal(to_pixels(levels / 127.5 - 1)[0, :, :, 0].ravel(), np.arange(256))
    assert to_pixels(torch.full((1, 3, 2, 2), -9.0)).max() == 0

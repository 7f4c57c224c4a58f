"""Watching a training run: a table of losses, curves and sample faces, so that a bad run is seen early.

A table is a CSV file: a row a report, its first columns the stage (where a table has several), the step and the minutes
since the stage began. A column that appears later than others has empty cells above.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from emask.drawing import as_png, blank, encode_png
from emask.images import write_bytes

LOG_EVERY = 20.0  # seconds between rows of the loss table
# Name of the table of validation scores, beside the table of losses.
VALIDATION = "validation.csv"
LABEL = 80  # pixels, width of the names of a sample picture's rows
PANELS = 4  # side by side in the picture of curves

# A row's first columns; the stage may be left out.
_KEYS = ["stage", "step", "minutes"]


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table; none where there is no file, or another kind of file.

    A row that is not whole is left out: the process may have ended while it was written.
    """
    if not path.is_file():
        return [], []
    text = path.read_text(encoding="utf-8")
    columns, *rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))) or [[]]
    if not {"step", "minutes"} <= set(columns):
        return [], []
    whole = [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]
    return columns, [row for row in whole if row["step"].isdecimal()]


def _write(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode(), force=True)


def _columns(path: Path) -> list[str]:
    """The columns of a table, without reading all of it; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def append_row(path: Path, step: int, minutes: float, values: dict[str, float], stage: int | None = None) -> None:
    """Add a row to a table.

    Where it brings new columns, the whole table is written anew, with empty cells in the rows that are there.

    Args:
        step: steps made.
        minutes: since the stage began.
        values: by column.
        stage: in a table of several stages.

    Raises:
        ImageError: the table cannot be written anew.
    """
    row = {} if stage is None else {"stage": str(stage)}
    row |= {"step": str(step), "minutes": f"{minutes:.2f}", **{name: f"{value:.6g}" for name, value in values.items()}}
    columns = _columns(path)
    if columns and row.keys() <= set(columns):
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns, restval="", lineterminator="\n").writerow(row)
        return
    columns, rows = _read(path)
    _write(path, [*columns, *(name for name in row if name not in columns)], [*rows, row])


def keep_rows(path: Path, last: int, stage: int | None = None) -> None:
    """Drop a table's rows of later steps than `last`, and one that was not written to its end.

    A run that goes on from a checkpoint makes the steps after it again, and their rows with them.

    Args:
        last: the checkpoint's step; 0 where the stage starts anew.
        stage: in a table of several stages: rows of earlier ones stay, those of later ones go.
    """

    def stays(row: dict[str, str]) -> bool:
        if stage is None or int(row.get("stage") or stage) == stage:
            return int(row["step"]) <= last
        return int(row["stage"]) < stage

    if not path.is_file():
        return
    columns, rows = _read(path)
    if columns:
        _write(path, columns, [row for row in rows if stays(row)])
    else:
        path.unlink()


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """A table's columns as (rows,) float64, nan where a cell is empty; nothing where there is no table."""
    columns, rows = _read(path)
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in columns}


class LossTable:
    """Named losses, averaged over the steps that had them, to a CSV file and to a line of text.

    Args:
        path: of the table; its folder exists.
        batch: crops a step, of all processes together.
        resume_step: the step of the checkpoint that the run goes on from: later rows are dropped, and what follows is
            appended. None starts anew; a table that is there is removed.
        every: seconds between rows.

    The file is touched from the first `add` on: of several processes on one run, only the one that adds has a file.

    Attributes:
        means: the last row's.
    """

    def __init__(self, path: Path, batch: int, resume_step: int | None = None, every: float = LOG_EVERY) -> None:
        self.path, self.batch, self.resume_step, self.every = path, batch, resume_step, every
        self.means: dict[str, float] = {}
        self._opened = False
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._steps = 0
        self._told = time.monotonic()

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take a step's losses, scalars on any device; which terms there are may change from step to step."""
        if not self._opened:
            self._open()
        for name, value in terms.items():
            # A sum of its own even for the first value, whose memory may be another loss's in the next step. It stays
            # on its device: to read it here would make every step wait.
            self._sums[name] = value.detach().float() + self._sums.get(name, 0.0)
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1

    def _open(self) -> None:
        if self.resume_step is None:
            self.path.unlink(missing_ok=True)
        else:
            keep_rows(self.path, self.resume_step)
        self._opened = True

    @property
    def waiting(self) -> bool:
        """Whether anything was added since the last row."""
        return self._steps > 0

    def due(self) -> bool:
        """Whether it is time for a row."""
        return self.waiting and time.monotonic() - self._told > self.every

    def flush(self, step: int, minutes: float) -> str:
        """Write the means since the last row as a row, and give them as a line of text that ends with the rate.

        Args:
            step: steps made.
            minutes: since the stage began.

        Returns:
            "NAME MEAN  ...  RATE crops/s"; "" where nothing was added since, which makes no row.
        """
        if not self.waiting:
            return ""
        now = time.monotonic()
        rate = self._steps * self.batch / max(now - self._told, 1e-9)
        self.means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts, self._steps, self._told = {}, {}, 0, now
        append_row(self.path, step, minutes, self.means)
        return "  ".join([*(f"{name} {value:.3f}" for name, value in self.means.items()), f"{rate:.1f} crops/s"])


def _family(score: str) -> str:
    """The panel of a validation score: "asr" of "asr-clean@NAME"."""
    return score.split("@")[0].split("-")[0]


def draw_curves(csv_path: Path, png_path: Path, validation: Path | None = None, stage: int | None = None) -> bool:
    """Draw a table of losses as a PNG picture, a panel a column, over the steps.

    The scores of the table of validation share panels, what belongs together in one: a judge's as a thin line, the
    mean of all thick, and dashed what holds for clean photos.

    Args:
        csv_path: of a `LossTable`.
        png_path: written whole or not at all.
        validation: table of validation; None takes VALIDATION beside `csv_path`. It need not be there.
        stage: draw only this stage's rows of a table of validation that has several.

    Returns:
        False where nothing was drawn: matplotlib is not installed, or there are no rows yet.
    """
    losses = read_columns(csv_path)
    scores = read_columns(csv_path.with_name(VALIDATION) if validation is None else validation)
    if stage is not None and "stage" in scores:
        own = scores["stage"] == stage
        scores = {name: values[own] for name, values in scores.items()}
    panels = [(name, losses["step"], {name: losses[name]}) for name in losses if name not in _KEYS]
    names = [name for name in scores if name not in _KEYS]
    for family in dict.fromkeys(map(_family, names)):
        lines = {name: scores[name] for name in names if _family(name) == family}
        panels.append((f"validation: {family}", scores["step"], lines))
    panels = [panel for panel in panels if len(panel[1])]
    if not panels:
        return False

    down = math.ceil(len(panels) / PANELS)
    figure = blank(3.2 * PANELS, 2.2 * down)
    if figure is None:
        return False
    for number, (title, steps, lines) in enumerate(panels):
        axes = figure.add_subplot(down, PANELS, number + 1)
        for name, values in lines.items():
            mean = "@" not in name
            axes.plot(
                steps,
                np.where(np.isfinite(values), values, np.nan),
                linestyle="--" if "-clean" in name else "-",
                linewidth=1.6 if mean else 0.5,
                marker="." if np.isfinite(values).sum() == 1 else None,  # a single point makes no line
                label=name if mean else None,
            )
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=6)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=6)
    write_bytes(png_path, as_png(figure), force=True)
    return True


def to_pixels(crops: Tensor) -> np.ndarray:
    """(B, 3, S, S) in [-1, 1] on any device to (B, S, S, 3) uint8 RGB, rounded."""
    grey_levels = ((crops.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return np.ascontiguousarray(grey_levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def sample_grid(rows: Sequence[Sequence[Tensor]], path: Path, names: Sequence[str] = ()) -> None:
    """Write rows of sample faces as a PNG picture, a column a face.

    Args:
        rows: of (3, S, S) pictures in [-1, 1], on any device; as many in each row. What goes beyond is clipped.
        path: written whole or not at all.
        names: of the rows, in front of them; none leaves no room for names.
    """
    tiles = [np.concatenate(list(to_pixels(torch.stack(list(row)))), axis=1) for row in rows]
    size, width = tiles[0].shape[:2]
    left = LABEL if names else 0
    picture = Image.new("RGB", (left + width, size * len(tiles)), "white")
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(tiles):
        picture.paste(Image.fromarray(row), (left, size * number))
    for number, name in enumerate(names):
        draw.text((6, size * number + size // 2), name, fill="black")
    write_bytes(path, encode_png(picture), force=True)

"""Two runs of the bench side by side, figure by figure: are these weights at least as good as those?

    emask bench compare old/bench.json new/bench.json [--rows 20]      (or: python -m emask.bench.compare)

Counts every row in which the new run is better or worse, by kind of figure. "Clearly": of the photos that one run gets
right and the other does not, so many are on one side that chance would bring it about in less than one case in twenty
(McNemar's exact test, on the cosines in similarities.npz beside each bench.json). Where there are no cosines of the
same photos, as after handling, the two 95% Wilson intervals must not overlap, which asks for more. The runs should have
the same faces, targets and judges; what only one has is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from emask.bench.metrics import mcnemar
from emask.bench.report import damage, read
from emask.bench.resume import COSINES, read_cosines
from emask.bench.table import markdown_table
from emask.errors import as_program

PARTS = ("targets", "unseen", "erasing", "handling")
# The higher, the better, all of them. Their twins for clean and for protected photos are no figures of merit.
SHARES = ("impersonation_given", "impersonation_other", "dodging_other", "dodging_same", "reverified_other",
          "reverified_same", "erased")  # fmt: skip
QUALITY = ("psnr_mean", "psnr_min", "ssim_mean")
# Which photo's cosine with whom decides a share, and whether it has to be accepted; see emask.bench.protocol.
DECIDED_BY = {
    "impersonation_given": ("protected-given", True), "impersonation_other": ("protected-target", True),
    "dodging_other": ("protected-owner", False), "dodging_same": ("protected-same", False),
    "reverified_other": ("restored-owner", True), "reverified_same": ("restored-same", True),
    "erased": ("restored-given", False),
}  # fmt: skip
CHANCE = 0.05

Cosines = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One figure of both runs.

    Attributes:
        part: "targets", "unseen", "erasing" or "handling"; figure: its name; where: the names that lead to it.
        old, new: shares 0..1, dB, or SSIM.
        clear: more than chance: by McNemar's test on the same photos, else by intervals that do not overlap; never for
            figures without an interval.
        paired: it was the test.
    """

    part: str
    figure: str
    where: tuple[str, ...]
    old: float
    new: float
    clear: bool
    paired: bool = False


def rows(
    old: Mapping[str, Any], new: Mapping[str, Any], cosines: tuple[Cosines, Cosines] | None = None
) -> list[Row]:
    """The figures of merit that both documents of `emask bench --json` have.

    Args:
        cosines: of both runs, "LABEL/JUDGE/KIND-AGAINST" to (N,); not looked at where the photos are not the same.
    """
    found = [row for part in PARTS if part in old and part in new for row in _rows(part, "", (), old[part], new[part])]
    if cosines is None or any(old.get(key) != new.get(key) for key in ("photos", "unseen_targets", "default_target")):
        return found
    return [_paired(row, old, new, *cosines) for row in found]


def _rows(part: str, figure: str, path: tuple[str, ...], old: Any, new: Any) -> Iterator[Row]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if "value" in old and "value" in new:
            if figure and old["value"] is not None and new["value"] is not None:
                apart = old["high"] < new["low"] or new["high"] < old["low"]
                where = tuple(name for name in path if name not in ("recognizers", figure))
                yield Row(part, figure, where, old["value"], new["value"], apart)
            return
        for key in old:
            if key in new:
                name = key if key in SHARES else figure
                if key in QUALITY:
                    yield Row(part, key, path, old[key], new[key], False)
                elif not key.endswith(("_clean", "_protected")):
                    yield from _rows(part, name, (*path, key), old[key], new[key])


def _paired(row: Row, old: Mapping[str, Any], new: Mapping[str, Any], before: Cosines, after: Cosines) -> Row:
    """The row as McNemar's test sees it, where there are cosines for it."""
    from emask.bench.protocol import UNSEEN  # brings the models' libraries

    if row.figure not in DECIDED_BY or row.part == "handling":
        return row
    *label, judge, far = row.where
    name = label[0] if label else UNSEEN
    name = {"default target": str(old.get("default_target")), "unseen targets": UNSEEN}.get(name, name)
    kind, accepting = DECIDED_BY[row.figure]
    key = f"{name}/{judge}/{kind}"
    if key not in before or key not in after or before[key].shape != after[key].shape:
        return row
    # a face that was not found (nan) is on neither side of a threshold, and so fails
    hits = [
        cosine >= document["thresholds"][judge][far] if accepting else cosine < document["thresholds"][judge][far]
        for document, cosine in ((old, before[key]), (new, after[key]))
    ]
    return replace(row, clear=mcnemar(*hits) < CHANCE, paired=True)


def render(found: Sequence[Row], most: int) -> str:
    """Markdown: one line a kind of figure, then the `most` rows that lost the most."""
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        kinds.setdefault((row.part, row.figure), []).append(row)
    lines = []
    for (part, figure), own in kinds.items():
        scale, digits, unit = _scale(figure)
        mean = scale * sum(row.new - row.old for row in own) / len(own)
        change = f"{mean:+.{digits}f} {unit}".strip()
        counts = [f"{len(side)} ({sum(row.clear for row in side)})" for side in _sides(own)]
        lines.append([part, figure, f"{len(own)}", change, *counts])
    better, worse = _sides(found)
    paired = sum(row.paired for row in found)
    tested = f"{paired} of them compared photo by photo" if paired else "none compared photo by photo"
    text = [f"{len(found)} figures: {len(better)} better, {len(worse)} worse; {tested}.", ""]
    text += markdown_table(["part", "figure", "rows", "mean change", "better (clearly)", "worse (clearly)"], lines)
    # a dB counts as a point
    lost = sorted(worse, key=lambda row: (row.new - row.old) * (1 if row.figure in SHARES else 0.01))[:most]
    if lost:
        cells = []
        for row in lost:
            scale, digits, unit = _scale(row.figure)
            cells.append([row.part, " ".join(row.where), row.figure, f"{scale * row.old:.{digits}f}",
                          f"{scale * row.new:.{digits}f} {unit}".strip()])  # fmt: skip
        text += ["", "Lost most:", "", *markdown_table(["part", "where", "figure", "old", "new"], cells)]
    return "\n".join(text)


def _sides(found: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows in which the new run is better, and those in which it is worse."""
    return [row for row in found if row.new > row.old], [row for row in found if row.new < row.old]


def _scale(figure: str) -> tuple[float, int, str]:
    """Factor, digits and unit a figure is printed with."""
    if figure in SHARES:
        return 100, 1, "points"
    return (1, 3, "") if figure.startswith("ssim") else (1, 2, "dB")


def between(old: Path, new: Path, most: int) -> str:
    """The comparison of two bench.json files, as `render` has it.

    Raises:
        UsageError: one cannot be read, or is damaged.
    """
    documents = read(old), read(new)
    before, after = (read_cosines(path.with_name(COSINES)) for path in (old, new))
    cosines = None if before is None or after is None else (before, after)
    with damage(old, new):
        return render(rows(*documents, cosines), most)


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m emask.bench.compare`."""
    parser = argparse.ArgumentParser(prog="python -m emask.bench.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("old", type=Path, help="a bench.json")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--rows", type=int, default=10, help="rows to list of those that lost most")
    options = parser.parse_args(arguments)
    print(between(options.old, options.new, options.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Attack and erasing against how much a file went through: curves over JPEG quality, turning, cutting, and size.

    emask bench ... --handling curves
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emask.bench.table import mean_percent
from emask.drawing import as_png, blank
from emask.errors import UsageError
from emask.handling import parse


@dataclass(frozen=True)
class Axis:
    """What one operation's number means on a plot.

    Attributes:
        label: of the axis.
        untouched: the number that does nothing; where it is known, the figures without any handling stand there.
        downwards: the axis runs from large numbers to small ones, so that all curves get worse to the right.
    """

    label: str
    untouched: float | None
    downwards: bool


AXES = {
    "jpeg": Axis("JPEG quality", None, True),
    "rotate": Axis("turned by (degrees)", 0, False),
    "crop": Axis("kept of each side (%)", 100, True),
    "scale": Axis("size of the photo (%)", 100, True),
}
# (figure, colour, name); of the protected photos first.
LINES = (
    ("impersonation_given", "C3", "taken for the target, photo given"),
    ("impersonation_other", "C1", "taken for the target, another photo"),
    ("dodging_other", "C0", "not taken for the owner, another photo"),
    ("reverified_other", "C2", "erased: the owner again, another photo"),
)
Series = dict[str, list[tuple[float, Mapping[str, Any]]]]


def series(document: Mapping[str, Any]) -> Series:
    """By operation, the numbers it was measured at and the figures of all recognizers there, in order.

    A handling counts for an operation when that comes first, and after it nothing but one saving as JPEG.
    """
    found: Series = {}
    for entry in document.get("handling", {}).values():
        try:
            operations = parse(entry["what"]).operations
        except UsageError:  # of another version: no number to draw it at
            continue
        rest = [operation.name for operation in operations[1:]]
        if operations and operations[0].name in AXES and rest in ([], ["jpeg"]):
            found.setdefault(operations[0].name, []).append((operations[0].value, entry["recognizers"]))
    untouched = _untouched(document)
    result = {}
    for name, axis in AXES.items():
        if name in found:
            points = found[name]
            if axis.untouched is not None and untouched:
                points = [(axis.untouched, untouched), *points]
            result[name] = sorted(points, key=lambda point: point[0], reverse=axis.downwards)
    return result


def _untouched(document: Mapping[str, Any]) -> dict[str, Any]:
    """The figures without handling, of the targets that were handled."""
    seen = document.get("unseen") is not None
    entry = document["unseen"] if seen else document["targets"].get(document.get("default_target"), {})
    erased = document["erasing"].get("unseen targets" if seen else "default target", {}).get("recognizers", {})
    return {name: {**figures, **erased.get(name, {})} for name, figures in entry.get("recognizers", {}).items()}


def plot(document: Mapping[str, Any], far: str = "0.01") -> bytes | None:
    """A panel an operation, as PNG; the clean photos' rates are dotted. Mean over recognizers.

    Returns:
        None where matplotlib is not installed, or no operation was measured at two numbers.
    """
    panels = {name: points for name, points in series(document).items() if len(points) > 1}
    if not panels:
        return None
    drawn = blank(3.6 * len(panels), 4.2)
    if drawn is None:
        return None
    for number, (name, points) in enumerate(panels.items()):
        axes = drawn.add_subplot(1, len(panels), number + 1)
        for figure, colour, title in LINES:
            for suffix, style in (("", "o-"), ("_clean", ":")):
                values = [(x, mean_percent(judges, figure + suffix, far)) for x, judges in points]
                known = [(x, y) for x, y in values if y is not None]
                if known:
                    label = title if not suffix else None
                    axes.plot(*zip(*known, strict=True), style, color=colour, ms=4, linewidth=1.2, label=label)
        axes.set_xlabel(AXES[name].label, fontsize=9)
        axes.set_ylim(-2, 104)
        axes.grid(alpha=0.3)
        if AXES[name].downwards:
            axes.invert_xaxis()
    drawn.axes[0].set_ylabel(f"% at FAR {far}; dotted: clean photos", fontsize=9)
    handles = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(*handles, loc="outside lower center", ncols=2, fontsize=8)
    return as_png(drawn)

"""How alike protected, clean and restored faces are to target and owner: histograms of a benchmark's cosines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from emask.drawing import as_png, blank, plain

KINDS = {"clean": "C7", "protected": "C3", "restored": "C2"}
PANELS = {"target": "cosine with another photo of the target", "owner": "cosine with another photo of the owner"}


def by_panel(cosines: Mapping[str, np.ndarray], label: str, judge: str) -> dict[str, dict[str, np.ndarray]]:
    """Against "target" and "owner", the cosines of each kind of photo; lost faces (nan) are left out.

    Args:
        cosines: "LABEL/JUDGE/KIND-AGAINST" to (N,), as `emask.bench.protocol.run` gives them.
        label: a target's name, or "unseen".
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for panel in PANELS:
        for kind in KINDS:
            values = cosines.get(f"{label}/{judge}/{kind}-{panel}")
            if values is not None:
                found.setdefault(panel, {})[kind] = values[~np.isnan(values)]
    return found


def of_run(document: Mapping[str, Any], cosines: Mapping[str, np.ndarray]) -> bytes | None:
    """`plot` of a run's unseen targets, or where there are none of its default one.

    Args:
        document: of `emask.bench.protocol.run`; cosines: beside it.
    """
    from emask.bench.protocol import UNSEEN  # brings the models' libraries

    label = UNSEEN if document.get("unseen") else str(document.get("default_target"))
    return plot(cosines, document["thresholds"], label)


def plot(cosines: Mapping[str, np.ndarray], thresholds: Mapping[str, Mapping[str, float]], label: str) -> bytes | None:
    """A row a recognizer, a column for target and owner, as PNG; None without matplotlib, or without cosines.

    Args:
        thresholds: by recognizer and false accept rate; drawn as dashed lines.
    """
    rows = {judge: by_panel(cosines, label, judge) for judge in thresholds}
    rows = {judge: panels for judge, panels in rows.items() if panels}
    if not rows:
        return None
    drawn = blank(8.4, 2.3 * len(rows) + 0.8)
    if drawn is None:
        return None
    bins = np.linspace(-0.4, 1.0, 57)
    for row, (judge, panels) in enumerate(rows.items()):
        for column, (panel, title) in enumerate(PANELS.items()):
            axes = drawn.add_subplot(len(rows), 2, 2 * row + column + 1)
            for kind, values in panels.get(panel, {}).items():
                weights = np.full(len(values), 100 / max(1, len(values)))
                axes.hist(values, bins.tolist(), weights=weights, color=KINDS[kind], alpha=0.55, label=kind)
            for far, threshold in thresholds[judge].items():
                axes.axvline(threshold, color="black", linewidth=0.8, linestyle="--")
                axes.annotate(far, (threshold, 1), xycoords=("data", "axes fraction"), fontsize=6, rotation=90,
                              xytext=(1, -1), textcoords="offset points", va="top")  # fmt: skip
            axes.set_xlim(-0.4, 1.0)
            axes.tick_params(labelsize=7)
            if row == 0:
                axes.set_title(title, fontsize=9)
            if column == 0:
                axes.set_ylabel(f"{plain(judge)}\n(% of the photos)", fontsize=8)
    handles = max((axes.get_legend_handles_labels() for axes in drawn.axes), key=lambda found: len(found[0]))
    drawn.legend(*handles, loc="outside lower center", ncols=3, fontsize=8)
    return as_png(drawn)

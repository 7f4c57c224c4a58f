"""The figures that the paper prints for ErasableMask, checked against each other, and a benchmark's beside them.

    emask bench paper [bench.json]      (or: python -m emask.bench.paper)

The paper's recognizers, people and targets are not those of `emask bench`, and it judges aligned crops in memory; so
only means stand side by side, and they say no more than of what order they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emask.bench.report import damage, read
from emask.bench.table import markdown_table, mean_percent
from emask.errors import as_program

RECOGNIZERS = ("FaceNet", "ArcFace", "IRSE50", "MobileFace", "CosFace", "IR152")
# Table II, in percent: attack success at FAR 0.01 by data set and scheme, in the order of RECOGNIZERS.
ASR = {
    "CelebA-HQ": {
        "FGSM": (2.27, 35.00, 61.36, 31.82, 33.18, 42.27),
        "PGD": (3.63, 65.45, 75.45, 45.46, 64.54, 59.09),
        "Sibling Attack": (14.93, 93.21, 95.48, 83.25, 92.31, 98.19),
        "AdvFaces": (35.00, 50.00, 83.67, 91.33, 78.67, 84.66),
        "SemanticAdv": (3.67, 10.66, 38.24, 47.79, 48.16, 63.24),
        "GMAA": (16.04, 44.79, 59.91, 13.85, 50.59, 61.29),
        "ErasableMask": (64.00, 90.44, 94.00, 92.22, 93.33, 92.00),
    },
    "FFHQ": {
        "FGSM": (2.17, 38.41, 47.83, 23.19, 32.61, 52.89),
        "PGD": (5.04, 68.34, 62.58, 34.53, 63.31, 65.46),
        "Sibling Attack": (15.94, 83.33, 88.41, 66.67, 85.51, 89.86),
        "AdvFaces": (25.60, 46.80, 77.40, 68.80, 38.20, 67.80),
        "SemanticAdv": (5.88, 21.33, 31.98, 15.07, 22.06, 35.66),
        "GMAA": (15.94, 21.49, 46.01, 11.71, 21.74, 38.53),
        "ErasableMask": (58.22, 81.78, 97.33, 93.11, 92.67, 90.67),
    },
}
# Table II: erasion success of ErasableMask, the restored face below the target's threshold at FAR 0.1.
ESR = {
    "CelebA-HQ": (96.67, 98.22, 89.33, 94.89, 98.89, 88.00),
    "FFHQ": (98.22, 99.11, 93.78, 98.22, 99.56, 89.33),
}
# Table III, confidences of Aliyun, Face++ and Tencent, and the mean the paper prints.
COMMERCIAL = {
    "Clean": ((4.65, 39.92, 8.66), 17.74),
    "FGSM": ((29.09, 52.41, 24.34), 35.28),
    "PGD": ((31.99, 56.57, 26.07), 38.21),
    "Sibling Attack": ((50.63, 67.39, 42.71), 53.57),
    "AdvFaces": ((43.38, 70.65, 47.72), 53.92),
    "SemanticAdv": ((30.19, 55.05, 29.12), 38.12),
    "GMAA": ((58.22, 66.82, 45.68), 56.91),
    "ErasableMask, attack": ((67.01, 78.19, 69.06), 72.60),
    "ErasableMask, erasion": ((5.11, 42.72, 10.15), 23.92),
}
# Table V, ErasableMask's attack and erasion success after each operation, and what comes nearest to it in
# `emask.handling.ALL`.
PROCESSED = {
    "resize": ((63.6, 90.4, 93.6, 92.7, 92.4, 92.2), (92.7, 95.8, 82.4, 84.4, 96.0, 94.2), "shrink:50,jpeg:90"),
    "JPEG": ((63.8, 90.2, 93.6, 92.7, 92.9, 91.6), (91.3, 95.8, 81.8, 86.0, 93.8, 76.4), "jpeg:75"),
    "Gaussian noise": ((63.7, 88.2, 92.9, 91.6, 89.3, 91.1), (93.1, 96.0, 80.7, 86.9, 94.9, 81.6), "noise:5,jpeg:90"),
    "median filter": ((63.3, 90.4, 93.1, 92.7, 92.9, 92.4), (92.7, 96.0, 83.8, 86.7, 96.0, 78.7), "median:3,jpeg:90"),
    "rotation": ((63.6, 82.7, 68.2, 47.1, 86.4, 81.6), (42.9, 36.2, 36.7, 67.3, 23.8, 28.7), "rotate:10,jpeg:90"),
    "central crop": ((67.6, 92.0, 94.2, 90.0, 92.0, 90.2), (44.0, 18.9, 4.9, 14.0, 14.9, 12.0), "crop:90,jpeg:90"),
}
# The ablation's row of the full method, which should be that of Table II for CelebA-HQ.
ABLATION = (64.00, 90.44, 94.09, 92.22, 93.31, 92.00)
LARGEST = 1000  # faces that a test set is looked for up to


def mean(values: Sequence[float]) -> float:
    """Of a row."""
    return sum(values) / len(values)


def wrong_means() -> dict[str, tuple[float, float]]:
    """Rows of Table III whose printed mean is not that of their figures, to a hundredth: (printed, computed)."""
    found = {}
    for name, (values, printed) in COMMERCIAL.items():
        if abs(printed - mean(values)) > 0.01:
            found[name] = (printed, mean(values))
    return found


def faces(values: Sequence[float], tolerance: float = 0.0101) -> int | None:
    """The smallest number of faces that gives all these percentages, each to two digits; None up to `LARGEST`.

    The tolerance allows for figures that were cut off, not rounded.
    """
    for count in range(2, LARGEST + 1):
        if all(abs(100 * round(value * count / 100) / count - value) < tolerance for value in values):
            return count
    return None


def _printed(document: Mapping[str, Any] | None) -> list[str]:
    """The paper's means, ours beside them."""
    ours = _ours(document) if document else {}
    # beside FFHQ only what is of FFHQ; everything else has to do for CelebA-HQ, whose photos the other rows are of
    folder = str((document or {}).get("settings", {}).get("sources") or "")
    usual, *others = ASR
    here = next((name for name in others if name in folder.upper().split("/")), usual)
    rows = []
    for name in ASR:
        beside = ours.get("", ["", "", ""]) if name == here else ["", "", ""]
        rows.append(
            [f"{name}, untouched", f"{mean(ASR[name]['ErasableMask']):.1f}", f"{mean(ESR[name]):.1f}", *beside]
        )
    for name, (attack, erasion, handling) in PROCESSED.items():
        beside = ours.get(handling, ["", "", ""]) if here == usual else ["", "", ""]
        label = f"{name}; here {handling}" if any(beside) else name
        rows.append([label, f"{mean(attack):.1f}", f"{mean(erasion):.1f}", *beside])
    header = ["", "paper: ASR", "paper: ESR", "here: ASR", "here: ESR (clean)", "here: the owner again (clean)"]
    return markdown_table(header, rows)


def _ours(document: Mapping[str, Any]) -> dict[str, list[str]]:
    """Unseen targets, mean over judges: ASR at FAR 0.01, ESR at FAR 0.1, re-verification at FAR 0.01, by handling."""
    entries = {}
    if document.get("unseen"):
        erased = document["erasing"].get("unseen targets", {}).get("recognizers", {})
        entries[""] = {n: {**figures, **erased.get(n, {})} for n, figures in document["unseen"]["recognizers"].items()}
    entries |= {name: entry["recognizers"] for name, entry in document.get("handling", {}).items()}

    def share(recognizers: Mapping[str, Any], figure: str, far: str) -> str:
        value = mean_percent(recognizers, figure, far)
        return "-" if value is None else f"{value:.1f}"

    return {
        name: [
            share(judges, "impersonation_given", "0.01"),
            f"{share(judges, 'erased', '0.1')} ({share(judges, 'erased_clean', '0.1')})",
            f"{share(judges, 'reverified_other', '0.01')} ({share(judges, 'reverified_other_clean', '0.01')})",
        ]
        for name, judges in entries.items()
    }  # fmt: skip


def render(document: Mapping[str, Any] | None = None) -> str:
    """Markdown: what does not add up in the paper, and its means beside a benchmark's, where one is given."""
    lines = ["Means printed in Table III that are not those of their row:", ""]
    wrong = [[name, f"{printed:.2f}", f"{computed:.2f}"] for name, (printed, computed) in wrong_means().items()]
    lines += markdown_table(["row", "printed", "computed"], wrong)
    lines += ["Faces behind each row of Table II: the smallest number that gives all its percentages.", ""]
    rows = []
    for scheme in ASR["FFHQ"]:
        cells = []
        for name, by_scheme in ASR.items():
            values = [*by_scheme[scheme], *(ESR[name] if scheme == "ErasableMask" else ())]
            cells.append(str(faces(values) or f"none up to {LARGEST}"))
        rows.append([scheme, *cells])
    lines += markdown_table(["scheme", *ASR], rows)
    lines += ["The full method, CelebA-HQ, in Table II and again in the ablation, where they differ:", ""]
    pairs = zip(RECOGNIZERS, ASR["CelebA-HQ"]["ErasableMask"], ABLATION, strict=True)
    rows = [[name, f"{first:.2f}", f"{second:.2f}"] for name, first, second in pairs if first != second]
    lines += markdown_table(["recognizer", "Table II", "ablation"], rows)
    lines += ["ErasableMask, mean over recognizers, in percent:", "", *_printed(document)]
    return "\n".join(lines).rstrip() + "\n"


def beside(bench: Path | None) -> str:
    """`render` with a bench.json, or without one.

    Raises:
        UsageError: it cannot be read, or is damaged.
    """
    if bench is None:
        return render()
    document = read(bench)
    with damage(bench):
        return render(document)


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m emask.bench.paper`."""
    parser = argparse.ArgumentParser(prog="python -m emask.bench.paper", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bench", type=Path, nargs="?", help="bench.json of `emask bench -o FOLDER`")
    options = parser.parse_args(arguments)
    print(beside(options.bench), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

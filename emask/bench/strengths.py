"""Attack, dodging and erasing against how much the mask may change: curves over the budget eps, and over w.

    python -m emask.bench.strengths --data DIR --recognizers DIR [--eps 5 7 9 11] [--w 0.2 0.4] -o FOLDER

The paper's Fig. 5, by the photo protocol (`emask.bench.protocol`) on unseen targets: each eps at w = 0, then each w at
the middle eps. Writes curves.json (a document of the protocol for each), curves.md and curves.png after every setting.
An interrupted run goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emask.bench.doubts import doubts
from emask.bench.resume import kept_in
from emask.bench.table import markdown_table, mean_percent, nearness
from emask.drawing import as_png, blank
from emask.errors import UsageError, as_program
from emask.images import write_files
from emask.paths import make_folder

EPS = (4.0, 5.6, 8.9, 13.0, 16.0)  # low, medium and high among them; PSNR of the face region of some 40 to 31 dB
W = (0.2, 0.4, 0.6, 0.8)
FIGURES = {
    "impersonation_given": ("taken for the target, photo given", "C3"),
    "impersonation_other": ("taken for the target, another photo", "C1"),
    "dodging_other": ("not taken for the owner, another photo", "C0"),
    "reverified_other": ("erased: the owner again, another photo", "C2"),
    "erased": ("erased: not taken for the target", "C4"),
}


def measure(
    data: Path, recognizers: Path, settings: Sequence[tuple[float, float]], faces: int, unseen_targets: int,
    refine: int | None, seed: int, device: str, kept: Path | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A document of the photo protocol for each (w, eps) in turn, with these two as its "settings".

    Args:
        data, recognizers: as for `emask bench`; those of fold B judge.
        refine: gradient steps; None takes those of strength medium.
        device: "auto", "cpu" or "cuda".
        kept: folder where what is done is kept, and taken from; None does without.
    """
    from emask import weights
    from emask.bench import protocol
    from emask.bench.methods import emask_method
    from emask.bench.resume import KeptParts, versions
    from emask.engine import masking_engine
    from emask.engine.refine import Refinement
    from emask.face.detect import Detector
    from emask.recognize import load_folder
    from emask.recognize.cards import folder_cards

    names = [card.name for card in folder_cards(recognizers) if card.fold == "B"]
    if not names:
        raise UsageError(f"no recognizer of fold B in {recognizers}", "name a folder whose cards have folds")
    judges = load_folder(recognizers, names, device)
    steps = weights.refinement("medium") if refine is None else refine
    engine = masking_engine(steps, device)  # type: ignore[arg-type]
    detector = Detector(device=device)  # type: ignore[arg-type]
    selection = protocol.select(data, faces, unseen_targets, seed, detector)
    files = [judge.card.file for judge in judges] + [weights.shipped_path(kind) for kind in weights.KINDS]
    if steps and (refiner := weights.refiner_path()) is not None:
        files.append(refiner)
    common = {
        "refining": repr(Refinement(steps=steps)), "faces": faces, "unseen_targets": unseen_targets,
        "photos": selection.fingerprint(),
        "files": [weights.sha256(path) for path in files], "engine": engine.name, "versions": versions(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="emask-bench-") as folder:
        ground = protocol.survey(selection, judges, Path(folder), detector)
        for w, eps in settings:
            chosen = {"w": w, "eps": eps, "refine": steps, "seed": seed}
            parts = None if kept is None else KeptParts(kept, {**common, "settings": chosen})
            result = protocol.run(
                emask_method(engine, w, eps), selection, [], judges, Path(folder) / f"{w:g}-{eps:g}", detector,
                parts=parts, ground=ground,
            )  # fmt: skip
            yield {"settings": chosen, **result}
            print(f"w {w:g}, eps {eps:g}: done", file=sys.stderr, flush=True)


def _values(document: Mapping[str, Any], far: str) -> dict[str, tuple[float, float]]:
    """By figure, its mean over judges and the clean photos' one, in percent."""
    judges = {
        name: {**figures, **document["erasing"]["unseen targets"]["recognizers"][name]}
        for name, figures in document["unseen"]["recognizers"].items()
    }
    found = {}
    for figure in FIGURES:
        value, clean = (mean_percent(judges, name, far) for name in (figure, f"{figure}_clean"))
        if value is not None and clean is not None:
            found[figure] = (value, clean)
    return found


def render(documents: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table a false accept rate, a row a setting, means over judges."""
    first = documents[0]
    lines = [
        f"{first['faces']} photos, {len(first['unseen_targets'])} unseen targets, {first['settings']['refine']} steps "
        f"of refining; percent, mean over {', '.join(first['thresholds'])}, clean photos in parentheses.",
        "",
        *(f"**Warning**: {warning}.\n" for warning in doubts(first, ())),
    ]
    header = ["w", "eps", "PSNR (dB)", "SSIM", *(title for title, _ in FIGURES.values()), "PSNR erased (dB)"]
    for far in next(iter(first["thresholds"].values())):
        rows = []
        for document in documents:
            settings = document["settings"]
            values = _values(document, far)
            cells = [f"{values[f][0]:.1f} ({values[f][1]:.1f})" if f in values else "-" for f in FIGURES]
            restored = document["erasing"]["unseen targets"]["restored"]
            near = nearness(document["unseen"]["after_jpeg"])
            rows.append([
                f"{settings['w']:g}", f"{settings['eps']:g}", *near, *cells, f"{restored['psnr_mean']:.1f}",
            ])  # fmt: skip
        lines += [f"FAR {far}:", "", *markdown_table(header, rows)]
    return "\n".join(lines).rstrip() + "\n"


def plot(documents: Sequence[Mapping[str, Any]], far: str = "0.01") -> bytes | None:
    """Figures against PSNR over eps, and over w, as PNG; None where matplotlib is not installed."""
    budgets = [d for d in documents if d["settings"]["w"] == 0]
    injected = [d for d in documents if d["settings"]["w"] > 0]
    injected = [d for d in budgets if injected and d["settings"]["eps"] == injected[0]["settings"]["eps"]] + injected
    panels = [
        ("PSNR of the face region (dB), over eps", budgets, lambda d: d["unseen"]["after_jpeg"]["psnr_mean"]),
        ("w (share of the photo's own features)", injected, lambda d: d["settings"]["w"]),
    ]
    panels = [panel for panel in panels if len(panel[1]) > 1]
    if not panels:
        return None
    drawn = blank(4.8 * len(panels), 4.4)
    if drawn is None:
        return None
    for number, (label, chosen, place) in enumerate(panels):
        axes = drawn.add_subplot(1, len(panels), number + 1)
        for figure, (title, colour) in FIGURES.items():
            points = [(place(d), *_values(d, far)[figure]) for d in chosen if figure in _values(d, far)]
            points.sort(key=lambda point: point[0])
            if points:
                across, values, clean = zip(*points, strict=True)
                axes.plot(across, values, "o-", color=colour, ms=4, linewidth=1.2, label=title)
                axes.plot(across, clean, ":", color=colour, linewidth=1.2)
        if number == 0:
            for document in chosen:
                axes.annotate(f"eps {document['settings']['eps']:g}", (place(document), 0), fontsize=6, rotation=90,
                              va="bottom", ha="center")  # fmt: skip
            axes.set_ylabel(f"% at FAR {far}, mean over recognizers; dotted: clean", fontsize=8)
        axes.set_xlabel(label, fontsize=9)
        axes.set_ylim(-2, 104)
        axes.grid(alpha=0.3)
    drawn.legend(*drawn.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return as_png(drawn)


def settings_of(budgets: Sequence[float], injections: Sequence[float]) -> list[tuple[float, float]]:
    """(w, eps) of a run: each budget at w = 0, each w at the middle budget.

    Raises:
        UsageError: none at all, or a number out of range.
    """
    if not budgets:
        raise UsageError("no budgets", "name some: --eps 6 9 12")
    if min(budgets) <= 0 or any(not 0 < w <= 1 for w in injections):
        raise UsageError("eps must be above 0 and w above 0 and at most 1", "w = 0 is measured at every eps anyway")
    ordered = sorted(set(budgets))
    middle = ordered[len(ordered) // 2]
    return [(0.0, eps) for eps in ordered] + [(w, middle) for w in sorted(set(injections))]


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m emask.bench.strengths`."""
    parser = argparse.ArgumentParser(
        prog="python -m emask.bench.strengths", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of photos with lfw_pairs.txt")
    parser.add_argument("--recognizers", type=Path, required=True, help="folder with recognizers.json")
    parser.add_argument("--eps", type=float, nargs="*", default=list(EPS), help="budgets")
    parser.add_argument("--w", type=float, nargs="*", default=list(W), help="weights of information injection")
    parser.add_argument("--faces", type=int, default=100)
    parser.add_argument("--unseen-targets", type=int, default=8)
    parser.add_argument("--refine", type=int, default=None, help="gradient steps [default: strength medium's]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--resume", action="store_true", help="go on with a run into the same folder")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.faces < 1 or options.unseen_targets < 1:
        raise UsageError("--faces and --unseen-targets must be at least 1")
    settings = settings_of(options.eps, options.w)
    kept = kept_in(options.output, options.resume)
    make_folder(options.output)  # what cannot be written is said before an hour of work
    documents: list[dict[str, Any]] = []
    for document in measure(
        options.data, options.recognizers, settings, options.faces, options.unseen_targets, options.refine,
        options.seed, options.device, kept,
    ):  # fmt: skip
        documents.append(document)
        text = render(documents)
        files = {"curves.json": json.dumps(documents, indent=1).encode() + b"\n", "curves.md": text.encode()}
        write_files(options.output, {**files, "curves.png": plot(documents)})
    shutil.rmtree(kept, ignore_errors=True)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

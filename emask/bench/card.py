"""Fills the tables of README.md, the model card and docs/evaluation.md from `emask bench`'s JSON and the manifest.

    python -m emask.bench.card BENCH.json... FILE.md...

What stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` is replaced: NAME is "bench" for a run with built-in
targets, "low", "medium" or "high" for a run of this strength with unseen targets, "strengths" for several of these side
by side, and "recognizer". A file has those it wants.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emask import weights
from emask.bench.report import damage, read
from emask.bench.table import interval, markdown_table, mean_percent, percent
from emask.errors import UsageError, as_program
from emask.images import write_bytes

FAR = "0.01"
FARS = ("0.01", "0.001")
FIGURES = {
    "impersonation_given": "the target, the photo given",
    "impersonation_other": "the target, another photo",
    "dodging_other": "not the owner, another photo",
    "dodging_same": "not the owner, the same photo",
    "reverified_other": "erased: the owner again, another photo",
    "erased": "erased: not the target (ESR)",
}


def _photos(document: Mapping[str, Any]) -> str:
    """Photos and settings of a run, so that no figure is read as one of other settings."""
    settings = document["settings"]
    budget = f"eps {settings['eps']:g}, {settings['refine']} steps of refining"
    given = settings.get("target_photos", 1)
    targets = f"; targets given by {given} photos each" if given > 1 else ""
    return (
        f"{document['faces']} photos of people no training saw, saved as JPEG of quality {settings['quality']}, "
        f"strength `{settings['strength']}`, {budget}{targets}."
    )


def bench_table(document: Mapping[str, Any]) -> str:
    """The figures at FAR 0.01, in percent, protected beside clean, a column a recognizer."""
    judges = list(document["thresholds"])

    def pair(entries: Mapping[str, Any], name: str) -> list[str]:
        return [f"{percent(entries[j][name][FAR])} (clean {percent(entries[j][f'{name}_clean'][FAR])})" for j in judges]

    targets = {name: target["recognizers"] for name, target in document["targets"].items()}
    default = document["default_target"]
    several = f"{len(targets)} built-in targets"
    rows: list[list[str]] = []
    sets: dict[str, Mapping[str, Any]] = {}
    near = []
    if document["unseen"]:
        count = len(document["unseen_targets"])
        sets[f"{count} targets never trained"] = document["unseen"]["recognizers"]
        near.append(_nearness("unseen targets", document["unseen"], document))
    sets[f"default target {default}"] = targets[default]
    near.append(_nearness("default target", document["targets"][default], document))
    figures = {
        "impersonation_other": "impersonation, another photo of them",
        "impersonation_given": "impersonation, the photo given",
        "dodging_other": "dodging, another photo of the owner",
        "dodging_same": "dodging, the same photo",
    }
    for label, entries in sets.items():
        for name, title in figures.items():
            built_in = label == f"default target {default}"
            if name in entries[judges[0]] and not (built_in and name == "impersonation_other"):  # that has a row below
                rows.append([f"{label}: {title}", *pair(entries, name)])
    rows.append([
        f"weakest of {several}: impersonation, the picture given",
        *(percent(min((t[j]["impersonation_given"][FAR] for t in targets.values()), key=lambda r: r["value"]))
          for j in judges),
    ])  # fmt: skip
    if all("impersonation_other" in t[j] for t in targets.values() for j in judges):
        sums = (sum(t[j]["impersonation_other"][FAR]["value"] for t in targets.values()) for j in judges)
        title = f"mean of {several}: impersonation, another picture of them"
        rows.append([title, *(f"{100 * total / len(targets):.1f}" for total in sums)])
    titles = {"reverified_other": "accepted as the owner by another photo", "erased": "not taken for the target"}
    for figure, title in titles.items():
        for label, erasing in document["erasing"].items():
            rows.append([f"erased, {label}: {title}", *pair(erasing["recognizers"], figure)])
    table = markdown_table([f"percent at FAR {FAR}", *judges], rows)
    return "\n".join([_photos(document), f"Face region: {'; '.join(near)}.", "", *table]).rstrip()


def _nearness(label: str, entry: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """How near to the original the face regions are, protected and restored."""
    text = f"{label}, protected {_decibels(entry['after_jpeg'])}"
    erasing = document["erasing"].get(label)
    return text if erasing is None else f"{text}, restored {_decibels(erasing['restored'])}"


def _decibels(quality: Mapping[str, Any]) -> str:
    structure = f", SSIM {quality['ssim_mean']:.3f}" if "ssim_mean" in quality else ""
    return f"{quality['psnr_mean']:.1f} dB (least {quality['psnr_min']:.1f}{structure})"


def _unseen(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each judge's figures for unseen targets, of protecting and erasing."""
    erasing = document["erasing"].get("unseen targets", {"recognizers": {}})["recognizers"]
    return {judge: {**own, **erasing.get(judge, {})} for judge, own in document["unseen"]["recognizers"].items()}


def strength_tables(document: Mapping[str, Any]) -> str:
    """The figures for unseen targets, their 95% intervals and the clean photos' rates; a table a false accept rate."""
    judges = _unseen(document)
    lines = [_photos(document), f"Face region: {_nearness('unseen targets', document['unseen'], document)}.", ""]
    for far in FARS:
        rows = []
        for figure, title in FIGURES.items():
            if any(figure not in own for own in judges.values()):
                continue
            cells = [
                f"{interval(own[figure][far])} (clean {percent(own[f'{figure}_clean'][far])})"
                for own in judges.values()
            ]
            rows.append([title, *cells, f"{mean_percent(judges, figure, far):.1f}"])
        lines += markdown_table([f"percent at FAR {far}", *judges, "mean"], rows)
    return "\n".join(lines).rstrip()


def strengths_table(documents: Sequence[Mapping[str, Any]]) -> str:
    """Several strengths side by side, unseen targets: means over judges, each judge's figure behind them."""
    names = [document["settings"]["strength"] for document in documents]
    found = [_unseen(document) for document in documents]
    erased = [document["erasing"].get("unseen targets") for document in documents]
    rows = [["protected face region", *(_decibels(document["unseen"]["after_jpeg"]) for document in documents)]]
    for figure, title in FIGURES.items():
        for far in FARS:
            if any(figure not in own for judges in found for own in judges.values()):
                continue
            cells = []
            for judges in found:
                each = " / ".join(percent(own[figure][far]) for own in judges.values())
                clean = mean_percent(judges, f"{figure}_clean", far)
                cells.append(f"**{mean_percent(judges, figure, far):.1f}** ({each}; clean {clean:.1f})")
            rows.append([f"{title}, FAR {far}", *cells])
    if all(erased):
        rows.append(["restored face region", *(_decibels(one["restored"]) for one in erased if one)])
    judged = ", ".join(documents[0]["thresholds"])
    first = (
        f"{documents[0]['faces']} photos, {len(documents[0]['unseen_targets'])} targets no training saw; percent, the "
        f"mean of {judged}, which no training used, in parentheses each of them and the mean of the clean photos."
    )
    return "\n".join([first, "", *markdown_table(["", *(f"`{name}`" for name in names)], rows)]).rstrip()


def recognizer_table(entry: dict[str, Any]) -> str:
    """The recognizer's figures from its manifest entry."""
    accepts = entry["true_accept"]
    rows = [f"| {rate} | {value:.3f} | {100 * accepts[rate]:.1f} |" for rate, value in entry["thresholds"].items()]
    pairs, calibration = entry["lfw_pairs"], entry["calibration"]
    folds = " and ".join(map(str, pairs["folds"]))
    return "\n".join([
        f"LFW accuracy {100 * entry['lfw_accuracy']:.2f}% on the {pairs['pairs']} standard pairs of folds {folds}",
        f"(threshold chosen on the other fold; {pairs['missing']} pairs missing). Thresholds from all pairs of",
        f"{calibration['photos']} photos of {calibration['people']} people:",
        "",
        "| FAR | threshold (cosine) | true accepts (%) |",
        "|---|---|---|",
        *rows,
    ])  # fmt: skip


def fill(path: Path, blocks: dict[str, str]) -> None:
    """Replace what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in a file."""
    text = path.read_text(encoding="utf-8")
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)  # type: ignore[misc]
    write_bytes(path, text.encode(), force=True)


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the files named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="+", help="bench.json of one or more runs, and the files to fill")
    options = parser.parse_args(arguments)
    runs = [path for path in options.files if path.suffix == ".json"]
    texts = [path for path in options.files if path.suffix != ".json"]
    if not runs or not texts:
        raise UsageError("a bench.json and a file to fill are needed", "see --help")
    recognizer = weights.manifest()["models"]["recognizer"]
    blocks = {"recognizer": recognizer_table(recognizer)} if "true_accept" in recognizer else {}  # once it is measured
    compared: dict[str, Mapping[str, Any]] = {}
    for path in runs:
        document = read(path)
        with damage(path):
            if "strength" not in document["settings"]:
                raise UsageError(f"{path} is of {document['settings']['method']}, not of emask", "name a run of emask")
            if document["default_target"] is not None:
                blocks["bench"] = bench_table(document)
            elif document["unseen"] and document["settings"]["strength"] not in compared:
                strength = document["settings"]["strength"]
                compared[strength] = document
                blocks[strength] = strength_tables(document)
            else:
                raise UsageError(f"{path}: no targets, or a strength that another run has", "name one run a strength")
    if len(compared) > 1:
        with damage(*runs):
            blocks["strengths"] = strengths_table(list(compared.values()))
    for path in texts:
        fill(path, blocks)
    return 0


if __name__ == "__main__":
    sys.exit(main())

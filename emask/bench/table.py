"""A benchmark's JSON document rendered as Markdown, and what such tables are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def percent(entry: Mapping[str, Any]) -> str:
    """A rate (`Rate.to_json`) in percent; "-" for none."""
    value = entry["value"]
    return "-" if value is None else f"{100 * value:.1f}"


def interval(entry: Mapping[str, Any]) -> str:
    """A rate in percent with its 95% interval."""
    if entry["value"] is None:
        return "-"
    return f"{100 * entry['value']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def mean_percent(recognizers: Mapping[str, Mapping[str, Any]], figure: str, far: str) -> float | None:
    """A figure at one rate, in percent, mean over the recognizers that have it; None where there is none."""
    values = [figures[figure].get(far, {}).get("value") for figures in recognizers.values() if figure in figures]
    return None if not values or None in values else 100 * sum(values) / len(values)


def nearness(quality: Mapping[str, Any]) -> list[str]:
    """Cells of PSNR in dB and SSIM; "-" where it was not measured."""
    return [f"{quality['psnr_mean']:.1f}", f"{quality['ssim_mean']:.3f}" if "ssim_mean" in quality else "-"]


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table, an empty one last."""
    result = ["| " + " | ".join(header) + " |", "|" + "|".join("---" for _ in header) + "|"]
    return result + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def _protection(document: Mapping[str, Any], entry: Mapping[str, Any], figure: str) -> list[str]:
    rows = []
    for name, figures in entry["recognizers"].items():
        if figure not in figures:
            return []
        row = [name]
        for far in document["thresholds"][name]:
            row += [interval(figures[figure][far]), percent(figures[figure + "_clean"][far])]
        rows.append(row)
    header = ["recognizer"]
    for far in next(iter(document["thresholds"].values())):
        header += [f"FAR {far}", "clean"]
    return markdown_table(header, rows)


def _quality(entry: Mapping[str, Any]) -> str:
    text = f"PSNR {entry['psnr_mean']:.1f} dB (least {entry['psnr_min']:.1f})"
    text += f", SSIM {entry['ssim_mean']:.3f}" if "ssim_mean" in entry else ""
    return text + (f", L1 {entry['l1_mean']:.4f}, MSE {entry['mse_mean']:.5f}" if "l1_mean" in entry else "")


FIGURES = {
    "impersonation_other": "Impersonation, against another photo of the target (%)",
    "impersonation_given": "Impersonation, against the photo given as target (%)",
    "dodging_other": "Dodging, against another photo of the owner (%)",
    "dodging_same": "Dodging, against the same photo (%)",
}
ERASING = {
    "reverified_other": "Accepted as the owner by another photo of the owner",
    "reverified_same": "Accepted as the owner by the original photo",
    "erased": "Not accepted as the target (the paper's erasure rate)",
}


HANDLING = {
    "impersonation_given": "impersonation, photo given",
    "impersonation_other": "impersonation, another photo",
    "dodging_other": "dodging, another photo",
    "reverified_other": "erased: accepted as the owner",
    "erased": "erased: not accepted as the target",
}


def _method(settings: Mapping[str, Any]) -> str:
    if "strength" not in settings:
        return f"method {settings['method']}"
    refined = f", {settings['refine']} refining steps" if settings.get("refine") else ""
    budget = f"w {settings['w']:g}, eps {settings['eps']:g}{refined}"
    return f"strength {settings['strength']} ({budget}), {settings['engine']}"


def owners(document: Mapping[str, Any]) -> int:
    """How many people the protected photos are of: more photos than people may have been asked for."""
    return len({photo.get("person", photo["source"]) for photo in document.get("photos", [])})


def unseen(document: Mapping[str, Any]) -> str:
    """The unseen targets of a run in words: how many, who may be one, and by how many photos they are given."""
    settings = document.get("settings", {})
    words = f"{len(document['unseen_targets'])} unseen targets"
    if settings.get("target_min_photos"):
        words += f" of {settings['target_min_photos']} photos or more"
    if settings.get("target_photos", 1) > 1:
        words += f", given by {settings['target_photos']} photos each (peers by one)"
    return words


def _handling(document: Mapping[str, Any], far: str) -> list[str]:
    """What is left after each handling of the files at one rate: mean over recognizers, the clean photos' beside it."""
    rows = []
    for name, entry in document["handling"].items():
        row = [name]
        for figure in HANDLING:
            for key in (figure, f"{figure}_clean"):
                value = mean_percent(entry["recognizers"], key, far)
                row.append("-" if value is None else f"{value:.1f}")
        row += [f"{entry[key]['psnr_mean']:.1f}" if key in entry else "-" for key in ("restored", "clean")]
        rows.append([*row, str(entry["not_found"])])
    header = ["handling"]
    for title in HANDLING.values():
        header += [title, "clean"]
    return markdown_table([*header, "PSNR restored", "of the handling alone", "faces not found"], rows)


def render(document: Mapping[str, Any], title: str = "Photo protocol") -> str:
    """Markdown tables of a document made by `emask.bench.protocol.run`, below a title.

    Every rate is in percent, a Wilson 95% interval in brackets; "clean" is the rate of the unprotected photos.
    """
    fars = list(next(iter(document["thresholds"].values())))
    calibration = document["calibration"]
    lines = [f"# {title}", ""]
    if "settings" in document:
        s = document["settings"]
        below = f" (below {s['sources']})" if s.get("sources") else ""
        lines += [
            f"{document['faces']} photos of {owners(document)} people kept out of training{below}, "
            f"JPEG quality {s['quality']} (4:2:0), {_method(s)}, seed {s['seed']}.",
            "",
        ]
    lines += [f"**Warning**: {warning}.\n" for warning in document.get("warnings", [])]
    lines += [
        f"Thresholds: {calibration['impostor_pairs']} impostor pairs of {calibration['photos']} photos of "
        f"{calibration['people']} people. JPEG alone: {_quality(document['clean']['after_jpeg'])}.",
        "",
    ]
    lines += markdown_table(
        ["recognizer", *[f"threshold FAR {f}" for f in fars], *[f"true accepts FAR {f} (%)" for f in fars]],
        [
            [n, *[f"{document['thresholds'][n][f]:.3f}" for f in fars],
             *[f"{100 * document['true_accept'][n][f]:.1f}" for f in fars]]
            for n in document["thresholds"]
        ],
    )  # fmt: skip
    if document["targets"]:
        lines += ["## Built-in targets: impersonation over all of them (%)", ""]
        rows = []
        for far in fars:
            summary = document["summary"][far]
            for name in document["thresholds"]:
                v = summary[name]
                rows.append([f"{far}", name, f"{100 * v['mean']:.1f}", f"{100 * v['min']:.1f}", f"{100 * v['max']:.1f}",
                             f"{v['targets_at_90']} of {v['targets']}"])  # fmt: skip
        lines += markdown_table(["FAR", "recognizer", "mean", "least", "most", "targets at 90% or more"], rows)
    sections = [(f"Built-in target {name}", entry) for name, entry in document["targets"].items()]
    if document["unseen"]:
        sections.append((unseen(document), document["unseen"]))
    for title, entry in sections:
        lines += [
            f"## {title}", "",
            f"{_quality(entry['after_jpeg'])}; before JPEG {_quality(entry['before_jpeg'])}; "
            f"faces not found again: {entry['not_found']}.", "",
        ]  # fmt: skip
        for figure, heading in FIGURES.items():
            table = _protection(document, entry, figure)
            if table:
                lines += [f"{heading}:", "", *table]
    for title, entry in document["erasing"].items():
        lines += [
            f"## Erasing: {title}", "",
            f"Protected {_quality(entry['protected'])}; restored {_quality(entry['restored'])}; "
            f"faces not found again: {entry['not_found']}.", "",
        ]  # fmt: skip
        for figure, heading in ERASING.items():
            if any(figure not in figures for figures in entry["recognizers"].values()):
                continue
            rows = []
            for name, figures in entry["recognizers"].items():
                for far in fars:
                    beside = [percent(figures[figure + suffix][far]) for suffix in ("_protected", "_clean")]
                    rows.append([name, far, interval(figures[figure][far]), *beside])
            header = ["recognizer", "FAR", "restored", "protected", "clean"]
            lines += [f"{heading} (%):", "", *markdown_table(header, rows)]
    if document.get("identification"):
        from emask.bench.identification import render as identification

        lines += ["", identification(document["identification"])]
    if document.get("handling"):
        lines += ["## After handling: protected files that went through something before they were read (%)", ""]
        lines += [f"- {name}: {entry['what']}" for name, entry in document["handling"].items()] + [""]
        for far in fars:
            lines += [f"FAR {far}, mean over recognizers:", "", *_handling(document, far)]
    return "\n".join(lines).rstrip() + "\n"

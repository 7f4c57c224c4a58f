"""Several methods on the same photos, targets and recognizers: one row each, the clean photos' rate first.

    emask bench --method emask --method pgd --method tip-im ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emask.bench.table import interval, markdown_table, mean_percent, nearness, percent, unseen
from emask.bench.table import render as of_one
from emask.drawing import as_png, blank, plain

# By method, what was measured on all photos where the methods side by side have some of them: a key of bench.json and
# cost.json, and a folder beside those of the methods.
ALL = "all"
# Methods whose photos are the clean ones: far to the right of a plot, on the dotted line.
UNCHANGED = ("nothing", "grey-square")
FIGURES = {
    "impersonation_given": "taken for the target, photo given",
    "impersonation_other": "taken for the target, another photo",
    "dodging_other": "not taken for the owner, another photo",
    "dodging_same": "not taken for the owner, the same photo",
}


def title(name: str, whole: Mapping[str, Any]) -> str:
    """Of the part about a method that was measured on all photos as well."""
    return f"{name} on all {whole['faces']} photos"


def render(
    documents: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, Any]],
    whole: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Markdown of the documents of `emask.bench.protocol.run`, and of `emask.bench.cost`, by method.

    Those of `whole`, on all photos, have no row beside the others, but a part of their own below.

    Against the unseen targets, or where there are none the default one. Every rate is in percent with its Wilson 95%
    interval; one table for each false accept rate and recognizer.
    """
    first = next(iter(documents.values()))
    lines = ["# Side by side", "", f"People kept out of training: {whom(documents)}.", ""]
    lines += [f"- {name}: {_settings(document['settings'])}" for name, document in documents.items()] + [""]
    lines += [f"**Warning**, {names}: {warning}.\n" for names, warning in doubted(documents)]
    lines += ["Face region against the original, and what it costs on this machine:", ""]
    lines += markdown_table(*spent(documents, costs))
    for far in next(iter(first["thresholds"].values())):
        for judge in first["thresholds"]:
            lines += [f"FAR {far}, {judge}:", "", *markdown_table(*rates(documents, judge, far))]
    parts = ["\n".join(lines).rstrip() + "\n"]
    return "\n".join(parts + [of_one(one, title(name, one)) for name, one in (whole or {}).items()])


def doubted(documents: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Whose warnings, and the warning: each one once, however many methods have it."""
    found: dict[str, list[str]] = {}
    for name, document in documents.items():
        warnings = document.get("warnings") or []
        for warning in [warnings] if isinstance(warnings, str) else warnings:
            found.setdefault(str(warning), []).append(name)
    everybody = len(documents)
    return [
        ("all methods" if len(names) == everybody > 1 else ", ".join(names), warning)
        for warning, names in found.items()
    ]


# What all methods have in common.
COMMON = (
    "method", "faces", "unseen_targets", "target_photos", "target_min_photos", "quality", "subsampling", "seed",
    "sources",
)  # fmt: skip


def _settings(settings: Mapping[str, Any]) -> str:
    own = {key: value for key, value in settings.items() if key not in (*COMMON, "parameters", "refining")}
    own |= settings.get("parameters", {})
    words = [f"{key} {', '.join(value) if isinstance(value, list) else value}" for key, value in own.items()]
    return "; ".join(words) or "no settings"


def plot(documents: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """Impersonation and dodging against PSNR, a point a method, as PNG; None where matplotlib is not installed.

    Rates are the mean over recognizers at the middle one of the false accept rates, against other photos.
    """
    entries = _entries(documents)
    fars = list(next(iter(next(iter(documents.values()))["thresholds"].values())))
    far = fars[len(fars) // 2]
    judged = [figures for entry in entries.values() for figures in entry["recognizers"].values()]
    wanted = ("impersonation_other", "impersonation_given", "dodging_other")
    figures = [name for name in wanted if all(name in own for own in judged)]
    drawn = blank(4.2 * len(figures), 4.0)
    if drawn is None:
        return None
    for number, figure in enumerate(figures):
        axes = drawn.add_subplot(1, len(figures), number + 1)
        for name, entry in entries.items():
            quality, height = entry["after_jpeg"]["psnr_mean"], mean_percent(entry["recognizers"], figure, far)
            if height is None or name in UNCHANGED:
                continue
            if name == "emask":  # seen also where another one lies on it
                axes.plot([quality], [height], "*", ms=13, mec="black", zorder=3, label=name)
            else:
                axes.plot([quality], [height], "o", ms=9, alpha=0.8, label=plain(name))
        clean = mean_percent(next(iter(entries.values()))["recognizers"], f"{figure}_clean", far)
        if clean is not None:
            axes.axhline(clean, color="black", linewidth=1, linestyle=":")
        axes.set_title(f"{FIGURES[figure]}\n(%, FAR {far}; dotted: clean photos)", fontsize=9)
        axes.set_xlabel("PSNR of the face region (dB)", fontsize=8)
        axes.set_ylim(-2, 106)
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    handles = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(*handles, loc="outside lower center", ncols=max(1, len(handles[0])), fontsize=8)
    return as_png(drawn)


def _entries(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By method, the part on unseen targets, or where there are none on the default one."""
    return {
        name: document["targets"][document["default_target"]] if document["unseen"] is None else document["unseen"]
        for name, document in documents.items()
    }


def rates(
    documents: Mapping[str, Mapping[str, Any]], judge: str, far: str
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one recognizer's table: the clean photos, then each method."""
    entries, erasing = _entries(documents), _erasing(documents)
    figures = [figure for figure in FIGURES if all(figure in e["recognizers"][judge] for e in entries.values())]
    clean = next(iter(entries.values()))["recognizers"][judge]
    back = [d["erasing"][erasing]["recognizers"][judge] for d in documents.values() if erasing in d["erasing"]]
    again = "reverified_other" if all("reverified_other" in entry for entry in back) else "reverified_same"
    accepted = percent(back[0][f"{again}_clean"][far]) if back else ""
    rows = [["clean photos", *[percent(clean[f"{figure}_clean"][far]) for figure in figures], accepted]]
    for name, document in documents.items():
        row = [name, *[interval(entries[name]["recognizers"][judge][figure][far]) for figure in figures]]
        erased = document["erasing"].get(erasing)
        row.append("-" if erased is None else interval(erased["recognizers"][judge][again][far]))
        rows.append(row)
    by = "another photo" if again == "reverified_other" else "the same photo"
    return ["method", *[FIGURES[f] for f in figures], f"erased: accepted as the owner, {by}"], rows


def spent(
    documents: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of how near each method stays to the photo, and what it costs.

    Args:
        costs: of `emask.bench.cost`, by method; those not known are left out.
    """
    entries, erasing = _entries(documents), _erasing(documents)
    rows = []
    for name, document in documents.items():
        back = document["erasing"].get(erasing)
        rows.append([
            name, *nearness(entries[name]["after_jpeg"]),
            "cannot be erased" if back is None else f"{back['restored']['psnr_mean']:.1f}",
            *_cost(costs.get(name, {})),
        ])  # fmt: skip
    header = ["method", "PSNR (dB)", "SSIM", "PSNR erased (dB)"]
    return [*header, "protect: ms a face", "erase: ms a face", "MiB more meanwhile"], rows


def whom(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """On which photos and targets the methods were measured."""
    first = next(iter(documents.values()))
    seen = first["unseen"] is not None
    targets = unseen(first) if seen else f"target {first['default_target']}"
    return f"{first['faces']} photos, {targets}, JPEG quality {first['settings']['quality']}"


def _erasing(documents: Mapping[str, Mapping[str, Any]]) -> str:
    return "default target" if next(iter(documents.values()))["unseen"] is None else "unseen targets"


def _cost(cost: Mapping[str, Any]) -> list[str]:
    protect, erase = cost.get("protect", {}), cost.get("erase", {})
    cells = [protect.get("ms_per_face"), erase.get("ms_per_face"), protect.get("memory_mib")]
    return ["-" if value is None else f"{value:g}" for value in cells]

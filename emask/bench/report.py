"""One self-contained HTML page from the JSON that `emask bench` writes: every table, plots, what was run.

    emask bench report bench.json [-o report.html]      (or: python -m emask.bench.report)

Nothing on the page comes from elsewhere: pictures are inlined and there are no scripts. Every text of the JSON is
escaped.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from emask.bench import histograms, robustness, sidebyside
from emask.bench.identification import FIGURES as RANKED
from emask.bench.resume import COSINES, read_cosines
from emask.bench.table import ERASING, FIGURES, interval
from emask.drawing import as_png, blank, plain
from emask.errors import UsageError, as_program
from emask.images import write_bytes

FORMAT = 1
HINT = "name the bench.json that `emask bench -o FOLDER` writes"
# What a document of `emask.bench.protocol.run` has; without one of these it is something else.
REQUIRED = ("faces", "calibration", "thresholds", "true_accept", "clean", "targets", "erasing", "summary")
# What has a place of its own on the page; the rest is printed as it is, so that nothing is left out.
PLACED = {
    *REQUIRED, "version", "protocol", "settings", "versions", "models", "judges", "photos", "unseen_targets", "unseen",
    "default_target", "warnings", "handling", "identification",
}  # fmt: skip
CALIBRATION = {
    "photos": "photos",
    "people": "people",
    "impostor_pairs": "pairs of different people",
    "photos_without_face": "photos without a face, left out",
}
QUALITY = {"psnr_mean": "PSNR, mean (dB)", "psnr_min": "PSNR, least (dB)", "ssim_mean": "SSIM, mean",
           "l1_mean": "L1, mean (pixels in 0..1)", "mse_mean": "MSE, mean"}  # fmt: skip
SUFFIXES = {"_protected": "protected", "_restored": "restored", "_clean": "clean"}

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; font-size: 14px; }
caption { text-align: left; font-weight: bold; padding: 0.3em 0; }
th, td { border: 1px solid #ccc; padding: 0.2em 0.6em; text-align: left; overflow-wrap: anywhere; }
th { background: #f2f2f2; overflow-wrap: break-word; }
img { max-width: 100%; }
.warning { border-left: 4px solid #c60; background: #fff4e5; padding: 0.5em 1em; }
"""
# Forbids the browser to load anything, should an escape ever be forgotten.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def read(path: Path) -> dict[str, Any]:
    """The document in a file, of one method.

    Raises:
        UsageError: when it cannot be read, or is no JSON of `emask bench` in the format of this version.
    """
    document = _load(path)
    if "methods" in document:
        hint = f"name the bench.json of one, in a folder beside it: {sidebyside.ALL}/ where it is there"
        raise UsageError(f"{path} is of several methods", hint)
    _check(document, path)
    return document


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})", HINT) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no JSON file ({error})", HINT) from None
    if not isinstance(document, dict):
        raise UsageError(f"{path}: no benchmark's JSON", HINT)
    return document


def _check(document: Any, path: Path) -> None:
    missing = [key for key in REQUIRED if key not in document]
    if missing:
        raise UsageError(f"{path}: no benchmark's JSON, it has no {missing[0]!r}", HINT)
    if document.get("version", FORMAT) != FORMAT:
        raise UsageError(
            f"{path}: format {document['version']!r}, this version reads {FORMAT}", "use the version that wrote it"
        )


@contextmanager
def damage(*paths: Path) -> Iterator[None]:
    """Says that a document is damaged where something is missing in it, or of another kind.

    Raises:
        UsageError: instead of the errors of the code that reads it.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        names = " or ".join(map(str, paths))
        raise UsageError(f"{names}: damaged ({type(error).__name__}: {error})", "run `emask bench` again") from error


def text(value: Any) -> str:
    """A value of the JSON as text: numbers as they stand there, "-" for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def share(value: float | None) -> str:
    """A share in percent, with the two decimals that the JSON has of it; "-" for none."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def counted(entry: Mapping[str, Any] | None) -> str:
    """A rate in percent with its 95% interval and the counts behind it; "-" for none."""
    if entry is None or entry["value"] is None:
        return "-"
    return f"{interval(entry)} ({entry['hits']} of {entry['n']})"


def element(tag: str, content: str) -> str:
    """An element with nothing but text in it."""
    return f"<{tag}>{escape(content)}</{tag}>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table; the first cell of each row is its heading."""
    lines = ["<table>", *([element("caption", caption)] if caption else [])]
    lines.append("<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header) + "</tr>")
    for first, *rest in rows:
        cells = "".join(element("td", cell) for cell in rest)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return "\n".join([*lines, "</table>"])


def plot(entry: Mapping[str, Any]) -> bytes | None:
    """Impersonation and dodging of one section, a panel a figure, as PNG.

    A bar is the protected photos' rate with its 95% interval, a black line across it the clean photos' rate.

    Args:
        entry: one of "targets", or "unseen".

    Returns:
        None where matplotlib is not installed, b"" where there is nothing to draw.
    """
    recognizers = entry["recognizers"]
    names = [name for name in FIGURES if any(name in figures for figures in recognizers.values())]
    fars = list(dict.fromkeys(far for r in recognizers.values() for name in names for far in r.get(name, {})))
    if not fars:
        return b""
    width = 0.8 / len(fars)  # of a bar; recognizers are 1 apart
    figure = blank(3.4 * len(names), 3.4, dpi=90)
    if figure is None:
        return None
    for number, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), number + 1)
        for shift, far in enumerate(fars):
            rates = [r.get(name, {}).get(far) or {"value": None} for r in recognizers.values()]
            clean = [r.get(name + "_clean", {}).get(far) or {"value": None} for r in recognizers.values()]
            at = [place + (shift - (len(fars) - 1) / 2) * width for place in range(len(rates))]
            known = [rate for rate in rates if rate["value"] is not None]
            axes.bar(
                [x for x, rate in zip(at, rates, strict=True) if rate["value"] is not None],
                [100 * rate["value"] for rate in known],
                width,
                yerr=[[100 * max(0.0, rate["value"] - rate["low"]) for rate in known],
                      [100 * max(0.0, rate["high"] - rate["value"]) for rate in known]],
                capsize=2,
                label=plain(f"FAR {far}"),
            )  # fmt: skip
            for x, rate in zip(at, clean, strict=True):
                if rate["value"] is not None:
                    axes.hlines(100 * rate["value"], x - width / 2, x + width / 2, colors="black", linewidth=2)
        axes.set_xticks(range(len(recognizers)), [plain(judge) for judge in recognizers], fontsize=7, rotation=20)
        axes.set_title(FIGURES[name].replace(", ", ",\n"), fontsize=8)
        axes.set_ylim(0, 105)
        axes.tick_params(axis="y", labelsize=7)
        axes.grid(axis="y", alpha=0.3)
    bars = figure.axes[0].get_legend_handles_labels()
    figure.legend(*bars, loc="outside lower center", ncols=len(fars), fontsize=7)  # within a panel it would hide bars
    return as_png(figure)


def _picture(png: bytes | None, note: str) -> str:
    """An image within the page; None says that it could not be drawn."""
    if png is None:
        return element("p", "No plot: matplotlib is not installed where this page was made.")
    if not png:
        return ""
    data = base64.b64encode(png).decode("ascii")
    return f'<p><img alt="{escape(note)}" src="data:image/png;base64,{data}"></p>\n{element("p", note + ".")}'


def _quality(entries: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for entry in entries.values() for name in entry))
    rows = [[stage, *(text(entry.get(name)) for name in names)] for stage, entry in entries.items()]
    return table(["face region", *(QUALITY.get(name, name) for name in names)], rows)


def _figures(
    recognizers: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], measured: str, level: str = "FAR"
) -> list[str]:
    """A table a figure: its rates by recognizer and false accept rate, and what stands beside them.

    Args:
        recognizers: name -> figure -> level -> rate.
        titles: headings of the figures that have one, in order; the others go by their names.
        measured: which photos the figure itself is about.
        level: what a figure has several of.
    """
    names = list(dict.fromkeys(name for figures in recognizers.values() for name in figures))
    own = [name for name in names if not name.endswith(tuple(SUFFIXES))]
    parts = []
    for name in [*(n for n in titles if n in own), *(n for n in own if n not in titles)]:
        beside = [suffix for suffix in SUFFIXES if name + suffix in names]
        rows = []
        for judge, figures in recognizers.items():
            for far in figures.get(name, {}):
                cells = [counted(figures.get(name + suffix, {}).get(far)) for suffix in ("", *beside)]
                rows.append([judge, far, *cells])
        header = ["recognizer", level, measured, *(SUFFIXES[suffix] for suffix in beside)]
        parts.append(table(header, rows, titles.get(name, name)))
    return parts


def _what_was_run(document: Mapping[str, Any]) -> list[str]:
    rows = [["protocol", text(document.get("protocol"))], ["format", text(document.get("version"))]]
    rows += [[name, text(value)] for name, value in document.get("settings", {}).items()]
    rows += [[f"version of {name}", text(value)] for name, value in document.get("versions", {}).items()]
    rows.append(["photos protected (N)", text(document["faces"])])
    rows.append(["default target", text(document.get("default_target"))])
    files = [
        [name, kind, text(entry["file"]), text(entry["sha256"])]
        for key, kind in (("models", "model"), ("judges", "recognizer that judges"))
        for name, entry in document.get(key, {}).items()
    ]
    result = [element("h2", "What was run"), table(["setting", "value"], rows)]
    return result + ([table(["name", "kind", "file", "sha256"], files)] if files else [])


def _thresholds(document: Mapping[str, Any]) -> list[str]:
    rows = [
        [judge, far, text(value), share(document["true_accept"][judge][far])]
        for judge, by_far in document["thresholds"].items()
        for far, value in by_far.items()
    ]
    calibration = [[CALIBRATION.get(name, name), text(value)] for name, value in document["calibration"].items()]
    return [
        element("h2", "Thresholds"),
        table(["recognizer", "FAR", "threshold (cosine)", "true accepts (%)"], rows),
        table(["calibrated on", "count"], calibration),
    ]


def _summary(document: Mapping[str, Any]) -> list[str]:
    rows = [
        [judge, far, *(share(entry.get(name)) for name in ("mean", "min", "max")),
         *(text(entry.get(name)) for name in ("targets_at_90", "targets"))]
        for far, recognizers in document["summary"].items()
        for judge, entry in recognizers.items()
    ]  # fmt: skip
    header = ["recognizer", "FAR", "mean", "least", "most", "targets at 90% or more", "of"]
    heading = element("h2", "Built-in targets: impersonation over all of them (%)")
    return [heading, table(header, rows)] if rows else []


def _sections(document: Mapping[str, Any]) -> list[str]:
    default = document.get("default_target")
    sections = []
    if document.get("unseen"):
        sections.append((f"{len(document.get('unseen_targets', []))} unseen targets", document["unseen"], True))
    sections += [(f"Built-in target {name}", entry, name == default) for name, entry in document["targets"].items()]
    parts = []
    for title, entry, drawn in sections:
        parts.append(element("h2", title))
        if drawn:
            note = f"{title}, by recognizer. Bars: protected photos with 95% intervals; black lines: clean photos"
            parts.append(_picture(plot(entry), note))
        parts.append(_quality({"before JPEG": entry["before_jpeg"], "after JPEG": entry["after_jpeg"]}))
        parts.append(element("p", f"Faces not found again: {entry['not_found']}."))
        parts += _figures(entry["recognizers"], FIGURES, "protected")
    for title, entry in document["erasing"].items():
        parts.append(element("h2", f"Erasing: {title}"))
        parts.append(_quality({"protected": entry["protected"], "restored": entry["restored"]}))
        parts.append(element("p", f"Faces not found again: {entry['not_found']}."))
        parts += _figures(entry["recognizers"], {name: f"{title} (%)" for name, title in ERASING.items()}, "restored")
    return parts


def _handlings(document: Mapping[str, Any]) -> list[str]:
    """What is left after each handling of the files, folded away: there may be many."""
    parts = []
    titles = FIGURES | {name: f"Erased: {title} (%)" for name, title in ERASING.items()}
    for name, entry in document.get("handling", {}).items():
        lost = f"Faces not found again: {entry['not_found']}; in clean photos: {entry['not_found_clean']}."
        quality = {stage: entry[stage] for stage in ("restored", "clean") if stage in entry}
        inner = [element("p", lost), *([_quality(quality)] if quality else [])]
        inner += _figures(entry["recognizers"], titles, "after this")
        summary = element("summary", f"{name}: {entry['what']}")
        parts.append("\n".join(["<details>", summary, *inner, "</details>"]))
    drawn = robustness.plot(document) if parts else None
    note = "Means over recognizers against how much was done to the files; dotted: clean photos"
    return [element("h2", "After handling"), _picture(drawn or b"", note), *parts] if parts else []


def _identification(document: Mapping[str, Any]) -> list[str]:
    found = document.get("identification") or {}
    if not found:
        return []
    rows = []
    for judge, entry in found.items():
        lost = ", ".join(f"{kind} {count}" for kind, count in entry["not_found"].items())
        gallery = entry["gallery"]
        counts = [entry["probes"], *(gallery[key] for key in ("photos", "people", "distractors"))]
        rows.append([judge, *map(text, counts), text(gallery["photos_without_face"]), lost])
    header = ["recognizer", "probes (N)", "photos in the gallery", "people", "of them distractors", "left out: no face",
              "probes without a face"]  # fmt: skip
    figures = _figures({judge: entry["figures"] for judge, entry in found.items()}, RANKED, "protected", "Rank")
    return [element("h2", "Identification: the photo as a query in a gallery"), table(header, rows), *figures]


def _photos(document: Mapping[str, Any]) -> list[str]:
    parts = []
    for title, entries in (("Photos", document.get("photos")), ("Unseen targets", document.get("unseen_targets"))):
        if entries:
            rows = [[str(number + 1), *(text(v) for v in entry.values())] for number, entry in enumerate(entries)]
            inner = table(["", *entries[0]], rows)
            parts.append(f"<details>\n{element('summary', f'{title} ({len(entries)})')}\n{inner}\n</details>")
    return parts


def page(document: Mapping[str, Any], similarities: Mapping[str, np.ndarray] | None = None) -> str:
    """The page of a document made by `emask bench`; equal documents give equal pages.

    Args:
        similarities: the cosines behind its rates, for a plot of them.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: for a document with parts missing or of another kind.
    """
    return _page(f"emask bench: {document['faces']} photos", _body(document, similarities))


def page_of_methods(
    documents: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, Any]] | None = None,
    similarities: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    whole: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The page of several methods side by side; each one's own page is folded away below.

    Args:
        documents: by method; costs: likewise, as far as they are known.
        similarities: by method, and by title of `whole`, as far as they are known.
        whole: by title, documents of more photos, which get no row beside the others.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: as for `page`.
    """
    first = next(iter(documents.values()))
    drawn = sidebyside.plot(documents)
    note = "Each method's rate against PSNR, mean over recognizers; dotted: clean photos"
    parts = [element("p", f"{sidebyside.whom(documents)}; people kept out of training.")]
    parts += [element("p", f"At the end of the page: {name}.") for name in whole or {}]
    parts += [*_warnings(documents), *_warnings(whole or {})]
    parts.append(_picture(drawn, note))
    parts += [element("h2", "Nearness and cost"), table(*sidebyside.spent(documents, costs or {}))]
    for far in next(iter(first["thresholds"].values())):
        parts.append(element("h2", f"False accept rate {far} (%)"))
        parts += [table(*sidebyside.rates(documents, judge, far), judge) for judge in first["thresholds"]]
    for name, document in {**documents, **(whole or {})}.items():
        inner = "\n".join(part for part in _body(document, (similarities or {}).get(name)) if part)
        parts.append(f"<details>\n{element('summary', f'{name}: all figures')}\n{inner}\n</details>")
    return _page(f"emask bench: {len(documents)} methods, {first['faces']} photos", parts)


def _page(title: str, body: Sequence[str]) -> str:
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        f"{element('title', title)}\n<style>{STYLE}</style>\n</head>\n<body>",
        element("h1", title),
        *body,
    ]
    return "\n".join([*(part for part in parts if part), "</body>", "</html>"]) + "\n"


def _body(document: Mapping[str, Any], similarities: Mapping[str, np.ndarray] | None) -> list[str]:
    parts = [
        element(
            "p",
            "Rates are in percent, with a Wilson 95% interval in brackets and the counts in parentheses; beside each "
            "stands the rate of the unprotected photos (clean), saved through the same JPEG. FAR is the false accept "
            "rate that a recognizer's threshold is set for.",
        ),
        *_warnings({"": document}),
        *_sections(document),
        *_summary(document),
        *_similarities(document, similarities),
        *_identification(document),
        *_handlings(document),
        element("h2", "JPEG alone"),
        _quality({"clean, after JPEG": document["clean"]["after_jpeg"]}),
        element("p", f"Faces not found again: {document['clean']['not_found']}."),
        *_thresholds(document),
        *_what_was_run(document),
        *_photos(document),
    ]
    for name, value in document.items():
        if name not in PLACED:
            parts += [element("h2", name), element("pre", json.dumps(value, indent=1, ensure_ascii=False))]
    return parts


def _warnings(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of several methods, or of one without a name."""
    return [
        f'<p class="warning">{escape(f"Warning, {names}: {warning}" if names else f"Warning: {warning}")}</p>'
        for names, warning in sidebyside.doubted(documents)
    ]


def _similarities(document: Mapping[str, Any], similarities: Mapping[str, np.ndarray] | None) -> list[str]:
    if not similarities:
        return []
    drawn = histograms.of_run(document, similarities)
    if drawn is None:
        return []
    note = "Cosines of clean, protected and restored photos, by recognizer; dashed: thresholds"
    return [element("h2", "Similarities"), _picture(drawn, note)]


def write_page(bench: Path, output: Path | None = None) -> Path:
    """Make the page of a bench.json, over one that is there; where it is.

    Args:
        output: the page; report.html beside the JSON by default.

    Raises:
        UsageError: a JSON that cannot be read or is damaged, or a page that would replace it.
        ImageError: the page cannot be written.
    """
    output = output or bench.with_name("report.html")
    document = _load(bench)
    documents, whole = document.get("methods", {"": document}), document.get(sidebyside.ALL, {})
    if not isinstance(documents, dict) or not documents or not isinstance(whole, dict):
        raise UsageError(f"{bench}: damaged (no methods)", "run `emask bench` again")
    for one in [*documents.values(), *whole.values()]:
        _check(one if isinstance(one, dict) else {}, bench)
    if output.exists() and output.samefile(bench):
        raise UsageError(f"{output} is the JSON itself", "give the page another name")
    with damage(bench):
        if "methods" in document:
            beside = [name for name in documents if Path(name).name == name]  # nothing of elsewhere
            cosines = {name: read_cosines(bench.parent / name / COSINES) or {} for name in beside}
            below = {sidebyside.title(name, one): one for name, one in whole.items()}
            cosines |= {name: read_cosines(bench.parent / sidebyside.ALL / COSINES) or {} for name in below}
            content = page_of_methods(documents, _costs(bench.parent), cosines, below)
        else:
            content = page(document, read_cosines(bench.parent / COSINES))
    # a JSON file may hold halves of characters, which UTF-8 cannot
    write_bytes(output, content.encode("utf-8", "replace"), force=True)
    return output


def _costs(folder: Path) -> dict[str, Any]:
    try:
        costs = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in costs.items() if isinstance(v, dict)} if isinstance(costs, dict) else {}


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m emask.bench.report`."""
    parser = argparse.ArgumentParser(
        prog="python -m emask.bench.report", description="Make an HTML page from the JSON of emask bench."
    )
    parser.add_argument("bench", type=Path, metavar="BENCH.JSON")
    parser.add_argument("-o", "--output", type=Path, help="the page; report.html beside the JSON if left out")
    options = parser.parse_args(arguments)
    print(write_page(options.bench, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())

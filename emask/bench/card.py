"""Fills the tables of README.md and the model card from `emask bench`'s JSON and the manifest.

    python -m emask.bench.card bench.json README.md models/README.md
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emask import weights
from emask.bench.report import damage, read
from emask.errors import UsageError, as_program
from emask.images import write_bytes

FAR = "0.01"


def bench_table(document: dict[str, Any]) -> str:
    """The figures at FAR 0.01, in percent, protected beside clean, a column a recognizer."""
    judges = list(document["thresholds"])

    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    def row(label: str, values: list[str]) -> str:
        return "| " + " | ".join([label, *values]) + " |"

    def pair(entries: dict[str, Any], name: str, beside: str) -> list[str]:
        return [
            f"{percent(entries[j][name][FAR]['value'])} (clean {percent(entries[j][beside][FAR]['value'])})"
            for j in judges
        ]

    targets = {n: t["recognizers"] for n, t in document["targets"].items()}
    default = targets[document["default_target"]]
    lines = [
        row("percent at FAR 0.01", judges),
        "|---" * (len(judges) + 1) + "|",
        row("impersonation, default target", pair(default, "impersonation_given", "impersonation_given_clean")),
        row(f"impersonation, weakest of {len(targets)} built-in targets", [
            f"{percent(min(t[j]['impersonation_given'][FAR]['value'] for t in targets.values()))}" for j in judges
        ]),
    ]  # fmt: skip
    unseen = document["unseen"]["recognizers"] if document["unseen"] else None
    if unseen:
        count = len(document["unseen_targets"])
        lines += [
            row(f"impersonation, {count} targets never trained, the photo given",
                pair(unseen, "impersonation_given", "impersonation_given_clean")),
            row(f"impersonation, {count} targets never trained, another photo of them",
                pair(unseen, "impersonation_other", "impersonation_other_clean")),
        ]  # fmt: skip
    if all("impersonation_other" in t[j] for t in targets.values() for j in judges):
        lines.append(
            row("impersonation, built-in targets, another picture of them, mean", [
                percent(sum(t[j]["impersonation_other"][FAR]["value"] for t in targets.values()) / len(targets))
                for j in judges
            ])
        )  # fmt: skip
    lines += [
        row("dodging, another photo of the owner", pair(default, "dodging_other", "dodging_other_clean")),
        row("dodging, the same photo", pair(default, "dodging_same", "dodging_same_clean")),
    ]
    titles = {"reverified_other": "accepted as the owner by another photo", "erased": "not taken for the target"}
    for figure, title in titles.items():
        for label, erasing in document["erasing"].items():
            lines.append(row(f"erased: {title}, {label}", pair(erasing["recognizers"], figure, f"{figure}_clean")))
    first = document["targets"][document["default_target"]]["after_jpeg"]
    erased = next(iter(document["erasing"].values()))["restored"]
    settings = document["settings"]
    return "\n".join([
        f"{document['faces']} photos of people no training saw, saved as JPEG of quality {settings['quality']},",
        f"strength `{settings['strength']}`. Face region: protected {first['psnr_mean']:.1f} dB "
        f"(least {first['psnr_min']:.1f}), restored {erased['psnr_mean']:.1f} dB (least {erased['psnr_min']:.1f}).",
        "",
        *lines,
    ])  # fmt: skip


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
    parser.add_argument("bench", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    document = read(options.bench)
    if document["default_target"] is None:
        raise UsageError(f"{options.bench} has no built-in target", "run `emask bench` without --target none")
    with damage(options.bench):
        table = bench_table(document)
    blocks = {"bench": table, "recognizer": recognizer_table(weights.manifest()["models"]["recognizer"])}
    for path in options.files:
        fill(path, blocks)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the editor of stage 1 can do: a picture of edited faces, and figures on people no training saw.

    python -m emask.bench.editing --run runs/mask/stage1.pt --data DIR docs/examples/*.jpg -o editing.png

Prints the figures as a Markdown table and writes them as JSON beside the picture.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from platformdirs import user_cache_path
from torch import Tensor

from emask.attributes import ATTRIBUTES, EDITABLE, HAIR_COLOURS, choose, labels, plain
from emask.bench.metrics import psnr, rate
from emask.bench.protocol import locate
from emask.bench.table import markdown_table, percent
from emask.drawing import encode_png
from emask.errors import ModelError, NoFaceError, TrainingError, UsageError, as_program
from emask.face.detect import Detector
from emask.images import load_photo, write_bytes
from emask.nets.blocks import feather_window
from emask.nets.discriminator import Classifier, Discriminator
from emask.nets.generator import Editor
from emask.train.checkpoint import load
from emask.train.data import load_crops
from emask.train.distill import to_float
from emask.train.export import editor_from
from emask.train.labels import read_labels
from emask.train.watch import to_pixels

STRIP = 16  # pixels, height of the line that names a tile
BATCH = 32  # crops in one forward pass
# How an attribute's flip is judged, in the order of the table: the JSON's names and the table's.
FLIPS = {
    "unedited": "no edit",
    "rebuilt": "rebuilt",
    "edited": "edited",
    "protect": "as protect edits",
}
# (B, 3, S, S) crops and (B, n) labels to (B, 3, S, S) images
Edit = Callable[[Tensor, Tensor], Tensor]


def load_stage1(path: Path) -> tuple[Editor, Classifier, int]:
    """Editor and attribute classifier of a stage-1 checkpoint, in evaluation mode, and the steps they were trained.

    Raises:
        TrainingError: no such file.
        ModelError: a checkpoint of another stage.
    """
    state = load(path, "name the stage1.pt of a run folder")
    if not {"config", "editor", "discriminator"} <= state.keys():
        raise ModelError(f"{path} is no checkpoint of stage 1", "name the stage1.pt of a run folder")
    editor = editor_from(state)
    *kernels, _ = (v for name, v in state["discriminator"].items() if re.fullmatch(r"critic\.\d+\.weight", name))
    discriminator = Discriminator(editor.config.attributes, tuple(len(kernel) for kernel in kernels))
    discriminator.load_state_dict(state["discriminator"])
    return editor, discriminator.classifier.eval(), int(state.get("step", 0))


def variants() -> list[tuple[str, Tensor]]:
    """What the picture shows beside the original: the name of each tile and its (13,) labels b.

    Those that `emask protect --attribute` offers, on and off, each with all other labels at zero as there; and Young
    off, which it does not offer, because a change of age shows best whether an editor does anything.
    """
    shown = [("reconstruction", labels({}))]
    for attribute in EDITABLE:
        name = plain(attribute)
        shown.append((name, labels(choose([name]))))
        if attribute not in HAIR_COLOURS:
            off = name.removeprefix("no-") if name.startswith("no-") else f"no-{name}"
            shown.append((off, labels(choose([off]))))
    shown.append(("no-young", labels({"Young": -1})))
    return [(name, torch.from_numpy(values)) for name, values in shown]


@torch.no_grad()
def tiles(editor: Edit, crop: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The tiles of one face, each with its name: the original, then D(E(x), b) for each of `variants`.

    Args:
        crop: (S, S, 3) uint8 RGB.

    Returns:
        (S, S, 3) uint8 tiles.
    """
    names, wanted = zip(*variants(), strict=True)
    decoded = to_pixels(editor(to_float(np.repeat(crop[None], len(names), 0)), torch.stack(wanted)))
    return [("original", crop), *zip(names, decoded, strict=True)]


def compose(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> Image.Image:
    """Rows of equally many named tiles to one picture, the name above each tile."""
    side = len(rows[0][0][1])
    picture = Image.new("RGB", (side * len(rows[0]), (side + STRIP) * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for row, named in enumerate(rows):
        for column, (name, tile) in enumerate(named):
            left, top = side * column, (side + STRIP) * row
            draw.text((left + 2, top + 2), name, fill="black")
            picture.paste(Image.fromarray(tile), (left, top + STRIP))
    return picture


def picture_of(editor: Edit, photos: Sequence[Path], detector: Detector) -> Image.Image:
    """The picture: a row a photo, its main face aligned.

    Raises:
        NoFaceError: a photo without one.
    """
    rows = []
    located = locate([str(path) for path in photos], [load_photo(path).pixels for path in photos], detector)
    for path, found in zip(photos, located, strict=True):
        if found is None:
            raise NoFaceError(f"no face found in {path}", "leave this photo out")
        rows.append(tiles(editor, found.crop))
    return compose(rows)


def flip(known: Tensor, attribute: int) -> Tensor:
    """(B, n) labels with one attribute turned to its other side, fully; a hair colour turned on turns the others off.

    Rows in which the attribute is 0, unknown, stay 0.
    """
    wanted = known.clone()
    wanted[:, attribute] = -known[:, attribute].sign()
    colours = [ATTRIBUTES.index(colour) for colour in HAIR_COLOURS]
    if attribute in colours:
        turned_on = wanted[:, attribute] > 0
        for other in colours:
            if other != attribute:
                wanted[turned_on, other] = -1.0
    return wanted


@torch.no_grad()
def measure(
    editor: Edit, classifier: Classifier, pixels: np.ndarray, known: Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """How well an editor rebuilds faces, and whether the classifier sees the attributes it switched.

    An attribute counts as switched when the sign of the classifier's logit is the opposite of the label's. Four images
    are asked: the photo itself ("unedited", how often the classifier is wrong anyway: the baseline), D(E(x), a)
    ("rebuilt", what decoding alone does), D(E(x), b) with b the flipped labels ("edited"), and what `emask protect`
    makes of the photo, x + window (D(E(x), b) - D(E(x), 0)) with b zeros but for the attribute ("protect").

    Args:
        editor: an `Editor`, or anything with its call.
        classifier: the one that was trained beside the editor, and so flatters it.
        pixels: (N, S, S, 3) uint8 RGB.
        known: (N, 13) float32 labels in [-1, 1], none of the rows all zeros.
        progress: called with (crops done, crops).

    Returns:
        "crops": N; "reconstruction": mean and least PSNR in dB of D(E(x), a) against x; "attributes": by name the
        rates "on" (labelled on), "right" (classifier on the photo), "right_on" (of those labelled on), and "unedited",
        "rebuilt", "edited", "protect" with "edited_on" (switched on) and "edited_off" of them.
    """
    count = len(ATTRIBUTES)
    says: dict[str, list[np.ndarray]] = {name: [] for name in FLIPS}
    quality: list[float] = []
    for start in range(0, len(pixels), BATCH):
        part = pixels[start : start + BATCH]
        x, a = to_float(part), known[start : start + BATCH]
        window = feather_window(x.shape[-1])
        rebuilt = editor(x, a).clamp(-1, 1)
        quality += [psnr(ours, theirs) for ours, theirs in zip(to_pixels(rebuilt), part, strict=True)]
        as_it_is = editor(x, torch.zeros_like(a))
        says["unedited"].append(_seen(classifier, x))
        says["rebuilt"].append(_seen(classifier, rebuilt))
        edited, protect = [], []
        for attribute in range(count):
            b = flip(a, attribute)
            edited.append(_seen(classifier, editor(x, b).clamp(-1, 1))[:, attribute])
            alone = flip(torch.zeros_like(a).index_copy(1, torch.tensor([attribute]), a[:, [attribute]]), attribute)
            change = window * (editor(x, alone) - as_it_is)
            protect.append(_seen(classifier, (x + change).clamp(-1, 1))[:, attribute])
        says["edited"].append(np.stack(edited, 1))
        says["protect"].append(np.stack(protect, 1))
        if progress:
            progress(min(start + BATCH, len(pixels)), len(pixels))
    sign = known.sign().numpy()
    seen = {name: np.concatenate(rows) for name, rows in says.items()}
    attributes = {}
    for index, name in enumerate(ATTRIBUTES):
        label = sign[:, index]
        judged, on = label != 0, label > 0
        right, switched = seen["unedited"][:, index] == label, {k: v[:, index] == -label for k, v in seen.items()}
        rates = {"on": on[judged], "right": right[judged], "right_on": right[on]}
        rates |= {kind: hits[judged] for kind, hits in switched.items()}
        rates |= {"edited_on": switched["edited"][label < 0], "edited_off": switched["edited"][on]}
        attributes[name] = {kind: rate(hits).to_json() for kind, hits in rates.items()}
    return {
        "crops": len(pixels),
        "reconstruction": {"psnr_mean": round(float(np.mean(quality)), 2), "psnr_min": round(min(quality), 2)},
        "attributes": attributes,
    }


def _seen(classifier: Classifier, images: Tensor) -> np.ndarray:
    """(B, n) signs of the classifier's logits."""
    return classifier(images).sign().numpy()


def held_out(data: Path, most: int) -> tuple[np.ndarray, Tensor]:
    """Crops and labels of people no training saw: (N, 128, 128, 3) uint8 and (N, 13), spread evenly over all there are.

    Raises:
        TrainingError: none of them has labels.
    """
    crops = load_crops(data, user_cache_path("emask") / "training")
    known = read_labels(data, crops)
    rows = np.flatnonzero(crops.test & known.any(1).numpy())
    if not len(rows):
        raise TrainingError(f"no photo kept out of training in {data} has labels", "put *attr*.csv beside them")
    rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
    return crops.pixels[rows], known[torch.from_numpy(rows)]


def render(document: Mapping[str, Any]) -> str:
    """The figures of `measure` as Markdown."""
    attributes = document["attributes"]
    rows = [
        [name + ("" if name in EDITABLE else " (not offered)"),
         *[percent(rates[kind]) for kind in ("on", "right", "right_on", *FLIPS)]]
        for name, rates in attributes.items()
    ]  # fmt: skip
    offered = []
    for kind in ("on", "right", "right_on", *FLIPS):
        values = [attributes[name][kind]["value"] for name in EDITABLE]
        values = [value for value in values if value is not None]
        offered.append(percent({"value": float(np.mean(values)) if values else None}))
    rows.append(["mean of those offered", *offered])
    header = ["attribute", "labelled on", "classifier right", "right where on"]
    header += [f"switched: {name}" for name in FLIPS.values()]
    quality = document["reconstruction"]
    return "\n".join([
        f"{document['crops']} photos of people kept out of training. Reconstruction D(E(x), a): PSNR "
        f"{quality['psnr_mean']:.1f} dB (least {quality['psnr_min']:.1f}).",
        "",
        "In percent. Switched: the classifier says the opposite of the label. It was trained beside the editor and "
        "flatters it; no edit is the baseline, its own errors.",
        "",
        *markdown_table(header, rows),
    ]).rstrip() + "\n"  # fmt: skip


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m emask.bench.editing`."""
    parser = argparse.ArgumentParser(
        prog="python -m emask.bench.editing", description="Show and measure what the editor of stage 1 can do."
    )
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTOS")
    parser.add_argument("--run", type=Path, required=True, help="a run's stage1.pt")
    parser.add_argument("--data", type=Path, help="folder of photos with labels; without it the picture only")
    parser.add_argument("--crops", type=int, default=1000, help="most photos of --data to measure on")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture; figures go to .json beside it")
    options = parser.parse_args(arguments)
    if options.crops < 1:
        parser.error("--crops must be at least 1")
    if options.output.suffix.lower() != ".png":
        raise UsageError(f"{options.output} does not end in .png", "the picture is a PNG file")
    editor, classifier, step = load_stage1(options.run)
    write_bytes(options.output, encode_png(picture_of(editor, options.photos, Detector())), force=True)
    if options.data is not None:
        pixels, known = held_out(options.data, options.crops)

        def progress(done: int, count: int) -> None:
            if sys.stderr.isatty():
                print(f"\r{done} of {count} photos", end="\n" if done == count else "", file=sys.stderr, flush=True)

        document = {"step": step, **measure(editor, classifier, pixels, known, progress)}
        told = json.dumps(document, indent=2) + "\n"
        write_bytes(options.output.with_suffix(".json"), told.encode(), force=True)
        print(render(document), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

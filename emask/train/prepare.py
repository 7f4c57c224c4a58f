"""What a run needs before its first step: crops, labels, embeddings, built-in targets; made once and cached."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emask.errors import TrainingError
from emask.face.align import CROP, align, estimate
from emask.nets.generator import ATTRIBUTES
from emask.train.data import Crops, load_crops
from emask.train.distill import to_float
from emask.train.loop import TrainingSet
from emask.train.surrogates import Surrogate, read_cards

# Surrogates when none are named: the recognizers of this fold.
DEFAULT_FOLD = "A"
Progress = Callable[[str, int, int], None]


def open_surrogates(folder: Path, names: list[str] | None) -> list[Surrogate]:
    """The named recognizers of a folder as differentiable surrogates; without names, those of fold A.

    Raises:
        TrainingError: unknown names, fewer than two surrogates, or one that gives no gradient.
    """
    cards = read_cards(folder)
    if not names:
        names = [name for name, card in cards.items() if card.fold == DEFAULT_FOLD]
    unknown = [name for name in names if name not in cards]
    if unknown:
        raise TrainingError(f"no recognizer named {', '.join(unknown)} in {folder}", f"there are: {', '.join(cards)}")
    if len(names) < 2:
        raise TrainingError("a mask trained on one surrogate fools only that one", "name two or more surrogates")
    surrogates = [Surrogate(cards[name]).eval() for name in names]
    for surrogate in surrogates:
        probe = torch.zeros(1, 3, CROP, CROP, requires_grad=True)
        surrogate(probe)[0, 0].backward()
        if probe.grad is None or not bool(probe.grad.abs().sum() > 0):
            raise TrainingError(f"{surrogate.card.name} gives no gradient", "leave it out with --surrogate")
    return surrogates


def read_labels(data: Path, crops: Crops) -> Tensor:
    """(N, 13) float32 labels in [-1, 1] from CSV files in CelebA's columns (values 0..1, or -1 and 1); 0 unknown.

    Every `*attributes*.csv` of the data folder that has all columns is read; photos are matched by file name.
    """
    table: dict[str, list[float]] = {}
    for path in sorted(data.glob("*attributes*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not set(ATTRIBUTES) <= set(columns):
                continue
            for row in reader:
                table[row[columns[0]]] = [float(row[name]) for name in ATTRIBUTES]
    values = torch.zeros(len(crops), len(ATTRIBUTES))
    signed = any(value < 0 for row in table.values() for value in row)
    for index, name in enumerate(crops.names):
        labels = table.get(Path(name).name)
        if labels is not None:
            values[index] = torch.tensor(labels) if signed else torch.tensor(labels) * 2 - 1
    return values


def embed_crops(
    surrogates: list[Surrogate], pixels: np.ndarray, bf16: bool, progress: Callable[[int, int], None] | None = None
) -> list[Tensor]:
    """Per surrogate the (N, D_k) float32 unit embeddings of (N, S, S, 3) uint8 crops."""
    rows: list[list[Tensor]] = [[] for _ in surrogates]
    step = 32
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        for start in range(0, len(pixels), step):
            crops = to_float(pixels[start : start + step])
            for k, surrogate in enumerate(surrogates):
                rows[k].append(surrogate(crops).float())
            if progress:
                progress(min(start + step, len(pixels)), len(pixels))
    return [torch.cat(parts) for parts in rows]


def _cached(path: Path, make: Callable[[], list[Tensor]]) -> list[Tensor]:
    if path.exists():
        return torch.load(path, weights_only=True)
    tensors = make()
    partial = path.with_suffix(".partial")
    torch.save(tensors, partial)
    partial.replace(path)
    return tensors


def target_crops(folder: Path) -> tuple[list[str], np.ndarray]:
    """Names and (T, S, S, 3) uint8 crops of the built-in targets in a folder of portraits.

    Raises:
        TrainingError: no portrait, or one without a face.
    """
    from emask.face.detect import Detector

    files = sorted(folder.glob("*.jpg"))
    if not files:
        raise TrainingError(f"no built-in targets in {folder}", "make some: python -m emask.train.synthetic")
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    crops = []
    for file, picture, faces in zip(files, pictures, Detector().detect(pictures), strict=True):
        if not faces:
            raise TrainingError(f"no face found in {file}")
        crops.append(align(picture, estimate(faces[0].points)))
    return [file.stem for file in files], np.stack(crops)


def prepare(
    data: Path, surrogates: list[Surrogate], targets: Path, cache: Path, bf16: bool, progress: Progress | None = None
) -> TrainingSet:
    """Everything the stages read. Test people are left out here, once for all stages.

    Args:
        data: folder of photos, see `emask.train.data`.
        targets: folder of the built-in targets' portraits.
        cache: folder for crops and embeddings.
        progress: called with (what, done, all).
    """
    from emask.recognize import load_recognizer

    def part(what: str) -> Callable[[int, int], None]:
        return lambda done, count: progress(what, done, count) if progress else None

    crops = load_crops(data, cache, part("finding faces"))
    keep = np.flatnonzero(~crops.test)
    if not len(keep):
        raise TrainingError(f"every photo of {data} belongs to people kept for tests")
    pixels = np.ascontiguousarray(crops.pixels[keep])
    photos = hashlib.sha256("\n".join(crops.names[i] for i in keep).encode()).hexdigest()[:12]
    who = hashlib.sha256(" ".join(s.card.name for s in surrogates).encode()).hexdigest()[:8]
    embedded = _cached(
        cache / f"embeddings-{photos}-{who}.pt",
        lambda: embed_crops(surrogates, pixels, bf16, part("embedding with surrogates")),
    )
    recognizer = load_recognizer(None)
    identity = torch.from_numpy(recognizer.embed(pixels))
    _, portraits = target_crops(targets)
    return TrainingSet(
        pixels=pixels,
        people=crops.people[keep],
        labels=read_labels(data, crops)[torch.from_numpy(keep)],
        identity=identity,
        surrogate=embedded,
        target_identity=torch.from_numpy(recognizer.embed(portraits)),
        target_surrogate=embed_crops(surrogates, portraits, bf16=False),
    )

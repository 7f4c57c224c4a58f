"""Attribute labels of training photos: read from CSV files, or the trained classifier's for photos that have none."""

from __future__ import annotations

import csv
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emask.attributes import ATTRIBUTES
from emask.errors import TrainingError
from emask.nets.discriminator import Classifier
from emask.train.data import Crops, find_photos
from emask.train.distill import to_float

# Smallest share of photos that an attribute with graded scores is on in, or off in.
RAREST = 0.05


def from_scores(scores: np.ndarray) -> np.ndarray:
    """Scores of another program, 0..1, to labels: 2 score - 1, unless an attribute is then on or off nearly nowhere.

    Scores of rare attributes seldom reach 0.5 (LFW's say that 1 person in 1,000 has brown hair), but their order still
    tells. The cut is moved until the attribute is on in RAREST of the photos at least, and off in as many; the label is
    (score - cut) / min(cut, 1 - cut), clipped to [-1, 1].

    Args:
        scores: (N, n) in [0, 1]. Plain labels, 0 and 1 only, stay as they are.

    Returns:
        (N, n) float32 in [-1, 1].
    """
    labels = np.empty(scores.shape, np.float32)
    for column, values in enumerate(scores.T):
        plain = np.isin(values, (0.0, 1.0)).all()
        low, high = np.quantile(values, [RAREST, 1 - RAREST])
        cut = 0.5 if plain else min(max(min(0.5, high), low), 0.99)
        labels[:, column] = np.clip((values - cut) / max(min(cut, 1 - cut), 0.01), -1, 1)
    return labels


def check_labels(data: Path) -> list[str]:
    """Look at a data folder's labels before faces are looked for.

    Returns:
        What a user should know, in lines: files that are left out, or that there are no labels.

    Raises:
        TrainingError: as `read_labels`.
    """
    tables, lines = _read_tables(data, {photo.name for photo in find_photos(data)})
    return lines if tables else [*lines, "no labels: stage 1 learns to rebuild faces, but to change no attribute"]


def read_labels(data: Path, crops: Crops) -> Tensor:
    """(N, 13) float32 labels in [-1, 1] from CSV files in CelebA's columns (-1 and 1, or scores 0..1); 0 unknown.

    Every `*attr*.csv` of the data folder that has all columns is read; photos are matched by file name.

    Raises:
        TrainingError: a value that is no label, or a file none of whose names is a photo: without this, training would
            go on without labels and edit nothing.
    """
    rows_of: dict[str, list[int]] = {}
    for index, name in enumerate(crops.names):
        rows_of.setdefault(Path(name).name, []).append(index)
    values = torch.zeros(len(crops), len(ATTRIBUTES))
    for table in _read_tables(data, rows_of.keys())[0]:
        # each file by itself: one may count from 0 to 1 and another have -1 and 1
        signed = any(value < 0 for row in table.values() for value in row)
        rows = np.array(list(table.values()))
        for name, row in zip(table, torch.from_numpy(rows if signed else from_scores(rows)).float(), strict=True):
            if name in rows_of:
                values[rows_of[name]] = row
    return values


def _read_tables(data: Path, photos: AbstractSet[str]) -> tuple[list[dict[str, list[float]]], list[str]]:
    """The tables of a data folder, and a line about each file that is none.

    Args:
        photos: file names; each table has to name one of them.
    """
    tables, left_out = [], []
    for path in sorted(data.glob("*attr*.csv")):
        table = _read_table(path)
        if table is None:
            left_out.append(f"left out: {path} lacks one of the columns {', '.join(ATTRIBUTES)}")
            continue
        if not photos & table.keys():
            named = f", not {next(iter(table))!r}" if table else ""
            example = f" such as {min(photos)!r}" if photos else ""
            raise TrainingError(
                f"labels that don't match: none of the {len(table)} photos named in {path} is a face found in {data}",
                f"its first column must hold file names{example}{named}; or take the file out of the folder",
            )
        tables.append(table)
    return tables, left_out


def _read_table(path: Path) -> dict[str, list[float]] | None:
    """File name to the thirteen values as written, in [-1, 1]; None for a file that lacks one of the columns."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if not set(ATTRIBUTES) <= set(columns):
            return None
        table = {}
        for row in reader:
            try:
                values = [float(row[name]) for name in ATTRIBUTES]
            except (TypeError, ValueError):  # a short row gives None
                values = [float("nan")]
            if not all(-1 <= value <= 1 for value in values):
                raise TrainingError(
                    f"{path}, line {reader.line_num}: a label is no number in [-1, 1]",
                    "labels are 0 to 1, or -1 and 1; correct the line or take it out",
                )
            table[row[columns[0]]] = values
    return table


def pseudo_labels(
    classifier: Classifier, pixels: np.ndarray, labels: Tensor, bf16: bool = False, batch: int = 64
) -> Tensor:
    """Labels for every photo: those it has, else the trained attribute classifier's.

    Args:
        classifier: of stage 1, on any device; it is asked in evaluation mode.
        pixels: (N, S, S, 3) uint8 RGB.
        labels: (N, n) float32 in [-1, 1]; a row of zeros is a photo without labels.
        bf16: autocast to bfloat16.
        batch: crops in one forward pass.

    Returns:
        (N, n) float32 in [-1, 1], where `labels` is; 2 sigmoid(logit) - 1 in the rows that were zeros, so that a label
        is as sure as the classifier.
    """
    if len(pixels) != len(labels):
        raise ValueError(f"{len(pixels)} photos and {len(labels)} rows of labels")
    result = labels.clone()
    unknown = torch.nonzero(~labels.any(1)).flatten().cpu()
    device = next(classifier.parameters()).device
    training = classifier.training
    classifier.eval()
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        for part in unknown.split(batch):
            logits = classifier(to_float(pixels[part.numpy()]).to(device))
            result[part.to(labels.device)] = (2 * torch.sigmoid(logits.float()) - 1).to(labels)
    classifier.train(training)
    return result

"""Cards: what a recognizer file wants to be fed, and the thresholds it came with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emask.errors import ModelError
from emask.face.align import INNER
from emask.recognize.thresholds import rate_key

# Name of the file that holds the cards of all recognizers in a folder.
FOLDER_CARDS = "recognizers.json"


@dataclass(frozen=True)
class Card:
    """A recognizer's card.

    Attributes:
        name: short name.
        file: its ONNX file.
        input_name: name of the graph's input; "" takes the only one.
        size: (height, width) of the input in pixels, cut from the middle of the 112-pixel template.
        mean, std: per RGB channel, in grey levels 0..255: the input is (pixel - mean) / std.
        thresholds: cosine thresholds by false accept rate, keyed "0.1", "0.01", "0.001".
        fold: the group it belongs to in tests that leave recognizers out, or "".
        sha256: of the file in hex, compared when it is opened, or "" when the card does not say.
    """

    name: str
    file: Path
    input_name: str = ""
    size: tuple[int, int] = (INNER, INNER)
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    fold: str = ""
    sha256: str = ""


def _triple(value: Any) -> tuple[float, float, float]:
    numbers = [float(v) for v in value]
    if len(numbers) != 3:
        raise ValueError("mean and std have three numbers")
    return (numbers[0], numbers[1], numbers[2])


def parse_card(entry: Mapping[str, Any], file: Path) -> Card:
    """A card from its JSON object.

    Raises:
        ModelError: when a field is missing or makes no sense.
    """
    try:
        height, width = (int(v) for v in entry["size"])
        if not (0 < height <= INNER and 0 < width <= INNER):
            raise ValueError(f"size {height} x {width} does not fit in the {INNER}-pixel template")
        std = _triple(entry["std"])
        if min(std) <= 0:
            raise ValueError("std must be positive")
        return Card(
            name=str(entry.get("name", file.stem)),
            file=file,
            input_name=str(entry.get("input_name", "")),
            size=(height, width),
            mean=_triple(entry["mean"]),
            std=std,
            thresholds={rate_key(float(k)): float(v) for k, v in dict(entry.get("threshold", {})).items()},
            fold=str(entry.get("fold", "")),
            sha256=str(entry.get("sha256", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{file.name}: its card is incomplete or wrong ({error})",
            "a card needs size, mean and std; see docs/cli.md",
        ) from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name}: not a readable card file ({error})") from error


def folder_cards(folder: Path) -> list[Card]:
    """All cards of a folder's recognizers.json, in its order.

    Raises:
        ModelError: when there is no such file, or it is damaged.
    """
    path = folder / FOLDER_CARDS
    if not path.is_file():
        raise ModelError(f"no {FOLDER_CARDS} in {folder}", "name a folder of recognizers that has one")
    try:
        return [parse_card(entry, folder / str(entry["file"])) for entry in _read(path)["recognizers"]]
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path}: no list of recognizers in it") from error


def find_card(file: Path) -> Card:
    """The card of an ONNX file: FILE.json beside it, or its entry in the folder's recognizers.json.

    Raises:
        ModelError: when there is neither, or it is damaged.
    """
    own = file.with_suffix(".json")
    if own.is_file():
        return parse_card(_read(own), file)
    if (file.parent / FOLDER_CARDS).is_file():
        for card in folder_cards(file.parent):
            if card.file.name == file.name:
                return card
    raise ModelError(
        f"{file.name}: no card beside it",
        f"put a {own.name} beside it with size, mean, std and threshold; see docs/cli.md",
    )

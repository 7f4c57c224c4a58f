"""Measures the project's own recognizer on people no training saw, and writes the figures into the manifest.

    python -m emask.bench.recognizer --data DIR [--write]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from emask import weights
from emask.bench.metrics import Photo, lfw_accuracy
from emask.images import write_bytes
from emask.recognize import Recognizer, load_recognizer
from emask.recognize.thresholds import calibrate, true_accept_rate
from emask.train.data import TEST_FOLDS, Crops, load_crops, read_pairs


def measure(data: Path) -> dict[str, Any]:
    """LFW accuracy on the pairs of the test folds, thresholds and true accept rates on the same people.

    Args:
        data: folder with LFW's photos and `lfw_pairs.txt`.

    Returns:
        Figures for the manifest's entry of the recognizer.
    """
    crops = load_crops(data, user_cache_path("emask") / "training")
    return figures(load_recognizer(None), crops, read_pairs(data / "lfw_pairs.txt", TEST_FOLDS))


def figures(recognizer: Recognizer, crops: Crops, pairs: Sequence[tuple[Photo, Photo, int]]) -> dict[str, Any]:
    """The same of any recognizer.

    Args:
        crops: only those of people kept out of training are used.
        pairs: of the test folds, from `emask.train.data.read_pairs`.

    Raises:
        ValueError: too few pairs of different people to calibrate on, or pairs of one fold only.
    """
    test = np.flatnonzero(crops.test)
    embeddings = recognizer.embed(crops.pixels[test])
    by_photo = {}
    for row, index in enumerate(test):
        match = re.fullmatch(r"(.+)_(\d{4})", Path(crops.names[index]).stem)
        if match:
            by_photo[match[1], int(match[2])] = embeddings[row]
    accuracy = lfw_accuracy(by_photo, pairs)
    people = crops.people[test]
    thresholds = calibrate(embeddings, people)
    return {
        "lfw_accuracy": round(accuracy["accuracy"], 4),
        "lfw_pairs": {"folds": list(TEST_FOLDS), "pairs": accuracy["pairs"], "missing": accuracy["missing"]},
        "thresholds": {rate: round(value, 4) for rate, value in thresholds.items()},
        "true_accept": {
            rate: round(true_accept_rate(embeddings, people, value), 4) for rate, value in thresholds.items()
        },
        "calibration": {"photos": len(test), "people": int(len(np.unique(people)))},
    }


def main() -> None:
    """Print the figures as JSON; with --write put them into the manifest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="put the figures into models/manifest.json")
    arguments = parser.parse_args()
    measured = measure(arguments.data)
    print(json.dumps(measured, indent=2))
    if arguments.write:
        path = weights.models_dir() / "manifest.json"
        content = weights.manifest()
        content["models"]["recognizer"].update(measured)
        write_bytes(path, (json.dumps(content, indent=2) + "\n").encode(), force=True)


if __name__ == "__main__":
    main()

"""Photos to people, and the people no training may see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from emask.errors import TrainingError
from emask.train import data as module
from emask.train.data import find_photos, load_crops, read_pairs, split


def pairs_file(folder: Path) -> Path:
    """Ten folds of one same pair and one different pair; fold k names people k and k'."""
    rows = ["10\t1"]
    for fold in range(1, 11):
        rows += [f"p{fold}\t1\t2", f"p{fold}\t1\tq{fold}\t1"]
    path = folder / "lfw_pairs.txt"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_pairs_are_read_by_fold(tmp_path: Path) -> None:
    pairs = read_pairs(pairs_file(tmp_path), (9,))
    assert pairs == [(("p9", 1), ("p9", 2), 9), (("p9", 1), ("q9", 1), 9)]


def test_short_pairs_file_is_refused(tmp_path: Path) -> None:
    path = pairs_file(tmp_path)
    path.write_text(path.read_text().rsplit("\n", 2)[0])
    with pytest.raises(TrainingError, match="19 pairs where its first line promises 20"):
        read_pairs(path, (9,))


def test_test_people_are_split_off(tmp_path: Path) -> None:
    pairs_file(tmp_path)
    for name in ("p1", "p9", "q10"):
        (tmp_path / "lfw" / name).mkdir(parents=True)
        (tmp_path / "lfw" / name / f"{name}_0001.jpg").touch()
    (tmp_path / "flat").mkdir()
    for number in range(11):
        (tmp_path / "flat" / f"{number:02}.jpg").touch()
    photos = find_photos(tmp_path)
    people, test = split(tmp_path, photos)
    held_out = {person for person, flag in zip(people, test, strict=True) if flag}
    assert held_out == {"p9", "q10", "flat/00.jpg", "flat/10.jpg"}
    assert len(set(people)) == 14


def test_crops_are_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "data"
    photos.mkdir()
    Image.fromarray(astronaut()).save(photos / "a.png")
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(photos / "blank.png")
    crops = load_crops(photos, tmp_path / "cache")
    assert crops.names == ["a.png"]
    assert crops.pixels.shape == (1, 128, 128, 3)
    monkeypatch.setattr(module, "_pack", None)  # a second packing would fail
    assert np.array_equal(load_crops(photos, tmp_path / "cache").pixels, crops.pixels)


def test_folders_without_photos_or_faces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no photos"):
        load_crops(tmp_path, tmp_path / "cache")
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(tmp_path / "blank.png")
    with pytest.raises(TrainingError, match="no face found"):
        load_crops(tmp_path, tmp_path / "cache")

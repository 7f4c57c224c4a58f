"""Photos to people, and the people no training may see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage.data import astronaut

from emask.bench.protocol import select
from emask.errors import TrainingError
from emask.face.detect import Detector
from emask.train import data as module
from emask.train import pack
from emask.train.data import find_photos, load_crops, read_pairs, read_photos, split

PEOPLE = Path(__file__).resolve().parents[1] / "data" / "people"


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


def test_photos_that_cannot_be_read_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "data"
    photos.mkdir()
    (photos / "0.jpg").write_bytes(b"no photo at all")
    Image.fromarray(astronaut()).save(photos / "1.png")
    Image.fromarray(astronaut()).save(photos / "2.jpg")
    (photos / "2.jpg").write_bytes((photos / "2.jpg").read_bytes()[:5000])
    for _ in range(2):  # they are named again where the crops come from the cache
        crops = load_crops(photos, tmp_path / "cache")
        assert crops.names == ["1.png"] and len(crops.pixels) == 1
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 2 and "0.jpg" in said[0] and "2.jpg is truncated" in said[1]


def test_the_benchmark_leaves_them_out_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs_file(tmp_path)
    (tmp_path / "p9").mkdir()
    for number in (1, 2):
        (tmp_path / "p9" / f"p9_{number}.jpg").write_bytes((PEOPLE / f"june_{number}.jpg").read_bytes())
    (tmp_path / "p9" / "p9_0.jpg").write_bytes(b"no photo at all")
    selection = select(tmp_path, 9, 0, 0, Detector(device="cpu"))
    assert [source.photo.name for source in selection.sources] == ["p9/p9_1.jpg"]
    assert selection.skipped == ["p9/p9_0.jpg"] and "p9_0.jpg" in capsys.readouterr().err


def test_photos_are_read_upright_and_in_colour(tmp_path: Path) -> None:
    """As Pillow reads them."""
    face = Image.fromarray(astronaut()[:64, :48])
    exif = Image.Exif()
    exif[0x0112] = 6
    face.save(tmp_path / "0.jpg", exif=exif)
    face.convert("L").save(tmp_path / "1.png")
    face.convert("P").save(tmp_path / "2.png")
    face.convert("RGBA").save(tmp_path / "3.webp")
    face.convert("CMYK").save(tmp_path / "4.jpg")
    paths = sorted(tmp_path.iterdir())
    for path, pixels in zip(paths, read_photos(paths), strict=True):
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        assert pixels is not None and pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected)


def test_folders_without_photos_or_faces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no photos"):
        load_crops(tmp_path, tmp_path / "cache")
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(tmp_path / "blank.png")
    with pytest.raises(TrainingError, match="no face found"):
        load_crops(tmp_path, tmp_path / "cache")


def test_the_held_out_follow_the_pairs_file_as_it_is_now(tmp_path: Path) -> None:
    photos = tmp_path / "data"
    for person in ("p1", "p9"):
        (photos / person).mkdir(parents=True)
        (photos / person / f"{person}_0001.jpg").write_bytes((PEOPLE / "june_1.jpg").read_bytes())
    assert load_crops(photos, tmp_path / "cache").test.tolist() == [False, False]
    pairs_file(photos)
    assert load_crops(photos, tmp_path / "cache").test.tolist() == [False, True]


def test_packed_crops_are_the_same_data_without_a_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "data", tmp_path / "packed"
    (photos / "p9").mkdir(parents=True)
    (photos / "labels_attributes.csv").write_text("file\n")
    pairs_file(photos)
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(photos / "0.jpg")  # no face: the first flat one, kept out
    (photos / "p1").mkdir()
    for name in ("1.jpg", "2.png", "p1/p1_0001.jpg", "p9/p9_0001.jpg"):
        image = Image.open(PEOPLE / "june_1.jpg")
        image.save(photos / name)
    monkeypatch.setattr("emask.train.pack.user_cache_path", lambda name: tmp_path / "cache")
    assert pack.main(["--data", str(photos), "--out", str(out)]) == 0
    assert "3 crops" in capsys.readouterr().out
    before = load_crops(photos, tmp_path / "cache" / "training")
    monkeypatch.setattr(module, "Detector", None)  # it would not be found
    after = load_crops(out, tmp_path / "elsewhere")
    assert before.test.tolist() == [False, False, False, True]
    # without the picture that had no face, counting would keep 1.jpg out
    assert after.names == before.names[:3] and not after.test.any() and after.people.tolist() == [0, 1, 2]
    difference = np.abs(after.pixels.astype(int) - before.pixels[:3])
    assert difference[1].max() == 0 and 0 < difference.mean() < 2
    assert {path.name for path in out.iterdir()} == {"1.jpg", "2.png", "p1", "labels_attributes.csv", "packed.json"}
    assert pack.main(["--data", str(photos), "--out", str(out)]) == 2
    (out / "packed.json").write_text('{"size": 64}')
    with pytest.raises(TrainingError, match="crops of 64 pixels, not 128"):
        load_crops(out, tmp_path / "elsewhere")

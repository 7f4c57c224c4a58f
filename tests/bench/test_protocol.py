"""The photo protocol end to end on synthetic people: a mask that does nothing, one that pastes the target's face."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emask.bench import protocol
from emask.bench.protocol import Method, Selection, face_region, locate, run, select, survey, through_disk
from emask.bench.resume import KeptParts
from emask.bench.table import render
from emask.errors import UsageError
from emask.face.align import INNER, MARGIN
from emask.face.detect import Detector, Face, main_face
from emask.handling import choose
from emask.recognize import Recognizer, calibrate
from emask.recognize.cards import Card

PEOPLE = Path(__file__).resolve().parents[1] / "data" / "people"
FARS = (0.1,)


def write_pairs(folder: Path, names: list[str]) -> None:
    """An LFW pairs file of one pair of each kind in each of ten folds; the last two name all people."""
    rows = ["somebody\t1\t2", "somebody\t1\tanother\t1"] * 8
    rows += [f"{names[0]}\t1\t2", f"{names[1]}\t1\t{names[2]}\t1", f"{names[3]}\t1\t2", f"{names[4]}\t1\t{names[5]}\t1"]
    (folder / "lfw_pairs.txt").write_text("10\t1\n" + "\n".join(rows) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    names = sorted({p.stem.rsplit("_", 1)[0] for p in PEOPLE.glob("*_1.jpg")})
    assert len(names) >= 6
    for name in names:
        (folder / name).mkdir()
        for photo in PEOPLE.glob(f"{name}_*.jpg"):
            shutil.copy(photo, folder / name)
    write_pairs(folder, names)
    return folder


@pytest.fixture(scope="module")
def judge(
    tmp_path_factory: pytest.TempPathFactory, make_block_recognizer: Callable[[Path, int], Path]
) -> Recognizer:
    """Compares pictures by the mean colour of 8 x 8 blocks."""
    path = make_block_recognizer(tmp_path_factory.mktemp("judge") / "judge.onnx", 8)
    return Recognizer(Card("judge", path), "cpu")


@pytest.fixture(scope="module")
def selection(data: Path, detector: Detector) -> Selection:
    return select(data, 4, 2, 0, detector)


def as_pixels(inner: np.ndarray) -> np.ndarray:
    return inner[0].reshape(-1)


def paste_target(crops: np.ndarray, target: np.ndarray) -> np.ndarray:
    middle = slice(MARGIN, MARGIN + INNER)
    change = np.zeros_like(crops)
    change[:, :, middle, middle] = target.reshape(-1, 3, INNER, INNER) - crops[:, :, middle, middle]
    return change


NOTHING = Method(lambda crops, target: np.zeros_like(crops), np.zeros_like, as_pixels)
ORACLE = Method(paste_target, np.zeros_like, as_pixels)


def test_selection(selection: Selection, data: Path, detector: Detector) -> None:
    used = [s.person for s in selection.sources] + [t.name for t in selection.unseen]
    assert len(selection.sources) == 4 and len(selection.unseen) == 2 and len(set(used)) == 6
    assert all(s.photo.name != s.other.name and s.person in s.other.name for s in selection.sources)
    assert len(selection.calibration_crops) == 12 and not selection.skipped
    again = select(data, 4, 2, 0, detector)
    assert [s.person for s in again.sources] == [s.person for s in selection.sources]
    with pytest.raises(UsageError, match="leave none"):
        select(data, 1, 6, 0, detector)


def test_targets_by_several_photos(data: Path, detector: Detector, tmp_path: Path) -> None:
    """Only people with so many photos serve; the one that judges is none of those given, with one given or two."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    people = sorted(path for path in folder.iterdir() if path.is_dir())
    for person in people[1:3]:
        photo = sorted(person.iterdir())[0]
        Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(person / f"{person.name}_3.jpg")
    two = select(folder, 9, 2, 0, detector, target_photos=2)
    assert sorted(t.name for t in two.unseen) == [person.name for person in people[1:3]]
    one = select(folder, 9, 2, 0, detector, target_min_photos=3)
    for target, same in zip(two.unseen, one.unseen, strict=True):
        assert target.other is not None and same.other is not None and len(target.more) == 1 and not same.more
        assert len({photo.name for photo in (target.given, target.other, *target.more)}) == 3
        assert (target.name, target.given.name, target.other.name) == (same.name, same.given.name, same.other.name)
    assert [s.photo.name for s in two.sources] == [s.photo.name for s in one.sources]
    assert not {s.person for s in two.sources} & {t.name for t in two.unseen}
    seen = []
    looking = Method(NOTHING.protect, None, lambda squares: seen.append(len(squares)) or squares[0].reshape(-1))
    run(looking, replace(two, sources=two.sources[:1]), [], [], tmp_path, detector, fars=FARS)
    assert seen == [2, 2]
    with pytest.raises(UsageError, match="2 people .* have 3 photos"):
        select(folder, 9, 3, 0, detector, target_photos=2)


def test_a_mask_that_does_nothing(selection: Selection, judge: Recognizer, detector: Detector, tmp_path: Path) -> None:
    result = run(NOTHING, selection, selection.unseen[:1], [judge], tmp_path, detector, fars=FARS)
    name = selection.unseen[0].name
    for entry in (result["targets"][name], result["unseen"]):
        figures = entry["recognizers"]["judge"]
        assert entry["before_jpeg"]["psnr_min"] == 100.0
        assert entry["after_jpeg"] == result["clean"]["after_jpeg"] and entry["after_jpeg"]["psnr_mean"] < 60
        for figure in ("impersonation_given", "impersonation_other", "dodging_other", "dodging_same"):
            assert figures[figure] == figures[figure + "_clean"]
        assert figures["impersonation_given"]["0.1"]["value"] < 0.6
        assert figures["dodging_same"]["0.1"]["value"] == 0.0
    found = result["identification"]["judge"]
    assert found["gallery"]["people"] == 6 and found["gallery"]["distractors"] == 0
    assert found["figures"]["targeted"] == found["figures"]["targeted_clean"]
    assert found["figures"]["untargeted"]["1"]["value"] < 1.0
    for entry in result["erasing"].values():
        figures = entry["recognizers"]["judge"]
        assert figures["reverified_same"] == figures["reverified_same_clean"]
        assert entry["restored"]["psnr_mean"] == pytest.approx(entry["protected"]["psnr_mean"], abs=1.5)


def test_a_mask_that_pastes_the_target(
    selection: Selection, judge: Recognizer, detector: Detector, tmp_path: Path
) -> None:
    result = run(ORACLE, selection, selection.unseen[:1], [judge], tmp_path, detector, fars=FARS)
    name = selection.unseen[0].name
    for entry in (result["targets"][name], result["unseen"]):
        figures = entry["recognizers"]["judge"]
        assert figures["impersonation_given"]["0.1"]["value"] == 1.0
        assert entry["before_jpeg"]["psnr_mean"] < 30
    found = result["identification"]["judge"]["figures"]
    assert found["targeted"]["1"]["value"] > found["targeted_clean"]["1"]["value"]
    assert found["untargeted"]["1"]["value"] > 0.5 and found["identified_restored"]["1"]["value"] < 0.5
    # the mask was never taken off
    for entry in result["erasing"].values():
        assert entry["recognizers"]["judge"]["erased"]["0.1"]["value"] == 0.0
    assert result["summary"]["0.1"]["judge"]["targets_at_90"] == 1
    assert len(list(tmp_path.rglob("*.jpg"))) == 4 * (1 + 2 + 2)


def test_handled_files_are_judged_as_they_come_out(
    selection: Selection, judge: Recognizer, detector: Detector, tmp_path: Path
) -> None:
    """The face is found again in the turned photo and in the darkened one nobody can see; the clean photos' beside."""
    handlings = choose(["jpeg:75", "rotate:10", "brightness:0"], "")
    result = run(ORACLE, selection, [], [judge], tmp_path, detector, fars=FARS, handlings=handlings)
    handled = result["handling"]
    assert list(handled) == ["jpeg:75", "rotate:10", "brightness:0"]
    for name in ("jpeg:75", "rotate:10"):
        figures = handled[name]["recognizers"]["judge"]
        assert handled[name]["not_found"] == handled[name]["not_found_clean"] == 0
        assert figures["impersonation_given"]["0.1"]["value"] > figures["impersonation_given_clean"]["0.1"]["value"]
        assert figures["erased"]["0.1"]["value"] <= 0.25 < figures["erased_clean"]["0.1"]["value"]  # never taken off
        assert figures["reverified_same_clean"]["0.1"]["value"] == 1.0
    # a photo of another size cannot be compared pixel by pixel
    assert handled["jpeg:75"]["clean"]["psnr_mean"] > 30 and "clean" not in handled["rotate:10"]
    assert handled["brightness:0"]["not_found"] == handled["brightness:0"]["not_found_clean"] == 4
    figures = handled["brightness:0"]["recognizers"]["judge"]
    assert not any(entry["0.1"]["value"] for entry in figures.values())
    table = render({**result, "settings": {"quality": 90, "strength": "medium", "w": 0.0, "eps": 9.0, "seed": 0,
                                           "engine": "none", "refine": 20}})  # fmt: skip
    assert "| rotate:10 |" in table and "20 refining steps" in table


def test_a_mask_that_destroys_the_face_is_no_success(
    selection: Selection, judge: Recognizer, detector: Detector, tmp_path: Path
) -> None:
    grey = Method(lambda crops, target: -crops, np.zeros_like, as_pixels)
    result = run(grey, selection, [], [judge], tmp_path, detector, fars=FARS)
    entry = result["unseen"]
    assert entry["not_found"] == 4
    figures = entry["recognizers"]["judge"]
    assert figures["impersonation_given"]["0.1"]["value"] == figures["dodging_other"]["0.1"]["value"] == 0.0
    erased = result["erasing"]["unseen targets"]["recognizers"]["judge"]
    assert erased["erased"]["0.1"]["value"] == erased["reverified_other"]["0.1"]["value"] == 0.0


def test_document_and_table_are_deterministic(
    selection: Selection, judge: Recognizer, detector: Detector, tmp_path: Path
) -> None:
    first = run(ORACLE, selection, selection.unseen, [judge], tmp_path / "a", detector, fars=FARS)
    second = run(ORACLE, selection, selection.unseen, [judge], tmp_path / "b", detector, fars=FARS)
    text = json.dumps(first, allow_nan=False)
    assert text == json.dumps(second, allow_nan=False)
    table = render(json.loads(text))
    for heading in ("Built-in targets", "unseen targets", "Erasing", "Dodging", "clean"):
        assert heading in table
    assert table.count("100.0 [") >= 3


def test_judges_are_calibrated_once_for_all_methods(
    selection: Selection, judge: Recognizer, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same document as from a run by itself; the twin, a run by itself, calibrates again."""
    counted: list[int] = []

    def counting(*arguments: Any) -> dict[str, float]:
        counted.append(1)
        return calibrate(*arguments)

    monkeypatch.setattr(protocol, "calibrate", counting)
    ground = survey(selection, [judge], tmp_path / "ground", detector, fars=FARS)
    known = run(NOTHING, selection, [], [judge], tmp_path / "known", detector, fars=FARS, ground=ground)
    assert len(counted) == 1
    assert run(NOTHING, selection, [], [judge], tmp_path / "anew", detector, fars=FARS) == known
    assert len(counted) == 2


def test_files_on_disk_are_what_is_decoded(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    (decoded,) = through_disk([picture], tmp_path / "x", 90)
    assert decoded.shape == picture.shape and not np.array_equal(decoded, picture)
    assert (tmp_path / "x" / "00000.jpg").stat().st_size > 500


def test_main_face_and_region(detector: Detector) -> None:
    def face(x: float, size: float) -> Face:
        points = np.full((5, 2), (x, 100.0), np.float32)
        return Face(np.array([x - size / 2, 0, x + size / 2, size], np.float32), points, 1.0)

    assert main_face([face(20, 60), face(100, 50)], (200, 200, 3)) is not None
    assert main_face([face(20, 60), face(100, 50)], (200, 200, 3)).points[0, 0] == 100  # type: ignore[union-attr]
    assert main_face([], (200, 200, 3)) is None
    photo = np.asarray(Image.open(PEOPLE / "ines_1.jpg"))
    located = locate(["a", "b"], [photo, np.zeros_like(photo)], detector)
    assert located[1] is None and located[0] is not None
    rows, columns = face_region(located[0])
    assert 100 < rows.stop - rows.start <= 256 and 100 < columns.stop - columns.start <= 256


def test_further_photos_of_the_same_people_fill_up(data: Path, detector: Detector, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    shutil.copytree(data, folder)
    people = sorted(p.name for p in folder.iterdir() if p.is_dir())
    prolific = people[-1]
    shutil.copy(next((folder / prolific).iterdir()), folder / prolific / f"{prolific}_9.jpg")
    before, after = select(data, 99, 0, 0, detector), select(folder, 99, 0, 0, detector)
    assert len(before.sources) == 6 and len(after.sources) == 7
    assert [s.photo.name for s in after.sources[:6]] == [s.photo.name for s in before.sources]
    last = after.sources[6]
    assert last.person == prolific and last.photo.name.endswith("_9.jpg") and last.other is not None
    assert last.other.name != last.photo.name


def test_photos_whose_owners_have_no_other(data: Path, judge: Recognizer, detector: Detector, tmp_path: Path) -> None:
    """Figures against another photo of the owner are left out; the table is made all the same."""
    folder = tmp_path / "flat"
    shutil.copytree(data, folder / "people")
    shutil.move(folder / "people" / "lfw_pairs.txt", folder / "lfw_pairs.txt")
    (folder / "singles").mkdir()
    for number, photo in enumerate(sorted(PEOPLE.glob("*_1.jpg"))[:2]):  # the first of ten is kept out of training
        shutil.copy(photo, folder / "singles" / f"{number}.jpg")
    chosen = select(folder, 99, 2, 0, detector, below="singles")
    assert [s.photo.name for s in chosen.sources] == ["singles/0.jpg"] and chosen.sources[0].other is None
    result = run(NOTHING, chosen, chosen.unseen[:1], [judge], tmp_path / "files", detector, fars=FARS)
    figures = result["unseen"]["recognizers"]["judge"]
    assert "dodging_same" in figures and "dodging_other" not in figures
    erased = result["erasing"]["unseen targets"]["recognizers"]["judge"]
    assert "reverified_same" in erased and "reverified_other" not in erased
    assert result["identification"] == {} and "Accepted as the owner by the original photo" in render(result)
    with pytest.raises(UsageError, match="no photo with a face"):
        select(folder, 99, 2, 0, detector, below="nowhere")


def test_an_interrupted_run_goes_on(
    selection: Selection, judge: Recognizer, detector: Detector, tmp_path: Path
) -> None:
    whole = run(ORACLE, selection, selection.unseen[:2], [judge], tmp_path / "whole", detector, fars=FARS)
    name = selection.unseen[0].name

    class Interrupted(KeptParts):
        def put(self, label: str, figures: dict[str, Any], cosines: dict[str, np.ndarray]) -> None:
            super().put(label, figures, cosines)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts = Interrupted(tmp_path / "parts", {})
        run(ORACLE, selection, selection.unseen[:2], [judge], tmp_path / "a", detector, fars=FARS, parts=parts)
    kept = KeptParts(tmp_path / "parts", {})
    noted: dict[str, np.ndarray] = {}
    resumed = run(
        ORACLE, selection, selection.unseen[:2], [judge], tmp_path / "b", detector, fars=FARS, similarities=noted,
        parts=kept,
    )  # fmt: skip
    assert kept.taken == [name] and not (tmp_path / "b" / name).exists()
    assert json.dumps(resumed) == json.dumps(whole)
    assert any(key.startswith(name) for key in noted) and any(key.startswith("unseen/") for key in noted)

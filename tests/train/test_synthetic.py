"""Morphs: grouping, averaging, and the command. Contributors here are synthetic themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import shift

from emask.errors import TrainingError
from emask.train.synthetic import ATTRIBUTES, MIN_GROUP, Member, choose_groups, find_members, main, morph, yaw

PEOPLE = Path(__file__).resolve().parents[1] / "data" / "people"


def member(name: str, male: float, tone: float) -> Member:
    portrait = np.zeros((256, 256, 3), np.uint8)
    crop = np.zeros((128, 128, 3), np.uint8)
    attributes = np.full(len(ATTRIBUTES), 0.5)
    attributes[0] = male
    return Member(name, (portrait, portrait), (crop, crop), attributes, np.full(3, tone))


def test_groups_are_disjoint_of_one_sex_and_alike() -> None:
    rng = np.random.default_rng(0)
    members = [member(f"p{i}", float(i % 2), float(rng.choice([0.3, 0.7]))) for i in range(120)]
    groups = choose_groups(members, 4, 10, seed=1)
    names = [m.person for g in groups for m in g]
    assert len(groups) == 4 and len(set(names)) == 40
    assert [{m.male for m in g} for g in groups] == [{0.0}, {0.0}, {1.0}, {1.0}]
    assert all(np.ptp([m.tone[0] for m in g]) == 0 for g in groups)
    assert names == [m.person for g in choose_groups(members, 4, 10, seed=1) for m in g]


def test_too_few_people_are_refused() -> None:
    members = [member(f"p{i}", float(i % 2), 0.5) for i in range(20)]
    with pytest.raises(ValueError, match="at least 8"):
        choose_groups(members, 1, MIN_GROUP - 1, seed=0)
    with pytest.raises(TrainingError, match="too few"):
        choose_groups(members, 4, 8, seed=0)
    with pytest.raises(ValueError, match="at least 8"):
        morph([m.portraits[0] for m in members[: MIN_GROUP - 1]], np.ones(MIN_GROUP - 1))


def test_a_morph_registers_displaced_faces() -> None:
    face = np.asarray(Image.open(PEOPLE / "ines_1.jpg"))
    face = ((face.astype(int) + face[:, ::-1]) // 2).astype(np.uint8)  # symmetric: mirroring adds nothing new
    rng = np.random.default_rng(0)
    offsets = rng.uniform(-3, 3, (MIN_GROUP, 2))
    offsets -= offsets.mean(0)  # a morph has the mean shape: here, that of the face before it was moved
    moved = [np.clip(shift(face, (*o, 0), order=1, mode="nearest"), 0, 255) for o in offsets]
    plain = np.mean(moved, 0)
    result = morph(moved, np.ones(MIN_GROUP), rounds=2).astype(float)
    assert result.shape == (256, 256, 3)
    middle = (slice(90, 190), slice(80, 176))

    def detail(image: np.ndarray) -> float:
        """Agreement of the fine structure with the undisturbed face."""
        a, b = (np.diff(x[middle].mean(-1), axis=0).ravel() for x in (image, face.astype(float)))
        return float(np.corrcoef(a, b)[0, 1])

    assert detail(result) > max(0.85, detail(plain))


def test_yaw_of_a_frontal_and_a_turned_face() -> None:
    points = np.array([[30, 40], [70, 40], [50, 60], [36, 80], [64, 80]], float)
    assert yaw(points) == pytest.approx(0)
    turned = points.copy()
    turned[2, 0] += 8
    assert yaw(turned) == pytest.approx(0.2)
    angle = np.array([[0.8, -0.6], [0.6, 0.8]])
    assert yaw(turned @ angle.T * 3) == pytest.approx(0.2)


def test_a_photo_that_cannot_be_read_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person's other two photos do."""
    for photo in PEOPLE.glob("ines_*.jpg"):
        (tmp_path / "ines").mkdir(exist_ok=True)
        (tmp_path / "ines" / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / "ines" / "ines_0.jpg").write_bytes(b"no photo")
    monkeypatch.setattr("emask.train.synthetic.MIN_GROUP", 1)
    assert [member.person for member in find_members(tmp_path, False, 10, 0, max_yaw=1.0)] == ["ines"]
    assert "ines_0.jpg" in capsys.readouterr().err


def test_command_reports_a_folder_without_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) != 0
    assert "two frontal photos" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

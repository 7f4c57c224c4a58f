"""Labels from files reach their photos, files that do not match are refused, and the classifier fills the gaps only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from emask.attributes import ATTRIBUTES
from emask.errors import TrainingError
from emask.nets.discriminator import Classifier, Discriminator
from emask.train.data import Crops
from emask.train.distill import to_float
from emask.train.labels import check_labels, from_scores, pseudo_labels, read_labels

GLASSES = ATTRIBUTES.index("Eyeglasses")


def crops(*names: str) -> Crops:
    count = len(names)
    return Crops(np.zeros((count, 8, 8, 3), np.uint8), np.arange(count), list(names), np.zeros(count, bool))


def table(path: Path, rows: dict[str, float | str], columns: tuple[str, ...] = ATTRIBUTES) -> None:
    """A CSV in which every attribute of a photo has the same value."""
    lines = [",".join(["name", "Smiling", *columns])]
    lines += [",".join([name, "0.5", *[str(value)] * len(columns)]) for name, value in rows.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_labels_reach_their_photos_and_the_rest_is_unknown(tmp_path: Path) -> None:
    table(tmp_path / "lfw_attributes.csv", {"a.jpg": 0.0, "b.jpg": 0.75, "elsewhere.jpg": 1.0})
    values = read_labels(tmp_path, crops("lfw/b/b.jpg", "c.jpg", "a.jpg"))
    assert values.shape == (3, len(ATTRIBUTES)) and values.dtype == torch.float32
    assert values[:, GLASSES].tolist() == [0.5, 0.0, -1.0]


def test_rare_attributes_are_cut_by_rank_and_common_ones_in_the_middle() -> None:
    scores = np.stack([np.linspace(0, 0.2, 100), np.linspace(0, 1, 100), np.linspace(0.9, 1, 100)], 1)
    labels = from_scores(scores)
    on = (labels > 0).mean(0)
    assert on[0] == pytest.approx(0.05, abs=0.011)  # none of them is above 0.5
    np.testing.assert_allclose(labels[:, 1], 2 * scores[:, 1] - 1, atol=1e-6)
    assert on[2] == pytest.approx(0.95, abs=0.011)
    assert (np.diff(labels, axis=0) >= 0).all()  # the order stays
    rare = np.zeros((100, 1))
    rare[0] = 1.0  # a plain label, however rare, is what it says
    assert (from_scores(rare) > 0).sum() == 1


def test_each_file_has_its_own_range(tmp_path: Path) -> None:
    table(tmp_path / "1_attributes.csv", {"a.jpg": 0.0, "b.jpg": 1.0})
    table(tmp_path / "2_attributes.csv", {"c.jpg": -1, "d.jpg": 1})
    assert read_labels(tmp_path, crops("a.jpg", "b.jpg", "c.jpg", "d.jpg"))[:, 0].tolist() == [-1, 1, -1, 1]


def test_without_files_or_columns_nothing_is_known(tmp_path: Path) -> None:
    assert not read_labels(tmp_path, crops("a.jpg")).any()
    table(tmp_path / "ffhq_attributes.csv", {"z.jpg": 1.0}, columns=ATTRIBUTES[1:])  # and its names need not match
    assert not read_labels(tmp_path, crops("a.jpg")).any()


def test_a_file_that_matches_no_photo_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "attributes.csv", {"000001": 1.0, "000002": 0.0})
    with pytest.raises(TrainingError, match="labels that don't match: none of the 2 photos") as caught:
        read_labels(tmp_path, crops("flat/000001.jpg"))
    assert "'000001.jpg'" in caught.value.hint and "'000001'" in caught.value.hint
    table(tmp_path / "attributes.csv", {"000001.jpg": 1.0, "000002": 0.0})  # one match is enough
    assert read_labels(tmp_path, crops("flat/000001.jpg")).all()


def test_labels_are_looked_at_before_faces_are(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").touch()
    assert check_labels(tmp_path) == ["no labels: stage 1 learns to rebuild faces, but to change no attribute"]
    table(tmp_path / "ffhq_attributes.csv", {"a.jpg": 1.0}, columns=ATTRIBUTES[1:])
    first, second = check_labels(tmp_path)
    assert "ffhq_attributes.csv lacks one of the columns" in first and "no labels" in second
    table(tmp_path / "list_attr_celeba.csv", {"b.jpg": 1.0})  # as CelebA calls it
    with pytest.raises(TrainingError, match="labels that don't match"):
        check_labels(tmp_path)
    table(tmp_path / "list_attr_celeba.csv", {"a.jpg": 1.0})
    assert check_labels(tmp_path) == [first]
    assert read_labels(tmp_path, crops("flat/a.jpg")).all()


@pytest.mark.parametrize("value", ["", "yes", "nan", "2", "-1.5"])
def test_a_value_that_is_no_label_is_refused_with_its_line(tmp_path: Path, value: str) -> None:
    table(tmp_path / "attributes.csv", {"a.jpg": 1.0, "b.jpg": value})
    with pytest.raises(TrainingError, match="line 3"):
        read_labels(tmp_path, crops("a.jpg"))


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Discriminator(len(ATTRIBUTES), (4, 4, 4, 4)).classifier.eval()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)


def test_the_classifier_labels_what_has_none_and_touches_nothing_else(
    classifier: Classifier, pixels: np.ndarray
) -> None:
    labels = torch.zeros(5, len(ATTRIBUTES))
    labels[1] = -1.0
    labels[3, GLASSES] = 0.25  # known in part: its zeros are kept too
    before = labels.clone()
    result = pseudo_labels(classifier, pixels, labels, batch=2)
    torch.testing.assert_close(labels, before, atol=0, rtol=0)
    torch.testing.assert_close(result[[1, 3]], before[[1, 3]], atol=0, rtol=0)
    with torch.no_grad():
        logits = classifier(to_float(pixels))
    wanted = 2 * torch.sigmoid(logits) - 1
    torch.testing.assert_close(result[[0, 2, 4]], wanted[[0, 2, 4]])
    assert not torch.allclose(result[1], wanted[1]) and not result.requires_grad


def test_labels_follow_the_classifier(classifier: Classifier, pixels: np.ndarray) -> None:
    with torch.no_grad():
        classifier[-1].bias.copy_(torch.linspace(-9, 9, len(ATTRIBUTES)))  # type: ignore[operator, union-attr]
    result = pseudo_labels(classifier, pixels, torch.zeros(5, len(ATTRIBUTES)), bf16=True)
    assert result.dtype == torch.float32 and float(result.abs().max()) <= 1
    assert (result[:, 0] < -0.9).all() and (result[:, -1] > 0.9).all()


def test_nothing_to_label(classifier: Classifier, pixels: np.ndarray) -> None:
    labels = torch.ones(5, len(ATTRIBUTES))
    torch.testing.assert_close(pseudo_labels(classifier, pixels, labels), labels)
    with pytest.raises(ValueError, match="5 photos and 4 rows"):
        pseudo_labels(classifier, pixels, labels[:4])

"""The measure of an editor tells one that edits from one that does not; the picture shows what the command offers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from emask.attributes import ATTRIBUTES, EDITABLE
from emask.bench import editing
from emask.bench.editing import FLIPS, compose, flip, load_stage1, measure, render, tiles, variants
from emask.nets.discriminator import Discriminator
from emask.nets.generator import Editor, NetConfig

N, SIDE = 12, 32
COUNT = len(ATTRIBUTES)
CONFIG = NetConfig(size=SIDE, widths=(4, 6, 8, 8), hidden=8)
BLOND, BLACK, BROWN = (ATTRIBUTES.index(name) for name in ("Blond_Hair", "Black_Hair", "Brown_Hair"))


def patch(attribute: int) -> tuple:
    """The index of where the synthetic faces carry an attribute: a square of 4 pixels a side, bright where it is on."""
    row, column = divmod(attribute, 4)
    return ..., slice(8 + 4 * row, 12 + 4 * row), slice(8 + 4 * column, 12 + 4 * column)


class Reader(nn.Module):
    """A classifier that reads the squares."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([image[patch(i)].mean((1, 2, 3)) for i in range(COUNT)], 1)


def paint(image: Tensor, values: Tensor) -> Tensor:
    """Write labels into the squares; zeros leave them as they are."""
    image = image.clone()
    for i in range(COUNT):
        wanted = values[:, i, None, None, None]
        square = image[patch(i)]
        image[patch(i)] = torch.where(wanted == 0, square, wanted.sign() * 0.8)
    return image


def copying(image: Tensor, values: Tensor) -> Tensor:
    """An editor that ignores labels."""
    return image.clone()


@pytest.fixture
def known() -> Tensor:
    values = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (N, COUNT))).float()
    values[0, 0] = 0.0  # one label nobody knows
    return values


@pytest.fixture
def pixels(known: Tensor) -> np.ndarray:
    """(N, 32, 32, 3) uint8: smooth pictures that carry their labels; two of the last attribute are carried wrongly."""
    coarse = torch.from_numpy(np.random.default_rng(1).random((N, 3, 5, 5))).float() - 0.5
    smooth = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")
    carried = known.clone()
    carried[:2, -1] *= -1
    return editing.to_pixels(paint(smooth, carried))


def value(document: dict, name: str, kind: str) -> float:
    return document["attributes"][name][kind]["value"]


def test_an_editor_that_edits(pixels: np.ndarray, known: Tensor) -> None:
    document = measure(paint, Reader(), pixels, known)  # type: ignore[arg-type]
    for name in ATTRIBUTES:
        assert value(document, name, "edited") == value(document, name, "protect") == 1.0
        assert value(document, name, "edited_on") == value(document, name, "edited_off") == 1.0
    assert document["crops"] == N
    first, last = ATTRIBUTES[0], ATTRIBUTES[-1]
    assert document["attributes"][first]["edited"]["n"] == N - 1  # the unknown label is not judged
    assert value(document, first, "right") == 1.0 and value(document, first, "unedited") == 0.0
    assert value(document, last, "right") == pytest.approx(10 / 12, abs=1e-4)
    assert value(document, last, "unedited") == pytest.approx(2 / 12, abs=1e-4)
    assert value(document, first, "on") == pytest.approx(float((known[1:, 0] > 0).float().mean()), abs=1e-4)


def test_an_editor_that_ignores_labels_scores_like_the_baseline(pixels: np.ndarray, known: Tensor) -> None:
    document = measure(copying, Reader(), pixels, known)  # type: ignore[arg-type]
    for name in ATTRIBUTES:
        assert len({value(document, name, kind) for kind in FLIPS}) == 1
    assert value(document, "Eyeglasses", "edited") == 0.0
    assert document["reconstruction"] == {"psnr_mean": 100.0, "psnr_min": 100.0}


def test_a_real_editor_whose_labels_are_cut_off(pixels: np.ndarray, known: Tensor) -> None:
    torch.manual_seed(0)
    editor, classifier = Editor(CONFIG).eval(), Discriminator(COUNT, (4, 4, 4)).classifier.eval()
    with torch.no_grad():
        editor.decoder.layers[0].conv.weight[:, :COUNT] = 0.0  # type: ignore[index, operator, union-attr]
    document = measure(editor, classifier, pixels, known)
    for name in ATTRIBUTES:
        assert value(document, name, "edited") == value(document, name, "rebuilt")
        assert value(document, name, "protect") == value(document, name, "unedited")
    assert document["reconstruction"]["psnr_mean"] < 30


def test_reconstruction_is_measured_against_the_photo(pixels: np.ndarray, known: Tensor) -> None:
    def darker(image: Tensor, values: Tensor) -> Tensor:
        return image - 2 / 255 * 10  # ten grey levels

    document = measure(darker, Reader(), np.clip(pixels, 20, 255), known)  # type: ignore[arg-type]
    assert document["reconstruction"]["psnr_mean"] == pytest.approx(20 * np.log10(255 / 10), abs=0.05)


def test_flip_turns_one_label_and_a_hair_colour_the_others_off() -> None:
    known = torch.full((3, COUNT), 0.5)
    known[1], known[2] = -0.5, 0.0
    glasses = ATTRIBUTES.index("Eyeglasses")
    flipped = flip(known, glasses)
    assert flipped[:, glasses].tolist() == [-1.0, 1.0, 0.0]
    rest = [i for i in range(COUNT) if i != glasses]
    torch.testing.assert_close(flipped[:, rest], known[:, rest])
    hair = flip(known, BLOND)
    assert hair[:, [BLOND, BLACK, BROWN]].tolist() == [[-1.0, 0.5, 0.5], [1.0, -1.0, -1.0], [0.0, 0.0, 0.0]]


def test_the_table_has_a_row_for_each_attribute_and_their_mean(pixels: np.ndarray, known: Tensor) -> None:
    known[:, ATTRIBUTES.index("Bald")] = -1.0  # nobody is: no rate to print
    text = render(measure(paint, Reader(), pixels, known))  # type: ignore[arg-type]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == COUNT + 2 and len({line.count("|") for line in rows}) == 1
    assert next(r for r in rows if r.startswith("| Bald")).split(" | ")[1:4:2] == ["0.0", "-"]
    assert "| Male (not offered) |" in text and "| Eyeglasses |" in text
    assert rows[-1].startswith("| mean of those offered") and rows[-1].endswith("| 100.0 | 100.0 |")


def test_the_picture_shows_what_the_command_offers(pixels: np.ndarray) -> None:
    shown = dict(variants())
    assert not shown["reconstruction"].any()
    assert {"eyeglasses", "no-eyeglasses", "beard", "no-beard", "blond-hair", "no-young"} <= shown.keys()
    assert not any(name.startswith("no-") and name.endswith("-hair") for name in shown)
    for attribute in EDITABLE:
        assert any(values[ATTRIBUTES.index(attribute)] > 0 for values in shown.values())
    assert all(values[ATTRIBUTES.index("Male")] == 0 for values in shown.values())
    row = tiles(paint, pixels[0])
    assert [name for name, _ in row] == ["original", *shown]
    np.testing.assert_array_equal(row[0][1], pixels[0])
    np.testing.assert_array_equal(row[1][1], pixels[0])  # zeros keep the look
    drawn = dict(row)
    assert (drawn["eyeglasses"] != drawn["no-eyeglasses"]).any() and (drawn["beard"] != drawn["no-beard"]).any()
    picture = np.asarray(compose([row, row]))
    assert picture.shape == (2 * (SIDE + editing.STRIP), SIDE * len(row), 3)
    np.testing.assert_array_equal(picture[editing.STRIP : editing.STRIP + SIDE, :SIDE], pixels[0])
    strip = picture[SIDE + editing.STRIP : SIDE + 2 * editing.STRIP]
    assert all((strip[:, SIDE * i : SIDE * (i + 1)] < 128).any() for i in range(len(row)))  # each tile has its name


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = NetConfig(widths=(4, 6, 8, 8), hidden=8)
    state = {
        "config": config.to_dict(), "editor": Editor(config).state_dict(),
        "discriminator": Discriminator(COUNT, (4, 6, 8, 8)).state_dict(), "step": 7,
    }  # fmt: skip
    path = tmp_path / "run" / "stage1.pt"
    path.parent.mkdir()
    torch.save(state, path)
    return path


def test_from_a_checkpoint_to_picture_and_table(
    checkpoint: Path, tmp_path: Path, face: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(editing, "user_cache_path", lambda name: tmp_path / "cache")
    data = tmp_path / "data"
    data.mkdir()
    Image.fromarray(face).save(data / "a.png")  # the first flat photo is kept out of training
    (data / "x_attributes.csv").write_text(
        ",".join(["name", *ATTRIBUTES]) + "\na.png," + ",".join(["1", "0"] * 6 + ["1"]) + "\n"
    )
    output = tmp_path / "out" / "editing.png"
    arguments = ["--run", str(checkpoint), str(data / "a.png"), str(data / "a.png"), "-o", str(output)]
    assert editing.main([*arguments, "--data", str(data), "--crops", "5"]) == 0
    picture = Image.open(output)
    assert picture.size == (128 * (len(variants()) + 1), 2 * (128 + editing.STRIP))
    document = json.loads(output.with_suffix(".json").read_text())
    assert document["step"] == 7 and document["crops"] == 1 and document["attributes"]["Bald"]["on"]["value"] == 1
    assert "| Eyeglasses |" in capsys.readouterr().out

    assert editing.main(arguments) == 0  # without photos to measure on: the picture only
    assert capsys.readouterr().out == ""
    (data / "x_attributes.csv").unlink()
    assert editing.main([*arguments, "--data", str(data)]) == 1
    assert "has labels" in capsys.readouterr().err


def test_what_is_no_checkpoint_of_stage_one_is_refused(
    checkpoint: Path, tmp_path: Path, scene: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(scene).save(tmp_path / "scene.png")
    other = tmp_path / "stage2.pt"
    torch.save({"config": {}, "generator": {}, "discriminator": {}}, other)
    for run, code, said in (
        (other, 5, "no checkpoint of stage 1"),
        (tmp_path / "gone.pt", 1, "does not exist"),
        (checkpoint, 3, "no face found"),
    ):
        output = tmp_path / "out.png"
        assert editing.main(["--run", str(run), str(tmp_path / "scene.png"), "-o", str(output)]) == code
        assert said in capsys.readouterr().err and not output.exists()
    editor, classifier, step = load_stage1(checkpoint)
    assert not editor.training and not classifier.training and step == 7

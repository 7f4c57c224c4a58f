"""Photos protected by a method emask is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emask.cli.app import main


@pytest.fixture
def work(
    tmp_path: Path, face: np.ndarray, models: Path, monkeypatch: pytest.MonkeyPatch,
    make_block_recognizer: Callable[[Path, int], Path],
) -> Path:  # fmt: skip
    """The working directory: face.jpg, tgt.jpg, and recognizers/ with two of fold A that compare colours of blocks."""
    Image.fromarray(face).save(tmp_path / "face.jpg", quality=95)
    Image.fromarray(np.ascontiguousarray(face[:, ::-1])).save(tmp_path / "tgt.jpg", quality=95)
    folder = tmp_path / "recognizers"
    folder.mkdir()
    card = {"size": [112, 112], "mean": [127.5] * 3, "std": [127.5] * 3, "input_name": "data", "fold": "A"}
    cards = []
    for name, side in (("one", 16), ("two", 28)):
        make_block_recognizer(folder / f"{name}.onnx", side)
        cards.append({"name": name, "file": f"{name}.onnx", **card})
    (folder / "recognizers.json").write_text(json.dumps({"recognizers": cards}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMASK_RECOGNIZERS", raising=False)
    return tmp_path


def test_a_peer_masks_photos_within_the_strengths_budget(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The twin: a low strength changes less."""
    errors = []
    for strength in ("low", "high"):
        arguments = ["protect", "face.jpg", "--target", "tgt.jpg", "--method", "fgsm", "--strength", strength, "--json"]
        assert main([*arguments, "-o", strength]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["summary"]["method"] == "fgsm" and document["summary"]["refine"] == 0
        changed = np.asarray(Image.open(work / strength / "face.jpg"), np.float32)
        errors.append(float(np.sqrt(np.mean((changed - np.asarray(Image.open("face.jpg"), np.float32)) ** 2))))
    assert 0.5 < errors[0] < errors[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--method", "photoshop"], "no method named"), (["--method", "nothing"], "no method named"),
     (["--method", "fgsm", "--attribute", "eyeglasses"], "leave out --attribute"),
     (["--method", "fgsm", "--refine", "5"], "leave out --refine"),
     (["--method", "fgsm", "--recognizers", "elsewhere"], "no folder elsewhere")],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(["protect", "face.jpg", "--target", "tgt.jpg", *more]) == 2
    assert said in capsys.readouterr().err
    assert not (work / "protected").exists()


def test_a_peer_needs_white_boxes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "recognizers").rename(work / "hidden")
    if Path("../shared/recognizers").is_dir():
        pytest.skip("a usual place of recognizers lies beside this folder")
    assert main(["protect", "face.jpg", "--method", "pgd"]) == 2
    assert "--recognizers" in capsys.readouterr().err

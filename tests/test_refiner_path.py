"""The refiner is found where the manifest lists it; a folder of models may do without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from emask import weights
from emask.engine import masking_engine
from emask.engine.check import try_model
from emask.errors import ModelError


@pytest.fixture
def copied(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny models, free to be changed."""
    shutil.copytree(models, tmp_path / "models")
    monkeypatch.setenv("EMASK_MODELS_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def test_models_without_a_refiner_have_none(models: Path) -> None:
    assert weights.refiner_path() is None
    assert "refiner" not in {entry.name for entry in weights.status()}


def test_a_listed_refiner_is_found_and_checked(copied: Path) -> None:
    shutil.copy(copied / "recognizer.onnx", copied / "refiner.onnx")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["models"]["refiner"] = {"file": "refiner.onnx", "sha256": weights.sha256(copied / "refiner.onnx")}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert weights.refiner_path() == copied / "refiner.onnx"
    (entry,) = (entry for entry in weights.status() if entry.name == "refiner")
    assert entry.kind == "recognizer" and try_model(entry, "cpu").runs
    (copied / "refiner.onnx").unlink()
    with pytest.raises(ModelError, match="missing"):
        weights.refiner_path()


def test_a_damaged_refiner_does_no_harm_where_nothing_is_refined(copied: Path) -> None:
    """The twin: where masks are refined it is asked for, and its damage told."""
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["models"]["refiner"] = {"file": "refiner.onnx", "sha256": "0" * 64}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (copied / "refiner.onnx").write_bytes(b"no model")
    assert masking_engine(0, "cpu").name
    with pytest.raises(ModelError):
        masking_engine(1, "cpu")


def test_without_the_restorer_only_refining_fails_and_says_how_to_do_without(copied: Path) -> None:
    (copied / "restorer.onnx").unlink()
    assert masking_engine(0, "cpu", erase=False).name
    with pytest.raises(ModelError) as caught:
        masking_engine(1, "cpu", erase=False)
    assert "restorer.onnx" in caught.value.message and "--refine 0" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        masking_engine(1, "cpu")
    assert "--refine" not in caught.value.hint

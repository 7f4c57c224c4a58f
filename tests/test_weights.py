"""Finding models and targets, and telling good files from bad ones. Not the shipped files themselves."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from emask import weights
from emask.errors import ModelError, UsageError


@pytest.mark.parametrize("name", ["restorer", "restorer.onnx"])
def test_a_bare_name_is_looked_up_among_what_ships(models: Path, name: str) -> None:
    assert weights.locate(name) == models / "restorer.onnx"


def test_a_file_comes_before_a_shipped_name(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "restorer.onnx").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    assert weights.locate("restorer.onnx").read_bytes() == b"mine"


def test_a_folder_hides_no_shipped_model(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "restorer").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    assert weights.locate("restorer") == models / "restorer.onnx"
    with pytest.raises(ModelError, match="is a folder"):
        weights.locate("other")


def test_a_model_need_not_be_called_by_its_kind(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = json.loads((models / "manifest.json").read_text(encoding="utf-8"))
    (tmp_path / "key.onnx").write_bytes((models / "restorer.onnx").read_bytes())
    manifest["models"]["restorer"]["file"] = "key.onnx"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    monkeypatch.setenv("EMASK_MODELS_DIR", str(tmp_path))
    assert weights.locate("key") == weights.locate("key.onnx") == tmp_path / "key.onnx"


@pytest.mark.parametrize("name", ["nothing", "folder/restorer.onnx", ".", "n" * 300])
def test_a_model_that_is_not_there(models: Path, name: str) -> None:
    with pytest.raises(ModelError):
        weights.locate(name)


def test_kinds_are_read_from_the_file(models: Path, foreign_model: Path, tmp_path: Path) -> None:
    for kind in weights.KINDS:
        assert weights.kind_of(models / f"{kind}.onnx") == kind
    with pytest.raises(ModelError, match="no emask model"):
        weights.kind_of(foreign_model)
    with pytest.raises(ModelError, match="is a generator, not a restorer"):
        weights.require_kind(models / "generator.onnx", "restorer")
    newer = onnx.load(str(models / "restorer.onnx"))
    onnx.helper.set_model_props(newer, {"emask.kind": "restorer", "emask.format": "2"})
    onnx.save(newer, str(tmp_path / "newer.onnx"))
    with pytest.raises(ModelError, match="format 2"):
        weights.kind_of(tmp_path / "newer.onnx")


@pytest.mark.parametrize("content", [b"", b"text, not a model", b"\xff\xd8\xff\xe0" + bytes(200)])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        weights.kind_of(path)


def test_a_changed_file_is_noticed(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in models.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("EMASK_MODELS_DIR", str(tmp_path))
    assert weights.shipped_path("generator") == tmp_path / "generator.onnx"
    with (tmp_path / "generator.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="sha256"):
        weights.shipped_path("generator")
    assert [(entry.kind, entry.ok) for entry in weights.status()] == [
        ("generator", False),
        ("restorer", True),
        ("recognizer", True),
    ]


def test_a_file_that_cannot_be_read_has_no_sha256(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        weights.sha256(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"version": 2, "models": {}})])
def test_a_manifest_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setenv("EMASK_MODELS_DIR", str(tmp_path))
    if content is not None:
        (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"manifest\.json"):
        weights.manifest()


def test_targets(models: Path, tmp_path: Path) -> None:
    assert weights.find_target() == weights.find_target("ada") == models / "targets" / "ada.jpg"
    assert weights.find_target(models / "targets" / "ada.jpg") == models / "targets" / "ada.jpg"
    with pytest.raises(UsageError, match="no such target") as caught:
        weights.find_target("bob")
    assert "ada" in caught.value.hint
    with pytest.raises(UsageError, match="no such target file"):
        weights.find_target("bob.jpg")
    with pytest.raises(UsageError, match="folder"):
        weights.find_target(tmp_path)
    for find in (weights.find_target, lambda name: weights.find_targets([name])):
        with pytest.raises(UsageError, match="too long"):
            find("n" * 300)


def test_a_built_in_target_and_what_is_here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the working directory is never taken for the default; named, it must be clear which one is meant."""
    ada = models / "targets" / "ada.jpg"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada/1.jpg").touch()
    assert weights.find_target() == weights.built_in_target("ada") == ada
    assert weights.find_targets() == {ada: True}
    assert weights.find_target("ada") == ada  # one photo is wanted, so no folder is meant
    with pytest.raises(UsageError, match="built-in one, and") as caught:
        weights.find_targets(["ada"])
    assert "./ada" in caught.value.hint
    assert weights.find_targets(["./ada"]) == {Path("ada/1.jpg"): False}
    (tmp_path / "ada/1.jpg").rename("photo")
    (tmp_path / "ada").rmdir()
    (tmp_path / "photo").rename("ada")
    assert weights.find_targets() == {ada: True}
    for find in (weights.find_target, lambda name: weights.find_targets([name])):
        with pytest.raises(UsageError, match="built-in one, and"):
            find("ada")
    assert weights.find_target("./ada") == Path("ada")


def test_the_photos_of_a_target(models: Path, tmp_path: Path) -> None:
    ada = models / "targets" / "ada.jpg"
    assert weights.find_targets() == weights.find_targets(["ada"]) == {ada: True}
    folder = tmp_path / "person"
    folder.mkdir()
    with pytest.raises(UsageError, match="no photos"):
        weights.find_targets([folder])
    for name in ("b.JPG", "a.png", ".hidden.jpg", "notes.txt"):
        (folder / name).touch()
    (folder / "further").mkdir()
    inside = [folder / "a.png", folder / "b.JPG"]
    assert list(weights.find_targets([folder]).items()) == [(path, False) for path in inside]
    # one that is named by itself as well has to be usable
    both = weights.find_targets([str(folder / "b.JPG"), str(folder), "ada"])
    assert both == {inside[1]: True, inside[0]: False, ada: True}
    with pytest.raises(UsageError, match="no such target"):
        weights.find_targets([folder, "bob"])


def test_figures_of_the_manifest(models: Path) -> None:
    assert weights.strength("medium") == (0.3, 20.0)
    assert weights.thresholds()["0.01"] == 0.4
    with pytest.raises(UsageError):
        weights.strength("enormous")

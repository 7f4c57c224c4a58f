"""The commands from the outside: exit codes, what is printed where, and that originals and folders stay as they were.

Not tested here: the figures themselves (tests/pipeline), and the shipped models.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from emask import images
from emask.cli.app import main
from emask.cli.console import stopped
from emask.cli.files import open_streams
from emask.errors import ImageError, ModelError, UsageError
from emask.paths import Job


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def work(tmp_path: Path, face: np.ndarray, scene: np.ndarray, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: photos/ with a face in sub/face.jpg and none in scene.png, and tgt.jpg."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    Image.fromarray(face).save(tmp_path / "photos" / "sub" / "face.jpg", quality=95)
    Image.fromarray(scene).save(tmp_path / "photos" / "scene.png")
    Image.fromarray(np.ascontiguousarray(face[:, ::-1])).save(tmp_path / "tgt.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def huge_png() -> bytes:
    """A PNG header that promises 30,000 x 30,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))



def test_the_three_commands_as_the_manual_writes_them(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals = snapshot(work / "photos")
    assert main(["protect", "photos/", "--target", "tgt.jpg", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "sub/face.jpg -> protected/sub/face.jpg" in out.replace(os.sep, "/")
    assert "target" in out and "dB" in out and "1 protected, 1 without a face; ONNX Runtime CPU" in out
    assert "no face found" in err and "scene.png" in err
    assert list(snapshot(work / "protected")) == [str(Path("sub/face.jpg"))]
    assert Image.open("protected/sub/face.jpg").size == (260, 260)

    assert main(["erase", "protected/", "--key", "restorer.onnx", "--reference", "photos/sub/face.jpg"]) == 0
    out, err = capsys.readouterr()
    assert "protected to restored" in out and "reference" in out and not err
    assert (work / "erased" / "sub" / "face.jpg").is_file()

    assert main(["verify", "photos/sub/face.jpg", "protected/sub/face.jpg", "--after", "jpeg:75,resize:200"]) == 0
    out, err = capsys.readouterr()
    assert "cosine" in out and "FAR 0.001" in out and not err
    assert snapshot(work / "photos") == originals


def test_a_target_by_several_photos(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of photos of one person: what shows nobody is left out with a word."""
    person = work / "person"
    person.mkdir()
    picture = Image.open("tgt.jpg")
    picture.save(person / "1.jpg", quality=90)
    picture.point(lambda value: 40 + value // 2).save(person / "2.jpg", quality=90)
    shutil.copy("photos/scene.png", person / "3.png")
    command = ["protect", "photos/sub/face.jpg", "--json", "-o"]
    assert main([*command, "several", "--target", "person"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)["summary"]
    assert [Path(name).name for name in summary["target_photos"]] == ["1.jpg", "2.jpg"]
    assert "3.png left out: no face found" in captured.err
    assert main([*command, "repeated", "--target", "person/1.jpg", "--target", "person/2.jpg"]) == 0
    assert not capsys.readouterr().err
    assert main([*command, "single", "--target", "person/1.jpg"]) == 0
    several, repeated, single = ((work / name / "face.jpg").read_bytes() for name in ("several", "repeated", "single"))
    assert several == repeated != single
    for output, said in (("person/1.jpg", "overwrite an original"), ("person", "among the target's photos")):
        capsys.readouterr()
        assert main([*command, output, "--target", "person", "--force"]) == 2
        assert said in capsys.readouterr().err
    assert main([*command, "none", "--target", ""]) == 2
    assert "--target is empty" in capsys.readouterr().err


def test_photos_of_two_people_are_no_target(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a threshold that this recognizer's similarity of two pictures cannot reach; the twin is as it ships."""
    Image.open("tgt.jpg").point(lambda value: 40 + value // 2).save("other.jpg")
    command = ["protect", "photos/sub/face.jpg", "--target", "tgt.jpg", "--target", "other.jpg", "-o"]
    assert main([*command, "fine"]) == 0
    monkeypatch.setattr("emask.weights.thresholds", lambda: {"0.1": 1.1, "0.01": 1.2, "0.001": 1.3})
    assert main([*command, "refused"]) == 2
    assert "tgt.jpg and other.jpg are unlike" in capsys.readouterr().err and not (work / "refused").exists()


def test_refine_changes_the_mask(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for steps in ("0", "2"):
        arguments = ["protect", "photos/sub/face.jpg", "--json", "--refine", steps, "-o", f"refined-{steps}"]
        assert main(arguments) == 0
        assert json.loads(capsys.readouterr().out)["summary"]["refine"] == int(steps)
        files.append((work / f"refined-{steps}/face.jpg").read_bytes())
    assert files[0] != files[1]


def test_json_is_one_document_and_resume_skips(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protect", "photos", "--json", "--strength", "low", "--device", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["version"] == 1 and document["command"] == "protect"
    by_name = {Path(entry["source"]).name: entry for entry in document["files"]}
    assert by_name["scene.png"]["status"] == "no-face" and by_name["scene.png"]["output"] is None
    (face,) = by_name["face.jpg"]["faces"]
    assert -1 <= face["target_after"] <= 1 and face["psnr"] > 20 and face["verdict"]
    assert document["summary"]["done"] == 1 and document["summary"]["engine"] == "ONNX Runtime CPU"
    assert document["summary"]["refine"] == 0  # what the manifest says of this strength: nothing

    before = (work / "protected/sub/face.jpg").stat().st_mtime_ns
    assert main(["protect", "photos", "--json", "--resume"]) == 0
    statuses = {entry["status"] for entry in json.loads(capsys.readouterr().out)["files"]}
    assert statuses == {"skipped", "no-face"}
    assert main(["protect", "photos/sub/face.jpg", "-o", "protected/sub"]) == 1
    captured = capsys.readouterr()
    assert "exists already" in captured.err and "hint: use --force" in captured.err
    assert (work / "protected/sub/face.jpg").stat().st_mtime_ns == before
    assert main(["protect", "photos/sub/face.jpg", "-o", "protected/sub", "--force"]) == 0
    assert (work / "protected/sub/face.jpg").stat().st_mtime_ns > before


def test_attributes_change_the_file_and_are_recorded(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def protected(*words: str) -> tuple[bytes, dict[str, int]]:
        arguments = [word for name in words for word in ("--attribute", name)]
        assert main(["protect", "photos/sub/face.jpg", "--force", "--json", *arguments]) == 0
        document = json.loads(capsys.readouterr().out)
        return (work / "protected/face.jpg").read_bytes(), document["summary"]["attributes"]

    plain, recorded = protected()
    assert recorded == {}
    assert protected("none") == (plain, {})  # the must-fail twin of what follows: choosing nothing changes nothing
    glasses, recorded = protected("Eyeglasses")
    assert glasses != plain and recorded == {"Eyeglasses": 1}
    blond, recorded = protected("blond hair", "no-eyeglasses")
    assert blond not in (glasses, plain)
    assert recorded == {"Black_Hair": -1, "Blond_Hair": 1, "Brown_Hair": -1, "Eyeglasses": -1}


# what is put into photos/bad.jpg, the arguments, the exit code, and what the one line says
BAD_PHOTOS = [
    ("text", b"not a picture at all\n" * 20, 1, "is not a PNG, JPEG or WebP picture"),
    ("empty", b"", 1, "is empty"),
    ("truncated", None, 1, "is truncated"),
    ("corrupt", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, 1, "bad.jpg"),
    ("huge", huge_png(), 1, "is too large"),
]


@pytest.mark.parametrize(("name", "content", "code", "said"), BAD_PHOTOS, ids=[case[0] for case in BAD_PHOTOS])
def test_a_bad_photo_is_one_line_and_the_rest_is_done(
    work: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, code: int, said: str
) -> None:
    good = (work / "photos/sub/face.jpg").read_bytes()
    bad = work / "photos" / "bad.jpg"
    bad.write_bytes(good[: len(good) // 2] if content is None else content)
    originals = snapshot(work / "photos")
    assert main(["protect", "photos"]) == code
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and said in errors[0] and "bad.jpg" in errors[0]
    assert "Traceback" not in captured.err
    assert list(snapshot(work / "protected")) == [str(Path("sub/face.jpg"))]
    assert snapshot(work / "photos") == originals


LONG = "n" * 300  # longer than the name of a file may be

# arguments, exit code, what the error says; {folder} is the working directory
REFUSED = [
    (["protect", "nowhere.jpg"], 2, "no such file"),
    (["protect", LONG], 2, "too long"),
    (["protect", "photos/sub/face.jpg", "-o", f"{LONG}.jpg"], 1, "too long"),
    (["protect", "photos", "-o", LONG], 1, "too long"),
    (["protect", "-", "-o", "new/"], 2, "is a folder"),
    (["protect", "-", "--target", "tgt.jpg", "-o", "tgt.jpg", "--force"], 2, "overwrite an original"),
    (["protect", "empty"], 2, "no photos in"),
    (["protect"], 2, ""),
    (["protect", ""], 2, "is empty"),
    (["protect", "photos", "-o", ""], 2, "is empty"),
    (["protect", "photos/sub/face.jpg", "-o", "out.gif"], 2, "keep their format"),
    (["protect", "-", "-o", "out.gif"], 2, "keep their format"),
    (["protect", "photos", "-o", "out.jpg"], 2, "keep their format"),
    (["protect", "photos", "--target", "nobody.jpg"], 2, "no such target"),
    (["protect", "photos", "--target", "nobody"], 2, "no such target"),
    (["protect", "photos", "--target", "two.png"], 2, "2 faces"),
    (["protect", "photos", "--target", "photos/scene.png"], 3, "no face found in the target"),
    (["protect", "photos", "--faces", "some"], 2, "--faces"),
    (["protect", "photos", "--attribute", "top-hat"], 2, "hint: choose among bangs, black-hair"),
    (["protect", "photos", "--attribute", "Male"], 2, "change who people see"),
    (["protect", "photos", "--attribute", "eyeglasses", "--attribute", "no-eyeglasses"], 2, "contradicts"),
    (["protect", "photos", "--attribute", "none", "--attribute", "bangs"], 2, "contradict"),
    (["protect", "photos", "--strength", "huge"], 2, "strength"),
    (["protect", "photos", "--refine", "-1"], 2, "refine"),
    (["protect", "photos", "-o", "tgt.jpg"], 2, "is a file"),
    (["protect", "photos", "-o", "photos"], 2, "input folder"),
    (["protect", "photos/sub/face.jpg", "-o", "photos/sub", "--force"], 2, "overwrite an original"),
    (["protect", "photos/sub/face.jpg", "-o", "link.jpg", "--force"], 2, "overwrite an original"),
    (["protect", "photos/sub/face.jpg", "-o", "hard.jpg", "--force"], 2, "overwrite an original"),
    (["protect", "photos/sub/face.jpg", "--target", "tgt.jpg", "-o", "tgt.jpg", "--force"], 2, "overwrite an original"),
    (["protect", "photos/sub/face.jpg", "-o", "face.png"], 2, "keeps its format"),
    (["protect", "photos/sub/face.jpg", "photos2/face.jpg"], 2, "both be written"),
    (["protect", "photos/scene.png"], 3, ""),
    (["protect", "-", "photos"], 2, "cannot be mixed"),
    (["protect", "photos", "-o", "-"], 2, "only one photo"),
    (["protect", "photos/sub/face.jpg", "-o", "-", "--json"], 2, "--json"),
    (["protect", "photos", "--quality", "101"], 2, "quality"),
    (["erase", "photos"], 2, "--key"),
    (["erase", "photos", "--key", "nokey.onnx"], 5, "no such model"),
    (["erase", "photos", "--key", "tgt.jpg"], 5, "no ONNX model"),
    (["erase", "photos", "--key", "generator.onnx"], 5, "not a restorer"),
    (["erase", "photos", "--key", "foreign.onnx"], 5, "no emask model"),
    (["erase", "photos", "--key", "restorer", "--reference", "nobody.jpg"], 2, "reference"),
    (["erase", "photos", "--key", "restorer", "--reference", LONG], 2, "too long"),
    (["verify", "tgt.jpg", "nobody.jpg"], 2, "no such file"),
    (["verify", "tgt.jpg", LONG], 2, "too long"),
    (["verify", "tgt.jpg", "photos/scene.png"], 3, "no face found"),
    (["verify", "tgt.jpg", "tgt.jpg", "--after", "spin:3"], 2, "rotate"),
    (["verify", "tgt.jpg", "tgt.jpg", "--after", "jpeg:0"], 2, "out of range"),
    (["verify", "tgt.jpg", "tgt.jpg", "--after", "jpeg:x"], 2, "number"),
    (["verify", "tgt.jpg", "tgt.jpg", "--recognizer", "missing.onnx"], 5, "missing.onnx"),
    (["frobnicate"], 2, "frobnicate"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_what_cannot_be_done_is_refused(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    two_faces: np.ndarray,
    foreign_model: Path,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    (work / "empty").mkdir()
    (work / "photos2").mkdir()
    face = work / "photos/sub/face.jpg"
    (work / "photos2/face.jpg").write_bytes(face.read_bytes())
    (work / "link.jpg").symlink_to(face)
    (work / "hard.jpg").hardlink_to(face)
    (work / "foreign.onnx").write_bytes(foreign_model.read_bytes())
    Image.fromarray(two_faces).save(work / "two.png")
    before = snapshot(work)
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert said in captured.err and "Traceback" not in captured.err
    if said:
        assert len([line for line in captured.err.splitlines() if line.startswith("error:")]) == 1
    assert snapshot(work) == before


def test_a_key_is_never_replaced(work: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(models / "restorer.onnx", "key.onnx")
    for key, output in (("key.onnx", "key.onnx"), ("restorer", str(models / "restorer.onnx"))):
        assert main(["erase", "-", "--key", key, "-o", output, "--force"]) == 2
        assert "overwrite an original" in capsys.readouterr().err


def test_a_name_that_is_no_text(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"scene-\xff.jpg")
    try:
        shutil.copy("photos/sub/face.jpg", name)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert main(["protect", name]) == 0
    assert "scene-\\udcff.jpg ->" in capsys.readouterr().out
    assert main(["protect", name, "--json", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["source"] == name


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_below_standard_output(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["models", "list"], ["models", "list", "--json"]):
        with open("/dev/full", "w", encoding="utf-8") as full:  # closing it must not raise what was reported
            monkeypatch.setattr(sys, "stdout", full)
            assert main(command) == 1
        assert capsys.readouterr().err == "error: No space left on device\n"
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        _, write = open_streams([Job(Path("a.jpg"), None)], "-")
        with pytest.raises(ImageError, match="standard output: No space left"):
            write(b"picture")


def test_closed_streams(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `<&-` and `>&-` leave them."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["models", "list", "--json"]) == 0
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="closed"):
        open_streams([Job(None, None)], "-")


def test_closed_standard_error(work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `2>&-` leaves it: what belongs there does not go to standard output, which carries the product."""
    for arguments, code in ((["protect", "nowhere.jpg"], 2), (["protect", "photos", "--json"], 0)):
        monkeypatch.setattr(sys, "stderr", None)
        assert main(arguments) == code
        out = capsys.readouterr().out
        assert not out if code else json.loads(out)["summary"]["done"] == 1


def test_the_shipped_recognizer_has_a_name(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened in the same way as where none is named; the twin is a manifest that has none."""
    verify = ["verify", "tgt.jpg", "photos/sub/face.jpg", "--json"]
    assert main(verify) == main([*verify, "--recognizer", "emask", "--recognizer", "emask"]) == 0
    decoder, out, documents = json.JSONDecoder(), capsys.readouterr().out, []
    while out.strip():
        document, end = decoder.raw_decode(out.lstrip())
        documents.append(document["comparisons"])
        out = out.lstrip()[end:]
    assert documents[1] == documents[0] * 2
    (work / "models").mkdir()
    (work / "models/manifest.json").write_text(json.dumps({"version": 1, "models": {}}))
    monkeypatch.setenv("EMASK_MODELS_DIR", str(work / "models"))
    assert main([*verify, "--recognizer", "emask"]) == 5
    assert "lists no recognizer" in capsys.readouterr().err


def test_a_public_key_is_called_so(
    work: Path, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the file is called; the twins are a manifest that says nothing, and another restorer."""
    shutil.copytree(models, work / "models")
    monkeypatch.setenv("EMASK_MODELS_DIR", str(work / "models"))
    shutil.copy(work / "models/restorer.onnx", work / "key.onnx")
    erase = ["erase", "tgt.jpg", "--force", "--key", "key.onnx"]
    assert main(erase) == 0 and "public" not in capsys.readouterr().err
    manifest = json.loads((work / "models/manifest.json").read_text())
    manifest["models"]["restorer"]["public"] = True
    (work / "models/manifest.json").write_text(json.dumps(manifest))
    assert main(erase) == 0
    assert "note: key.onnx is a public demonstration key" in capsys.readouterr().err
    other = onnx.load(work / "key.onnx")
    other.doc_string = "another file"
    onnx.save(other, work / "key.onnx")
    assert main(erase) == 0 and "public" not in capsys.readouterr().err


def test_earlier_results_are_worked_on_only_where_that_makes_sense(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of results below the photos, protect takes none and erase those of protect."""
    for name in ("protected", "erased"):
        (work / "photos" / name).mkdir()
        (work / "photos" / name / "text.jpg").write_text("no picture")
    monkeypatch.chdir(work / "photos")
    assert main(["protect", "."]) == 0
    assert "note: folders of earlier results are left out unless named: erased" in capsys.readouterr().err
    assert main(["erase", ".", "--key", "restorer", "-o", str(work / "out")]) == 1
    err = capsys.readouterr().err
    assert f"{Path('protected/text.jpg')} is not a PNG" in err and "left out unless named: erased" in err
    assert (work / "out/protected/sub/face.jpg").is_file()


def test_memory_that_runs_out_is_one_photos_failure(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the photo it runs out for; where it does for each, the exit code tells."""
    from emask.pipeline.protect import paste_change

    Image.open("tgt.jpg").resize((300, 300)).save("photos/large.jpg")
    limit = 260

    def paste(pixels: np.ndarray, *rest: object) -> np.ndarray:
        if len(pixels) > limit:
            raise MemoryError
        return paste_change(pixels, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("emask.pipeline.protect.paste_change", paste)
    assert main(["protect", "photos"]) == 1
    captured = capsys.readouterr()
    assert f"error: {Path('photos/large.jpg')}: out of memory\nhint: " in captured.err
    assert "1 protected, 1 without a face, 1 failed" in captured.out
    assert list(snapshot(work / "protected")) == [str(Path("sub/face.jpg"))]
    limit = 0
    assert main(["protect", "photos", "--force"]) == 1
    assert "0 protected, 1 without a face, 2 failed" in capsys.readouterr().out


# where a run with one photo that failed is stopped, what by, the exit code, and what is said
STOPS = [
    ("emask.weights.thresholds", MemoryError(), 1, "out of memory"),
    ("emask.weights.thresholds", PermissionError(13, "Permission denied", "here"), 1, "here: Permission denied"),
    ("emask.weights.thresholds", ModelError("no thresholds"), 5, "no thresholds"),
    ("emask.weights.thresholds", KeyboardInterrupt(), 130, "interrupted"),
    ("emask.pipeline.batch.encode_photo", KeyboardInterrupt(), 130, "interrupted"),
]


@pytest.mark.parametrize(("place", "error", "code", "said"), STOPS, ids=["memory", "file", "model", "start", "Ctrl-C"])
def test_what_stops_a_run_is_a_document_too(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    place: str, error: BaseException, code: int, said: str,
) -> None:  # fmt: skip
    """With what was told of before; the twin is a broken pipe, which nobody reads from."""
    (work / "photos/a.jpg").write_text("no picture")

    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(place, stop)
    assert main(["protect", "photos", "--json"]) == code
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["version"] == 1 and document["command"] == "protect"
    told = [("a.jpg", "failed")] if "batch" in place else []
    assert [(Path(file["source"]).name, file["status"]) for file in document["files"]] == told
    assert document["summary"]["exit_code"] == code and said in document["summary"]["error"]["message"]
    assert captured.err.count(f"error: {said}") == 1
    error = BrokenPipeError()
    assert main(["protect", "photos", "--json"]) == 1
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "advised"),
    [
        ("protect photos", True), ("erase photos --key k", True), ("train --stage all", True),
        ("train --stage=2", True), ("bench --data d -o out", True), ("bench --output=out", True),
        ("", False), ("verify a b", False), ("train --stage refiner", False), ("train --stage=recognizer", False),
        ("bench --data d", False), ("bench robustify -o out", False), ("export runs/default -o out", False),
    ],
)  # fmt: skip
def test_resume_is_advised_where_it_is_an_option(words: str, advised: bool) -> None:
    assert ("--resume" in stopped(KeyboardInterrupt(), words.split()).hint) == advised


def test_nothing_is_replaced_in_a_folder_that_holds_the_photos(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What has a result's name there may be an original. The twins: --resume, which replaces nothing; other folders."""
    shutil.copy("tgt.jpg", "photos/face.jpg")
    before = snapshot(work)
    erase = ["erase", "photos/sub", "--key", "restorer", "-o", "photos", "--force"]
    protect = ["protect", "photos/sub", "-o", "photos"]
    for arguments in (protect, [*protect, "--force"], [*protect, "--force", "--resume"], erase):
        assert main(arguments) == 2
        assert "may be an original" in capsys.readouterr().err
    assert main(["protect", "photos/sub", "-o", "photos", "--resume"]) == 0
    assert snapshot(work) == before
    assert main(["protect", "photos/sub", "-o", "photos/other"]) == 0
    assert main(["protect", "photos/sub", "-o", "photos/other", "--force"]) == 0


def test_a_link_to_itself_is_no_folder(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "loop").symlink_to("loop")
    assert main(["protect", "photos", "-o", "loop"]) == 1
    assert "cannot write loop" in capsys.readouterr().err


def test_links_to_folders_are_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "photos/away").symlink_to(work)
    assert main(["protect", "photos"]) == 0
    assert "note: links to folders are not followed: photos" in capsys.readouterr().err


def test_a_damaged_shipped_model_is_refused(
    work: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in models.glob("*.*"):
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "generator.onnx").write_bytes((models / "generator.onnx").read_bytes()[:-3] + b"abc")
    monkeypatch.setenv("EMASK_MODELS_DIR", str(broken))
    assert main(["protect", "photos", "--target", "tgt.jpg"]) == 5
    assert "sha256" in capsys.readouterr().err
    assert main(["models", "check"]) == 5
    assert "WRONG" in capsys.readouterr().out
    assert main(["models", "list"]) == 0
    (broken / "manifest.json").unlink()
    assert main(["models", "list"]) == 5


def test_models_list_and_check(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert all(kind in out for kind in ("generator", "restorer", "recognizer")) and out.count("sha256 ok") == 3
    assert main(["models", "check", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["ok"] for entry in document["files"]] == [True] * 3
    assert [entry["runs"] for entry in document["files"]] == [True] * 3


@pytest.mark.parametrize("number", ["ENOSPC", "EROFS", "EACCES"])
def test_a_folder_that_takes_no_file(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    import errno

    code = getattr(errno, number)

    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(images.os, "fsync", refuse)
    originals = snapshot(work / "photos")
    assert main(["protect", "photos/sub/face.jpg"]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2 and "cannot write protected" in err and "hint:" in err
    assert snapshot(work / "protected") == {} and snapshot(work / "photos") == originals


def test_a_read_only_output_folder_is_seen_before_the_work(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = work / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write anywhere")
    assert main(["protect", "photos", "-o", "locked/out"]) == 1
    assert "cannot write into" in capsys.readouterr().err and not list(locked.iterdir())


def test_interrupted_while_writing(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(images.os, "fsync", stop)
    assert main(["protect", "photos"]) == 130
    err = capsys.readouterr().err
    assert err.count("interrupted") == 1 and "hint: run again with --resume" in err
    assert snapshot(work / "protected") == {}


def test_standard_input_to_standard_output(
    work: Path, face: np.ndarray, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(face).save(buffer, format="PNG")

    class Stdin:
        """Standard input as a pipe has it."""

        def __init__(self) -> None:
            self.buffer = io.BytesIO(buffer.getvalue())

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Stdin())
    assert main(["protect", "-"]) == 0
    out, err = capfdbinary.readouterr()
    written = np.asarray(Image.open(io.BytesIO(out)))
    assert written.shape == face.shape and (written != face).any()
    assert b"1 protected" in err


def test_help_and_version_load_nothing_heavy() -> None:
    script = (
        "import sys, contextlib, io\n"
        "from emask.cli.app import main\n"
        "for words in (['--help'], ['--version'], *([c, '--help'] for c in 'protect erase verify models'.split())):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        assert main(words) == 0, words\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'PIL', 'numpy', 'facenet_pytorch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

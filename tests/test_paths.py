"""Which output each photo gets, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from emask.errors import ModelError, UsageError
from emask.paths import OTHER_SUFFIXES, PHOTO_FORMATS, _ignores_case, is_there, plan


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/a.jpg, photos/sub/b.PNG, photos/notes.txt, photos/.hidden.jpg; other/a.jpg."""
    for name in ("photos/a.jpg", "photos/sub/b.PNG", "photos/notes.txt", "photos/.hidden.jpg", "other/a.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(inputs: list[str], output: str | None = None) -> list[str]:
    return [Path(job.output_name).as_posix() for job in plan(inputs, output, "protected")]


def test_where_results_go(here: Path) -> None:
    assert outputs(["photos"]) == outputs(["photos/"]) == ["protected/a.jpg", "protected/sub/b.PNG"]
    assert outputs(["photos/sub"]) == ["photos/protected/b.PNG"]
    assert outputs(["photos/a.jpg"]) == ["protected/a.jpg"]
    assert outputs(["photos/a.jpg"], "out") == ["out/a.jpg"]
    assert outputs(["photos/a.jpg"], "new.jpg") == ["new.jpg"]
    assert outputs(["photos/a.jpg", "photos/a.jpg"]) == ["protected/a.jpg"]
    assert outputs(["-"]) == ["-"] and outputs(["-"], "x.jpg") == ["x.jpg"] and outputs(["photos/a.jpg"], "-") == ["-"]


def test_the_output_folder_is_not_searched(here: Path) -> None:
    (here / "photos" / "out").mkdir()
    (here / "photos" / "out" / "a.jpg").write_bytes(b"done")
    assert outputs(["photos"], "photos/out") == ["photos/out/a.jpg", "photos/out/sub/b.PNG"]


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        ([], None),
        (["missing.jpg"], None),
        (["photos", "other"], None),
        (["photos"], "other/a.jpg"),
        (["photos"], "photos"),
        (["photos/a.jpg"], "photos"),
        (["photos/a.jpg"], "photos/a.jpg"),
        (["-", "photos"], None),
        (["photos"], "-"),
        (["-"], "photos"),
        (["-"], "new/"),
        (["n" * 300], None),
        ([""], None),
        (["photos", ""], "out"),
        (["photos/a.jpg"], ""),
    ],
)
def test_refused(here: Path, inputs: list[str], output: str | None) -> None:
    with pytest.raises(UsageError):
        plan(inputs, output, "protected")


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["photos/a.jpg"], "out.gif"),
        (["-"], "out.gif"),
        (["photos"], "out.jpg"),
        (["photos/a.jpg", "photos/sub/b.PNG"], "out.HEIC"),
        (["photos/a.jpg", "photos/sub/b.PNG"], "out.jpg"),
    ],
)
def test_a_pictures_name_is_no_folder(here: Path, inputs: list[str], output: str) -> None:
    """The twin: a folder of that name that is there, or one that is called a folder."""
    with pytest.raises(UsageError, match="keep their format") as caught:
        plan(inputs, output, "protected")
    assert ".jpg" in caught.value.hint
    if inputs != ["-"]:
        assert plan(inputs, f"{output}/", "protected")[0].output == Path(output, "a.jpg")
        Path(output).mkdir()
        assert plan(inputs, output, "protected")[0].output == Path(output, "a.jpg")


def test_names_that_differ_in_case_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused where the file system of the output takes one for the other; the twin is one that does not."""
    (here / "photos/A.jpg").write_bytes(b"x")
    if len(list((here / "photos").glob("*.jpg"))) < 2:
        pytest.skip("this file system takes A.jpg for a.jpg")
    assert not _ignores_case(here / "photos/to/be/made")
    before = sorted(here.rglob("*"))
    assert outputs(["photos"], "out") == ["out/A.jpg", "out/a.jpg", "out/sub/b.PNG"]
    assert sorted(here.rglob("*")) == before
    with pytest.raises(UsageError, match="both be written") as caught:  # whatever the case of others
        plan(["photos", "other/a.jpg"], "out", "protected")
    assert "its own -o" in caught.value.hint
    monkeypatch.setattr("emask.paths._ignores_case", lambda folder: True)
    with pytest.raises(UsageError, match=r"A\.jpg and photos.a\.jpg would both") as caught:
        plan(["photos"], "out", "protected")
    assert "rename one" in caught.value.hint


@pytest.mark.parametrize(
    ("inputs", "output", "among"),
    [
        (["photos/sub"], "photos", True),
        (["photos/sub/b.PNG"], "photos", True),
        (["other", "photos/sub"], ".", True),
        (["photos/sub"], "link", True),
        (["photos"], "out", False),
        (["photos"], "photos/out", False),
        (["photos/sub"], None, False),
        (["photos"], "other", False),
    ],
)
def test_a_folder_that_holds_the_photos_is_told(
    here: Path, inputs: list[str], output: str | None, among: bool
) -> None:
    (here / "link").symlink_to("photos")
    assert {job.among for job in plan(inputs, output, "protected")} == {among}


def test_the_target_is_never_written_over(here: Path) -> None:
    with pytest.raises(UsageError, match="overwrite"):
        plan(["photos/a.jpg"], "other", "protected", keep=[Path("other/a.jpg")])


def test_standard_input_replaces_nothing(here: Path) -> None:
    with pytest.raises(UsageError, match="overwrite"):
        plan(["-"], "other/a.jpg", "protected", keep=[Path("other/a.jpg")])
    before = os.dup(0)
    try:
        with Path("photos/a.jpg").open() as file:
            os.dup2(file.fileno(), 0)
        assert outputs(["-"], "other/a.jpg") == ["other/a.jpg"]
        with pytest.raises(UsageError, match="overwrite"):
            plan(["-"], "photos/a.jpg", "protected")
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_a_photo_named_twice_is_done_once(here: Path) -> None:
    both = ["protected/a.jpg", "protected/sub/b.PNG"]
    for again in ("photos", "photos/a.jpg", str(here / "photos"), str(here / "photos/sub/b.PNG")):
        assert outputs(["photos", again], "protected") == both
    assert outputs(["photos/a.jpg", "photos"]) == both
    with pytest.raises(UsageError, match="both be written"):
        plan(["photos", "other/a.jpg"], None, "protected")


def test_what_cannot_be_looked_at_is_one_line(here: Path) -> None:
    assert is_there(here) and not is_there(here / "missing") and not is_there(here / "photos/a.jpg/b")
    with pytest.raises(ModelError, match="too long"):
        is_there(Path("n" * 300), ModelError)


def test_a_folder_that_cannot_be_read_is_not_left_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", path)
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match="sub: Permission denied"):
        plan(["photos"], None, "protected")


def test_links(here: Path) -> None:
    """Those to folders are not followed, which is told once; one to itself is left to whoever reads the photo."""
    told: list[str] = []
    (here / "photos/friends").symlink_to(here / "other")
    (here / "photos/loop.jpg").symlink_to("loop.jpg")
    jobs = plan(["photos", "photos/"], None, "protected", tell=told.append)
    assert [job.output_name for job in jobs] == [
        str(Path("protected", name)) for name in ("a.jpg", "loop.jpg", "sub/b.PNG")
    ]
    assert told == [f"links to folders are not followed: {Path('photos/friends')}"]
    assert plan(["photos/a.jpg"], "photos/loop.jpg", "protected") and plan(["photos"], "photos/loop.jpg/", "protected")


def test_earlier_results_are_no_photos(here: Path) -> None:
    """Unless their folder is named; the twin is a search that leaves nothing out."""
    for name in ("photos/protected/a.jpg", "photos/sub/erased/b.png"):
        (here / name).parent.mkdir()
        (here / name).write_bytes(b"x")
    told: list[str] = []

    def found(*inputs: str) -> list[str]:
        told.clear()
        jobs = plan(inputs, "out", "protected", leave_out=("protected", "erased"), tell=told.append)
        return [Path(job.source_name).as_posix() for job in jobs]

    originals = ["photos/a.jpg", "photos/sub/b.PNG"]
    assert found("photos") == originals
    assert told == [
        "folders of earlier results are left out unless named: "
        f"{Path('photos/protected')}, {Path('photos/sub/erased')}"
    ]
    assert found("photos/protected") == ["photos/protected/a.jpg"] and not told
    assert set(found("photos", "photos/protected", "photos/sub/erased")) == {
        *originals, "photos/protected/a.jpg", "photos/sub/erased/b.png",
    } and not told  # fmt: skip
    assert len(plan(["photos"], "out", "protected")) == 4


def test_pictures_of_other_formats_are_told(here: Path) -> None:
    told: list[str] = []
    for name in ("c.HEIC", "d.heic", "sub/e.tif", ".f.bmp", "g.jfif"):
        (here / "photos" / name).write_bytes(b"x")
    jobs = plan(["photos", "photos/"], "out", "protected", tell=told.append)
    assert [Path(job.output_name).name for job in jobs] == ["a.jpg", "g.jfif", "b.PNG"]
    assert told == ["pictures that are not PNG, JPEG or WebP are left out: 2 .heic, 1 .tif"]


def test_endings_stand_for_formats_that_can_be_read() -> None:
    from PIL import Image

    Image.init()
    for suffix, file_format in PHOTO_FORMATS.items():
        assert file_format in ("JPEG", "PNG", "WEBP") and Image.EXTENSION[suffix] == file_format
    assert not OTHER_SUFFIXES & set(PHOTO_FORMATS)

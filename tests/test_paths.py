"""Which output each photo gets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from emask.errors import UsageError
from emask.paths import PHOTO_SUFFIXES, plan


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
    ],
)
def test_refused(here: Path, inputs: list[str], output: str | None) -> None:
    with pytest.raises(UsageError):
        plan(inputs, output, "protected")


def test_the_target_is_never_written_over(here: Path) -> None:
    with pytest.raises(UsageError, match="overwrite"):
        plan(["photos/a.jpg"], "other", "protected", keep=[Path("other/a.jpg")])


def test_endings_are_those_of_the_image_code() -> None:
    from emask.images import SUFFIXES

    assert set(SUFFIXES) == PHOTO_SUFFIXES

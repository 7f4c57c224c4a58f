"""`emask bench` and the commands below it: the first word decides, options stay required, help shows both."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from emask.bench.metrics import rate
from emask.bench.report import REQUIRED
from emask.cli.app import main
from emask.cli.group import CommandGroup

COMMANDS = ("report", "compare", "paper", "robustify")


@pytest.fixture
def calls() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
def app(calls: list[tuple[Any, ...]]) -> typer.Typer:
    """A group that is a command with a required option, and has one command below it."""
    app = typer.Typer()
    group = typer.Typer(cls=CommandGroup, invoke_without_command=True, no_args_is_help=True)

    @group.callback()
    def measure(data: str = typer.Option(...), faces: int = 3) -> None:
        calls.append(("measure", data, faces))

    @group.command("report")
    def report(file: str, data: str = "none") -> None:
        calls.append(("report", file, data))

    @app.command("other")
    def other() -> None:
        calls.append(("other",))

    app.add_typer(group, name="bench")
    return app


def run(app: typer.Typer, *arguments: str) -> tuple[int, str]:
    """Exit code and the error's message."""
    try:
        return app(args=list(arguments), prog_name="t", standalone_mode=False) or 0, ""
    except Exception as error:
        return getattr(error, "exit_code", -1), error.format_message()  # type: ignore[attr-defined]


def test_the_first_word_decides(app: typer.Typer, calls: list[tuple[Any, ...]]) -> None:
    """The command's required option is asked of the command alone, and each runs once and alone."""
    assert run(app, "bench", "--data", "d", "--faces", "5") == (0, "")
    assert run(app, "bench", "report", "f") == (0, "")
    assert run(app, "bench", "report", "--data", "own", "f") == (0, "")
    assert run(app, "bench", "--data", "report") == (0, "")  # a value is no command
    assert calls == [("measure", "d", 5), ("report", "f", "none"), ("report", "f", "own"), ("measure", "report", 3)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--faces", "5"], "Missing option '--data'"),
        (["reprot", "f"], "No such command 'reprot'"),
        (["--data", "d", "report", "f"], "it is a command of its own: t bench report"),
        (["--data", "d", "elsewhere"], "unexpected argument 'elsewhere'"),
        (["report"], "Missing argument 'FILE'"),
    ],
)
def test_mistakes_are_told_and_nothing_runs(
    app: typer.Typer, calls: list[tuple[Any, ...]], arguments: list[str], said: str
) -> None:
    code, message = run(app, "bench", *arguments)
    assert code == 2 and said.lower() in message.lower()
    assert calls == []


def test_help_shows_options_and_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["bench", "--help"]) == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "emask bench [OPTIONS] | COMMAND [ARGS]..." in text
    assert "--data" in text and "--json" in text and "[required]" in text
    assert all(re.search(rf"\b{name} [A-Z]", text) for name in COMMANDS)
    for name in COMMANDS:
        assert main(["bench", name, "--help"]) == 0
        assert f"emask bench {name}" in capsys.readouterr().out


def test_help_keeps_defaults_told_in_brackets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["bench", "--help"]) == 0
    assert "[default: those of the other fold]" in capsys.readouterr().out


def test_required_options_are_missed_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--recognizers", "somewhere"]) == 2
    assert capsys.readouterr().err == "error: Missing option '--data'.\nhint: see emask bench --help\n"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """A bench.json that has just what these commands read."""
    quality = {"psnr_mean": 33.9}
    judge = {"impersonation_given": {"0.01": rate([True, False]).to_json()}}  # type: ignore[arg-type]
    content = {
        **dict.fromkeys(REQUIRED, {}),
        "faces": 2,
        "clean": {"after_jpeg": quality, "not_found": 0},
        "unseen": {"not_found": 0, "before_jpeg": quality, "after_jpeg": quality, "recognizers": {"j": judge}},
        "unseen_targets": [{"name": "x"}],
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_report_compare_and_paper(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the programs of the same names print, who are tested by themselves."""
    from emask.bench import compare, paper
    from emask.bench import report as pages

    assert main(["bench", "report", str(document)]) == 0
    page = document.with_name("report.html")
    assert capsys.readouterr().out == f"{page}\n" and "emask bench: 2 photos" in page.read_text()
    assert main(["bench", "report", str(document), "-o", str(document.with_name("other.html"))]) == 0
    assert pages.main([str(document), "-o", str(page)]) == 0
    assert document.with_name("other.html").read_bytes() == page.read_bytes()
    capsys.readouterr()
    for program, arguments in ((compare, [str(document)] * 2), (paper, []), (paper, [str(document)])):
        name = program.__name__.rpartition(".")[2]
        assert main(["bench", name, *arguments]) == program.main(arguments) == 0
        out = capsys.readouterr().out
        assert out and out[: len(out) // 2] == out[len(out) // 2 :]
    assert main(["bench", "compare", *[str(document)] * 2, "--rows", "0"]) == 0


@pytest.mark.parametrize("arguments", [["report"], ["compare", "gone.json"], ["paper"]])
def test_a_file_that_is_not_there(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments, str(tmp_path / "gone.json")]) == 2
    error = capsys.readouterr().err
    assert "gone.json: cannot be read" in error and "hint: name the bench.json" in error

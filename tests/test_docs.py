"""The documents against the program: every command and option is described, and nothing else."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from emask.cli.app import build

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")])
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
LONG_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
MACHINE_PATH = re.compile(r"/(?:work|root|home|Users|mnt|tmp)/\w|[A-Z]:\\\\?\w")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def commands() -> dict[str, Any]:
    """Every command with its Typer object, those of `models` as "models list" and so on; "" is emask itself."""
    found: dict[str, Any] = {}

    def walk(name: str, command: Any) -> None:
        found[name] = command
        for child, below in getattr(command, "commands", {}).items():
            walk(f"{name} {child}".strip(), below)

    walk("", typer.main.get_command(build()))
    return found


COMMANDS = commands()
TOP = [name for name in COMMANDS if name and " " not in name]


def long_options(name: str) -> set[str]:
    """The long options of a command and its subcommands, without --help."""
    options = {
        option
        for command, entry in COMMANDS.items()
        if command == name or (name and command.startswith(name + " "))
        for parameter in entry.params
        for option in [*parameter.opts, *parameter.secondary_opts]
        if option.startswith("--")
    }
    return options - {"--help"}


def section(name: str) -> str:
    """The part of docs/cli.md under the heading of a command, or the part before the first one."""
    if not name:
        return CLI.split("\n## ")[0]
    match = re.search(rf"^## emask {name}\n(.*?)(?=^## |\Z)", CLI, re.DOTALL | re.MULTILINE)
    assert match, f"docs/cli.md has no section 'emask {name}'"
    return match.group(1)


def shell_lines(document: Path) -> list[str]:
    """The commands of a document's sh blocks, without comments, chains taken apart."""
    blocks = re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    parts = [part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")]
    return [part for part in parts if part]


@pytest.mark.parametrize("name", ["", *TOP])
def test_every_option_is_described(name: str) -> None:
    described = set(LONG_OPTION.findall(section(name)))
    assert long_options(name) - described == set()


@pytest.mark.parametrize("name", TOP)
def test_no_option_is_described_that_does_not_exist(name: str) -> None:
    everywhere = {"--help", *long_options("")}
    # "python -m emask.train.synthetic --data DIR" is not this command
    text = "\n".join(line for line in section(name).splitlines() if "python -m emask." not in line)
    assert set(LONG_OPTION.findall(text)) - long_options(name) - everywhere == set()


def test_the_described_commands_are_those_that_exist() -> None:
    assert re.findall(r"^## emask (\w+)$", CLI, re.MULTILINE) == TOP


def test_subcommands_are_described() -> None:
    for name in COMMANDS:
        if " " in name:
            assert f"emask {name}" in CLI


def test_every_environment_variable_is_described() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "emask").rglob("*.py"))
    variables = set(re.findall(r"\bEMASK_[A-Z_]+\b", source))
    assert "EMASK_MODELS_DIR" in variables
    assert variables == set(re.findall(r"\bEMASK_[A-Z_]+\b", CLI))


def test_every_exit_code_is_described() -> None:
    from emask import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = {0, 130} | {c.exit_code for c in classes if issubclass(c, errors.EmaskError)}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section(""), re.MULTILINE)} == codes


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_documents_name_no_place_of_a_machine(document: Path) -> None:
    assert MACHINE_PATH.findall(document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    missing = []
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (document.parent / target).resolve() if target else document
        if not path.exists():
            missing.append(link)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            if anchor not in slugs:
                missing.append(link)
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_written_commands_exist(document: Path) -> None:
    for line in shell_lines(document):
        words = shlex.split(line, comments=True)
        if Path(words[0]).name != "emask":
            continue
        name = words[1]
        if name in COMMANDS and f"{name} {' '.join(words[2:3])}" in COMMANDS:
            name = f"{name} {words[2]}"
        assert name in COMMANDS, line
        assert set(LONG_OPTION.findall(line)) <= long_options(name) | {"--help"}, line


def test_the_readme_has_both_commands_and_the_check_runs_them() -> None:
    lines = shell_lines(ROOT / "README.md")
    check = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install = [line for line in lines if 'pip install -e ".[dev]"' in line]
    assert install and 'pip install --quiet -e ".[dev]"' in check
    assert any(line.endswith("python -m pytest") for line in lines)
    assert re.search(r"^python -m pytest$", check, re.MULTILINE)
    for command in ("protect", "erase"):
        assert any(re.match(rf"\S*emask {command} ", line) for line in lines)
        assert re.search(rf"^\s*emask {command} ", check, re.MULTILINE)


def test_the_readme_shows_the_table_of_the_bench() -> None:
    for name, block in (("README.md", "strengths"), ("models/README.md", "strengths"), ("models/README.md", "bench")):
        text = (ROOT / name).read_text(encoding="utf-8")
        begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
        assert text.count(begin) == text.count(end) == 1
        assert text[text.index(begin) : text.index(end)].count("\n|") > 5  # and it is filled


def test_example_photos_are_explained() -> None:
    folder = ROOT / "docs" / "examples"
    text = (folder / "README.md").read_text(encoding="utf-8")
    photos = [path.name for path in folder.iterdir() if path.suffix == ".jpg"]
    assert photos
    for name in photos:
        assert f"`{name}`" in text

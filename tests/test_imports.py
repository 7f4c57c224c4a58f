"""What may import what: seen in fresh interpreters, and in the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import emask
from emask.cli.app import COMMANDS

PACKAGE = Path(emask.__file__).resolve().parent
HEAVY = ("torch", "torchvision", "facenet_pytorch", "onnxruntime", "onnx", "onnx2torch", "skimage")
# Parts of the package that may import torch (files or folders).
TORCH_HOMES = (
    "nets", "train", "bench", "recognize", "face/detect.py", "engine/device.py", "engine/torch.py", "engine/refine.py",
)  # fmt: skip
# ONNX Runtime's home is engine/onnx.py; recognizers open sessions of their own, exporting checks its result.
ONNX_RUNTIME_HOMES = ("engine", "recognize", "train")
# Commands that are the door to training and measuring; and what trains on a single photo, with training's terms.
TRAINING_COMMANDS = {"cli/train.py", "cli/export.py", "cli/bench.py", "engine/refine.py"}

# Refuses to find any of the modules named in argv[1], and their submodules; then runs argv[2].
GUARD = """
import sys
forbidden = tuple(sys.argv[1].split(","))
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == f or name.startswith(f + ".") for f in forbidden):
            raise AssertionError("imported " + name)
sys.meta_path.insert(0, Refuse())
exec(sys.argv[2])
"""


def run_guarded(forbidden: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which importing any of these modules fails."""
    command = [sys.executable, "-c", GUARD, ",".join(forbidden), code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"from emask.cli.app import main; sys.exit(main({list(arguments)!r}))"
    return run_guarded(HEAVY, code)


def test_the_guard_refuses_a_heavy_module() -> None:
    done = run_guarded(("onnxruntime",), "import onnxruntime")
    assert done.returncode != 0
    assert "imported onnxruntime" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    if arguments[0] in COMMANDS and not (PACKAGE / "cli" / f"{arguments[0]}.py").is_file():
        pytest.skip(f"the command {arguments[0]} is not part of this package")
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    assert (f"emask {emask.__version__}" if arguments == ["--version"] else "Usage") in done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = run_guarded((*HEAVY, "numpy", "PIL", "typer"), "import emask; print(emask.__version__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == emask.__version__


def test_commands_and_pipeline_load_without_training() -> None:
    modules = [
        f"emask.{part}.{path.stem}"
        for part in ("cli", "pipeline")
        for path in sorted((PACKAGE / part).glob("*.py"))
        if path.stem != "__init__"
    ]
    assert "emask.pipeline.protect" in modules and "emask.cli.app" in modules
    done = run_guarded((*HEAVY, "emask.train", "emask.nets"), "import " + ", ".join(modules))
    assert done.returncode == 0, done.stderr


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_importing(*modules: str) -> set[str]:
    """Package files, as relative paths, that import one of these modules anywhere."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name == m or name.startswith(m + ".") for name in imported(path) for m in modules)
    }


def outside(files: set[str], homes: tuple[str, ...]) -> set[str]:
    return {file for file in files if not any(file == home or file.startswith(home + "/") for home in homes)}


def test_torch_stays_in_its_homes() -> None:
    users = files_importing("torch", "torchvision", "facenet_pytorch", "onnx2torch")
    assert "nets/generator.py" in users
    assert outside(users, TORCH_HOMES) == set()


def test_onnx_runtime_stays_in_its_homes() -> None:
    users = files_importing("onnxruntime")
    assert "engine/onnx.py" in users
    assert outside(users, ONNX_RUNTIME_HOMES) == set()


def test_only_training_and_measuring_import_training() -> None:
    users = files_importing("emask.train", "emask.nets")
    assert users, "nothing imports emask.train or emask.nets"
    assert outside(users, ("train", "nets", "bench")) - TRAINING_COMMANDS == set()

"""What is installed where: one build of ONNX Runtime on every system, and CUDA's libraries only beside torch's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize(("system", "machine", "python", "build"), [
    ("linux", "x86_64", "3.12", "onnxruntime-gpu[cuda]"),
    ("linux", "aarch64", "3.12", "onnxruntime-gpu[cuda]"),
    ("linux", "x86_64", "3.10", "onnxruntime-gpu"),
    ("win32", "AMD64", "3.12", "onnxruntime-gpu"),
    ("win32", "ARM64", "3.12", "onnxruntime"),
    ("darwin", "arm64", "3.12", "onnxruntime"),
])  # fmt: skip
def test_one_onnx_runtime_everywhere(system: str, machine: str, python: str, build: str) -> None:
    place = {"sys_platform": system, "platform_machine": machine, "python_version": python}
    wanted = [Requirement(line) for line in PROJECT["dependencies"]]
    found = [r for r in wanted if r.name.startswith("onnxruntime") and (r.marker is None or r.marker.evaluate(place))]
    assert [r.name + (f"[{','.join(r.extras)}]" if r.extras else "") for r in found] == [build]

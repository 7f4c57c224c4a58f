"""Tiny models that obey the graph signatures, in a folder laid out like the shipped one, and photos with a face."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

# Two test processes with a thread per core each would wait for one another. To be said before torch is loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

ATTRIBUTES = 13
EMBEDDING = 256
# The change of the tiny generator: a soft pattern, scaled with eps * (1 - w); the tiny restorer subtracts a part of it.
THRESHOLDS = {"0.1": 0.2, "0.01": 0.4, "0.001": 0.6}


def _pattern() -> np.ndarray:
    """(1, 3, 128, 128) float32 of L2 norm 1, zero on the border."""
    wave = np.sin(np.linspace(0, np.pi, 128)) ** 2
    stripes = np.sin(np.linspace(0, 24 * np.pi, 128))
    wave[0] = wave[-1] = 0.0
    pattern = np.outer(wave, wave) * stripes[None]
    block = np.stack([pattern, -pattern, 0.5 * pattern])[None]
    return (block / np.linalg.norm(block)).astype(np.float32)


def _floats(name: str, values: np.ndarray | float | list[float]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def _ints(name: str, values: list[int]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.int64), name)


def _value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _save(path: Path, kind: str | None, nodes: list, inputs: list, output: object, constants: list) -> Path:
    graph = helper.make_graph(nodes, "tiny", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    if kind is not None:
        helper.set_model_props(model, {"emask.kind": kind, "emask.format": "1"})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def make_generator(path: Path) -> Path:
    """change = clip(crop + pattern * (eps * (1 - w) * (1 + 0.1 * mean(target)) + edit), -1, 1) - crop.

    edit = sum_i 2 (i + 1) (b_i - a_i), so that each attribute moves the pixels by an amount of its own.
    """
    n = helper.make_node
    nodes = [
        n("Sub", ["one", "w"], ["rest"]),
        n("Mul", ["rest", "eps"], ["size"]),
        n("ReduceMean", ["target"], ["mean"], axes=[1], keepdims=0),
        n("Mul", ["mean", "tenth"], ["bend"]),
        n("Add", ["bend", "one"], ["factor"]),
        n("Mul", ["size", "factor"], ["masking"]),
        n("Sub", ["b", "a"], ["switched"]),
        n("Mul", ["switched", "steps"], ["stepped"]),
        n("ReduceSum", ["stepped", "second"], ["edit"], keepdims=0),
        n("Add", ["masking", "edit"], ["strength"]),
        n("Reshape", ["strength", "column"], ["strength4"]),
        n("Mul", ["strength4", "pattern"], ["mask"]),
        n("Add", ["crop", "mask"], ["masked"]),
        n("Clip", ["masked", "low", "high"], ["clipped"]),
        n("Sub", ["clipped", "crop"], ["change"]),
    ]
    inputs = [
        _value("crop", "B", 3, 128, 128),
        _value("target", "B", EMBEDDING),
        _value("a", "B", ATTRIBUTES),
        _value("b", "B", ATTRIBUTES),
        _value("w", "B"),
        _value("eps", "B"),
    ]
    constants = [
        _floats("one", 1.0),
        _floats("tenth", 0.1),
        _floats("pattern", _pattern()),
        _floats("low", -1.0),
        _floats("high", 1.0),
        _ints("column", [-1, 1, 1, 1]),
        _ints("second", [1]),
        _floats("steps", 2.0 * np.arange(1, ATTRIBUTES + 1)),
    ]
    return _save(path, "generator", nodes, inputs, _value("change", "B", 3, 128, 128), constants)


def make_restorer(path: Path, kind: str | None = "restorer") -> Path:
    """change = -12 * pattern, the range of the sum kept: undoes most of what a generator with eps 20 and w 0.3 does."""
    n = helper.make_node
    nodes = [
        n("Mul", ["crop", "nothing"], ["zero"]),
        n("Sub", ["zero", "step"], ["undo"]),
        n("Add", ["crop", "undo"], ["restored"]),
        n("Clip", ["restored", "low", "high"], ["clipped"]),
        n("Sub", ["clipped", "crop"], ["change"]),
    ]
    constants = [
        _floats("nothing", 0.0),
        _floats("step", 12 * _pattern()),
        _floats("low", -1.0),
        _floats("high", 1.0),
    ]
    inputs = [_value("crop", "B", 3, 128, 128)]
    return _save(path, kind, nodes, inputs, _value("change", "B", 3, 128, 128), constants)


def make_recognizer(path: Path) -> Path:
    """Unit embedding of a 7 x 7 mean-pooled crop under a fixed random projection."""
    n = helper.make_node
    projection = np.random.default_rng(0).normal(size=(3 * 7 * 7, EMBEDDING))
    nodes = [
        n("AveragePool", ["crop"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        n("Flatten", ["pooled"], ["flat"]),
        n("MatMul", ["flat", "projection"], ["raw"]),
        n("Mul", ["raw", "raw"], ["squares"]),
        n("ReduceSum", ["squares", "axis"], ["sum"], keepdims=1),
        n("Add", ["sum", "tiny"], ["positive"]),
        n("Sqrt", ["positive"], ["norm"]),
        n("Div", ["raw", "norm"], ["embedding"]),
    ]
    constants = [_floats("projection", projection), _floats("tiny", 1e-12), _ints("axis", [1])]
    inputs = [_value("crop", "B", 3, 112, 112)]
    return _save(path, "recognizer", nodes, inputs, _value("embedding", "B", EMBEDDING), constants)


def write_manifest(folder: Path, targets: dict[str, object]) -> None:
    """manifest.json for the three models in `folder`."""
    entries: dict[str, dict[str, object]] = {}
    for kind in ("generator", "restorer", "recognizer"):
        data = (folder / f"{kind}.onnx").read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        entries[kind] = {"file": f"{kind}.onnx", "sha256": digest, "bytes": len(data), "measured": {}}
    entries["generator"]["strengths"] = {
        "low": {"w": 0.5, "eps": 10.0},
        "medium": {"w": 0.3, "eps": 20.0},
        "high": {"w": 0.1, "eps": 40.0},
    }
    entries["recognizer"]["thresholds"] = THRESHOLDS
    content = {"version": 1, "models": entries, "targets": targets}
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


def face_pixels() -> np.ndarray:
    """(512, 512, 3) uint8: a public-domain portrait with one face."""
    data = pytest.importorskip("skimage.data")
    return np.asarray(data.astronaut()[:, :, :3])


@pytest.fixture(scope="session")
def face() -> np.ndarray:
    """(260, 260, 3) uint8 RGB: one face, about 110 pixels wide."""
    return face_pixels()[0:260, 90:350].copy()


@pytest.fixture(scope="session")
def two_faces(face: np.ndarray) -> np.ndarray:
    """(260, 520, 3) uint8 RGB: the face and its mirror image."""
    return np.concatenate([face, face[:, ::-1]], axis=1)


@pytest.fixture(scope="session")
def scene() -> np.ndarray:
    """(200, 260, 3) uint8 RGB without a face."""
    across = np.linspace(0, 255, 260)
    return np.stack([np.tile(across, (200, 1)), np.full((200, 260), 90.0), np.tile(across[::-1], (200, 1))], -1).astype(
        np.uint8
    )


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, face: np.ndarray) -> Path:
    """A folder like the shipped one: three tiny models, their manifest and one built-in target."""
    folder = tmp_path_factory.mktemp("models")
    make_generator(folder / "generator.onnx")
    make_restorer(folder / "restorer.onnx")
    make_recognizer(folder / "recognizer.onnx")
    (folder / "targets").mkdir()
    Image.fromarray(face[:, ::-1]).save(folder / "targets" / "ada.jpg", quality=95)
    write_manifest(folder, {"default": "ada", "names": ["ada"]})
    return folder


@pytest.fixture
def models(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny models, in place of the shipped ones for this test."""
    monkeypatch.setenv("EMASK_MODELS_DIR", str(tiny_models))
    monkeypatch.delenv("EMASK_ENGINE", raising=False)
    return tiny_models


@pytest.fixture
def face_file(tmp_path: Path, face: np.ndarray) -> Path:
    """photos/ada.png with one face."""
    path = tmp_path / "photos" / "face.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(face).save(path)
    return path


@pytest.fixture(scope="session")
def foreign_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file with a restorer's signature that emask did not make."""
    return make_restorer(tmp_path_factory.mktemp("foreign") / "foreign.onnx", kind=None)


@pytest.fixture(scope="session")
def make_block_recognizer() -> Callable[[Path, int], Path]:
    """Writes a recognizer that compares pictures by the mean colour of blocks; the side must divide 112 pixels."""

    def make(path: Path, side: int) -> Path:
        nodes = [
            helper.make_node("AveragePool", ["data"], ["pooled"], kernel_shape=[side] * 2, strides=[side] * 2),
            helper.make_node("ReduceMean", ["pooled"], ["mean"], axes=[2, 3]),
            helper.make_node("Sub", ["pooled", "mean"], ["centred"]),
            helper.make_node("Flatten", ["centred"], ["out"]),
        ]
        graph = helper.make_graph(
            nodes,
            "blocks",
            [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["B", 3, 112, 112])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["B", 3 * (112 // side) ** 2])],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
        return path

    return make


@pytest.fixture(scope="session")
def make_white_boxes(make_block_recognizer: Callable[[Path, int], Path]) -> Callable[[Path, dict[str, int]], None]:
    """Writes block recognizers of fold A by name and side into a folder, and their recognizers.json."""

    def make(folder: Path, sides: dict[str, int]) -> None:
        card = {"size": [112, 112], "mean": [127.5] * 3, "std": [127.5] * 3, "input_name": "data", "fold": "A"}
        for name, side in sides.items():
            make_block_recognizer(folder / f"{name}.onnx", side)
        cards = [{"name": name, "file": f"{name}.onnx", **card} for name in sides]
        (folder / "recognizers.json").write_text(json.dumps({"recognizers": cards}), encoding="utf-8")

    return make

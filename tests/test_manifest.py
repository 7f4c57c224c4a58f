"""The shipped models: the files are those the manifest names, of the kinds and sizes promised."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from emask.paths import PHOTO_SUFFIXES
from emask.weights import FORMAT, KINDS, REFINER, STRENGTHS

MODELS = Path(__file__).resolve().parents[1] / "models"
RECOGNIZER_LIMIT = 8_000_000
INPUTS = {
    "generator": {
        "crop": [3, 128, 128], "target": [256], "a": [13], "b": [13], "w": [], "eps": [],
    },
    "restorer": {"crop": [3, 128, 128]},
    "recognizer": {"crop": [3, 112, 112]},
}  # fmt: skip
OUTPUTS = {"generator": "change", "restorer": "change", "recognizer": "embedding"}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    path = MODELS / "manifest.json"
    if not path.is_file():
        if list(MODELS.glob("*.onnx")):
            pytest.fail("models/ holds ONNX files but no manifest.json")
        pytest.skip("no models ship yet: models/manifest.json is absent")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_all_kinds_ship(manifest: dict[str, Any]) -> None:
    assert manifest["version"] == 1
    assert set(KINDS) <= set(manifest["models"]) <= {*KINDS, REFINER}
    assert {p.name for p in MODELS.glob("*.onnx")} == {entry["file"] for entry in manifest["models"].values()}
    assert (MODELS / "README.md").is_file(), "the model card is missing"


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_the_one_named(manifest: dict[str, Any], kind: str) -> None:
    entry = manifest["models"][kind]
    data = (MODELS / entry["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert len(data) == entry["bytes"]
    assert entry["training"].startswith("emask train")


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_the_one_described(manifest: dict[str, Any], kind: str) -> None:
    entry = manifest["models"][kind]
    model = onnx.load(str(MODELS / entry["file"]))
    onnx.checker.check_model(model)
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["emask.kind"] == kind
    assert properties["emask.format"] == FORMAT
    shapes = {}
    for value in model.graph.input:
        batch, *rest = value.type.tensor_type.shape.dim
        assert batch.dim_param, f"{value.name}: the batch is fixed"
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        shapes[value.name] = [d.dim_value for d in rest]
    assert shapes == INPUTS[kind]
    assert [o.name for o in model.graph.output] == [OUTPUTS[kind]]
    assert {i["name"]: i["shape"][1:] for i in entry["inputs"]} == INPUTS[kind]
    assert all(i["dtype"] == "float32" and i["range"] for i in [*entry["inputs"], *entry["outputs"]])


def test_the_recognizer_is_small_and_calibrated(manifest: dict[str, Any]) -> None:
    entry = manifest["models"]["recognizer"]
    assert entry["bytes"] <= RECOGNIZER_LIMIT
    thresholds = [entry["thresholds"][rate] for rate in ("0.1", "0.01", "0.001")]
    assert thresholds == sorted(set(thresholds)) and -1 < thresholds[0] and thresholds[-1] < 1
    assert 0.5 < entry["lfw_accuracy"] <= 1


def test_the_strengths_grow(manifest: dict[str, Any]) -> None:
    entry = manifest["models"]["generator"]
    assert len(entry["attributes"]) == len(set(entry["attributes"])) == 13
    budgets = [entry["strengths"][level]["eps"] for level in STRENGTHS]
    weights = [entry["strengths"][level]["w"] for level in STRENGTHS]
    assert 0 < budgets[0] < budgets[1] < budgets[2]
    assert weights == sorted(weights, reverse=True) and all(0 <= w < 1 for w in weights)
    assert all(0 <= entry["strengths"][level].get("refine", 0) <= 500 for level in STRENGTHS)


def test_the_targets_ship(manifest: dict[str, Any]) -> None:
    targets = manifest["targets"]
    assert targets["default"] in targets["names"]
    files = {p.stem for p in (MODELS / "targets").iterdir() if p.suffix in PHOTO_SUFFIXES}
    assert files == set(targets["names"]) and len(files) == len(targets["names"])


@pytest.mark.parametrize("name", sorted(p.stem for p in (MODELS / "targets").glob("*.jpg")))
def test_a_target_photo_shows_one_face(name: str) -> None:
    from emask.face.detect import Detector

    with Image.open(MODELS / "targets" / f"{name}.jpg") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert len(Detector(device="cpu").detect([pixels])[0]) == 1


def test_the_graphs_keep_their_promises(manifest: dict[str, Any]) -> None:
    """Strength 0 and full injection change nothing; the budget and the range of pixels are kept."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(MODELS / manifest["models"]["generator"]["file"]), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    target = rng.normal(size=(2, 256)).astype(np.float32)
    feeds = {
        "crop": rng.uniform(-1, 1, (2, 3, 128, 128)).astype(np.float32),
        "target": target / np.linalg.norm(target, axis=1, keepdims=True),
        "a": np.zeros((2, 13), np.float32),
        "b": np.zeros((2, 13), np.float32),
    }

    def change(w: float, eps: float) -> np.ndarray:
        scalars = {"w": np.full(2, w, np.float32), "eps": np.full(2, eps, np.float32)}
        return np.asarray(session.run(None, {**feeds, **scalars})[0])

    assert np.abs(change(0.0, 0.0)).max() < 1e-5
    assert np.abs(change(1.0, 10.0)).max() < 1e-5
    strong = change(0.0, 10.0)
    norms = np.sqrt(np.square(strong).sum((1, 2, 3)))
    assert (norms <= 10.0 + 1e-3).all() and (norms > 0.1).all()
    assert np.abs(feeds["crop"] + strong).max() <= 1 + 1e-5

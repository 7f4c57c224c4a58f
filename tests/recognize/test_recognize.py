"""Recognizers: cards, cutting and normalising, batches, thresholds against brute force."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from emask.errors import EmaskError, ModelError
from emask.recognize import Recognizer, calibrate, load_folder, load_recognizer, similarity, true_accept_rate
from emask.recognize.cards import find_card

SHARED = Path(__file__).resolve().parents[3] / "shared" / "recognizers"


def write_recognizer(
    path: Path, size: tuple[int, int] = (112, 112), batch: int | str = "B", dim: int = 8
) -> np.ndarray:
    """A linear recognizer on the mean colour of 8 x 8 blocks; returns its (blocks, dim) weight."""
    height, width = size
    blocks = 3 * (height // 8) * (width // 8)
    weight = np.random.default_rng(0).normal(size=(blocks, dim)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["data"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "recognizer",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, dim])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return weight


CARD = {"size": [112, 96], "mean": [120, 110, 100], "std": [60, 50, 40], "threshold": {"0.01": 0.25}}


def by_hand(crops: np.ndarray, weight: np.ndarray) -> np.ndarray:
    inner = crops[:, 8:120, 16:112].astype(np.float64)  # 112 x 96 centred in the inner square
    x = (inner - [120, 110, 100]) / [60, 50, 40]
    pooled = x.reshape(len(crops), 14, 8, 12, 8, 3).mean((2, 4))
    raw = pooled.transpose(0, 3, 1, 2).reshape(len(crops), -1) @ weight
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


@pytest.mark.parametrize("batch", ["B", 1, 4])
def test_embed_cuts_normalises_and_batches(tmp_path: Path, batch: int | str) -> None:
    weight = write_recognizer(tmp_path / "r.onnx", (112, 96), batch)
    (tmp_path / "r.json").write_text(json.dumps(CARD))
    recognizer = load_recognizer(str(tmp_path / "r.onnx"), device="cpu")
    crops = np.random.default_rng(1).integers(0, 256, (35, 128, 128, 3), dtype=np.uint8)
    embeddings = recognizer.embed(crops)
    assert embeddings.shape == (35, 8) and embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, by_hand(crops, weight), atol=1e-5)
    assert recognizer.thresholds == {"0.01": 0.25} and recognizer.name == "r"


def test_embed_refuses_what_is_no_crop(tmp_path: Path) -> None:
    write_recognizer(tmp_path / "r.onnx", (112, 96))
    (tmp_path / "r.json").write_text(json.dumps(CARD))
    recognizer = load_recognizer(str(tmp_path / "r.onnx"), device="cpu")
    with pytest.raises(ValueError, match="crops must be"):
        recognizer.embed(np.zeros((1, 112, 112, 3), np.uint8))
    with pytest.raises(ValueError, match="crops must be"):
        recognizer.embed(np.zeros((1, 128, 128, 3), np.float32))


def test_card_from_the_folder(tmp_path: Path) -> None:
    write_recognizer(tmp_path / "a.onnx", (112, 96))
    write_recognizer(tmp_path / "b.onnx", (112, 96))
    cards = [{"name": n, "file": f"{f}.onnx", "input_name": "data", **CARD} for n, f in (("one", "a"), ("two", "b"))]
    (tmp_path / "recognizers.json").write_text(json.dumps({"recognizers": cards}))
    assert find_card(tmp_path / "b.onnx").name == "two"
    assert [r.name for r in load_folder(tmp_path, device="cpu")] == ["one", "two"]
    assert [r.name for r in load_folder(tmp_path, ["two"], "cpu")] == ["two"]
    with pytest.raises(ModelError, match="no recognizer called three"):
        load_folder(tmp_path, ["three"])


@pytest.mark.parametrize(
    "change",
    [
        {"size": [112, 113]}, {"size": "big"}, {"mean": [1, 2]}, {"std": [1, 0, 1]}, {"std": None},
        {"threshold": {"0.1": "x"}}, {"threshold": {"eer": 0.3}},
        {"input_name": "image"}, {"size": [112, 112]},
    ],
)  # fmt: skip
def test_wrong_cards_are_model_errors(tmp_path: Path, change: dict) -> None:
    write_recognizer(tmp_path / "r.onnx", (112, 96))
    (tmp_path / "r.json").write_text(json.dumps({**CARD, **change}))
    with pytest.raises(ModelError):
        load_recognizer(str(tmp_path / "r.onnx"), device="cpu")


def test_a_rate_has_one_spelling(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({**CARD, "threshold": {"1e-2": 0.25, "0.10": 0.1}}))
    assert find_card(tmp_path / "r.onnx").thresholds == {"0.01": 0.25, "0.1": 0.1}


def test_missing_and_damaged_files_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such recognizer"):
        load_recognizer(str(tmp_path / "none.onnx"))
    damaged = tmp_path / "r.onnx"
    damaged.write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="no card"):
        load_recognizer(str(damaged))
    (tmp_path / "r.json").write_text(json.dumps(CARD))
    with pytest.raises(ModelError, match="not a usable ONNX file"):
        load_recognizer(str(damaged))
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(ModelError, match="card"):
        load_recognizer(str(damaged))


def test_a_file_that_is_not_its_cards_is_damaged(tmp_path: Path) -> None:
    """The twin: with the sha256 of the file it opens."""
    write_recognizer(tmp_path / "r.onnx", (112, 96))
    for digest, opens in ((hashlib.sha256((tmp_path / "r.onnx").read_bytes()).hexdigest(), True), ("0" * 64, False)):
        (tmp_path / "r.json").write_text(json.dumps({**CARD, "sha256": digest}))
        if opens:
            load_recognizer(str(tmp_path / "r.onnx"), device="cpu")
        else:
            with pytest.raises(ModelError, match="is damaged"):
                load_recognizer(str(tmp_path / "r.onnx"), device="cpu")


def test_memory_that_runs_out_is_no_broken_recognizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is opened, and when it runs; the twin is a graph that fails."""
    write_recognizer(tmp_path / "r.onnx", (112, 96))
    (tmp_path / "r.json").write_text(json.dumps(CARD))
    recognizer = load_recognizer(str(tmp_path / "r.onnx"), device="cpu")

    def failing(text: str) -> Callable[..., None]:
        def fail(*args: object) -> None:
            raise RuntimeError(text)

        return fail

    full = "[ONNXRuntimeError] : 6 : bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 20736"
    for text, kind in ((full, EmaskError), ("bad graph", ModelError)):
        monkeypatch.setattr(recognizer, "_session", SimpleNamespace(run=failing(text)))
        with pytest.raises(kind) as caught:
            recognizer.embed(np.zeros((1, 128, 128, 3), np.uint8))
        assert type(caught.value) is kind
        monkeypatch.setattr("emask.engine.onnx.open_session", failing(text))
        with pytest.raises(kind) as caught:
            load_recognizer(str(tmp_path / "r.onnx"), device="cpu")
        assert type(caught.value) is kind


def test_cuda_is_insisted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emask.engine.onnx._has_nvidia_driver", lambda: False)
    write_recognizer(tmp_path / "r.onnx", (112, 96))
    (tmp_path / "r.json").write_text(json.dumps(CARD))
    with pytest.raises(EmaskError, match="CUDA was asked for"):
        load_recognizer(str(tmp_path / "r.onnx"), device="cuda")


def test_models_without_a_recognizer(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 1, "models": {}}))
    monkeypatch.setenv("EMASK_MODELS_DIR", str(tmp_path))
    with pytest.raises(ModelError, match="lists no recognizer"):
        load_recognizer()


def random_people(n: int, people: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    who = rng.integers(0, people, n)
    raw = rng.normal(size=(people, 16))[who] + 0.8 * rng.normal(size=(n, 16))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32), who


@pytest.mark.parametrize("n", [40, 700])  # below and above one block of the matrix product
def test_thresholds_against_brute_force(n: int) -> None:
    embeddings, who = random_people(n, 12, n)
    cosines = embeddings.astype(np.float64) @ embeddings.astype(np.float64).T
    pairs = list(itertools.combinations(range(n), 2))
    impostor = np.array([cosines[i, j] for i, j in pairs if who[i] != who[j]])
    genuine = np.array([cosines[i, j] for i, j in pairs if who[i] == who[j]])
    thresholds = calibrate(embeddings, who, (0.1, 0.01))
    assert list(thresholds) == ["0.1", "0.01"]
    for key, threshold in thresholds.items():
        share = np.mean(impostor >= threshold - 1e-5)
        assert np.mean(impostor >= threshold + 1e-5) <= float(key) and share >= float(key) - 2 / len(impostor)
        assert true_accept_rate(embeddings, who, threshold) == pytest.approx(np.mean(genuine >= threshold), abs=2e-3)


def test_calibration_needs_pairs() -> None:
    embeddings, who = random_people(20, 3, 0)
    with pytest.raises(ValueError, match="no pair"):
        calibrate(embeddings, np.zeros(20), (0.1,))
    with pytest.raises(ValueError, match="too few"):
        calibrate(embeddings, who, (0.0001,))


def test_similarity_is_the_cosine_row_by_row() -> None:
    a, _ = random_people(5, 3, 1)
    b, _ = random_people(5, 3, 2)
    np.testing.assert_allclose(similarity(a, b), np.diag(a @ b.T), atol=1e-6)
    np.testing.assert_allclose(similarity(a, a), 1, atol=1e-6)
    np.testing.assert_allclose(similarity(a, b[0]), a @ b[0], atol=1e-6)


def test_real_recognizers_load() -> None:
    if not (SHARED / "recognizers.json").is_file():
        pytest.skip("the recognizers beside the checkout (../shared/recognizers) are absent")
    crops = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    for recognizer in load_folder(SHARED, ["mobilefacenet-casia", "edgeface-xxs"], "cpu"):
        assert isinstance(recognizer, Recognizer)
        np.testing.assert_allclose(np.linalg.norm(recognizer.embed(crops), axis=1), 1, atol=1e-5)

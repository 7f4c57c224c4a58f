"""Robust recognizers: they resist better, keep their clean embeddings, and come out as files with cards.

On toy recognizers and smooth pictures; not tested here: how much robustness real ones gain.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import emask.bench.robustify as work
from emask.bench.finetune import FineTuning, attack, fine_tune, open_trainable
from emask.bench.peers.ball import Ball
from emask.cli.app import main
from emask.errors import EmaskError, ModelError, TrainingError, UsageError
from emask.recognize import Recognizer, load_folder
from emask.recognize.cards import folder_cards
from emask.train.data import Crops
from emask.train.distill import to_float
from emask.train.surrogates import Surrogate, read_cards

# Large steps for small networks.
QUICK = FineTuning(batch=8, lr=5e-3, steps=2)
FEW = work.WhiteBox(steps=3, faces=6)


class Toy(nn.Module):
    """With what real ones have: batch norm, PReLU, a strided depthwise convolution, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3, 2, 1, groups=8),
            nn.PReLU(8), nn.Conv2d(8, 16, 3, 2, 1), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(64, 16),
            nn.BatchNorm1d(16),
        )  # fmt: skip
        self.net.train()
        for _ in range(20):
            self.net(nn.functional.interpolate(torch.rand(16, 3, 9, 9) * 2 - 1, size=(112, 112), mode="bicubic"))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy and twin of fold B, the second of 112 x 96 pixels; matrix of fold A, which has its weights as constants;
    broken, which is no ONNX; odd, which PyTorch cannot rebuild; and bare, which has no weights."""
    folder = tmp_path_factory.mktemp("originals")
    for name, width in (("toy", 112), ("twin", 96)):
        torch.onnx.export(
            Toy(), (torch.zeros(1, 3, 112, width),), str(folder / f"{name}.onnx"), input_names=["pixels"],
            output_names=["out"], dynamic_axes={"pixels": {0: "n"}, "out": {0: "n"}}, opset_version=17, dynamo=False,
        )  # fmt: skip
    pool = helper.make_node("AveragePool", ["pixels"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16])
    flat = helper.make_node("Flatten", ["pooled"], ["flat"])
    graphs = {
        "matrix": [pool, flat, helper.make_node("MatMul", ["flat", "w"], ["out"])],
        "odd": [pool, flat, helper.make_node("Hardmax", ["flat"], ["out"])],
        "bare": [pool, helper.make_node("Flatten", ["pooled"], ["out"])],
    }
    matrix = numpy_helper.from_array(np.random.default_rng(0).normal(size=(147, 16)).astype(np.float32), "w")
    for name, nodes in graphs.items():
        graph = helper.make_graph(
            nodes, name, [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["B", 3, 112, 112])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["B", 16 if name == "matrix" else 147])],
            [matrix] if name == "matrix" else [],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, str(folder / f"{name}.onnx"))
    (folder / "broken.onnx").write_bytes(b"no model")
    cards = [
        {"name": name, "file": f"{name}.onnx", "fold": fold, "size": [112, width], "mean": [127.5] * 3,
         "std": [128] * 3, "input_name": "pixels", "lfw_accuracy": 0.5, "threshold": {"0.0001": 0.9}, "licence": "none"}
        for name, fold, width in (("toy", "B", 112), ("twin", "B", 96), ("matrix", "A", 112), ("broken", "C", 112),
                                  ("odd", "C", 112), ("bare", "C", 112))
    ]  # fmt: skip
    document = {"note": "of the originals", "channel_order": "RGB", "recognizers": cards}
    (folder / "recognizers.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def pictures(seed: int) -> np.ndarray:
    """(96, 128, 128, 3) uint8: two smooth pictures each of 48 "people", much alike."""
    rng = np.random.default_rng(seed)
    coarse = np.repeat(rng.random((48, 3, 9, 9)), 2, axis=0) + 0.05 * rng.random((96, 3, 9, 9))
    smooth = nn.functional.interpolate(torch.from_numpy(coarse), size=(128, 128), mode="bicubic").clamp(0, 1)
    return (smooth * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(scope="module")
def crops() -> Crops:
    """12 people to tune with, 36 kept out."""
    people = np.repeat(np.arange(48), 2)
    names = [f"p{person}/p{person}_{number:04d}.jpg" for person in range(48) for number in (1, 2)]
    return Crops(pictures(0), people, names, people >= 12)


# A pair of one person and one of two people for each of folds 9 and 10.
PAIRS = [
    (("p12", 1), ("p12", 2), 9), (("p12", 1), ("p13", 1), 9),
    (("p14", 1), ("p14", 2), 10), (("p14", 1), ("p15", 1), 10),
]  # fmt: skip


@pytest.fixture
def known_data(crops: Crops, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of a folder of photos."""
    monkeypatch.setattr(work, "_data", lambda data, cache, progress: (crops, PAIRS))


def surrogate(folder: Path, name: str = "toy") -> Surrogate:
    return Surrogate(read_cards(folder)[name]).eval()


def resistance(net: Surrogate, original: Surrogate, crops: Crops) -> tuple[float, float]:
    """Mean cosine with the original's embedding of kept-out people: untouched, and after PGD through the net itself."""
    x = to_float(crops.pixels[24:40])
    own = original(x)
    ball = Ball(8.9, "l2")
    start = ball.random(x, torch.Generator().manual_seed(5))
    change = attack(net, x, own, torch.ones(len(x), dtype=torch.bool), ball, 8, 2.0, start=start)
    with torch.no_grad():
        return tuple(float((net(faces) * own).sum(1).mean()) for faces in (x, x + change))  # type: ignore[return-value]


def test_a_robust_recognizer_resists_what_the_original_does_not(folder: Path, crops: Crops) -> None:
    """The twins: no steps and no time, after which it is the original."""
    original = surrogate(folder)
    clean, attacked = resistance(original, original, crops)
    assert clean == pytest.approx(1, abs=1e-5) and attacked < 0.9
    for settings in ({"steps": 0}, {"minutes": 0.0}):
        still = open_trainable(read_cards(folder)["toy"])
        tuned = fine_tune(still, original, crops, QUICK, **settings)  # type: ignore[arg-type]
        assert tuned.steps == 0 and np.isnan(tuned.clean)
        assert resistance(still, original, crops) == (clean, attacked)
    net = open_trainable(read_cards(folder)["toy"])
    lines: list[str] = []
    tuned = fine_tune(net, original, crops, QUICK, steps=80, report=lambda share, line: lines.append(line))
    assert tuned.steps == 80 and tuned.attacked < tuned.clean <= 1
    new_clean, new_attacked = resistance(net, original, crops)
    assert new_attacked > attacked + 0.05
    assert new_clean > 0.85


def test_only_people_training_may_see_and_only_weights(folder: Path, crops: Crops) -> None:
    """Other pictures of kept-out people change nothing; the twin: other pictures of the others do."""
    original = surrogate(folder)

    def weights(seen: bool, kept_out: bool) -> dict[str, Tensor]:
        pixels = crops.pixels.copy()
        if seen:
            pixels[~crops.test] = 255 - pixels[~crops.test]
        if kept_out:
            pixels[crops.test] = 0
        net = open_trainable(read_cards(folder)["toy"])
        before = copy.deepcopy(dict(net.named_buffers()))
        fine_tune(net, original, Crops(pixels, crops.people, crops.names, crops.test), QUICK, steps=2, seed=4)
        assert not net.training
        assert before and all(torch.equal(value, before[name]) for name, value in net.named_buffers())
        return {name: value.detach().clone() for name, value in net.named_parameters()}

    usual, other, inverted = weights(False, False), weights(False, True), weights(True, False)
    for name, value in usual.items():
        torch.testing.assert_close(other[name], value)
    assert any((inverted[name] - value).abs().max() > 1e-4 for name, value in usual.items())
    alone = Crops(crops.pixels, np.zeros_like(crops.people), crops.names, crops.test)
    with pytest.raises(TrainingError, match="1 people whom training may see"):
        fine_tune(open_trainable(read_cards(folder)["toy"]), original, alone, QUICK, steps=1)


def test_attacks_go_where_they_are_sent(folder: Path, crops: Crops) -> None:
    net = surrogate(folder)
    x = 0.5 * to_float(crops.pixels[:8:2])  # at the ends of the range a channel stops before others
    own = net(x)
    away, grey = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    wanted = torch.where(away[:, None], own, own.roll(1, 0))
    ball = Ball(6.0, "l2")
    start = 0.5 * ball.random(x, torch.Generator().manual_seed(0)).mean(1, keepdim=True).expand(1, 3, -1, -1)
    change = attack(net, x, wanted, away, ball, 4, 1.5, grey, start)
    before, after = ((net(faces) * wanted).sum(1) for faces in (x, x + change))
    assert (after[:2] < before[:2] - 0.02).all() and (after[2:] > before[2:] + 0.02).all()
    assert (change.flatten(1).norm(dim=1) <= 6.0 * (1 + 1e-5)).all() and (x + change).abs().max() <= 1 + 1e-6
    spread = (change - change.mean(1, keepdim=True)).abs().amax((1, 2, 3))
    assert (spread[grey] < 1e-5).all() and (spread[~grey] > 1e-3).all()


def test_constants_of_a_product_are_weights(folder: Path, crops: Crops) -> None:
    net = open_trainable(read_cards(folder)["matrix"])
    assert [tuple(value.shape) for value in net.parameters()] == [(147, 16)]
    fine_tune(net, surrogate(folder, "matrix"), crops, QUICK, steps=1)
    assert (next(net.parameters()) - surrogate(folder, "matrix").state_dict()[next(iter(dict(net.named_parameters())))]
            ).abs().max() > 1e-5  # fmt: skip


@pytest.mark.parametrize("name", ["toy", "twin", "matrix"])
def test_an_exported_file_is_the_network(folder: Path, crops: Crops, tmp_path: Path, name: str) -> None:
    """ONNX Runtime is the oracle; the twin: after another step the file is no longer it."""
    card = next(card for card in folder_cards(folder) if card.name == name)
    net = open_trainable(read_cards(folder)[name])
    fine_tune(net, surrogate(folder, name), crops, QUICK, steps=1)
    exported = work.export(net, card, tmp_path / "file.tmp")
    recognizer = Recognizer(exported, "cpu")
    with torch.no_grad():
        np.testing.assert_allclose(recognizer.embed(crops.pixels[:5]), net(to_float(crops.pixels[:5])), atol=1e-4)
    fine_tune(net, surrogate(folder, name), crops, QUICK, steps=1)
    assert work.disagreement(net, recognizer) > 1e-4


def test_an_export_that_differs_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = folder_cards(folder)[0]
    net = open_trainable(read_cards(folder)["toy"])
    monkeypatch.setattr(work, "plain", lambda net: Toy().double().float().requires_grad_(False).apply(_bent))
    with pytest.raises(ModelError, match="differ by"):
        work.export(net, card, tmp_path / "file.tmp")


def _bent(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight.data.neg_()


@pytest.mark.usefixtures("known_data")
def test_the_output_is_a_folder_of_recognizers(folder: Path, crops: Crops, tmp_path: Path) -> None:
    """A second run adds to it, and replaces what it makes anew."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    output = tmp_path / "robust" / "ones"
    always: dict[str, Any] = {"minutes": 9.0, "tuning": QUICK, "box": FEW, "device": "cpu"}
    made = work.robustify(folder, None, tmp_path, output, tmp_path, steps=2, **always)
    assert [card["name"] for card in made] == ["toy-robust", "twin-robust"]
    assert {path.name for path in output.iterdir()} == {"toy-robust.onnx", "twin-robust.onnx", "recognizers.json"}
    work.robustify(folder, ["toy"], tmp_path, output, tmp_path, steps=1, seed=1, **always)
    cards = read_cards(output)
    assert list(cards) == ["twin-robust", "toy-robust"] and cards["twin-robust"].size == (112, 96)
    document = json.loads((output / "recognizers.json").read_text())
    assert document["channel_order"] == "RGB" and document["note"] != "of the originals"
    entry = document["recognizers"][1]
    assert entry["robustify"]["steps"] == 1 and entry["robustify"]["seed"] == 1
    assert "toy by emask bench robustify: 1 steps" in entry["note"]
    assert entry["fold"] == "B" and entry["std"] == [128] * 3 and entry["licence"] == "none"
    after = entry["robustify"]["after"]
    assert entry["threshold"] == after["thresholds"] and set(entry["threshold"]) == {"0.1", "0.01", "0.001"}
    assert entry["lfw_accuracy"] == after["lfw_accuracy"] and after["lfw_pairs"]["pairs"] == 4
    assert after["white_box"]["dodging"]["n"] == 6
    recognizers = load_folder(output, ["toy-robust", "twin-robust"], "cpu")
    for recognizer in recognizers:  # the thresholds are those of the file, by the same crops
        again = work.figures(recognizer, crops, PAIRS)
        assert again["thresholds"] == recognizer.thresholds
    assert Surrogate(cards["toy-robust"])(to_float(crops.pixels[:2])).shape == (2, 16)  # it can be looked through again
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.usefixtures("known_data")
def test_without_time_it_is_the_original_in_every_figure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "robustify", "--recognizers", str(folder), "--data", str(tmp_path), "--recognizer", "toy"]
    arguments += ["--minutes", "0", "--faces", "4", "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    (card,) = json.loads(capsys.readouterr().out)["recognizers"]
    told = card["robustify"]
    assert told["steps"] == 0 and told["after"] == told["before"] and told["after"]["white_box"] == told["transfer"]
    text = work.render([card])
    assert "Attacks: 4 faces" in text and text.count("| taken for the target") == 3
    columns = [row.split(" | ")[1:] for row in text.splitlines() if row.startswith(("| LFW", "| t", "| n"))]
    assert len(columns) == 9 and all(cells[0] == cells[1].removesuffix(" |") for cells in columns)
    assert main(arguments) == 0
    assert f"emask bench --data {tmp_path} --recognizers" in capsys.readouterr().out


@pytest.mark.usefixtures("known_data")
def test_nothing_is_left_of_a_run_that_is_interrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "_card", stop)
    with pytest.raises(KeyboardInterrupt):
        work.robustify(folder, ["toy"], tmp_path, tmp_path / "out", tmp_path, minutes=0, box=FEW, device="cpu")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("known_data")
@pytest.mark.parametrize(
    ("name", "said"),
    [("nobody", "no recognizer called nobody"), ("broken", "broken.onnx: PyTorch cannot rebuild it"),
     ("odd", "odd.onnx: PyTorch cannot rebuild it"), ("bare", "bare.onnx: holds no weights")],
)  # fmt: skip
def test_recognizers_that_cannot_be_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    arguments = ["--recognizers", str(folder), "--data", str(tmp_path), "-o", str(tmp_path / "out")]
    assert main(["bench", "robustify", *arguments, "--recognizer", name]) in (2, 5)
    error = capsys.readouterr().err
    assert said in error and "hint: " in error and "Traceback" not in error
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_outputs_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for output in (tmp_path / "file", tmp_path / "file" / "below", folder):
        with pytest.raises(EmaskError, match="cannot write to|folder of the originals"):
            work.check_output(output, folder)
    (tmp_path / "out").mkdir()
    assert work.check_output(tmp_path / "out", folder) == []
    (tmp_path / "out" / "recognizers.json").write_text("{}")
    with pytest.raises(ModelError, match="no list of recognizers"):
        work.check_output(tmp_path / "out", folder)


def test_data_that_cannot_be_used(
    folder: Path, crops: Crops, tmp_path: Path, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    def said(data: Path, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            work.robustify(folder, None, data, tmp_path / "out", tmp_path / "cache", minutes=0, device="cpu")

    said(tmp_path / "nowhere", UsageError, "no folder")
    data = tmp_path / "data"
    data.mkdir()
    said(data, UsageError, "no lfw_pairs.txt")
    (data / "lfw_pairs.txt").write_text("10\t0\n")
    said(data, TrainingError, "no photos")
    Image.fromarray(scene).save(data / "scene.jpg")

    class Blind:
        def detect(self, images: list[np.ndarray]) -> list[list[object]]:
            return [[] for _ in images]

    monkeypatch.setattr("emask.face.detect.Detector", Blind)
    said(data, TrainingError, "no face found")
    with pytest.raises(UsageError, match="0 people kept out of training have two photos"):
        work.choose_faces(Crops(crops.pixels, crops.people, crops.names, np.zeros_like(crops.test)), 4, 0)
    with pytest.raises(UsageError, match="no recognizer of fold B"):
        (tmp_path / "recognizers.json").write_text(json.dumps({"recognizers": []}))
        work.choose_cards(tmp_path, None)

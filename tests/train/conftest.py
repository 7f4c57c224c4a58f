"""Small surrogates made on the spot, with what real recognizers have: batch norm, PReLU, strided depthwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from emask.train.surrogates import Surrogate, read_cards


def tiny_recognizer(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 4, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.PReLU(8, init=0.1 + 0.1 * seed),
        nn.Conv2d(8, 8, 3, 2, 1, groups=8),
        nn.PReLU(8),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),  # centred embeddings, so that different pictures have different directions
    )
    net.train()
    for _ in range(30):
        net(nn.functional.interpolate(torch.rand(16, 3, 9, 9) * 2 - 1, size=(112, 112), mode="bicubic"))
    return net.eval()


@pytest.fixture(scope="session")
def recognizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three tiny recognizers with a recognizers.json; the second takes 112 x 96 pixels."""
    folder = tmp_path_factory.mktemp("recognizers")
    entries = []
    for index, (name, width) in enumerate([("one", 112), ("two", 96), ("three", 112)]):
        torch.onnx.export(
            tiny_recognizer(index), (torch.zeros(1, 3, 112, width),), str(folder / f"{name}.onnx"),
            input_names=["data"], output_names=["out"], dynamic_axes={"data": {0: "n"}, "out": {0: "n"}},
            opset_version=17, dynamo=False,
        )  # fmt: skip
        entries.append(
            {"name": name, "file": f"{name}.onnx", "size": [112, width], "mean": [127.5] * 3, "std": [128.0] * 3,
             "fold": "A" if index < 2 else "B"}
        )  # fmt: skip
    (folder / "recognizers.json").write_text(json.dumps({"recognizers": entries}))
    return folder


@pytest.fixture(scope="session")
def surrogates(recognizer_folder: Path) -> list[Surrogate]:
    cards = read_cards(recognizer_folder)
    return [Surrogate(cards[name]).eval() for name in ("one", "two")]

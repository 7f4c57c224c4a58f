"""Small surrogates made on the spot, with what real recognizers have: batch norm, PReLU, strided depthwise.

And what training reads: a handful of smooth pictures, and a configuration of the smallest networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from emask.nets.generator import NetConfig
from emask.train.config import Phase, TrainConfig
from emask.train.dataset import TrainingSet
from emask.train.place import Place
from emask.train.prepare import embed_crops
from emask.train.run import open_stage, run_stages
from emask.train.stage import Setting, Stage
from emask.train.surrogates import Surrogate, read_cards

OpenStage = Callable[..., Stage]


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


class Projection(nn.Module):
    """A recognizer in as far as it has unit embeddings of 256 numbers and a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.project = nn.Linear(3 * 16 * 16, 256)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.project(nn.functional.avg_pool2d(crops, 8).flatten(1)), dim=1)


@pytest.fixture(scope="session")
def projection() -> nn.Module:
    return Projection().requires_grad_(False)


@pytest.fixture(scope="session")
def training_set(surrogates: list[Surrogate]) -> TrainingSet:
    """Two pictures each of 12 people, every third without labels; the first two people are the built-in targets."""
    count = 24
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((count, 3, 9, 9))).float()
    smooth = nn.functional.interpolate(coarse, size=(128, 128), mode="bicubic").clamp(0, 1)
    pixels = (smooth * 255).byte().permute(0, 2, 3, 1).contiguous()
    identity = nn.functional.normalize(torch.from_numpy(rng.normal(size=(count, 256))).float(), dim=1)
    labels = torch.from_numpy(rng.choice([-1.0, 1.0], (count, 13))).float()
    labels[::3] = 0
    embedded = embed_crops(surrogates, pixels.numpy(), bf16=False)
    return TrainingSet(
        pixels, np.arange(count) // 2, labels, identity, embedded, identity[:4:2], [e[:4:2].clone() for e in embedded]
    )


@pytest.fixture(scope="session")
def tiny_config() -> TrainConfig:
    """Few steps of the smallest networks; in stage 2 they go past an epoch's end, and the restorer joins half-way."""
    return TrainConfig(
        net=NetConfig(widths=(4, 8, 8, 8), hidden=16),
        steps=(6, 8, 4),
        batch=4,
        bf16=False,
        phases=(Phase(0.5, 1, 0, 0.0, 15.0, False), Phase(1.0, 2, 100, 0.5, 14.0, True)),
        eps=15.0,
        watch=0.0,
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is compared bit for bit is computed by one thread: sums of several depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quiet(share: float, line: str) -> None:
    """A report to nobody."""


@pytest.fixture(scope="session")
def run(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """The folder of a finished run of all three stages; not to be written to."""
    folder = tmp_path_factory.mktemp("run")
    run_stages((1, 2, 3), training_set, surrogates, tiny_config, Place(), folder, lambda number: quiet)
    return folder


@pytest.fixture
def stage_of(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig, run: Path, projection: nn.Module
) -> OpenStage:
    """A stage by number; what it begins with comes from the finished run, or another folder."""

    def make(number: int, config: TrainConfig = tiny_config, folder: Path = run) -> Stage:
        return open_stage(number, Setting(training_set, config, Place(), surrogates, [projection]), folder)

    return make

"""A surrogate is the recognizer: ONNX Runtime is the oracle for its numbers, finite differences for its gradient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from facenet_pytorch import InceptionResnetV1, fixed_image_standardization
from facenet_pytorch.models import inception_resnet_v1

from emask.errors import ModelError, TrainingError
from emask.train.prepare import open_surrogates
from emask.train.surrogates import FrozenNorm, FrozenPReLU, Subsampled, Surrogate, read_cards


@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_same_embeddings_as_onnx_runtime(recognizer_folder: Path, name: str) -> None:
    card = read_cards(recognizer_folder)[name]
    surrogate = Surrogate(card)
    crops = torch.rand(3, 3, 128, 128) * 2 - 1
    height, width = card.size
    grey = (crops.numpy() + 1) * 127.5
    left = 8 + (112 - width) // 2
    cut = np.ascontiguousarray((grey[:, :, 8 : 8 + height, left : left + width] - 127.5) / 128, np.float32)
    session = onnxruntime.InferenceSession(str(card.file), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"data": cut})[0]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(surrogate(crops).numpy(), expected, atol=2e-5)
    assert any(isinstance(m, Subsampled) for m in surrogate.modules())  # the fast paths were really taken


def test_gradient_against_finite_differences(surrogates: list[Surrogate]) -> None:
    torch.manual_seed(0)
    surrogate = surrogates[0].double()
    try:
        x = (torch.rand(1, 3, 112, 112, dtype=torch.float64) * 2 - 1).requires_grad_(True)
        direction = torch.randn_like(x)
        probe = torch.randn(16, dtype=torch.float64)

        def value(image: torch.Tensor) -> torch.Tensor:
            out = surrogate.net(surrogate.prepare(image))
            return (out / out.norm()) @ probe

        value(x).sum().backward()
        assert x.grad is not None
        with torch.no_grad():
            step = 1e-6
            numeric = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
        assert float((x.grad * direction).sum()) == pytest.approx(float(numeric.sum()), rel=1e-4)
    finally:
        surrogate.float()


@pytest.mark.parametrize("affine", [True, False])
def test_a_frozen_norm_is_the_norm_in_evaluation_mode(affine: bool) -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(3, affine=affine)
    if affine:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    norm(3 * torch.randn(8, 3, 4, 4) + 1)  # statistics other than the first ones
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(FrozenNorm(norm)(x), norm.eval()(x))
    assert FrozenNorm(norm)(x.bfloat16()).dtype == torch.bfloat16


def test_the_fast_paths_are_twice_differentiable() -> None:
    """The meta-auxiliary attack differentiates a gradient."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 3, 3, 2, 1, groups=3).requires_grad_(False)
    norm = torch.nn.BatchNorm2d(3)
    net = torch.nn.Sequential(FrozenPReLU(torch.tensor([0.1, 0.3, -0.2])), FrozenNorm(norm), Subsampled(conv)).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    x = (x + 0.1 * x.sign()).requires_grad_(True)  # away from PReLU's kink

    def unit(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(net(image).flatten(1), dim=1)  # piecewise linear would prove nothing

    assert torch.autograd.gradcheck(unit, x)
    assert torch.autograd.gradgradcheck(unit, x)


def test_second_derivative_against_finite_differences(surrogates: list[Surrogate]) -> None:
    torch.manual_seed(0)
    surrogate = surrogates[0].double()
    try:
        x = (torch.rand(1, 3, 112, 112, dtype=torch.float64) * 2 - 1).requires_grad_(True)
        direction = torch.randn_like(x)
        probe = torch.randn(16, dtype=torch.float64)

        def gradient(image: torch.Tensor, create_graph: bool = False) -> torch.Tensor:
            out = surrogate.net(surrogate.prepare(image))
            return torch.autograd.grad((out / out.norm()) @ probe, image, create_graph=create_graph)[0]

        (analytic,) = torch.autograd.grad((gradient(x, create_graph=True) * direction).sum(), x)
        step = 1e-6
        above, below = (gradient((x + s * direction).detach().requires_grad_(True)) for s in (step, -step))
        numeric = (above - below) / (2 * step)
        assert float((analytic - numeric).norm() / numeric.norm()) < 1e-4
    finally:
        surrogate.float()


def test_fold_a_is_the_default(recognizer_folder: Path) -> None:
    assert [s.card.name for s in open_surrogates(recognizer_folder, None)] == ["one", "two"]


def test_one_surrogate_or_an_unknown_one_is_refused(recognizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="one surrogate"):
        open_surrogates(recognizer_folder, ["one"])
    with pytest.raises(TrainingError, match="no recognizer named nobody"):
        open_surrogates(recognizer_folder, ["one", "nobody"])
    with pytest.raises(ModelError, match=r"no recognizers\.json"):
        open_surrogates(tmp_path, None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PyTorch's cache, without a way to download anything."""

    def fail(url: str, path: str) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception_resnet_v1, "download_url_to_file", fail)
    return tmp_path / "checkpoints"


def test_facenet_is_a_surrogate_where_its_weights_are(home: Path, recognizer_folder: Path) -> None:
    torch.manual_seed(0)
    original = InceptionResnetV1(classify=True, num_classes=8631)  # as the file holds it
    for part in original.modules():  # statistics of something seen: untrained, nearly nothing would come through
        if isinstance(part, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            part.momentum = 1.0
    original(torch.randn(3, 3, 96, 96))
    original.eval()
    home.mkdir()
    torch.save(original.state_dict(), home / "20180402-114759-vggface2.pt")
    first, facenet = open_surrogates(recognizer_folder, ["one", "facenet-vggface2"])
    crops = torch.rand(2, 3, 128, 128) * 2 - 1
    original.classify = False
    larger = torch.nn.functional.interpolate(crops, size=(160, 160), mode="bilinear")
    expected = original(fixed_image_standardization((larger + 1) * 127.5))
    torch.testing.assert_close(facenet(crops), expected, atol=1e-5, rtol=0)
    assert facenet(crops[..., 8:-8, 8:-8]).shape == (2, 512) and facenet.card.file.parent == home
    assert not any(parameter.requires_grad for parameter in facenet.parameters())


def test_facenet_without_weights_is_refused_with_where_to_put_them(home: Path, recognizer_folder: Path) -> None:
    with pytest.raises(TrainingError, match="the weights of facenet-vggface2 cannot be had: no network") as caught:
        open_surrogates(recognizer_folder, ["one", "facenet-vggface2"])
    assert str(home / "20180402-114759-vggface2.pt") in caught.value.hint


class Rounded(torch.nn.Module):
    """Its gradient is zero everywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x[:, :, ::28, ::28].flatten(1) * 9)


class Counted(torch.nn.Module):
    """Whole numbers carry no gradient at all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, :, ::28, ::28].flatten(1) * 9).int().float()


class Ordered(torch.nn.Module):
    """Sorting is not among what the converter knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nonzero(x[:, 0, ::28, ::28] > 0).float()


@pytest.mark.parametrize(
    ("net", "said"),
    [(Rounded(), "bad gives no gradient"), (Counted(), "bad gives no gradient"), (Ordered(), "bad"), (None, "rebuild")],
)
def test_a_recognizer_that_cannot_be_a_surrogate_is_named(
    recognizer_folder: Path, tmp_path: Path, net: torch.nn.Module | None, said: str
) -> None:
    content = json.loads((recognizer_folder / "recognizers.json").read_text())
    content["recognizers"] = [
        {**content["recognizers"][0], "file": str(recognizer_folder / "one.onnx")},
        {**content["recognizers"][0], "name": "bad", "file": "bad.onnx"},
    ]
    (tmp_path / "recognizers.json").write_text(json.dumps(content))
    if net is None:
        (tmp_path / "bad.onnx").write_bytes(b"no graph")
    else:
        torch.onnx.export(
            net, (torch.zeros(1, 3, 112, 112),), str(tmp_path / "bad.onnx"), input_names=["data"],
            output_names=["out"], opset_version=17, dynamo=False,
        )  # fmt: skip
    with pytest.raises(TrainingError, match=said) as caught:
        open_surrogates(tmp_path, ["one", "bad"])
    assert "--surrogate" in caught.value.hint


def test_one_surrogate_named_twice_is_one(recognizer_folder: Path) -> None:
    with pytest.raises(TrainingError, match="one surrogate fools only that one"):
        open_surrogates(recognizer_folder, ["one", "one"])

"""Recognizers made differentiable: ONNX files turned into torch modules, for training only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emask.engine.torch import quiet
from emask.errors import TrainingError, first_line
from emask.face.align import INNER, MARGIN
from emask.recognize.cards import Card, folder_cards

FACENET_SIZE = 160
# By name the data they were trained on and the file of their weights, as facenet-pytorch calls them.
FACENETS = {
    "facenet-vggface2": ("vggface2", "20180402-114759-vggface2.pt"),
    "facenet-casia-webface": ("casia-webface", "20180408-102900-casia-webface.pt"),
}


class _FrozenPReLU(torch.autograd.Function):
    """PReLU without a gradient for its slope: torch's own spends a third of a recognizer's backward pass on that."""

    @staticmethod
    def forward(ctx, x: Tensor, slope: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, slope)
        return torch.nn.functional.prelu(x, slope.flatten())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, slope = ctx.saved_tensors
        positive = torch.ops.aten.threshold_backward(grad, x, 0)  # vectorised in bfloat16, which `where` is not
        return torch.addcmul(grad * slope, positive, 1 - slope), None


class FrozenPReLU(nn.Module):
    """Channel-wise PReLU with a fixed slope."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope.detach().reshape(1, -1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        slope = self.slope
        assert isinstance(slope, Tensor)
        return _FrozenPReLU.apply(x, slope.to(x.dtype))


class FrozenNorm(nn.Module):
    """A batch norm in evaluation mode as a product and a sum, whose backward pass is one product.

    Args:
        norm: over C channels; the module maps (B, C, H, W) to the same shape and dtype.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean * scale
        if norm.bias is not None:
            shift = shift + norm.bias
        self.register_buffer("scale", scale.detach().view(1, -1, 1, 1))
        self.register_buffer("shift", shift.detach().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale, self.shift
        assert isinstance(scale, Tensor) and isinstance(shift, Tensor)
        return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))


def read_cards(folder: Path) -> dict[str, Card]:
    """The cards in a folder's recognizers.json, by name.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    return {card.name: card for card in folder_cards(folder)}


class Subsampled(nn.Module):
    """A depthwise convolution of stride 2 as one of stride 1 that keeps every second pixel.

    The same numbers; oneDNN's backward pass through a strided depthwise convolution is ten times slower. A GPU's is
    not, and is spared the work for the pixels that are dropped.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.stride = conv.stride
        conv.stride = (1, 1)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if x.is_cuda:
            return nn.functional.conv2d(x, conv.weight, conv.bias, self.stride, conv.padding, 1, conv.groups)
        return conv(x)[:, :, :: self.stride[0], :: self.stride[1]]


def fold(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The same frozen network, faster through forward and backward pass.

    Batch norms become part of the convolutions before them, or a product and a sum; PReLU takes its frozen form,
    strided depthwise convolutions theirs; memory is channels last.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    modules = dict(graph.named_modules())
    users: dict[str, int] = {}
    for node in graph.graph.nodes:
        users[node.name] = len(node.users)
    for node in list(graph.graph.nodes):
        if node.op != "call_module":
            continue
        module = modules[str(node.target)]
        if isinstance(module, nn.BatchNorm2d):
            before = node.args[0]
            conv = modules.get(str(before.target)) if before.op == "call_module" else None
            if isinstance(conv, nn.Conv2d) and users[before.name] == 1:
                fused = fuse_conv_bn_eval(conv, module)
                graph.add_submodule(str(before.target), fused)
                modules[str(before.target)] = fused
                node.replace_all_uses_with(before)
                graph.graph.erase_node(node)
            else:
                graph.add_submodule(str(node.target), FrozenNorm(module))
        elif type(module).__name__ in {"OnnxPReLU", "PReLU"}:
            slope = node.args[1] if len(node.args) > 1 else None
            if slope is None:
                weight = module.weight
            elif slope.op == "get_attr":
                weight = graph
                for part in str(slope.target).split("."):
                    weight = getattr(weight, part)
            else:
                continue
            graph.add_submodule(str(node.target) + "_frozen", FrozenPReLU(weight))
            node.target = str(node.target) + "_frozen"
            node.args = (node.args[0],)
    for name, module in list(graph.named_modules()):
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 and module.stride == (2, 2):
            if module.padding == (1, 1):
                graph.add_submodule(name, Subsampled(module))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _converted(card: Card) -> nn.Module:
    import onnx
    import onnx2torch

    return fold(onnx2torch.convert(onnx.load(str(card.file))).eval())


class Surrogate(nn.Module):
    """A frozen, differentiable recognizer.

    Input: (B, 3, S, S) float32 RGB crops in [-1, 1], S the crop size of `emask.face.align`; or (B, 3, 112, 112), the
    inner square. Output: (B, D) float32 unit embeddings.

    Args:
        card: what it wants to be fed.
        net: the network; None reads the card's ONNX file.
    """

    net: Any

    def __init__(self, card: Card, net: nn.Module | None = None) -> None:
        super().__init__()
        self.card = card
        self.net = _converted(card) if net is None else net
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(card.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(card.std).view(1, 3, 1, 1))

    def cut(self, crops: Tensor) -> Tensor:
        """What the recognizer looks at of crops, in its size."""
        offset = MARGIN if crops.shape[-1] != INNER else 0
        height, width = self.card.size
        top, left = offset + (INNER - height) // 2, offset + (INNER - width) // 2
        return crops[:, :, top : top + height, left : left + width]

    def prepare(self, crops: Tensor) -> Tensor:
        """Cut the recognizer's input from crops and normalise it."""
        x = ((self.cut(crops) + 1.0) * 127.5 - self.mean) / self.std  # type: ignore[operator]
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, crops: Tensor) -> Tensor:
        with quiet():
            return nn.functional.normalize(self.net(self.prepare(crops)).float(), dim=1)


class FaceNet(Surrogate):
    """facenet-pytorch's InceptionResnetV1, one of the recognizers the paper attacks: 160 pixels, the whole crop.

    Args:
        name: of FACENETS. The weights, 110 MB, are downloaded into PyTorch's cache on first use.

    Raises:
        TrainingError: they cannot be had.
    """

    def __init__(self, name: str) -> None:
        from facenet_pytorch import InceptionResnetV1
        from facenet_pytorch.models.inception_resnet_v1 import get_torch_home

        data, file = FACENETS[name]
        path = Path(get_torch_home()) / "checkpoints" / file
        try:
            net = InceptionResnetV1(pretrained=data).eval().to(memory_format=torch.channels_last)
        except Exception as error:  # the network's, the file system's and torch's own
            reason = first_line(error)
            raise TrainingError(f"the weights of {name} cannot be had: {reason}", f"put them at {path}") from error
        grey, scale = (127.5, 127.5, 127.5), (128.0, 128.0, 128.0)
        super().__init__(Card(name, path, size=(FACENET_SIZE, FACENET_SIZE), mean=grey, std=scale), net)

    def cut(self, crops: Tensor) -> Tensor:
        """All of a crop, enlarged."""
        # in float32, as the noise before it: half precision would round small changes away
        with torch.autocast(crops.device.type, enabled=False):
            return nn.functional.interpolate(crops.float(), size=self.card.size, mode="bilinear", align_corners=False)

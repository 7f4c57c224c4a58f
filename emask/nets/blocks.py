"""Layers shared by generator, restorer and discriminator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """Convolution, norm, optional modulation, leaky ReLU.

    The batch norm serves stage 1 only. Stages 2 and 3 work on `folded()` copies: with fixed statistics it is a linear
    map, which the convolution takes over, so that training cannot disturb it and inference does not pay for it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=True)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        self.outputs = outputs

    def forward(self, x: Tensor, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, C, H, W) to (B, outputs, H', W'); modulation is a pair of (B, outputs, 1, 1): gain - 1 and shift."""
        x = self.norm(self.conv(x))
        if modulation is not None:
            gain, shift = modulation
            x = x * (1 + gain) + shift
        return nn.functional.leaky_relu(x, 0.2)

    def fold(self) -> None:
        """Fold the norm's running statistics into the convolution, in place."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.norm.eval()
            self.conv = nn.utils.fusion.fuse_conv_bn_eval(self.conv.eval(), self.norm)
            self.norm = nn.Identity()

    def unfold(self, mean: Tensor, variance: Tensor) -> None:
        """Put a norm behind a folded convolution, in place, that gives back what it takes away.

        Args:
            mean, variance: (outputs,) float32 of the convolution's output, over a batch like those to be trained on.
        """
        norm = nn.BatchNorm2d(self.outputs)
        with torch.no_grad():
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(variance)  # type: ignore[union-attr]
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.copy_(mean)
        self.norm = norm


class Encoder(nn.Module):
    """E^1..E^L: (B, 3, S, S) to the outputs of all layers, each half the size of the one before."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.layers = nn.ModuleList(Layer(i, o, 4, 2) for i, o in zip(inputs, widths, strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """D^1..D^L: the encoder's features and n labels to an image.

    Layer l reads the layer before, upsampled, beside the encoder's features of the same size. The last step to full
    size is a transposed convolution without an activation.
    """

    def __init__(self, widths: tuple[int, ...], attributes: int) -> None:
        super().__init__()
        outputs = (*widths[-2::-1], widths[0])
        skips = widths[::-1]
        layers, before = [], attributes
        for skip, out in zip(skips, outputs, strict=True):
            layers.append(Layer(before + skip, out, 3, 1))
            before = out
        self.layers = nn.ModuleList(layers)
        self.to_image = nn.ConvTranspose2d(before, 3, 4, 2, 1)

    def forward(
        self,
        features: list[Tensor],
        labels: Tensor,
        modulations: list[tuple[Tensor, Tensor]] | None = None,
        injected: tuple[list[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            features: the encoder's outputs, largest first.
            labels: (B, n).
            modulations: one (gain - 1, shift) pair a layer, or None.
            injected: the layer outputs of the clean decoding and the (B, 1, 1, 1) weight w they are mixed in with:
                d_l = (1 - w) D^l(protected) + w D^l(clean).

        Returns:
            The (B, 3, S, S) float32 image and the outputs of all layers, the image last.
        """
        outputs: list[Tensor] = []
        deepest = features[-1]
        height, width = deepest.shape[-2:]
        x = labels.to(deepest.dtype)[:, :, None, None].expand(-1, -1, height, width)
        for index, layer in enumerate(self.layers):
            if index:
                x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = layer(torch.cat([x, features[-1 - index]], 1), modulations[index] if modulations else None)
            if injected is not None:
                clean, weight = injected
                x = (1 - weight) * x + weight * clean[index]
            outputs.append(x)
        # bfloat16's 8 bits are too coarse for the difference of two images
        with torch.autocast(x.device.type, enabled=False):
            image = self.to_image(x.float())
        if injected is not None:
            clean, weight = injected
            image = (1 - weight) * image + weight * clean[-1]
        outputs.append(image)
        return image, outputs


def fold_norms(module: nn.Module) -> None:
    """Fold every layer's norm in place; the module is for stages 2 and 3 from then on."""
    for part in module.modules():
        if isinstance(part, Layer):
            part.fold()


@torch.no_grad()
def unfold_norms(module: nn.Module, run: Callable[[], object]) -> None:
    """Give every layer of a folded module a norm again, in place, without changing what the module computes.

    Stage 1 diverges without norms; so weights that went through stages 2 and 3 get theirs back.

    Args:
        run: calls the module on a batch like those it will be trained on.
    """
    layers = [part for part in module.modules() if isinstance(part, Layer)]
    seen: dict[Layer, Tensor] = {}
    hooks = [
        layer.conv.register_forward_hook(lambda _, __, output, layer=layer: seen.__setitem__(layer, output.float()))
        for layer in layers
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        variance, mean = torch.var_mean(seen[layer], (0, 2, 3))
        layer.unfold(mean, variance)


def feather_window(size: int) -> Tensor:
    """The (1, 1, S, S) float32 weight of `emask.face.align.feather`, so that what is trained is what ships."""
    from emask.face.align import feather

    return torch.from_numpy(feather(size))[None, None]

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


def fuse(clean: Tensor, perturbed: Tensor, share: Tensor) -> Tensor:
    """The paper's f_l = fuse(E^l(e_{l-1}), E_p^l(f_{l-1})), here with fuse(e, p) = e + s_l (p - e).

    Written as a difference so that equal inputs give exactly E's output whatever s_l is: at first there is no mask.

    Args:
        clean: e = E^l(e_{l-1}), (B, C, H, W): the encoder's layer on its own features of the clean crop.
        perturbed: p = E_p^l(f_{l-1}), the same shape: the perturbation encoder's layer on the features fused before.
        share: s_l, a learned scalar, 0.5 at first and not bounded; 0 would be E alone, 1 E_p alone.

    Returns:
        f_l, of the shape and type of `perturbed`.
    """
    return clean + share.to(perturbed.dtype) * (perturbed - clean)


def inject(protected: Tensor, clean: Tensor, weight: Tensor) -> Tensor:
    """The paper's information injection: d_l = (1 - w) D^l(protected) + w D^l(clean).

    Args:
        protected: D^l(protected), (B, C, H, W): a layer of the decoder of the fused features, or its image.
        clean: D^l(clean), the same shape: the same layer of the frozen decoder of the clean ones.
        weight: w in [0, 1], (B, 1, 1, 1) float32; 0 leaves the protected decoding as it is, 1 gives the clean one.

    Returns:
        d_l, of the shape and type of `protected`. Mixed in float32 all the same: in bfloat16 w and 1 - w do not add up
        to 1, and the mask, a small difference of two decodings, would get a part of the face itself.
    """
    return ((1 - weight) * protected + weight * clean).to(protected.dtype)


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
            injected: the outputs of all layers of the clean decoding, its image last, and the (B, 1, 1, 1) weight w
                with which `inject` mixes each into this one's.

        Returns:
            The (B, 3, S, S) float32 image and the outputs of all layers, the image last.
        """
        outputs: list[Tensor] = []
        deepest = features[-1]
        height, width = deepest.shape[-2:]
        x = labels.to(deepest.dtype)[:, :, None, None].expand(-1, -1, height, width)
        for index, layer in enumerate(self.layers):
            skip = features[-1 - index]
            if index:
                # on CUDA, autocast has it give float32
                x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest").to(skip.dtype)
            x = layer(torch.cat([x, skip], 1), modulations[index] if modulations else None)
            if injected is not None:
                clean, weight = injected
                x = inject(x, clean[index], weight)
            outputs.append(x)
        # bfloat16's 8 bits are too coarse for the difference of two images
        with torch.autocast(x.device.type, enabled=False):
            image = self.to_image(x.float())
        if injected is not None:
            clean, weight = injected
            image = inject(image, clean[-1], weight)
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

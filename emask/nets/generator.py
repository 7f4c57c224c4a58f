"""The generator G: encoder E, perturbation encoder E_p, decoder D, and the mask they make.

ErasableMask (Shen et al., arXiv 2412.17038) with three departures, argued in docs/architecture.md: the target is an
input, the change is what counts (a soft decoder does not blur the photo), and the protected features are decoded by a
trainable copy of D.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from emask.attributes import ATTRIBUTES
from emask.nets.blocks import Decoder, Encoder, feather_window, fold_norms, fuse


@dataclass(frozen=True)
class NetConfig:
    """Sizes of generator and restorer; kept in every checkpoint.

    Attributes:
        size: side of the crop, pixels.
        widths: channels of the encoder's layers.
        attributes: number of labels.
        target: numbers in the target's embedding.
        hidden: width of the network that turns the target into modulations.
    """

    size: int = 128
    widths: tuple[int, ...] = (32, 64, 128, 192)
    attributes: int = len(ATTRIBUTES)
    target: int = 256
    hidden: int = 256

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict) -> NetConfig:
        return NetConfig(**{**values, "widths": tuple(values["widths"])})


class Editor(nn.Module):
    """E and D: attribute editing, trained in stage 1."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.widths)
        self.decoder = Decoder(config.widths, config.attributes)

    def forward(self, crop: Tensor, labels: Tensor) -> Tensor:
        """D(E(x), labels): (B, 3, S, S), (B, n) to (B, 3, S, S)."""
        return self.decoder(self.encoder(crop), labels)[0]


class Modulation(nn.Module):
    """The target's embedding to a gain and a shift for each channel of E_p and of the decoder; zero at first."""

    def __init__(self, target: int, hidden: int, channels: list[int]) -> None:
        super().__init__()
        self.channels = channels
        self.scale = target**0.5  # a unit vector's entries are of size 1 / sqrt(target)
        self.body = nn.Sequential(
            nn.Linear(target, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2)
        )
        self.out = nn.Linear(hidden, 2 * sum(channels))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, target: Tensor) -> list[tuple[Tensor, Tensor]]:
        values = self.out(self.body(target * self.scale))[:, :, None, None]
        pairs, start = [], 0
        for channels in self.channels:
            gain = values[:, start : start + channels]
            shift = values[:, start + channels : start + 2 * channels]
            pairs.append((gain, shift))
            start += 2 * channels
        return pairs


class Clean(NamedTuple):
    """What E and D make of a crop; see `Generator.clean`."""

    features: list[Tensor]
    decoded: Tensor
    layers: list[Tensor]
    edit: Tensor


class Generator(nn.Module):
    """Makes the change that protects a crop.

    Args:
        editor: E and D from stage 1. Frozen copies of it are used; E_p and the decoder of the protected features start
            as further copies, so that at first the protected crop is the attribute-edited one exactly.
    """

    window: Tensor

    def __init__(self, editor: Editor) -> None:
        super().__init__()
        self.config = editor.config
        frozen = copy.deepcopy(editor).eval()
        fold_norms(frozen)
        self.encoder, self.decoder = frozen.encoder, frozen.decoder
        self.perturbation_encoder = copy.deepcopy(frozen.encoder)
        self.protected_decoder = copy.deepcopy(frozen.decoder)
        for part in (self.encoder, self.decoder):
            part.requires_grad_(False)
        self.fusion = nn.Parameter(torch.full((len(self.config.widths),), 0.5))
        channels = [layer.outputs for layer in self.perturbation_encoder.layers]  # type: ignore[union-attr]
        channels += [layer.outputs for layer in self.protected_decoder.layers]  # type: ignore[union-attr]
        self.modulation = Modulation(self.config.target, self.config.hidden, channels)  # type: ignore[arg-type]
        self.register_buffer("window", feather_window(self.config.size), persistent=False)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters of stage 2."""
        return [p for p in self.parameters() if p.requires_grad]

    def fused(self, crop: Tensor, clean: list[Tensor], modulations: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """f_1..f_L, f_l = fuse(E^l(e_{l-1}), E_p^l(f_{l-1})): E_p reads what was fused before, not its own output.

        Args:
            crop: (B, 3, S, S), which is both e_0 and f_0.
            clean: E^1(e_0)..E^L(e_{L-1}), largest first.
            modulations: one (gain - 1, shift) pair a layer of E_p.
        """
        f, features = crop, []
        for index, layer in enumerate(self.perturbation_encoder.layers):
            f = fuse(clean[index], layer(f, modulations[index]), self.fusion[index])
            features.append(f)
        return features

    @torch.no_grad()
    def clean(self, crop: Tensor, a: Tensor, b: Tensor, edit: bool = True) -> Clean:
        """The frozen half: E's features, D(e, b) with its layers' outputs, and the edit D(e, b) - D(e, a).

        Args:
            edit: False where a = b is known, which saves one decoding; the edit is then zero.
        """
        features = self.encoder(crop)
        decoded, layers = self.decoder(features, b)
        change = decoded - self.decoder(features, a)[0] if edit else torch.zeros_like(decoded)
        return Clean(features, decoded, layers, change)

    def mask(
        self, crop: Tensor, target: Tensor, a: Tensor, b: Tensor, w: Tensor, edit: bool = True,
        known: Clean | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The unbounded mask, D_p(f, b) - D(e, b) in grey, and the edit D(e, b) - D(e, a), each (B, 3, S, S) float32.

        The mask is the same in all three channels. Left free, it paints coloured contours, which people notice first,
        and which a JPEG file with halved chroma loses; recognizers read brightness just as well.

        Args:
            edit: as for `clean`.
            known: what `clean` gave for these crops and labels, where it has been computed already.
        """
        modulations = self.modulation(target)
        layers = len(self.config.widths)
        frozen = self.clean(crop, a, b, edit) if known is None else known
        f = self.fused(crop, frozen.features, modulations[:layers])
        weight = w.view(-1, 1, 1, 1)
        protected, _ = self.protected_decoder(f, b, modulations[layers:], (frozen.layers, weight))
        return (protected - frozen.decoded).mean(1, keepdim=True).expand(-1, 3, -1, -1), frozen.edit

    def compose(self, crop: Tensor, mask: Tensor, edit: Tensor, eps: Tensor) -> Tensor:
        """The change that ships: feathered, its mask within the L2 budget, the result within [-1, 1].

        Args:
            mask, edit: from `mask()`.
            eps: (B,) budget for the L2 norm of the mask over a crop, in [-1, 1] units (the paper's 30 at 256 pixels is
                15 at 128). Zero gives a change of zero.
        """
        mask = mask * self.window
        norm = torch.sqrt(mask.square().sum((1, 2, 3)) + 1e-12)
        mask = mask * torch.clamp(eps / norm, max=1.0).view(-1, 1, 1, 1)
        return torch.clamp(crop + (edit * self.window + mask), -1.0, 1.0) - crop

    def forward(self, crop: Tensor, target: Tensor, a: Tensor, b: Tensor, w: Tensor, eps: Tensor) -> Tensor:
        """The change to add to a crop.

        Args:
            crop: (B, 3, S, S) float32 RGB in [-1, 1].
            target: (B, 256) float32 unit embedding of the person a recognizer should see.
            a, b: (B, n) float32 labels of the source and wanted ones, in [-1, 1]; zeros keep the look.
            w: (B,) float32 in [0, 1], weight of the clean decoding (information injection); 1 gives no mask.
            eps: (B,) float32, L2 budget of the mask.

        Returns:
            (B, 3, S, S) float32; crop + change lies in [-1, 1].
        """
        mask, edit = self.mask(crop, target, a, b, w)
        return self.compose(crop, mask, edit, eps)

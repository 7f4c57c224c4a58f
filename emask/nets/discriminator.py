"""The discriminator: critic and attribute classifier, each with a trunk of its own. Used in training only."""

from __future__ import annotations

from torch import Tensor, nn


class Critic(nn.Sequential):
    """(B, 3, S, S) float32 RGB in [-1, 1] to a (B,) score.

    No norm across the batch: the gradient penalty of WGAN-GP is defined per image.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            before = width
        super().__init__(*layers, nn.Conv2d(before, 1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).mean((1, 2, 3))  # type: ignore[no-any-return]


class Classifier(nn.Sequential):
    """(B, 3, S, S) float32 RGB in [-1, 1] to (B, n) attribute logits.

    AttGAN's classifier shares the critic's trunk. Without a norm in it, it learned nothing in the minutes that two
    cores have for it but how rare each attribute is.
    """

    def __init__(self, attributes: int, widths: tuple[int, ...]) -> None:
        layers: list[nn.Module] = [*_convolution(3, widths[0], 2)]
        for before, width in zip(widths, (*widths[1:], widths[-1]), strict=True):
            layers += [*_convolution(before, width, 2), *_convolution(width, width, 1)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * widths[-1], attributes))


def _convolution(before: int, width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]


class Discriminator(nn.Module):
    """Both; `forward` gives the critic's (B,) score and the classifier's (B, n) logits."""

    def __init__(self, attributes: int, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.critic = Critic(widths)
        self.classifier = Classifier(attributes, widths)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.critic(image), self.classifier(image)

"""The discriminator: a shared trunk with two heads, critic and attribute classifier. Used in training only."""

from __future__ import annotations

from torch import Tensor, nn


class Discriminator(nn.Module):
    """(B, 3, S, S) float32 RGB in [-1, 1] to a (B,) critic score and (B, n) attribute logits.

    No norm across the batch: the gradient penalty of WGAN-GP is defined per image. Averaging instead of AttGAN's fully
    connected layer keeps it at a few hundred thousand parameters.
    """

    def __init__(self, attributes: int, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            before = width
        self.trunk = nn.Sequential(*layers)
        self.critic = nn.Conv2d(before, 1, 3, 1, 1)
        self.classifier = nn.Sequential(
            nn.Conv2d(before, 128, 4, 2, 1), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(512, attributes),
        )  # fmt: skip

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(image)
        return self.critic(features).mean((1, 2, 3)), self.classifier(features)

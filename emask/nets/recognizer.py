"""The project's own compact recognizer: a MobileFaceNet (Chen et al. 2018, arXiv 1804.07573) in segments.

The segments end where a teacher's stages end, so that each can be given the teacher's own features in distillation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING = 256
# (channels, blocks that keep the size, expansion of the strided block that begins the segment or 0)
_SEGMENTS = [(64, 2, 0), (64, 2, 0), (128, 0, 256), (128, 3, 0), (128, 3, 0), (128, 0, 512), (128, 2, 0)]
_STEM = 32


def _norm(channels: int) -> nn.BatchNorm2d:
    # The field's usual momentum of 0.1 leaves too much of the early, teacher-fed statistics in short runs.
    return nn.BatchNorm2d(channels, momentum=0.05)


class Subsample(nn.Module):
    """Keeps every n-th row and column of (B, C, H, W)."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.step, :: self.step]


class Bottleneck(nn.Module):
    """Inverted residual: 1x1 expand, depthwise 3x3, linear 1x1; the input is added where the size stays."""

    def __init__(self, inputs: int, outputs: int, hidden: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            _norm(hidden),
            nn.LeakyReLU(0.1, inplace=True),
            # stride 1 and every second pixel kept: on a CPU the backward pass of a strided depthwise one is far slower
            nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False),
            Subsample(stride) if stride > 1 else nn.Identity(),
            _norm(hidden),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            _norm(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class Recognizer(nn.Module):
    """(B, 3, 112, 112) float32 RGB in [-1, 1] to (B, 256) float32 unit embeddings."""

    def __init__(self, embedding: int = EMBEDDING) -> None:
        super().__init__()
        stem = nn.Sequential(
            nn.Conv2d(3, _STEM, 3, 2, 1, bias=False),
            _norm(_STEM),
            nn.LeakyReLU(0.1, inplace=True),
            Bottleneck(_STEM, 64, 96, 2),
        )
        segments: list[nn.Module] = [stem]
        channels = 64
        for outputs, blocks, strided in _SEGMENTS:
            layers: list[nn.Module] = []
            if strided:
                layers.append(Bottleneck(channels, outputs, strided, 2))
            layers += [Bottleneck(outputs, outputs, 2 * outputs, 1) for _ in range(blocks)]
            segments.append(nn.Sequential(*layers))
            channels = outputs
        self.segments = nn.ModuleList(segments)
        self.head = nn.Sequential(
            nn.Conv2d(channels, 512, 1, bias=False),
            _norm(512),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(512, 512, 7, groups=512, bias=False),
            _norm(512),
            nn.Flatten(),
            nn.Linear(512, embedding),
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of every segment, in order."""
        outputs = []
        for segment in self.segments:
            x = segment(x)
            outputs.append(x)
        return outputs

    def forward(self, crops: Tensor) -> Tensor:
        x = self.head(self.features(crops)[-1])
        return x / torch.sqrt((x * x).sum(1, keepdim=True) + 1e-12)

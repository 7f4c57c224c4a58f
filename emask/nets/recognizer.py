"""The project's own compact recognizer: a MobileFaceNet (Chen et al. 2018, arXiv 1804.07573) in segments.

The segments end where a teacher's stages end, so that each can be given the teacher's own features in distillation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EMBEDDING = 256


@dataclass(frozen=True)
class Form:
    """How large a recognizer is.

    Attributes:
        stem: channels after the first convolution, which halves the sides.
        entry: (channels, expansion) of the bottlenecks that end the stem; the last halves the sides again.
        segments: (channels, blocks that keep the size, their expansion, expansion of the strided block that begins the
            segment or 0).
        embedding: numbers.
        pooled: channels that a 7x7 depthwise convolution reads, or 0: then all 7x7 places of 64 channels are read.
    """

    stem: int
    entry: tuple[tuple[int, int], ...]
    segments: tuple[tuple[int, int, int, int], ...]
    embedding: int
    pooled: int

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Form:
        """The form that `dataclasses.asdict` gave, also after a journey through JSON or a checkpoint."""
        rows = {name: tuple(tuple(row) for row in content[name]) for name in ("entry", "segments")}
        return cls(**{**content, **rows})


# The one that ships as recognizer: faces are compared with it, and the generator is conditioned by it.
COMPACT = Form(
    32, ((64, 96),),
    ((64, 2, 128, 0), (64, 2, 128, 0), (128, 0, 0, 256), (128, 3, 256, 0), (128, 3, 256, 0), (128, 0, 0, 512),
     (128, 2, 256, 0)),
    EMBEDDING, 512,
)  # fmt: skip
# The one that ships as refiner: a mask fitted through it is to move the very network it was taught by.
WIDE = Form(
    64, ((64, 128), (128, 192)),
    (*((128, 1, 192, 0),) * 4, (256, 0, 0, 256), *((256, 1, 384, 0),) * 6, (256, 0, 0, 512), *((256, 1, 384, 0),) * 2),
    512, 0,
)  # fmt: skip


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
    """(B, 3, 112, 112) float32 RGB in [-1, 1] to (B, D) float32 unit embeddings, D by its form."""

    def __init__(self, form: Form = COMPACT) -> None:
        super().__init__()
        self.form = form
        channels = form.stem
        stem: list[nn.Module] = [
            nn.Conv2d(3, channels, 3, 2, 1, bias=False), _norm(channels), nn.LeakyReLU(0.1, inplace=True)
        ]  # fmt: skip
        for index, (outputs, hidden) in enumerate(form.entry):
            stem.append(Bottleneck(channels, outputs, hidden, 2 if index == len(form.entry) - 1 else 1))
            channels = outputs
        segments: list[nn.Module] = [nn.Sequential(*stem)]
        for outputs, blocks, hidden, strided in form.segments:
            layers: list[nn.Module] = []
            if strided:
                layers.append(Bottleneck(channels, outputs, strided, 2))
            layers += [Bottleneck(outputs, outputs, hidden, 1) for _ in range(blocks)]
            segments.append(nn.Sequential(*layers))
            channels = outputs
        self.segments = nn.ModuleList(segments)
        widest = form.pooled or 512
        head: list[nn.Module] = [
            nn.Conv2d(channels, widest, 1, bias=False), _norm(widest), nn.LeakyReLU(0.1, inplace=True)
        ]  # fmt: skip
        if form.pooled:
            head += [nn.Conv2d(widest, widest, 7, groups=widest, bias=False), _norm(widest), nn.Flatten()]
            head.append(nn.Linear(widest, form.embedding))
        else:
            head += [nn.Conv2d(widest, 64, 1, bias=False), _norm(64), nn.LeakyReLU(0.1, inplace=True), nn.Flatten()]
            head.append(nn.Linear(64 * 7 * 7, form.embedding))
        self.head = nn.Sequential(*head)

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

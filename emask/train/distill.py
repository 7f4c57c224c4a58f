"""Distilling the compact recognizer from stronger ones.

Its embedding copies the teachers' joint one: their unit embeddings side by side, projected on the 256 directions in
which training faces differ most, so that one cosine stands for the mean cosine of all teachers. The first teacher also
gives its inner features: at first each segment of the student reads the teacher's features of the stage before
(every segment learns at once, from a dense signal), later its own. Ten thousand photos are few; faces mixed from two
people, shifted, blurred and recoloured are faces to the teachers too, and they label them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emask.errors import TrainingError
from emask.face.align import INNER, MARGIN
from emask.nets.recognizer import EMBEDDING, Recognizer
from emask.train.data import Crops
from emask.train.surrogates import Surrogate

# Layers of the InsightFace-y1 MobileFaceNet whose outputs end its stages, in the order of `Recognizer.segments`:
# counted among its additions and its last 1x1 convolutions by `_stage_nodes`.
_HINT_SHAPES = [(64, 28), (64, 28), (64, 28), (128, 14), (128, 14), (128, 14), (128, 7), (128, 7)]
_HINT_SKIP = [0, 2, 2, 0, 3, 3, 0, 2]


@dataclass(frozen=True)
class DistillConfig:
    """Settings of a distillation run.

    Attributes:
        batch: crops a step.
        lr: peak learning rate of AdamW; warms up over 3% of the time, then falls to zero along a cosine.
        forced: share of the time in which segments read the teacher's features.
        mix: share of crops that are mixed with another person's.
        bf16: autocast to bfloat16.
    """

    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-4
    forced: float = 0.4
    mix: float = 0.35
    bf16: bool = True
    seed: int = 0


class TeacherSpace(nn.Module):
    """Embeddings of several recognizers joined into one unit vector of 256 numbers.

    Args:
        teachers: the recognizers.
        projection: (sum of their dimensions, 256) float32 with orthonormal columns.
    """

    projection: Tensor

    def __init__(self, teachers: list[Surrogate], projection: Tensor | None = None) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
        self.register_buffer("projection", projection if projection is not None else torch.zeros(0))

    def joint(self, crops: Tensor) -> Tensor:
        """(B, 3, S, S) crops to (B, D) joint embeddings of unit length."""
        return torch.cat([teacher(crops) for teacher in self.teachers], 1) / math.sqrt(len(self.teachers))

    def fit(self, joint: Tensor) -> None:
        """Take the leading directions (uncentred: cosines must survive) of (N, D) joint embeddings."""
        _, vectors = torch.linalg.eigh(joint.T.double() @ joint.double())
        self.projection = vectors[:, -EMBEDDING:].flip(1).float()

    def project(self, joint: Tensor) -> Tensor:
        """(B, D) joint embeddings to (B, 256) unit embeddings."""
        return nn.functional.normalize(joint @ self.projection, dim=1)


def to_float(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1], channels last."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1.0)


def augment(x: Tensor, generator: torch.Generator, mix: float) -> Tensor:
    """Random views of (B, 3, S, S) crops in [-1, 1]: mixed people, flips, small similarities, light, blur, noise."""
    batch = x.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, generator=generator) * (high - low) + low

    share = uniform(0.2, 0.8) * (uniform(0, 1) < mix)
    share = share.view(-1, 1, 1, 1)
    x = (1 - share) * x + share * x[torch.randperm(batch, generator=generator)]
    angle, zoom = uniform(-0.14, 0.14), uniform(0.93, 1.07)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = flip * zoom * angle.cos(), -zoom * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = flip * zoom * angle.sin(), zoom * angle.cos()
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-0.05, 0.05), uniform(-0.05, 0.05)
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    x = nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    gain, shift = uniform(0.75, 1.25).view(-1, 1, 1, 1), uniform(-0.2, 0.2).view(-1, 1, 1, 1)
    tint = torch.rand(batch, 3, 1, 1, generator=generator) * 0.12 - 0.06
    x = x * gain + shift + tint
    if float(torch.rand((), generator=generator)) < 0.25:
        side = int(torch.randint(40, 100, (), generator=generator))
        small = nn.functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        x = nn.functional.interpolate(small, size=x.shape[-2:], mode="bilinear")
    if float(torch.rand((), generator=generator)) < 0.25:
        x = x + torch.randn(x.shape, generator=generator) * 0.06
    return x.clamp(-1, 1)


class _Hints:
    """Inner features of the first teacher, read off its graph."""

    def __init__(self, teacher: Surrogate) -> None:
        import torch.fx

        self.teacher = teacher
        self.nodes = _stage_nodes(teacher)
        outer = self

        class Reader(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> object:
                value = super().run_node(n)
                if n.name in outer.nodes:
                    outer.features[outer.nodes.index(n.name)] = value
                return value

        self.features: list[Tensor | None] = []
        self._reader = Reader(teacher.net)

    def __call__(self, crops: Tensor) -> tuple[list[Tensor], Tensor]:
        self.features = [None] * len(self.nodes)
        output = self._reader.run(self.teacher.prepare(crops))
        features = [f for f in self.features if f is not None]
        assert len(features) == len(self.nodes)
        return features, nn.functional.normalize(output.float(), dim=1)


def _stage_nodes(teacher: Surrogate) -> list[str]:
    """Names of the graph nodes that end the stages of an InsightFace-y1 MobileFaceNet."""
    from torch.fx.passes.shape_prop import ShapeProp

    ShapeProp(teacher.net).propagate(torch.zeros(1, 3, *teacher.card.size))
    modules = dict(teacher.net.named_modules())
    linear: list[tuple[str, tuple[int, int]]] = []  # outputs of linear 1x1 projections and of residual additions
    for node in teacher.net.graph.nodes:
        module = modules.get(str(node.target))
        addition = type(module).__name__ == "OnnxBinaryMathOperation"
        projection = (
            isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels < module.in_channels
        )
        if addition or projection:
            shape = node.meta["tensor_meta"].shape
            linear.append((node.name, (shape[1], shape[2]), addition))  # type: ignore[arg-type]
    names: list[str] = []
    position = -1
    for shape, additions in zip(_HINT_SHAPES, _HINT_SKIP, strict=True):
        wanted = additions
        for index in range(position + 1, len(linear)):
            name, found, addition = linear[index]  # type: ignore[misc]
            if found != shape:
                continue
            if (additions == 0) or addition:
                wanted -= 1
            if wanted <= 0:
                names.append(name)
                position = index
                break
        else:
            raise TrainingError(
                f"{teacher.card.name} is not a MobileFaceNet, whose inner features the recognizer is taught by",
                "name one first with --surrogate",
            )
    return names


def embed_all(space: TeacherSpace, crops: Crops, indices: np.ndarray, batch: int = 64, bf16: bool = True) -> Tensor:
    """Joint teacher embeddings (N, D) of the given crops, on the CPU."""
    rows = []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        for start in range(0, len(indices), batch):
            rows.append(space.joint(to_float(crops.pixels[indices[start : start + batch]])).float())
    return torch.cat(rows)


def distill(
    crops: Crops,
    space: TeacherSpace,
    config: DistillConfig,
    minutes: float,
    checkpoint: Path,
    report: Callable[[str], None],
) -> Recognizer:
    """Train a student for a given time on the crops of people that training may see.

    Args:
        minutes: wall-clock budget; the schedule is laid over it.
        checkpoint: written every five minutes and at the end: student, projection, step, config.
        report: called with one line of progress now and then.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    train = np.flatnonzero(~crops.test)
    watched = np.flatnonzero(crops.test)[:256]
    pixels = np.ascontiguousarray(crops.pixels[train])
    hints = _Hints(space.teachers[0])  # type: ignore[arg-type]
    student = Recognizer().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    scale: list[Tensor] = []
    order = np.zeros(0, np.int64)
    began = saved = told = time.monotonic()
    step, mean_loss = 0, 0.0
    while True:
        progress = (time.monotonic() - began) / (60 * minutes)
        if progress >= 1:
            break
        lr = config.lr * min(1.0, progress / 0.03 + 0.02) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = lr
        if len(order) < config.batch:
            order = rng.permutation(len(pixels))
        pick, order = order[: config.batch], order[config.batch :]
        view = augment(to_float(pixels[pick]), generator, config.mix)
        view = view[:, :, MARGIN : MARGIN + INNER, MARGIN : MARGIN + INNER]
        view = view.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            with torch.no_grad():
                features, first = hints(view)
                others = [teacher(view) for teacher in list(space.teachers)[1:]]
                joint = torch.cat([first, *others], 1) / math.sqrt(len(space.teachers))
                target = space.project(joint.float())
                if not scale:
                    scale = [f.float().var() for f in features]
            forced = progress < config.forced
            x = view
            loss = torch.zeros(())
            for index, segment in enumerate(student.segments):
                x = segment(x)
                weight = 1.0 if forced else 0.3
                loss = loss + weight * (x.float() - features[index].float()).square().mean() / scale[index]
                if forced:
                    x = features[index]
            output = student.head(x)
        embedding = nn.functional.normalize(output.float(), dim=1)
        cosine = (embedding * target).sum(1)
        loss = loss + 4.0 * (1 - cosine).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        step += 1
        mean_loss += 0.02 * (float(cosine.mean()) - mean_loss)
        now = time.monotonic()
        if now - told > 60:
            told = now
            student.eval()
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
                real = to_float(crops.pixels[watched])
                want = space.project(space.joint(real).float())
                inner = real[:, :, MARGIN : MARGIN + INNER, MARGIN : MARGIN + INNER]
                got = student(inner.contiguous(memory_format=torch.channels_last)).float()
            student.train()
            report(
                f"{(now - began) / 60:5.1f} min  step {step}  {step * config.batch / (now - began):.0f} crops/s  "
                f"loss {float(loss):.3f}  cosine {mean_loss:.3f}  unseen cosine {float((want * got).sum(1).mean()):.3f}"
            )
        if now - saved > 300:
            saved = now
            _save(checkpoint, student, space, step)
    student.eval()
    _save(checkpoint, student, space, step)
    return student


def _save(path: Path, student: Recognizer, space: TeacherSpace, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {"student": student.state_dict(), "projection": space.projection, "step": step}
    torch.save(state, partial)
    partial.replace(path)

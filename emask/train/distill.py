"""Distilling the project's own recognizers from stronger ones.

The compact recognizer copies several teachers: its embedding is their unit embeddings side by side, projected on the
256 directions in which training faces differ most, so that one cosine stands for the mean cosine of all teachers. The
refiner copies one teacher as closely as it can, also on faces that wear masks: what moves it is to move its teacher,
and those who learned as its teacher did. The first teacher also gives its inner features: at first each segment of
the student reads the teacher's features of the segment before (every segment learns at once, from a dense signal),
later its own. Ten thousand photos are few; faces mixed from two people, shifted, blurred and recoloured are faces to
the teachers too, and they label them.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emask.engine import Engine
from emask.errors import TrainingError
from emask.face.align import INNER, MARGIN
from emask.nets.recognizer import COMPACT, EMBEDDING, Form, Recognizer
from emask.train.checkpoint import save
from emask.train.data import Crops
from emask.train.surrogates import Surrogate

# (crops (B, 3, S, S) in [-1, 1], budgets (B,)) -> protected crops
Masked = Callable[[Tensor, Tensor], Tensor]
SQUARE = slice(MARGIN, MARGIN + INNER)


@dataclass(frozen=True)
class DistillConfig:
    """Settings of a distillation run.

    Attributes:
        batch: crops a step.
        lr: peak learning rate of AdamW; warms up over 3% of the time, then falls to zero along a cosine.
        forced: share of the time in which segments read the teacher's features.
        mix: share of crops that are mixed with another person's.
        worn: share of the time after which faces wear masks, if there are any to wear.
        replays: steps on the same faces then, each with the mask taken further against the student.
        budget: least and largest L2 norm of such a mask, over a crop in [-1, 1] units.
        bf16: autocast to bfloat16.
    """

    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-4
    forced: float = 0.4
    mix: float = 0.35
    worn: float = 0.5
    replays: int = 3
    budget: tuple[float, float] = (3.0, 13.0)
    bf16: bool = True
    seed: int = 0


class TeacherSpace(nn.Module):
    """Embeddings of one or several recognizers joined into one unit vector.

    Args:
        teachers: the recognizers.
        projection: (sum of their dimensions, D) float32 with orthonormal columns.
    """

    projection: Tensor

    def __init__(self, teachers: list[Surrogate], projection: Tensor | None = None) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
        self.register_buffer("projection", projection if projection is not None else torch.zeros(0))

    def joint(self, crops: Tensor) -> Tensor:
        """(B, 3, S, S) crops to (B, D) joint embeddings of unit length."""
        return torch.cat([teacher(crops) for teacher in self.teachers], 1) / math.sqrt(len(self.teachers))

    def fit(self, joint: Tensor, directions: int = EMBEDDING) -> None:
        """Take the leading directions (uncentred: cosines must survive) of (N, D) joint embeddings."""
        _, vectors = torch.linalg.eigh(joint.T.double() @ joint.double())
        self.projection = vectors[:, -directions:].flip(1).float()

    def project(self, joint: Tensor) -> Tensor:
        """(B, D) joint embeddings to (B, directions) unit embeddings."""
        return nn.functional.normalize(joint @ self.projection, dim=1)


def generator_masks(engine: Engine, crops: Crops, seed: int) -> Masked:
    """The generator's masks, for targets drawn from the photos that training may see.

    Args:
        engine: opened with a generator and a recognizer.
    """
    rng = np.random.default_rng(seed)
    training = np.flatnonzero(~crops.test)

    def masked(faces: Tensor, budgets: Tensor) -> Tensor:
        shown = to_float(crops.pixels[rng.choice(training, len(faces))])
        targets = engine.embed_target(shown[:, :, SQUARE, SQUARE].numpy())
        changes = [
            engine.protect(face[None].numpy(), target, w=0.0, eps=float(budget))
            for face, target, budget in zip(faces, targets, budgets, strict=True)
        ]
        return faces + torch.from_numpy(np.concatenate(changes))

    return masked


def fits(teacher: Surrogate, form: Form) -> bool:
    """Whether a student of this form can be taught by the teacher: its inner features, and all of its embedding."""
    try:
        stage_nodes(teacher, Recognizer(form))
    except TrainingError:
        return False
    with torch.no_grad():
        return int(teacher(torch.zeros(1, 3, INNER, INNER)).shape[1]) >= form.embedding


def _further(mask: Tensor, gradient: Tensor, budget: Tensor) -> Tensor:
    """A grey mask (B, 1, H, W) taken along a gradient (B, 3, H, W), by 3/5 of its budget, within it."""
    grey = gradient.mean(1, keepdim=True)

    def norm(x: Tensor) -> Tensor:
        return x.square().sum((1, 2, 3), keepdim=True).sqrt() + 1e-12

    mask = mask + 0.6 * budget * grey / norm(grey)
    return mask * (budget / norm(mask)).clamp(max=1.0)


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
    """Inner features of the first teacher, read off its graph where the student's segments end."""

    def __init__(self, teacher: Surrogate, student: Recognizer) -> None:
        import torch.fx

        self.teacher = teacher
        self.nodes = stage_nodes(teacher, student)
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


def stage_nodes(teacher: Surrogate, student: Recognizer) -> list[str]:
    """Names of the graph nodes of a MobileFaceNet that end what a student's segments are to learn.

    A segment ends at the linear output of its own size that has as many residual blocks between it and the end of the
    segment before as the segment has; a strided block ends at its linear projection.

    Raises:
        TrainingError: the teacher has no such outputs.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    ShapeProp(teacher.net).propagate(torch.zeros(1, 3, *teacher.card.size))
    modules = dict(teacher.net.named_modules())

    def activates(node: torch.fx.Node) -> bool:
        return "ReLU" in type(modules.get(str(node.target))).__name__

    linear: list[tuple[str, tuple[int, int], bool]] = []  # outputs of linear projections and of residual additions
    for node in teacher.net.graph.nodes:
        module = modules.get(str(node.target))
        addition = type(module).__name__ == "OnnxBinaryMathOperation"
        projection = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        if addition or (projection and not any(activates(user) for user in node.users)):
            shape = node.meta["tensor_meta"].shape
            if len(shape) == 4:  # a norm of embeddings adds as well
                linear.append((node.name, (shape[1], shape[2]), addition))
    with torch.no_grad():
        outputs = copy.deepcopy(student).eval().features(torch.zeros(1, 3, INNER, INNER))
        wanted = [(f.shape[1], f.shape[2]) for f in outputs]
    names: list[str] = []
    position = -1
    for size, blocks in zip(wanted, [0, *(segment[1] for segment in student.form.segments)], strict=True):
        left = blocks
        for index in range(position + 1, len(linear)):
            name, found, addition = linear[index]
            if found != size:
                continue
            if blocks == 0 or addition:
                left -= 1
            if left <= 0:
                names.append(name)
                position = index
                break
        else:
            raise TrainingError(
                f"{teacher.card.name} is no MobileFaceNet of the student's form, whose inner features it is taught by",
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
    form: Form = COMPACT,
    masked: Masked | None = None,
) -> Recognizer:
    """Train a student for a given time on the crops of people that training may see.

    Args:
        minutes: wall-clock budget; the schedule is laid over it.
        checkpoint: written every five minutes and at the end: student, form, projection, step. Its folder exists.
        report: called with one line of progress now and then.
        form: the student's.
        masked: masks faces, each with a budget of its own; from `DistillConfig.worn` on half of the faces wear such a
            mask, and all of them one that the student's own gradient draws, further with every replay. What is fitted
            through a student goes where it and its teacher part; there it has to be taught.

    Raises:
        TrainingError: the checkpoint cannot be written.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    train = np.flatnonzero(~crops.test)
    watched = np.flatnonzero(crops.test)[:256]
    pixels = np.ascontiguousarray(crops.pixels[train])
    student = Recognizer(form).to(memory_format=torch.channels_last)
    hints = _Hints(space.teachers[0], student)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    scale: list[Tensor] = []
    order = np.zeros(0, np.int64)
    began = saved = told = time.monotonic()
    step, again, mean_loss = 0, 0, 0.0
    while True:
        progress = (time.monotonic() - began) / (60 * minutes)
        if progress >= 1:
            break
        lr = config.lr * min(1.0, progress / 0.03 + 0.02) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = lr
        worn = masked is not None and progress > config.worn
        if not again:
            if len(order) < config.batch:
                order = rng.permutation(len(pixels))
            pick, order = order[: config.batch], order[config.batch :]
            face = augment(to_float(pixels[pick]), generator, config.mix)
            mask = torch.zeros(config.batch, 1, INNER, INNER)
            low, high = config.budget
            budget = torch.rand(config.batch, 1, 1, 1, generator=generator) * (high - low) + low
            if worn and masked is not None:
                half = config.batch // 2
                face = torch.cat([masked(face[:half], budget[:half].flatten()), face[half:]])
            face = face[:, :, SQUARE, SQUARE]
            again = config.replays if worn else 1
        again -= 1
        view = (face + mask).clamp(-1, 1).contiguous(memory_format=torch.channels_last).requires_grad_(worn)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            with torch.no_grad():
                features, first = hints(view.detach())
                others = [teacher(view) for teacher in list(space.teachers)[1:]]
                joint = torch.cat([first, *others], 1) / math.sqrt(len(space.teachers))
                target = space.project(joint.float())
                if not scale:
                    scale = [f.float().var() for f in features]
            forced = progress < config.forced
            x: Tensor = view
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
        if view.grad is not None:
            mask = _further(mask, view.grad, budget)
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        step += 1
        mean_loss += 0.02 * (float(cosine.detach().mean()) - mean_loss)
        now = time.monotonic()
        if now - told > 60:
            told = now
            student.eval()
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
                real = to_float(crops.pixels[watched])
                want = space.project(space.joint(real).float())
                inner = real[:, :, SQUARE, SQUARE]
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
    state = {
        "student": student.state_dict(), "form": asdict(student.form), "projection": space.projection, "step": step,
    }  # fmt: skip
    save(path, state, hint="free some space and distil again")

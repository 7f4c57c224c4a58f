"""Adversarial fine-tuning of a face recognizer: it keeps its embeddings, and keeps them on attacked faces too.

    min over f of  E_x [ 1 - cos(f(x), f0(x))  +  beta (1 - cos(f(x + d), f0(x))) ],    |d|_2 <= eps

f0 is the recognizer as it was. The second term is FARE's (Schlarmann et al., ICML 2024, arXiv 2402.12336: the largest
|f(x + d) - f0(x)|^2 of the ball, which for unit embeddings is 2 - 2 cos); it needs no labels. The first, and beta
between the two, are as in TRADES (Zhang et al., ICML 2019, arXiv 1901.08573): clean faces pay for robustness.

d is made anew in every step by PGD (Madry et al., ICLR 2018, arXiv 1706.06083) through f itself, for each face by the
toss of a coin: away from the owner, largest 1 - cos(f(x + d), f0(x)); or towards another person y, largest
cos(f(x + d), f0(y)), which is what masks are after. The ball is L2 over the crop because emask's own budget is; a ball
of Linf as long as that would hold only changes spread evenly over the picture. Our choices: budgets around emask's,
half of the changes the same in all three channels, few steps.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from emask.bench.peers.ball import Ball
from emask.bench.peers.descent import descend
from emask.bench.peers.similarity import Recognizer, gradient
from emask.errors import ModelError, TrainingError, first_line
from emask.recognize.cards import Card
from emask.train.data import Crops
from emask.train.distill import to_float
from emask.train.surrogates import FrozenPReLU, Subsampled, Surrogate

# Called with the share that is done and a line about it.
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class FineTuning:
    """Settings of the fine-tuning.

    Attributes:
        batch: people a step, a crop of each.
        lr: peak learning rate of AdamW; warms up over a twentieth of the run, then falls to zero along a cosine.
        weight_decay: of AdamW.
        beta: weight of attacked faces against clean ones.
        eps: L2 budget over a crop in [-1, 1] units, emask's at strength medium.
        spread: budgets are drawn from (1 - spread) eps to (1 + spread) eps, one a step.
        steps: of PGD, each 1.25 eps / steps long or half of eps, whichever is less.
        grey: share of attacks whose change is the same in all three channels, as far as the picture's range allows.
    """

    batch: int = 16
    lr: float = 3e-4
    weight_decay: float = 1e-4
    beta: float = 2.0
    eps: float = 8.9
    spread: float = 0.5
    steps: int = 3
    grey: float = 0.5

    @property
    def step(self) -> float:
        """Length of one step of PGD, as a share of the budget."""
        return min(0.5, 1.25 / self.steps)


@dataclass(frozen=True)
class Tuned:
    """What a run did.

    Attributes:
        steps: weight updates made.
        seconds: wall-clock time they took.
        clean, attacked: mean cosine with the original's clean embedding over the last steps; nan without any.
    """

    steps: int
    seconds: float
    clean: float
    attacked: float


def open_trainable(card: Card) -> Surrogate:
    """A recognizer whose weights have gradients, on the CPU, in evaluation mode.

    Batch norms keep their statistics: most are part of the convolution before them, whose weights are trained; slopes
    of PReLU are not. Of what ONNX holds as bare constants, tensors of more than one number count as weights.

    Raises:
        ModelError: the file is missing, is no ONNX that PyTorch can rebuild, or holds no weights.
    """
    if not card.file.is_file():
        raise ModelError(f"{card.file}: no such recognizer file")
    hint = "leave it out: name others with --recognizer"
    try:
        net = Surrogate(card).eval()
    except Exception as error:  # the reader and the converter raise many classes of their own
        raise ModelError(f"{card.file.name}: PyTorch cannot rebuild it ({first_line(error)})", hint) from error
    graph = net.net
    graph.delete_all_unused_submodules()
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            holder = graph.get_submodule(owner)
            value = getattr(holder, leaf)
            if not isinstance(value, nn.Parameter) and value.is_floating_point() and value.numel() > 1:
                delattr(holder, leaf)
                holder.register_parameter(leaf, nn.Parameter(value))
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    if not any(True for _ in net.parameters()):
        raise ModelError(f"{card.file.name}: holds no weights that could be trained", hint)
    return net


def plain(net: Surrogate) -> nn.Module:
    """A copy of a surrogate's network, on the CPU, in which all modules are ones that ONNX knows.

    Input (B, 3, h, w) float32, normalised as its card says; output (B, D), not yet of unit length.
    """
    graph = copy.deepcopy(net.net).cpu().float().eval()
    for name, module in list(graph.named_modules()):
        if isinstance(module, FrozenPReLU):
            slope = module.slope
            assert isinstance(slope, Tensor)
            usual = nn.PReLU(slope.numel())
            usual.weight.data.copy_(slope.flatten())
            graph.add_submodule(name, usual)
        elif isinstance(module, Subsampled):
            module.conv.stride = module.stride
            graph.add_submodule(name, module.conv)
    return graph.requires_grad_(False).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


def attack(
    net: Recognizer, crops: Tensor, wanted: Tensor, away: Tensor, ball: Ball, steps: int, step: float,
    grey: Tensor | None = None, start: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """PGD on the cosine with an embedding: as low as can be, or as high.

    Args:
        net: what the gradient goes through.
        crops: (B, 3, S, S) in [-1, 1].
        wanted: (B, D) unit embeddings, one a face.
        away: (B,) bool: away from it; else towards it.
        step: length of a step by the ball's norm, in units of [-1, 1].
        grey: (B,) bool: steps are the same in all channels.
        start: the change to begin with, (B, 3, S, S) or (1, 3, S, S). A face's own embedding has no gradient at the
            face itself, so leaving it wants one.

    Returns:
        The (B, 3, S, S) change, without gradient; within the ball, crops + change in [-1, 1].
    """
    sign = torch.where(away, 1.0, -1.0)

    def slope(faces: Tensor) -> Tensor:
        found = gradient(lambda x: sign * (net(x) * wanted).sum(1), faces)
        if grey is None:
            return found
        return torch.where(grey.view(-1, 1, 1, 1), found.mean(1, keepdim=True), found)

    return descend(crops, slope, ball, steps, step, start=start)


def _random_start(crops: Tensor, grey: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
    """(B, 3, S, S) of uniform direction and length in the ball, a draw a face, on the device of the crops."""
    noise = torch.randn(crops.shape, generator=generator)
    noise = torch.where(grey.cpu().view(-1, 1, 1, 1), noise[:, :1], noise)
    length = ball.eps * torch.rand(len(crops), 1, 1, 1, generator=generator)
    return (length * ball.direction(noise)).to(crops)


def fine_tune(
    net: Surrogate, original: Recognizer, crops: Crops, config: FineTuning, *, minutes: float = 0.0,
    steps: int | None = None, seed: int = 0, report: Report | None = None,
) -> Tuned:  # fmt: skip
    """Tune a recognizer in place on people whom training may see.

    Args:
        net: from `open_trainable`, on the device to compute on.
        original: the recognizer as it was, on the same device.
        crops: only those of people with `test` False are used.
        minutes: wall-clock limit. With 0, or 0 steps, nothing changes.
        steps: number of updates instead of a time.
        seed: of the people, attacks and budgets drawn.

    Raises:
        TrainingError: there are no two people to learn from, or the numbers grow without bounds.
    """
    groups = list(crops.by_person(np.flatnonzero(~crops.test)).values())
    if len(groups) < 2:
        raise TrainingError(
            f"{len(groups)} people whom training may see; an attack needs two", "give a larger folder with --data"
        )
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
    device = weights[0].device
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)
    net.eval()  # batch norms, where there are any left, keep their statistics
    done, clean_cosine, attacked_cosine = 0, math.nan, math.nan
    began = told = time.monotonic()
    while True:
        now = time.monotonic()
        if steps is not None:
            share = done / steps if steps else 1.0
        else:
            share = (now - began) / (60 * minutes) if minutes > 0 else 1.0
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, share / 0.05 + 0.1) * (0.5 + 0.5 * math.cos(math.pi * share))
        chosen = rng.choice(len(groups), min(config.batch, len(groups)), replace=False)
        x = to_float(np.stack([crops.pixels[rng.choice(groups[person])] for person in chosen])).to(device)
        if rng.random() < 0.5:
            x = x.flip(-1)
        with torch.no_grad():
            own = original(x)
        away, grey = (torch.rand(2, len(x), generator=generator) < torch.tensor([[0.5], [config.grey]])).to(device)
        ball = Ball(config.eps * (1 + config.spread * float(rng.uniform(-1, 1))), "l2")
        wanted = torch.where(away[:, None], own, own.roll(1, 0))  # all of a batch are different people
        start = _random_start(x, grey, ball, generator)
        change = attack(net, x, wanted, away, ball, config.steps, config.step * ball.eps, grey, start)
        clean, attacked = (net(torch.cat([x, x + change])) * own.repeat(2, 1)).sum(1).chunk(2)
        loss = (1 - clean).mean() + config.beta * (1 - attacked).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights, 5.0)
        if not math.isfinite(float(loss.detach())) or not math.isfinite(float(norm)):
            raise TrainingError(f"{net.card.name}: the loss is no finite number after {done} steps")
        optimizer.step()
        done += 1
        of_late = max(0.05, 1 / done)
        previous = (0.0, 0.0) if done == 1 else (clean_cosine, attacked_cosine)
        clean_cosine = previous[0] + of_late * (float(clean.detach().mean()) - previous[0])
        attacked_cosine = previous[1] + of_late * (float(attacked.detach().mean()) - previous[1])
        if report is not None and now - told > 20:
            told = now
            cosines = f"clean {clean_cosine:.3f}, attacked {attacked_cosine:.3f}"
            report(share, f"step {done}: cosine with the original's clean embedding: {cosines}")
    return Tuned(done, time.monotonic() - began, clean_cosine, attacked_cosine)

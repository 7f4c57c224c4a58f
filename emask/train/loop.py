"""The three stages: attribute editing, the mask together with a restorer, the restorer alone.

Every stage runs for a given time, writes `stageN.pt` every few minutes and at its end, and goes on from there with
`resume`. A stage begins with what the stage before left in the same run folder.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emask.errors import TrainingError
from emask.nets.discriminator import Discriminator
from emask.nets.generator import Editor, Generator
from emask.nets.restorer import Restorer
from emask.train import losses
from emask.train.config import TrainConfig
from emask.train.distill import to_float
from emask.train.noise import distort
from emask.train.surrogates import Surrogate

SAVE_EVERY = 180.0  # seconds between checkpoints
LOG_EVERY = 20.0  # seconds between rows of the loss table


@dataclass(frozen=True)
class TrainingSet:
    """All that a stage reads, in memory.

    Attributes:
        pixels: (N, S, S, 3) uint8 RGB crops of people that training may see.
        people: (N,) int64.
        labels: (N, n) float32 in [-1, 1], zero where unknown.
        identity: (N, 256) float32 unit, the project's own recognizer.
        surrogate: per surrogate, (N, D_k) float32 unit.
        target_identity: (T, 256), of the built-in targets' photos.
        target_surrogate: per surrogate, (T, D_k) unit.
    """

    pixels: np.ndarray
    people: np.ndarray
    labels: Tensor
    identity: Tensor
    surrogate: list[Tensor]
    target_identity: Tensor
    target_surrogate: list[Tensor]


class Clock:
    """How far a stage is, across interruptions: by the time it may take, or by steps where those are given.

    Args:
        minutes: wall-clock budget.
        elapsed: seconds spent before an interruption.
        steps: number of steps instead of a time; `step` says how many were made.
    """

    def __init__(self, minutes: float, elapsed: float = 0.0, steps: int | None = None, step: int = 0) -> None:
        self.total = max(minutes * 60, 1e-3)
        self.steps, self.step = steps, step
        self._began = time.monotonic() - elapsed

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def progress(self) -> float:
        return self.elapsed / self.total if self.steps is None else self.step / self.steps


def stage_clock(config: TrainConfig, index: int, elapsed: float, step: int) -> Clock:
    """The clock of a stage (index 0, 1, 2) as its configuration says."""
    return Clock(config.minutes[index], elapsed, config.steps[index] if config.steps else None, step)


def schedule(peak: float, progress: float) -> float:
    """Learning rate: linear warm-up over 2% of the time, then a cosine down to a tenth of the peak."""
    return peak * min(1.0, progress / 0.02 + 0.05) * (0.55 + 0.45 * math.cos(math.pi * min(progress, 1.0)))


class LossTable:
    """Named losses, averaged, to a CSV file and to a line of text."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._told = time.monotonic()
        self._header = resume and path.exists()

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def due(self) -> bool:
        return self._count > 0 and time.monotonic() - self._told > LOG_EVERY

    def flush(self, step: int, clock: Clock) -> str:
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        mode = "a" if self._header else "w"
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not self._header:
                writer.writerow(["step", "minutes", *means])
                self._header = True
            writer.writerow([step, f"{clock.elapsed / 60:.2f}", *(f"{v:.5f}" for v in means.values())])
        self._sums, self._count, self._told = {}, 0, time.monotonic()
        return "  ".join(f"{name} {value:.3f}" for name, value in means.items())


Report = Callable[[float, str], None]


def save(path: Path, state: dict) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(f"cannot write {path}: {error}", "free some space and go on with --resume") from error


def load(path: Path, hint: str) -> dict:
    """Read a checkpoint of this project."""
    if not path.exists():
        raise TrainingError(f"{path} does not exist", hint)
    return torch.load(path, map_location="cpu", weights_only=True)


def batches(count: int, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless shuffled batches of indices."""
    order = np.zeros(0, np.int64)
    while True:
        while len(order) < batch:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[:batch]
        order = order[batch:]


def crops_of(data: TrainingSet, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
    """(B, 3, S, S) float32 crops, half of them mirrored."""
    pixels = data.pixels[indices]
    mirrored = rng.random(len(indices)) < 0.5
    pixels = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
    return to_float(pixels).contiguous(memory_format=torch.channels_last)


def autocast(config: TrainConfig) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16)


def stage1(data: TrainingSet, config: TrainConfig, run: Path, resume: bool, report: Report) -> Editor:
    """Attribute editing: reconstruction, critic with gradient penalty, attribute classifier (AttGAN)."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    editor, critic = Editor(config.net), Discriminator(config.net.attributes)
    weights = config.weights
    editor_optimizer = torch.optim.Adam(editor.parameters(), config.lr[0], betas=(0.5, 0.999))
    critic_optimizer = torch.optim.Adam(critic.parameters(), config.lr[0], betas=(0.5, 0.999))
    path, step, elapsed = run / "stage1.pt", 0, 0.0
    if resume and path.exists():
        state = load(path, "")
        editor.load_state_dict(state["editor"])
        critic.load_state_dict(state["critic"])
        editor_optimizer.load_state_dict(state["editor_optimizer"])
        critic_optimizer.load_state_dict(state["critic_optimizer"])
        step, elapsed = state["step"], state["elapsed"]
        rng = np.random.default_rng(config.seed + step)
    clock, table = stage_clock(config, 0, elapsed, step), LossTable(run / "stage1.csv", resume)
    order = batches(len(data.pixels), config.batch, rng)
    saved = time.monotonic()

    def checkpoint() -> None:
        state = {
            "config": config.net.to_dict(), "editor": editor.state_dict(), "critic": critic.state_dict(),
            "editor_optimizer": editor_optimizer.state_dict(), "critic_optimizer": critic_optimizer.state_dict(),
            "step": step, "elapsed": clock.elapsed,
        }  # fmt: skip
        save(path, state)

    while clock.progress < 1:
        for optimizer in (editor_optimizer, critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = schedule(config.lr[0], clock.progress)
        indices = next(order)
        crop, a = crops_of(data, indices, rng), data.labels[indices]
        known = (a.abs().sum(1) > 0).float().unsqueeze(1)
        b = a[torch.randperm(len(a), generator=generator)]
        # without labels on a third of the crops: zeros must mean "as it is" when nobody knows them
        keep = (torch.rand(len(a), 1, generator=generator) < 2 / 3).float()
        # critic and classifier
        with torch.no_grad(), autocast(config):
            edited = editor(crop, b).float()
        real_score, real_logits = critic(crop)
        fake_score, _ = critic(edited)
        classifier = losses.attribute(real_logits * known, (a + 1) / 2)
        critic_loss = fake_score.mean() - real_score.mean() + classifier
        if step % 2 == 0:
            penalty = losses.gradient_penalty(critic, crop, edited, generator)
            critic_loss = critic_loss + weights.gradient_penalty * penalty
        critic_optimizer.zero_grad(set_to_none=True)
        critic_loss.backward()
        critic_optimizer.step()
        terms = {"critic": critic_loss, "classifier": classifier}
        # editor
        with autocast(config):
            features = editor.encoder(crop)
            edited, _ = editor.decoder(features, b)
            rebuilt, _ = editor.decoder(features, a * keep)
            score, logits = critic(edited)
        reconstruction = (rebuilt - crop).abs().mean()
        edit = losses.attribute(logits.float() * known, (b + 1) / 2)
        loss = weights.reconstruction * reconstruction + weights.attribute * edit - score.float().mean()
        editor_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        editor_optimizer.step()
        step += 1
        clock.step = step
        table.add({**terms, "reconstruction": reconstruction, "attribute": edit})
        if table.due():
            report(clock.progress, f"stage 1 step {step}  " + table.flush(step, clock))
        if time.monotonic() - saved > SAVE_EVERY:
            saved = time.monotonic()
            checkpoint()
    checkpoint()
    return editor


class TargetDraw:
    """Whom a protected face shall look like: built-in targets and people of the training set."""

    def __init__(self, data: TrainingSet, config: TrainConfig, rng: np.random.Generator) -> None:
        self.data, self.config, self.rng = data, config, rng
        people, first = np.unique(data.people, return_index=True)
        shuffled = np.random.default_rng(config.seed).permutation(len(people))
        self.people = people[shuffled]
        self.photos = {int(p): np.flatnonzero(data.people == p) for p in people[np.argsort(first)]}
        # what a photo of the person is to hit: the mean of all their photos, not the very photo given
        index = torch.from_numpy(np.searchsorted(people, data.people))
        self.mean: list[Tensor] = []
        for embeddings in data.surrogate:
            sums = torch.zeros(len(people), embeddings.shape[1]).index_add_(0, index, embeddings)
            self.mean.append(nn.functional.normalize(sums, dim=1)[index])

    def phase(self, progress: float) -> tuple[int, float]:
        """Index of the phase and the budget eps at this progress."""
        before, eps = 0.0, self.config.eps
        for number, phase in enumerate(self.config.phases):
            if progress < phase.until or number == len(self.config.phases) - 1:
                share = min(1.0, (progress - before) / (phase.until - before))
                return number, eps + (phase.eps - eps) * share
            before, eps = phase.until, phase.eps
        raise AssertionError

    def draw(self, sources: np.ndarray, progress: float) -> tuple[Tensor, list[Tensor]]:
        """Targets for a batch: (B, 256) identities to give the generator, per surrogate (B, D_k) ones to hit."""
        phase = self.config.phases[self.phase(progress)[0]]
        built_in = min(phase.built_in, len(self.data.target_identity))
        pool = self.people[: phase.people]
        identities, wanted = [], [[] for _ in self.data.surrogate]  # type: ignore[var-annotated]
        for source in sources:
            person = int(self.rng.choice(pool)) if len(pool) and self.rng.random() < phase.share else -1
            if person >= 0 and person != int(self.data.people[source]):
                photo = int(self.rng.choice(self.photos[person]))
                identities.append(self.data.identity[photo])
                for k, mean in enumerate(self.mean):
                    wanted[k].append(mean[photo])
            else:
                target = int(self.rng.integers(built_in))
                identities.append(self.data.target_identity[target])
                for k, embeddings in enumerate(self.data.target_surrogate):
                    wanted[k].append(embeddings[target])
        return torch.stack(identities), [torch.stack(rows) for rows in wanted]


def restoration(
    restorer: Restorer, protected: Tensor, crop: Tensor, surrogate: Surrogate, source: Tensor, target: Tensor,
    config: TrainConfig, generator: torch.Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """The restorer's terms on a noised protected crop: pixels, identity of the source, away from the target.

    Args:
        protected, crop: (B, 3, S, S).
        surrogate: the recognizer that looks this time; source, target: (B, D) its embeddings of both people.
    """
    noised, clean = distort([protected, crop], generator)
    with autocast(config):
        change = restorer(noised)
        restored = noised + change
        embedding = surrogate(restored)
    toward = losses.cosine_rows(embedding, target)
    return {
        "pixels": (restored - clean).abs().mean() + (restored - clean).square().mean().sqrt(),
        "identity": (1 - losses.cosine_rows(embedding, source)).mean(),
        "away": (toward - config.away_margin).clamp(min=0).mean(),
    }


def total(terms: dict[str, Tensor], config: TrainConfig) -> Tensor:
    """The weighted sum of named terms; each name is a field of `Weights`."""
    return torch.stack([getattr(config.weights, name) * value for name, value in terms.items()]).sum()


def stage2(
    data: TrainingSet, surrogates: list[Surrogate], editor: Editor, config: TrainConfig, run: Path, resume: bool,
    report: Report, start_from: Path | None = None,
) -> tuple[Generator, Restorer]:  # fmt: skip
    """The mask: E_p, its fusion, the protected decoder and the target's modulation, then with the restorer along.

    Args:
        start_from: a stage-2 or stage-3 checkpoint whose weights to begin with instead of stage 1's copies.
    """
    torch.manual_seed(config.seed)
    g, restorer = Generator(editor), Restorer(editor)
    critic = Discriminator(config.net.attributes)
    critic.load_state_dict(load(run / "stage1.pt", "run --stage 1 first")["critic"])
    path, step, elapsed = run / "stage2.pt", 0, 0.0
    g_optimizer = torch.optim.Adam(g.trainable(), config.lr[1], betas=(0.9, 0.99))
    r_optimizer = torch.optim.Adam(restorer.parameters(), config.lr[1], betas=(0.9, 0.99))
    critic_optimizer = torch.optim.Adam(critic.parameters(), 2e-4, betas=(0.5, 0.999))
    source_state = path if resume and path.exists() else start_from
    mean_losses = torch.ones(len(surrogates))
    if source_state is not None:
        state = load(source_state, "")
        g.load_state_dict(state["generator"])
        restorer.load_state_dict(state["restorer"])
        if source_state == path:
            critic.load_state_dict(state["critic"])
            g_optimizer.load_state_dict(state["g_optimizer"])
            r_optimizer.load_state_dict(state["r_optimizer"])
            step, elapsed, mean_losses = state["step"], state["elapsed"], state["mean_losses"]
    generator = torch.Generator().manual_seed(config.seed + step)
    rng = np.random.default_rng(config.seed + step)
    targets = TargetDraw(data, config, rng)
    order = batches(len(data.pixels), config.batch, rng)
    clock, table = stage_clock(config, 1, elapsed, step), LossTable(run / "stage2.csv", resume)
    saved = time.monotonic()
    none = torch.zeros(config.batch, config.net.attributes)
    g.to(memory_format=torch.channels_last)
    restorer.to(memory_format=torch.channels_last)

    def checkpoint() -> None:
        state = {
            "config": config.net.to_dict(), "generator": g.state_dict(), "restorer": restorer.state_dict(),
            "critic": critic.state_dict(), "g_optimizer": g_optimizer.state_dict(),
            "r_optimizer": r_optimizer.state_dict(), "mean_losses": mean_losses,
            "step": step, "elapsed": clock.elapsed,
        }  # fmt: skip
        save(path, state)

    while clock.progress < 1:
        number, eps_now = targets.phase(clock.progress)
        phase = config.phases[number]
        for optimizer in (g_optimizer, r_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = schedule(config.lr[1], clock.progress)
        indices = next(order)
        crop = crops_of(data, indices, rng)
        identity, wanted = targets.draw(indices, clock.progress)
        sources = [embeddings[indices] for embeddings in data.surrogate]
        # a range of budgets around the phase's, so that every --strength is one the network has met
        eps = eps_now * (0.7 + 0.6 * torch.rand(len(crop), generator=generator))
        w = torch.rand(2, len(crop), generator=generator)
        w = config.injection * w[0] * (w[1] < 0.5)
        with autocast(config):
            mask, edit = g.mask(crop, identity, none, none, w, edit=False)
        change = g.compose(crop, mask, edit, eps)  # in float32, as the noise: both work on small differences
        protected = crop + change
        seen = distort([protected], generator)[0]
        with autocast(config):
            embeddings = [surrogate(seen) for surrogate in surrogates]
            score = critic(protected)[0]
        attack, each = losses.adversarial(embeddings, wanted, losses.adaptive_weights(mean_losses), config.reach)
        mean_losses = 0.99 * mean_losses + 0.01 * each
        terms = {
            "adversarial": attack,
            "owner": losses.owner(embeddings, sources, config.owner_margin),
            "perturbation": losses.perturbation(mask, eps),
            "roughness": losses.roughness(change, crop),
            "chroma": losses.chroma(change),
            "critic": -score.float().mean(),
        }
        if phase.restorer:
            k = step % len(surrogates)
            terms |= restoration(
                restorer, protected, crop, surrogates[k], sources[k], wanted[k], config, generator
            )  # fmt: skip
        loss = total(terms, config)
        g_optimizer.zero_grad(set_to_none=True)
        r_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(g.trainable(), 1.0)
        g_optimizer.step()
        if phase.restorer:
            nn.utils.clip_grad_norm_(restorer.parameters(), 1.0)
            r_optimizer.step()
        if step % 4 == 0:
            fake = protected.detach()
            critic_loss = critic(fake)[0].mean() - critic(crop)[0].mean()
            critic_loss = critic_loss + config.weights.gradient_penalty * losses.gradient_penalty(
                critic, crop, fake, generator
            )
            critic_optimizer.zero_grad(set_to_none=True)
            critic_loss.backward()
            critic_optimizer.step()
        step += 1
        clock.step = step
        with torch.no_grad():
            cosine = 1 - each
            psnr = 6.0206 - 10 * torch.log10(change.square().mean((1, 2, 3)) + 1e-12).mean()
        table.add({k: v for k, v in terms.items() if k in {"owner", "perturbation", "roughness", "chroma"}}
                  | {f"cos{k + 1}": c for k, c in enumerate(cosine)} | {"psnr": psnr})  # fmt: skip
        if table.due():
            line = table.flush(step, clock)
            extra = "".join(f"  {k} {float(terms[k].detach()):.3f}" for k in ("pixels", "identity") if k in terms)
            report(clock.progress, f"stage 2 phase {number} step {step}  {line}{extra}")
        if time.monotonic() - saved > SAVE_EVERY:
            saved = time.monotonic()
            checkpoint()
    checkpoint()
    return g, restorer


def stage3(
    data: TrainingSet, surrogates: list[Surrogate], g: Generator, restorer: Restorer, config: TrainConfig, run: Path,
    resume: bool, report: Report,
) -> Restorer:  # fmt: skip
    """The restorer alone, on noised protected crops of a generator that no longer changes."""
    torch.manual_seed(config.seed)
    path, step, elapsed = run / "stage3.pt", 0, 0.0
    optimizer = torch.optim.Adam(restorer.parameters(), config.lr[2], betas=(0.9, 0.99))
    if resume and path.exists():
        state = load(path, "")
        restorer.load_state_dict(state["restorer"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed = state["step"], state["elapsed"]
    generator = torch.Generator().manual_seed(config.seed + step + 1)
    rng = np.random.default_rng(config.seed + step + 1)
    targets = TargetDraw(data, config, rng)
    order = batches(len(data.pixels), config.batch, rng)
    clock, table = stage_clock(config, 2, elapsed, step), LossTable(run / "stage3.csv", resume)
    final = config.phases[-1].eps
    none = torch.zeros(config.batch, config.net.attributes)
    g.eval().requires_grad_(False)
    restorer.to(memory_format=torch.channels_last)
    saved = time.monotonic()

    def checkpoint() -> None:
        state = {
            "config": config.net.to_dict(), "generator": g.state_dict(), "restorer": restorer.state_dict(),
            "optimizer": optimizer.state_dict(), "step": step, "elapsed": clock.elapsed,
        }  # fmt: skip
        save(path, state)

    while clock.progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = schedule(config.lr[2], clock.progress)
        indices = next(order)
        crop = crops_of(data, indices, rng)
        identity, wanted = targets.draw(indices, 1.0)
        eps = final * (0.7 + 0.8 * torch.rand(len(crop), generator=generator))
        eps = eps * (torch.rand(len(crop), generator=generator) >= config.clean)
        w = torch.rand(2, len(crop), generator=generator)
        w = config.injection * w[0] * (w[1] < 0.5)
        with torch.no_grad(), autocast(config):
            mask, edit = g.mask(crop, identity, none, none, w, edit=False)
        with torch.no_grad():
            protected = crop + g.compose(crop, mask, edit, eps)
        k = step % len(surrogates)
        terms = restoration(
            restorer, protected, crop, surrogates[k], data.surrogate[k][indices], wanted[k], config, generator
        )
        optimizer.zero_grad(set_to_none=True)
        total(terms, config).backward()
        nn.utils.clip_grad_norm_(restorer.parameters(), 1.0)
        optimizer.step()
        step += 1
        clock.step = step
        table.add(terms)
        if table.due():
            report(clock.progress, f"stage 3 step {step}  " + table.flush(step, clock))
        if time.monotonic() - saved > SAVE_EVERY:
            saved = time.monotonic()
            checkpoint()
    checkpoint()
    return restorer

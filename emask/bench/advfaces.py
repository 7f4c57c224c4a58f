"""Trains the generator of AdvFaces, a peer, on people and surrogates that emask's own training may see.

    python -m emask.bench.advfaces --data DIR --recognizers DIR --minutes 15 --out advfaces.pt

Losses and networks are the paper's, or its released code's where the paper was not to be had; see
`emask.bench.peers.advfaces`. From the code: lambda_i = 10, lambda_p = 1, Adam with betas 0.5 and 0.9, one step of the
discriminator for one of the generator, targets drawn anew for every photo, photos mirrored at random; its norm is that
of [0, 1] pixels at a side of 160, so lambda_p is multiplied by 160 / 128 / 2 here.

Our choice: several surrogates, by their mean; a target is a photo of another person of the training part; emask's
critic as discriminator, whose score is the mean over patches, without batch norms; a rate of 1e-3, with a warm-up and
a fall to a tenth, where the code has 1e-4 throughout 100,000 steps of 32 photos; eps = 8.9 (the code has 3.0 for its
other, untargeted setting, which is 4.8 in these units). On a CPU the networks are a quarter as wide, so that minutes
are worth something.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor, nn

from emask.bench.peers.advfaces import KIND, TRAINED_EPS, PerturbationGenerator
from emask.errors import TrainingError, UsageError, as_program
from emask.face.align import CROP
from emask.nets.discriminator import Critic
from emask.train import losses
from emask.train.checkpoint import save
from emask.train.clock import Clock
from emask.train.dataset import Sampler, TrainingSet
from emask.train.place import Place, join
from emask.train.prepare import embedded_crops, open_surrogates
from emask.train.surrogates import Surrogate
from emask.train.threads import prepare_process

# From a norm over a crop in [-1, 1] to one over [0, 1] pixels at a side of 160, which the code weighs.
PAPER_UNITS = 160 / CROP / 2
WIDTH, CPU_WIDTH = 64, 16


@dataclass(frozen=True)
class Settings:
    """Of a training.

    Attributes:
        width: of the generator.
        critic: channels of the discriminator's layers, by default the released one's.
        batch: photos a step.
        rate: peak learning rate of both networks.
        eps: of the hinge, L2 over a crop in [-1, 1] units.
        identity: lambda_i.
        perturbation: lambda_p, in the code's units.
        bf16: autocast to bfloat16.
        seed: of the initial weights and of all that is drawn.
    """

    width: int = CPU_WIDTH
    critic: tuple[int, ...] = (32, 64, 128, 256, 512)
    batch: int = 16
    rate: float = 1e-3
    eps: float = TRAINED_EPS
    identity: float = 10.0
    perturbation: float = 1.0
    bf16: bool = True
    seed: int = 0


def others(people: np.ndarray, sources: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each source, an index into (N,) people, the index of a random photo of somebody else."""
    photos = rng.integers(len(people), size=len(sources))
    while (same := people[photos] == people[sources]).any():
        photos[same] = rng.integers(len(people), size=int(same.sum()))
    return photos


class Trainer:
    """Generator and discriminator, and one step of both.

    Args:
        data: crops, people and the surrogates' embeddings, on the place's device; its labels and identities are not
            looked at.
        surrogates: white boxes, on the place's device, those of `data`.

    Raises:
        TrainingError: the photos show one person only, or none.
    """

    def __init__(
        self, data: TrainingSet, surrogates: Sequence[Surrogate], settings: Settings, place: Place | None = None
    ) -> None:
        if len(np.unique(data.people)) < 2:
            raise TrainingError("a target is another person, and there are no two", "give photos of more people")
        self.data, self.surrogates, self.settings = data, list(surrogates), settings
        self.place = place or Place()
        torch.manual_seed(settings.seed)
        names = [surrogate.card.name for surrogate in surrogates]
        self.generator = self._ready(PerturbationGenerator(settings.width, surrogates=names))
        self.critic = self._ready(Critic(settings.critic))
        betas = (0.5, 0.9)
        self.optimizers = [
            torch.optim.Adam(net.parameters(), settings.rate, betas=betas) for net in (self.generator, self.critic)
        ]
        self.sampler = Sampler(len(data), settings.batch, settings.seed)
        self.steps = 0

    def _ready(self, net: nn.Module) -> nn.Module:
        return net.to(self.place.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def step(self, progress: float) -> dict[str, Tensor]:
        """Draw, compute, update both networks.

        Args:
            progress: of the training, 0 to 1; the learning rate warms up over 2% and falls along a cosine to a tenth.

        Returns:
            Scalars without gradient: "loss" of the generator, its parts "gan", "identity" and "perturbation" before
            they are weighed (the last is 1 within eps), "norm" of the change, and "critic", the discriminator's loss.
        """
        settings, place = self.settings, self.place
        # without a warm-up the first steps make changes several times the budget, and the next ones take them back
        warm = min(1.0, progress / 0.02 + 0.05)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * warm * (0.55 + 0.45 * math.cos(math.pi * min(progress, 1.0)))
        batch = self.sampler.next()
        drawn = others(self.data.people, batch.indices, self.sampler.rng)
        indices, mirrored, wanted = (
            torch.from_numpy(x).to(place.device) for x in (batch.indices, batch.mirrored, drawn)
        )
        crop = self.data.crops(indices, mirrored)
        target = self.data.crops(wanted, torch.zeros_like(mirrored))
        with place.autocast(settings.bf16):
            change = self.generator(crop, target)
            face = torch.clamp(crop + change, -1.0, 1.0)
            embeddings = [surrogate(face) for surrogate in self.surrogates]
            score = self.critic(face).float()
        parts = {
            "gan": nn.functional.softplus(-score).mean(),
            "identity": torch.stack(
                [losses.toward(e, rows[wanted]) for e, rows in zip(embeddings, self.data.surrogate, strict=True)]
            ).mean(),
            "perturbation": losses.perturbation(change, change.new_full((len(change),), settings.eps)),
        }
        weight = settings.perturbation * PAPER_UNITS * settings.eps
        loss = parts["gan"] + settings.identity * parts["identity"] + weight * parts["perturbation"]
        self._update(0, loss)
        with place.autocast(settings.bf16):
            real, fake = self.critic(crop).float(), self.critic(face.detach()).float()
        critic = nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()
        self._update(1, critic)
        self.steps += 1
        norm = change.detach().flatten(1).norm(dim=1).mean()
        return {name: value.detach() for name, value in {"loss": loss, **parts, "critic": critic}.items()} | {
            "norm": norm
        }

    def _update(self, number: int, loss: Tensor) -> None:
        for optimizer in self.optimizers:  # the generator's loss leaves gradients in the discriminator too
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[number].step()

    def state(self) -> dict[str, Any]:
        """What the file holds: the generator, and how it came about.

        Raises:
            TrainingError: the weights are no numbers any more.
        """
        weights = {name: value.cpu().contiguous() for name, value in self.generator.state_dict().items()}
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            raise TrainingError("the training has diverged", "try a larger --batch or another --seed")
        generator, settings = self.generator, self.settings
        assert isinstance(generator, PerturbationGenerator)
        return {
            "kind": KIND,
            "config": {
                "width": generator.width, "blocks": generator.blocks, "surrogates": list(generator.surrogates),
            },
            "generator": weights,
            "training": {"steps": self.steps, "batch": settings.batch, "eps": settings.eps, "seed": settings.seed},
        }  # fmt: skip


def train(trainer: Trainer, clock: Clock, report: Callable[[str], None], every: float = 60.0) -> None:
    """Steps until the clock says so.

    Args:
        report: called with a line of progress, means since the last one, once in `every` seconds and at the end.
    """
    rows: list[dict[str, Tensor]] = []
    told = clock.elapsed

    def tell() -> None:
        means = {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}
        shown = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        report(f"minute {clock.elapsed / 60:.1f}, step {trainer.steps}: {shown}")
        rows.clear()

    while (progress := clock.progress) < 1:
        rows.append(trainer.step(progress))
        clock.step = trainer.steps
        if clock.elapsed - told >= every:
            told = clock.elapsed
            tell()
    if rows:
        tell()


def open_data(
    data: Path, surrogates: Sequence[Surrogate], cache: Path, bf16: bool, place: Place,
    progress: Callable[[str, int, int], None] | None = None,
) -> TrainingSet:  # fmt: skip
    """Crops of the people training may see, on the place's device; without labels and identities.

    Raises:
        TrainingError: no photo, no face, or only people kept for tests.
    """
    crops, keep, pixels, embedded = embedded_crops(data, surrogates, cache, bf16, place, progress)
    nothing = torch.zeros(len(keep), 0)
    return TrainingSet(
        torch.from_numpy(pixels), crops.people[keep], nothing, nothing, embedded, nothing[:0], []
    ).to(place.device)


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m emask.bench.advfaces`."""
    parser = argparse.ArgumentParser(
        prog="python -m emask.bench.advfaces", description="Train the generator of AdvFaces, for --method advfaces."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of photos; people kept for tests are left out")
    parser.add_argument("--recognizers", type=Path, required=True, help="folder of surrogates with recognizers.json")
    parser.add_argument("--surrogate", action="append", help="a surrogate, repeatable; default: those of fold A")
    parser.add_argument("--out", type=Path, required=True, help="file to write, as advfaces.pt")
    parser.add_argument("--minutes", type=float, default=15.0, help="how long to train, what comes before apart")
    parser.add_argument("--width", type=int, help=f"of the networks; default: {WIDTH}, on a CPU {CPU_WIDTH}")
    parser.add_argument("--batch", type=int, default=16, help="photos a step")
    parser.add_argument("--eps", type=float, default=TRAINED_EPS, help="L2 budget over a crop, in [-1, 1] units")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    for name in ("minutes", "width", "batch", "eps"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be above 0")
    if not options.out.parent.is_dir():  # said before the training, not after it
        raise UsageError(f"no folder {options.out.parent}", "make it, or name another file with --out")
    place = join(options.device)
    surrogates = [s.to(place.device) for s in open_surrogates(options.recognizers, options.surrogate)]
    width = options.width or (CPU_WIDTH if place.device.type == "cpu" else WIDTH)
    settings = Settings(width, batch=options.batch, eps=options.eps, seed=options.seed)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def progress(what: str, done: int, count: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}: {done} of {count}", end="\n" if done == count else "", file=sys.stderr, flush=True)

    cache = user_cache_path("emask") / "training"
    data = open_data(options.data, surrogates, cache, settings.bf16, place, progress)
    names = ", ".join(surrogate.card.name for surrogate in surrogates)
    say(f"{len(data)} crops, {len(np.unique(data.people))} people, surrogates {names}, {place.device}")
    trainer = Trainer(data, surrogates, settings, place)
    began = time.monotonic()
    train(trainer, Clock(options.minutes), say)
    state = trainer.state()
    state["training"]["minutes"] = round((time.monotonic() - began) / 60, 2)
    save(options.out, state)
    say(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())

"""Stage 3, the restorer alone: on noised protected crops of a generator that no longer changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from emask.engine.refine import Refinement, budgets, join, refine
from emask.errors import TrainingError
from emask.nets.generator import Generator
from emask.nets.recognizer import EMBEDDING
from emask.nets.restorer import Restorer
from emask.train.dataset import Batch
from emask.train.masking import MaskingStage, Request
from emask.train.place import send
from emask.train.stage import Setting

# Budgets of the masks, as factors of the last phase's: from a little above `--strength low` to `high`.
SPREAD = (0.7, 1.5)


class Replay:
    """The newest refined masks, equal in all processes. Making one costs as much as dozens of steps of training on it.

    Args:
        capacity: how many to keep.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.rows["index"]) if self.rows else 0

    def add(self, rows: dict[str, Tensor]) -> None:
        """Add some, named tensors with a row each; the oldest go."""
        if self.rows:
            rows = {name: torch.cat([self.rows[name], value]) for name, value in rows.items()}
        self.rows = {name: value[-self.capacity :] for name, value in rows.items()}

    def take(self, chosen: Tensor) -> dict[str, Tensor]:
        """Those at the given places."""
        return {name: value[chosen] for name, value in self.rows.items()}


class RestorerStage(MaskingStage):
    """Pixels to x, identity of the owner, away from the target.

    With `refined`, a share of the steps is on masks as `protect` makes them (but for the target's mirror image),
    refined through this very restorer: so the masks move towards what it can take off while it learns to take off what
    they have become.

    Args:
        setting: data, settings, place, surrogates, and the recognizers where masks are to be refined.
        generator, restorer: stage 2's.

    Raises:
        TrainingError: masks are to be refined and there is no recognizer.
    """

    number = 3

    def __init__(self, setting: Setting, generator: Generator, restorer: Restorer) -> None:
        super().__init__(setting)
        self.net = generator.config
        self.generator = generator.eval().requires_grad_(False)
        self.restorer = restorer.train()
        self.add("generator", self.generator)
        self.add("restorer", self.restorer)
        self.parameters = list(restorer.parameters())
        self.optimize("restorer", self.parameters, (0.9, 0.99))
        if self.config.refined and not setting.recognizers:
            raise TrainingError("no recognizer to refine masks through", "set refined = 0 in the preset")
        self.recognizers = setting.recognizers
        self.replay = Replay(self.config.replay * self.place.world)

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        # the curriculum is over: all targets
        request = self.request(batch, 1.0, self.config.phases[-1].eps, SPREAD)
        if self.config.refined:
            few = max(1, self.replay.capacity // 8)
            if self.step_count % self.config.refine_every == 0 or len(self.replay) < few:
                self._refine(batch, request)
        if self.config.refined and self.sampler.rng.random() < self.config.refined:
            request, change = self._replayed(request)
        else:
            change = self._change(request)
        masked = self.draws.uniform(len(request.crop)) >= self.config.clean
        protected = request.crop + change * send(masked, change).view(-1, 1, 1, 1)
        k = self.step_count % len(self.surrogates)
        terms = self.restoration(self.restorer, protected, request, k)
        self.update(self.weighted(terms), ("restorer", self.parameters), clip=1.0)
        return terms

    def _change(self, request: Request, edit: bool = True) -> Tensor:
        with torch.no_grad():
            with self.place.autocast(self.config.bf16):
                b = request.b if edit else request.a
                mask, edits = self.generator.mask(
                    request.crop, request.target, request.a, b, request.w, edit=request.edit and edit
                )
            return self.generator.compose(request.crop, mask, edits, request.eps)

    def _refine(self, batch: Batch, request: Request) -> None:
        """Refine this batch's masks, without edits, for the replay."""
        restorer, crop, weight = self.restorer, request.crop, Refinement().refiner

        def embed(images: Tensor) -> Tensor:
            with self.place.autocast(self.config.bf16):
                return join([recognizer(images).float() for recognizer in self.recognizers], weight)

        def restore(images: Tensor) -> Tensor:
            with self.place.autocast(self.config.bf16):
                return restorer(images).float()  # type: ignore[no-any-return]

        restorer.requires_grad_(False)
        change = self._change(request, edit=False)
        parts = [request.aim[:, :EMBEDDING], request.aim[:, EMBEDDING:]][: len(self.recognizers)]
        wanted = join(parts, weight)
        budget = budgets(change, request.w, request.eps)
        change = refine(crop, torch.zeros_like(crop), change, wanted, Refinement(), embed, restore, budget)
        restorer.requires_grad_(True)
        place = self.place
        # every process keeps the whole batch's, so that the first one's checkpoint holds what any of them goes on with
        rows = {
            "index": send(torch.from_numpy(batch.indices), place.device),
            "mirrored": send(torch.from_numpy(batch.mirrored), place.device),
            "change": place.gather(change.half()),
        }
        self.replay.add(rows | {f"wanted{k}": place.gather(wanted) for k, wanted in enumerate(request.wanted)})

    def _replayed(self, request: Request) -> tuple[Request, Tensor]:
        """The same request for crops of the replay, and their changes."""
        place = self.place
        chosen = self.sampler.rng.integers(len(self.replay), size=len(request.crop) * place.world)
        rows = self.replay.take(send(place.part(torch.from_numpy(chosen)), place.device))
        sources = [embedded[rows["index"]] for embedded in self.data.surrogate]
        wanted = [rows[f"wanted{k}"] for k in range(len(sources))]
        crop = self.data.crops(rows["index"], rows["mirrored"])
        return replace(request, crop=crop, sources=sources, wanted=wanted), rows["change"].float()

    def extra(self) -> dict[str, Any]:
        """The refined masks."""
        return self.replay.rows

    def restore_extra(self, extra: dict[str, Any]) -> None:
        """Take them back."""
        self.replay.rows = {name: value.to(self.place.device) for name, value in extra.items()}

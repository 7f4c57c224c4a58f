"""Stage 3, the restorer alone: on noised protected crops of a generator that no longer changes."""

from __future__ import annotations

import torch
from torch import Tensor

from emask.nets.generator import Generator
from emask.nets.restorer import Restorer
from emask.train.dataset import Batch
from emask.train.masking import MaskingStage
from emask.train.stage import Setting


class RestorerStage(MaskingStage):
    """Pixels to x, identity of the owner, away from the target.

    Args:
        setting: data, settings, place and surrogates.
        generator, restorer: stage 2's.
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

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        # the curriculum is over: all targets; budgets up to those of `--strength high`
        request = self.request(batch, 1.0, self.config.phases[-1].eps, (0.7, 1.5))
        masked = self.draws.uniform(len(request.crop)) >= self.config.clean
        eps = request.eps * masked.to(request.eps)
        with torch.no_grad():
            with self.place.autocast(self.config.bf16):
                mask, edit = self.generator.mask(
                    request.crop, request.target, request.a, request.b, request.w, edit=request.edit
                )
            protected = request.crop + self.generator.compose(request.crop, mask, edit, eps)
        k = self.step_count % len(self.surrogates)
        terms = self.restoration(self.restorer, protected, request, k)
        self.update(self.weighted(terms), ("restorer", self.parameters), clip=1.0)
        return terms

"""What stages 2 and 3 share: drawing whom a crop shall look like and how strongly, and the restorer's terms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emask.attributes import ATTRIBUTES, EDITABLE
from emask.nets.recognizer import EMBEDDING
from emask.nets.restorer import Restorer
from emask.train import losses
from emask.train.dataset import Batch
from emask.train.noise import Redetection, distort
from emask.train.place import send
from emask.train.stage import Setting, Stage
from emask.train.targets import TargetDraw

SAMPLES = 6  # faces in the sample picture
REDETECTION = Redetection()
_EDITABLE = [ATTRIBUTES.index(name) for name in EDITABLE]


@dataclass(frozen=True)
class Request:
    """What the generator is asked for, for this process's part of a batch.

    Attributes:
        crop: (B, 3, S, S); target: (B, 256); a, b: (B, n); w, eps: (B,): the generator's inputs.
        aim: (B, 256 or more): `target`, and the refiner's embeddings behind where there is one.
        sources: per surrogate (B, D_k), the owners' embeddings.
        wanted: per surrogate (B, D_k), the targets'.
        edit: whether b differs from a anywhere.
    """

    crop: Tensor
    target: Tensor
    a: Tensor
    b: Tensor
    w: Tensor
    eps: Tensor
    aim: Tensor
    sources: list[Tensor]
    wanted: list[Tensor]
    edit: bool


class MaskingStage(Stage):
    """A stage that masks crops."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.targets = TargetDraw(self.data, self.config)

    def request(self, batch: Batch, progress: float, eps: float, spread: tuple[float, float]) -> Request:
        """Draw targets, budgets, weights and edits for a batch.

        Args:
            eps: budget around which to draw, by a factor between spread[0] and spread[1], so that every `--strength`
                is one the networks have met.
        """
        config, place = self.config, self.place
        indices, crop = self.crops(batch)
        aim, wanted = self.targets.draw(batch.indices, progress, self.sampler.rng)
        count = len(crop)
        budgets = eps * (spread[0] + (spread[1] - spread[0]) * self.draws.uniform(count))
        weight, injected = self.draws.uniform(count, 2).unbind(1)
        w = config.injection * weight * (injected < 0.5)
        a = torch.zeros(count, self.net.attributes)
        b, edit = a, False
        if config.edits > 0:
            edit = True
            draw = self.draws.uniform(count, 3)
            which = torch.tensor(_EDITABLE)[(draw[:, 0] * len(_EDITABLE)).long()]
            value = torch.where(draw[:, 1] < 0.5, -1.0, 1.0) * (draw[:, 2] < config.edits)
            b = a.scatter(1, which[:, None], value[:, None])
        a, b, w, budgets = (send(x, place.device) for x in (a, b, w, budgets))
        sources = [rows[indices] for rows in self.data.surrogate]
        aim = place.part(aim)
        target, wanted = aim[:, :EMBEDDING], [place.part(rows) for rows in wanted]
        return Request(crop, target, a, b, w, budgets, aim, sources, wanted, edit)

    def restoration(self, restorer: Restorer, protected: Tensor, request: Request, k: int) -> dict[str, Tensor]:
        """The restorer's terms on a noised protected crop: pixels, identity of the source, away from the target.

        The crop is cut anew, as by another detection.

        Args:
            protected: (B, 3, S, S).
            k: the surrogate that looks this time.
        """
        noised, clean = distort([protected, request.crop], self.draws, self.pool)
        with torch.autocast(noised.device.type, enabled=False):
            noised, clean = REDETECTION([noised, clean], 1.0, self.draws)
        with self.place.autocast(self.config.bf16):
            restored = noised + restorer(noised)
            embedding = self.surrogates[k](restored)
        return {
            "pixels": losses.pixels(restored, clean),
            "identity": losses.identity(embedding, request.sources[k]),
            "away": losses.away(embedding, request.wanted[k], self.config.away_margin),
        }

    def samples(self) -> dict[str, list[Tensor]]:
        """Original, protected, change x10, restored, for crops from all over the set and the first targets."""
        generator, restorer = self.modules["generator"], self.modules["restorer"]  # neither has parts that mode changes
        device = self.place.device
        count = min(SAMPLES, len(self.data))
        indices = torch.from_numpy(np.linspace(0, len(self.data) - 1, count).astype(np.int64)).to(device)
        crop = self.data.crops(indices, torch.zeros(count, dtype=torch.bool, device=device))
        known = self.data.target_identity[:, :EMBEDDING]
        target = known[torch.arange(count, device=device) % len(known)]
        none = torch.zeros(count, self.net.attributes, device=device)
        zero = torch.zeros(count, device=device)
        with torch.no_grad():
            change = generator(crop, target, none, none, zero, zero + self.config.phases[-1].eps)
            protected = crop + change
            restored = protected + restorer(protected)
        rows = {"original": crop, "protected": protected, "change x10": change * 10, "restored": restored}
        return {name: list(images.clamp(-1, 1)) for name, images in rows.items()}

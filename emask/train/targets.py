"""Stage 2's target curriculum: whom a protected face shall look like."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from emask.train.config import TrainConfig
from emask.train.dataset import TrainingSet
from emask.train.place import send


class TargetDraw:
    """Draws targets: built-in ones and people of the training set.

    For a person the surrogates' mean embedding over their photos is what to hit, not the very photo given to the
    generator, so that the mask fits the person and not the picture.
    """

    def __init__(self, data: TrainingSet, config: TrainConfig) -> None:
        self.data, self.config = data, config
        people, index, counts = np.unique(data.people, return_inverse=True, return_counts=True)
        self._order = np.argsort(index, kind="stable")  # photos, person by person
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self._counts = counts
        # who counts as the first `phase.people` of a phase
        self._people = np.random.default_rng(config.seed).permutation(len(people))
        self._person = index  # of each photo
        rows = torch.from_numpy(index).to(data.pixels.device)
        self._mean: list[Tensor] = []
        for embeddings in data.surrogate:
            sums = torch.zeros(len(people), embeddings.shape[1], device=embeddings.device)
            self._mean.append(nn.functional.normalize(sums.index_add_(0, rows, embeddings), dim=1)[rows])

    def phase(self, progress: float) -> tuple[int, float]:
        """Index of the phase and the budget eps at this progress of the stage."""
        before, eps = 0.0, self.config.eps
        for number, phase in enumerate(self.config.phases):
            if progress < phase.until or number == len(self.config.phases) - 1:
                share = min(1.0, (progress - before) / (phase.until - before))
                return number, eps + (phase.eps - eps) * share
            before, eps = phase.until, phase.eps
        raise AssertionError("a curriculum has at least one phase")

    def draw(self, sources: np.ndarray, progress: float, rng: np.random.Generator) -> tuple[Tensor, list[Tensor]]:
        """Targets for a batch.

        Args:
            sources: (B,) indices of the crops to be masked; nobody is their own target.
            progress: of the stage.

        Returns:
            (B, 256 or more) identities as in the set, of which the generator is given the first 256, and per surrogate
            (B, D_k) embeddings to hit.
        """
        phase = self.config.phases[self.phase(progress)[0]]
        batch = len(sources)
        target = rng.integers(min(phase.built_in, len(self.data.target_identity)), size=batch)
        pool = self._people[: phase.people]
        photo = np.zeros(batch, np.int64)
        of_people = rng.random(batch) < phase.share
        within = rng.random(batch)
        if len(pool):
            person = rng.choice(pool, size=batch)
            photo = self._order[self._starts[person] + (within * self._counts[person]).astype(np.int64)]
            of_people &= person != self._person[sources]
        else:
            of_people[:] = False
        device = self.data.pixels.device
        photos, targets, chosen = (send(torch.from_numpy(x), device) for x in (photo, target, of_people[:, None]))
        identity = torch.where(chosen, self.data.identity[photos], self.data.target_identity[targets])
        wanted = [
            torch.where(chosen, mean[photos], embeddings[targets])
            for mean, embeddings in zip(self._mean, self.data.target_surrogate, strict=True)
        ]
        return identity, wanted

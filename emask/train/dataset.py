"""What the stages read, in memory, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TrainingSet:
    """All that a stage reads.

    Attributes:
        pixels: (N, S, S, 3) uint8 RGB crops of people that training may see.
        people: (N,) int64.
        labels: (N, n) float32 in [-1, 1], zero where unknown.
        identity: (N, 256) float32 unit, the project's own recognizer; where stage 3 refines masks through the refiner
            as well, (N, 256 + D), its unit embeddings behind.
        surrogate: per surrogate, (N, D_k) float32 unit.
        target_identity: as `identity`, of the built-in targets' photos.
        target_surrogate: per surrogate, (T, D_k) unit.
    """

    pixels: Tensor
    people: np.ndarray
    labels: Tensor
    identity: Tensor
    surrogate: list[Tensor]
    target_identity: Tensor
    target_surrogate: list[Tensor]

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device) -> TrainingSet:
        """The same with all tensors on a device; crops stay bytes there."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            labels=self.labels.to(device),
            identity=self.identity.to(device),
            surrogate=[rows.to(device) for rows in self.surrogate],
            target_identity=self.target_identity.to(device),
            target_surrogate=[rows.to(device) for rows in self.target_surrogate],
        )

    def crops(self, indices: Tensor, mirrored: Tensor) -> Tensor:
        """(B, 3, S, S) float32 crops in [-1, 1], channels last.

        Args:
            indices: (B,) int64; mirrored: (B,) bool, which of them to flip.
        """
        pixels = self.pixels[indices]
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
        # a permuted view of (B, S, S, 3) is channels-last memory already
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


@dataclass(frozen=True)
class Batch:
    """A whole step's choice of crops, equal in all processes.

    Attributes:
        indices: (B,) int64 numpy array.
        mirrored: (B,) bool numpy array.
        epoch: how many times all crops have been used up before.
    """

    indices: np.ndarray
    mirrored: np.ndarray
    epoch: int


class Sampler:
    """Shuffled crops without end, each once an epoch, half of them mirrored.

    Args:
        count: crops there are.
        batch: crops a step, over all processes.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch = count, batch
        self.rng = np.random.default_rng(seed)
        self._order = np.zeros(0, np.int64)
        self._epoch = -1

    def next(self) -> Batch:
        """The next batch; the rest of an epoch is joined with the next one's beginning."""
        epoch = self._epoch if len(self._order) else self._epoch + 1
        while len(self._order) < self.batch:
            self._order = np.concatenate([self._order, self.rng.permutation(self.count)])
            self._epoch += 1
        indices, self._order = self._order[: self.batch], self._order[self.batch :]
        return Batch(indices, self.rng.random(self.batch) < 0.5, epoch)

    def state(self) -> dict[str, Any]:
        """Where the sampler stands, for a checkpoint."""
        order = torch.from_numpy(self._order.copy())
        return {"rng": self.rng.bit_generator.state, "order": order, "epoch": self._epoch}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state()` stood."""
        self.rng.bit_generator.state = state["rng"]
        self._order, self._epoch = state["order"].numpy(), state["epoch"]

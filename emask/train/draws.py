"""Random numbers of a training step: the same whether one process works on a batch or several share it."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """A seeded source of random numbers on the CPU.

    Several processes hold equal sources and draw in the same order. Each draw is made for the whole batch, and a
    process keeps the rows of its own part; so two processes with half a batch each see what one with all of it sees.

    Args:
        seed: of the source.
        rank: this process, 0..world - 1.
        world: how many processes share a batch.
    """

    def __init__(self, seed: int, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._generator = torch.Generator().manual_seed(seed)

    def _part(self, rows: Tensor) -> Tensor:
        count = len(rows) // self.world
        return rows[self.rank * count : (self.rank + 1) * count]

    def uniform(self, batch: int, *shape: int) -> Tensor:
        """(batch, *shape) float32 in [0, 1), independent for each row of this process's part of the batch."""
        return self._part(torch.rand(batch * self.world, *shape, generator=self._generator))

    def normal(self, batch: int, *shape: int) -> Tensor:
        """(batch, *shape) float32 of a standard normal distribution, as `uniform`."""
        return self._part(torch.randn(batch * self.world, *shape, generator=self._generator))

    def normal_like(self, rows: Tensor) -> Tensor:
        """Numbers as `normal` gives, one for each of this process's `rows`, on their device and of their type.

        On a GPU they are drawn there: millions that come from the CPU would keep it waiting.
        """
        if rows.device.type == "cpu":
            return self.normal(*rows.shape).to(rows.dtype)
        return self._normal_on(rows.device, *rows.shape).to(rows.dtype)

    def _normal_on(self, device: torch.device, batch: int, *shape: int) -> Tensor:
        """As `normal`, drawn on a device; what is drawn follows from where this source stands, and moves it on."""
        source = self._source_on(device)
        return self._part(torch.randn(batch * self.world, *shape, generator=source, device=device))

    def _source_on(self, device: torch.device) -> torch.Generator:
        """A source on a device that begins with a seed of this one, so that `state` needs to know of this one only."""
        seed = int(torch.randint(2**62, (1,), generator=self._generator))
        return torch.Generator(device).manual_seed(seed)

    def shared(self, count: int = 1) -> list[float]:
        """`count` numbers in [0, 1) that all processes agree on: what holds for a batch as a whole."""
        return [float(value) for value in torch.rand(count, generator=self._generator)]

    def permutation(self, count: int) -> Tensor:
        """(count,) int64, a shuffled 0..count - 1 that all processes agree on."""
        return torch.randperm(count, generator=self._generator)

    def state(self) -> Tensor:
        """Where the source stands, for a checkpoint."""
        return self._generator.get_state()

    def restore(self, state: Tensor) -> None:
        """Go back to where `state()` stood."""
        self._generator.set_state(state)

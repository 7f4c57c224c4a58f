"""Where a run computes: a device, and a process among several that share each batch (`torchrun`)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from emask.errors import TrainingError


class _Mean(torch.autograd.Function):
    """The mean of a tensor over all processes, whose gradient is averaged in the same way, to any order."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:  # type: ignore[override]
        value = value.detach().clone()
        torch.distributed.all_reduce(value)
        return value / torch.distributed.get_world_size()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _Mean.apply(grad)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Place:
    """A process of a run.

    Attributes:
        device: where its tensors live.
        rank: its number, 0..world - 1.
        world: how many processes share a batch.
    """

    device: torch.device = torch.device("cpu")
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what a run leaves."""
        return self.rank == 0

    def part(self, rows: Tensor) -> Tensor:
        """This process's rows of a whole batch."""
        count = len(rows) // self.world
        return rows[self.rank * count : (self.rank + 1) * count]

    def autocast(self, bf16: bool) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes; without a gradient."""
        return value.detach() if self.world == 1 else _Mean.apply(value.detach())  # type: ignore[no-any-return]

    def mean(self, value: Tensor) -> Tensor:
        """The same with a gradient: for the inner gradients of the meta-auxiliary attack."""
        return value if self.world == 1 else _Mean.apply(value)  # type: ignore[no-any-return]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes: that of the mean loss over the whole batch."""
        if self.world == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        start = 0
        for grad in grads:
            grad.copy_(flat[start : start + grad.numel()].view_as(grad))
            start += grad.numel()

    def agree(self, value: float) -> float:
        """The first process's number, in all: clocks of several processes differ, their decisions must not."""
        if self.world == 1:
            return value
        number = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(number, 0)
        return float(number)


def join(device: str = "auto") -> Place:
    """This process's place; under `torchrun` it joins the others, by NCCL on GPUs and gloo on CPUs.

    Args:
        device: "auto" (CUDA where there is one), "cuda" or "cpu".

    Raises:
        TrainingError: "cuda" was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("PyTorch finds no CUDA GPU", "leave out --device, or take --device cpu")
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    cuda = device != "cpu" and torch.cuda.is_available()
    where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(where)
        # on what bfloat16 leaves in float32: convolutions and products of TF32 are exact enough and far faster
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if world > 1 and not torch.distributed.is_initialized():
        # the first process may look for faces for long before the others hear from it
        torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=2))
    return Place(where, rank, world)

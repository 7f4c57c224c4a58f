"""Where a run computes: a device, and a process among several that share each batch (`torchrun`)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from emask.engine.device import torch_device
from emask.errors import EmaskError, TrainingError


def send(x: Tensor, like: Tensor | torch.device) -> Tensor:
    """`x.to(like)` for a tensor on the CPU, which does not wait for the GPU where `like` is on one.

    A plain copy first waits for all the work that the GPU has been given, and one called non-blocking may; one from
    pinned memory joins that work.
    """
    if isinstance(like, Tensor):
        x, like = x.to(like.dtype), like.device
    return x.pin_memory().to(like, non_blocking=True) if like.type == "cuda" else x.to(like)


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
    def choice(self) -> str:
        """For ONNX Runtime: "cpu", or "auto" beside a GPU, which may be torch's alone."""
        return "cpu" if self.device.type == "cpu" else "auto"

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

    def broadcast(self, value: Tensor) -> Tensor:
        """The first process's tensor, in all; each gives one of the same shape and type."""
        if self.world == 1:
            return value
        value = value.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.broadcast(value, 0)
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, each of which gives as many: the whole of what `part` takes a part of."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.world)]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def agree(self, value: float) -> float:
        """The first process's number, in all: clocks of several processes differ, their decisions must not.

        It goes from CPU to CPU, so that no GPU has to finish its step first.
        """
        return float(self.broadcast(torch.tensor([value], dtype=torch.float64)))


def join(device: str = "auto") -> Place:
    """This process's place; under `torchrun` it joins the others, by NCCL on GPUs and gloo on CPUs (and for `agree`).

    Args:
        device: "auto" (CUDA where there is one), "cuda" or "cpu".

    Raises:
        TrainingError: "cuda" was asked for, and there is none or it fails.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if device != "cpu" and torch.cuda.is_available():
        if own >= torch.cuda.device_count():
            message = f"{own + 1} processes and {torch.cuda.device_count()} GPUs"
            raise TrainingError(message, "start one process a GPU, or take --device cpu")
        torch.cuda.set_device(own)  # before it is tried
        if world > 1:  # one that fell back to the CPU would leave the others waiting
            device = "cuda"
    try:
        cuda = torch_device(device) != "cpu"
    except EmaskError as error:
        raise TrainingError(error.message, "leave out --device, or take --device cpu") from None
    where = torch.device("cuda", own) if cuda else torch.device("cpu")
    if cuda:
        # on what bfloat16 leaves in float32, convolutions of TF32 are exact enough and far faster; not so products of
        # matrices: those left are the noise pool's, which is kept out of half precision on purpose
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if world > 1 and not torch.distributed.is_initialized():
        # the first process may look for faces for long before the others hear from it
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(hours=2))
    return Place(where, rank, world)

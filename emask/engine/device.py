"""Where torch computes: on a GPU only where one really does."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec

from emask.errors import EmaskError, device_failure, first_line


def torch_device(choice: str = "auto") -> str:
    """The torch device that a choice stands for, tried with a small computation where it is a GPU.

    torch also sees GPUs that it cannot use: too old for its kernels, full, or with a driver that fails.

    Args:
        choice: "auto" takes CUDA where it works, with a note where it is there and does not; "cuda", or one GPU as
            "cuda:1", insists; "cpu" never takes a GPU.

    Raises:
        EmaskError: CUDA was asked for and does not load, or the GPU fails.
    """
    import torch

    if choice == "cpu":
        return choice
    if not torch.cuda.is_available():
        if choice == "auto":
            return "cpu"
        raise no_cuda()
    device = "cuda" if choice == "auto" else choice
    try:
        ones = torch.ones(1, 1, 4, 4, device=device)
        torch.nn.functional.conv2d(ones, ones).item()  # a convolution, so that cuDNN is loaded as well
    except Exception as error:  # torch has several classes for it
        if choice != "auto":
            hint = "use --device cpu"
            raise device_failure(error) or EmaskError(f"the GPU failed: {first_line(error)}", hint) from None
        note_once(f"the GPU cannot be used, computing on the CPU: {first_line(error)}")
        return "cpu"
    return device


def gpu_works() -> bool | None:
    """Whether torch computes on the GPU, with a note where it does not; None where it sees none, or is not there."""
    if find_spec("torch") is None:
        return None
    import torch

    return torch_device("auto") != "cpu" if torch.cuda.is_available() else None


def no_cuda(reason: str = "") -> EmaskError:
    """What is said where CUDA was asked for and is not there."""
    message = "CUDA was asked for but does not load" + (f": {reason}" if reason else "")
    return EmaskError(message, "use --device cpu, or install the CUDA libraries")


@cache
def note_once(line: str) -> None:
    """Tell on standard error, once in a process, of what several models would each tell of."""
    print(f"note: {line}", file=sys.stderr)

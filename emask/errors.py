"""Errors a user can act on: one clear line, a hint, and an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

P = ParamSpec("P")


class EmaskError(Exception):
    """Base of every error that emask reports without a traceback.

    Attributes:
        message: one line that says what is wrong.
        hint: one line that says what to do about it, or "".
        exit_code: the process's exit code when nothing else was done.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def line(self) -> str:
        """Message and hint in one line, as the `python -m` programs print them."""
        return f"error: {self.message}" + (f" ({self.hint})" if self.hint else "")


class UsageError(EmaskError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class ImageError(EmaskError):
    """A file that is no readable photo, or one that cannot be written."""


class NoFaceError(EmaskError):
    """No face (or not the face asked for) in a photo."""

    exit_code = 3


class ModelError(EmaskError):
    """A model file that is missing, damaged, or of another kind than asked for."""

    exit_code = 5


class TrainingError(EmaskError):
    """A training run that cannot start or go on."""


def device_failure(error: BaseException) -> EmaskError | None:
    """What a user can be told of an error that is the machine's, not the photo's or the model's: memory, or the GPU.

    Args:
        error: of torch's or ONNX Runtime's, which have no classes for it, or of Python's.

    Returns:
        None for any other error.
    """
    reason = first_line(error)
    memory = "out of memory|not enough memory|t allocate memory|Failed to allocate memory|bad.alloc"
    if isinstance(error, MemoryError) or re.search(memory, str(error)):
        return EmaskError("out of memory", "try fewer or smaller photos at a time, or --device cpu on a small GPU")
    if re.search("CUDA|cuDNN|CUDNN|cuBLAS|CUBLAS", str(error)):
        return EmaskError(f"the GPU failed: {reason}", "use --device cpu")
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut to 200 characters; its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def as_program(main: Callable[P, int]) -> Callable[P, int]:
    """The entry point of a `python -m` program: an error goes to standard error as one line, and is its exit code."""

    @wraps(main)
    def program(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except EmaskError as error:
            print(error.line, file=sys.stderr)
            return error.exit_code

    return program

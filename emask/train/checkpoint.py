"""Checkpoints of a run: written whole or not at all."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from emask.errors import TrainingError


def save(
    path: Path, state: dict[str, Any], outdated: Sequence[Path] = (),
    hint: str = "free some space and go on with --resume",
) -> None:  # fmt: skip
    """Write a checkpoint; the one before stays until the new one is complete.

    Args:
        outdated: what was made from the one before; it goes with it.
        hint: what to do when it cannot be written.

    Raises:
        TrainingError: the disk is full or the folder cannot be written.
    """
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        for file in outdated:  # first: a process that ends in between must not leave them beside the new one
            file.unlink(missing_ok=True)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(f"cannot write {path}: {error}", hint) from error


def room_for(path: Path, size: int) -> None:
    """Refuse to begin what could not be kept: the next checkpoint is written beside the one before.

    Args:
        path: of the checkpoint; its folder exists.
        size: of one checkpoint, in bytes, roughly.

    Raises:
        TrainingError: the disk has no room for one.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise TrainingError(
            f"a checkpoint takes {size / 2**20:.0f} MiB, and the disk of {path.parent} has {free / 2**20:.0f} free",
            "free some space, or name another folder with --run",
        )


def load(path: Path, hint: str) -> dict[str, Any]:
    """Read a checkpoint of this project, to the CPU.

    Raises:
        TrainingError: it does not exist (the hint says what would make it), or is damaged.
    """
    if not path.exists():
        raise TrainingError(f"{path} does not exist", hint)
    told = f"{path} is no checkpoint of emask, or damaged", "name another, or remove it and train it again"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(*told) from error
    if not isinstance(state, dict):
        raise TrainingError(*told)
    return state

"""Peers by name, with the files they work with, for `protect` and `bench`. Importing it loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emask import weights
from emask.engine import Engine, to_network
from emask.errors import UsageError

PEER_NAMES = ("fgsm", "pgd", "mi-fgsm", "tip-im", "gmaa-like", "sibling", "semantic-adv", "advfaces")
# Peers that ask no recognizer when they work: they had theirs in training.
TRAINED = ("advfaces",)
# Peers that need a file: the attribute of `PeerFiles`, which is the option's name too, and where one comes from.
NEEDED = {
    "sibling": ("classifier", "the stage1.pt of a run folder; emask train --stage 1 makes one"),
    "advfaces": ("advfaces", "python -m emask.bench.advfaces trains one"),
}


@dataclass(frozen=True)
class PeerFiles:
    """Files that the user names for peers which need one.

    Attributes:
        classifier: a stage-1 checkpoint, for its attribute classifier.
        advfaces: a generator that `emask.bench.advfaces` trained.
    """

    classifier: Path | None = None
    advfaces: Path | None = None

    def of(self, name: str) -> dict[str, Path]:
        """What a peer works with, by kind: what the user named for it, or the shipped models that it looks into.

        Raises:
            UsageError: its file was not named, or is not there.
            ModelError: a shipped model is missing or damaged.
        """
        if name == "semantic-adv":
            return {kind: weights.shipped_path(kind) for kind in ("generator", "restorer")}
        if name not in NEEDED:
            return {}
        kind, source = NEEDED[name]
        path: Path | None = getattr(self, kind)
        if path is None:
            raise UsageError(f"{name} needs --{kind} FILE", source)
        if not path.is_file():
            raise UsageError(f"no file {path}", f"--{kind} wants {source}")
        return {kind: path}


def prepare() -> None:
    """Settings that several recognizers in one process need; before torch is loaded."""
    from emask.train.threads import prepare_process

    prepare_process()


def peer_engine(engine: Engine, name: str, recognizers: Path | None, target: np.ndarray, files: PeerFiles) -> Engine:
    """The engine with a peer in the generator's place.

    Args:
        name: one of PEER_NAMES.
        recognizers: folder of its white boxes, those of fold A; None for those of TRAINED.
        target: (1, S, S, 3) uint8 crop of the target.

    Raises:
        UsageError, ModelError, TrainingError: files that are not what the peer needs.
        TrainingError: recognizers that cannot be descended on.
    """
    from emask.bench.methods import PeerEngine, peer_of
    from emask.train.prepare import open_surrogates

    peer = peer_of(name, files=files)
    surrogates = [] if recognizers is None else open_surrogates(recognizers, None)
    return PeerEngine(engine, name, peer, surrogates, to_network(target))

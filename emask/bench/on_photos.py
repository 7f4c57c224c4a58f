"""Peers on photos, for `emask protect --method`. Importing it loads nothing heavy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emask.engine import Engine, to_network

PEER_NAMES = ("fgsm", "pgd", "mi-fgsm", "tip-im", "gmaa-like")


def prepare() -> None:
    """Settings that several recognizers in one process need; before torch is loaded."""
    from emask.train.threads import prepare_process

    prepare_process()


def peer_engine(engine: Engine, name: str, recognizers: Path, target: np.ndarray) -> Engine:
    """The engine with a peer in the generator's place.

    Args:
        name: one of PEER_NAMES.
        recognizers: folder of its white boxes, those of fold A.
        target: (1, S, S, 3) uint8 crop of the target.

    Raises:
        TrainingError: recognizers that cannot be descended on.
    """
    from emask.bench.methods import PeerEngine
    from emask.train.prepare import open_surrogates

    return PeerEngine(engine, name, open_surrogates(recognizers, None), to_network(target))

"""The attacks a user would otherwise pick, all under one interface and one budget.

A peer is a frozen dataclass of its parameters; `PEERS` names the classes:

    change = PEERS["pgd"](eps=24 / 255)(crop, targets, surrogates)

None of them is erasable. All but `AdvFaces`, a trained generator, take passes through the surrogates for every photo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from emask.bench.peers.advfaces import AdvFaces
from emask.bench.peers.fgsm import FGSM
from emask.bench.peers.gmaa import TargetManifold
from emask.bench.peers.mi_fgsm import MIFGSM
from emask.bench.peers.pgd import PGD
from emask.bench.peers.semantic_adv import SemanticAdv
from emask.bench.peers.sibling import SiblingAttack
from emask.bench.peers.similarity import Recognizer
from emask.bench.peers.tip_im import TIPIM


class Peer(Protocol):
    """What every peer does."""

    def __call__(self, crop: Tensor, targets: Tensor, surrogates: Sequence[Recognizer]) -> Tensor:
        """The change that makes faces look like the target to the surrogates.

        No face's change depends on the other faces, and equal parameters give equal changes.

        Args:
            crop: (B, 3, S, S) float32 RGB in [-1, 1].
            targets: (T, 3, S, S), T >= 1 photos of the one target person, as `crop`.
            surrogates: differentiable and frozen, (N, 3, S, S) to (N, D) unit embeddings; as `emask.train.surrogates`.

        Returns:
            (B, 3, S, S) float32, without gradient, no larger than the peer's `eps` by its `norm`; crop + change lies
            in [-1, 1].
        """
        ...


# Called with parameters they give a peer. "sibling", "advfaces" and "semantic-adv" need a network, which
# `emask.bench.methods.peer_of` opens; "gmaa-like" is not GMAA: see its file.
PEERS: dict[str, Callable[..., Peer]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "mi-fgsm": MIFGSM,
    "tip-im": TIPIM,
    "sibling": SiblingAttack,
    "gmaa-like": TargetManifold,
    "advfaces": AdvFaces,
    "semantic-adv": SemanticAdv,
}

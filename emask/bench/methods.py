"""What `emask bench --method` can measure beside emask: its peers, and what every score has to expose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from emask.bench.on_photos import PEER_NAMES, PeerFiles
from emask.bench.peers import PEERS, Peer
from emask.bench.peers.advfaces import load_generator
from emask.bench.peers.similarity import Recognizer
from emask.bench.protocol import Method
from emask.engine import Engine, inner_square
from emask.errors import UsageError
from emask.face.align import INNER

EMASK = "emask"
# Protects nothing, and erases nothing: what scores well with it scores the photo.
NOTHING = "nothing"
# Pushes no face anywhere and "restores" by a grey square, which the paper's erasure rate is content with.
GREY_SQUARE = "grey-square"
# Faces a peer works on at once.
BATCH = 16


def method_names() -> list[str]:
    """All that `--method` takes."""
    return [EMASK, NOTHING, GREY_SQUARE, *PEER_NAMES]


def _pixels(squares: np.ndarray) -> np.ndarray:
    """A target "embedded" as the (3, 112, 112) pixels of the first of its photos, for methods that want to see it."""
    return squares[0].reshape(-1)


def peer_method(peer: Peer, surrogates: Sequence[Recognizer], tick: Callable[[int], None] | None = None) -> Method:
    """A peer under the photo protocol. It cannot be erased.

    Args:
        surrogates: white boxes it descends on.
        tick: called with the faces done since the last call.
    """
    import torch

    def protect(crops: np.ndarray, targets: np.ndarray) -> np.ndarray:
        wanted = np.broadcast_to(targets, (len(crops), targets.shape[-1]))
        distinct, which = np.unique(wanted, axis=0, return_inverse=True)
        result = np.zeros_like(crops)
        for number, pixels in enumerate(distinct):
            photo = torch.from_numpy(pixels.reshape(1, 3, INNER, INNER).astype(np.float32))
            rows = np.flatnonzero(which.reshape(-1) == number)
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                result[part] = peer(torch.from_numpy(crops[part]), photo, surrogates).numpy()
                if tick:
                    tick(len(part))
        return result

    return Method(protect, None, _pixels)


class PeerEngine:
    """An engine that masks as a peer does, for photos; everything else it hands on.

    Args:
        engine: opened with a recognizer.
        name: the peer's.
        peer: as `peer_of` gives it.
        surrogates: white boxes it descends on.
        target: (1, 3, S, S) float32 crop of the target in [-1, 1], which a peer looks at itself.
    """

    def __init__(
        self, engine: Engine, name: str, peer: Peer, surrogates: Sequence[Recognizer], target: np.ndarray
    ) -> None:
        self.name = f"torch CPU, {name}"  # peers are not moved to a GPU
        self._engine, self._peer, self._surrogates = engine, peer, surrogates
        self._target = _pixels(inner_square(target))[None]

    def protect(
        self, crops: np.ndarray, target: np.ndarray, *, w: float, eps: float, a: np.ndarray | None = None,
        b: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """The peer's change within an L2 budget of `eps`; see `emask.engine.Engine`.

        Neither the embedding `target` nor w is used, and there are no edits.
        """
        return peer_method(within(self._peer, eps), self._surrogates).protect(crops, self._target)

    def erase(self, crops: np.ndarray) -> np.ndarray:
        """As the engine's."""
        return self._engine.erase(crops)

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """As the engine's."""
        return self._engine.embed(crops)

    def embed_target(self, crops: np.ndarray) -> np.ndarray:
        """As the engine's; a peer looks at the target itself."""
        return self._engine.embed_target(crops)

    def embed_person(self, crops: np.ndarray) -> np.ndarray:
        """As the engine's."""
        return self._engine.embed_person(crops)


def emask_method(engine: Engine, w: float, eps: float) -> Method:
    """emask under the photo protocol.

    Args:
        engine: of `emask.engine.masking_engine`.
        w, eps: as for its `protect`.
    """
    return Method(lambda crops, wanted: engine.protect(crops, wanted, w=w, eps=eps), engine.erase, engine.embed_person)


def baseline(name: str) -> Method:
    """NOTHING or GREY_SQUARE."""
    erase = np.zeros_like if name == NOTHING else np.negative
    return Method(lambda crops, targets: np.zeros_like(crops), erase, _pixels)


def peer_of(name: str, eps: float | None = None, files: PeerFiles | None = None) -> Peer:
    """A peer by name, with the parameters of its file and the network that it needs.

    Args:
        eps: L2 budget over a crop in [-1, 1] units, in the place of its own.
        files: for the peers that need one.

    Raises:
        UsageError: no such peer, or one whose file is not named or not there.
        ModelError, TrainingError: a file that is not what the peer needs.
    """
    if name not in PEER_NAMES:
        raise UsageError(f"no method named {name!r}", f"there are: {', '.join([EMASK, *PEER_NAMES])}")
    peer = PEERS[name](**_networks(name, (files or PeerFiles()).of(name)))
    return peer if eps is None else within(peer, eps)


def _networks(name: str, found: dict[str, Path]) -> dict[str, Any]:
    """The network a peer is made with, and what else its file says, by parameter."""
    if name == "sibling":
        from emask.bench.editing import load_stage1

        return {"classifier": load_stage1(found["classifier"])[1].requires_grad_(False)}
    if name == "advfaces":
        generator = load_generator(found["advfaces"])
        return {"generator": generator, "eps": generator.eps}
    if name == "semantic-adv":
        from emask.train.export import checkpoint_of, editor_from

        return {"editor": editor_from(checkpoint_of(found["generator"], found["restorer"])).requires_grad_(False)}
    return {}


def within(peer: Peer, eps: float) -> Peer:
    """The same peer within an L2 budget over a crop in [-1, 1] units."""
    return replace(peer, eps=eps, norm="l2")  # type: ignore[type-var]


def parameters(peer: Peer) -> dict[str, Any]:
    """A peer's parameters for a report, its networks left out."""
    values = {field.name: getattr(peer, field.name) for field in fields(peer)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if not isinstance(value, nn.Module)}

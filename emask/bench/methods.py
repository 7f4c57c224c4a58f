"""What `emask bench --method` can measure beside emask: its peers, and what every score has to expose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from emask.bench.on_photos import PEER_NAMES
from emask.bench.peers import PEERS, Peer
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
    """All that `--method` takes; "sibling" needs an attribute classifier and is left to Python."""
    return [EMASK, NOTHING, GREY_SQUARE, *PEER_NAMES]


def _pixels(squares: np.ndarray) -> np.ndarray:
    """A target "embedded" as its (B, 3, 112, 112) pixels themselves, for methods that want to see it."""
    return squares.reshape(len(squares), -1)


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
        name: a peer's.
        surrogates: white boxes it descends on.
        target: (1, 3, S, S) float32 crop of the target in [-1, 1], which a peer looks at itself.

    Raises:
        UsageError: no such peer.
    """

    def __init__(self, engine: Engine, name: str, surrogates: Sequence[Recognizer], target: np.ndarray) -> None:
        peer_of(name)
        self.name = f"torch CPU, {name}"  # peers are not moved to a GPU
        self._engine, self._peer, self._surrogates = engine, name, surrogates
        self._target = _pixels(inner_square(target))

    def protect(
        self, crops: np.ndarray, target: np.ndarray, *, w: float, eps: float, a: np.ndarray | None = None,
        b: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """The peer's change within an L2 budget of `eps`; see `emask.engine.Engine`.

        Neither the embedding `target` nor w is used, and there are no edits.
        """
        return peer_method(peer_of(self._peer, eps), self._surrogates).protect(crops, self._target)

    def erase(self, crops: np.ndarray) -> np.ndarray:
        """As the engine's."""
        return self._engine.erase(crops)

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """As the engine's."""
        return self._engine.embed(crops)

    def embed_target(self, crops: np.ndarray) -> np.ndarray:
        """As the engine's; a peer looks at the target itself."""
        return self._engine.embed_target(crops)


def baseline(name: str) -> Method:
    """NOTHING or GREY_SQUARE."""
    erase = np.zeros_like if name == NOTHING else np.negative
    return Method(lambda crops, targets: np.zeros_like(crops), erase, _pixels)


def peer_of(name: str, eps: float | None = None) -> Peer:
    """A peer by name, with the parameters of its file.

    Args:
        eps: L2 budget over a crop in [-1, 1] units, in the place of its own.

    Raises:
        UsageError: no such peer.
    """
    if name not in PEER_NAMES:
        raise UsageError(f"no method named {name!r}", f"there are: {', '.join([EMASK, *PEER_NAMES])}")
    return PEERS[name](**({} if eps is None else {"eps": eps, "norm": "l2"}))


def method_of(name: str, surrogates: Callable[[], Sequence[Recognizer]], eps: float | None = None) -> Method:
    """A baseline, or a peer as by `peer_of`.

    Args:
        surrogates: opens them; called for peers only.

    Raises:
        UsageError: no such method.
    """
    if name in (NOTHING, GREY_SQUARE):
        return baseline(name)
    return peer_method(peer_of(name, eps), surrogates())

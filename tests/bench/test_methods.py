"""Methods beside emask: each face gets its own target, and the scores expose those that do nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from emask.bench.methods import (
    BATCH,
    EMASK,
    GREY_SQUARE,
    NOTHING,
    PeerEngine,
    baseline,
    method_names,
    method_of,
    peer_method,
)
from emask.bench.on_photos import PEER_NAMES
from emask.bench.peers import PEERS
from emask.errors import UsageError


def half_way(crop: Tensor, targets: Tensor, surrogates: object) -> Tensor:
    """A peer that goes half way to its target's mean colour."""
    return (targets.mean((0, 2, 3)).view(1, 3, 1, 1) - crop) / 2


def toy_surrogate() -> Callable[[Tensor], Tensor]:
    """(N, 3, S, S) crops, or inner squares, to (N, 8) unit embeddings."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(3 * 14 * 14, 8))

    def surrogate(crops: Tensor) -> Tensor:
        offset = (crops.shape[-1] - 112) // 2
        return torch.nn.functional.normalize(net(crops[:, :, offset : offset + 112, offset : offset + 112]), dim=1)

    return surrogate


def test_a_peer_is_shown_each_faces_own_target() -> None:
    rng = np.random.default_rng(0)
    crops = rng.uniform(-1, 1, (2 * BATCH + 3, 3, 128, 128)).astype(np.float32)
    targets = np.broadcast_to(np.array([-0.5, 0.0, 0.5]).reshape(3, 1, 1, 1), (3, 3, 112, 112)).astype(np.float32)
    ticks: list[int] = []
    method = peer_method(half_way, (), ticks.append)
    which = rng.integers(0, 3, len(crops))
    change = method.protect(crops, method.embed(targets)[which])
    assert change.dtype == np.float32 and sum(ticks) == len(crops) and max(ticks) <= BATCH
    wanted = np.array([-0.5, 0.0, 0.5])[which].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(crops + change, (crops + wanted) / 2, atol=1e-6)
    one = method.protect(crops[:2], method.embed(targets[:1])[0])  # one target for all
    np.testing.assert_allclose(crops[:2] + one, (crops[:2] - 0.5) / 2, atol=1e-6)
    assert method.erase is None


def test_baselines() -> None:
    crops = np.random.default_rng(0).uniform(-1, 1, (2, 3, 128, 128)).astype(np.float32)
    for name in (NOTHING, GREY_SQUARE):
        method = baseline(name)
        assert not method.protect(crops, crops[:, :, :112, :112].reshape(2, -1)).any()
        assert method.erase is not None
        restored = crops + method.erase(crops)
        assert np.array_equal(restored, crops if name == NOTHING else np.zeros_like(crops))


def test_names_and_the_surrogates_they_need() -> None:
    assert {"emask", "nothing", "grey-square", "pgd", "tip-im"} <= set(method_names())

    def never() -> list[Tensor]:
        raise AssertionError

    assert method_of("nothing", never).erase is not None  # type: ignore[arg-type]
    opened: list[int] = []
    method_of("fgsm", lambda: opened.append(1) or [])  # type: ignore[func-returns-value]
    assert opened == [1]
    for name in ("photoshop", "sibling", "emask"):
        with pytest.raises(UsageError, match=name):
            method_of(name, never)  # type: ignore[arg-type]
    assert set(PEER_NAMES) == set(method_names()) - {EMASK, GREY_SQUARE, NOTHING} == PEERS.keys() - {"sibling"}


def test_a_real_peer_moves_towards_the_target_it_is_given() -> None:
    surrogate = toy_surrogate()
    rng = np.random.default_rng(1)
    crops = rng.uniform(-0.9, 0.9, (3, 3, 128, 128)).astype(np.float32)
    targets = rng.uniform(-0.9, 0.9, (3, 3, 112, 112)).astype(np.float32)
    method = method_of("fgsm", lambda: [surrogate])
    change = method.protect(crops, method.embed(targets))
    with torch.no_grad():
        wanted = surrogate(torch.from_numpy(targets))
        before, after = ((surrogate(torch.from_numpy(x)) * wanted).sum(1) for x in (crops, crops + change))
    assert (after > before + 0.01).all()
    # the twin with a budget of its own: exactly as far as it says, by the Euclidean norm
    held = method_of("fgsm", lambda: [surrogate], 3.0).protect(crops, method.embed(targets))
    norms = np.sqrt((held**2).sum((1, 2, 3)))
    assert (norms <= 3.0 * (1 + 1e-5)).all() and (norms > 2.5).all()
    assert np.sqrt((change**2).sum((1, 2, 3))).min() > 4


def test_a_peer_as_an_engine_keeps_the_budget_it_is_asked_for() -> None:
    """By its own norm, whatever strength a photo is protected with; the target is the picture, not the embedding."""
    surrogate = toy_surrogate()
    rng = np.random.default_rng(2)
    crops, target = (rng.uniform(-0.9, 0.9, (n, 3, 128, 128)).astype(np.float32) for n in (2, 1))
    engine = PeerEngine(None, "fgsm", [surrogate], target)  # type: ignore[arg-type]
    for eps in (2.0, 6.0):
        change = engine.protect(crops, np.zeros(256, np.float32), w=0.0, eps=eps)
        norms = np.sqrt((change**2).sum((1, 2, 3)))
        assert (norms <= eps * (1 + 1e-5)).all() and (norms > 0.8 * eps).all()

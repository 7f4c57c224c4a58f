"""One forward pass through a shipped model, to see that it runs, under whatever protect runs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from emask.engine import SIZES, Device, Engine, open_engine
from emask.errors import EmaskError
from emask.results import ModelStatus
from emask.weights import manifest

# Length of the recognizer's embedding, which generators of this format take.
_EMBEDDING = 256


def try_model(entry: ModelStatus, device: Device = "auto") -> ModelStatus:
    """The entry with `runs` filled in; a file whose sha256 is wrong is not loaded and does not run."""
    if not entry.sha256_ok:
        return replace(entry, runs=False)
    try:
        for engine in _engines(entry, device):
            _run(engine, entry.kind)
    except EmaskError as error:
        return replace(entry, runs=False, message=error.message)
    return replace(entry, runs=True)


def _engines(entry: ModelStatus, device: Device) -> Iterator[Engine]:
    """With this model alone: the one that is taken by default and, for what masks are refined through, torch."""
    path = Path(entry.file)
    engine = open_engine(**{entry.kind: path}, device=device)  # type: ignore[arg-type]
    yield engine
    if entry.kind != "generator" and not engine.name.startswith("torch") and find_spec("onnx2torch") is not None:
        from emask.engine.torch import TorchEngine

        yield TorchEngine({entry.kind: path}, device)


def _run(engine: Engine, kind: str) -> None:
    size = SIZES[kind]
    crops = np.random.default_rng(0).uniform(-1, 1, (2, 3, size, size)).astype(np.float32)
    if kind == "generator":
        target = np.full(_EMBEDDING, _EMBEDDING**-0.5, np.float32)
        out = engine.protect(crops, target, w=0.2, eps=_largest_eps())
        _expect(float(np.abs(crops + out).max()) <= 1 + 1e-4, "the protected crop leaves the range of pixels")
    elif kind == "restorer":
        out = engine.erase(crops)
        _expect(float(np.abs(crops + out).max()) <= 1 + 1e-4, "the restored crop leaves the range of pixels")
    else:
        out = engine.embed(crops)
        _expect(bool(np.allclose(np.linalg.norm(out, axis=1), 1, atol=1e-3)), "embeddings are not of unit length")


def _largest_eps() -> float:
    strengths = manifest()["models"]["generator"].get("strengths", {})
    return max((float(figures["eps"]) for figures in strengths.values()), default=1.0)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise EmaskError(otherwise)

"""Running the exported graphs: one protocol, ONNX Runtime first, torch where it is missing."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from emask.attributes import ATTRIBUTES
from emask.errors import EmaskError, ModelError, UsageError
from emask.face.align import CROP, INNER, MARGIN

Device = Literal["auto", "cpu", "cuda"]

# Crops in one forward pass.
BATCH = 16
# Names of the graph inputs by kind, as exported.
INPUTS = {
    "generator": ("crop", "target", "a", "b", "w", "eps"),
    "restorer": ("crop",),
    "recognizer": ("crop",),
}
SIZES = {"generator": CROP, "restorer": CROP, "recognizer": INNER}


class Engine(Protocol):
    """Runs the generator, the restorer and the recognizer on any number of crops.

    Crops and changes are (N, 3, S, S) float32 RGB in [-1, 1] units.
    """

    name: str

    def protect(
        self,
        crops: np.ndarray,
        target: np.ndarray,
        *,
        w: float,
        eps: float,
        a: np.ndarray | None = None,
        b: np.ndarray | None = None,
    ) -> np.ndarray:
        """The change that masks each crop, (N, 3, 128, 128); see `GraphEngine.protect`."""
        ...

    def erase(self, crops: np.ndarray) -> np.ndarray:
        """The change that takes the mask off each protected crop, (N, 3, 128, 128)."""
        ...

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """Unit embeddings, (N, D), of inner crops, (N, 3, 112, 112)."""
        ...

    def embed_target(self, crops: np.ndarray) -> np.ndarray:
        """What `protect` takes as its target, (N, D'), of inner crops, (N, 3, 112, 112)."""
        ...

    def embed_person(self, crops: np.ndarray) -> np.ndarray:
        """The same for one person by several photos: (D',) of (N, 3, 112, 112), all of this person."""
        ...


def mirror_mean(embed: Callable[[np.ndarray], np.ndarray], crops: np.ndarray) -> np.ndarray:
    """Unit means of the embeddings of (N, 3, S, S) crops and of their mirror images, (N, D) float32.

    Args:
        embed: (N, 3, S, S) to unit (N, D).
    """
    return unit(embed(crops) + embed(np.ascontiguousarray(crops[..., ::-1])))


def unit(vectors: np.ndarray) -> np.ndarray:
    """(..., D) vectors scaled to length 1, float32."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12), np.float32)


class GraphEngine(ABC):
    """An engine over exported graphs; how one graph is run is left to the subclass.

    Args:
        files: kind ("generator", "restorer", "recognizer") to model file; a kind may be absent.
        batch_size: most crops in one forward pass.
    """

    name = ""

    def __init__(self, files: dict[str, Path], batch_size: int = BATCH) -> None:
        self.files = files
        self.batch_size = batch_size

    @abstractmethod
    def _forward(self, kind: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """One forward pass over one batch; feeds by input name."""

    def protect(
        self,
        crops: np.ndarray,
        target: np.ndarray,
        *,
        w: float,
        eps: float,
        a: np.ndarray | None = None,
        b: np.ndarray | None = None,
    ) -> np.ndarray:
        """The change that masks each crop.

        Args:
            crops: (N, 3, 128, 128) float32 RGB in [-1, 1].
            target: (D,) or (N, D), of the target by `embed_target` or `embed_person`.
            w: information injection weight in [0, 1]; 1 leaves the crop as it is.
            eps: L2 budget of the change over the crop in [-1, 1] units; 0 leaves the crop as it is.
            a, b: (N, 13) attribute labels of the source and the wanted ones; both None keeps the look.

        Returns:
            (N, 3, 128, 128) float32, clamped and feathered by the graph.
        """
        count = len(crops)
        labels = np.zeros((count, len(ATTRIBUTES)), np.float32)
        feeds = {
            "crop": crops,
            "target": np.broadcast_to(np.asarray(target, np.float32), (count, target.shape[-1])).copy(),
            "a": labels if a is None else a,
            "b": labels if b is None else b,
            "w": np.full(count, w, np.float32),
            "eps": np.full(count, eps, np.float32),
        }
        return self._run("generator", feeds)

    def erase(self, crops: np.ndarray) -> np.ndarray:
        """The change that takes the mask off; (N, 3, 128, 128) float32 in, the same shape out."""
        return self._run("restorer", {"crop": crops})

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """Unit embeddings: (N, 3, 112, 112) float32 in [-1, 1] in, (N, D) float32 out."""
        return self._run("recognizer", {"crop": crops})

    def embed_target(self, crops: np.ndarray) -> np.ndarray:
        """The recognizer's embeddings, each the mean over the crop and its mirror image; see `embed`.

        One photo is to stand for a person: mirrored, it is another one.
        """
        return mirror_mean(self.embed, crops)

    def embed_person(self, crops: np.ndarray) -> np.ndarray:
        """The unit mean of what `embed_target` gives: what the photos of a person agree on."""
        return unit(self.embed_target(crops).mean(0))

    def _run(self, kind: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
        if kind not in self.files:
            raise ModelError(f"this engine was opened without a {kind}", f"give open_engine a {kind}")
        shape = (3, SIZES[kind], SIZES[kind])
        crops = feeds["crop"]
        if crops.ndim != 4 or crops.shape[1:] != shape or not len(crops):
            raise ValueError(f"a {kind} takes crops of shape (N, {', '.join(map(str, shape))}), got {crops.shape}")
        parts = []
        for start in range(0, len(crops), self.batch_size):
            batch = {
                name: np.ascontiguousarray(value[start : start + self.batch_size], dtype=np.float32)
                for name, value in feeds.items()
            }
            out = self._forward(kind, batch)
            if len(out) != len(batch["crop"]) or (kind != "recognizer" and out.shape[1:] != shape):
                raise ModelError(f"{self.files[kind]} gave an output of shape {out.shape}", "export the model again")
            if not np.isfinite(out).all():
                raise ModelError(f"{self.files[kind]} gave numbers that are not finite", "the model is not usable")
            parts.append(out)
        return np.concatenate(parts)


def to_network(crops: np.ndarray) -> np.ndarray:
    """(N, S, S, 3) uint8 grey levels to (N, 3, S, S) float32 in [-1, 1]."""
    return np.ascontiguousarray(crops.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(127.5) - np.float32(1)


def inner_square(crops: np.ndarray) -> np.ndarray:
    """The (B, 3, 112, 112) middle of (B, 3, 128, 128) crops."""
    return crops[:, :, MARGIN : MARGIN + INNER, MARGIN : MARGIN + INNER]


def to_grey_levels(change: np.ndarray) -> np.ndarray:
    """A change (N, 3, S, S) in [-1, 1] units to (N, S, S, 3) float32 in grey levels."""
    return change.transpose(0, 2, 3, 1) * np.float32(127.5)


class ShippedRecognizer:
    """The shipped recognizer on an engine's own session: what protect and erase judge their files with.

    Args:
        engine: opened with a recognizer.
        thresholds: cosine by false accept rate, "0.1", "0.01" and "0.001".
    """

    name = "emask"

    def __init__(self, engine: Engine, thresholds: dict[str, float]) -> None:
        self.thresholds = thresholds
        self._engine = engine

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """Unit embeddings, (N, D) float32, of aligned crops, (N, 128, 128, 3) uint8."""
        square = slice(MARGIN, MARGIN + INNER)
        return self._engine.embed(to_network(crops[:, square, square]))


def open_engine(
    generator: Path | None = None,
    restorer: Path | None = None,
    recognizer: Path | None = None,
    device: Device = "auto",
) -> Engine:
    """Load models into the best engine there is: ONNX Runtime on CUDA, on the CPU, or torch where it is missing.

    Args:
        generator, restorer, recognizer: model files; None for those not needed.
        device: "cuda" insists on a GPU, "cpu" never uses one.

    The environment variable EMASK_ENGINE ("onnx" or "torch") overrides the choice.

    Raises:
        ModelError: a file is missing, damaged, no emask model or of another kind.
        EmaskError: CUDA was asked for and does not load.
        UsageError: for another device or engine name.
    """
    from emask.weights import require_kind

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"no such device: {device}", "choose auto, cpu or cuda")
    files: dict[str, Path] = {}
    for kind, path in (("generator", generator), ("restorer", restorer), ("recognizer", recognizer)):
        if path is not None:
            files[kind] = require_kind(Path(path), kind)
    choice = os.environ.get("EMASK_ENGINE", "")
    if choice not in ("", "onnx", "torch"):
        raise UsageError(f"EMASK_ENGINE is {choice!r}", "set it to onnx or torch, or leave it out")
    if choice != "torch":
        if find_spec("onnxruntime") is not None:
            from emask.engine.onnx import OnnxEngine

            return OnnxEngine(files, device)
        if choice == "onnx":
            raise EmaskError("onnxruntime is not installed", "install onnxruntime, or unset EMASK_ENGINE")
    if find_spec("onnx2torch") is None:
        raise EmaskError("neither onnxruntime nor onnx2torch is installed", "pip install onnxruntime")
    from emask.engine.torch import TorchEngine

    return TorchEngine(files, device)


def refined(
    engine: Engine, steps: int, recognizer: Path, restorer: Path | None, device: Device = "auto",
    refiner: Path | None = None,
) -> Engine:  # fmt: skip
    """The engine with masks that are fitted to each face by so many gradient steps; see `emask.engine.refine`.

    Args:
        engine: opened with a generator.
        steps: 0 gives the engine itself.
        recognizer, restorer: model files; the restorer keeps masks erasable, None does without.
        refiner: model file of a second recognizer to fit them through, or None.
        device: "auto" takes CUDA where it works.

    Raises:
        ModelError: a file that torch cannot load.
        EmaskError: CUDA was asked for and does not work.
    """
    if steps == 0:
        return engine
    from emask.engine.refine import Refinement, RefiningEngine

    return RefiningEngine(engine, recognizer, restorer, device, Refinement(steps=steps), refiner=refiner)


def masking_engine(
    steps: int, device: Device = "auto", generator: Path | None = None, restorer: Path | None = None, erase: bool = True
) -> Engine:
    """What ships, put together to make masks: the generator's, refined through recognizer, refiner and restorer.

    Args:
        steps: gradient steps of refining; 0 for the generator's masks.
        device: "auto" takes CUDA where it works.
        generator, restorer: other files in place of those that ship.
        erase: whether the engine can erase as well.

    Raises:
        ModelError: a file is missing, damaged, no emask model or of another kind.
        EmaskError: CUDA was asked for and does not load.
    """
    from emask.weights import refiner_path, shipped_path

    recognizer = shipped_path("recognizer")
    # a file that is missing or damaged does no harm where nothing asks for it
    key = restorer
    if key is None and (erase or steps):
        try:
            key = shipped_path("restorer")
        except ModelError as error:
            if erase:
                raise
            hint = "masks are refined through it, so that they come off again; --refine 0 does without"
            raise ModelError(error.message, hint) from None
    engine = open_engine(generator or shipped_path("generator"), key if erase else None, recognizer, device)
    return refined(engine, steps, recognizer, key, device, refiner_path()) if steps else engine

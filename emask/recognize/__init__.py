"""Face recognizers: an ONNX file and its card in, unit embeddings of aligned crops out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from emask.errors import EmaskError, ModelError, device_failure, first_line
from emask.face.align import CROP, INNER, MARGIN
from emask.recognize.cards import Card, find_card, folder_cards
from emask.recognize.thresholds import FALSE_ACCEPT_RATES, calibrate, rate_key, similarity, true_accept_rate

__all__ = [
    "FALSE_ACCEPT_RATES",
    "Card",
    "Recognizer",
    "calibrate",
    "load_folder",
    "load_recognizer",
    "rate_key",
    "similarity",
    "true_accept_rate",
]

# Most crops in one run of a graph.
BATCH = 32
# Name of the recognizer that ships with the package.
SHIPPED = "emask"


class Recognizer:
    """A face recognizer under ONNX Runtime.

    Args:
        card: what the file wants to be fed.
        device: "auto" takes CUDA where its provider really loads, then the CPU; "cuda" insists; "cpu" stays there.

    Attributes:
        name: its card's name.
        thresholds: cosine thresholds by false accept rate, keyed "0.1", "0.01", "0.001"; only those that are known.

    Raises:
        ModelError: when the file is missing, damaged, or has no image input of the card's size.
        EmaskError: CUDA was asked for and does not load, or memory ran out.
    """

    def __init__(self, card: Card, device: str = "auto") -> None:
        from emask.engine.onnx import open_session
        from emask.weights import sha256

        self.card = card
        self.name = card.name
        self.thresholds: dict[str, float] = dict(card.thresholds)
        if not card.file.is_file():
            raise ModelError(f"{card.file}: no such recognizer file")
        if card.sha256 and sha256(card.file) != card.sha256.lower():
            raise ModelError(f"{card.file} is damaged: its sha256 is not its card's", "fetch the file again")
        try:
            self._session = open_session(card.file, device)
        except EmaskError:
            raise
        except Exception as error:  # ONNX Runtime raises many classes of its own
            unusable = ModelError(f"{card.file.name}: not a usable ONNX file", first_line(error))
            raise device_failure(error) or unusable from error
        inputs = {i.name: i for i in self._session.get_inputs()}
        if card.input_name and card.input_name not in inputs:
            raise ModelError(f"{card.file.name}: has no input called {card.input_name}", f"it has {', '.join(inputs)}")
        if not card.input_name and len(inputs) != 1:
            raise ModelError(f"{card.file.name}: has {len(inputs)} inputs", "say input_name in its card")
        self._input = card.input_name or next(iter(inputs))
        shape: list[Any] = list(inputs[self._input].shape)
        wanted = (3, *card.size)
        if len(shape) != 4 or any(isinstance(s, int) and s != w for s, w in zip(shape[1:], wanted, strict=True)):
            raise ModelError(f"{card.file.name}: its input is {shape}, its card says {['B', *wanted]}")
        self._fixed_batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None

    def prepare(self, crops: np.ndarray) -> np.ndarray:
        """Cut the recognizer's input from (B, 128, 128, 3) crops and normalise it: (B, 3, h, w) float32."""
        height, width = self.card.size
        top, left = MARGIN + (INNER - height) // 2, MARGIN + (INNER - width) // 2
        pixels = crops[:, top : top + height, left : left + width].astype(np.float32)
        mean, std = np.array(self.card.mean, np.float32), np.array(self.card.std, np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2), dtype=np.float32)

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """Embeddings of aligned crops.

        Args:
            crops: (B, 128, 128, 3) uint8 RGB, from `emask.face.align.align`.

        Returns:
            (B, D) float32, unit length.

        Raises:
            ValueError: for crops of another shape or type.
            ModelError: when the graph fails or does not give one finite embedding a crop.
            EmaskError: out of memory, or the GPU failed.
        """
        crops = np.asarray(crops)
        if crops.ndim != 4 or crops.shape[1:] != (CROP, CROP, 3) or crops.dtype != np.uint8:
            raise ValueError(f"crops must be (B, {CROP}, {CROP}, 3) uint8, not {crops.shape} {crops.dtype}")
        step = self._fixed_batch or BATCH
        parts = []
        for start in range(0, max(len(crops), 1), step):
            batch = self.prepare(crops[start : start + step])
            real = len(batch)
            if self._fixed_batch and real < step:  # the graph takes whole batches only: fill up, and drop the rest
                batch = np.concatenate([batch, np.zeros((step - real, *batch.shape[1:]), np.float32)])
            try:
                out = np.asarray(self._session.run(None, {self._input: batch})[0], np.float32)
            except Exception as error:  # ONNX Runtime raises many classes of its own
                failed = ModelError(f"{self.name}: the recognizer failed", first_line(error))
                raise device_failure(error) or failed from error
            if out.shape[0] != len(batch):
                raise ModelError(f"{self.name}: output of shape {out.shape} for {len(batch)} faces")
            parts.append(out.reshape(len(batch), -1)[:real])
        raw = np.concatenate(parts)
        norm = np.sqrt(np.square(raw).sum(1, keepdims=True))
        if not np.isfinite(norm).all() or (norm == 0).any():
            raise ModelError(f"{self.name}: gave an embedding that is zero or not finite")
        return np.asarray(raw / norm, np.float32)


def load_recognizer(name_or_path: str | None = None, device: str = "auto") -> Recognizer:
    """A recognizer by name or file.

    Args:
        name_or_path: None or "emask" for the one that ships; otherwise an ONNX file with a card: FILE.json beside it,
            or an entry in recognizers.json in its folder.
        device: "auto", "cuda" or "cpu".

    Raises:
        ModelError: when the file or its card is missing or damaged.
        EmaskError: CUDA was asked for and does not load.
    """
    if name_or_path is None or name_or_path == SHIPPED:
        from emask import weights

        file = weights.shipped_path("recognizer")
        # not weights.thresholds, which wants them: those of a new recognizer are measured with what is opened here
        entry = weights.manifest()["models"]["recognizer"]
        known = {str(k): float(v) for k, v in entry.get("thresholds", {}).items()}
        return Recognizer(Card(name=SHIPPED, file=file, thresholds=known), device)
    path = Path(name_or_path)
    if not path.is_file():
        raise ModelError(
            f"{name_or_path}: no such recognizer", f'give an ONNX file, or "{SHIPPED}" for the one that ships'
        )
    return Recognizer(find_card(path), device)


def load_folder(folder: Path, names: list[str] | None = None, device: str = "auto") -> list[Recognizer]:
    """The recognizers of a folder's recognizers.json: all, or those named, in the order of the file.

    Raises:
        ModelError: when the folder has none, or not the one named, or its file is missing or damaged.
        EmaskError: CUDA was asked for and does not load.
    """
    cards = folder_cards(folder)
    if names is not None:
        missing = [n for n in names if n not in {c.name for c in cards}]
        if missing:
            raise ModelError(
                f"no recognizer called {missing[0]} in {folder}", f"it has {', '.join(c.name for c in cards)}"
            )
        cards = [c for c in cards if c.name in names]
    return [Recognizer(card, device) for card in cards]

"""Validation while training runs: what a black-box recognizer says of protected and restored faces.

On people whose photos no training sees, judged by recognizers that no training uses, under the crop protocol: aligned
crops as they are, through a JPEG file. The photo protocol is `emask.bench.protocol`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emask.attributes import ATTRIBUTES
from emask.bench.metrics import accepted, psnr, rate, rejected
from emask.errors import TrainingError
from emask.face.align import CROP
from emask.handling import Operation
from emask.recognize import Recognizer, rate_key
from emask.train.distill import to_float
from emask.train.watch import append_row, keep_rows, to_pixels

# False accept rate of the thresholds that faces are judged at.
FAR = 0.01
# JPEG quality (Pillow's, with halved chroma) that protected and clean crops go through before anybody looks.
QUALITY = 90
# Most crops in one forward pass.
BATCH = 32


def choose_people(people: np.ndarray, names: Sequence[str], count: int) -> np.ndarray:
    """People to keep out of training, and two photos of each.

    Chosen by hashes of the files' names: another machine, another order of the photos or other numbers for the people
    give the same ones, and a larger `count` adds to those of a smaller one.

    Args:
        people: (N,) int, the person of each crop.
        names: N photo paths relative to the data folder.
        count: most people to choose.

    Returns:
        (V, 2) int64 positions in `names`; V is less than `count` where fewer people have two photos.
    """

    def key(position: int) -> tuple[str, str]:
        name = names[position].replace("\\", "/")
        return hashlib.sha256(name.encode()).hexdigest(), name

    photos: dict[int, list[int]] = {}
    for position, person in enumerate(people.tolist()):
        photos.setdefault(person, []).append(position)
    # a person's key is their first photo's
    ranked = sorted((sorted(own, key=key) for own in photos.values() if len(own) > 1), key=lambda own: key(own[0]))
    return np.array([own[:2] for own in ranked[:count]], np.int64).reshape(-1, 2)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards every part has its own mode again (some of a net may be frozen)."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def through_jpeg(pixels: np.ndarray) -> np.ndarray:
    """(B, S, S, 3) uint8 crops, each through a JPEG file."""
    return np.stack([Operation("jpeg", QUALITY)(crop) for crop in pixels])


class Validation:
    """Scores a generator and a restorer on people kept out of training. No random number is drawn.

    Args:
        crops: (V, 2, 128, 128, 3) uint8 RGB: of each person the photo to protect and another one.
        judges: recognizers with a threshold for FAR that no training uses, each with a name of its own.
        targets: (T, 256) float32 unit embeddings, as the generator is given them; person i gets target i % T.
        target_crops: (T, 2, 128, 128, 3) uint8 RGB: the photo that was embedded, and another one of the same person,
            which counts; they may be one photo where there is no other.

    Raises:
        TrainingError: a judge has no threshold.
        ValueError: arrays of another shape or type, no people, targets or judges, or two judges of one name.
    """

    def __init__(
        self, crops: np.ndarray, judges: Sequence[Recognizer], targets: Tensor, target_crops: np.ndarray
    ) -> None:
        for photos in (crops, target_crops):
            if photos.ndim != 5 or photos.shape[1:] != (2, CROP, CROP, 3) or photos.dtype != np.uint8:
                raise ValueError(f"crops must be (N, 2, {CROP}, {CROP}, 3) uint8, not {photos.shape} {photos.dtype}")
        if not len(crops) or not len(judges) or not len(targets) or len(targets) != len(target_crops):
            raise ValueError(
                f"{len(crops)} people, {len(judges)} judges, {len(targets)} targets, {len(target_crops)} pairs"
                " of their photos"
            )
        if len({judge.name for judge in judges}) < len(judges):
            raise ValueError("two judges of one name")
        for judge in judges:
            if rate_key(FAR) not in judge.thresholds:
                raise TrainingError(
                    f"{judge.name} has no threshold at a false accept rate of {rate_key(FAR)}", "add it to its card"
                )
        self.judges = list(judges)
        self._originals = np.ascontiguousarray(crops[:, 0])
        target_of = np.arange(len(crops)) % len(targets)
        self._targets = targets.detach().float().cpu()[torch.from_numpy(target_of)]
        # what never changes is judged once: per judge (V, D) embeddings of owners and targets, and the clean shares
        self._owners = [judge.embed(crops[:, 1]) for judge in judges]
        self._wanted = [judge.embed(target_crops[:, 1])[target_of] for judge in judges]
        clean = through_jpeg(self._originals)
        self._clean = self._shares(clean, clean)

    def score(
        self, generator: nn.Module, restorer: nn.Module, eps: float, device: torch.device | str, bf16: bool
    ) -> dict[str, float]:
        """Protect and judge, restore and judge again.

        Args:
            generator, restorer: on `device`; every part of them is in its own mode again afterwards.
            eps: L2 budget of the mask over a crop, in [-1, 1] units.
            device: where the networks are.
            bf16: autocast to bfloat16, as training does.

        Returns:
            First the means over judges, shares in [0, 1]: "asr", protected photos that match the target's other photo;
            "dodge", protected ones that do not match their owner's other photo; "reverify", restored ones that match
            it; and beside each "KEY-clean", the same of unprotected photos through the same JPEG. Then "psnr" of
            protected photos, before JPEG, and "psnr-restored", both against the original, mean over photos in dB.
            Last the shares of each judge, "KEY@JUDGE" and "KEY-clean@JUDGE".
        """
        protected, coded, restored = self._pictures(generator, restorer, eps, device, bf16)
        shares: dict[str, list[float]] = {}
        for key, values in self._shares(coded, restored).items():
            shares |= {key: values, f"{key}-clean": self._clean[key]}
        scores = {key: float(np.mean(values)) for key, values in shares.items()}
        for key, pictures in (("psnr", protected), ("psnr-restored", restored)):
            scores[key] = float(np.mean([psnr(*pair) for pair in zip(pictures, self._originals, strict=True)]))
        for key, values in shares.items():
            scores |= {f"{key}@{judge.name}": value for judge, value in zip(self.judges, values, strict=True)}
        return scores

    def write(self, path: Path, stage: int, step: int, minutes: float, scores: dict[str, float]) -> None:
        """Append scores to a table of `watch`; rows of this step and later, of a run that was cut off, are dropped.

        Args:
            stage: its number; the stages of a run share the table.
            step: steps made in the stage.
            minutes: since the stage began.
        """
        keep_rows(path, step - 1, stage)
        append_row(path, step, minutes, scores, stage)

    def _pictures(
        self, generator: nn.Module, restorer: nn.Module, eps: float, device: torch.device | str, bf16: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The photos protected, these through JPEG, and these restored; each (B, S, S, 3) uint8."""
        device = torch.device(device)
        protected, coded, restored = [], [], []
        with _evaluating(generator, restorer), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            for start in range(0, len(self._originals), BATCH):
                part = slice(start, start + BATCH)
                crop = to_float(self._originals[part]).to(device)
                labels = torch.zeros(len(crop), len(ATTRIBUTES), device=device)
                none = torch.zeros(len(crop), device=device)
                target = self._targets[part].to(device)
                change = generator(crop, target, labels, labels, none, torch.full_like(none, eps))
                protected.append(to_pixels(crop + change))
                coded.append(through_jpeg(protected[-1]))
                seen = to_float(coded[-1]).to(device)
                restored.append(to_pixels(seen + restorer(seen)))
        return np.concatenate(protected), np.concatenate(coded), np.concatenate(restored)

    def _shares(self, protected: np.ndarray, restored: np.ndarray) -> dict[str, list[float]]:
        """Of (V, S, S, 3) uint8 crops the shares "asr", "dodge" and "reverify", a number a judge."""
        shares: dict[str, list[float]] = {"asr": [], "dodge": [], "reverify": []}
        for judge, owners, wanted in zip(self.judges, self._owners, self._wanted, strict=True):
            threshold = judge.thresholds[rate_key(FAR)]
            masked = judge.embed(protected)
            shares["asr"].append(rate(accepted(masked, wanted, threshold)).value)
            shares["dodge"].append(rate(rejected(masked, owners, threshold)).value)
            shares["reverify"].append(rate(accepted(judge.embed(restored), owners, threshold)).value)
        return shares

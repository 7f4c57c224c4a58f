"""Fitting a mask to the very face and target it is made for: gradient steps through the networks that ship.

The generator makes a mask for any face and any target in one pass, so it cannot be the best one for each. Here its mask
is taken further by descent on the pixels of the mask itself, within the same budget. The recognizer, and the
refiner where there is one, say whom the face looks like, the restorer whether the mask comes off again. The paper stops
at the generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emask.engine import Device, Engine, mirror_mean, unit
from emask.engine.device import torch_device
from emask.engine.torch import convert, quiet, torch_name
from emask.errors import device_failure
from emask.face.align import CROP, INNER, MARGIN
from emask.nets.blocks import feather_window
from emask.train import losses
from emask.train.noise import Redetection, moved
from emask.train.surrogates import fold


@dataclass(frozen=True)
class Refinement:
    """How a mask is refined. Lengths of terms as in training: 1 is the cosine's.

    Attributes:
        steps: gradient steps; 0 leaves the generator's mask.
        lr: Adam's, in [-1, 1] units a step.
        reach: cosine with the target at which the attack is content; 1 is never.
        owner, owner_margin: weight of the term away from the owner, and the cosine under which it is content; -1 is
            never: beyond what satisfies this recognizer lies what moves others.
        roughness: weight of unevenness where the photo is smooth.
        pixels, identity: weights of what the restorer leaves behind, and of how far its faces are from their owners.
        away, away_margin: weight of its faces' likeness to the target, and the cosine under which that is content.
        every: identity and away are asked in each so-many-th step, with so many times their weight: they move slowly
            and cost a pass through the recognizers.
        noise: standard deviation of the noise on what the recognizers see, [-1, 1] units.
        refiner: the refiner's weight beside the recognizer's 1, in all that asks who somebody looks like.
    """

    steps: int = 16
    lr: float = 0.0125
    reach: float = 1.0
    owner: float = 0.6
    owner_margin: float = -1.0
    roughness: float = 40.0
    pixels: float = 7.0
    identity: float = 0.3
    away: float = 0.3
    away_margin: float = 0.1
    every: int = 2
    noise: float = 0.03
    refiner: float = 1.0


SQUARE = slice(MARGIN, MARGIN + INNER)
WITHOUT = "use --refine 0 to do without"


@contextmanager
def _telling() -> Iterator[None]:
    """Turn torch's errors that are the machine's into one that a user is told."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        failure = device_failure(error)
        if failure is None:
            raise
        raise failure from None


class RefiningEngine:
    """An engine whose masks are refined; everything else it hands on.

    Args:
        engine: opened with a generator.
        recognizer: model file of the recognizer that the generator is conditioned by.
        restorer: model file; None where there is none, and then nothing holds the mask to being erasable.
        device: "auto" takes CUDA where it works.
        refiner: model file of another recognizer, or a module that maps inner squares to unit embeddings, or None.

    Raises:
        ModelError: a file that cannot be converted.
        EmaskError: CUDA was asked for and does not work, out of memory, or the GPU failed.
    """

    def __init__(
        self,
        engine: Engine,
        recognizer: Path,
        restorer: Path | None,
        device: Device = "auto",
        refinement: Refinement | None = None,
        batch_size: int = 16,
        refiner: Path | nn.Module | None = None,
    ) -> None:
        self.engine = engine
        self.refinement = refinement or Refinement()
        self.batch_size = batch_size
        self._device = torch_device(device)
        self.name = engine.name
        if engine.name.endswith("CUDA") != (self._device != "cpu"):
            self.name += f", refined by {torch_name(self._device)}"
        named = [recognizer] if refiner is None else [recognizer, refiner]
        with _telling(), quiet():
            self._recognizers = [
                one.to(self._device) if isinstance(one, nn.Module) else fold(convert(one, self._device, WITHOUT)[0])
                for one in named
            ]
            # how many of the target's numbers are the refiner's
            blank = torch.zeros(1, 3, INNER, INNER, device=self._device)
            with torch.no_grad():
                self._others = 0 if refiner is None else int(self._recognizers[1](blank).shape[1])
            self._restorer = None if restorer is None else fold(convert(restorer, self._device, WITHOUT)[0])

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
        """The change that masks each crop; see `GraphEngine.protect`. A face's mask does not depend on its batch.

        Raises:
            EmaskError: out of memory, or the GPU failed.
        """
        if target.shape[-1] <= self._others:
            raise ValueError(f"a target of {target.shape[-1]} numbers lacks the refiner's: embed it by embed_person")
        first = target[..., : target.shape[-1] - self._others]  # the generator knows one recognizer only
        change = self.engine.protect(crops, first, w=w, eps=eps, a=a, b=b)
        if not self.refinement.steps:
            return change
        # an edit is no part of the mask: what the generator changes without a budget stays as it is
        edit = np.zeros_like(change) if b is None else self.engine.protect(crops, first, w=w, eps=0.0, a=a, b=b)
        wanted = np.broadcast_to(np.asarray(target, np.float32), (len(crops), target.shape[-1]))
        injected = np.full(len(crops), w, np.float32)
        parts = []
        with _telling(), quiet():
            for start in range(0, len(crops), self.batch_size):
                rows = slice(start, start + self.batch_size)
                arrays = (np.array(x[rows], np.float32) for x in (crops, edit, change, wanted, injected))
                parts.append(self._refine(*(torch.from_numpy(array).to(self._device) for array in arrays), eps=eps))
        return np.concatenate(parts)

    def erase(self, crops: np.ndarray) -> np.ndarray:
        """As the engine's."""
        return self.engine.erase(crops)

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """As the engine's."""
        return self.engine.embed(crops)

    def embed_target(self, crops: np.ndarray) -> np.ndarray:
        """The recognizer's embeddings of inner crops, and beside them the refiner's; see `Engine.embed_target`."""
        own = self.engine.embed_target(crops)
        return np.concatenate([own, mirror_mean(self._other, crops)], axis=1) if self._others else own

    def embed_person(self, crops: np.ndarray) -> np.ndarray:
        """The same of several photos of one person; see `Engine.embed_person`."""
        own = self.engine.embed_person(crops)
        if not self._others:
            return own
        return np.concatenate([own, unit(mirror_mean(self._other, crops).mean(0))])

    def _other(self, crops: np.ndarray) -> np.ndarray:
        parts = []
        with _telling(), torch.no_grad(), quiet():
            for start in range(0, len(crops), self.batch_size):
                part = torch.from_numpy(np.array(crops[start : start + self.batch_size], np.float32))
                parts.append(self._recognizers[1](part.to(self._device)).cpu().numpy())
        return np.concatenate(parts)

    def _embed(self, crop: Tensor) -> Tensor:
        square = crop[:, :, SQUARE, SQUARE]
        used = self._recognizers if self.refinement.refiner else self._recognizers[:1]
        with self._autocast():
            found = [recognizer(square) for recognizer in used]
        return join([nn.functional.normalize(one.float(), dim=1) for one in found], self.refinement.refiner)

    def _restore(self, crop: Tensor) -> Tensor:
        assert self._restorer is not None
        with self._autocast():
            return self._restorer(crop).float()  # type: ignore[no-any-return]

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._device == "cpu" and bfloat16_is_fast())

    def _refine(
        self, crop: Tensor, edit: Tensor, change: Tensor, target: Tensor, w: Tensor, *, eps: float
    ) -> np.ndarray:
        own = target.shape[1] - self._others
        parts = [target[:, :own], target[:, own:]] if self._others and self.refinement.refiner else [target[:, :own]]
        wanted = join(parts, self.refinement.refiner)
        budget = budgets(change - edit, w, torch.full_like(w, eps))
        restore = None if self._restorer is None else self._restore
        refined = refine(crop, edit, change, wanted, self.refinement, self._embed, restore, budget)
        return np.asarray(refined.cpu().numpy())


def bfloat16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware. Masks come out as good, and sooner."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(supported is not None and supported() for supported in asked)


def budgets(mask: Tensor, w: Tensor, eps: Tensor) -> Tensor:
    """(B,) L2 budgets for refining: eps, which a mask may fall short of; with injection the mask's own.

    Args:
        mask: (B, 3, S, S), the generator's.
        w: (B,) injection; beyond 0 the generator says how faint a mask is.
        eps: (B,) the budgets it was given.
    """
    return torch.where(w == 0, eps, mask.square().sum((1, 2, 3)).sqrt())


def join(embeddings: Sequence[Tensor], refiner: float) -> Tensor:
    """Unit embeddings by the recognizer and, where there is one, the refiner, as one unit vector.

    Args:
        embeddings: one (B, D) or two.
        refiner: weight of the second one beside the first one's 1; a cosine of joined vectors is the weighted mean.
    """
    if len(embeddings) == 1:
        return embeddings[0]
    first, second = embeddings
    return torch.cat([first, refiner**0.5 * second], 1) / (1 + refiner) ** 0.5


def refine(
    crop: Tensor, edit: Tensor, change: Tensor, target: Tensor, settings: Refinement,
    embed: Callable[[Tensor], Tensor], restore: Callable[[Tensor], Tensor] | None, budget: Tensor,
) -> Tensor:  # fmt: skip
    """Masks taken further by gradient steps, each within its budget.

    Args:
        crop: (B, 3, S, S) float32 in [-1, 1].
        edit: (B, 3, S, S), the part of the change that is no mask and stays as it is.
        change: (B, 3, S, S), edit and mask together.
        target: (B, D) unit embeddings.
        embed: the recognizer, or several joined, (B, 3, S, S) to (B, D).
        restore: the restorer, (B, 3, S, S) in [-1, 1] to its change; None leaves out its terms.
        budget: (B,) of the masks' L2 norms, in [-1, 1] units; see `budgets`.

    Returns:
        (B, 3, S, S) changes; crop + change lies in [-1, 1]. Seeded, and alike for all faces of a batch: on the CPU the
        same face gets the same mask every time; on CUDA the gradient of `moved` adds up in no fixed order.
    """
    count = len(crop)
    window = feather_window(CROP).to(crop.device)
    start = change - edit
    with torch.no_grad():
        owner = embed(crop)
    generator = torch.Generator().manual_seed(0)
    redetection = Redetection()

    def again(images: list[Tensor], spread: float, mode: str) -> list[Tensor]:
        angle, zoom, right, down = (spread * torch.randn(4, generator=generator)).tolist()
        shift = 2 * redetection.shift / 128
        angle, zoom = math.radians(redetection.degrees) * angle, math.exp(redetection.zoom * zoom)
        a, z, r, d = (crop.new_full((count, 1, 1), x) for x in (angle, zoom, shift * right, shift * down))
        return moved(images, a, z, r, d, mode)

    def masked(mask: Tensor) -> Tensor:
        """The change: grey, feathered, within the budget, the result within [-1, 1]."""
        grey = mask.expand(-1, 3, -1, -1) * window
        norm = torch.sqrt(grey.square().sum((1, 2, 3)) + 1e-12)
        grey = grey * (budget / norm).clamp(max=1.0).view(-1, 1, 1, 1)
        return (crop + edit + grey).clamp(-1, 1) - crop

    # the generator's mask carries the window already: what is refined is added to it
    first = start.mean(1, keepdim=True) / window.clamp(min=0.05)
    mask = first.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([mask], lr=settings.lr)
    for step in range(1, settings.steps + 1):
        protected = crop + masked(mask)
        (seen,) = again([protected], 2.0, "bilinear")
        noise = torch.randn(1, *crop.shape[1:], generator=generator).to(crop)
        embedding = embed(seen + settings.noise * noise)
        loss = losses.toward(embedding, target, settings.reach)
        loss = loss + settings.owner * losses.owner([embedding], [owner], settings.owner_margin)
        loss = loss + settings.roughness * losses.roughness(protected - crop, crop)
        if restore is not None and (settings.pixels or settings.identity or settings.away):
            found, wanted = again([protected, crop + edit], 1.0, "bicubic")
            found = found.clamp(-1, 1)
            restored = found + restore(found)
            loss = loss + settings.pixels * losses.pixels(restored, wanted)
            if (settings.identity or settings.away) and step % settings.every == 0:
                face = embed(restored)
                loss = loss + settings.every * settings.identity * losses.identity(face, owner)
                loss = loss + settings.every * settings.away * losses.away(face, target, settings.away_margin)
        # the terms are means over the faces; their sum leaves each face its own gradient
        (mask.grad,) = torch.autograd.grad(count * loss, [mask])
        optimizer.step()
    with torch.no_grad():
        return masked(mask)

"""What a run needs before its first step: crops, labels, embeddings, built-in targets; made once and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emask.errors import TrainingError, first_line
from emask.face.align import CROP, INNER, align, estimate
from emask.images import load_photo
from emask.nets.recognizer import EMBEDDING
from emask.recognize.cards import Card
from emask.train.config import TrainConfig
from emask.train.data import Crops, load_crops
from emask.train.dataset import TrainingSet
from emask.train.distill import to_float
from emask.train.labels import read_labels
from emask.train.place import Place
from emask.train.surrogates import FACENETS, FaceNet, Surrogate, read_cards
from emask.train.validation import FAR, Validation, choose_people
from emask.weights import refiner_path, sha256, shipped_path

# Surrogates when none are named: the recognizers of this fold.
DEFAULT_FOLD = "A"
Progress = Callable[[str, int, int], None]
CPU = Place()


def open_surrogates(folder: Path, names: list[str] | None, least: int = 2) -> list[Surrogate]:
    """The named recognizers of a folder, or of FACENETS, as differentiable surrogates; without names, those of fold A.

    Args:
        least: how many there have to be.

    Raises:
        ModelError: the folder's cards are missing or damaged.
        TrainingError: unknown names, too few surrogates, one that cannot be rebuilt, or that gives no gradient.
    """
    cards = read_cards(folder)
    if not names:
        names = [name for name, card in cards.items() if card.fold == DEFAULT_FOLD]
    names = list(dict.fromkeys(names))  # one named twice is one
    known = [*cards, *FACENETS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TrainingError(f"no recognizer named {', '.join(unknown)} in {folder}", f"there are: {', '.join(known)}")
    if len(names) < least:
        raise TrainingError("a mask trained on one surrogate fools only that one", "name two or more surrogates")
    return [_opened(cards.get(name), name) for name in names]


def _opened(card: Card | None, name: str) -> Surrogate:
    """A surrogate that has been seen to give a gradient."""
    if card is None:
        surrogate: Surrogate = FaceNet(name).eval()
    elif not card.file.is_file():
        raise TrainingError(f"{card.file} does not exist", "leave it out with --surrogate")
    else:
        try:
            surrogate = Surrogate(card).eval()
        except Exception as error:  # the reader and the converter raise many classes of their own
            reason = first_line(error)
            hint = "leave it out: name others with --surrogate"
            raise TrainingError(f"PyTorch cannot rebuild {card.file.name}: {reason}", hint) from error
    probe = torch.zeros(1, 3, CROP, CROP, requires_grad=True)
    try:
        surrogate(probe)[0, 0].backward()
        reason = ""
    except Exception as error:
        reason = f": {first_line(error)}"
    if probe.grad is None or not bool(probe.grad.abs().sum() > 0):
        raise TrainingError(f"{name} gives no gradient{reason}", "leave it out: name others with --surrogate")
    return surrogate


def open_recognizers(config: TrainConfig, place: Place) -> list[Surrogate]:
    """The project's own recognizer and, where one ships, the refiner, differentiable.

    None, unless stage 3 is to refine masks.

    Raises:
        ModelError: one is missing or damaged.
    """
    if not config.refined:
        return []
    grey = (127.5, 127.5, 127.5)  # their input is in [-1, 1], as the crops are
    files = [file for file in (shipped_path("recognizer"), refiner_path()) if file is not None]
    cards = [Card(f"emask, {file.stem}", file, size=(INNER, INNER), mean=grey, std=grey) for file in files]
    return [Surrogate(card).eval().to(place.device) for card in cards]


def embed_crops(
    surrogates: Sequence[Surrogate],
    pixels: np.ndarray,
    bf16: bool,
    progress: Callable[[int, int], None] | None = None,
    place: Place = CPU,
) -> list[Tensor]:
    """Per surrogate the (N, D_k) float32 unit embeddings of (N, S, S, 3) uint8 crops, on the CPU."""
    rows: list[list[Tensor]] = [[] for _ in surrogates]
    step = 32 if place.device.type == "cpu" else 512
    with torch.no_grad(), place.autocast(bf16):
        for start in range(0, len(pixels), step):
            crops = to_float(pixels[start : start + step]).to(place.device)
            for k, surrogate in enumerate(surrogates):
                rows[k].append(surrogate(crops).float().cpu())
            if progress:
                progress(min(start + step, len(pixels)), len(pixels))
    return [torch.cat(parts) for parts in rows]


def _cached(path: Path, make: Callable[[], list[Tensor]]) -> list[Tensor]:
    if path.exists():
        return torch.load(path, weights_only=True)
    tensors = make()
    partial = path.with_suffix(".partial")
    torch.save(tensors, partial)
    partial.replace(path)
    return tensors


def target_crops(portraits: Path, device: str = "auto") -> tuple[list[str], np.ndarray]:
    """Names and (T, S, S, 3) uint8 crops of the targets in a folder of portraits, or in one photo.

    Raises:
        TrainingError: no portrait, or one without exactly one face.
    """
    from emask.face.detect import Detector

    files = [portraits] if portraits.is_file() else sorted(portraits.glob("*.jpg"))
    if not files:
        raise TrainingError(f"no built-in targets in {portraits}", "make some: python -m emask.train.synthetic")
    pictures = [load_photo(file).pixels for file in files]
    crops = []
    for file, picture, faces in zip(files, pictures, Detector(device).detect(pictures), strict=True):
        if not faces:
            raise TrainingError(f"no face found in {file}", "a target's photo shows one person, sharp and frontal")
        if len(faces) > 1:
            raise TrainingError(f"{file} shows {len(faces)} faces, not one", "crop it to the person who is meant")
        crops.append(align(picture, estimate(faces[0].points)))
    return [file.stem for file in files], np.stack(crops)


def embedded_crops(
    data: Path, surrogates: Sequence[Surrogate], cache: Path, bf16: bool, place: Place, progress: Progress | None = None
) -> tuple[Crops, np.ndarray, np.ndarray, list[Tensor]]:
    """All crops of a data folder, and those of people training may see as the surrogates see them; made once.

    Args:
        cache: folder for crops and embeddings.
        progress: called with (what, done, all).

    Returns:
        The crops; (N,) int64, which of them training may see; (N, S, S, 3) uint8, these; per surrogate (N, D_k)
        float32 unit embeddings, on the CPU.

    Raises:
        TrainingError: no photo, no face, or only people kept for tests.
    """

    def part(what: str) -> Callable[[int, int], None]:
        return lambda done, count: progress(what, done, count) if progress else None

    crops = load_crops(data, cache, part("finding faces"), place.choice)
    keep = np.flatnonzero(~crops.test)
    if not len(keep):
        raise TrainingError(f"every photo of {data} belongs to people kept for tests")
    pixels = np.ascontiguousarray(crops.pixels[keep])
    embedded = _embedded(surrogates, pixels, cache, bf16, place, part("embedding with surrogates"))
    return crops, keep, pixels, embedded


def _embedded(
    networks: Sequence[Surrogate], pixels: np.ndarray, cache: Path, bf16: bool, place: Place,
    progress: Callable[[int, int], None],
) -> list[Tensor]:  # fmt: skip
    """As `embed_crops`, kept in the cache under a name made of what went in."""
    photos = hashlib.sha256(pixels.data).hexdigest()[:12]
    fed = [f"{sha256(s.card.file)} {s.card.size} {s.card.mean} {s.card.std}" for s in networks]
    who = hashlib.sha256(f"{bf16} {fed}".encode()).hexdigest()[:8]
    path = cache / f"embeddings-{photos}-{who}.pt"
    return _cached(path, lambda: embed_crops(networks, pixels, bf16, progress, place))


@dataclass(frozen=True)
class Prepared:
    """What a run reads.

    Attributes:
        training: on the CPU.
        validation: (V, 2, S, S, 3) uint8: two photos each of people who are in no training.
        validation_targets: (T, 2, S, S, 3) uint8: two photos each of further such people, to be taken for.
        validation_identity: (T, 256) float32 unit embeddings of the targets' first photos.
        built_in: (K, S, S, 3) uint8, the built-in targets' crops.
    """

    training: TrainingSet
    validation: np.ndarray
    validation_targets: np.ndarray
    validation_identity: Tensor
    built_in: np.ndarray


# How many of the people kept for validation are targets.
VALIDATION_TARGETS = 8


def prepare(
    data: Path, surrogates: Sequence[Surrogate], portraits: Path, cache: Path, config: TrainConfig, place: Place,
    progress: Progress | None = None, recognizers: Sequence[Surrogate] = (),
) -> Prepared:  # fmt: skip
    """Everything the stages read. Test people, and those of the validation, are left out here, once for all stages.

    Args:
        data: folder of photos, see `emask.train.data`.
        surrogates: on the place's device.
        portraits: folder of the built-in targets' portraits, or the photo of one target.
        cache: folder for crops and embeddings.
        progress: called with (what, done, all).
        recognizers: of `open_recognizers`; identities are then embedded by all of them.
    """
    from emask.recognize import load_recognizer

    targets = target_crops(portraits, place.choice)[1]  # first, since a wrong photo is soon found out
    if not place.first:
        place.agree(0.0)  # the first process fills the cache, the others read it
    crops, keep, pixels, embedded = embedded_crops(data, surrogates, cache, config.bf16, place, progress)
    others = recognizers[1:]  # the refiner

    def told(done: int, count: int) -> None:
        if progress:
            progress("embedding with the refiner", done, count)

    aims = _embedded(others, pixels, cache, config.bf16, place, told) if others else []
    if place.first:
        place.agree(0.0)
    recognizer = load_recognizer(None, place.choice)
    identity = torch.cat([torch.from_numpy(recognizer.embed(pixels)), *aims], 1)
    target_aims = embed_crops(others, targets, False, None, place)
    labels = read_labels(data, crops)[torch.from_numpy(keep)]
    people = crops.people[keep]
    pairs = choose_people(people, [crops.names[i] for i in keep], config.validate)
    # at least as many people again must remain to train on
    pairs = pairs[: len(np.unique(people)) // 2]
    staying = np.flatnonzero(~np.isin(people, people[pairs.flatten()]))
    rows = torch.from_numpy(staying)
    aside = min(VALIDATION_TARGETS, len(pairs) // 2)
    return Prepared(
        TrainingSet(
            pixels=torch.from_numpy(pixels[staying]),
            people=people[staying],
            labels=labels[rows],
            identity=identity[rows],
            surrogate=[embeddings[rows] for embeddings in embedded],
            target_identity=torch.cat([torch.from_numpy(recognizer.embed(targets)), *target_aims], 1),
            target_surrogate=embed_crops(surrogates, targets, False, None, place),
        ),
        pixels[pairs[aside:]],
        pixels[pairs[:aside]],
        identity[torch.from_numpy(pairs[:aside, 0]), :EMBEDDING],
        targets,
    )


def open_validation(
    prepared: Prepared, folder: Path, surrogates: Sequence[Surrogate], config: TrainConfig, device: str = "auto",
    built_in: bool = False,
) -> Validation | None:  # fmt: skip
    """Validation by the recognizers of a folder that are no surrogates and whose cards have a threshold.

    None where there is no such recognizer, or there are no people. Against people no training has had as targets, by
    another photo of them; where the curriculum ends with built-in targets alone, against the first of these, as many
    as it has, by their one photo.

    Args:
        device: where the recognizers look, "auto", "cuda" or "cpu".
        built_in: against the built-in targets in any case, or the one that was named in their place.
    """
    from emask.recognize import load_folder, rate_key

    used = {surrogate.card.name for surrogate in surrogates}
    others = load_folder(folder, [name for name in read_cards(folder) if name not in used], device)
    judges = [recognizer for recognizer in others if rate_key(FAR) in recognizer.thresholds]
    if not judges or not len(prepared.validation_targets):
        return None
    last = config.phases[-1]
    if built_in or not last.people or not last.share:
        targets = prepared.built_in[: last.built_in]
        identity = prepared.training.target_identity[: last.built_in, :EMBEDDING]
        return Validation(prepared.validation, judges, identity, np.stack([targets, targets], axis=1))
    return Validation(prepared.validation, judges, prepared.validation_identity, prepared.validation_targets)

"""Recognizers made robust, as files with cards, for the question of the paper's Table IV: does the mask still work
where the recognizer was adversarially fine-tuned?

For each recognizer: measure it, fine-tune it (`emask.bench.finetune`), export it, measure the exported file in the same
way, and attack both alike, so that it is seen whether it did become more robust, and at what price. Measuring uses
people kept out of training, tuning only the others. Masks of emask have no part in any of it.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emask.bench.finetune import FineTuning, Tuned, attack, fine_tune, open_trainable, plain
from emask.bench.metrics import Photo, rate
from emask.bench.peers.ball import Ball
from emask.bench.recognizer import figures
from emask.bench.table import interval, markdown_table
from emask.errors import ModelError, TrainingError, UsageError, first_line
from emask.images import write_bytes
from emask.paths import make_folder
from emask.recognize import Card, Recognizer
from emask.recognize.cards import FOLDER_CARDS, folder_cards
from emask.train.data import TEST_FOLDS, Crops, load_crops, read_pairs
from emask.train.distill import to_float
from emask.train.export import OPSET, TOLERANCE
from emask.train.place import Place, join
from emask.train.surrogates import Surrogate
from emask.weights import sha256

SUFFIX = "-robust"
# Those that judge emask by default, and so those of interest.
DEFAULT_FOLD = "B"
FAR = "0.01"
# What a card of the folder says that the new one keeps as it is, and what the folder says of all.
SHARED = ("channel_order", "normalisation", "alignment")
# Called with (what, share done 0..1, a line about it or "").
Progress = Callable[[str, float, str], None]


@dataclass(frozen=True)
class WhiteBox:
    """The attack that recognizers are compared by: PGD through the recognizer itself, on crops in memory.

    Attributes:
        eps: L2 budget over a crop in [-1, 1] units.
        steps: of PGD, each 2.5 eps / steps long, so that the ball's edge is reached from anywhere in it.
        faces: people attacked, a photo of each; all there are where there are fewer.
        seed: of the people and of the random start.
    """

    eps: float = 8.9
    steps: int = 20
    faces: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Faces:
    """Whom the white-box attack is about.

    Attributes:
        photos: (N, 128, 128, 3) uint8 crops, one a person, which are attacked; each is to become the next person.
        others: (N, 128, 128, 3) uint8, another photo of each.
    """

    photos: np.ndarray
    others: np.ndarray


def choose_faces(crops: Crops, count: int, seed: int) -> Faces:
    """People kept out of training who have two photos.

    Raises:
        UsageError: there are fewer than two.
    """
    pairs = [own for own in crops.by_person(np.flatnonzero(crops.test)).values() if len(own) > 1]
    if len(pairs) < 2:
        raise UsageError(
            f"{len(pairs)} people kept out of training have two photos; measuring needs at least two",
            "the data folder must hold lfw_pairs.txt and the photos of its last two folds",
        )
    chosen = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))[:count]]
    return Faces(crops.pixels[[own[0] for own in chosen]], crops.pixels[[own[1] for own in chosen]])


class Attacked:
    """Faces after the white-box attack on a network, and how often it and others fall for them.

    Args:
        net: attacked; on the device to compute on.
        batch: faces at once.
        tick: called with the share done.
    """

    def __init__(
        self, net: Surrogate, faces: Faces, box: WhiteBox, batch: int = 16, tick: Callable[[float], None] | None = None
    ) -> None:
        self.faces = faces
        ball = Ball(box.eps, "l2")
        own = _embed(net, to_float(faces.photos))
        start = ball.random(to_float(faces.photos[:1]), torch.Generator().manual_seed(box.seed))
        device = own.device
        parts: dict[bool, list[Tensor]] = {False: [], True: []}
        for number, away in enumerate(parts):
            wanted = own if away else own.roll(1, 0)
            for at in range(0, len(own), batch):
                x = to_float(faces.photos[at : at + batch]).to(device)
                which = torch.full((len(x),), away, device=device)
                step = 2.5 * box.eps / box.steps
                change = attack(net, x, wanted[at : at + batch], which, ball, box.steps, step, start=start.to(device))
                parts[away].append((x + change).cpu())
                if tick:
                    tick((number + (at + len(x)) / len(own)) / 2)
        self.towards, self.away = torch.cat(parts[False]), torch.cat(parts[True])

    def judged(self, net: Surrogate, threshold: float) -> dict[str, Any]:
        """Rates with their intervals in the eyes of a network: "impersonation", taken for the next person by the photo
        attacked towards; "dodging", not taken for the owner by another photo; "_clean" without an attack.
        """
        own, other = _embed(net, to_float(self.faces.photos)), _embed(net, to_float(self.faces.others))
        wanted = own.roll(1, 0)

        def cosine(first: Tensor, second: Tensor) -> np.ndarray:
            return (first * second).sum(1).cpu().numpy()

        return {
            "impersonation": rate(cosine(_embed(net, self.towards), wanted) >= threshold).to_json(),
            "impersonation_clean": rate(cosine(own, wanted) >= threshold).to_json(),
            "dodging": rate(cosine(_embed(net, self.away), other) < threshold).to_json(),
            "dodging_clean": rate(cosine(own, other) < threshold).to_json(),
        }


@torch.no_grad()
def _embed(net: Surrogate, crops: Tensor, batch: int = 32) -> Tensor:
    """(N, D) on the network's device."""
    device = net.mean.device
    return torch.cat([net(crops[at : at + batch].to(device)) for at in range(0, len(crops), batch)])  # type: ignore[arg-type]


def disagreement(net: Surrogate, recognizer: Recognizer) -> float:
    """Largest difference between the unit embeddings of PyTorch and of ONNX Runtime, over one crop and over three.

    Raises:
        ModelError: one of them fails, as a graph does that was made for one face at a time.
    """
    worst = 0.0
    for count in (1, 3):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 128, 128, 3), np.uint8)
        theirs = recognizer.embed(pixels)
        try:
            ours = _embed(net, to_float(pixels)).cpu().numpy()
        except Exception as error:  # torch raises many classes of its own
            raise ModelError(
                f"{net.card.name}: PyTorch cannot run it on {count} faces ({first_line(error)})",
                "leave it out: name others with --recognizer",
            ) from error
        if ours.shape != theirs.shape:
            return float("inf")
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def export(net: Surrogate, card: Card, path: Path) -> Card:
    """Write a network as an ONNX file that takes and gives what the card's own file does.

    Args:
        card: of the recognizer it was made from.
        path: written as it comes: give it a name that nobody looks for yet.

    Returns:
        The card of the new file.

    Raises:
        ModelError: PyTorch cannot write it, or ONNX Runtime and PyTorch differ by more than TOLERANCE.
    """
    import onnx

    name = card.input_name or "data"
    example = torch.zeros(2, 3, *card.size)
    hint = "leave it out: name others with --recognizer"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that tracing takes for constants: the check below tells
            torch.onnx.export(
                plain(net), (example,), str(path), input_names=[name], output_names=["embedding"],
                dynamic_axes={name: {0: "batch"}, "embedding": {0: "batch"}}, opset_version=OPSET, dynamo=False,
            )  # fmt: skip
        onnx.checker.check_model(onnx.load(str(path)))
    except Exception as error:  # the exporter raises many classes of its own
        raise ModelError(f"{card.name}: cannot be exported ({first_line(error)})", hint) from error
    exported = replace(card, file=path, input_name=name, thresholds={}, sha256="")
    # a GPU's products of TF32 are not what is to be compared
    difference = disagreement(copy.deepcopy(net).cpu(), Recognizer(exported, "cpu"))
    if not difference <= TOLERANCE:
        raise ModelError(f"{card.name}: ONNX Runtime and PyTorch differ by {difference:.2g} after export", hint)
    return exported


def choose_cards(folder: Path, names: Sequence[str] | None) -> list[tuple[Card, dict[str, Any]]]:
    """The recognizers named, or those of DEFAULT_FOLD: their cards, as read and as they stand in the file.

    Raises:
        ModelError: no readable cards; UsageError: no recognizer of that name or fold.
    """
    cards = folder_cards(folder)
    entries = json.loads((folder / FOLDER_CARDS).read_text(encoding="utf-8"))["recognizers"]
    there = ", ".join(card.name for card in cards)
    for name in names or ():
        if name not in {card.name for card in cards}:
            raise UsageError(f"no recognizer called {name} in {folder}", f"it has {there}")
    wanted = set(names or (card.name for card in cards if card.fold == DEFAULT_FOLD))
    if not wanted:
        raise UsageError(f"no recognizer of fold {DEFAULT_FOLD} in {folder}", f"name some with --recognizer: {there}")
    return [(card, entry) for card, entry in zip(cards, entries, strict=True) if card.name in wanted]


def check_output(output: Path, recognizers: Path) -> list[dict[str, Any]]:
    """Make the output folder, and see before the work that files can be written there.

    Returns:
        The entries of its recognizers.json, from earlier runs.

    Raises:
        UsageError: it is the folder of the originals, or cannot be written to; ModelError: there is a recognizers.json
        that cannot be read.
    """
    if output.exists() and output.resolve() == recognizers.resolve():
        raise UsageError(f"{output} is the folder of the originals", "name another folder with -o")
    make_folder(output)
    if not (output / FOLDER_CARDS).is_file():
        return []
    folder_cards(output)
    return list(json.loads((output / FOLDER_CARDS).read_text(encoding="utf-8"))["recognizers"])


def _data(data: Path, cache: Path, progress: Progress) -> tuple[Crops, list[tuple[Photo, Photo, int]]]:
    pairs = data / "lfw_pairs.txt"
    if not data.is_dir():
        raise UsageError(f"no folder {data}", "name a folder of photos with --data")
    if not pairs.is_file():
        raise UsageError(f"no {pairs.name} in {data}", "it says whose photos are kept out of training, to measure with")
    crops = load_crops(data, cache, lambda done, count: progress("finding faces", done / count, ""))
    return crops, read_pairs(pairs, TEST_FOLDS)


def robustify(
    recognizers: Path, names: Sequence[str] | None, data: Path, output: Path, cache: Path, *, minutes: float,
    steps: int | None = None, tuning: FineTuning | None = None, box: WhiteBox | None = None, seed: int = 0,
    device: str = "auto", progress: Progress = lambda what, share, line: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Write OUTPUT/NAME-robust.onnx for each recognizer, and its card into OUTPUT/recognizers.json.

    A recognizer is written when it is done and measured; files appear whole or not at all. Cards in OUTPUT that are not
    made anew stay.

    Args:
        recognizers: folder with recognizers.json.
        names: of recognizers there; None for those of fold B.
        data: folder of photos with lfw_pairs.txt.
        cache: folder for the packed crops; see `emask.train.data.load_crops`.
        minutes: wall-clock time to tune each of them; measuring comes on top.
        steps: updates instead of a time.
        seed: of the tuning; that of measuring is the box's.
        device: "auto", "cuda" or "cpu".

    Returns:
        The new cards. "robustify" in each says what was done and what came of it: "before" and "after" with LFW
        accuracy, thresholds, true accept rates and the white-box attack; "transfer", the attack on the original judged
        by the new one.

    Raises:
        EmaskError: recognizers, data, output or device that cannot be used.
    """
    tuning, box = tuning or FineTuning(), box or WhiteBox()
    chosen = choose_cards(recognizers, names)
    written = check_output(output, recognizers)
    folder = json.loads((recognizers / FOLDER_CARDS).read_text(encoding="utf-8"))
    crops, pairs = _data(data, cache, progress)
    faces = choose_faces(crops, box.faces, box.seed)
    where = join(device).device
    made = []
    for card, entry in chosen:
        new, path = _one(card, entry, crops, pairs, faces, output, minutes, steps, tuning, box, seed, where, progress)
        try:
            written = [old for old in written if old["name"] != new["name"]] + [new]
            document = {
                "note": "Adversarially fine-tuned recognizers, made by emask bench robustify; see docs/evaluation.md. "
                "The terms of the originals hold for them too.",
                **{key: folder[key] for key in SHARED if key in folder},
                "recognizers": written,
            }
            content = (json.dumps(document, indent=1) + "\n").encode()
            os.chmod(path, 0o644)
            path.replace(output / new["file"])
            write_bytes(output / FOLDER_CARDS, content, force=True)
        finally:
            path.unlink(missing_ok=True)
        made.append(new)
    return made


def _one(
    card: Card, entry: dict[str, Any], crops: Crops, pairs: Sequence[tuple[Photo, Photo, int]], faces: Faces,
    output: Path, minutes: float, steps: int | None, tuning: FineTuning, box: WhiteBox, seed: int,
    device: torch.device, progress: Progress,
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """A recognizer's new card, and its file under a temporary name."""
    net = open_trainable(card)
    choice = Place(device).choice
    first = Recognizer(card, choice)
    # on the CPU both: the CUDA provider rounds more coarsely (TF32)
    difference = disagreement(net, Recognizer(card, "cpu"))
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{card.name}: PyTorch rebuilds it with a difference of {difference:.2g}",
            "leave it out: name others with --recognizer",
        )
    net = net.to(device)
    original = Surrogate(card).eval().to(device)
    progress(f"{card.name}: measuring", 0.0, "")
    before = _measure(first, crops, pairs)

    def attacked(what: str, network: Surrogate) -> Attacked:
        return Attacked(network, faces, box, tick=lambda share: progress(f"{card.name}: {what}", share, ""))

    spoilt = attacked("attacking the original", original)
    before["white_box"] = spoilt.judged(original, before["thresholds"][FAR])
    tuned = fine_tune(
        net, original, crops, tuning, minutes=minutes, steps=steps, seed=seed,
        report=lambda share, line: progress(f"{card.name}: fine-tuning", share, line),
    )  # fmt: skip
    progress(f"{card.name}: fine-tuning", 1.0, "")
    handle, name = tempfile.mkstemp(prefix=".emask-", suffix=".tmp", dir=output)
    os.close(handle)
    path = Path(name)
    try:
        exported = export(net, card, path)
        after = _measure(Recognizer(exported, choice), crops, pairs)
        after["white_box"] = attacked("attacking the new one", net).judged(net, after["thresholds"][FAR])
        transfer = spoilt.judged(net, after["thresholds"][FAR])
        new = _card(card, entry, exported, before, after, transfer, tuned, tuning, box, seed, device)
    except BaseException:  # Ctrl-C above all
        path.unlink(missing_ok=True)
        raise
    return new, path


def _measure(recognizer: Recognizer, crops: Crops, pairs: Sequence[tuple[Photo, Photo, int]]) -> dict[str, Any]:
    try:
        return figures(recognizer, crops, pairs)
    except ValueError as error:
        hint = "give a larger folder with --data"
        raise TrainingError(f"{recognizer.name} cannot be measured: {error}", hint) from error


def _card(
    card: Card, entry: dict[str, Any], exported: Card, before: dict[str, Any], after: dict[str, Any],
    transfer: dict[str, Any], tuned: Tuned, tuning: FineTuning, box: WhiteBox, seed: int, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """The original's entry with all that was measured anew, and how it was made."""
    low, high = (tuning.eps * (1 + sign * tuning.spread) for sign in (-1, 1))
    note = (
        f"Adversarially fine-tuned from {card.name} by emask bench robustify: {tuned.steps} steps in "
        f"{tuned.seconds / 60:.1f} minutes on {device.type}, PGD with {tuning.steps} steps, L2 budgets {low:.3g} to "
        f"{high:.3g}, seed {seed}. Accuracy: LFW pairs of folds {' and '.join(map(str, TEST_FOLDS))}; thresholds from "
        f"{after['calibration']['photos']} photos of people of these folds and others kept out of training."
    )
    return {
        **entry,
        "name": card.name + SUFFIX,
        "file": f"{card.name}{SUFFIX}.onnx",
        "sha256": sha256(exported.file),
        "input_name": exported.input_name,
        "fold": card.fold,
        "lfw_accuracy": after["lfw_accuracy"],
        "threshold": after["thresholds"],
        "true_accept": after["true_accept"],
        "note": note,
        "robustify": {
            "from": {"name": card.name, "file": card.file.name, "sha256": sha256(card.file)},
            "tuning": asdict(tuning),
            "seed": seed,
            "steps": tuned.steps,
            "seconds": round(tuned.seconds, 1),
            "device": device.type,
            "white_box": asdict(box),
            "before": before,
            "after": after,
            "transfer": transfer,
        },
    }


def render(cards: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table a recognizer, before and after; rates in percent with Wilson 95% intervals."""
    lines: list[str] = []
    for card in cards:
        told = card["robustify"]
        before, after = told["before"], told["after"]
        rows = [
            ["LFW accuracy, folds 9 and 10 (%)", *(f"{100 * side['lfw_accuracy']:.2f}" for side in (before, after))],
            [f"true accepts at FAR {FAR} (%)", *(f"{100 * side['true_accept'][FAR]:.1f}" for side in (before, after))],
            [f"threshold at FAR {FAR} (cosine)", *(f"{side['thresholds'][FAR]:.3f}" for side in (before, after))],
        ]
        for figure, title in (("impersonation", "taken for the target"), ("dodging", "not taken for the owner")):
            for suffix, what in (("", "PGD through itself"), ("_clean", "no attack")):
                cells = [interval(side["white_box"][figure + suffix]) for side in (before, after)]
                rows.append([f"{title}, {what} (%)", *cells])
            rows.append([f"{title}, PGD through the original (%)",
                         *(interval(side[figure]) for side in (before["white_box"], told["transfer"]))])  # fmt: skip
        count = before["white_box"]["dodging"]["n"]
        lines += [
            f"{card['name']}: {told['steps']} steps in {told['seconds'] / 60:.1f} minutes on {told['device']}. "
            f"Attacks: {count} faces, PGD with {told['white_box']['steps']} steps, L2 {told['white_box']['eps']:g}, "
            f"FAR {FAR}.",
            "",
            *markdown_table(["", told["from"]["name"], card["name"]], rows),
        ]
    return "\n".join(lines).rstrip() + "\n"

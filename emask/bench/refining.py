"""What refining is worth, and by which settings: masks of the generator alone, and refined ones.

    python -m emask.bench.refining --data DIR --recognizers DIR [--judge NAME ...] [--trial steps=12,owner=0.5] ...

Crop protocol, for choosing settings without a look at the people of the benchmark: aligned crops of the people that
`Validation` keeps out of training, each through a JPEG file; the first of them are the targets. What the restorer gets
is moved as by another detection. Prints one Markdown table, a row a trial: fields of
`emask.engine.refine.Refinement`, and eps; the rest is as it ships. With `--through` masks are refined through
recognizers of the folder instead of the refiner, which tells how far one could come; `refiner=1000` then leaves the
shipped recognizer next to no say.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import nn

from emask import weights
from emask.bench.metrics import accepted, psnr, rejected
from emask.bench.table import markdown_table
from emask.engine import Engine, inner_square, open_engine, to_network
from emask.engine.refine import Refinement, RefiningEngine
from emask.errors import TrainingError, UsageError, as_program
from emask.recognize import Recognizer, load_folder, rate_key
from emask.train.config import TrainConfig
from emask.train.data import Crops, load_crops
from emask.train.draws import Draws
from emask.train.noise import Redetection
from emask.train.prepare import open_surrogates
from emask.train.validation import FAR, choose_people, through_jpeg
from emask.train.watch import to_pixels

PEOPLE = TrainConfig().validate  # how many training keeps out


@dataclass(frozen=True)
class Trial:
    """Faces, targets and judges of a comparison.

    Attributes:
        crops: (N, 3, S, S) float32 in [-1, 1].
        target: (N, D) float32, whom each shall look like.
        given: per judge (N, D'), the target's photo; other: another one of that person; own: another one of the owner.
    """

    crops: np.ndarray
    target: np.ndarray
    judges: Sequence[Recognizer]
    given: Sequence[np.ndarray]
    other: Sequence[np.ndarray]
    own: Sequence[np.ndarray]


def draw(crops: Crops, engine: Engine, judges: Sequence[Recognizer], faces: int, targets: int) -> Trial:
    """The first validation people are targets, those after them the faces.

    Args:
        engine: embeds the targets.

    Raises:
        TrainingError: too few people with two photos.
    """
    training = np.flatnonzero(~crops.test)
    people = choose_people(crops.people[training], [crops.names[i] for i in training], PEOPLE)
    people = training[people]
    shown, sources = people[:targets], people[targets : targets + faces]
    if not len(sources):
        hint = f"there have to be more than the {targets} targets"
        raise TrainingError(f"only {len(people)} people have two photos", hint)
    whom = np.arange(len(sources)) % len(shown)
    given = engine.embed_target(inner_square(to_network(crops.pixels[shown[:, 0]])))
    return Trial(
        to_network(crops.pixels[sources[:, 0]]),
        given[whom],
        judges,
        [judge.embed(crops.pixels[shown[:, 0]])[whom] for judge in judges],
        [judge.embed(crops.pixels[shown[:, 1]])[whom] for judge in judges],
        [judge.embed(crops.pixels[sources[:, 1]]) for judge in judges],
    )


def measure(trial: Trial, masking: Engine, restoring: Engine, eps: float) -> list[str]:
    """One line: seconds a face, PSNR of protected and restored, and by judge: ASR, dodging, re-verification, erasure.

    Shares in percent at a false accept rate of 0.01, mean cosines behind them.
    """
    began = time.perf_counter()
    change = masking.protect(trial.crops, trial.target, w=0.0, eps=eps)
    seconds = (time.perf_counter() - began) / len(trial.crops)
    original = torch.from_numpy(trial.crops)
    protected = to_pixels(original + torch.from_numpy(change))
    saved = through_jpeg(protected)
    found, clean = Redetection()([torch.from_numpy(to_network(saved)), original], 1.0, Draws(0))
    restored = to_pixels(found + torch.from_numpy(restoring.erase(found.numpy())))
    distance = [np.mean([psnr(*two) for two in zip(first, second, strict=True)])
                for first, second in ((to_pixels(original), protected), (to_pixels(clean), restored))]  # fmt: skip
    cells = [f"{seconds:.2f}", f"{distance[0]:.2f}", f"{distance[1]:.2f}"]
    for judge, given, other, own in zip(trial.judges, trial.given, trial.other, trial.own, strict=True):
        threshold = judge.thresholds[rate_key(FAR)]
        masked, erased = judge.embed(saved), judge.embed(restored)
        cells += [
            f"{100 * hits.mean():.0f} ({(first * second).sum(1).mean():.3f})"
            for hits, first, second in (
                (accepted(masked, other, threshold), masked, other),
                (rejected(masked, own, threshold), masked, own),
                (accepted(erased, own, threshold), erased, own),
                (rejected(erased, given, threshold), erased, given),
            )
        ]
    return cells


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m emask.bench.refining`."""
    parser = argparse.ArgumentParser(prog="python -m emask.bench.refining", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photos")
    parser.add_argument("--recognizers", type=Path, required=True, help="folder with recognizers.json")
    parser.add_argument("--judge", nargs="+", default=None, help="names of recognizers that judge [default: all]")
    parser.add_argument("--faces", type=int, default=56)
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--trial", action="append", default=None, metavar="NAME=VALUE,...", help="one row; repeatable")
    through = parser.add_mutually_exclusive_group()
    through.add_argument("--refiner", type=Path, default=None, help="its model file [default: the shipped one, if any]")
    through.add_argument("--through", nargs="+", metavar="NAME", help="recognizers of the folder instead of a refiner")
    options = parser.parse_args(arguments)
    print("\n".join(_table(options)))
    return 0


class Joined(nn.Module):
    """Several recognizers as one: their unit embeddings side by side, as one unit vector."""

    def __init__(self, recognizers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.recognizers = nn.ModuleList(recognizers)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        embeddings = [recognizer(crops) for recognizer in self.recognizers]
        return torch.cat(embeddings, 1) / len(embeddings) ** 0.5


def parse_trial(text: str) -> tuple[Refinement, float]:
    """Settings and eps of "NAME=VALUE,...".

    Raises:
        UsageError: a name that is none of them, a value that is no number, or one out of range.
    """
    usual = asdict(Refinement()) | {"eps": weights.strength("medium")[1]}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in usual:
            raise UsageError(f"no setting named {name!r} in {text!r}", f"there are: {', '.join(usual)}")
        try:
            usual[name] = type(usual[name])(value)
        except ValueError:
            raise UsageError(f"{value!r} is no value of {name}", "write it as steps=12,owner=0.5") from None
    sound = all(math.isfinite(value) for value in usual.values())
    if not sound or usual["steps"] < 0 or usual["every"] < 1 or usual["eps"] <= 0 or usual["refiner"] < 0:
        raise UsageError(f"{text!r}: these cannot be", "every is at least 1, eps above 0, steps and refiner at least 0")
    eps = usual.pop("eps")
    return Refinement(**usual), eps


def _table(options: argparse.Namespace) -> list[str]:
    if min(options.faces, options.targets) < 1:
        raise UsageError("there has to be a face and a target", "give --faces and --targets numbers above 0")
    trials = {text: parse_trial(text) for text in options.trial or [""]}
    generator, restorer, recognizer = (weights.shipped_path(kind) for kind in weights.KINDS)
    plain = open_engine(generator, restorer, recognizer, device="cpu")
    judges = load_folder(options.recognizers, options.judge, "cpu")
    refiner: Path | nn.Module | None = options.refiner or weights.refiner_path()
    if options.through:
        refiner = Joined(open_surrogates(options.recognizers, options.through, least=1))
    crops = load_crops(options.data, user_cache_path("emask") / "training")

    def engine(settings: Refinement) -> RefiningEngine:
        return RefiningEngine(plain, recognizer, restorer, "cpu", settings, refiner=refiner)

    unrefined = engine(Refinement(steps=0))
    trial = draw(crops, unrefined, judges, options.faces, options.targets)
    rows = []
    for eps in dict.fromkeys(eps for _, eps in trials.values()):
        rows.append(["the generator alone", f"{eps:g}", *measure(trial, unrefined, plain, eps)])
    for text, (settings, eps) in trials.items():
        rows.append([text or "as it ships", f"{eps:g}", *measure(trial, engine(settings), plain, eps)])
        print(f"{text or 'as it ships'}: done", file=sys.stderr, flush=True)
    head = ["masks", "eps", "s a face", "PSNR (dB)", "restored (dB)"]
    for judge in judges:
        head += [f"{judge.name}: {figure}" for figure in ("ASR", "dodging", "re-verified", "erased")]
    what = f"{len(trial.crops)} faces, {options.targets} targets by another photo"
    return [f"{what}; in percent at FAR {FAR:g}, and the mean cosine.", "", *markdown_table(head, rows)]


if __name__ == "__main__":
    sys.exit(main())

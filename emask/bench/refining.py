"""What refining is worth, and by which settings: masks of the generator alone, and refined ones.

    python -m emask.bench.refining --data DIR --recognizers DIR [--judge NAME ...] [--faces 56] [--steps 20 40]

Crop protocol, for choosing settings without a look at the people of the benchmark: aligned crops of the people that
`Validation` keeps out of training, each through a JPEG file; the first of them are the targets. What the restorer gets
is moved as by another detection. Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path

from emask import weights
from emask.bench.metrics import accepted, psnr, rejected
from emask.bench.table import markdown_table
from emask.engine import Engine, inner_square, open_engine, to_network
from emask.engine.refine import Refinement, RefiningEngine
from emask.errors import TrainingError, as_program
from emask.recognize import Recognizer, load_folder, rate_key
from emask.train.config import TrainConfig
from emask.train.data import Crops, load_crops
from emask.train.draws import Draws
from emask.train.noise import Redetection
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
    parser.add_argument("--steps", type=int, nargs="+", default=[20], help="gradient steps, several for more lines")
    parser.add_argument("--eps", type=float, nargs="+", default=None, help="budgets [default: strength medium's]")
    parser.add_argument("--pixels", type=float, nargs="+", default=None, help="weights of the restorer's error")
    parser.add_argument("--owner", type=float, default=Refinement().owner, help="weight of leaving the owner")
    parser.add_argument("--owner-margin", type=float, default=Refinement().owner_margin, help="content cosine")
    parser.add_argument("--reach", type=float, default=Refinement().reach, help="cosine content with the target")
    parser.add_argument("--away", type=float, nargs="+", default=[Refinement().away], help="weights of its likeness")
    parser.add_argument("--refiner", type=Path, default=None, help="its model file [default: the shipped one, if any]")
    parser.add_argument("--refiner-weight", type=float, nargs="+", default=[Refinement().refiner], help="0: without it")
    options = parser.parse_args(arguments)
    print("\n".join(_table(options)))
    return 0


def _table(options: argparse.Namespace) -> list[str]:
    generator, restorer, recognizer = (weights.shipped_path(kind) for kind in weights.KINDS)
    plain = open_engine(generator, restorer, recognizer, device="cpu")
    judges = load_folder(options.recognizers, options.judge, "cpu")
    crops = load_crops(options.data, user_cache_path("emask") / "training")
    refiner = options.refiner or weights.refiner_path()

    def engine(settings: Refinement) -> RefiningEngine:
        return RefiningEngine(plain, recognizer, restorer, "cpu", settings, refiner=refiner)

    unrefined = engine(Refinement(steps=0))
    trial = draw(crops, unrefined, judges, options.faces, options.targets)
    usual = replace(Refinement(), owner=options.owner, owner_margin=options.owner_margin, reach=options.reach)
    budgets = options.eps or [weights.strength("medium")[1]]
    rows = []
    for eps in budgets:
        rows.append(["the generator alone", f"{eps:g}", "0", "", "", "", *measure(trial, unrefined, plain, eps)])
        shares = options.refiner_weight if refiner is not None else [0.0]
        for steps, pixels, away, share in product(
            options.steps, options.pixels or [usual.pixels], options.away, shares
        ):
            settings = replace(usual, steps=steps, pixels=pixels, away=away, refiner=share)
            chosen = [f"{value:g}" for value in (eps, steps, pixels, away, share)]
            rows.append(["refined", *chosen, *measure(trial, engine(settings), plain, eps)])
            print(f"budget {eps:g}, {steps} steps, pixels {pixels:g}, away {away:g}, refiner {share:g}: done",
                  file=sys.stderr, flush=True)  # fmt: skip
    head = ["masks", "eps", "steps", "pixels", "away", "refiner", "s a face", "PSNR (dB)", "restored (dB)"]
    for judge in judges:
        head += [f"{judge.name}: {figure}" for figure in ("ASR", "dodging", "re-verified", "erased")]
    what = f"{len(trial.crops)} faces, {options.targets} targets by another photo"
    return [f"{what}; in percent at FAR {FAR:g}, and the mean cosine.", "", *markdown_table(head, rows)]


if __name__ == "__main__":
    sys.exit(main())
